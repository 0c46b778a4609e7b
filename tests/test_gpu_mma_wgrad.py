"""The weight gradient on tensor cores: its definition, splits and tiles; what is compiled."""

import math

import numpy as np
import nvrtc
import pytest
import sass
from conftest import ampere
from test_gpu_mma import DTYPES, GEOMETRIES, NONE, Geometry, numbers, on_the_cpu
from weight_cases import SMALL, of

from check import around, close
from gpuconv import backend, kernels, reference
from gpuconv.backend import float_dtype
from gpuconv.ops.conv import gpu_mma
from gpuconv.ops.conv import gpu_mma_wgrad as engine
from gpuconv.ops.window import ConvShape, Window
from hostcuda import changed, fake_cupy
from hostcuda.hostcuda import HostKernel

MORE = {
    "first layer": Geometry((2, 12, 12, 3), (32, 3, 3)),
    "130 filters": Geometry((2, 7, 9, 8), (130, 1, 3), (0, 0, 1, 1)),
    "2x3, moved unevenly": Geometry((7, 13, 12, 8), (24, 2, 3), (2, 1, 1, 3), (3, 2), (2, 3)),
    "one pixel": Geometry((1, 1, 1, 8), (8, 1, 1), NONE),
    "fewer pixels than a stage": Geometry((1, 3, 3, 24), (16, 3, 3)),
    "one channel, one filter": Geometry((3, 9, 9, 1), (1, 5, 5), (2, 2, 2, 2)),
    "one row": Geometry((5, 1, 40, 8), (16, 1, 3), (0, 0, 1, 1)),
    "image smaller than the step": Geometry((40, 2, 2, 8), (16, 3, 3)),
    "1x1, cropped": Geometry((3, 5, 6, 16), (24, 1, 1), (0, -1, 0, -2)),
}
ALL = GEOMETRIES | MORE


@pytest.fixture
def cp(cp):
    """cupy with tensor cores, or the stand-in."""
    return ampere(cp)


def definition(p, x, gy):
    """gw in float64."""
    w = np.zeros((p.K, p.R, p.S, p.C))
    return reference.conv2d_backward(gy.astype(float), x.astype(float), w, **around(p))[1]


def data(rng, p, T):
    return numbers(rng, (p.N, p.H, p.W, p.C), T), numbers(rng, (p.N, p.P, p.Q, p.K), T)


def gradient(cp, p, x, gy, out=None, tile=SMALL, splits=1):
    """gw as a NumPy array of dtype ``out``, or of x's."""
    gw = cp.empty((p.K, p.R, p.S, p.C), out or x.dtype)
    engine.wgrad(p, cp.asarray(x), cp.asarray(gy), gw, splits=splits,
                           tile=tile and of(tile, x.dtype))
    return gw.get()


def check(cp, rng, p, T, **how):
    x, gy = data(rng, p, T)
    got = gradient(cp, p, x, gy, **how)
    close(got, definition(p, x, gy).astype(got.dtype), terms=p.pixels)


# -- against the definition ------------------------------------------------------------------


@pytest.mark.parametrize("name, T", [
    *((name, "float16") for name in ALL),
    *((name, T) for name in ("3x3", "first layer", "2x3, moved unevenly", "linear")
      for T in ("bfloat16", "float32"))])
def test_is_the_definition(cp, rng, name, T):
    check(cp, rng, ALL[name].sizes, T, out="float32")


@pytest.mark.parametrize("splits", [1, 2, 7, 40])
@pytest.mark.parametrize("name, T", [("3x3", "float16"), ("3x3", "float32"),
                                     ("first layer", "float16")])
def test_splits(cp, rng, name, T, splits):
    """More of them than stages, too; gw in its own dtype and, for 16 bits, in float32."""
    p = ALL[name].sizes
    x, gy = data(rng, p, T)
    want = definition(p, x, gy)
    for out in {T, "float32"}:
        got = gradient(cp, p, x, gy, out=out, splits=splits)
        close(got, want.astype(out), terms=p.pixels)


