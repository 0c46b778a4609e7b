"""relu, gelu, sigmoid, tanh: PyTorch's values and slopes, special values, what is kept."""

import subprocess
import sys

import numpy as np
import pytest

from check import DTYPES, close, host, make
from gpuconv import kernels, threads
from gpuconv.autograd import Tensor, no_grad
from gpuconv.gradients import gradcheck, vjp
from gpuconv.ops.elementwise.activation import gelu, inside, relu, sigmoid, tanh

FUNCTIONS = {"relu": relu, "gelu": gelu, "sigmoid": sigmoid, "tanh": tanh}
SHAPES = [
    pytest.param((2, 5, 7, 3), id="odd"),
    pytest.param((3, 32), id="whole-packs"),
    pytest.param((30, 80), id="several-packs-a-thread"),
    pytest.param((0, 4, 4, 3), id="empty-batch"),
]


def by_torch(name, x, gy=None):
    """y and gx in float64; the slope of sigmoid and tanh from the rounded y that is kept."""
    torch = pytest.importorskip("torch")
    t = torch.tensor(x.astype(np.float64), requires_grad=True)
    f = getattr(torch, name, None) or getattr(torch.nn.functional, name)
    y = f(t)
    if gy is None:
        return y.detach().numpy()
    gy = torch.tensor(gy.astype(np.float64))
    y.backward(gy)
    rounded = torch.tensor(y.detach().numpy().astype(x.dtype).astype(np.float64))
    if name == "sigmoid":
        return y.detach().numpy(), (gy * rounded * (1 - rounded)).numpy()
    if name == "tanh":
        return y.detach().numpy(), (gy * (1 - rounded**2)).numpy()
    return y.detach().numpy(), t.grad.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_pytorchs(xp, rng, name, shape, dtype):
    x = make(3 * rng.standard_normal(shape), dtype)
    y, pull = vjp(FUNCTIONS[name], xp.asarray(x))
    gy = make(rng.standard_normal(shape), dtype)
    gx, = pull(xp.asarray(gy))
    want_y, want_gx = by_torch(name, x, gy)
    close(y, make(want_y, dtype))
    close(gx, make(want_gx, dtype), terms=4)
    close(FUNCTIONS[name](xp.asarray(x)), y)  # no gradient asked for: nothing else


