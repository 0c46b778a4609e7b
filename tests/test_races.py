"""Every kernel, every access watched, in every order; and faults put into the kernels themselves.

The stand-in's kernels run "checked" wherever tests use them. Here each runs with its threads and
blocks in four orders, over memory that held other things, and in one block that takes all turns:
the bits must be the same, and nothing may be reported.
"""

import numpy as np
import pytest
from kernel_cases import CASES, run

from check import close
from gpuconv import backend, kernels
from hostcuda import compiler, fake_cupy
from hostcuda.hostcuda import HostKernel

pytestmark = [pytest.mark.skipif(not compiler(), reason="no g++"),
              pytest.mark.skipif(backend._cupy is not fake_cupy, reason="checks of the stand-in")]
FILES = sorted((kernels.HERE.parent / "kernels").rglob("*.cu"))
TERMS = 1500  # at most, of any sum in the cases


@pytest.fixture
def changed(monkeypatch):
    """changed(seed, fill, max_blocks, edits): how kernels run from here on."""
    real, source = fake_cupy.empty, kernels.source

    def change(seed=2, fill=0xFF, max_blocks=kernels.MAX_BLOCKS, edits=()):
        def empty(*args, **options):
            a = real(*args, **options)
            a.host.reshape(-1).view(np.uint8)[...] = fill
            return a

        def edited(file):
            text = source(file)
            for old, new in edits:
                if old in text:
                    assert text.count(old) == 1, old
                    text = text.replace(old, new)
            return text

        monkeypatch.setattr(fake_cupy, "empty", empty)
        monkeypatch.setattr(HostKernel, "seed", seed)
        monkeypatch.setattr(kernels, "MAX_BLOCKS", max_blocks)
        monkeypatch.setattr(kernels, "source", edited)
        if edits:
            kernels.kernel.cache_clear()

    yield change
    if kernels.source is not source:
        kernels.kernel.cache_clear()


def check_orders(case, changed, **options):
    """The same bits in all orders and over all memory, close to NumPy's."""
    results = []
    for seed, fill, max_blocks in [(0, 0xFF, 2**16), (1, 0x3F, 2**16), (2, 0xBF, 2**16),
                                   (3, 0x00, 1), (1, 0x7F, 1)]:
        changed(seed, fill, max_blocks, **options)
        options.pop("edits", None)  # once: what is compiled stays
        results.append(run(case, fake_cupy))
    for a, b in zip(run(case, np), results[0], strict=True):
        close(b, a, terms=TERMS)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_in_every_order_and_over_any_memory(changed, case):
    check_orders(case, changed)


@pytest.mark.parametrize("case", CASES)
def test_16_bit_floats_in_every_order(changed, case):
    changed(seed=0)
    rising = run(case, fake_cupy, "float16")
    changed(seed=1, fill=0x3C, max_blocks=1)
    for a, b in zip(rising, run(case, fake_cupy, "float16"), strict=True):
        assert a.tobytes() == b.tobytes()


def test_the_cases_launch_every_kernel(monkeypatch):
    launched, call = set(), HostKernel.__call__
    monkeypatch.setattr(HostKernel, "__call__",
                        lambda self, *a, **k: launched.add(self.name) or call(self, *a, **k))
    for case in CASES:
        run(case, fake_cupy)
    assert launched == {name for f in FILES for name in kernels.signatures(kernels.source(f))}


# -- faults in real kernels ---------------------------------------------------------------

ATOMIC_SUM = """for (int k = threadIdx.x; k < BLOCK * V; k += BLOCK) shared[spread<A>(k)] = 0;
        __syncthreads();
        for (int v = 0; v < V; ++v) {
            if (p.count) atomicAdd(&shared[spread<A>(threadIdx.x % lanes * V + v)], sums[v]);
        }
        __syncthreads();"""