@on_the_cpu
def test_each_run_has_its_own_sums(cp, rng, monkeypatch):
    """Whole tiles, several of them; the last run is shorter, one more has no pixels."""
    p, partial = Geometry((3, 6, 5, 8), (128, 2, 2), (1, 0, 0, 1)).sizes, []
    x, gy = data(rng, p, "float16")
    monkeypatch.setattr(engine, "column_sums", lambda rows, out: partial.append(rows))
    gradient(cp, p, x, gy, splits=4)
    run, number = 32, np.arange(p.pixels).reshape(p.N, p.P, p.Q, 1)
    for i, got in enumerate(partial[0].get().reshape(4, p.K, p.R, p.S, p.C)):
        want = definition(p, x, np.where(number // run == i, gy, 0))
        close(got, want.astype(np.float32), terms=run)
    assert not got.any()


def test_rounds_once(cp, rng):
    """Partial sums keep float32: with 16-bit ones, 1 would vanish beside 4096."""
    p = ConvShape(4, 16, 16, 8, 8, Window((1, 1)))
    x, gy = np.ones((4, 16, 16, 8), np.float16), np.zeros((4, 16, 16, 8), np.float16)
    gy[0], gy[1:, 0, 0] = 16, 1
    assert (gradient(cp, p, x, gy, out="float32", splits=8) == 4099).all()
    assert (gradient(cp, p, x, gy, splits=8) == 4100).all()


def test_float32_is_rounded_to_tf32(cp, rng):
    p = ALL["3x3"].sizes
    x, gy = (rng.standard_normal(a.shape).astype(np.float32) for a in data(rng, p, "float32"))

    def tf32(a):
        return ((a.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)

    got = gradient(cp, p, x, gy)
    close(got, definition(p, tf32(x), tf32(gy)).astype(np.float32), terms=p.pixels)
    with pytest.raises(AssertionError):
        close(got, definition(p, x, gy).astype(np.float32), terms=p.pixels)


@pytest.mark.parametrize("T", ["float16", "float32"])
def test_not_a_number_reaches_its_own_sums_alone(cp, rng, T):
    p = ALL["1x1"].sizes
    x, gy = data(rng, p, T)
    x[2, 3, 1, 5] = np.nan
    nan = np.isnan(gradient(cp, p, x, gy, splits=3))
    assert nan[..., 5].all() and nan.sum() == p.K


@pytest.mark.parametrize("out, splits", [("float16", 1), ("float32", 1), ("float16", 3)])
def test_an_empty_batch_gives_zeros(cp, rng, out, splits):
    p = Geometry((0, 9, 7, 16), (40, 3, 3)).sizes
    assert not gradient(cp, p, *data(rng, p, "float16"), out=out, splits=splits).any()
    assert not gradient(cp, p, *data(rng, p, "float16"), out=out, tile=None, splits=None).any()


@pytest.mark.parametrize("odd", ["x", "gy", "gw"])
@pytest.mark.parametrize("T", ["float16", "float32"])
def test_views_that_start_anywhere(cp, rng, odd, T):
    """The same bits as from and into arrays that start at a multiple of 16 bytes."""
    p = ALL["first layer" if odd == "gw" else "3x3"].sizes
    x, gy = data(rng, p, T)

    def given(name, a):
        if name != odd:
            return cp.asarray(a)
        room = cp.asarray(np.concatenate([a.ravel()[:1], a.ravel()]))
        return room[1:].reshape(a.shape)

    gw = given("gw", np.zeros((p.K, p.R, p.S, p.C), x.dtype))
    engine.wgrad(p, given("x", x), given("gy", gy), gw, tile=of(SMALL, x.dtype), splits=1)
    np.testing.assert_array_equal(gw.get(), gradient(cp, p, x, gy))


# -- tiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [engine.TILES[i] for i in (0, 5, 6)], ids=str)
def test_larger_tiles(cp, rng, tile):
    check_tile(cp, rng, tile, "float16")


@pytest.mark.slow
@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("tile", engine.TILES, ids=str)
def test_every_tile(cp, rng, tile, T):
    check_tile(cp, rng, tile, T)


def check_tile(cp, rng, tile, T):
    check(cp, rng, Geometry((3, 10, 11, 16), (tile.BM + 8, 3, 3)).sizes, T, tile=tile, splits=2)


@pytest.mark.slow
@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_every_geometry_as_chosen(cp, rng, name, T):
    check(cp, rng, ALL[name].sizes, T, tile=None, splits=None)


NETS = {  # N, H, W, C; K, size; stride
    "cifar first": ((128, 32, 32, 3), (32, 3), 1), "cifar 32": ((128, 32, 32, 32), (32, 3), 1),
    "cifar 128": ((128, 8, 8, 128), (128, 3), 1), "cifar head": ((128, 1, 1, 2048), (10, 1), 1),
    "speed-run 64": ((2000, 31, 31, 24), (64, 3), 1), "256": ((2000, 15, 15, 64), (256, 3), 1),
    "7x7 images": ((2000, 7, 7, 256), (256, 3), 1), "3x3 images": ((2000, 3, 3, 256), (256, 3), 1),
    "vgg first": ((256, 224, 224, 3), (64, 3), 1), "vgg 512": ((256, 14, 14, 512), (512, 3), 1),
    "vgg linear": ((256, 1, 1, 25088), (4096, 1), 1),
    "resnet first": ((256, 224, 224, 3), (64, 7), 2),
    "resnet 1x1": ((256, 7, 7, 2048), (512, 1), 1),
}


def same_size(size, stride):
    """A window whose padding keeps the image, but for the stride."""
    return Window((size, size), (stride, stride), ((size // 2, size // 2),) * 2)


@pytest.mark.parametrize("architecture", gpu_mma.SMS)
@pytest.mark.parametrize("T", DTYPES)
def test_what_is_chosen_fills_the_device(T, architecture):
    for (N, H, W, C), (K, size), stride in NETS.values():
        p = ConvShape(N, H, W, C, K, same_size(size, stride))
        tile = engine.default_tile(p, float_dtype(T), architecture)
        splits = engine.default_splits(p, float_dtype(T), tile, architecture)
        assert tile in engine.tiles(T) and engine.runs_on(tile, p, T)
        assert splits == 1 or 4 * splits * K * p.depth <= engine.WORKSPACE
        blocks = math.ceil(K / tile.BM) * math.ceil(p.depth / tile.BN) * splits
        stages = math.ceil(p.pixels / tile.BK)
        enough = blocks >= 0.7 * gpu_mma.SMS[architecture]
        assert enough or splits >= stages // 8 or 8 * splits * K * p.depth > engine.WORKSPACE


def test_a_tile_for_what_there_is():
    def chosen(name):
        (N, H, W, C), (K, size), stride = NETS[name]
        return engine.default_tile(
            ConvShape(N, H, W, C, K, same_size(size, stride)), float_dtype("float16"), 90)[:2]

    assert chosen("cifar first") == (32, 32) and chosen("vgg 512") == (128, 128)
    assert chosen("cifar head") == (32, 128) and chosen("cifar 32") == (32, 128)


# -- order -----------------------------------------------------------------------------------


@on_the_cpu
@pytest.mark.parametrize("name", ["3x3", "first layer"])
def test_the_same_bits_in_every_order_of_threads(cp, rng, monkeypatch, name):
    p = ALL[name].sizes
    x, gy = data(rng, p, "float16")
    results = set()
    for seed in (0, 1, 2, 2):
        monkeypatch.setattr(HostKernel, "seed", seed)
        results.add(gradient(cp, p, x, gy, out="float32", splits=3).tobytes())
    assert len(results) == 1


@on_the_cpu
def test_can_be_captured(rng):
    from test_capture import Captured
    p = ALL["3x3"].sizes
    (x, gy), (x2, gy2) = data(rng, p, "float16"), data(rng, p, "float16")
    given, gw = [fake_cupy.asarray(a) for a in (x, gy)], fake_cupy.empty((40, 3, 3, 16), x.dtype)
    want = gradient(fake_cupy, p, x2, gy2, tile=None, splits=2)

    def step():
        engine.wgrad(p, *given, gw, splits=2)

    first, second = Captured(step), Captured(step)
    assert changed(first.graph, second.graph) == []
    for a, new in zip(given, (x2, gy2), strict=True):
        a[...] = fake_cupy.asarray(new)
    first.replay()
    np.testing.assert_array_equal(gw.get(), want)


# -- the compiler ----------------------------------------------------------------------------


def job(tile, T, arch, unit=16):
    dtype = float_dtype(T)
    return nvrtc.Job("conv/conv_mma_wgrad.cu", kernels.defines(
        T=dtype, A=backend.accumulator(dtype), O=np.dtype("float32"), I=np.dtype("int32"),
        X_UNIT=unit, GY_UNIT=16, PLAIN=0, **of(tile, dtype)._asdict()), arch)


def check_needs(jobs, registers=255):
    for its, found in nvrtc.needs_of(jobs).items():
        needs = found["conv_mma_wgrad"]
        assert needs.registers <= registers and not needs.stack and not found[""], its


@pytest.mark.skipif(bool(nvrtc.missing()), reason=str(nvrtc.missing()))
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_largest_tile_has_registers_for_two_blocks(arch):
    check_needs([job(engine.TILES[0], T, arch) for T in DTYPES])


@pytest.mark.skipif(bool(nvrtc.missing()) or not sass.disassembler(), reason="no nvdisasm")
@pytest.mark.parametrize("T, arch", [("float16", 80), ("float32", 90), ("bfloat16", 100)])
def test_the_main_loop(T, arch):
    """64 products to 16 reads of shared memory, which transpose; copies of 16 bytes."""
    loop = sass.main_loop(nvrtc.build(job(engine.TILES[0], T, arch))[0], "conv_mma_wgrad")
    half = T != "float32"
    assert sass.count(loop, "HMMA") == 64 and sass.count(loop, "LDGSTS", ".128") == 8
    assert sass.count(loop, "LDSM", ".MT88.4") == 16 * half
    assert sass.count(loop, "LDS") == 64 * (not half)
    assert sass.count(loop, "BAR") == 1 and len(loop) < (260 if half else 440)
    assert not any(sass.count(loop, name) for name in ("LDL", "STL", "LDG", "STS"))


@pytest.mark.slow
@pytest.mark.skipif(bool(nvrtc.missing()), reason=str(nvrtc.missing()))
@pytest.mark.parametrize("arch", nvrtc.archs("conv/conv_mma_wgrad.cu"))
def test_no_tile_spills(arch):
    check_needs([job(tile, T, arch, unit) for tile in engine.TILES for T in ("float16", "float32")
                 for unit in (16, 4)])
    narrow = [t for t in engine.TILES if t.BN * t.BK // t.threads <= engine.IN_REGISTERS]
    assert narrow
    check_needs([job(tile, "float16", arch, 2) for tile in narrow])
