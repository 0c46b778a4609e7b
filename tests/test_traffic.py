"""Traffic mode: kernels whose requests can be counted by hand, every kernel's header, the table.

What is counted is said in hostcuda/traffic.py, how headers say it in traffic_lines.py.
"""

import re

import numpy as np
import pytest
import traffic
import traffic_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuconv import backend, kernels
from hostcuda import compiler, fake_cupy
from hostcuda.traffic import run

pytestmark = pytest.mark.skipif(not compiler(), reason="no g++")
HEAD = """
#define T CFG_T
extern "C" __global__ void f(const T* x, T* y, const int* index, int a, int b) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    BODY
}
"""
TILE = """
    __shared__ float tile[32][CFG_WIDE];
    const int u = threadIdx.x % 32, v = threadIdx.x / 32;
    tile[v][u] = x[v * 32 + u];
    __syncthreads();
    y[v * 32 + u] = tile[u][v];
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Also on a machine with a GPU: what is counted is counted on the CPU."""
    monkeypatch.setattr(backend, "_cupy", fake_cupy)


def launch(body, a=0, b=0, T="float", grid=1, block=32, index=None, n=4096, **constants):
    """Run a kernel with this body on n elements of x and of y."""
    dtype = {"char": "i1", "short": "i2", "float": "f4", "double": "f8", "float4": "c16"}[T]
    x, y = np.zeros(n, dtype), np.zeros(n, dtype)
    index = np.arange(n, dtype=np.int32) if index is None else np.array(index, np.int32)
    constants = [f"-DCFG_{k}={v}" for k, v in constants.items()]
    return run(HEAD.replace("BODY", body), "f", grid, block, x, y, index, np.int32(a), np.int32(b),
               options=(f"-DCFG_T={T}", *constants))


def only(launched, array, kind):
    """The one access of this kind to this array, in sectors per request and so on."""
    access, = launched.of(array, kind)
    return access


# -- coalescing ----------------------------------------------------------------------------


@pytest.mark.parametrize("T, stride, start, sectors", [
    pytest.param("float", 1, 0, 4, id="coalesced"),
    pytest.param("float", 2, 0, 8, id="stride 2"),
    pytest.param("float", 32, 0, 32, id="stride 32"),
    pytest.param("float", 1, 1, 5, id="misaligned"),
    pytest.param("float", 0, 7, 1, id="broadcast"),
    pytest.param("float", -1, 127, 4, id="backwards"),
    pytest.param("char", 1, 0, 1, id="bytes"),
    pytest.param("short", 1, 0, 2, id="halves"),
    pytest.param("double", 1, 0, 8, id="doubles"),
    pytest.param("float4", 1, 0, 16, id="vectors"),
    pytest.param("float4", 2, 0, 32, id="vectors, stride 2"),
])
def test_sectors_of_a_strided_read(T, stride, start, sectors):
    got = launch("y[t] = x[t * a + b];", stride, start, T, block=128)
    read, write = only(got, "x", "read"), only(got, "y", "write")
    assert (read.requests, read.lanes, read.sectors) == (4, 128, 4 * sectors)
    assert write.sectors == write.least  # a copy writes neighbours to neighbours
    assert read.bytes == 128 * read.size and read.text == "y[t] = x[t * a + b];"
    assert read.distinct == (read.bytes if stride else 4 * read.size)


def test_a_vector_is_one_request_even_if_its_parts_are_used_one_by_one():
    got = launch("float4 v = x[t]; v.x += v.w; y[t] = v;", T="float4")
    assert [(a.size, a.requests) for a in got.accesses] == [(16, 1), (16, 1)]


def test_a_struct_that_is_not_aligned_is_read_number_by_number():
    pair = "struct %s P { float u, v; }; ((P*)y)[t] = ((const P*)x)[t];"
    plain, aligned = launch(pair % ""), launch(pair % "alignas(8)")
    assert [(a.size, a.requests, a.sectors) for a in plain.accesses] == [(4, 2, 16)] * 2
    assert [(a.size, a.requests, a.sectors) for a in aligned.accesses] == [(8, 1, 8)] * 2


