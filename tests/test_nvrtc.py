"""The real compiler, which needs no GPU: every source, every architecture, and what it takes."""

import os
import re
import subprocess
import sys

import nvrtc
import pytest
from nvrtc_cases import CASES, options

from gpuconv import kernels

WHY_NOT = nvrtc.missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))

KNOWN = """
extern "C" __global__ void plain(float* x) { x[threadIdx.x] *= 2; }

extern "C" __global__ void __launch_bounds__(128) bounded(float* x)
{
    __shared__ float s[300];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[299 - threadIdx.x];
}

__device__ __noinline__ float callee(float* x, int i)
{
    float a[40];
    for (int k = 0; k < 40; ++k) a[k] = x[k];
    return a[i];
}

extern "C" __global__ void indexed(float* x, int i) { x[0] = callee(x, i); }

extern "C" __global__ void __launch_bounds__(1024) spilling(float* x)
{
    float a[120];
#pragma unroll
    for (int k = 0; k < 120; ++k) a[k] = x[k * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 120; ++k) x[(119 - k) * 1024 + threadIdx.x] = a[k] * x[5 * k];
}
"""


def job(file, arch, T="float32", index="int32", case=0):
    """The compilation of a file in kernels/ for one of its CASES."""
    return nvrtc.Job(file, options(file, CASES[file][case], T, index), arch)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """A cache that is empty, and a function that makes a job of a text."""
    monkeypatch.setattr(nvrtc, "CACHE", tmp_path / "cache")

    def job_of(text, arch=80, *options):
        file = tmp_path / "known.cu"
        file.write_text(text)
        kernels.source.cache_clear()
        return nvrtc.Job(str(file), options, arch)

    yield job_of
    kernels.source.cache_clear()


# -- every source ------------------------------------------------------------------------


@pytest.mark.parametrize("file", nvrtc.FILES)
def test_a_source_compiles_in_every_dtype(file):
    """And for every architecture, and whatever is launched: in test_launches."""
    several = [job(file, nvrtc.archs(file)[-1], T, ("int32", "int64")[i % 2], i % len(CASES[file]))
               for i, T in enumerate(nvrtc.dtypes(file))]
    for its, found in nvrtc.needs_of(several).items():
        assert set(found) - {""} == set(kernels.signatures(kernels.source(file))), its
        assert not list(nvrtc.complaints({its: found}))


@pytest.mark.parametrize("file", nvrtc.FILES)
def test_a_header_excuses_kernels_that_exist(file):
    assert set(nvrtc.excused(file)) <= set(kernels.signatures(kernels.source(file)))


def test_the_table_has_a_row_for_each_kernel():
    several = [job("optim/ema.cu", arch) for arch in (75, 90)] + [job("elementwise/dropout.cu", 90)]
    lines = list(nvrtc.table(nvrtc.needs_of(several)))
    assert [line.split()[0] for line in lines[2:]] == ["dropout", "ema_copy", "ema_prepare",
                                                        "ema_update"]
    assert re.fullmatch(r"dropout +1( +-){4} +\d+( +-){2} +0 +0 +0", lines[2])
    each = list(nvrtc.table(nvrtc.needs_of(several), each=True))
    assert each[2].endswith("A=float T=float")


# -- rounding ----------------------------------------------------------------------------

LIBRARY = "erfc", "exp", "exp2", "log", "pow", "tanh"  # functions that are made of fma themselves
OPAQUE = """
template <class V, class... W> __device__ inline V opaque(V v, W...) {
    if constexpr (sizeof(V) == 8) asm volatile("mov.b64 %0, %0;" : "+d"(v));
    else asm volatile("mov.b32 %0, %0;" : "+f"(v));
    return v;
}
"""


def contracted(text, options):
    """Return the PTX instructions that round a product and a sum once, or that ptxas may make so.

    A call of fma or of a function of LIBRARY becomes an instruction that is none of them: what is
    found is the compiler's doing. A mul or add without a rounding mode, such as .rn, is open to
    ptxas.
    """
    head, words = OPAQUE, (*LIBRARY, "fma")
    head += "".join(f"#define {name}(...) opaque(__VA_ARGS__)\n" for name in words)
    code = nvrtc.ptx(kernels.source("common/common.cuh") + head + text, options)
    return re.findall(r"^\s*(?:@\S+\s+)?(fma\.\S+|(?:mul|add|sub)\.(?:ftz\.)?f\d\d\b)", code, re.M)


