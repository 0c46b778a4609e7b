"""bias_relu: the same as add then relu, and a bias gradient in a fixed order."""

import numpy as np
import pytest

from check import DTYPES, close, host, make
from gpuconv import kernels, threads
from gpuconv.autograd import Tensor, no_grad
from gpuconv.gradients import gradcheck, vjp
from gpuconv.ops.elementwise.bias_relu import bias_relu

SHAPES = [
    pytest.param((2, 5, 3, 32), id="one-tile"),
    pytest.param((3, 7, 7, 5), id="few-channels"),
    pytest.param((70, 40), id="two-tiles"),
    pytest.param((3, 1), id="one-channel"),
    pytest.param((1100, 3), id="many-runs"),
    pytest.param((33,), id="one-row"),
    pytest.param((0, 4, 4, 3), id="empty-batch"),
]


def by_torch(x, b, gy):
    torch = pytest.importorskip("torch")
    tx, tb = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, b))
    y = torch.relu(tx + tb)
    y.backward(torch.tensor(gy.astype(np.float64)))
    return y.detach().numpy(), tx.grad.numpy(), tb.grad.numpy()


def run(xp, x, b, gy):
    y, pull = vjp(bias_relu, xp.asarray(x), xp.asarray(b))
    return (y, *pull(xp.asarray(gy)))


def check(xp, x, b, gy):
    for got, want in zip(run(xp, x, b, gy), by_torch(x, b, gy), strict=True):
        close(got, want.astype(x.dtype), terms=max(1, x.size // b.size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_pytorchs(xp, rng, shape, dtype):
    x, b = make(rng.integers(-3, 4, shape), dtype), make(rng.integers(-1, 2, shape[-1]), dtype)
    check(xp, x, b, make(rng.standard_normal(shape), dtype))  # many sums are exactly 0


def test_gradient_is_the_slope(rng):
    x, b = rng.standard_normal((4, 3, 5)), rng.standard_normal(5)
    x += np.sign(x + b) * 0.01  # away from the kink
    gradcheck(bias_relu, x, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf(xp, dtype):
    x = make([[np.nan, -np.inf, np.inf, -1, 1]], dtype)
    gy = make([[1, np.inf, 2, np.nan, 3]], dtype)
    y, gx, gb = run(xp, x, make([1, 1, 1, 1, -1], dtype), gy)
    np.testing.assert_array_equal(host(y).astype(float), [[np.nan, 0, np.inf, 0, 0]])
    np.testing.assert_array_equal(host(gx).astype(float), [[1, 0, 2, 0, 0]])
    np.testing.assert_array_equal(host(gb).astype(float), [1, 0, 2, 0, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_add_in_float32(xp, dtype):
    x, b = make(np.ones((4096, 3)), dtype), make(np.ones(3), dtype)
    gb = run(xp, x, b, x)[2]
    assert host(gb).tolist() == [4096] * 3  # a float16 sum stalls at 2048


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["only-x", "only-b"])
def test_only_what_is_needed(xp, rng, needs):
    x, b = rng.standard_normal((9, 4)).astype("float32"), np.ones(4, "float32")
    ts = [Tensor(xp.asarray(a), requires_grad=n) for a, n in zip((x, b), needs, strict=True)]
    bias_relu(*ts).backward(xp.asarray(x))
    for t, want in zip(ts, by_torch(x, b, x)[1:], strict=True):
        if t.requires_grad:
            close(t.grad, want.astype("float32"), terms=9)
        else:
            assert t.grad is None


@pytest.mark.parametrize("layout", [
    pytest.param(lambda x: x.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda x: x[:, ::-1, ::2], id="strided"),
    pytest.param(lambda x: x.reshape(-1)[1:-7].reshape(-1, 8), id="not-aligned"),
])
def test_views_and_broadcast_gradients(xp, rng, layout):
    a = rng.standard_normal((2, 6, 6, 8)).astype("float32")
    b = rng.standard_normal(8).astype("float32")
    x, bias = (Tensor(v, requires_grad=True) for v in (layout(xp.asarray(a)), xp.asarray(b)))
    y = bias_relu(x, bias)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    want = by_torch(layout(a), b, np.ones(x.shape))
    for got, w in zip((y, x.grad, bias.grad), want, strict=True):
        close(got, w.astype("float32"), terms=72)


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)  # 64-bit offsets; blocks that take many turns
    x = rng.standard_normal((130, 132)).astype("float32")  # two slices; the second tile is narrower
    gy = rng.standard_normal(x.shape).astype("float32")
    check(cp, x, x[0], gy)
    t = Tensor(cp.asarray(x), requires_grad=True)
    bias_relu(t, cp.asarray(x[0])).backward(cp.asarray(gy))  # no partial sums
    close(t.grad, by_torch(x, x[0], gy)[1].astype("float32"))


def test_more_slices_than_a_block_has_rows(cp, rng):
    x = rng.standard_normal((1056, 31)).astype("float32")
    check(cp, x, x[0], rng.standard_normal(x.shape).astype("float32"))


def test_threads_do_not_change_a_bit(rng, monkeypatch):
    x = rng.standard_normal((40000, 16)).astype("float32")
    b, gy = x[0], rng.standard_normal(x.shape).astype("float32")
    many = run(np, x, b, gy)
    monkeypatch.setattr(threads, "each", lambda f, pieces: [f(p) for p in pieces])
    for one, other in zip(run(np, x, b, gy), many, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_saved(xp):
    x, b = Tensor(xp.ones((4, 8), "float32"), requires_grad=True), Tensor(xp.ones(8, "float32"))
    y = bias_relu(x, b)
    if xp is np:
        assert y.creator.positive.nbytes == 4
    else:
        assert y.creator.y is y.data
    assert not any(v is x.data or v is b.data for v in vars(y.creator).values())
    with no_grad():
        assert bias_relu(x, b).creator is None
    assert type(bias_relu(x.data, b.data)) is type(x.data)


@pytest.mark.parametrize("x, b, error, message", [
    ((2, 3), (2,), ValueError, r"x has shape \(2, 3\), b \(2,\), wanted \(..., C\) and \(C,\)"),
    ((), (), ValueError, r"x has shape \(\), b \(\)"),
    ((2, 3), (1,), ValueError, r"b \(1,\)"),
])
def test_refuses(x, b, error, message):
    with pytest.raises(error, match=message):
        bias_relu(np.ones(x), np.ones(b))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_in_another_order_of_memory(dtype, rng):
    x, b = make(rng.standard_normal((6, 5)), dtype), make(rng.standard_normal(5), dtype)
    np.testing.assert_array_equal(bias_relu(np.asfortranarray(x), b), bias_relu(x, b))
