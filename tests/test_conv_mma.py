"""The kernels of tensor cores: their tiles, what the compiler and memory say, planted mistakes."""

import dataclasses

import numpy as np
import nvrtc
import pytest
import sass
from conftest import ampere
from test_capture import Captured
from test_gpu_mma import (
    DTYPES,
    GEOMETRIES,
    SMALL,
    Geometry,
    convolved,
    data,
    forward,
    gradient,
    numbers,
    of,
    on_the_cpu,
)

from check import close
from gpuconv import backend, kernels
from gpuconv.ops.conv import gpu_mma as tc
from gpuconv.ops.conv.gpu_dispatch import architecture
from gpuconv.ops.window import ConvShape, Window
from hostcuda import traffic


@pytest.fixture
def cp(cp):
    """cupy with tensor cores, or the stand-in."""
    return ampere(cp)


# -- which tile ------------------------------------------------------------------------------


def tile_of(N, H, C, K, R, dtype="float16", direction="forward", architecture=90):
    p = ConvShape(N, H, H, C, K, Window((R, R), pad=((R // 2, R // 2), (R // 2, R // 2))))
    return tc.default_tile(p, dtype, direction, architecture)[:3]


def test_the_default_tile_fits_the_problem():
    assert tile_of(256, 56, 256, 256, 3) == (128, 128, 32)
    assert tile_of(256, 56, 256, 256, 3, "float32") == (128, 128, 16)
    assert tile_of(256, 56, 256, 64, 3) == (256, 64, 32)
    assert tile_of(256, 56, 64, 256, 3, direction="dgrad") == (256, 64, 32)
    assert tile_of(128, 32, 32, 32, 3) == (256, 32, 32)
    assert tile_of(2000, 1, 256, 10, 1) == (64, 32, 32)  # few rows: over all multiprocessors
    assert tile_of(8, 8, 64, 64, 3)[:2] == (64, 32)


@pytest.mark.parametrize("architecture", [80, 86, 87, 89, 90, 100, 103, 120])
def test_a_default_fits_the_device(architecture):
    for dtype in DTYPES:
        for N, H, C, K in [(1, 4, 8, 8), (128, 32, 3, 32), (256, 14, 512, 512)]:
            tile = tile_of(N, H, C, K, 3, dtype, architecture=architecture)
            assert any(tc.fits(t, dtype, architecture) for t in tc.tiles(dtype) if t[:3] == tile)


def test_supported():
    p = GEOMETRIES["3x3"].sizes
    assert all(tc.supported(p, dtype) for dtype in DTYPES)
    assert not tc.supported(p, "float64")
    for change in (dict(groups=2), dict(window=Window((16, 16), pad=((8, 8), (8, 8)))),
                   dict(N=2**26), dict(H=2**16, W=2**15)):
        assert not tc.supported(dataclasses.replace(p, **change), "float16")


@pytest.mark.parametrize("tile", [tc.TILES[0], tc.TILES[5], tc.TILES[10]], ids=str)
def test_larger_tiles(cp, rng, tile):
    check_tile(cp, rng, tile, "float16")


@pytest.mark.slow
@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("tile", tc.TILES, ids=str)
def test_every_tile(cp, rng, tile, T):
    check_tile(cp, rng, tile, T)


def check_tile(cp, rng, tile, T):
    if not tc.fits(of(tile, T), T, architecture()):
        pytest.skip("more shared memory than a block may have here")
    p = Geometry((3, 10, 11, 16), (2 * tile.BN + 8, 3, 3)).sizes
    x, w = data(rng, p, T)
    close(forward(cp, p, x, w, T, tile), convolved(p, x, w).astype(x.dtype), terms=p.depth)


# -- what the compiler makes of it -----------------------------------------------------------

PLAIN = dict(R=3, S=3, SH=1, SW=1, DH=1, DW=1, PT=1, PL=1, C=64, GRADIENT=0, UNIT=16, WIDE=1,
             BIAS=1, RESIDUAL=0, POOL=0, MOMENTS=0, ACTIVATION="relu")
CONFIGURATIONS = {
    "plain": {}, "few channels": dict(C=3, UNIT=2), "4 channels": dict(C=4, UNIT=8),
    "pool and moments": dict(POOL=1, MOMENTS=1, ACTIVATION="none"),
    "residual": dict(RESIDUAL=1, ACTIVATION="gelu"), "narrow": dict(WIDE=0),
    "gradient": dict(GRADIENT=1, ACTIVATION="none", BIAS=0),
    "gradient of stride 2": dict(GRADIENT=1, ACTIVATION="none", BIAS=0, SH=2, SW=2),
}
needs_nvrtc = pytest.mark.skipif(bool(nvrtc.missing()), reason=str(nvrtc.missing()))


def job(arch, tile, T, **how):
    dtype = backend.float_dtype(T)
    return nvrtc.Job("conv/conv_mma.cu", kernels.defines(
        **PLAIN | how, **tile._asdict(), T=dtype, A=np.dtype("float32")), arch)


def check_needs(jobs):
    found = nvrtc.needs_of(jobs)
    assert not list(nvrtc.complaints(found))  # a spill is one
    for its, needs in found.items():
        assert needs["conv_mma"].registers <= 255, its


@needs_nvrtc
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("how", CONFIGURATIONS)
def test_nothing_spills(how, arch):
    check_needs([job(arch, tc.TILES[0], "float16", **CONFIGURATIONS[how])])


@pytest.mark.slow
@needs_nvrtc
@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("how", CONFIGURATIONS)
def test_no_tile_spills(how, T):
    """Each tile on one architecture; which, goes round."""
    first, how = list(CONFIGURATIONS).index(how), CONFIGURATIONS[how]
    how = how | {"UNIT": 4} if how.get("UNIT") == 2 and T == "float32" else how
    archs = nvrtc.archs("conv/conv_mma.cu")
    pairs = [(archs[(first + i) % len(archs)], tile) for i, tile in enumerate(tc.tiles(T))]
    check_needs([job(arch, tile, T, **how) for arch, tile in pairs if tc.fits(tile, T, arch)])


@needs_nvrtc
@pytest.mark.skipif(not sass.disassembler(), reason="no nvdisasm")
@pytest.mark.parametrize("T, arch, most", [
    ("float16", 80, 85), ("float16", 90, 85), ("float16", 100, 85), ("bfloat16", 90, 85),
    ("float32", 80, 215), ("float32", 90, 215)])
def test_the_main_loop_is_lean(T, arch, most):
    """64 products wait for 16 loads of fragments, 8 copies of 16 bytes, and little else; tf32 is
    rounded in two instructions a register."""
    cubin, _ = nvrtc.build(job(arch, of(tc.TILES[0], T), T))
    loop = sass.main_loop(cubin, "conv_mma")
    assert [sass.count(loop, *what) for what in (
        ["HMMA"], ["LDSM"], ["LDGSTS", ".128"], ["LDGSTS"], ["BAR"])] == [64, 16, 8, 8, 1]
    assert len(loop) - 64 - 16 - 8 <= most
    assert not any(sass.count(loop, local) for local in ("STL", "LDL"))


# -- what it asks of memory ------------------------------------------------------------------


@on_the_cpu
@pytest.mark.parametrize("T, K", [("float16", 32), ("float32", 32)])
def test_chunks_of_16_bytes_meet_no_bank_twice(cp, rng, T, K):
    p = Geometry((1, 8, 8, 16), (K, 3, 3)).sizes
    x, w = data(rng, p, T)
    marks, part = cp.empty((1, 4, 4, K), np.uint8), cp.empty((1, K), np.float32)
    with traffic.recording() as launches:
        forward(cp, p, x, w, T, shape=marks.shape, pool=marks, moments=(part, part.copy()))
        forward(cp, p, x, w, T, residual=numbers(rng, (1, 8, 8, K), T))
        tc.dgrad(p, cp.asarray(numbers(rng, (1, 8, 8, K), T)), cp.asarray(w),
                          cp.empty(x.shape, x.dtype), tile=of(SMALL, T))
    assert [launch.kernel for launch in launches] == ["conv_mma"] * 2 + [
        "conv_rotate_filters", "conv_mma"]
    for launch in launches:
        for access in launch.of("shared"):
            few = any(where in access.text for where in (  # see the header
                "at(row, column(0))", "part_mean", "part_var"))
            assert access.passes <= (2 if few and T == "float16" else 1) * access.groups, access
        assert launch.kernel == "conv_rotate_filters" or {a.size for a in launch.of("x")} == {16}


@on_the_cpu
def test_a_captured_step_may_launch_them(cp, rng):
    """A replay reads what lies at the same addresses then; filters are turned anew."""
    p = GEOMETRIES["3x3 stride 2"].sizes
    x, w = data(rng, p, "float16")
    gy = numbers(rng, (p.N, p.P, p.Q, p.K), "float16")
    x_gpu, w_gpu, gy_gpu, y, gx = map(cp.asarray, (x, w, gy, gy, x))

    def step():
        tc.forward(p, x_gpu, w_gpu, y, tile=SMALL)
        tc.dgrad(p, gy_gpu, w_gpu, gx, tile=SMALL)

    captured = Captured(step)
    w_gpu[...] = cp.asarray(w[::-1].copy())
    captured.replay()
    close(y, convolved(p, x, w[::-1]).astype(x.dtype), terms=p.depth)
    close(gx, gradient(p, gy, w[::-1]).astype(x.dtype), terms=p.R * p.S * p.K)


# -- mistakes --------------------------------------------------------------------------------

MISTAKES = {  # what is wrong: the text, what it becomes, the report (None: another result)
    "no wait in the loop": (
        "cp_async_wait<STAGES - 2>();   // stage", "// stage", "uninitialised"),
    "no barrier in the loop": (
        "__syncthreads();               // everybody's", "// everybody's", "race|uninitialised"),
    "the stage that is read is written": (
        "write = (STAGES - 1) * STAGE;", "write = (STAGES - 2) * STAGE;", "race|uninitialised"),
    "no barrier before the tile of y": (
        "__syncthreads();                         // nobody reads", "// nobody reads", "race"),
    "pixels outside are not zeros": (
        "(inside[i] & needs[u]) == needs[u]", "(inside[i] & needs[u]) != 0",
        "out-of-bounds read|"),
    "filters beyond the last": ("i * PASS < filters && ", "", "out-of-bounds read"),
    "depth beyond the last": (" && d + u * E < depth", "", "out-of-bounds read|"),
    "columns beyond the last": (
        "if (k0 + column(0) < K) *rei", "*rei", "out-of-bounds write|"),
    "a row is forgotten by the moments": (
        "return (rows - group + GROUPS - 1) / GROUPS;", "return rows / GROUPS;", None),
    "the later of two maxima": ("if (v > most ||", "if (v >= most ||", None),
    "rows and columns exchanged in a window": (
        "(POOL ? row / 2 % 2 : 0)", "(POOL ? row % 2 : 0)", None),
}


@pytest.fixture
def edited(monkeypatch):
    """edited(old, new): the kernels' sources with another text."""
    source = kernels.source

    def edit(old, new):
        def changed(file):
            text = source(file)
            assert text.count(old) <= 1
            return text.replace(old, new)

        assert old in source("conv/conv_mma.cu"), "the kernel reads differently now"
        monkeypatch.setattr(kernels, "source", changed)
        kernels.kernel.cache_clear()

    yield edit
    kernels.kernel.cache_clear()


@on_the_cpu
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_kernel_is_seen(cp, edited, mistake):
    rng = np.random.default_rng(0)
    p = Geometry((2, 8, 9, 24), (40, 3, 3)).sizes
    x, w = data(rng, p, "float16")
    bias = np.zeros(40, np.float16)
    w[:8] = 0  # ties

    def results():
        marks = cp.empty((2, 4, 4, 40), np.uint8)
        means, variances = (cp.empty((2, 40), np.float32) for _ in range(2))
        y = forward(cp, p, x, w, "float16", shape=marks.shape, pool=marks, bias=bias,
                    moments=(means, variances))
        return b"".join(a.tobytes() for a in (y, marks.get(), means.get(), variances.get()))

    right, (old, new, report) = results(), MISTAKES[mistake]
    edited(old, new)
    if report:
        with pytest.raises(RuntimeError, match=report):
            results()
    else:
        assert results() != right
