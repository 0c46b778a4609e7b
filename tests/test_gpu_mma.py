"""Convolutions on tensor cores: forward with its epilogues, and the gradient of the images."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ampere

from check import around, close, elementwise_by_reference
from gpuconv import backend, reference
from gpuconv.ops.conv import gpu_mma as tc
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.elementwise import ACTIVATIONS
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.window import ConvShape, Window
from hostcuda import fake_cupy
from hostcuda.hostcuda import HostKernel

DTYPES = ["float16", "bfloat16", "float32"]
SMALL = Tile(64, 32, 32, 32, 16, 4)
on_the_cpu = pytest.mark.skipif(backend._cupy is not fake_cupy, reason="checks of the stand-in")


class Geometry(NamedTuple):
    images: tuple            # N, H, W, C
    filters: tuple           # K, R, S
    pad: tuple = (1, 1, 1, 1)  # top, bottom, left, right
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)

    @property
    def sizes(self):
        (N, H, W, C), (K, R, S) = self.images, self.filters
        top, bottom, left, right = self.pad
        return ConvShape(N, H, W, C, K, Window(
            (R, S), self.stride, ((top, bottom), (left, right)), self.dilation))


NONE = 0, 0, 0, 0
GEOMETRIES = {
    "3x3": Geometry((2, 9, 7, 16), (40, 3, 3)),
    "one whole tile": Geometry((1, 8, 8, 32), (32, 3, 3)),
    "1x1": Geometry((3, 5, 5, 24), (130, 1, 1), NONE),
    "linear": Geometry((70, 1, 1, 40), (10, 1, 1), NONE),
    "1x1 stride 2": Geometry((2, 7, 6, 16), (24, 1, 1), NONE, (2, 2)),
    "5x5 of 3 channels": Geometry((2, 9, 8, 3), (16, 5, 5), (2, 2, 2, 2)),
    "10 channels, 1 filter": Geometry((2, 6, 5, 10), (1, 3, 3)),
    "7x7 stride 2": Geometry((1, 12, 13, 8), (8, 7, 7), (3, 3, 3, 3), (2, 2)),
    "3x3 stride 2": Geometry((2, 9, 8, 8), (40, 3, 3), stride=(2, 2)),
    "4x3, stride 3 and 2": Geometry((2, 9, 11, 4), (12, 4, 3), (2, 1, 1, 1), (3, 2)),
    "dilation 2": Geometry((2, 9, 7, 8), (16, 3, 3), (2, 2, 2, 2), dilation=(2, 2)),
    "dilation 2 and 3, stride 2": Geometry((2, 9, 11, 8), (8, 3, 2), (2, 2, 1, 1), (2, 2), (2, 3)),
    "other padding at each side": Geometry((2, 5, 6, 8), (8, 3, 2), (0, 2, 1, 0)),
    "padding beyond the filter": Geometry((1, 3, 4, 8), (8, 2, 2), (3, 2, 2, 3)),
}


def numbers(rng, shape, T):
    """Normal numbers of at most 10 bits of fraction: tf32 loses nothing of them."""
    return rng.standard_normal(shape).astype(np.float16).astype(backend.float_dtype(T))


def convolved(p, x, w):
    """The definition, in float64."""
    return reference.conv2d(x.astype(float), w.astype(float), **around(p))


def gradient(p, gy, w):
    """The definition's input gradient, in float64."""
    x = np.zeros((p.N, p.H, p.W, p.C))
    return reference.conv2d_backward(gy.astype(float), x, w.astype(float), **around(p))[0]