def test_a_gather_costs_the_sectors_that_it_touches():
    index = np.arange(32) // 2 * 100  # pairs, each in a sector of its own
    got = launch("y[t] = x[index[t]];", index=index)
    read = only(got, "x", "read")
    assert (read.requests, read.distinct, read.sectors, read.least) == (1, 64, 16, 2)


def test_a_view_counts_where_it_lies():
    whole = np.zeros(64, np.int8)
    text = 'extern "C" __global__ void f(char* x) { x[threadIdx.x] = 1; }'
    for start, sectors in [(0, 1), (1, 2)]:
        got = run(text, "f", 1, 32, whole[start:])
        assert only(got, "x", "write").sectors == sectors


def test_what_a_perfect_cache_would_read():
    got = launch("y[t] = x[t % 32] + x[t % 64];", grid=2, block=64)
    x, reads = got.arrays["x"], got.of("x")
    assert (x.read.bytes, x.read.sectors) == (256, 8)
    assert sum(a.sectors for a in reads) == 2 * 4 * 4 and x.written.bytes == 0
    assert got.arrays["y"].written.bytes == 512


def test_accesses_beyond_the_launch_are_not_counted():
    got = launch("int mine[4]; for (int i = 0; i < 4; ++i) mine[i] = x[i]; y[t] = mine[t % 4];")
    assert {a.array for a in got.accesses} == {"x", "y"}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["char", "short", "float", "double", "float4"]),
       st.lists(st.integers(0, 500), min_size=64, max_size=64))
