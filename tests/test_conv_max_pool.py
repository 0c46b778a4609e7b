"""Convolution, activation and 2x2 max pool as one op: the bits of the ops one after another."""

import numpy as np
import pytest

from check import DTYPES, close, grad_check, host, make
from gpuconv import ops
from gpuconv.autograd import Tensor, no_grad
from gpuconv.gradients import vjp
from gpuconv.ops.elementwise import ACTIVATIONS, activated


def apart(x, w, b=None, activation=None, **options):
    y = ops.conv2d(x, w, b, **options)
    return ops.max_pool2d(activated(y, activation), 2)


def drawn(rng, dtype, *shapes):
    """Whole numbers: sums are exact, and there are ties."""
    return [make(rng.integers(-2, 3, shape), dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation, bias, image", [(None, True, (6, 7)), ("relu", True, (5, 6)),
                                                     ("relu", False, (6, 6))])
def test_is_the_ops_one_after_another(xp, rng, dtype, activation, bias, image):
    arrays = drawn(rng, dtype, (2, *image, 8), (16, 3, 3, 8), *[(16,)] * bias)
    results = []
    for f in (ops.conv_max_pool, apart):
        held = [Tensor(xp.asarray(a), requires_grad=True) for a in arrays]
        y = f(*held, padding=1, activation=activation)
        y.backward(xp.asarray(np.resize(np.arange(-3, 4), y.shape).astype(arrays[0].dtype)))
        results.append([y.data, *(t.grad for t in held)])
    for one, two in zip(*results, strict=True):
        close(one, host(two), terms=100)
    close(y.data, host(results[0][0]))
    np.testing.assert_array_equal(host(results[0][0]).astype(float), host(results[1][0]).astype(
        float))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_comes_before_the_maximum(xp, rng, activation, dtype):
    """float16 on tensor cores, float32 on the engine that has no pool in its epilogue."""
    x, w, b = (xp.asarray(a) for a in drawn(rng, dtype, (2, 4, 4, 8), (8, 1, 1, 8), (8,)))
    want, pull = vjp(lambda w: apart(x, w, b, activation), w)
    close(ops.conv_max_pool(x, w, b, activation=activation), host(want), terms=8)
    y, back = vjp(lambda w: ops.conv_max_pool(x, w, b, activation=activation), w)
    gy = xp.asarray(np.resize(np.arange(-3, 4), y.shape).astype(dtype))
    close(y, host(want), terms=8)
    close(back(gy)[0], host(pull(gy)[0]), terms=64)


def test_gradient_is_the_slope(rng):
    x, w, b = (rng.standard_normal(s) for s in ((2, 5, 5, 2), (3, 3, 3, 2), (3,)))
    grad_check(lambda *a: ops.conv_max_pool(*a, activation="relu"), x, w, b, rng=rng)


def test_saves_a_byte_per_output(cp):
    x, w = cp.ones((1, 4, 4, 8), "float16"), cp.ones((8, 1, 1, 8), "float16")
    op = ops.conv_max_pool(x, Tensor(w, requires_grad=True)).creator
    assert op.pool.argmax.nbytes == 4 * 8 and op.conv.w is None and op.conv.x is x
    with no_grad():
        assert ops.conv_max_pool(x, Tensor(w, requires_grad=True)).creator is None


def test_empty_batch(xp):
    x, w, b = (Tensor(xp.ones(s, "float16"), requires_grad=True) for s in
               ((0, 4, 4, 8), (8, 1, 1, 8), (8,)))
    y = ops.conv_max_pool(x, w, b, activation="relu")
    y.backward(xp.ones(y.shape, "float16"))
    assert y.shape == (0, 2, 2, 8) and not host(w.grad).any() and not host(b.grad).any()


@pytest.mark.parametrize("change, message", [
    (dict(x=(1, 1, 4, 2)), r"window \(2, 2\), padding .* does not fit \(1, 4\)"),
    (dict(w=(3, 1, 1, 5)), "conv_max_pool: x has 2 channels, w wants 5"),
    (dict(activation="step"), "conv_max_pool: activation is 'step'")])
def test_refuses(xp, change, message):
    given = dict(x=(1, 4, 4, 2), w=(3, 1, 1, 2)) | change
    arrays = [xp.ones(given.pop(name)) for name in "xw"]
    with pytest.raises(ValueError, match=message):
        ops.conv_max_pool(*arrays, **given)