FAULTS = {  # what is wrong: a case, the text, what it becomes, the report (None: other bits)
    "no barrier before a tree": (
        "sgd", "shared[t] = v;\n    __syncthreads();\n", "shared[t] = v;\n",
        "race|uninitialised"),
    "no barrier within a tree": (
        "sgd", "shared[t + half]);\n        __syncthreads();", "shared[t + half]);", "race"),
    "no barrier before the next turn": (
        "batch_norm in packs", "= total.gzx;\n        }\n        __syncthreads();",
        "= total.gzx;\n        }", "race"),
    "no barrier before rows become one": (
        "batch_norm", "= mine[v];\n    }\n    __syncthreads();", "= mine[v];\n    }",
        "race|uninitialised"),
    "no barrier while rows become one": (
        "batch_norm", "row i / (lanes * V)\n        }\n        __syncthreads();",
        "row i / (lanes * V)\n        }", "race"),
    "a barrier that not all threads reach": (
        "batch_norm", "= mine[v];\n    }\n    __syncthreads();",
        "= mine[v];\n        __syncthreads();\n    }", "__syncthreads"),
    "a shuffle that not all lanes reach": (
        "cross_entropy of many classes", "apart /= 2) v =", "apart /= 2) if (threadIdx.x % 32) v =",
        "not reached by all live lanes"),
    "a lost update": (
        "bias_relu", "for (int k = threadIdx.x; k < p.width; k += BLOCK) gb[",
        "for (int k = 0; k < p.width; ++k) gb[", "write-write race"),
    "reads one row too far down": (
        "max_pool2d", "(r0 + i) * DH, 0), H - 1)", "(r0 + i) * DH, 0), H)", "out-of-bounds read"),
    "goes one too far": (
        "sgd", "grid_stride<long long>(n - done))\n", "grid_stride<long long>(n - done + 1))\n",
        "out-of-bounds"),
    "shared memory that nobody wrote": (
        "cross_entropy of many classes", "if (threadIdx.x % 32 == 0) shared",
        "if (threadIdx.x == 0) shared", "read of uninitialised shared memory"),
    "past an array": (
        "bias_relu", "i < DEEP; ++i) {\n                    some", "i <= DEEP; ++i) {\n some",
        r"index 4 out of bounds for '.*\[4\]"),
    "a pack from any address": (
        "relu", "is_aligned(a) && is_aligned(b) && is_aligned(y) ?", "true ?",
        "misaligned access to"),
    "an index that overflows": (
        "relu", "const I done = packs * V;",
        "const I done = packs * V + n * 10000000 / 10000000 - n;",
        r"overflow: 1031 \* 10000000 does not fit 'int'"),
    "an output left unwritten": (
        "max_pool2d", "image[((I)h * W + w) * packs] =",
        "if (sum[0] != 0) image[((I)h * W + w) * packs] =", None),
    "copies that nobody waits for": (
        "weight gradient", "cp_async_wait<0>();\n    store", "store", "a cp.async in flight"),
    "pixels of another image": ("weight gradient", "h -= z.P * z.SH;", ";", None),
    "a run that counts a pixel twice": (
        "weight gradient in runs", "count = min(run,", "count = min(run + 1,", None),
    "a column added to its neighbour": (
        "column_sums in slices", "row + half < high", "row + half <= high", "race|uninit|bounds"),
    "a line that two slices count": (
        "column_sums in slices", "lines * (slice + 1) / slices : 0",
        "lines * (slice + 1) / slices + 1 : 0", None),
    "a sum in the order of arrival": (
        "bias_relu", "reduce_rows<V>(shared, sums, p.height, lanes, Add());", ATOMIC_SUM, None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_seen(changed, fault):
    case, old, new, report = FAULTS[fault]
    assert any(old in kernels.source(f) for f in FILES), "the kernel reads differently now"
    with pytest.raises(RuntimeError if report else AssertionError, match=report):
        check_orders(case, changed, edits=[(old, new)])
