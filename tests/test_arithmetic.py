"""+ - * / @ and friends: definitions, broadcasting, weak numbers, 16 bits, refusals."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from check import DTYPES, close, host, make
from gpuconv import ops as arithmetic
from gpuconv import threads
from gpuconv.autograd import Tensor, no_grad
from gpuconv.backend import accumulator
from gpuconv.gradients import gradcheck, vjp

OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul,
             "div": operator.truediv}
BROADCASTS = [  # shapes of a and b
    pytest.param((2, 3, 4), (2, 3, 4), id="equal"),
    pytest.param((2, 3, 4), (4,), id="last-axis"),
    pytest.param((3, 1), (2, 1, 4), id="both"),
    pytest.param((2, 3), (), id="0-d"),
    pytest.param((0, 3), (3,), id="empty-batch"),
]
MATRICES = [
    pytest.param((3, 4), (4, 5), id="matrices"),
    pytest.param((4,), (4, 5), id="vector-matrix"),
    pytest.param((3, 4), (4,), id="matrix-vector"),
    pytest.param((4,), (4,), id="dot"),
    pytest.param((2, 3, 4), (4, 5), id="batch-times-one"),
    pytest.param((2, 1, 3, 4), (5, 4, 2), id="batches-broadcast"),
    pytest.param((2, 3, 4), (4,), id="batch-vector"),
    pytest.param((0, 4), (4, 5), id="empty-batch"),
]


def numbers(rng, shape):
    return rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)


def reference(f, a, b, gy):
    """y, ga, gb in float64 by PyTorch, for arrays of any float dtype."""
    torch = pytest.importorskip("torch")
    ta, tb = (torch.tensor(np.asarray(v, np.float64), requires_grad=True) for v in (a, b))
    y = f(ta, tb)
    y.backward(torch.tensor(np.asarray(gy, np.float64).reshape(tuple(y.shape))))
    return y.detach().numpy(), ta.grad.numpy(), tb.grad.numpy()


def check_binary(xp, rng, f, a, b, terms):
    y, pull = vjp(f, xp.asarray(a), xp.asarray(b))
    gy = make(rng.standard_normal(y.shape), y.dtype)
    grads = pull(xp.asarray(gy))
    for got, want in zip((y, *grads), reference(f, a, b, gy), strict=True):
        close(got, want.astype(a.dtype), terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_shape, b_shape", BROADCASTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_is_pytorchs(xp, rng, name, a_shape, b_shape, dtype):
    a, b = (make(numbers(rng, s), dtype) for s in (a_shape, b_shape))
    check_binary(xp, rng, OPERATORS[name], a, b, terms=24)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_shape, b_shape", MATRICES)
def test_matmul_is_pytorchs(xp, rng, a_shape, b_shape, dtype):
    a, b = (make(numbers(rng, s), dtype) for s in (a_shape, b_shape))
    check_binary(xp, rng, operator.matmul, a, b, terms=24)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=4, max_side=4),
       name=st.sampled_from(sorted(OPERATORS)))
def test_any_shapes_that_broadcast(shapes, name):
    rng = np.random.default_rng(0)
    a, b = (numbers(rng, s) for s in shapes.input_shapes)
    check_binary(np, rng, OPERATORS[name], a, b, terms=256)


@pytest.mark.parametrize("name", [*OPERATORS, "neg", "exp", "log", "matmul"])
def test_gradient_is_the_slope(rng, name):
    f = getattr(arithmetic, name)
    a, b = rng.uniform(0.5, 2, (3, 3)), rng.uniform(0.5, 2, (1, 3, 3))
    gradcheck(f, *((a,) if name in ("neg", "exp", "log") else (a, b)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, want, slope", [
    ("neg", np.negative, lambda x: -np.ones_like(x)),
    ("exp", np.exp, np.exp),
    ("log", np.log, lambda x: 1 / x),
])
def test_unary(xp, rng, name, want, slope, dtype):
    x = make(rng.uniform(0.5, 2, (3, 5)), dtype)
    y, pull = vjp(getattr(arithmetic, name), xp.asarray(x))
    close(y, make(want(x.astype(float)), dtype))
    gx, = pull(xp.asarray(np.ones_like(x)))
    # exp keeps its rounded y: its slope is that
    close(gx, y if name == "exp" else make(slope(x.astype(float)), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [3, 0.1, True, np.float64(0.1), np.int64(3), np.float32(0.1)],
                         ids=lambda v: f"{type(v).__name__}-{v}")
def test_numbers_are_weak(xp, rng, number, dtype):
    a = make(rng.uniform(0.5, 2, (2, 3)), dtype)
    x = Tensor(xp.asarray(a), requires_grad=True)
    wide = a.astype(accumulator(a.dtype))
    for name, f in OPERATORS.items():
        close(f(x, number), f(wide, float(number)).astype(a.dtype))
        close(f(number, x), f(float(number), wide).astype(a.dtype))
        assert type(getattr(arithmetic, name)(x.data, number)) is type(x.data)
    y = (1 - x * number) / 2
    y.backward(xp.ones_like(y.data))
    close(x.grad, make(np.full(a.shape, -float(number) / 2), dtype))


def test_arrays_leave_the_operators_to_tensors(xp):
    a = xp.asarray(np.float32([[1, 2], [3, 4]]))
    t = Tensor(a + a, requires_grad=True)
    for f in [*OPERATORS.values(), operator.matmul]:
        y = f(a, t)
        assert isinstance(y, Tensor) and y.requires_grad
        close(y, f(host(a), host(t)), terms=2)
    close(-t, -host(t))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_add_in_float32(xp, dtype):
    x, b = xp.asarray(make(np.ones((4096, 1)), dtype)), xp.asarray(make([1], dtype))
    for f in (arithmetic.add, arithmetic.mul):
        _, pull = vjp(f, x, b)
        assert host(pull(xp.ones_like(x))[1])[0] == 4096  # float16 sums stall at 2048
    _, pull = vjp(arithmetic.matmul, x, b[:, None] if xp is np else b.reshape(1, 1))
    assert host(pull(xp.ones_like(x))[1])[0, 0] == 4096


@pytest.mark.parametrize("layout", [
    pytest.param(lambda x: x.transpose(1, 0), id="transposed"),
    pytest.param(lambda x: x[::-1, ::2], id="strided"),
])
def test_views_and_broadcast_gradients(xp, rng, layout):
    a = layout(rng.standard_normal((6, 6)).astype("float32"))
    x = layout(xp.asarray(layout(rng.standard_normal((1, 1)).astype("float32")) * 0
                          + rng.standard_normal((6, 6)).astype("float32")))
    w = Tensor(x, requires_grad=True)
    y = w * xp.asarray(a)
    close(y, host(x) * a)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    close(w.grad, a)


def test_chunks_do_not_change_the_result(rng, monkeypatch):
    a, b = rng.standard_normal((2, 101, 7)).astype("float32")
    monkeypatch.setattr(threads, "chunks", lambda n, _: [
        slice(i, i + 100) for i in range(0, n, 100)])
    np.testing.assert_array_equal(arithmetic.mul(a, b), a * b)


def test_division_by_zero_is_silent(xp):
    x = xp.asarray(np.float32([1, 0, -1]))
    np.testing.assert_array_equal(host(arithmetic.div(x, 0)), [np.inf, np.nan, -np.inf])


def test_saves_an_operand_only_for_the_others_gradient(xp):
    x, w = Tensor(xp.ones(3), requires_grad=True), Tensor(xp.ones(3))
    y = x * w
    assert y.creator.b is w.data and y.creator.a is None
    y = x + w
    assert set(vars(y.creator)) == {"needs", "shapes", "parents", "serial"}
    with no_grad():
        assert (x * w).creator is None


@pytest.mark.parametrize("other, error, message", [
    ([1.0, 2.0], TypeError, "add: b is list, wanted an array, a Tensor or a real number"),
    (None, TypeError, "add: b is NoneType"),
    (1j, TypeError, "add: b is complex"),
    (np.complex64(1), TypeError, "complex64"),
    (np.ones(2), TypeError, "add: a is float32, b is float64: one dtype"),
    (np.ones(2, int), TypeError, "add: b is int64, wanted float32"),
    (np.ones(3, "float32"), ValueError, r"add: shapes \(2,\) and \(3,\) do not broadcast"),
])
def test_refuses(other, error, message):
    with pytest.raises(error, match=message):
        Tensor(np.ones(2, "float32")) + other


def test_refuses_two_numbers_and_mixed_devices(cp):
    with pytest.raises(TypeError, match="add: 1 and 2.0 are numbers"):
        arithmetic.add(1, 2.0)
    with pytest.raises(TypeError, match="CPU and GPU do not mix"):
        Tensor(np.ones(2)) + Tensor(cp.ones(2))


@pytest.mark.parametrize("a, b, error, message", [
    (np.ones((2, 3)), np.ones((2, 3)), ValueError, r"inner sizes of \(2, 3\) and \(2, 3\) differ"),
    (np.ones((2, 3)), np.ones(()), ValueError, r"shapes \(2, 3\) and \(\), wanted at least one"),
    (np.ones((2, 3)), 2.0, TypeError, "matmul: b is float"),
])
def test_matmul_refuses(a, b, error, message):
    with pytest.raises(error, match=message):
        arithmetic.matmul(a, b)


def test_every_op_names_an_operand_that_is_no_array():
    for call, name in ((lambda: arithmetic.relu(None), "relu: x is NoneType"),
                       (lambda: arithmetic.conv2d(np.ones((1, 2, 2, 1)), None), "conv2d: w is"),
                       (lambda: arithmetic.linear([1.0], np.ones((1, 1))), "linear: x is list")):
        with pytest.raises(TypeError, match=name):
            call()
    with pytest.raises(TypeError, match="relu: x has swapped bytes"):
        arithmetic.relu(np.ones(2, ">f8"))
