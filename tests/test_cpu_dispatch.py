"""Convolution on the CPU: each algorithm against the definition, in chunks of any size."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gpuconv as gpc
from check import around, close, defined, nchw, nhwc
from gpuconv import reference, threads
from gpuconv.ops.conv import cpu_dispatch, cpu_im2col, cpu_winograd
from gpuconv.ops.conv.conv2d import conv2d
from gpuconv.ops.engine.chunks import copy_framed, image_chunks
from gpuconv.ops.window import ConvShape, Window, spanning

ALGORITHMS = dict(im2col=cpu_dispatch.IM2COL, planar=cpu_dispatch.PLANAR,
                  winograd=cpu_dispatch.WINOGRAD)


def sizes(x, K, window, groups=1):
    """The convolution of images x with K filters."""
    return ConvShape(*x.shape, K, window, groups)


def square(size, pad):
    """A window of stride 1."""
    return Window((size, size), pad=((pad, pad), (pad, pad)))


def definition(x, taps, shape):
    """y (N, P, Q, K) in float64, of taps (R, S, C, K)."""
    w = taps.transpose(3, 0, 1, 2).astype(np.float64)
    return reference.conv2d(x.astype(np.float64), w, **around(shape))


def gradient_definition(x, gy, taps, window):
    """Of the filters, (K, R, S, C) in float64."""
    return defined("conv2d", gy, x, taps.transpose(3, 0, 1, 2),
                   **around(sizes(x, gy.shape[3], window)))[2]


def check_algorithm(algorithm, x, taps, b, window, rng, strided=False):
    """Both products of an algorithm, into arrays with holes where ``strided``."""
    shape = sizes(x, taps.shape[3], window)
    N, P, Q, K = shape.y_shape
    y = np.full((N, 2 * P, 3 * Q, K), np.nan, x.dtype)[:, ::2, ::3] if strided else (
        np.full((N, P, Q, K), np.nan, x.dtype))
    algorithm.forward(shape, x, taps, b, y)
    want = definition(x, taps, shape) + (0 if b is None else b)
    near(algorithm, np.array(y), want.astype(x.dtype), taps[..., 0].size,
         np.abs(x).max() * np.abs(taps).sum(axis=(0, 1, 2)).max())

    gy = rng.standard_normal((N, P, Q, K)).astype(x.dtype)
    total = 0
    for chunk in algorithm.wgrad_chunks(shape, taps.dtype):
        part = np.full(algorithm.partial_shape(shape), np.nan, taps.dtype)
        algorithm.wgrad(shape, x, gy, chunk, part)
        total = total + part
    near(algorithm, algorithm.filter_gradient(shape, total),
         gradient_definition(x, gy, taps, window).astype(taps.dtype), N * P * Q,
         np.abs(x).max() * np.abs(gy).sum(axis=(0, 1, 2)).max())


def near(algorithm, got, want, terms, largest):
    """As ``close``, but Winograd's sums also hold what cancels: it rounds relative to all of it."""
    if algorithm is not cpu_dispatch.WINOGRAD:
        close(got, want, terms)
    else:
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        eps = np.finfo(got.dtype).eps
        assert np.all(np.abs(got - want) <= 16 * np.finfo("float32").eps * largest + eps * np.abs(
            want))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("strided", [False, True])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_algorithms_are_the_definition(name, strided, data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    def number(low, high):
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(number(0, 99))
    (H, W), (P, Q), C, K, N = pair(1, 9), pair(1, 9), number(1, 5), number(1, 5), number(1, 3)
    size, stride, dilation, near = pair(1, 4), pair(1, 3), pair(1, 2), pair(-3, 4)
    if name == "winograd":
        size, stride, dilation = (3, 3), (1, 1), (1, 1)
    elif name == "planar":
        stride = stride[0], 1
    window = spanning(size, stride, near, dilation, (H, W), (P, Q))
    x = rng.standard_normal((N, H, W, C), "float32")
    taps = rng.standard_normal((*size, C, K), "float32")
    if data.draw(st.booleans()):  # as the filters of a layer lie in memory
        taps = np.ascontiguousarray(taps.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    b = rng.standard_normal(K, "float32") if data.draw(st.booleans()) else None
    check_algorithm(ALGORITHMS[name], x, taps, b, window, rng, strided)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_chunk_may_be_a_row(name, rng, monkeypatch):
    monkeypatch.setattr(ALGORITHMS[name], "workspace", 1, raising=False)
    monkeypatch.setattr(cpu_winograd, "WORKSPACE", 1)
    monkeypatch.setattr(cpu_im2col, "ROWS", 1)
    x, taps = (rng.standard_normal(s, "float32") for s in ((2, 14, 9, 3), (3, 3, 3, 5)))
    algorithm = ALGORITHMS[name]
    if name == "winograd":
        monkeypatch.setattr(cpu_winograd.WinogradConv.chunks, "__defaults__", (None, 1))
    chunks = algorithm.chunks(sizes(x, 5, square(3, 1)), taps.dtype)
    assert len(chunks) == 2 * (4 if name == "winograd" else 14)
    check_algorithm(algorithm, x, taps, None, square(3, 1), rng)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_algorithms_compute_in_the_dtype_of_the_filters(dtype, rng):
    x = rng.standard_normal((2, 8, 8, 3)).astype(dtype)
    taps = rng.standard_normal((3, 3, 3, 4)).astype("float32" if dtype == "float16" else dtype)
    for name, algorithm in ALGORITHMS.items():
        if name != "winograd" or dtype == "float16":
            check_algorithm(algorithm, x, taps, None, square(3, 1), rng)


def test_winograd_errors_stay_within_what_its_file_says(rng):
    x = rng.standard_normal((4, 32, 32, 64), "float32")
    w = rng.standard_normal((64, 3, 3, 64), "float32")
    gy = rng.standard_normal((4, 32, 32, 64), "float32")
    shape = sizes(x, 64, square(3, 1))
    y = np.empty_like(gy)
    cpu_dispatch.forward(shape, x, w, None, y)
    want = conv2d(x.astype("float64"), w.astype("float64"), padding=1)
    assert np.abs(y - want).max() <= 1.5e-5 * np.abs(want).max()
    got, want = ([np.empty(a.shape, dtype) for a in (x, w)] for dtype in ("float32", "float64"))
    cpu_dispatch.gradients(shape, x, w, gy, *got)
    cpu_dispatch.gradients(shape, *(a.astype("float64") for a in (x, w, gy)), *want)
    for g, exact in zip(got, want, strict=True):
        assert np.abs(g - exact).max() <= 1.5e-5 * np.abs(exact).max()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_both_gradients_at_once_are_those_of_the_definition(data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    (H, W), (top, left), N = pair(3, 12), pair(0, 3), data.draw(st.integers(1, 3))
    P, Q = H + 2 * top - 2, W + 2 * left - 2
    assume(min(P, Q) > 0)
    x, w, gy = (rng.standard_normal(s, "float32") for s in (
        (N, H, W, 16), (18, 3, 3, 16), (N, P, Q, 18)))
    gx, gw = np.full(x.shape, np.nan, "float32"), np.full(w.shape, np.nan, "float32")
    window = Window((3, 3), pad=((top, top), (left, left)))
    shape = sizes(x, 18, window)
    assume(cpu_dispatch._both_by_winograd(shape, gw.dtype))
    cpu_dispatch.gradients(shape, x, w, gy, gx, gw)
    alone_x, alone_w = np.empty_like(gx), np.empty_like(gw)
    cpu_dispatch.gradients(shape, None, w, gy, alone_x, None)
    cpu_dispatch.gradients(shape, x, None, gy, None, alone_w)
    np.testing.assert_array_equal(gx, alone_x)
    taps = w.transpose(1, 2, 3, 0)
    want = gradient_definition(x, gy, taps, window)
    largest = np.abs(x).max() * np.abs(gy).sum(axis=(0, 1, 2)).max()
    for got in (gw, alone_w):
        near(cpu_dispatch.WINOGRAD, got, want.astype("float32"), N * P * Q, largest)


@pytest.mark.parametrize("taps, stride, dtype, y, name", [
    ((3, 3, 64, 64), 1, "float32", (8, 16, 16, 64), "winograd"),
    ((3, 3, 64, 64), 1, "float64", (8, 16, 16, 64), "im2col"),
    ((3, 3, 64, 64), 2, "float32", (8, 16, 16, 64), "im2col"),
    ((3, 3, 64, 64), 1, "float32", (8, 2, 2, 64), "im2col"),
    ((3, 3, 64, 64), 1, "float32", (8, 5, 5, 64), "im2col"),
    ((3, 3, 64, 64), 1, "float32", (8, 7, 7, 64), "winograd"),
    ((3, 3, 3, 64), 1, "float32", (8, 32, 32, 64), "planar"),
    ((5, 5, 1, 6), 1, "float32", (8, 28, 28, 6), "planar"),
    ((7, 7, 3, 64), 2, "float32", (8, 112, 112, 64), "im2col"),
    ((1, 1, 3, 64), 1, "float32", (8, 32, 32, 64), "im2col"),
])
def test_the_algorithm_follows_from_the_shapes(taps, stride, dtype, y, name):
    (*size, C, K), (N, P, Q, _) = taps, y
    image = P * stride, Q * stride
    window = spanning(tuple(size), (stride, stride), (0, 0), (1, 1), image, (P, Q))
    shape = ConvShape(N, *image, C, K, window)
    assert cpu_dispatch.select(shape, np.dtype(dtype)) is ALGORITHMS[name]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_strided_input_gradients_are_the_transpose(data):
    """<gy, conv(x)> = <gx, x> for all x: on the unit vectors, by the definition."""
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    size, stride, dilation, (H, W) = pair(1, 4), pair(1, 4), pair(1, 3), pair(1, 8)
    pad = tuple((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(2))
    window = Window(size, stride, pad, dilation)
    try:
        P, Q = window.out_shape(H, W)
    except ValueError:
        return
    rng = np.random.default_rng(0)
    w, gy = rng.standard_normal((2, *size, 3)), rng.standard_normal((2, P, Q, 2))
    gx = np.full((2, H, W, 3), np.nan)
    shape = sizes(gx, 2, window)
    cpu_dispatch.gradients(shape, None, w, gy, gx, None)
    want = defined("conv2d", gy, np.zeros(gx.shape), w, **around(shape))[1]
    close(gx, want, terms=2 * size[0] * size[1])


def test_a_strided_input_gradient_visits_only_pixels_that_filters_read(monkeypatch):
    made, rotated = [], cpu_dispatch._rotated
    monkeypatch.setattr(cpu_dispatch, "_rotated", lambda *how: made.append(how) or rotated(*how))
    gx, gy, w = np.full((1, 64, 64, 16), np.nan), np.ones((1, 4, 4, 2)), np.ones((2, 3, 2, 16))
    window = spanning((3, 2), (16, 16), (0, -5), (1, 1), (64, 64), (4, 4))
    cpu_dispatch.gradients(sizes(gx, 2, window), None, w, gy, gx, None)
    assert len(made) == 6  # of 256 classes of pixels
    assert gx.sum() == 16 * 6 * 2 * 16 and np.count_nonzero(gx) == 16 * 6 * 16


def test_a_window_of_one_pixel_or_of_all_copies_nothing(rng, monkeypatch):
    asked = []
    workspace = threads.workspace
    monkeypatch.setattr(threads, "workspace", lambda name, *rest: asked.append(name) or workspace(
        name, *rest))
    x = rng.standard_normal((4, 6, 6, 8), "float32")
    for size in (1, 6):
        conv2d(x, rng.standard_normal((5, size, size, 8), "float32"))
    assert not asked


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 500), st.integers(1, 5000))
def test_chunks_cover_all_rows_once(images, rows, row_bytes, budget):
    seen = np.zeros((images, rows), int)
    for chunk in image_chunks(images, rows, row_bytes, budget):
        assert seen[chunk].size * row_bytes <= max(budget, row_bytes)
        seen[chunk] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("start", [(-2, -1), (1, 2), (-9, 0), (9, 0), (0, 0)])
def test_frames_hold_zeros_where_the_image_ends(start, rng):
    x, out = rng.standard_normal((2, 4, 5, 3)), np.full((2, 5, 4, 3), np.nan)
    copy_framed(x, start, out)
    wide = np.pad(x, ((0, 0), (20, 20), (20, 20), (0, 0)))
    h, w = start[0] + 20, start[1] + 20
    np.testing.assert_array_equal(out, wide[:, h : h + 5, w : w + 4])


def test_one_large_image_never_has_all_its_patches_in_memory(rng, monkeypatch):
    largest = []
    workspace = threads.workspace

    def noting(name, shape, dtype):
        array = workspace(name, shape, dtype)
        largest.append(array.nbytes)
        return array

    monkeypatch.setattr(threads, "workspace", noting)
    x = rng.standard_normal((1, 512, 512, 16), "float32")
    for size, K in ((3, 16), (5, 8)):
        w = rng.standard_normal((K, size, size, 16), "float32")
        shape = sizes(x, K, square(size, size // 2))
        y = np.empty((1, 512, 512, K), "float32")
        cpu_dispatch.forward(shape, x, w, None, y)
        cpu_dispatch.gradients(shape, x, w, y, np.empty_like(x), np.empty_like(w))
    assert max(largest) < 8 << 20  # bytes; all patches of 5x5 would be 420 MB


# x (N, H, W, C), filters (K, R, S), groups, stride, padding, dilation; all take several chunks
SEVERAL = dict(
    depthwise=((4, 32, 32, 16), (16, 3, 3), 16, 1, 1, 1),
    depthwise_strided=((6, 33, 31, 8), (8, 3, 3), 8, 2, 1, 1),
    depthwise_two_filters=((4, 32, 32, 8), (16, 3, 3), 8, 1, 1, 1),
    depthwise_dilated=((3, 40, 40, 6), (6, 3, 3), 6, 1, 2, 2),
    one_filter=((4, 32, 32, 3), (1, 3, 3), 1, 1, 1, 1),
    one_filter_each_group=((4, 32, 32, 8), (4, 3, 3), 4, 1, 1, 1),
    one_filter_of_many_channels=((4, 24, 24, 48), (1, 3, 3), 1, 1, 1, 1),
    one_channel=((6, 28, 28, 1), (6, 5, 5), 1, 1, 2, 1),
    one_channel_one_filter=((5, 64, 64, 1), (1, 3, 3), 1, 1, 1, 1),
    one_tap=((5, 64, 64, 3), (1, 1, 1), 1, 1, 0, 1),
    one_row=((4, 1, 2000, 2), (1, 1, 7), 1, 1, (0, 3), 1),
    one_column=((4, 2000, 1, 2), (1, 7, 1), 1, 1, (3, 0), 1),
    one_large_image=((1, 200, 200, 4), (1, 3, 3), 1, 1, 1, 1),
    winograd=((9, 20, 20, 16), (16, 3, 3), 1, 1, 1, 1),
)


def check_with_pytorch(case, dtype, rng):
    """conv2d, its value and gradients, for 1 and 2 threads: PyTorch's, and the same bits.

    Returns the largest number of chunks that one pass was divided into.
    """
    torch = pytest.importorskip("torch")
    (N, H, W, C), (K, R, S), groups, stride, padding, dilation = case
    x = rng.standard_normal((N, H, W, C)).astype(dtype)
    w = rng.standard_normal((K, R, S, C // groups)).astype(dtype)
    t, u = (torch.from_numpy(nchw(a).astype("float64")).requires_grad_() for a in (x, w))
    want = torch.nn.functional.conv2d(t, u, None, stride, padding, dilation, groups)
    gy = rng.standard_normal(tuple(want.shape)).astype(dtype)
    want.backward(torch.from_numpy(gy).double())
    wanted = [nhwc(a).astype(dtype) for a in (want, t.grad, u.grad)]
    results, chunks, each = [], [0], threads.each

    def counting(f, pieces):
        chunks.append(len(pieces))
        return each(f, pieces)

    threads.each = counting
    try:
        for count in (1, 2):
            threads.set_count(count)
            y, pull = gpc.vjp(lambda x, w: conv2d(
                x, w, stride=stride, padding=padding, dilation=dilation, groups=groups), x, w)
            results.append((y, *pull(nhwc(gy))))
    finally:
        threads.each = each
        threads.set_count(None)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True))
    (P, Q), per = want.shape[2:], R * S * C // groups
    fast = dtype == "float32" and (R, S) == (3, 3) and min(C, K) // groups >= cpu_dispatch.CHANNELS
    for got, to, terms in zip(results[0], wanted, (per, R * S * K // groups, N * P * Q),
                              strict=True):
        close(got, to, 100 * terms if fast else terms)  # ten times the error: winograd.py
    return max(chunks)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_partial_sums_are_pytorchs(name, dtype, rng):
    assert check_with_pytorch(SEVERAL[name], dtype, rng) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_random_geometries_of_several_chunks_are_pytorchs(seed):
    """Sizes at which every algorithm divides its work, most often with one filter in each group."""
    rng = np.random.default_rng(seed)
    groups, per, each = (
        int(rng.choice(a)) for a in ([1, 1, 2, 5, 16], [1, 2, 3, 16], [1, 1, 2, 8]))
    per = 1 if groups == 16 else per
    H, W = rng.permutation([int(rng.choice([1, 9, 40])), int(rng.integers(30, 120))]).tolist()
    R, S = (int(rng.integers(1, min(n, 7) + 1)) for n in (H, W))
    case = ((int(rng.integers(1, 9)), H, W, groups * per), (groups * each, R, S), groups,
            int(rng.integers(1, 4)), (int(rng.integers(R)), int(rng.integers(S))), 1)
    check_with_pytorch(case, str(rng.choice(["float32", "float64"])), rng)


@pytest.mark.parametrize("shape", [(9, 16, 16, 16, 24), (5, 12, 12, 2, 8), (5, 11, 9, 7, 5)])
def test_bits_do_not_depend_on_the_number_of_threads(shape, rng):
    N, H, W, C, K = shape
    x, w = (rng.standard_normal(s, "float32") for s in ((N, H, W, C), (K, 3, 3, C)))
    gy, shape, results = None, sizes(x, K, square(3, 1)), []
    try:
        for count in (1, 2, 3):
            threads.set_count(count)
            y, gx, gw = np.empty((N, H, W, K), "float32"), np.empty_like(x), np.empty_like(w)
            cpu_dispatch.forward(shape, x, w, None, y)
            gy = y.copy() if gy is None else gy
            cpu_dispatch.gradients(shape, x, w, gy, gx, gw)
            results.append((y, gx, gw))
    finally:
        threads.set_count(None)
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))
