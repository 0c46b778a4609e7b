"""linear: PyTorch's, in any number of leading axes, rounded once."""

import numpy as np
import pytest

from check import DTYPES, FUSED, close, host, make
from gpuconv.autograd import Tensor, no_grad
from gpuconv.gradients import gradcheck, vjp
from gpuconv.ops.elementwise import activated
from gpuconv.ops.matmul.linear import linear

SHAPES = [  # x, K
    pytest.param((5, 7), 3, id="batch"),
    pytest.param((2, 3, 8), 4, id="more-axes"),
    pytest.param((6,), 2, id="vector"),
    pytest.param((4, 1), 1, id="ones"),
    pytest.param((0, 7), 3, id="empty-batch"),
]


def by_torch(gy, *arrays):
    torch = pytest.importorskip("torch")
    ts = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
    y = torch.nn.functional.linear(*ts)
    y.backward(torch.tensor(gy.astype(np.float64)))
    return y.detach().numpy(), *(t.grad.numpy() for t in ts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape, K", SHAPES)
def test_is_pytorchs(xp, rng, shape, K, bias, dtype):
    arrays = [make(rng.standard_normal(s), dtype) for s in (shape, (K, shape[-1]), (K,))][:2 + bias]
    y, pull = vjp(linear, *map(xp.asarray, arrays))
    gy = make(rng.standard_normal(y.shape), dtype)
    want = by_torch(gy, *arrays)
    for got, w in zip((y, *pull(xp.asarray(gy))), want, strict=True):
        close(got, w.astype(arrays[0].dtype), terms=16)


@pytest.mark.parametrize("activation, dtype", FUSED)
def test_activation_is_the_op_behind_it(xp, rng, dtype, activation):
    arrays = [xp.asarray(make(rng.standard_normal(s), dtype)) for s in ((5, 8), (16, 8), (16,))]
    y, pull = vjp(lambda *a: linear(*a, activation=activation), *arrays)
    want, back = vjp(lambda *a: activated(linear(*a), activation), *arrays)
    gy = make(rng.standard_normal(y.shape), dtype)
    for got, w in zip((y, *pull(xp.asarray(gy))), (want, *back(xp.asarray(gy))), strict=True):
        close(got, host(w), terms=16)
    close(linear(*arrays, activation=activation), host(want), terms=16)
    with pytest.raises(ValueError, match="linear: activation is .step., wanted None, 'relu', "):
        linear(*arrays, activation="step")


def test_gradient_is_the_slope(rng):
    gradcheck(linear, *(rng.standard_normal(s) for s in ((2, 3, 4), (5, 4), (5,))))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_sum_with_the_bias_is_rounded_once(xp, dtype):
    x, w, b = (xp.asarray(make(a, dtype)) for a in ([[1, 2**-12]], [[1, 1]], [-1]))
    assert host(linear(x, w, b)).item() == 2**-12  # 1 + 2**-12 rounds to 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_adds_in_float32(xp, dtype):
    x, w, b = (xp.asarray(make(np.ones(s), dtype)) for s in ((4096, 1), (1, 1), (1,)))
    y, pull = vjp(linear, x, w, b)
    _, gw, gb = pull(xp.ones_like(y))
    assert host(gw).item() == host(gb).item() == 4096  # float16 sums stall at 2048


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_of_nothing_and_to_nothing(xp, dtype):
    x, w, b = (xp.asarray(make(np.full(s, -1), dtype)) for s in ((3, 0), (4, 0), (4,)))
    y, pull = vjp(linear, x, w, b)
    assert host(y).tolist() == [[-1] * 4] * 3 and not host(linear(x, w)).any()
    assert not host(linear(x, w, b, activation="relu")).any()
    gx, gw, gb = pull(y)
    assert gx.shape == (3, 0) and gw.shape == (4, 0) and host(gb).tolist() == [-3] * 4
    y, pull = vjp(linear, xp.ones((3, 5), dtype), xp.ones((0, 5), dtype))
    gx, gw = pull(y)
    assert y.shape == (3, 0) and gw.shape == (0, 5) and host(gx).tolist() == [[0] * 5] * 3


def test_views_and_broadcast_gradients(xp, rng):
    x, w = (rng.standard_normal(s).astype("float32") for s in ((6, 5), (6, 8)))
    views = [Tensor(v, requires_grad=True) for v in (
        xp.asarray(x).transpose(1, 0)[::-1], xp.asarray(w).transpose(1, 0)[::2],
        xp.broadcast_to(xp.asarray(x[0, 0]), (4,)))]
    y = linear(*views)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    want = by_torch(np.ones(y.shape), x.T[::-1].copy(), w.T[::2].copy(), np.full(4, x[0, 0]))
    for got, v in zip((y, *(t.grad for t in views)), want, strict=True):
        close(got, v.astype("float32"), terms=8)


def test_saves_an_operand_only_for_the_others_gradient(xp):
    x, w, b = (Tensor(xp.ones(s), requires_grad=s == (3,)) for s in ((2, 4), (3, 4), (3,)))
    y = linear(x, w, b)
    assert y.creator.rows is None and y.creator.w is None
    y.backward(xp.ones((2, 3)))
    assert host(b.grad).tolist() == [2, 2, 2]
    with no_grad():
        assert linear(x, w, b).creator is None
    assert type(linear(x.data, w.data)) is type(x.data)


@pytest.mark.parametrize("shapes, message", [
    (((2, 4), (3, 5)), r"x has shape \(2, 4\), w \(3, 5\), wanted \(..., C\) and \(K, C\)"),
    (((2, 4), (4,)), r"w \(4,\)"),
    (((), (3, 4)), r"x has shape \(\)"),
    (((2, 4), (3, 4), (4,)), r"linear: b has shape \(4,\), w \(3, 4\), wanted \(K,\)"),
])
def test_refuses(shapes, message):
    with pytest.raises(ValueError, match=message):
        linear(*map(np.ones, shapes))


def test_refuses_mixed_dtypes():
    with pytest.raises(TypeError, match="linear: x is float64, w is float32: one dtype"):
        linear(np.ones((2, 4)), np.ones((3, 4), "float32"))
