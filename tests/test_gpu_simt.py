"""Convolution on the ordinary cores, against its definition: geometries, dtypes, starts, splits."""

import dataclasses

import numpy as np
import nvrtc
import nvrtc_cases
import pytest
import sass
from test_capture import Captured

from check import DTYPES, around, close, defined, elementwise_by_reference, make
from gpuconv import backend, kernels
from gpuconv.ops.conv import gpu_simt
from gpuconv.ops.elementwise import ACTIVATIONS
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.window import ConvShape, Window
from hostcuda import fake_cupy


def window(size, stride=1, pad=0, dilation=1):
    def pair(v):
        return (v, v) if isinstance(v, int) else v

    sides = pad if isinstance(pad, tuple) and isinstance(pad[0], tuple) else tuple(
        (v, v) for v in pair(pad))
    return Window(pair(size), pair(stride), sides, pair(dilation))


GEOMETRIES = {  # x, filters, groups, window
    "3x3": ((2, 9, 7, 4), 8, 1, window(3, pad=1)),
    "3x3 of many channels": ((1, 6, 5, 52), 44, 1, window(3, pad=1)),
    "3x3 of three channels": ((2, 7, 9, 3), 36, 1, window(3, pad=1)),
    "1x1": ((3, 5, 5, 12), 7, 1, window(1)),
    "1x1 stride 2": ((1, 8, 7, 4), 4, 1, window(1, 2)),
    "1x1 stride 3, nothing meets the rest": ((1, 5, 5, 8), 4, 1, window(1, (3, 4))),
    "3x3 stride 2": ((2, 9, 8, 8), 12, 1, window(3, 2, 1)),
    "one side padded, stride 2, dilation 2": ((1, 9, 9, 4), 5, 1,
                                              window((2, 3), (2, 1), ((2, 0), (0, 1)), (2, 2))),
    "stride 2 on dilation 3": ((1, 11, 10, 5), 4, 1, window((3, 2), 2, ((3, 1), (0, 2)), (3, 1))),
    "cropped": ((1, 8, 8, 4), 4, 1, window(3, 3)),
    "5x4 over everything": ((2, 5, 4, 8), 10, 1, window((5, 4))),
    "a tall filter": ((1, 20, 3, 4), 4, 1, window((17, 1), pad=((8, 8), (0, 0)))),
    "two groups": ((1, 6, 5, 16), 24, 2, window(3, pad=1)),
    "groups of odd sizes": ((1, 6, 5, 27), 30, 3, window((2, 3), (1, 2), 1)),
    "groups of few": ((2, 5, 6, 6), 9, 3, window((2, 3), (2, 1), ((1, 1), (2, 1)))),
    "depthwise": ((2, 6, 7, 40), 40, 40, window(3, pad=1)),
    "depthwise, stride 2, two filters each": ((1, 7, 7, 5), 10, 5, window(3, 2, 1, (1, 2))),
}
EVERY_DTYPE = "3x3", "3x3 of three channels", "3x3 stride 2", "two groups", "depthwise"
CASES = [(name, T) for name in GEOMETRIES for T in DTYPES
         if T == "float32" or name in EVERY_DTYPE]


def definition(p, x, w, gy):
    """(y, gx, gw) in float64."""
    return defined("conv2d", gy, x, w, **around(p))[:3]


def whole(rng, shape, T):
    """Small whole numbers: their sums are exact in every accumulator."""
    return make(rng.integers(-3, 4, shape), T)


def draw(name, T, rng, numbers=whole):
    """The sizes of this name, x, w and gy."""
    x, K, groups, win = GEOMETRIES[name]
    w = (K, *win.size, x[3] // groups)
    p = ConvShape(*x, K, win, groups)
    return p, *(numbers(rng, shape, T) for shape in (x, w, (p.N, p.P, p.Q, K)))


def results(cp, p, x, w, gy, **epilogue):
    """(y, gx, gw), by the kernels, as NumPy arrays."""
    x, w, gy = map(cp.asarray, (x, w, gy))
    y, gx, gw = cp.empty(gy.shape, x.dtype), cp.empty(x.shape, x.dtype), cp.empty(w.shape, x.dtype)
    gpu_simt.forward(p, x, w, y, Epilogue(**epilogue))
    gpu_simt.dgrad(p, gy, w, gx)
    gpu_simt.wgrad(p, x, gy, gw)
    return y.get(), gx.get(), gw.get()


def equal(got, want):
    """The same bits: what the exact sums round to."""
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a.astype(np.float64), b.astype(a.dtype).astype(np.float64))


