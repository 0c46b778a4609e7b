"""reshape, flatten, transpose, slices: NumPy's own results, gradients the way back."""

import numpy as np
import pytest

from check import DTYPES, close, host, make
from gpuconv.autograd import Tensor
from gpuconv.gradients import gradcheck, vjp
from gpuconv.ops.shape.reshape import check_axes, flatten, getitem, reshape, transpose

KEYS = [
    pytest.param(1, id="int"),
    pytest.param(-1, id="negative-int"),
    pytest.param(slice(1, 3), id="slice"),
    pytest.param((slice(None), slice(None, None, -2)), id="steps-back"),
    pytest.param((..., 0), id="ellipsis"),
    pytest.param((1, ..., slice(1, None), 2), id="everything"),
    pytest.param((0, 1, 2, 3), id="one-element"),
    pytest.param(slice(2, 2), id="nothing"),
]
VIEWS = [  # function of a Tensor, the same of NumPy
    pytest.param(lambda t: t.reshape(4, -1), lambda a: a.reshape(4, -1), id="reshape"),
    pytest.param(lambda t: t.reshape((2, 60)), lambda a: a.reshape(2, 60), id="reshape-tuple"),
    pytest.param(lambda t: t.flatten(), lambda a: a.reshape(2, 60), id="flatten"),
    pytest.param(lambda t: t.flatten(-2), lambda a: a.reshape(2, 3, 20), id="flatten-from"),
    pytest.param(lambda t: t.transpose(0, 3, 1, 2), lambda a: a.transpose(0, 3, 1, 2), id="nchw"),
    pytest.param(lambda t: t.transpose((1, -1, 0, 2)), lambda a: a.transpose(1, -1, 0, 2),
                 id="transpose-tuple"),
    pytest.param(lambda t: t.transpose(), lambda a: a.T, id="reversed"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f, want", VIEWS)
def test_is_numpys(xp, rng, f, want, dtype):
    x = make(rng.standard_normal((2, 3, 4, 5)), dtype)
    y, pull = vjp(f, xp.asarray(x))
    close(y, np.ascontiguousarray(want(x)))
    gy = make(rng.standard_normal(y.shape), dtype)
    gx, = pull(xp.asarray(gy))
    back = np.empty_like(x)
    back.reshape(-1)[host(want(np.arange(x.size).reshape(x.shape))).ravel()] = gy.ravel()
    close(gx, back)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", KEYS)
def test_slices(xp, rng, key, dtype):
    x = make(rng.standard_normal((2, 3, 4, 5)), dtype)
    y, pull = vjp(lambda t: t[key], xp.asarray(x))
    close(y, np.array(x[key]))
    gy = make(rng.standard_normal(y.shape), dtype)
    gx, = pull(xp.asarray(gy))
    want = np.zeros_like(x)
    want[key] = gy
    close(gx, want)


def test_split_is_slices(xp):
    x = Tensor(xp.asarray(np.arange(6.0)), requires_grad=True)
    y = x[:3] * x[3:]
    y.backward(xp.ones(3))
    np.testing.assert_array_equal(host(x.grad), [3, 4, 5, 0, 1, 2])
    assert [host(v).item() for v in x] == [0, 1, 2, 3, 4, 5]  # iteration ends


def test_gradient_is_the_slope(rng):
    x = rng.standard_normal((2, 3, 4))
    gradcheck(lambda t: t.transpose(2, 0, 1).reshape(2, -1)[:, ::2].flatten(0), x)


@pytest.mark.parametrize("layout", [
    pytest.param(lambda x: x.transpose(2, 0, 1), id="transposed"),
    pytest.param(lambda x: x[:, ::-1, ::2], id="strided"),
])
def test_views_and_broadcast_gradients(xp, rng, layout):
    a = rng.standard_normal((4, 4, 4)).astype("float32")
    x = Tensor(layout(xp.asarray(a)), requires_grad=True)
    y = x.flatten(0)
    close(y, layout(a).reshape(-1))
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    close(x.grad, np.ones(x.shape, "float32"))


def test_empty_batch(xp):
    x = Tensor(xp.ones((0, 4, 4, 3)), requires_grad=True)
    y = flatten(x)
    assert y.shape == (0, 48)
    y.transpose().backward(xp.ones((48, 0)))
    assert x.grad.shape == x.shape


def test_saves_no_array(xp):
    x = Tensor(xp.ones((2, 3, 4)), requires_grad=True)
    for y in (x.reshape(6, 4), x.flatten(), x.transpose(), x[0]):
        assert not any(hasattr(v, "dtype") for v in vars(y.creator).values())
    assert type(reshape(x.data, 24)) is type(x.data)


@pytest.mark.parametrize("f, error, message", [
    (lambda x: reshape(x, 5), ValueError, r"x has shape \(2, 3\), 6 elements, wanted \(5,\)"),
    (lambda x: reshape(x, 2.0, 3), TypeError, "reshape: a size is 2.0, wanted a whole number"),
    (lambda x: flatten(x, 2), ValueError, r"flatten: axis 2 of shape \(2, 3\): wanted .* -2 to 1"),
    (lambda x: transpose(x, 0, 0), ValueError, r"axes \(0, 0\) are not each axis of shape \(2"),
    (lambda x: transpose(x, 0), ValueError, r"axes \(0,\) are not each axis"),
    (lambda x: transpose(x, 0, -3), ValueError, r"axes \(0, -3\) are not each axis"),
    (lambda x: getitem(x, [0]), TypeError, "getitem: list in the key, wanted ints, slices and"),
    (lambda x: getitem(x, None), TypeError, "getitem: NoneType in the key"),
    (lambda x: getitem(x, True), TypeError, "getitem: bool in the key"),
    (lambda x: getitem(x, np.array([0, 1])), TypeError, "getitem: ndarray in the key"),
    (lambda x: getitem(x, 2), IndexError, "index 2 is out of bounds"),
    (lambda x: flatten(x.astype(int)), TypeError, "flatten: x is int64, wanted float32"),
    (lambda x: check_axes("sum", (0, -2), x.shape), ValueError, r"sum: axis \(0, -2\) of shape"),
])
def test_refuses(f, error, message):
    with pytest.raises(error, match=message):
        f(np.ones((2, 3)))