def everywhere(files):
    """Yield the file, the dtype, and what is contracted, for each dtype and each of CASES."""
    for file in files:
        text = kernels.source(file).replace(kernels.source("common/common.cuh"), "")
        for i, T in enumerate(nvrtc.dtypes(file)):
            for case in CASES[file]:
                more = options(file, case, T, ("int32", "int64")[i % 2])
                yield file, T, contracted(text, (*nvrtc.OPTIONS, *more))


@pytest.mark.parametrize("file", ["optim/adam.cu", "optim/sgd.cu"])
def test_the_compiler_fuses_nothing_in_an_optimiser(file):
    """So that float32 weights and the masters of 16-bit ones get the same bits."""
    assert [(T, found) for _, T, found in everywhere([file]) if found] == []


@pytest.mark.slow
def test_the_compiler_fuses_nothing():
    assert [found for found in everywhere(nvrtc.FILES) if found[-1]] == []


@pytest.mark.parametrize("T", ["float", "double"])
def test_what_the_compiler_fuses_is_seen(T):
    text = f"""extern "C" __global__ void f({T}* x) {{ x[0] = exp(x[0]) * x[1] + x[2]; }}
               extern "C" __global__ void g({T}* x) {{ x[0] = fma(exp(x[0]), x[1], x[2]); }}"""
    assert contracted(text, nvrtc.OPTIONS) == []
    found = contracted(text, set(nvrtc.OPTIONS) - set(kernels.OPTIONS))
    assert len(found) == 1 and found[0].startswith("fma.rn")


# -- the reader --------------------------------------------------------------------------


@pytest.mark.parametrize("arch", nvrtc.ARCHS)
def test_reads_what_is_known(cold, arch):
    found = nvrtc.needs(cold(KNOWN, arch))
    assert set(found) == {"plain", "bounded", "indexed", "spilling", ""}
    plain, bounded, indexed, spilling = map(found.get, ("plain", "bounded", "indexed", "spilling"))
    assert (plain.shared, plain.stack, plain.stores, plain.threads) == (0, 0, 0, 1024)
    assert (bounded.shared, bounded.threads) == (1200, 128)
    assert (indexed.stack, indexed.stores) == (160, 0)
    assert spilling.registers <= 64 and spilling.stack >= spilling.stores > 0 < spilling.loads


@pytest.mark.parametrize("arch", nvrtc.ARCHS)
def test_the_log_of_ptxas_says_the_same(arch):
    """The cubin is read by us, the log is written by NVIDIA."""
    cubin, log = nvrtc.build(job("loss/softmax_cross_entropy.cu", arch))
    said = {name: tuple(map(int, (stack, registers, shared or 0)))
            for name, stack, registers, shared in re.findall(
                r"Function properties for (\w+)\s[^\n]*?(\d+) bytes stack frame[^\n]*\n"
                r"[^\n]*Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?", log)}
    assert said == {name: (n.stack, n.registers, n.shared)
                    for name, n in nvrtc.read_cubin(cubin).items()}


def test_spills_of_a_function_that_is_called_count():
    log = """ptxas info    : Compiling entry function 'f' for 'sm_80'
ptxas info    : Function properties for f
    8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _Z1gv
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads"""
    assert nvrtc.spills(log, "f") == {"stores": 16, "loads": 24}
    with pytest.raises(RuntimeError, match="ptxas does not speak of g"):
        nvrtc.spills(log, "g")


def test_a_stack_or_a_spill_fails_unless_the_header_says_why(cold):
    def said(text):
        return list(nvrtc.complaints(nvrtc.needs_of([cold(text)])))

    (indexed, spilling) = sorted(said(KNOWN))
    assert "known.cu for sm_80: indexed has 160 bytes of stack, 0 of them spilled" in indexed
    assert re.search(r": spilling has \d+ bytes of stack, [1-9]\d* of them spilled, and the "
                     "header has no line '// Stack    spilling: why'$", spilling)
    why = "// Stack    indexed: an array, indexed at run time"
    assert said(f'// Title\n{why}\n#include "common/common.cuh"\n{KNOWN}') == [spilling]