def test_a_random_gather_counted_by_numpy(T, index):
    got = launch("y[t] = x[index[t]];", T=T, block=64, index=index)
    read, size = only(got, "x", "read"), only(got, "x", "read").size
    warps = np.array(index).reshape(2, 32)
    touched = [{i * size + k for i in warp for k in range(size)} for warp in warps.tolist()]
    assert read.sectors == sum(len({b // 32 for b in some}) for some in touched)
    assert read.distinct == sum(map(len, touched))
    assert read.least == sum(-(-len(some) // 32) for some in touched)
    assert got.arrays["x"].read.bytes == len(set.union(*touched))
    assert got.arrays["x"].read.sectors == len({b // 32 for b in set.union(*touched)})


# -- who goes with whom --------------------------------------------------------------------


@pytest.mark.parametrize("body, requests, lanes", [
    pytest.param("if (lane < 8) y[t] = x[t];", 1, 8, id="some lanes"),
    pytest.param("if (lane < 8) y[t] = x[t]; y[t] += x[t];", 2, 40, id="and all of them after"),
    pytest.param("for (int r = 0; r < 2; ++r) { if ((lane + r) % 2) continue; y[t] += x[t + r]; }",
                 2, 32, id="each turn other lanes"),
    pytest.param("for (int r = 0; r < lane; ++r) y[t] += x[t + r];", 31, 31 * 16, id="a triangle"),
    pytest.param("T s = 0; for (int r = 0; r < 4; ++r) { for (int i = 0; i < (lane * r) % 5; ++i) "
                 "s += x[t + i]; } y[t] = s;", 12, None, id="inner loops of different length"),
    pytest.param("for (int r = lane; r < 40; r += 32) y[t] += x[r];", 2, 40, id="a last turn"),
    pytest.param("if (lane % 2) return; y[t] = x[t];", 1, 16, id="early return"),
    pytest.param("T s = 0; for (int r = 0; r < 9; ++r) { if (r > lane) break; s += x[t + r]; } "
                 "y[t] = s;", 9, 32 * 9 - 36, id="break"),
])
def test_lanes_wait_for_each_other(body, requests, lanes):
    reads = launch(body).of("x", "read")
    assert sum(a.requests for a in reads) == requests
    assert lanes in (None, sum(a.lanes for a in reads))


def test_barriers_and_shuffles_do_not_part_a_warp():
    got = launch("""T v = x[t];
        for (int i = 16; i; i /= 2) { v += __shfl_xor_sync(~0u, v, i); __syncthreads(); }
        y[t] = v;""", block=128)
    assert [(a.requests, a.lanes) for a in got.accesses] == [(4, 128), (4, 128)]


def test_an_access_right_behind_a_barrier_is_one_request():
    got = launch("""T v = x[t]; __syncthreads(); v += x[t + 1]; y[t] = v;
        for (int i = 0; i < 3; ++i) y[t] += i;""", block=64)
    assert {a.lanes / a.requests for a in got.accesses} == {32}


@pytest.mark.parametrize("call", ["atomicAdd(&y[%s], 1.f)", "atomicExch(&y[%s], 1.f)"])
def test_an_atomic_is_one_request(call):
    got = launch(call % "lane / 8" + ";", block=64)
    atomic, = got.accesses
    assert (atomic.kind, atomic.requests, atomic.lanes, atomic.sectors) == ("atomic", 2, 64, 2)
    assert got.arrays["y"].read.bytes == got.arrays["y"].written.bytes == 16


def test_counts_do_not_depend_on_the_order_of_the_threads(monkeypatch):
    body = "for (int r = 0; r < lane % 7; ++r) y[t] += x[(t + r * 5) % 64];"
    from hostcuda.hostcuda import HostKernel
    first, call = launch(body, grid=3, block=96), HostKernel.__call__
    for seed in (0, 1):
        monkeypatch.setattr(HostKernel, "__call__", lambda *a, **k: call(*a, **k, seed=seed))  # noqa: B023
        assert launch(body, grid=3, block=96) == first


# -- shared memory -------------------------------------------------------------------------


@pytest.mark.parametrize("wide, passes", [(32, 32), (33, 1), (34, 2)])
def test_a_transposing_tile_wants_padding(wide, passes):
    got = launch(TILE, block=1024, n=1024, WIDE=wide)
    read, write = only(got, "shared", "read"), only(got, "shared", "write")
    assert (read.requests, read.passes, read.groups) == (32, 32 * passes, 32)
    assert write.passes == 32
    assert only(got, "y", "write").sectors == 32 * 4


def test_a_transpose_without_a_tile_writes_a_sector_per_lane():
    got = launch("y[t % 32 * 32 + t / 32] = x[t];", block=1024, n=1024)
    write = only(got, "y", "write")
    assert (write.requests, write.sectors, write.least) == (32, 32 * 32, 32 * 4)
    assert got.arrays["y"].written.sectors == 128


@pytest.mark.parametrize("T, at, groups, passes", [
    pytest.param("float", "lane", 1, 1, id="neighbours"),
    pytest.param("float", "lane * 2", 1, 2, id="stride 2"),
    pytest.param("float", "lane * 3", 1, 1, id="stride 3"),
    pytest.param("float", "lane * 32", 1, 32, id="stride 32"),
    pytest.param("float", "5", 1, 1, id="broadcast"),
    pytest.param("float", "lane / 8 * 32", 1, 4, id="four words of one bank"),
    pytest.param("double", "lane", 2, 2, id="doubles"),
    pytest.param("double", "lane * 2", 2, 4, id="doubles, stride 2"),
    pytest.param("float4", "lane", 4, 4, id="vectors"),
    pytest.param("float4", "lane * 2", 4, 8, id="vectors, stride 2"),
    pytest.param("char", "lane", 1, 1, id="bytes"),
    pytest.param("char", "lane * 128", 1, 32, id="bytes of one bank"),
])
def test_passes_through_the_banks(T, at, groups, passes):
    tile = "alignas(16) __shared__ T tile[CFG_N];"
    got = launch(tile + f"tile[threadIdx.x] = x[t]; __syncthreads(); y[t] = tile[{at}];", T=T,
                 N=4096 if T == "char" else 1024)
    read = only(got, "shared", "read")
    assert (read.requests, read.groups, read.passes) == (1, groups, passes)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["float", "double", "float4"]),
       st.lists(st.integers(0, 255), min_size=32, max_size=32))
def test_random_reads_of_shared_memory_counted_by_numpy(T, index):
    got = launch("alignas(16) __shared__ T tile[256]; __syncthreads(); y[t] = tile[index[t]];",
                 T=T, index=index)
    read = only(got, "shared", "read")
    per = read.size // 4  # words of a lane
    words = np.array(index)[:, None] * per + np.arange(per)
    passes = [max(np.bincount(np.unique(group) % 32)) for group in words.reshape(per, -1)]
    assert read.passes == sum(passes)


def test_dynamic_shared_memory_is_seen():
    text = """extern "C" __global__ void f(float* y) {
        GC_DYN_SHARED(float, tile);
        tile[threadIdx.x * 2] = 1; __syncthreads();
        y[threadIdx.x] = tile[threadIdx.x * 2]; }"""
    got = run(text, "f", 1, 32, np.zeros(32, np.float32), shared_mem=256)
    assert [a.passes for a in got.of("shared")] == [2, 2]


# -- tensor cores --------------------------------------------------------------------------

MMA = kernels.source("common/mma.cuh") + """
extern "C" __global__ void f(const float* x, float* y) {
    alignas(16) __shared__ float tile[1024];
    const int lane = threadIdx.x;
    BODY
}
"""


@pytest.mark.parametrize("wide, passes", [(4, 4), (8, 8), (20, 4), (32, 32)])
def test_ldmatrix_reads_eight_rows_in_a_pass(wide, passes):
    body = f"unsigned m[4]; __syncwarp(); ldmatrix(m, tile + lane * {wide}); y[lane] = m[0] + m[3];"
    got = run(MMA.replace("BODY", body), "f", 1, 32, np.zeros(32, "f4"), np.zeros(32, "f4"))
    read = only(got, "shared", "read")
    assert (read.requests, read.lanes, read.groups, read.passes) == (1, 32, 4, passes)


def test_cp_async_is_a_read_and_a_write():
    body = """for (int i = 0; i < 3; ++i) {
            if (lane >= 8 * i) cp_async<16>(tile + 128 * i + 4 * lane, x + 4 * lane);
            cp_async<4>(tile + 512 + 32 * i + lane, x + lane, lane < 16);
        }
        cp_async_commit(); cp_async_wait<0>(); __syncwarp();
        y[lane] = tile[lane];"""
    got = run(MMA.replace("BODY", body), "f", 1, 32, np.zeros(128, "f4"), np.zeros(32, "f4"))
    reads = {a.size: a for a in got.of("x")}
    writes = {a.size: a for a in got.of("shared", "write")}
    assert [(a.requests, a.lanes) for a in (reads[16], writes[16])] == [(3, 72)] * 2
    assert (reads[4].requests, reads[4].lanes) == (3, 48)
    assert (writes[4].requests, writes[4].lanes, writes[4].passes) == (3, 96, 3)


# -- the headers ---------------------------------------------------------------------------

HALF = dict(dtype="float16")
SHAPES = {  # op: shapes and options that its header must hold for
    "activation": [("2x8x8x16", {}), ("5x7x3", {})],
    "adam": [("64x32", {}), ("64x32", HALF)],
    "augment": [("4x16x16x3", {}), ("4x9x7x1", HALF)],
    "avg_pool": [("2x8x8x32", {}), ("2x9x9x32", dict(kernel_size=3, stride=2, padding=1)),
                 ("2x9x7x3", {}), ("2x8x8x16", HALF), ("2x9x9x8", HALF)],
    "batch_norm": [("4x16x16x64", {}), ("2x9x9x10", {}), ("4x8x8x48", HALF)],
    "bias_relu": [("4x8x8x64", {}), ("2x5x5x10", {}), ("4x8x8x48", HALF)],
    "clip": [("64x64", {}), ("64x64", HALF)],
    "step_state": [("9", {}), ("9", dict(dtype="float64"))],
    "conv_rotate_filters": [("1x6x6x64", dict(kernel_size=3)),
                            ("1x6x6x40", dict(filters=24, stride=2)),
                     ("1x6x6x48", dict(kernel_size=3, **HALF))],
    "conv_mma": [("2x8x8x16", dict(kernel_size=3, padding=1, **HALF)),
                     ("2x9x8x16", dict(kernel_size=3, padding=1, pool=True, **HALF)),
                     ("2x9x8x24", dict(kernel_size=3, stride=2, filters=40)),
                     ("2x8x8x3", dict(kernel_size=3, padding=1, filters=10, **HALF)),
                     ("2x8x8x32", dict(kernel_size=1, **HALF))],
    "conv_depthwise": [("1x8x8x32", dict(kernel_size=3, padding=1)),
                    ("1x9x8x5", dict(kernel_size=3, stride=2)), ("1x6x6x64", HALF)],
    "conv_simt": [("1x8x8x16", dict(kernel_size=3, padding=1, filters=32)),
                  ("1x9x8x8", dict(kernel_size=3, stride=2, padding=1, filters=8)),
                  ("1x9x8x3", dict(kernel_size=3, padding=1, filters=5)),
                  ("1x8x8x16", dict(kernel_size=1, filters=16, **HALF))],
    "conv_simt_wgrad": [("1x8x8x16", dict(kernel_size=3, padding=1, filters=32)),
                         ("1x9x8x3", dict(kernel_size=3, padding=1, filters=5)),
                         ("1x8x8x16", dict(kernel_size=2, stride=2, filters=16, **HALF))],
    "column_sums": [("70x64", {}), ("1100x64", HALF), ("70x10", {}), ("900x10", HALF)],
    "conv_mma_wgrad": [("2x8x8x16", dict(kernel_size=3, padding=1, filters=72, **HALF)),
                             ("2x9x8x24", dict(kernel_size=3, stride=2, filters=40)),
                             ("2x8x8x3", dict(kernel_size=3, padding=1, filters=10, **HALF)),
                             ("2x8x8x32", dict(kernel_size=1, **HALF))],
    "dropout": [("2x8x8x16", {}), ("2x8x8x16", HALF)],
    "accumulate": [("64x32", {}), ("64x32", HALF)],
    "copy": [("48x128", {}), ("48x256", HALF)],
    "ema": [("64x32", {}), ("64x32", HALF)],
    "gemm": [("2x70x40x36", {}), ("2x33x1100x10", {}), ("2x40x24x64", HALF), ("2x5x9x67", HALF)],
    "global_pool": [("2x4x4x64", {}), ("2x12x12x32", HALF), ("2x9x7x3", {}), ("2x20x20x8", HALF)],
    "im2col": [("2x8x8x32", {}), ("2x8x8x32", dict(kernel_size=3, padding=1, stride=2)),
               ("2x9x7x3", dict(kernel_size=3, padding=1)), ("2x6x6x16", HALF)],
    "loss_scale": [("64x64", {}), ("64x64", HALF)],
    "max_pool": [("2x8x8x32", {}), ("2x9x9x32", dict(kernel_size=3, stride=2, padding=1)),
                 ("2x9x7x3", {}), ("2x8x8x32", HALF), ("2x9x9x8", HALF)],
    "muon": [("64x32", {}), ("64x32", HALF)],
    "newton_schulz": [("32x64", {}), ("32x64", HALF)],
    "pad": [("2x8x8x32", {}), ("2x5x7x3", dict(padding=2)), ("2x6x6x16", HALF)],
    "sgd": [("64x32", {}), ("64x32", HALF)],
    "shuffle": [("100", {})],
    "softmax_cross_entropy": [("64x16", {}), ("64x10", HALF), ("64x40", {}), ("4x2000", {})],
}


FILES = {path.stem: path for path in (kernels.HERE.parent / "kernels").rglob("*.cu")}


def test_every_kernel_has_its_shapes():
    assert set(FILES) == set(SHAPES) == set(traffic.CASES)


@pytest.mark.parametrize("op", SHAPES)
def test_a_header_says_what_is_counted(op):
    lines, reached, seen, wrong = traffic_lines.read(FILES[op]), {}, set(), []
    for shape, options in SHAPES[op]:
        for launch in traffic.record(op, tuple(map(int, shape.split("x"))), **options):
            seen.add(launch.kernel)
            wrong += [f"{shape} {options}: {w}" for w in traffic_lines.hold(launch, lines, reached)]
    assert not wrong, "\n".join(wrong)
    assert seen == set(lines.items)
    slack = {key: share for key, share in reached.items()
             if share < (0.25 if key[2] == "asks" else 0.5)}
    assert not slack, f"at most, says the header, but the shapes stay below it: {slack}"


HEADER = """
// Title.
//
// Launch   of a sort.
// Traffic  f  reads x %s, index <= n, writes y n. %s.
// Order    none.

extern "C" __global__ void f(const float* x, float* y, const int* index, int n) {
    __shared__ float tile[64];
    const int t = threadIdx.x;
    tile[t * STRIDE] = x[t];
    __syncthreads();
    y[t * STRIDE %% n] = tile[t * STRIDE];
}
"""


@pytest.mark.parametrize("x, words, stride, wrong", [
    pytest.param("n", "Coalesced", 1, "", id="right"),
    pytest.param("n/2", "Coalesced", 1, "f reads x: counted 32, the header says 16", id="touched"),
    pytest.param("n (asks 2*n)", "Coalesced", 1, "f reads x, asks: counted 32, .* 64", id="asks"),
    pytest.param("n", "Coalesced. 2 passes", 2, "f writes y: counted 16, .* 32", id="writes less"),
    pytest.param("n, y n", "Coalesced", 1, "f reads y: counted 0", id="reads no y"),
    pytest.param("<= n", "Coalesced", 2, "2.00 times the passes .* tile", id="bank conflicts"),
])
def test_a_wrong_header_is_found(x, words, stride, wrong):
    text = (HEADER % (x, words)).replace("STRIDE", str(stride))
    got = run(text, "f", 1, 32, *(np.zeros(32, "f4") for _ in range(3)), np.int32(32))
    found = traffic_lines.hold(got, traffic_lines.read("f.cu", text), {})
    assert re.search(wrong, "; ".join(found)) if wrong else found == []


def test_an_array_that_the_header_forgets_is_found():
    text = (HEADER % ("n", "Coalesced")).replace("STRIDE", "1")
    got = run(text, "f", 1, 32, *(np.zeros(32, "f4") for _ in range(3)), np.int32(32))
    lines = traffic_lines.read("f.cu", text.replace(", writes y n", ""))
    assert "f writes y, which the header does not say" in "; ".join(
        traffic_lines.hold(got, lines, {}))


@pytest.mark.parametrize("name, words", [("f", "Fast"), ("g", "Coalesced")])
def test_a_header_that_says_too_little_is_refused(name, words):
    text = HEADER.replace("f  reads", f"{name}  reads") % ("n", words)
    with pytest.raises(ValueError, match="f.cu: Traffic says nothing about (f|coalescing)"):
        traffic_lines.read("f.cu", text)


# -- the command ---------------------------------------------------------------------------


def test_the_command_prints_a_table(capsys):
    traffic.main("max_pool --shape 2x8x8x32 --kernel-size 2".split())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    row = next(line for line in out.splitlines() if line.startswith("  x "))
    assert row.split() == "x read 16.0 KB 1 x 32 32.0 16.00 16.00 16.0 KB".split()
    assert "max_pool_backward   grid 1, block 256" in out


def test_lines_shows_the_source(capsys):
    traffic.main("sgd --shape 8x8 --lines".split())
    assert "const Pack<T, V> gs = reinterpret_cast" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    ("--shape 8x8", "--shape is for one op: name it"),
    ("sgd --kernel-size 2", "sgd takes no --kernel-size"),
    ("pool", "invalid choice: 'pool'"),
])
def test_the_command_refuses(capsys, arguments, message):
    with pytest.raises(SystemExit):
        traffic.main(arguments.split())
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_every_kernel(capsys):
    traffic.main([])
    out = capsys.readouterr().out
    files = (kernels.HERE.parent / "kernels").rglob("*.cu")
    names = {name for path in files for name in kernels.signatures(kernels.source(path))}
    assert names == {line.split()[0] for line in out.splitlines() if "   grid " in line}
    assert max(map(len, out.splitlines())) <= 100
