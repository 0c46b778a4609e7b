"""im2col and col2im: definition, each the adjoint of the other, CPU and CUDA alike, the edges."""

import numpy as np
import pytest

from check import DTYPES, close, defined, grad_check, host, make, shifted
from gpuconv import kernels, reference
from gpuconv.autograd import Tensor
from gpuconv.backend import float_dtype
from gpuconv.ops.conv.im2col import col2im, im2col

GEOMETRIES = [  # (H, W), size, stride, padding, dilation
    pytest.param((6, 6), 3, 1, 1, 1, id="same"),
    pytest.param((7, 9), (2, 3), (3, 1), ((1, 0), (2, 1)), 1, id="every-axis-different"),
    pytest.param((9, 8), 3, (1, 2), 2, (2, 3), id="dilated"),
    pytest.param((5, 5), 2, 3, 0, 1, id="gaps-between-windows"),
    pytest.param((4, 5), 1, 1, 0, 1, id="1x1"),
    pytest.param((5, 6), (5, 6), 1, 0, 1, id="one-window"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image, size, stride, padding, dilation", GEOMETRIES)
def test_cuda_as_numpy_in_packs(cp, rng, image, size, stride, padding, dilation, dtype):
    window = size, stride, padding, dilation
    x = make(rng.standard_normal((2, *image, 8)), dtype)
    want = im2col(x, *window)
    assert host(im2col(cp.asarray(x), *window)).tobytes() == want.tobytes()
    g = make(rng.standard_normal(want.shape), dtype)
    close(col2im(cp.asarray(g), x.shape, *window), col2im(g, x.shape, *window), terms=30)


def test_cuda_from_any_address(cp, rng):
    x = rng.standard_normal((2, 6, 6, 16)).astype("float32")
    want = im2col(x, 3, 1, 1)
    assert host(im2col(shifted(cp, x), 3, 1, 1)).tobytes() == want.tobytes()
    close(col2im(shifted(cp, want), x.shape, 3, 1, 1), col2im(want, x.shape, 3, 1, 1), terms=9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image, size, stride, padding, dilation", GEOMETRIES)
def test_is_the_definition(xp, rng, image, size, stride, padding, dilation, dtype):
    dtype = float_dtype(dtype)
    x = rng.standard_normal((2, *image, 3)).astype(dtype)
    col = host(im2col(xp.asarray(x), size, stride, padding, dilation))
    want = reference.im2col(x, size, stride, padding, dilation)
    assert col.dtype == want.dtype and col.tobytes() == want.tobytes()  # nothing rounds

    g = rng.standard_normal(col.shape).astype(dtype)
    got = col2im(xp.asarray(g), x.shape, size, stride, padding, dilation)
    sums, _ = defined("col2im", x, g, x.shape, size, stride, padding, dilation)
    close(got, sums.astype(dtype), terms=9)


@pytest.mark.parametrize("image, size, stride, padding, dilation", GEOMETRIES[:3])
def test_each_is_the_gradient_of_the_other(xp, rng, image, size, stride, padding, dilation):
    a = rng.standard_normal((2, *image, 3))
    x = Tensor(xp.asarray(a), requires_grad=True)
    col = im2col(x, size, stride, padding, dilation)
    g = xp.asarray(rng.standard_normal(col.shape))
    col.backward(g)
    close(x.grad, host(col2im(g, a.shape, size, stride, padding, dilation)))
    c = Tensor(g, requires_grad=True)
    back = col2im(c, a.shape, size, stride, padding, dilation)
    back.backward(x.data)
    close(c.grad, host(col.data))
    grad_check(lambda t: im2col(t, size, stride, padding, dilation), a, rng=rng)
    grad_check(lambda t: col2im(t, a.shape, size, stride, padding, dilation), host(g), rng=rng)


def test_is_what_pytorch_unfolds(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, 8, 9, 3))
    want = torch.nn.functional.unfold(torch.from_numpy(x).permute(0, 3, 1, 2), (3, 2), (1, 2),
                                      (2, 1), (2, 3))  # (N, C*R*S, P*Q)
    col = im2col(x, (3, 2), (2, 3), (2, 1), (1, 2))
    N, P, Q, _ = col.shape
    want = want.numpy().reshape(N, 3, 6, P * Q).transpose(0, 3, 2, 1)  # (N, P*Q, R*S, C)
    np.testing.assert_array_equal(col.reshape(N, P * Q, 6, 3), want)


def test_16_bit_sums_are_taken_in_float32(xp):
    col = np.zeros((1, 3, 3, 9), "float16")
    col[..., :] = 1
    col[0, 1, 1, 4] = 2048  # a float16 that has reached 2048 ignores + 1
    x = host(col2im(xp.asarray(col), (1, 5, 5, 1), 3))
    assert x[0, 2, 2, 0] == 2056


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)  # 64-bit offsets; threads that take many turns
    x = rng.standard_normal((3, 7, 6, 5)).astype("float32")
    col = im2col(cp.asarray(x), 3, 1, 1)
    want = reference.im2col(x, 3, 1, 1)
    close(col, want)
    close(col2im(col, x.shape, 3, 1, 1), reference.col2im(want, x.shape, 3, 1, 1), terms=9)


@pytest.mark.parametrize("view", [
    pytest.param(lambda x: x.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda x: x[:, ::-1, ::2], id="negative-stride"),
    pytest.param(lambda x: x[..., ::2], id="every-other-channel"),
])
def test_views(xp, rng, view):
    x = rng.standard_normal((2, 6, 6, 4)).astype("float32")
    for size, padding in ((3, 1), (2, 0), (1, 0)):
        want = reference.im2col(view(x), size, 1, padding)
        close(im2col(view(xp.asarray(x)), size, 1, padding), want)


def test_empty_batch(xp):
    col = im2col(xp.ones((0, 4, 4, 3), "float32"), 3)
    assert col.shape == (0, 2, 2, 27)
    assert col2im(col, (0, 4, 4, 3), 3).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("call, error, message", [
    (lambda x: im2col(x[0], 2), ValueError, r"x has shape \(4, 4, 2\), wanted \(N, H, W, C\)"),
    (lambda x: im2col(x, 5), ValueError, r"window \(5, 5\).* does not fit \(4, 4\)"),
    (lambda x: im2col(x, 2, 0), ValueError, r"stride \(0, 0\).*: at least 1"),
    (lambda x: im2col(x.astype(int), 2), TypeError, "im2col: x is int64, wanted float32"),
    (lambda x: im2col(x, (2, 2, 2)), ValueError, r"\(2, 2, 2\) has 3 numbers"),
    (lambda x: im2col(x, 2.5), TypeError, "2.5: wanted a whole number"),
    (lambda x: col2im(x, (1, 5, 5, 2), 2), ValueError,
     r"col has shape \(1, 4, 4, 2\), images \(1, 5, 5, 2\) .* give \(1, 4, 4, 8\)"),
    (lambda x: col2im(x, (1, 5, 5), 2), ValueError, r"input_shape is \(1, 5, 5\), wanted 4 sizes"),
])
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((1, 4, 4, 2)))