@pytest.mark.parametrize("name", FUNCTIONS)
def test_0_d(xp, name):
    x, gy = np.array(0.75), np.array(2.0)
    y, pull = vjp(FUNCTIONS[name], xp.asarray(x))
    for got, want in zip((y, pull(xp.asarray(gy))[0]), by_torch(name, x, gy), strict=True):
        close(got, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_slope(rng, name):
    x = rng.standard_normal((4, 5))
    gradcheck(FUNCTIONS[name], x + np.sign(x) * 0.01)  # away from the kink


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_at_the_edges(xp, dtype):
    """Slope 0 at 0 and -0, NaN stays and passes its gradient, inf * 0 is 0; PyTorch agrees."""
    x = np.tile([0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1, -1], 5)
    gy = np.tile([np.inf, np.inf, 1, 2, 3, np.inf, np.nan, np.nan], 5)
    y, pull = vjp(relu, xp.asarray(make(x, dtype)))
    np.testing.assert_array_equal(host(y).astype(float),
                                  np.tile([0, 0, np.nan, np.nan, np.inf, 0, 1, 0], 5))
    gx, = pull(xp.asarray(make(gy, dtype)))
    np.testing.assert_array_equal(host(gx).astype(float), np.tile([0, 0, 1, 2, 3, 0, np.nan, 0], 5))
    torch = pytest.importorskip("torch")
    t = torch.tensor(x, requires_grad=True)
    torch.relu(t).backward(torch.tensor(gy))
    np.testing.assert_array_equal(t.grad, host(gx).astype(float))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gelu", "sigmoid", "tanh"])
def test_special_values(xp, name, dtype):
    x = make([-np.inf, -200, -30, -9, 0, 9, 30, 200, np.inf, np.nan], dtype)
    y = FUNCTIONS[name](xp.asarray(x))
    close(y, make(by_torch(name, x), dtype))  # gelu(-inf) is NaN, in PyTorch too


def test_gelu_keeps_its_digits_far_below_zero(xp):
    """x * (1 + erf(x / sqrt 2)) / 2 in float32 has none left at -5.5."""
    from scipy.special import erfc
    x = np.linspace(-9, -4, 11)
    np.testing.assert_allclose(host(gelu(xp.asarray(x.astype("float32")))),
                               x / 2 * erfc(-x / np.sqrt(2)), rtol=1e-5)


@pytest.mark.parametrize("layout", [
    pytest.param(lambda x: x.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda x: x[:, ::-1, ::2], id="strided"),
    pytest.param(lambda x: x.reshape(-1)[1:], id="not-aligned"),
])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_views_and_broadcast_gradients(xp, rng, name, layout):
    a = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    x = Tensor(layout(xp.asarray(a)), requires_grad=True)
    y = FUNCTIONS[name](x)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    want_y, want_gx = by_torch(name, layout(a), np.ones(x.shape))
    close(y, want_y.astype("float32"))
    close(x.grad, want_gx.astype("float32"), terms=4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gradient_that_starts_anywhere_in_memory(xp, rng, name):
    x, gy = rng.standard_normal((2, 64)).astype("float32")
    for start in (1, 2, 4):
        y, pull = vjp(FUNCTIONS[name], xp.asarray(x[start:].copy()))
        gx, = pull(xp.asarray(gy)[start:])
        close(gx, by_torch(name, x[start:], gy[start:])[1].astype("float32"), terms=4)


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)  # 64-bit offsets; threads that take many turns
    x = rng.standard_normal((2, 9, 7, 33)).astype("float32")
    gy = rng.standard_normal(x.shape).astype("float32")
    for name, f in FUNCTIONS.items():
        y, pull = vjp(f, cp.asarray(x))
        want_y, want_gx = by_torch(name, x, gy)
        close(y, want_y.astype("float32"))
        close(pull(cp.asarray(gy))[0], want_gx.astype("float32"), terms=4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_chunks_do_not_change_the_result(rng, monkeypatch, name):
    x, gy = rng.standard_normal((2, 3, 101)).astype("float32")
    f = FUNCTIONS[name]
    y, pull = vjp(f, x)
    gx, = pull(gy)
    monkeypatch.setattr(threads, "chunks", lambda n, _: [
        slice(i, min(i + 64, n)) for i in range(0, n, 64)])
    y2, pull = vjp(f, x)
    close(y2, y)  # a vector loop may end at another element
    close(pull(gy)[0], gx)


def test_what_is_saved():
    x = Tensor(np.ones((4, 8), "float32"), requires_grad=True)
    assert relu(x).creator.positive.nbytes == 4  # one bit per element
    assert gelu(x).creator.slope.nbytes == 128
    for f in (sigmoid, tanh):
        y = f(x)
        assert y.creator.saved is y.data  # no memory of its own
    for f in FUNCTIONS.values():
        assert not any(v is x.data for v in vars(f(x).creator).values())
        with no_grad():
            assert f(x).creator is None


def test_what_is_saved_on_the_gpu(cp):
    x = Tensor(cp.ones((4, 8), "float32"), requires_grad=True)
    for name, f in FUNCTIONS.items():
        y = f(x)
        assert y.creator.saved is (x.data if name == "gelu" else y.data)
        assert type(f(x.data)) is type(x.data)


def test_importing_loads_no_scipy():
    code = "import sys, gpuconv.ops.elementwise.activation; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=kernels.HERE.parent)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_refuses(name):
    with pytest.raises(TypeError, match=f"{name}: x is int64, wanted float32"):
        FUNCTIONS[name](np.ones(3, int))


def test_what_was_inside_an_op_takes_gradients_back(cp):
    y, gy = cp.asarray(np.float32([0, 2])), cp.asarray(np.float32([3, 5]))
    relu = inside("relu", y, (False, True))
    assert relu.saved is y
    assert host(relu.backward_gpu(gy)[0]).tolist() == [0, 5]
    assert inside("relu", y, (False, False)) is inside("gelu", y, (True,)) is None
