"""softmax and log_softmax: PyTorch's values and gradients, huge and infinite logits."""

import numpy as np
import pytest

from check import DTYPES, close, host, make
from gpuconv.autograd import Tensor, no_grad
from gpuconv.gradients import gradcheck, vjp
from gpuconv.ops.loss.softmax import log_softmax, softmax

FUNCTIONS = {"softmax": softmax, "log_softmax": log_softmax}


def by_torch(name, x, axis, gy):
    torch = pytest.importorskip("torch")
    t = torch.tensor(x.astype(np.float64), requires_grad=True)
    y = getattr(torch, name)(t, axis)
    y.backward(torch.tensor(gy.astype(np.float64)))
    return y.detach().numpy(), t.grad.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axis", [((4, 10), -1), ((2, 3, 5), 1), ((0, 3), -1), ((7,), 0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_pytorchs(xp, rng, name, shape, axis, dtype):
    x = make(4 * rng.standard_normal(shape), dtype)
    y, pull = vjp(lambda t: FUNCTIONS[name](t, axis), xp.asarray(x))
    gy = make(rng.standard_normal(shape), dtype)
    want_y, want_gx = by_torch(name, x, axis, gy)
    close(y, make(want_y, dtype), terms=10)
    close(pull(xp.asarray(gy))[0], make(want_gx, dtype), terms=10,
          partial=np.abs(gy).astype(float).max(initial=0))  # gy, less what is nearly the same


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_slope(rng, name):
    gradcheck(FUNCTIONS[name], rng.standard_normal((3, 5)))


@pytest.mark.parametrize("row", [
    pytest.param([1e30, -1e30, 0], id="huge"),
    pytest.param([-np.inf, 0, 1], id="minus-inf"),
    pytest.param([np.inf, 0, 1], id="inf"),
    pytest.param([-np.inf] * 3, id="all-minus-inf"),
    pytest.param([np.nan, 0, 1], id="nan"),
])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(xp, name, row):
    x = np.float32([row])
    want, _ = by_torch(name, x, 1, np.ones_like(x))
    close(FUNCTIONS[name](xp.asarray(x)), want.astype("float32"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_views_and_broadcast_gradients(xp, rng, name):
    a = rng.standard_normal((6, 8)).astype("float32")
    x = Tensor(xp.asarray(a).transpose(1, 0)[::-2], requires_grad=True)
    y = FUNCTIONS[name](x, 0)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    want_y, want_gx = by_torch(name, a.T[::-2].copy(), 0, np.ones(y.shape))
    close(y, want_y.astype("float32"), terms=4)
    np.testing.assert_allclose(host(x.grad), want_gx, atol=1e-5)


def test_what_is_saved(xp):
    x = Tensor(xp.ones((4, 8), "float32"), requires_grad=True)
    for f in FUNCTIONS.values():
        y = f(x)
        assert y.creator.y.nbytes == 128
        with no_grad():
            assert f(x).creator is None
        assert type(f(x.data)) is type(x.data)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_refuses(name):
    with pytest.raises(ValueError, match=rf"{name}: axis .* of shape \(2, 0\)"):
        FUNCTIONS[name](np.ones((2, 0)), 2)
    with pytest.raises(ValueError, match=rf"{name}: no elements along axis -1 of shape \(2, 0\)"):
        FUNCTIONS[name](np.ones((2, 0)))
    with pytest.raises(TypeError, match=f"{name}: x is int64"):
        FUNCTIONS[name](np.ones((2, 3), int))
