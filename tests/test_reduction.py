"""sum, mean, max: over any axes, in the accumulator dtype, ties and NaN."""

import numpy as np
import pytest

from check import DTYPES, close, host, make
from gpuconv.autograd import Tensor, no_grad
from gpuconv.gradients import gradcheck, vjp
from gpuconv.ops.reduce.reduction import max_, mean, sum_

FUNCTIONS = {"sum": sum_, "mean": mean, "max": max_}
AXES = [
    pytest.param(None, id="all"),
    pytest.param(0, id="first"),
    pytest.param(-1, id="last"),
    pytest.param((1, 2), id="image"),
    pytest.param((3, 0), id="unsorted"),
    pytest.param((), id="none"),
]


def by_torch(name, x, gy, axis, keepdims):
    """y and gx in float64; max over a tuple by flattening its axes in scan order."""
    torch = pytest.importorskip("torch")
    t = torch.tensor(x.astype(np.float64), requires_grad=True)
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(a % x.ndim for a in axes))
    if name == "max":
        kept = [a for a in range(x.ndim) if a not in axes]
        rows = t.permute(*kept, *axes).reshape(*(x.shape[a] for a in kept), -1)
        where = torch.tensor(np.argmax(rows.detach().numpy(), -1))
        y = rows.gather(-1, where[..., None])[..., 0]
    elif axes:
        y = getattr(t, name)(dim=axes)
    else:
        y = t * 1
    y.backward(torch.tensor(np.asarray(gy, np.float64)).reshape(y.shape))
    y = y.detach().numpy()
    if keepdims:
        y = y.reshape([1 if a in axes else n for a, n in enumerate(x.shape)])
    return y, t.grad.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_pytorchs(xp, rng, name, axis, keepdims, dtype):
    x = make(rng.integers(-4, 5, (2, 3, 4, 5)), dtype)  # many ties
    y, pull = vjp(lambda t: getattr(t, name)(axis, keepdims=keepdims), xp.asarray(x))
    gy = make(rng.standard_normal(y.shape), dtype)
    want_y, want_gx = by_torch(name, x, gy, axis, keepdims)
    close(y, make(want_y, dtype), terms=120)
    close(pull(xp.asarray(gy))[0], make(want_gx, dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_slope(rng, name):
    x = rng.permutation(24).reshape(2, 3, 4) * 0.1  # no near ties
    gradcheck(lambda t: FUNCTIONS[name](t * t, (0, 2)), x)


def test_a_tie_gives_its_gradient_to_the_first(xp):
    _, pull = vjp(max_, xp.asarray(np.float32([[1, 3], [3, 3]])))
    assert host(pull()[0]).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("row, want", [
    pytest.param([9, np.nan, np.inf, np.nan], [0, 1, 0, 0], id="first-nan"),
    pytest.param([np.nan] * 4, [1, 0, 0, 0], id="all-nan"),
    pytest.param([-np.inf] * 4, [1, 0, 0, 0], id="all-minus-inf"),
])
def test_nan_wins(xp, row, want):
    x = xp.asarray(np.float32(row))
    y, pull = vjp(max_, x)
    np.testing.assert_array_equal(host(y), np.max(row))
    np.testing.assert_array_equal(host(max_(x)), np.max(row))
    assert host(pull(xp.ones((), "float32"))[0]).tolist() == want


def test_an_infinite_gradient_stays_where_the_maximum_is(xp):
    _, pull = vjp(max_, xp.asarray(np.float32([1, 2])))
    assert host(pull(xp.full((), np.inf, "float32"))[0]).tolist() == [0, np.inf]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_adds_in_float32(xp, dtype):
    x = xp.asarray(make(np.ones(4096), dtype))
    assert float(sum_(x)) == 4096 and float(mean(x)) == 1  # float16 sums stall at 2048
    assert sum_(x).dtype == x.dtype


def test_views_and_broadcast_gradients(xp, rng):
    a = rng.standard_normal((4, 6, 5)).astype("float32")

    def layout(v):
        return v.transpose(2, 0, 1)[:, ::-1, ::2]

    for f in FUNCTIONS.values():
        x = Tensor(layout(xp.asarray(a)), requires_grad=True)
        same = Tensor(xp.asarray(layout(a).copy()), requires_grad=True)
        for t in (x, same):
            y = f(t, 1)
            y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
        close(x.grad, same.grad)


def test_empty(xp):
    x = Tensor(xp.ones((0, 3), "float32"), requires_grad=True)
    y = x.sum(0)
    assert host(y).tolist() == [0, 0, 0]
    y.backward(xp.ones(3, "float32"))
    assert x.grad.shape == (0, 3)
    assert np.isnan(host(x.mean())).all()
    assert max_(x, 1).shape == (0,)
    with pytest.raises(ValueError, match=r"max: no elements along axis 0 of shape \(0, 3\)"):
        max_(x, 0)


def test_saves(xp):
    x = Tensor(xp.ones((4, 5)), requires_grad=True)
    for f in (sum_, mean):
        assert not any(hasattr(v, "dtype") for v in vars(f(x).creator).values())
    assert max_(x, 1).creator.first.size == 4
    with no_grad():
        assert max_(x, 1).creator is None
    assert type(sum_(x.data, 0)) is type(x.data)


@pytest.mark.parametrize("axis, error, message", [
    (2, ValueError, r"sum: axis 2 of shape \(2, 3\): wanted different axes from -2 to 1"),
    ((0, 0), ValueError, r"sum: axis \(0, 0\) of shape \(2, 3\): wanted different"),
    (1.0, TypeError, "axis is 1.0, wanted a whole number"),
])
def test_refuses(axis, error, message):
    with pytest.raises(error, match=message):
        sum_(np.ones((2, 3)), axis)