def test_a_warning_is_seen(cold):
    text = 'extern "C" __global__ void f(int* x) { int unused = 1; x[0] = 0; }'
    warned, = nvrtc.complaints(nvrtc.needs_of([cold(text)]))
    assert 'variable "unused" was declared but never referenced' in warned


def test_too_much_static_shared_memory_is_refused(cold):
    text = """extern "C" __global__ void f(int* x, int i)
              { __shared__ int s[12289]; s[threadIdx.x] = i; __syncthreads(); x[0] = s[i]; }"""
    with pytest.raises(RuntimeError, match="too much shared data.*0xc004.* 0xc000 max"):
        nvrtc.needs(cold(text))


def test_an_error_names_the_file_the_device_and_the_constants(cold):
    with pytest.raises(RuntimeError, match=r'known.cu for sm_80 -DCFG_R=3: (.|\n)*"y"'):
        nvrtc.needs(cold('extern "C" __global__ void f(int* x) { x[0] = y; }', 80, "-DCFG_R=3"))


# -- what is kept ------------------------------------------------------------------------


def test_compiles_once_until_something_changes(cold, monkeypatch):
    text = 'extern "C" __global__ void f(int* x) { x[0] = 1; }'
    built, build = [], nvrtc.build
    monkeypatch.setattr(nvrtc, "build", lambda job: built.append(job) or build(job))
    first = nvrtc.needs(cold(text))
    assert nvrtc.needs(cold(text)) == first and len(built) == 1
    assert nvrtc.needs(cold(text + "  // A comment")) == first and len(built) == 1
    for changed, *more in ((text + ";", 80), (text, 90), (text, 80, "-DCFG_R=3")):
        nvrtc.needs(cold(changed, *more))
    assert len(built) == 4
    monkeypatch.setattr(nvrtc, "fingerprint", lambda: "another compiler")
    nvrtc.needs(cold(text))
    assert len(built) == 5


def test_many_are_compiled_in_processes(cold, monkeypatch):
    monkeypatch.setattr(nvrtc, "FEW", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(nvrtc.CACHE.parent))  # for the processes
    monkeypatch.setattr(nvrtc, "CACHE", nvrtc.CACHE.parent / "gpuconv-nvrtc")
    several = [job("optim/ema.cu", arch) for arch in (75, 90)]
    monkeypatch.setattr(nvrtc, "build", None)  # here; not in another process
    assert [set(found) for found in nvrtc.needs_of(several).values()] == [
        {"ema_update", "ema_prepare", "ema_copy", ""}] * 2


# -- headers -----------------------------------------------------------------------------


@pytest.mark.parametrize("line, want", [
    ("// Launch   any", nvrtc.ARCHS),
    ("// Archs    sm_80 and newer: cp.async", nvrtc.ARCHS[1:]),
    ("// Archs    sm_90, sm_120: none of it is true", (90, 120)),
])
def test_a_header_says_which_architectures(tmp_path, line, want):
    file = tmp_path / "op.cu"
    file.write_text(f'// Title\n{line}\n\n#include "common/common.cuh"\n// Archs sm_75\n')
    assert nvrtc.archs(file) == want


def test_a_header_of_no_known_architecture_is_refused(tmp_path):
    file = tmp_path / "op.cu"
    file.write_text("// Archs    sm_60: old\n")
    with pytest.raises(ValueError, match=r"op.cu: no architecture of \(75, .*'// Archs    sm_60'"):
        nvrtc.archs(file)


def test_a_header_excuses_a_stack_with_a_reason(tmp_path):
    file = tmp_path / "op.cu"
    file.write_text("// Stack    f: 16 bytes, because\n// Stack    g\n#include <x>\n"
                    "// Stack    h: 1\n")
    assert nvrtc.excused(file) == {"f": "16 bytes, because"}


def test_the_command_prints_a_table():
    root = str(kernels.HERE.parent)
    done = subprocess.run([sys.executable, nvrtc.__file__, "--each", "optim/ema.cu"], text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": root}, check=True)
    rows = done.stdout.splitlines()[2:]
    found = [row.split()[0] for row in rows]
    assert found == sorted(found) and set(found) == {"ema_copy", "ema_prepare", "ema_update"}
