"""common/mma.cuh: each function against its definition in loops, and its misuse on the CPU."""

import pathlib

import numpy as np
import pytest
from conftest import ampere

from check import close, make
from gpuconv import backend, kernels
from hostcuda import HostModule, fake_cupy
from hostcuda.hostcuda import HostKernel

PROBE = pathlib.Path(__file__).with_name("mma_probe.cu")
on_the_cpu = pytest.mark.skipif(backend._cupy is not fake_cupy, reason="checks of the stand-in")


@pytest.fixture(params=[0, 1, 2], ids=["rising", "falling", "random"])
def order(request, monkeypatch):
    """The threads of the stand-in run in this order."""
    monkeypatch.setattr(HostKernel, "seed", request.param)


@pytest.fixture
def cp(cp):
    """cupy with tensor cores, or the stand-in."""
    return ampere(cp)


@pytest.fixture
def probe(cp):
    """run(function, *arrays, **constants): one warp of mma_probe.cu, on copies on the GPU."""
    def run(function, *args, T="float32", X=1, BYTES=16):
        gpu = [cp.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        kernels.kernel(PROBE, function, T=T, X=X, BYTES=BYTES)(32, *gpu, block=32)
        return [a.get() for a in gpu if hasattr(a, "get")]

    return run


def depth(T):
    return 8 if T == "float32" else 16


@pytest.mark.parametrize("T", ["float16", "bfloat16", "float32"])
def test_mma_multiplies_small_integers_exactly(probe, order, rng, T):
    a, b = (make(rng.integers(-8, 9, shape), T) for shape in ((16, depth(T)), (depth(T), 8)))
    c = make(rng.integers(-9, 9, (16, 8)), "float32")
    *_, d = probe("probe_mma", a, b, c, T=T)
    want = c.copy()
    for m in range(16):
        for n in range(8):
            for k in range(depth(T)):
                want[m, n] += np.float32(a[m, k]) * np.float32(b[k, n])
    np.testing.assert_array_equal(d, want)


@pytest.mark.parametrize("T", ["float16", "bfloat16", "float32"])
def test_mma_rounds_only_its_sums(probe, rng, T):
    a, b = (make(rng.standard_normal(shape), T) for shape in ((16, depth(T)), (depth(T), 8)))
    c = make(rng.standard_normal((16, 8)), "float32")
    *_, d = probe("probe_mma", a, b, c, T=T)
    if T == "float32":
        a, b = (probe("probe_tf32", v.ravel(), np.empty(v.size, np.uint32), v.size)[1].view(
            np.float32).reshape(v.shape) for v in (a, b))
    close(d, (a.astype(float) @ b.astype(float) + c).astype(np.float32), terms=depth(T) + 1)


def test_mma_carries_infinity_and_nan(probe):
    a, b, c = np.zeros((16, 16)), np.ones((16, 8)), np.zeros((16, 8), np.float32)
    a[3, 5], a[11, 9] = np.inf, np.nan
    *_, d = probe("probe_mma", make(a, "float16"), make(b, "float16"), c, T="float16")
    assert np.isposinf(d[3]).all() and np.isnan(d[11]).all()
    assert not np.delete(d, [3, 11], axis=0).any()


def test_tf32_keeps_ten_bits_and_rounds_ties_away(probe, rng):
    x = np.concatenate([rng.standard_normal(1000) * 2.0 ** rng.integers(-100, 100, 1000),
                        [0, 1, 1 + 2**-11, 1 - 2**-12, 1 + 2**-11 - 2**-20, 3.4e38, np.inf]])
    x = np.float32(np.concatenate([x, -x]))
    bits = probe("probe_tf32", x, np.empty(x.size, np.uint32), x.size)[1]
    assert not np.any(bits & 0x1FFF)
    finite = np.isfinite(x)
    step = 2.0 ** (np.frexp(x[finite].astype(float))[1] - 11)
    want = np.sign(x[finite]) * np.floor(np.abs(x[finite]) / step + 0.5) * step
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(bits.view(np.float32)[finite], want.astype(np.float32))
    np.testing.assert_array_equal(bits.view(np.float32)[~finite], x[~finite])
    nan = probe("probe_tf32", np.float32([np.nan]), np.empty(1, np.uint32), 1)[1]
    assert np.isnan(nan.view(np.float32))


@pytest.mark.parametrize("X", [1, 2, 4])
def test_ldmatrix(probe, order, rng, X):
    rows = rng.integers(0, 2**16, (32, 8)).astype(np.uint16)
    where = rng.permutation(32)[: 8 * X].astype(np.int32)
    out = [np.zeros((32, X), np.uint32) for _ in range(2)]
    *_, straight, transposed = probe("probe_ldmatrix", rows.view(np.uint32), where, *out, X=X)
    for got, across in ((straight, False), (transposed, True)):
        for lane in range(32):
            g, t = lane // 4, lane % 4
            for i in range(X):
                matrix = rows[where[8 * i : 8 * i + 8]]
                matrix = matrix.T if across else matrix
                want = int(matrix[g, 2 * t]) | int(matrix[g, 2 * t + 1]) << 16
                assert got[lane, i] == want, (across, lane, i)


@pytest.mark.parametrize("BYTES", [4, 8, 16])
def test_cp_async_copies_or_writes_zeros(probe, order, rng, BYTES):
    source = rng.integers(1, 256, (3, 32, BYTES)).astype(np.uint8)
    keep = rng.integers(0, 2, (3, 32)).astype(np.int32)
    *_, out = probe("probe_cp_async", source, keep, np.zeros_like(source), BYTES=BYTES)
    np.testing.assert_array_equal(out, np.where(keep[..., None], source, 0))


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("T", ["float16", "bfloat16", "float32"])
def test_nvrtc_compiles_it(nvrtc, T, arch):
    for X, BYTES in ((1, 4), (2, 8), (4, 16)):
        dtypes = dict(T=backend.float_dtype(T), A=np.dtype("float32"))
        nvrtc(kernels.source(PROBE), kernels.defines(**dtypes, X=X, BYTES=BYTES), arch)


# -- misuse, which the CPU reports --------------------------------------------------------

MISUSE = {  # statements: report
    "if (lane != 5) mma_f16(d, a, b);": "not reached by all live lanes|fewer than 32 lanes",
    "if (lane == 5) return; mma_tf32(d, a, b);": "fewer than 32 lanes",
    "if (lane < 16) mma_f16(d, a, b); else mma_bf16(d, a, b);": "at different warp functions",
    "FILL if (lane < 16) ldmatrix(a, x); else mma_f16(d, a, b);": "at different warp functions",
    "FILL if (lane < 16) ldmatrix(a, x); else ldmatrix_transposed(a, x);": "different warp funct",
    "FILL ldmatrix(a, x + 2);": "ldmatrix: the address of a row is not 16-byte aligned",
    "ldmatrix(a, in);": "ldmatrix: a row outside of shared memory",
    "ldmatrix(a, x - 128);": "ldmatrix: a row outside of shared memory",
    "FILL ldmatrix(b, x + 256 * lane);": "ldmatrix: a row outside of shared memory",
    "ldmatrix(b, x);": "read of uninitialised shared memory",
    "x[lane] = 0; ldmatrix(b, x);": "race|uninitialised",
    "cp_async<16>(x + 2, in);": "cp_async: an address is not a multiple",
    "cp_async<8>(x, in + 1);": "cp_async: an address is not a multiple",
    "cp_async<8>(x, in + 1, false);": "cp_async: an address is not a multiple",
    "cp_async<4>(out, in);": "cp_async: target outside of shared memory",
    "cp_async<16>(x + 1024, in);": "cp_async: target outside of shared memory",
    "cp_async<4>(x, x);": "cp_async: source in shared memory",
    "cp_async<4>(x, in + 1024 + lane);": "out-of-bounds read",
    "cp_async<4>(x, in); cp_async_commit(); WAIT(0)": "write-write race",
    "cp_async<4>(x + lane, in + lane);": "ends with a cp.async in flight",
    "cp_async<4>(x + lane, in + lane); cp_async_wait<0>();": "ends with a cp.async in flight",
    "cp_async<4>(x + lane, in + lane); cp_async_commit();": "ends with a cp.async in flight",
    "for (int i = 0; i < 257; ++i) cp_async<4>(x + lane, in + lane);": "over 256 copies",
    "START(0) WAIT(0) out[lane] = x[31 - lane];": "race|uninitialised",  # no barrier
    "START(0) __syncthreads(); WAIT(0) out[lane] = x[31 - lane];": "race|uninitialised",
    "START(0) out[lane] = x[lane]; WAIT(0)": "read of uninitialised shared memory",
    "START(0) START(32) WAIT(2) out[lane] = x[lane]; WAIT(0)": "read of uninitialised shared",
    "START(0) START(32) WAIT(1) out[lane] = x[32 + lane]; WAIT(0)": "read of uninitialised shared",
    "START(0) WAIT(0) __syncthreads(); out[lane] = x[31 - lane]; START(0) WAIT(0)": "race",
    "START(0) x[lane] = 1; __syncthreads(); WAIT(0) out[lane] = x[31 - lane];": "race",
    "START(0) in[31 - lane] = 1; WAIT(0)": "race",
}
PROPER = [
    "mma_f16(d, a, b);",
    "FILL ldmatrix(b, lane < 16 ? x + 4 * lane : in);",
    "cp_async_wait<0>();",
    "START(0) WAIT(0) out[lane] = x[lane];",
    "START(0) WAIT(0) __syncthreads(); out[lane] = x[31 - lane]; __syncthreads(); START(0) WAIT(0)",
    "START(0) START(32) WAIT(1) out[lane] = x[lane]; WAIT(0) out[lane] = x[32 + lane];",
]


@pytest.fixture(scope="module")
def misuse():
    """run(statements, mode): one warp, 4 KB of dynamic shared memory and of global memory."""
    every = [*MISUSE, *PROPER]
    cases = "".join(f"    if (which == {i}) {{ {s} }}\n" for i, s in enumerate(every))
    text = f"""
#define FILL for (int i = 0; i < 32; ++i) x[i * 32 + lane] = 0; __syncthreads();
#define START(at) cp_async<4>(x + at + lane, in + at + lane); cp_async_commit();
#define WAIT(open) cp_async_wait<open>();
extern "C" __global__ void f(int which, float* in, float* out) {{
    GC_DYN_SHARED(float, x);
    const int lane = threadIdx.x;
    float d[4] = {{}};
    unsigned a[4] = {{}}, b[2] = {{}};
{cases}    if (which < 0) out[0] = d[0] + a[0] + b[0];
}}
"""
    text = f'#include <cuda_fp16.h>\n{kernels.source("common/mma.cuh")}{text}'
    kernel = {}

    def run(statements, mode="checked"):
        if mode not in kernel:
            kernel[mode] = HostModule(text, mode=mode).get_function("f")
        source, out = np.ones(1024, np.float32), np.zeros(32, np.float32)
        kernel[mode]((1,), (32,), (np.int32(every.index(statements)), source, out), 4096)
        return out

    return run


@on_the_cpu
@pytest.mark.parametrize("statements", MISUSE)
def test_misuse_is_reported(cp, order, misuse, statements):
    with pytest.raises(RuntimeError, match=MISUSE[statements]):
        misuse(statements)


@on_the_cpu
@pytest.mark.parametrize("statements", PROPER)
def test_proper_use_is_not(cp, order, misuse, statements):
    out = misuse(statements)
    assert "out" not in statements or out.tolist() == [1] * 32


@on_the_cpu
@pytest.mark.parametrize("statements", [s for s in MISUSE if "WAIT(0)" in s and "x[lane];" in s])
def test_without_a_watcher_a_missing_wait_gives_nan(cp, order, misuse, statements):
    assert np.isnan(misuse(statements, "fast")).all()
