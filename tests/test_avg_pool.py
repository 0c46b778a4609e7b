"""avg_pool2d: definition, PyTorch, gradient, CPU and CUDA alike, and the divisors."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from check import DTYPES, close, defined, grad_check, host, make, nchw, nhwc, shifted
from gpuconv import kernels
from gpuconv.autograd import Tensor
from gpuconv.ops.pool.avg_pool import avg_pool2d

GEOMETRIES = [  # (H, W), (size, stride, padding, ceil_mode, count_include_pad)
    pytest.param((8, 8), (2,), id="halving"),
    pytest.param((9, 7), (3, 2, 1), id="overlapping-padded"),
    pytest.param((9, 7), (3, 2, 1, False, False), id="padding-does-not-count"),
    pytest.param((7, 9), ((2, 3), (3, 1), (1, 0)), id="every-axis-different"),
    pytest.param((6, 9), ((2, 3), (3, 1), ((1, 0), (0, 1)), False, False),
                 id="cropped-padding-does-not-count"),
    pytest.param((7, 9), (3, (2, 3), ((0, 1), (1, 0)), True), id="one-sided-padding-ceil"),
    pytest.param((6, 6), (3, 2, 1, True, False), id="ceil-padding-does-not-count"),
]
ON_THE_CPU = [
    pytest.param((5, 5), (2, 3), id="gaps-between-windows"),
    pytest.param((5, 6), ((5, 6), 1), id="one-window"),
    pytest.param((7, 7), (2,), id="cropped"),
    pytest.param((7, 7), (2, 2, 0, True), id="ceil-hangs-over"),
    pytest.param((1, 1), (2, 2, 0, True), id="ceil-larger-than-the-image"),
]


def definition(x, gy, *options):
    """y and gx."""
    return [a.astype(x.dtype) for a in defined("avg_pool2d", gy, x, *options)]


def run(xp, x, *options, gy=None):
    """y, gx and gy on the host; gy is all ones if not given."""
    x = Tensor(xp.asarray(x), requires_grad=True)
    y = avg_pool2d(x, *options)
    gy = np.ones(y.shape, y.dtype) if gy is None else gy(y.shape).astype(y.dtype)
    y.backward(xp.asarray(gy))
    return host(y.data), host(x.grad), gy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image, options", GEOMETRIES)
def test_channels_in_packs_of_16_bytes(cp, rng, image, options, dtype):
    x = make(rng.standard_normal((1, *image, 8)), dtype)
    y, gx, gy = run(cp, x, *options, gy=rng.standard_normal)
    want_y, want_gx = definition(x, gy, *options)
    close(y, want_y, terms=9)
    close(gx, want_gx, terms=9)


@pytest.mark.parametrize("options", [(2,), (3, 2, 1)])
def test_arrays_that_begin_anywhere(cp, rng, options):
    a = rng.standard_normal((2, 8, 8, 8)).astype("float32")
    x = Tensor(shifted(cp, a), requires_grad=True)
    y = avg_pool2d(x, *options)
    gy = rng.standard_normal(y.shape).astype("float32")
    y.backward(shifted(cp, gy))
    want_y, want_gx = definition(a, gy, *options)
    close(y.data, want_y, terms=9)
    close(x.grad, want_gx, terms=9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image, options", GEOMETRIES)
def test_is_the_definition(xp, rng, image, options, dtype):
    x = make(rng.standard_normal((2, *image, 3)), dtype)
    y, gx, gy = run(xp, x, *options, gy=rng.standard_normal)
    want_y, want_gx = definition(x, gy, *options)
    close(y, want_y, terms=9)
    close(gx, want_gx, terms=9)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("image, options", ON_THE_CPU)
def test_is_the_definition_on_the_cpu(rng, image, options, dtype):
    x = make(rng.standard_normal((2, *image, 3)), dtype)
    y, gx, gy = run(np, x, *options, gy=rng.standard_normal)
    want_y, want_gx = definition(x, gy, *options)
    close(y, want_y, terms=30)
    close(gx, want_gx, terms=9)


@pytest.mark.parametrize("image, options", GEOMETRIES + ON_THE_CPU)
def test_gradient_is_the_slope(rng, image, options):
    grad_check(lambda t: avg_pool2d(t, *options), rng.standard_normal((2, *image, 3)), rng=rng)


lengths, paddings = st.integers(1, 9), st.integers(0, 2)


@hypothesis.settings(max_examples=150, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.tuples(lengths, lengths), st.tuples(*[st.integers(1, 4)] * 2),
                  st.tuples(*[st.integers(1, 4)] * 2), st.tuples(paddings, paddings),
                  st.booleans(), st.booleans())
def test_as_pytorch(image, size, stride, padding, ceil_mode, count_include_pad):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *image, 2))
    theirs = torch.from_numpy(nchw(x)).requires_grad_()
    options = size, stride, padding, ceil_mode, count_include_pad
    try:
        want = torch.nn.functional.avg_pool2d(theirs, *options)
    except RuntimeError:  # what they refuse, we refuse
        with pytest.raises(ValueError, match="does not fit|more than half"):
            avg_pool2d(x, *options)
        return
    y, gx, gy = run(np, x, *options, gy=rng.standard_normal)
    want.backward(torch.from_numpy(nchw(gy)))
    close(y, nhwc(want), terms=16)
    close(gx, nhwc(theirs.grad), terms=16)


def test_the_overhang_never_counts_and_padding_as_asked(xp):
    """PyTorch's values: ones, n 6, k 3, s 2, p 1, ceil_mode."""
    x = np.ones((1, 6, 1, 1))
    counted, _, _ = run(xp, x, (3, 1), (2, 1), (1, 0), True, True)
    np.testing.assert_allclose(counted.ravel(), [2 / 3, 1, 1, 1 / 2], rtol=1e-15)
    inside, _, _ = run(xp, x, (3, 1), (2, 1), (1, 0), True, False)
    assert inside.ravel().tolist() == [1, 1, 1, 1]