# -- the definition ------------------------------------------------------------------------


@pytest.mark.parametrize("name, T", CASES)
def test_exact_sums_are_rounded_once(cp, rng, name, T):
    p, *arrays = draw(name, T, rng)
    equal(results(cp, p, *arrays), definition(p, *arrays))


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "two groups", "depthwise"])
@pytest.mark.parametrize("T", ["float32", "float64"])
def test_sums_that_round_are_close_to_pytorch(cp, rng, name, T):
    torch = pytest.importorskip("torch")
    p, x, w, gy = draw(name, T, rng, lambda rng, shape, T: make(rng.standard_normal(shape), T))
    tx, tw = (torch.tensor(a.astype("f8"), requires_grad=True) for a in (x, w))
    ty = torch.nn.functional.conv2d(
        tx.permute(0, 3, 1, 2), tw.permute(0, 3, 1, 2), stride=p.window.stride,
        padding=[near for near, _ in p.window.pad], dilation=p.window.dilation,
        groups=p.groups).permute(0, 2, 3, 1)
    ty.backward(torch.tensor(gy.astype("f8")))
    for got, want in zip(results(cp, p, x, w, gy), (ty.detach(), tx.grad, tw.grad), strict=True):
        close(got, want.numpy().astype(T), terms=max(p.depth, p.pixels, p.R * p.S * p.K))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 2, 5), (1, 40, 9), (5, 3, 3)], ids=str)
def test_one_kernel_for_images_of_all_sizes(cp, rng, sizes):
    N, H, W = sizes
    win = window(3, pad=1)
    p = ConvShape(N, H, W, 4, 8, win)
    arrays = [whole(rng, s, "float32") for s in ((N, H, W, 4), (8, 3, 3, 4), (N, H, W, 8))]
    equal(results(cp, p, *arrays), definition(p, *arrays))


