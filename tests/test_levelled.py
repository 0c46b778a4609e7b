"""Windows whose numbers are out of all proportion to the image: results, memory, launches.

The oracles list, for each tap, the positions at which it meets a pixel: with Python's ints, which
have no end. PyTorch is asked where its padding is symmetric.
"""

import random
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest

import gpuconv as gpc
from check import close, host, make, nchw, nhwc
from gpuconv import kernels, memory, nn, ops, threads
from gpuconv.autograd import Tensor
from gpuconv.ops.window import Window, kept_taps, levelled

HUGE = 5, 7, 9, 10, 12, 15, 30, 100, 101, 1000, 10**6, 2**31, 2**40, 2**40 + 1


class Axis(NamedTuple):
    """One axis of a window, and the number of pixels under it."""

    n: int
    size: int
    stride: int = 1
    dilation: int = 1
    near: int = 0
    far: int = 0
    ceil_mode: bool = False

    @property
    def count(self):
        """Positions of the window; below 1 where it does not fit."""
        extent = (self.size - 1) * self.dilation + 1
        room = self.n + self.near + self.far - extent
        if not self.ceil_mode:
            return room // self.stride + 1
        last = -(-room // self.stride)
        return last + (last * self.stride < self.n + self.near)

    def met(self, tap):
        """[(position, pixel)] at which a tap is inside the image."""
        at = [(p, p * self.stride + tap * self.dilation - self.near) for p in range(self.count)]
        return [(p, h) for p, h in at if 0 <= h < self.n]


def drawn(rnd, pool=False):
    """An axis of small numbers and huge ones, some of which fit each other."""
    def number(least):
        return rnd.choice([rnd.randint(least, 3), rnd.randint(least, 3), rnd.choice(HUGE)])

    while True:
        n, size = rnd.choice([1, rnd.randint(1, 9), rnd.randint(1, 9)]), rnd.randint(1, 4)
        stride, dilation = number(1), number(1)
        near = max(0, rnd.choice([number(0), rnd.randint(0, 3) * stride + rnd.randint(
            0, 3) * dilation + rnd.randint(-3, 3)]))
        far = max(0, rnd.choice([number(0), near, near + rnd.randint(-3, 3)]))
        if pool:
            near, far = rnd.randint(0, size // 2), rnd.randint(0, size // 2)
        axis = Axis(n, size, stride, dilation, near, far, pool and rnd.random() < 0.5)
        if 1 <= axis.count <= 12:
            return axis


def pairs(rows, columns):
    """(r, s, p, h, q, v) of each tap (r, s) that meets pixel (h, v) at position (p, q)."""
    return [(r, s, p, h, q, v) for r in range(rows.size) for s in range(columns.size)
            for p, h in rows.met(r) for q, v in columns.met(s)]


def geometry(rows, columns):
    """The arguments of a convolution."""
    return dict(stride=(rows.stride, columns.stride), dilation=(rows.dilation, columns.dilation),
                padding=((rows.near, rows.far), (columns.near, columns.far)))


def leaf(xp, a):
    return Tensor(xp.asarray(a), requires_grad=True)


def check_conv(xp, rows, columns, channels=(3, 4, 1), dtype="float64"):
    """y, gx, gw and gb of a convolution are those of the definition; y, gx, gw."""
    (C, K, groups), rng = channels, np.random.default_rng(0)
    x, w, b, gy = (make(rng.integers(-3, 4, shape), dtype) for shape in (
        (2, rows.n, columns.n, C), (K, rows.size, columns.size, C // groups), (K,),
        (2, rows.count, columns.count, K)))
    y, gx, gw = (np.zeros(a.shape) for a in (gy, x, w))
    y += b
    for g in range(groups):
        c, k = (slice(g * a // groups, (g + 1) * a // groups) for a in (C, K))
        for r, s, p, h, q, v in pairs(rows, columns):
            pixel, pull, tap = (a.astype(float) for a in (
                x[:, h, v, c], gy[:, p, q, k], w[k, r, s]))
            y[:, p, q, k] += pixel @ tap.T
            gx[:, h, v, c] += pull @ tap
            gw[k, r, s] += pull.T @ pixel
    leaves = [leaf(xp, a) for a in (x, w, b)]
    got = ops.conv2d(*leaves, groups=groups, **geometry(rows, columns))
    got.backward(xp.asarray(gy))
    want = y, gx, gw, gy.astype(float).sum(axis=(0, 1, 2))
    for a, wanted in zip((got.data, *(a.grad for a in leaves)), want, strict=True):
        close(a, make(wanted, dtype))  # whole numbers: exact in every accumulator
    return got.data, leaves[0].grad, leaves[1].grad


def check_im2col(xp, rows, columns):
    """im2col and its gradient col2im are those of the definition."""
    x = np.random.default_rng(0).integers(-3, 4, (2, rows.n, columns.n, 3)).astype("float64")
    shape = 2, rows.count, columns.count, rows.size, columns.size, 3
    gcol = np.random.default_rng(1).integers(-3, 4, shape).astype("float64")
    col, gx = np.zeros(shape), np.zeros(x.shape)
    for r, s, p, h, q, v in pairs(rows, columns):
        col[:, p, q, r, s] = x[:, h, v]
        gx[:, h, v] += gcol[:, p, q, r, s]
    image, how = leaf(xp, x), geometry(rows, columns)
    got = ops.im2col(image, (rows.size, columns.size), **how)
    got.backward(xp.asarray(gcol.reshape(got.shape)))
    np.testing.assert_array_equal(host(got.data), col.reshape(got.shape))
    np.testing.assert_array_equal(host(image.grad), gx)


def check_max_pool(xp, rows, columns):
    """Values, places and gradients of a max pool are those of the definition."""
    shape = 2, rows.count, columns.count, 3
    x = np.random.default_rng(0).integers(-3, 4, (2, rows.n, columns.n, 3)).astype("float64")
    gy = np.random.default_rng(1).integers(-3, 4, shape).astype("float64")
    y, places = np.full(shape, -np.inf), np.full(shape, -1)
    gx = np.zeros((2, rows.n * columns.n, 3))
    for _, _, p, h, q, v in pairs(rows, columns):  # in scan order
        better = x[:, h, v] > y[:, p, q]
        y[:, p, q][better] = x[:, h, v][better]
        places[:, p, q][better] = h * columns.n + v
    for n, p, q, c in np.argwhere(places >= 0):
        gx[n, places[n, p, q, c], c] += gy[n, p, q, c]
    image, how = leaf(xp, x), geometry(rows, columns)
    got, where = ops.max_pool2d(image, (rows.size, columns.size), **how, return_indices=True,
                                ceil_mode=rows.ceil_mode)
    got.backward(xp.asarray(gy))
    np.testing.assert_array_equal(host(got.data), y)
    np.testing.assert_array_equal(host(where), places)
    np.testing.assert_array_equal(host(image.grad), gx.reshape(x.shape))


def check_avg_pool(xp, rows, columns, include):
    """Means and gradients of an average pool are those of the definition."""
    x = np.random.default_rng(0).integers(-3, 4, (2, rows.n, columns.n, 3)).astype("float64")
    gy = np.random.default_rng(1).integers(-3, 4, (2, rows.count, columns.count, 3)).astype(float)
    y, gx = np.zeros(gy.shape), np.zeros(x.shape)
    for p, q in np.ndindex(rows.count, columns.count):
        area, inside = 1, []
        for axis, at in ((rows, p), (columns, q)):
            start = at * axis.stride - axis.near
            low, high = max(start, 0), min(start + axis.size, axis.n)
            inside.append(slice(low, high))
            area *= min(start + axis.size, axis.n + axis.far) - start if include else high - low
        y[:, p, q] = x[:, inside[0], inside[1]].sum(axis=(1, 2)) / area
        gx[:, inside[0], inside[1]] += (gy[:, p, q] / area)[:, None, None]
    image, how = leaf(xp, x), geometry(rows, columns)
    del how["dilation"]
    got = ops.avg_pool2d(image, (rows.size, columns.size), **how, ceil_mode=rows.ceil_mode,
                         count_include_pad=include)
    got.backward(xp.asarray(gy))
    close(got.data, y, terms=100)
    close(image.grad, gx, terms=100)


# -- levelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", ["met", "all", "pooled"])
@pytest.mark.parametrize("seed", range(4))
def test_a_levelled_window_meets_the_same_pixels(taps, seed):
    rnd = random.Random(seed)
    for _ in range(150):
        axis = drawn(rnd, pool=taps == "pooled")
        window = Window((axis.size, 1), (axis.stride, 1), ((axis.near, axis.far), (0, 0)),
                        (axis.dilation, 1), axis.ceil_mode)
        made, (rows, _) = (f(window, axis.n, 1, taps) for f in (levelled, kept_taps))
        assert made.out_shape(axis.n, 1) == (axis.count, 1)
        kept = range(axis.size)[rows]
        short = Axis(axis.n, len(kept), made.stride[0], made.dilation[0], made.pad[0][0])
        for tap, was in enumerate(kept):
            at = [(p, p * short.stride + tap * short.dilation - short.near)
                  for p in range(axis.count)]
            assert [(p, h) for p, h in at if 0 <= h < axis.n] == axis.met(was)
        met = [tap for tap in range(axis.size) if axis.met(tap)]
        assert set(met) <= set(kept) and made.size[0] == max(1, len(kept))
        if taps == "all":
            assert len(kept) == axis.size
        elif taps == "met" and not met:
            assert not kept
        elif taps == "met":
            gaps = set(np.diff(met))
            assert len(kept) == (len(met) if len(gaps) < 2 else met[-1] - met[0] + 1)


@pytest.mark.parametrize("taps", ["met", "all", "pooled"])
def test_an_ordinary_window_keeps_its_numbers(taps):
    for size, stride, pad, dilation, n in ((3, 1, 1, 1, 4), (3, 2, 1, 1, 8), (1, 2, 0, 1, 8),
                                           (5, 1, 2, 1, 5), (3, 1, 1, 2, 9), (2, 2, 0, 1, 7),
                                           (2, 3, 1, 1, 7)):
        window = Window((size, size), (stride, stride), ((pad, pad), (pad, pad)),
                        (dilation, dilation))
        made = levelled(window, n, n, taps)
        assert made.macros() == window.macros()


def test_the_numbers_of_a_levelled_window_are_in_proportion():
    """What PyTorch takes, too: each reaches a few images far, whatever is asked for."""
    for size, stride, pad, dilation in ((3, 2**40, 0, 1), (3, 1, 2**40, 2**40), (1, 1, 0, 2**40),
                                        (3, 2**40, 2**40, 1), (3, 2**40, 2**41, 2**40),
                                        (3, 3, 2**40, 2**40), (2, 2**31, 2**31, 5)):
        window = Window((size, size), (stride, stride), ((pad, pad), (pad, pad)),
                        (dilation, dilation))
        for taps in ("met", "all"):
            made = levelled(window, 7, 7, taps)
            reach = made.out_shape(7, 7)[0] * made.stride[0] + made.extent[0] + abs(made.pad[0][0])
            assert reach <= 4 * size * made.out_shape(7, 7)[0] * 8


# -- results ---------------------------------------------------------------------------------

TABLE = {  # rows, columns
    "a stride beyond the image": (Axis(8, 3, 2**40), Axis(8, 3, 1000)),
    "same, only the middle tap": (Axis(7, 3, 1, 2**40, 2**40, 2**40),
                                  Axis(7, 3, 1, 1000, 1000, 1000)),
    "one tap inside, off the lattice": (Axis(7, 3, 1, 2**40, 2**40 - 3, 2**40 - 3), Axis(5, 1, 2)),
    "most positions in the padding": (Axis(8, 3, 10**6, 1, 10**6, 10**6), Axis(1, 3, 1, 1, 1, 1)),
    "stride and dilation of one size": (Axis(5, 3, 10**6, 10**6, 2 * 10**6, 2 * 10**6),
                                        Axis(5, 2, 2, 3, 1, 1)),
    "stride and dilation beside each other": (Axis(8, 3, 1000, 999, 1998, 1998), Axis(4, 3, 2)),
    "no tap is met": (Axis(2, 2, 1, 10, 1, 8), Axis(3, 2, 1, 1, 0, 0)),
    "every other tap of one row": (Axis(1, 5, 2, 1, 4, 4), Axis(9, 3, 2, 1, 1, 1)),
    "a stride above the filter": (Axis(30, 2, 7, 1, 1, 3), Axis(9, 1, 4)),
}
ON_BOTH = "one tap inside, off the lattice", "most positions in the padding"


@pytest.mark.parametrize("name", TABLE)
def test_convolution(name):
    for dtype, channels in (("float32", (16, 16, 1)), ("float64", (3, 4, 1)),
                            ("float16", (4, 6, 2)), ("bfloat16", (3, 3, 3))):
        check_conv(np, *TABLE[name], channels, dtype)
    check_im2col(np, *TABLE[name])


@pytest.mark.parametrize("name", ON_BOTH)
def test_convolution_in_cuda(cp, name):
    check_conv(cp, *TABLE[name], dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype, channels", [
    ("float32", (16, 8, 2)), ("float64", (3, 4, 1)), ("float16", (8, 16, 1)),
    ("bfloat16", (3, 5, 1)), ("float32", (6, 6, 6))])
def test_every_engine_in_cuda(cp, name, dtype, channels):
    check_conv(cp, *TABLE[name], channels, dtype)
    check_im2col(cp, *TABLE[name])


def check_drawn(xp, seed):
    """One of everything."""
    rnd = random.Random(seed)
    channels = rnd.choice([(1, 2, 1), (3, 4, 1), (13, 12, 1), (16, 16, 1), (4, 4, 4), (6, 4, 2)])
    rows, columns = drawn(rnd), drawn(rnd)
    check_conv(xp, rows, columns, channels, rnd.choice(["float32", "float64", "float16"]))
    check_im2col(xp, rows, columns)
    rows, columns = drawn(rnd, pool=True), drawn(rnd, pool=True)
    columns = columns._replace(ceil_mode=rows.ceil_mode)
    if columns.count >= 1:
        check_max_pool(xp, rows, columns)
    scale = rnd.choice([1, 50, 3000])
    rows, columns = (axis._replace(dilation=1, size=axis.size * scale, near=axis.near * scale,
                                   far=axis.far * scale) for axis in (rows, columns))
    if 1 <= min(rows.count, columns.count) and rows.count * columns.count < 60:
        check_avg_pool(xp, rows, columns, rnd.random() < 0.5)


def test_drawn_geometries():
    for seed in range(40):
        check_drawn(np, seed)


@pytest.mark.slow
@pytest.mark.parametrize("tens", range(40))
def test_many_drawn_geometries(tens):
    for seed in range(100 + 10 * tens, 110 + 10 * tens):
        check_drawn(np, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_drawn_geometries_in_cuda(cp, seed):
    try:
        check_drawn(cp, seed)
    except ValueError as error:
        if "on a GPU stride, padding and dilation" not in str(error):
            raise
        pytest.skip("beyond 2**30 pixels")


AS_PYTORCH = [dict(padding=2 * 10**6, stride=10**6, dilation=10**6),
              dict(stride=2**31), dict(padding=2**40, dilation=2**40),
              dict(padding=10**6, stride=10**6), dict(padding=2**31, dilation=2**31, stride=3),
              dict(padding=2**40 - 3, dilation=2**40), dict(padding=3, dilation=4, stride=2)]


@pytest.mark.parametrize("options", AS_PYTORCH, ids=str)
def test_as_pytorch(rng, options):
    check_as_pytorch(np, rng, options)


@pytest.mark.parametrize("options", [AS_PYTORCH[0], *(
    pytest.param(options, marks=pytest.mark.slow) for options in AS_PYTORCH[1:])], ids=str)
def test_cuda_as_pytorch(cp, rng, options):
    check_as_pytorch(cp, rng, options)


def check_as_pytorch(xp, rng, options):
    """y, gx and gw are PyTorch's."""
    torch = pytest.importorskip("torch")
    x, w = (rng.standard_normal(shape, "float32") for shape in ((2, 8, 8, 5), (4, 3, 3, 5)))
    images, filters = leaf(xp, x), leaf(xp, w)
    y = ops.conv2d(images, filters, **options)
    gy = rng.standard_normal(y.shape, "float32")
    y.backward(xp.asarray(gy))
    tx, tw, tgy = (torch.from_numpy(nchw(a)).double() for a in (x, w, gy))  # float32 takes minutes
    ty = torch.nn.functional.conv2d(tx.requires_grad_(), tw.requires_grad_(), **options)
    ty.backward(tgy)
    for got, want in ((y.data, ty), (images.grad, tx.grad), (filters.grad, tw.grad)):
        close(got, nhwc(want).astype("float32"), terms=45 * 9)


def test_pools_with_windows_larger_than_the_image(xp):
    check_max_pool(xp, Axis(7, 2, 1500, 1500, ceil_mode=True),
                   Axis(7, 2, 2**40, 2**40, ceil_mode=True))
    check_avg_pool(xp, Axis(4, 5000, 5000, 1, 2500, 2500, True), Axis(3, 3, 9, 1, 1, 1, True), True)


# -- what is not a number --------------------------------------------------------------------


def test_taps_in_the_padding_alone_take_no_part(xp):
    """NaN in them reaches nothing, and their gradient is 0 even where that of y is infinite."""
    for rows in (TABLE["same, only the middle tap"][0], TABLE["no tap is met"][0]):
        x, w = np.ones((1, rows.n, 4, 2), "float32"), np.ones((3, rows.size, 1, 2), "float32")
        outside = [r for r in range(rows.size) if not rows.met(r)]
        w[:, outside] = np.nan
        images, filters = leaf(xp, x), leaf(xp, w)
        y = ops.conv2d(images, filters, **geometry(rows, Axis(4, 1)))
        y.backward(xp.full(y.shape, np.inf, "float32"))
        assert np.isfinite(host(y.data)).all()
        grad = host(filters.grad)
        assert (grad[:, outside] == 0).all() and not np.isnan(grad).any()


# -- cost ------------------------------------------------------------------------------------

LARGE = {  # what is asked for, of images (1, 8, 8, 16)
    "dilation": lambda x, w: ops.conv2d(x, w, padding="same", dilation=1000),
    "few channels, dilation": lambda x, w: ops.conv2d(x[..., :2], w[..., :2], padding="same",
                                                      dilation=1000),
    "one row, dilation": lambda x, w: ops.conv2d(x[:, :1], w[:, :1], padding="same",
                                                 dilation=(10**6, 1000)),
    "stride": lambda x, w: ops.conv2d(x, w, stride=2000),
    "padding": lambda x, w: ops.conv2d(x, w, stride=2000, padding=2000),
    "stride and dilation": lambda x, w: ops.conv2d(x, w, stride=1000, dilation=1000, padding=2000),
    "both, no common factor": lambda x, w: ops.conv2d(x, w, stride=1000, dilation=999,
                                                      padding=1998),
    "far padding": lambda x, w: ops.conv2d(x, w, stride=3000, padding=((1, 2000), (1, 2000))),
    "mirrored": lambda x, w: ops.conv2d(x, w, stride=2000, padding=3, padding_mode="reflect"),
    "im2col": lambda x, w: ops.im2col(x, 3, 1, 1000, 1000),
    "max pool": lambda x, w: ops.max_pool2d(x, 2, 1500, 0, 1500, ceil_mode=True),
    "max pool, padding": lambda x, w: ops.max_pool2d(x, 1001, padding=500),
    "avg pool": lambda x, w: ops.avg_pool2d(x, 1500, ceil_mode=True),
    "avg pool, padding": lambda x, w: ops.avg_pool2d(x, 1001, 1, 497),
}


@pytest.mark.parametrize("name", LARGE)
def test_memory_does_not_grow_with_the_numbers(name, monkeypatch):
    x, w = leaf(np, np.ones((1, 8, 8, 16), "float32")), leaf(np, np.ones((8, 3, 3, 16), "float32"))
    monkeypatch.setattr(threads._inside, "workspaces", {}, raising=False)  # its memory counts, too
    with memory.fresh():
        tracemalloc.start()
        try:
            y = LARGE[name](x, w)
            y.backward(np.ones(y.shape, "float32"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2 << 20  # a frame of 1000 x 1000 pixels has 64 MB


@pytest.fixture
def launched(monkeypatch):
    """[(kernel, blocks)] of what is launched."""
    found, launch = [], kernels.launch

    def noting(get, function, parameters, threads, *args, block=kernels.BLOCK, **more):
        found.append((function, -(-threads // block)))
        launch(get, function, parameters, threads, *args, block=block, **more)

    monkeypatch.setattr(kernels, "launch", noting)
    kernels.kernel.cache_clear()
    yield found
    kernels.kernel.cache_clear()


@pytest.mark.parametrize("dtype, kernel", [
    ("float32", "conv_simt"), pytest.param("float16", "conv_mma", marks=pytest.mark.slow)])
def test_an_input_gradient_launches_blocks_for_classes_with_taps(cp, launched, dtype, kernel):
    x, w = np.ones((1, 32, 32, 16), dtype), np.ones((8, 3, 3, 16), dtype)
    for options in (dict(stride=16), dict(stride=16, padding=16, dilation=2)):
        image = leaf(cp, x)
        y = ops.conv2d(image, cp.asarray(w), **options)
        del launched[:]
        y.backward(cp.ones(y.shape, dtype))
        assert dict(launched)[kernel] == 9  # one for each pixel of a filter
        assert float(host(image.grad).sum()) == 8 * 16 * 9 * 2 * 2  # positions inside the image


# -- what does not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
    (lambda x, w: ops.conv2d(x, w, padding=2**40), r"conv2d: the result would have shape \(1, 21"),
    (lambda x, w: ops.im2col(x, 3, padding=2**40), "im2col: the result would have shape"),
    (lambda x, w: ops.pad2d(x, 2**40), "pad2d: the result would have shape"),
    (lambda x, w: ops.conv2d(x, w, stride=2**61), r"stride \(2305.*at most 2\*\*60"),
    (lambda x, w: nn.MaxPool2d(2**61)(x), r"window .*at most 2\*\*60"),
])
def test_refuses(xp, call, message):
    with pytest.raises(ValueError, match=message):
        call(*(xp.asarray(np.ones(shape, "float32")) for shape in ((1, 8, 8, 2), (3, 3, 3, 2))))


def test_a_gpu_refuses_what_its_ints_do_not_reach(cp):
    rows = Axis(8, 3, 2**40, 2**40 - 1, 2**41 - 2, 2**41 - 2)
    check_conv(np, rows, Axis(3, 1))
    with pytest.raises(ValueError, match=r"conv2d: window \(3, 1\), stride .* on a GPU"):
        check_conv(cp, rows, Axis(3, 1))
    with pytest.raises(ValueError, match=r"im2col: window \(3, 1\), stride .* on a GPU"):
        check_im2col(cp, rows, Axis(3, 1))
    with pytest.raises(ValueError, match=r"avg_pool2d: window \(1073741824, 1\)"):
        ops.avg_pool2d(cp.ones((1, 4, 4, 1), "float32"), (2**30, 1), ceil_mode=True)


# -- layers and summary ----------------------------------------------------------------------


def test_layers_and_summary_say_what_was_asked_for():
    layer = nn.Conv2d(2, 3, 3, padding="same", dilation=1000)
    row, = nn.summary(layer, (7, 7, 2)).rows
    assert (row.filter, row.dilation, row.padding) == ((3, 3), (1000, 1000), ((1000,) * 2,) * 2)
    assert row.output == (7, 7, 3) and row.receptive_field == (1, 1)
    row, = nn.summary(nn.MaxPool2d(2, stride=100), (7, 7, 2)).rows
    assert (row.stride, row.cropped) == ((100, 100), "5 rows, 5 columns cropped")


@pytest.mark.parametrize("activation", ["relu", pytest.param(None, marks=pytest.mark.slow)])
def test_fused_convolutions(xp, rng, activation):
    """The filter's middle tap alone is met: the op is that of 1x1 filters."""
    x, w = (rng.standard_normal(shape, "float32") for shape in ((2, 6, 6, 4), (5, 3, 3, 4)))
    how = dict(padding=1000, dilation=1000)

    def pooled(x, w, **how):
        return ops.conv_max_pool(x, w, activation=activation, **how)

    def normed(x, w, **how):
        return ops.conv_batch_norm(x, w, None, None, None, None, training=True,
                                   activation=activation, **how)

    for f in (pooled, normed):
        got, pull = gpc.vjp(lambda x, w, f=f: f(x, w, **how), xp.asarray(x), xp.asarray(w))
        want, pull_back = gpc.vjp(lambda x, w, f=f: f(x, w), xp.asarray(x),
                                  xp.asarray(w[:, 1:2, 1:2]))
        gy = xp.asarray(rng.standard_normal(got.shape, "float32"))
        (gx, gw), (want_x, want_w) = pull(gy), pull_back(gy)
        gw = host(gw)
        close(got, want)
        close(gx, want_x)
        close(gw[:, 1:2, 1:2], want_w)
        assert not np.delete(gw.reshape(5, 9, 4), 4, axis=1).any()