def test_a_large_half_precision_window_adds_in_float32(xp):
    x = np.ones((1, 64, 64, 1), "float16")
    y, gx, _ = run(xp, x, 64)  # float16 sums of ones stall at 2048
    assert y.item() == 1 and (gx == np.float16(1 / 4096)).all()


def test_half_precision_gradients_add_in_float32(xp):
    gy = np.array([1, 1, 1, 1, 2048, 1, 1, 1, 1.0]) * 9  # shares of 1 and 2048: 2056 in all
    _, gx, _ = run(xp, np.zeros((1, 5, 5, 1), "float16"), 3, 1, 0, gy=gy.reshape)
    assert gx[0, 2, 2, 0] == 2056


def test_nan_and_inf_stay_in_their_windows(xp):
    x = np.ones((1, 4, 4, 1), "float32")
    x[0, 0, 0], x[0, 3, 3] = np.nan, np.inf
    y, gx, _ = run(xp, x, 2, gy=lambda shape: np.float32([np.inf, 4, 4, np.nan]).reshape(shape))
    close(y, np.float32([[np.nan, 1], [1, np.inf]])[None, :, :, None])
    close(gx[0, ::2, ::2, 0], np.float32([[np.inf, 1], [1, np.nan]]))


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)  # 64-bit offsets; threads that take many turns
    x = rng.standard_normal((2, 9, 7, 33)).astype("float32")
    y, gx, gy = run(cp, x, 3, 2, 1, gy=rng.standard_normal)
    want_y, want_gx = definition(x, gy, 3, 2, 1)
    close(y, want_y, terms=9)
    close(gx, want_gx, terms=4)


def test_many_chunks_are_as_one(rng, monkeypatch):
    x = rng.standard_normal((9, 8, 8, 3)).astype("float32")
    y, gx, gy = run(np, x, 3, 2, 1, gy=rng.standard_normal)
    for place in ("avg_pool", "cpu_windows"):
        monkeypatch.setattr(f"gpuconv.ops.pool.{place}.POOL_WORKSPACE", 1)
    for one, many in zip((y, gx, gy), run(np, x, 3, 2, 1, gy=lambda _: gy), strict=True):
        assert one.tobytes() == many.tobytes()


@pytest.mark.parametrize("options", [(2,), (3, 2, 1)])
@pytest.mark.parametrize("view", [
    pytest.param(lambda x: x.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda x: x[:, ::-1, ::2], id="strided"),
])
def test_views_and_broadcast_gradients(xp, rng, view, options):
    a = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    x = Tensor(view(xp.asarray(a)), requires_grad=True)
    y = avg_pool2d(x, *options)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    want_y, want_gx = definition(view(a), np.ones(y.shape), *options)
    close(y.data, want_y, terms=9)
    close(x.grad, want_gx, terms=9)


def test_a_broadcast_image_and_a_strided_gradient(xp, rng):
    a, g = rng.standard_normal((1, 6, 6, 1)), rng.standard_normal((2, 6, 3, 3))
    x = Tensor(xp.broadcast_to(xp.asarray(a), (2, 6, 6, 3)), requires_grad=True)
    y = avg_pool2d(x, 2)
    y.backward(xp.asarray(g)[:, ::-2])
    want_y, want_gx = definition(np.broadcast_to(a, x.shape), g[:, ::-2], 2)
    close(y.data, want_y, terms=4)
    close(x.grad, want_gx)


def test_saves_no_array(xp):
    y = avg_pool2d(Tensor(xp.zeros((4, 16, 16, 8), "float32"), requires_grad=True), 2)
    assert not any(hasattr(v, "nbytes") for v in vars(y.creator).values())
    a = xp.ones((1, 2, 2, 1), "float32")
    assert type(avg_pool2d(a, 2)) is type(a)


def test_empty_batch(xp):
    y, gx, _ = run(xp, np.ones((0, 4, 4, 3), "float32"), 2)
    assert y.shape == (0, 2, 2, 3) and gx.shape == (0, 4, 4, 3)


@pytest.mark.parametrize("shape, dtype, options, error, message", [
    ((1, 4, 4, 1), float, (2, 2, 2), ValueError, r"avg_pool2d: padding .* is more than half"),
    ((1, 4, 4, 1), float, (16,), ValueError, r"avg_pool2d: window \(16, 16\).* does not fit \(4, "),
    ((1, 4, 4, 1), float, (2, 0), ValueError, r"avg_pool2d: .* stride \(0, 0\), .* at least 1"),
    ((4, 4, 1), float, (2,), ValueError, r"x has shape \(4, 4, 1\), wanted \(N, H, W, C\)"),
    ((1, 4, 4, 1), int, (2,), TypeError, "x is int64, wanted float32"),
])
def test_refuses(shape, dtype, options, error, message):
    with pytest.raises(error, match=message):
        avg_pool2d(Tensor(np.zeros(shape, dtype)), *options)