@pytest.mark.parametrize("tile", gpu_simt.TILES, ids=str)
def test_a_tile_changes_no_bit(cp, rng, monkeypatch, tile):
    p, *arrays = draw("3x3 of many channels", "float32", rng,
                      lambda rng, shape, T: make(rng.standard_normal(shape), T))
    want = results(cp, p, *arrays)
    monkeypatch.setattr(gpu_simt, "TILES", (tile,))
    for a, b in zip(results(cp, p, *arrays), want, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("T", ["float32", "float64"])
def test_the_small_tiles(cp, rng, monkeypatch, T):
    p, *arrays = draw("3x3 stride 2", T, rng)
    for tiles in ("TILES", "DOUBLE_TILES"):
        monkeypatch.setattr(gpu_simt, tiles, getattr(gpu_simt, tiles)[-1:])
    equal(results(cp, p, *arrays), definition(p, *arrays))


# -- what comes after the sum --------------------------------------------------------------


@pytest.mark.parametrize("name", ["3x3", "depthwise", "1x1"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_bias_residual_and_activation_before_the_one_rounding(cp, rng, name, activation):
    T = {"3x3": "float16", "depthwise": "float32", "1x1": "bfloat16"}[name]
    p, x, w, gy = draw(name, T, rng)
    bias, residual = whole(rng, p.K, T), whole(rng, gy.shape, T)
    y = cp.empty(gy.shape, x.dtype)
    gpu_simt.forward(p, *map(cp.asarray, (x, w)), y, Epilogue(
        cp.asarray(bias), cp.asarray(residual), activation))
    want = definition(p, x, w, gy)[0] + bias.astype("f8") + residual.astype("f8")
    want = elementwise_by_reference(activation, want)
    close(y.get(), want.astype(x.dtype), terms=p.depth)


@pytest.mark.parametrize("given", ["bias", "residual"])
def test_either_may_be_missing(cp, rng, given):
    p, x, w, gy = draw("3x3", "float32", rng)
    extra = whole(rng, p.K if given == "bias" else gy.shape, "float32")
    y = cp.empty(gy.shape, x.dtype)
    gpu_simt.forward(p, *map(cp.asarray, (x, w)), y, Epilogue(**{given: cp.asarray(extra)}))
    equal([y.get()], [definition(p, x, w, gy)[0] + extra])


def test_a_nan_stays_in_its_window_through_the_activation(cp, rng):
    p, x, w, gy = draw("3x3", "float32", rng)
    x[0, 0, 0, 0] = np.nan
    w[0] = 1
    y = cp.empty(gy.shape, x.dtype)
    gpu_simt.forward(p, *map(cp.asarray, (x, w)), y, Epilogue(activation="relu"))
    nan = np.isnan(y.get()).any(axis=3)
    assert nan[0, :2, :2].all() and nan.sum() == 4


# -- where the arrays lie, and how large they are ------------------------------------------


@pytest.mark.parametrize("name, T", [("3x3", "float32"), ("3x3", "float16"),
                                     ("two groups", "float32"), ("depthwise", "float16")])
def test_arrays_may_begin_anywhere(cp, rng, name, T):
    p, x, w, gy = draw(name, T, rng)

    def view(a, start):
        whole = cp.empty(a.size + start, a.dtype)
        whole[start:] = cp.asarray(a).reshape(-1)
        return whole[start:].reshape(a.shape)

    want = definition(p, x, w, gy)
    for starts in ((1, 0, 0), (0, 3, 1)):
        x_, w_, gy_ = (view(a, s) for a, s in zip((x, w, gy), starts, strict=True))
        y, gx, gw = (view(a, s) for a, s in zip((gy, x, w), (starts[2], *starts[:2]), strict=True))
        for a in (y, gx, gw):
            a.fill(7)
        gpu_simt.forward(p, x_, w_, y)
        gpu_simt.dgrad(p, gy_, w_, gx)
        gpu_simt.wgrad(p, x_, gy_, gw)
        equal([a.get() for a in (y, gx, gw)], want)


def test_the_start_of_an_array_changes_no_bit(cp, rng):
    p, x, w, gy = draw("3x3 of many channels", "float32", rng,
                       lambda rng, shape, T: make(rng.standard_normal(shape), T))
    want = results(cp, p, x, w, gy)

    class Shifted:
        """cupy whose arrays begin one number late."""

        @staticmethod
        def asarray(a):
            shifted = cp.empty(a.size + 1, a.dtype)
            shifted[1:] = cp.asarray(a).reshape(-1)
            return shifted[1:].reshape(a.shape)

        @staticmethod
        def empty(shape, dtype):
            return cp.empty(int(np.prod(shape)) + 1, dtype)[1:].reshape(shape)

    for a, b in zip(results(Shifted, p, x, w, gy), want, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["3x3", "groups of odd sizes", "depthwise"])
def test_the_path_of_huge_arrays(cp, rng, monkeypatch, name):
    p, *arrays = draw(name, "float32", rng)
    monkeypatch.setattr(kernels, "INT_ITEMS", 0)
    monkeypatch.setattr(kernels, "MAX_BLOCKS", 1)
    equal(results(cp, p, *arrays), definition(p, *arrays))


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "depthwise"])
def test_no_images(cp, rng, name):
    p, x, w, gy = draw(name, "float32", rng)
    y, gx, gw = results(cp, dataclasses.replace(p, N=0), x[:0], w, gy[:0])
    assert y.shape == (0, *gy.shape[1:]) and gx.shape == (0, *x.shape[1:])
    assert gw.tobytes() == bytes(gw.nbytes)


# -- the weight gradient's splits ----------------------------------------------------------


@pytest.mark.parametrize("name", ["3x3", "3x3 of three channels", "groups of odd sizes",
                                  "depthwise"])
@pytest.mark.parametrize("size", [8, 17, 50])
def test_partial_sums(cp, rng, monkeypatch, name, size):
    p, *arrays = draw(name, "float32", rng)
    monkeypatch.setattr(gpu_simt, "SLICE", size)
    equal(results(cp, p, *arrays), definition(p, *arrays))


def test_runs_cover_the_pixels():
    for pixels in (0, 1, 511, 512, 1024, 5000, 131072, 2**33):
        for tiles in (1, 7, 1000):
            run, splits = gpu_simt._runs(pixels, tiles, 1 << 20)
            assert run % gpu_simt.STEP == 0 and (splits - 1) * run < max(1, pixels) <= splits * run
    assert gpu_simt._runs(131072, 1, 1 << 20)[1] == 256
    assert gpu_simt._runs(131072, 1000, 1 << 26) == (131072, 1)
    assert gpu_simt._runs(131072, 1000, 1 << 20) == (gpu_simt.LONGEST, 32)


@pytest.mark.parametrize("T", ["float16", "bfloat16"])
def test_a_gradient_in_float32_for_weights_of_16_bits(cp, rng, monkeypatch, T):
    p, x, w, gy = draw("3x3", T, rng)
    want = definition(p, x, w, gy)[2]
    for size in (8, 512):  # with partial sums, and without
        monkeypatch.setattr(gpu_simt, "SLICE", size)
        gw = cp.empty(w.shape, "float32")
        gpu_simt.wgrad(p, *map(cp.asarray, (x, gy)), gw)
        equal([gw.get()], [want])


# -- tiles, and a captured step ------------------------------------------------------------


def test_tiles_follow_from_the_shape():
    assert gpu_simt.default_tile(131072, 32, 1, 64, "float32") == (128, 32, 8, 4)
    assert gpu_simt.default_tile(131072, 128, 1, 64, "float16") == (128, 64, 8, 8)
    assert gpu_simt.default_tile(131072, 64, 1, 3, "float32") == (128, 32, 8, 4)
    assert gpu_simt.default_tile(256, 256, 1, 64, "float32") == (64, 32, 4, 4)
    assert gpu_simt.default_tile(0, 64, 1, 64, "float32") in gpu_simt.TILES
    assert gpu_simt.default_tile(131072, 128, 1, 64, "float64") in gpu_simt.DOUBLE_TILES


@pytest.mark.skipif(backend._cupy is not fake_cupy, reason="captures with the stand-in")
@pytest.mark.parametrize("name", ["3x3", "depthwise", "1x1 stride 3, nothing meets the rest"])
def test_all_three_can_be_captured(cp, rng, monkeypatch, name):
    monkeypatch.setattr(gpu_simt, "SLICE", 16)  # partial sums, in the pool of the graph
    p, *arrays = draw(name, "float32", rng)
    x, w, gy = map(cp.asarray, arrays)
    y, gx, gw = (cp.empty(a.shape, a.dtype) for a in (gy, x, w))

    def step():
        gpu_simt.forward(p, x, w, y)
        gpu_simt.dgrad(p, gy, w, gx)
        gpu_simt.wgrad(p, x, gy, gw)

    captured = Captured(step)
    for _ in range(2):
        x[...] = cp.asarray(whole(rng, x.shape, "float32"))
        captured.replay()
        equal([a.get() for a in (y, gx, gw)], definition(p, x.get(), w.get(), gy.get()))


# -- what the compiler makes of it -----------------------------------------------------------


@pytest.mark.skipif(bool(nvrtc.missing()) or not sass.disassembler(), reason="no nvdisasm")
@pytest.mark.parametrize("kernel", ["conv_simt", "conv_simt_wgrad"])
def test_a_product_and_its_sum_are_one_instruction(kernel):
    """8 x 4 x 4 of them a step: depth, and the tile of a thread."""
    case = nvrtc_cases.CASES[f"conv/{kernel}.cu"][0]
    options = nvrtc_cases.options(f"conv/{kernel}.cu", case, "float32", "int32")
    cubin, _ = nvrtc.build(nvrtc.Job(f"conv/{kernel}.cu", options, 90))
    loop = sass.main_loop(cubin, kernel, "FFMA")
    assert sass.count(loop, "FFMA") == 8 * case["TM"] * case["TN"] == 128
    assert not any(sass.count(loop, name) for name in ("FMUL", "FADD"))