def of(tile, T):
    """The tile with stages of as many bytes."""
    return tile._replace(BK=tile.BK * 2 // backend.float_dtype(T).itemsize)


@pytest.fixture
def cp(cp):
    """cupy with tensor cores, or the stand-in."""
    return ampere(cp)


def forward(cp, p, x, w, T, tile=SMALL, shape=None, **how):
    """y as NumPy array, and whatever else was written."""
    y = cp.empty(shape or (p.N, p.P, p.Q, p.K), x.dtype)
    how = {key: cp.asarray(v) if isinstance(v, np.ndarray) else v for key, v in how.items()}
    tc.forward(p, cp.asarray(x), cp.asarray(w), y, Epilogue(**how), tile=of(tile, T))
    return y.get()


def data(rng, p, T):
    return numbers(rng, (p.N, p.H, p.W, p.C), T), numbers(rng, (p.K, p.R, p.S, p.C), T)


# -- against the definition ------------------------------------------------------------------


in_all_dtypes = pytest.mark.parametrize("name, T", [
    *((name, "float16") for name in GEOMETRIES),
    *((name, T) for name in ("3x3", "5x5 of 3 channels", "4x3, stride 3 and 2")
      for T in ("bfloat16", "float32"))])


@in_all_dtypes
def test_forward(cp, rng, name, T):
    p = GEOMETRIES[name].sizes
    x, w = data(rng, p, T)
    close(forward(cp, p, x, w, T), convolved(p, x, w).astype(x.dtype), terms=p.depth)


@pytest.mark.parametrize("name", [*GEOMETRIES, "several tiles"])
def test_filters_turn(cp, rng, name):
    """Class after class of pixels, in each the taps that lead there, the last one first."""
    p = GEOMETRIES.get(name, Geometry((1, 4, 4, 40), (100, 3, 3))).sizes
    _, w = data(rng, p, "float16")
    def classes(size, step, apart):
        """Taps that lead to the same place modulo the stride, each class by its first tap."""
        found = {}
        for tap in range(size):
            found.setdefault(tap * apart % step, []).insert(0, tap)
        return found.values()

    parts, (rows, columns) = [], map(
        classes, (p.R, p.S), p.window.stride, p.window.dilation)
    for rs in rows:
        for ss in columns:
            parts.append(w[:, rs][:, :, ss].transpose(3, 1, 2, 0).ravel())  # (C, its taps, K)
    np.testing.assert_array_equal(tc.rotate_filters(p, cp.asarray(w)).get(), np.concatenate(parts))


@in_all_dtypes
def test_input_gradient(cp, rng, name, T):
    p = GEOMETRIES[name].sizes
    x, w = data(rng, p, T)
    gy, gx = numbers(rng, (p.N, p.P, p.Q, p.K), T), cp.empty(x.shape, x.dtype)
    tc.dgrad(p, cp.asarray(gy), cp.asarray(w), gx, tile=of(SMALL, T))
    close(gx, gradient(p, gy, w).astype(x.dtype), terms=p.R * p.S * p.K)


@pytest.mark.parametrize("T", ["float16", "float32"])
def test_deeper_stages_change_no_bit(cp, rng, T):
    p = GEOMETRIES["3x3"].sizes
    x, w = data(rng, p, T)
    deeper = next(tile for tile in tc.TILES if tile.BK == 64)
    y = forward(cp, p, x, w, T, tile=deeper)
    assert y.tobytes() == forward(cp, p, x, w, T).tobytes()


def test_float32_is_rounded_to_tf32(cp, rng):
    p = GEOMETRIES["one whole tile"].sizes
    x, w = (rng.standard_normal(a.shape).astype(np.float32) for a in data(rng, p, "float32"))

    def tf32(a):
        return ((a.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)

    y = forward(cp, p, x, w, "float32")
    close(y, convolved(p, tf32(x), tf32(w)).astype(np.float32), terms=p.depth)
    with pytest.raises(AssertionError):
        close(y, convolved(p, x, w).astype(np.float32), terms=p.depth)


@on_the_cpu
@pytest.mark.parametrize("name", ["3x3", "5x5 of 3 channels", "3x3 stride 2"])
def test_the_same_bits_in_every_order_of_threads(cp, rng, monkeypatch, name):
    p = GEOMETRIES[name].sizes
    x, w = data(rng, p, "float16")
    gy, results = numbers(rng, (p.N, p.P, p.Q, p.K), "float16"), set()
    for seed in (0, 1, 2, 2):
        monkeypatch.setattr(HostKernel, "seed", seed)
        gx = cp.empty(x.shape, x.dtype)
        tc.dgrad(p, cp.asarray(gy), cp.asarray(w), gx, tile=SMALL)
        results.add(forward(cp, p, x, w, "float16").tobytes() + gx.get().tobytes())
    assert len(results) == 1


def test_an_empty_batch(cp, rng):
    p = Geometry((0, 9, 7, 16), (40, 3, 3)).sizes
    x, w = data(rng, p, "float16")
    assert forward(cp, p, x, w, "float16").shape == (0, 9, 7, 40)
    gy, gx = cp.empty((0, 9, 7, 40), x.dtype), cp.empty(x.shape, x.dtype)
    tc.dgrad(p, gy, cp.asarray(w), gx)


@pytest.mark.parametrize("odd", ["x", "w", "y"])
@pytest.mark.parametrize("T", ["float16", "float32"])
def test_views_that_start_anywhere(cp, rng, odd, T):
    p = GEOMETRIES["3x3"].sizes
    x, w = data(rng, p, T)
    y = np.zeros((p.N, p.P, p.Q, p.K), x.dtype)

    def given(name, a):
        if name != odd:
            return cp.asarray(a)
        room = cp.asarray(np.concatenate([a.ravel()[:1], a.ravel()]))
        return room[1:].reshape(a.shape)

    x_given, w_given, y_given = given("x", x), given("w", w), given("y", y)
    tc.forward(p, x_given, w_given, y_given, tile=of(SMALL, T))
    close(y_given, convolved(p, x, w).astype(x.dtype), terms=p.depth)


# -- epilogues -------------------------------------------------------------------------------


@pytest.mark.parametrize("how, K, T", [
    *((f"bias residual {name}", 40, "float16") for name in ACTIVATIONS),
    ("bias", 40, "float16"), ("bias relu", 40, "float16"),
    ("bias relu", 10, "bfloat16"), ("bias residual gelu", 10, "bfloat16"),
    ("residual relu", 36, "float32"), ("bias gelu", 36, "float32")])
def test_epilogues(cp, rng, how, K, T):
    p = Geometry((2, 6, 7, 8), (K, 3, 3)).sizes
    x, w = data(rng, p, T)
    y, given = convolved(p, x, w), {}
    if "bias" in how:
        given["bias"] = numbers(rng, K, T)
        y += given["bias"].astype(float)
    if "residual" in how:
        given["residual"] = numbers(rng, y.shape, T)
        y += given["residual"].astype(float)
    given["activation"] = next((a for a in ACTIVATIONS if a in how.split()), None)
    want = elementwise_by_reference(given["activation"], y).astype(x.dtype)
    close(forward(cp, p, x, w, T, **given), want, terms=p.depth + 2)


def pooled(y):
    """Maxima of 2x2 windows and their marks, 2*r + s."""
    best, places = reference.max_pool2d(y.astype(float), 2, return_indices=True)
    h, w = np.divmod(places, y.shape[2])
    return best.astype(y.dtype), (h % 2 * 2 + w % 2).astype(np.uint8)


POOLS = {  # images, filters, dtype, and what happens before
    "even": ((2, 6, 8, 8), 40, "float16", {}),
    "odd": ((2, 7, 5, 8), 40, "float16", dict(activation="relu")),
    "ten channels": ((3, 5, 6, 8), 10, "float16", dict(activation="relu")),
    "float32": ((2, 6, 5, 8), 36, "float32", {}),
}


@pytest.mark.parametrize("case", POOLS)
def test_pool(cp, rng, case):
    """The maxima of what is stored without it, bit for bit: with ties, NaN and infinity."""
    images, K, T, how = POOLS[case]
    p = Geometry(images, (K, 3, 3)).sizes
    x, w = (np.rint(a * 2).astype(a.dtype) for a in data(rng, p, T))
    w[: K // 2] = np.rint(w[: K // 2] / 8)
    x[0, 1, 1, 0], x[1, 0, 0, 1] = np.nan, np.inf
    plain = forward(cp, p, x, w, T, **how)
    marks = cp.empty((p.N, p.P // 2, p.Q // 2, K), np.uint8)
    y = forward(cp, p, x, w, T, shape=marks.shape, pool=marks, **how)
    best, want = pooled(plain)
    np.testing.assert_array_equal(marks.get(), want)
    np.testing.assert_array_equal(y, best)
    assert len(np.unique(want)) == 4 and np.isnan(best.astype(float)).any()


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize("pool", [False, True], ids=["", "pool"])
def test_moments(cp, rng, case, pool):
    """Of the stored values, per slice of rows; far from zero, where one pass would lose them."""
    images, K, T, _ = POOLS[case]
    p = Geometry(images, (K, 3, 3)).sizes
    x, w = data(rng, p, T)
    bias = (numbers(rng, K, T).astype(float) + 50).astype(x.dtype)
    height = tc.moment_rows(SMALL, pool)
    shape = (p.N, p.P // 2, p.Q // 2, K) if pool else (p.N, p.P, p.Q, K)
    slices = math.ceil(math.prod(shape[:3]) / height)
    marks = cp.empty(shape, np.uint8) if pool else None
    means, variances = (cp.empty((slices, K), np.float32) for _ in range(2))
    y = forward(cp, p, x, w, T, shape=shape, bias=bias, pool=marks, moments=(means, variances))
    rows = y.reshape(-1, K).astype(float)
    parts = [rows[i : i + height] for i in range(0, len(rows), height)]
    close(means, np.stack([a.mean(0) for a in parts]).astype(np.float32), terms=height)
    var = np.stack([a.var(0) for a in parts])
    close(variances, var.astype(np.float32), terms=height)


def test_moments_of_small_numbers(cp, rng):
    """They have as many digits as those of large ones."""
    p = GEOMETRIES["one whole tile"].sizes
    x, w = data(rng, p, "float32")
    x /= 2**16
    means, variances = (cp.empty((1, p.K), np.float32) for _ in range(2))
    y = forward(cp, p, x, w, "float32", moments=(means, variances)).reshape(-1, p.K).astype(float)
    close(means, y.mean(0, keepdims=True).astype(np.float32), terms=64)
    close(variances, y.var(0, keepdims=True).astype(np.float32), terms=64)


def test_refuses_what_no_layer_needs(cp, rng):
    p = GEOMETRIES["3x3"].sizes
    x, w = data(rng, p, "float16")
    for how in (dict(moments=(1, 2), activation="relu"), dict(pool=1, residual=x)):
        with pytest.raises(ValueError, match="separately"):
            forward(cp, p, x, w, "float16", **how)
