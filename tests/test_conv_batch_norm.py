"""Convolution, 2x2 max pool, batch normalisation and what follows as one op."""

import numpy as np
import pytest

from check import DTYPES, close, grad_check, host, make
from gpuconv import backend, ops
from gpuconv.autograd import Tensor, no_grad
from gpuconv.ops.elementwise import activated

CASES = [  # pool, activation, residual
    pytest.param(False, None, False, id="norm"), pytest.param(False, "relu", False, id="relu"),
    pytest.param(True, "relu", False, id="pool"), pytest.param(False, "relu", True, id="residual"),
    pytest.param(True, "gelu", False, id="pool-gelu"),
]


def apart(x, w, gamma, beta, mean, var, pool, activation, residual, training):
    y = ops.conv2d(x, w, padding=1)
    y = ops.max_pool2d(y, 2) if pool else y
    y = ops.batch_norm(y, gamma, beta, mean, var, training=training)
    y = y if residual is None else y + residual
    return activated(y, activation)


def together(x, w, gamma, beta, mean, var, pool, activation, residual, training):
    return ops.conv_batch_norm(x, w, gamma, beta, mean, var, padding=1, pool=pool,
                               activation=activation, residual=residual, training=training)


def run(xp, f, arrays, pool, activation, training):
    """y, the gradients and the running statistics."""
    held = [Tensor(xp.asarray(a), requires_grad=True) for a in arrays]
    wide = backend.accumulator(arrays[0].dtype)
    running = [xp.asarray(np.full(len(arrays[1]), v, wide)) for v in (0.5, 2.0)]
    y = f(*held[:4], *running, pool, activation, (*held, None)[4], training)
    y.backward(xp.asarray(np.resize(np.linspace(-1, 1, 89), y.shape).astype(arrays[0].dtype)))
    return [y.data, *(t.grad for t in held), *running]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool, activation, residual", CASES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_is_the_ops_one_after_another(xp, rng, dtype, pool, activation, residual, training):
    shape = (2, 2, 2, 16) if pool else (2, 4, 4, 16)
    arrays = [make(rng.standard_normal(s), dtype) for s in
              ((2, 4, 4, 8), (16, 3, 3, 8), (16,), (16,), *[shape] * residual)]
    one = run(xp, together, arrays, pool, activation, training)
    two = run(xp, apart, arrays, pool, activation, training)
    if xp is np:
        assert [a.tobytes() for a in one] == [a.tobytes() for a in two]
        return
    assert host(one[0]).shape == shape
    if training and dtype.endswith("16"):  # z's gradient may be rounded to its other neighbour
        one, two = one[:1] + one[3:], two[:1] + two[3:]
    for a, b in zip(one, two, strict=True):
        close(a, host(b), terms=200)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pool, image", [(False, (11, 13)), (True, (25, 27))])
def test_moments_of_many_slices(cp, rng, dtype, pool, image):
    arrays = [make(rng.standard_normal(s), dtype) for s in
              ((2, *image, 8), (8, 3, 3, 8), (8,), (8,))]
    one = run(cp, together, arrays, pool, "relu", True)
    two = run(cp, apart, arrays, pool, "relu", True)
    for a, b in (one[0], two[0]), *zip(one[3:], two[3:], strict=True):
        close(a, host(b), terms=300)


def test_gradient_is_the_slope(rng):
    x, w, gamma, beta = (rng.standard_normal(s) for s in ((3, 4, 4, 2), (3, 3, 3, 2), (3,), (3,)))
    grad_check(lambda *a: ops.conv_batch_norm(*a, None, None, training=True, pool=True,
                                              activation="gelu"), x, w, gamma, beta, rng=rng)


def test_z_is_read_once_for_the_moments(cp, rng, monkeypatch):
    """On tensor cores they come from the convolution's epilogue."""
    from gpuconv import kernels
    seen, kernel = [], kernels.kernel
    monkeypatch.setattr(kernels, "kernel", lambda file, name, **c: seen.append(name) or kernel(
        file, name, **c))
    for dtype, apart in (("float16", False), ("float32", True)):
        x, w = (cp.asarray(rng.standard_normal(s).astype(dtype)) for s in
                ((2, 4, 4, 8), (8, 3, 3, 8)))
        seen.clear()
        ops.conv_batch_norm(x, w, None, None, None, None, training=True, pool=True)
        assert ("batch_norm_moments" in seen) == ("max_pool_forward" in seen) == apart
        seen.clear()
        wide = [cp.ones(8, "float32") for _ in range(2)]
        ops.conv_batch_norm(x, w, None, None, *wide, training=False)
        assert "batch_norm_moments" not in seen


def test_saves_z_and_what_the_gradients_read(cp):
    x, w = cp.ones((2, 4, 4, 8), "float16"), cp.ones((8, 3, 3, 8), "float16")
    y = ops.conv_batch_norm(x, Tensor(w, requires_grad=True), None, None, None, None, padding=1,
                            training=True, pool=True)
    op = y.creator
    assert op.conv.x is x and op.conv.w is None
    assert op.norm.x.shape == (2, 2, 2, 8) and op.pool.argmax.nbytes == 2 * 2 * 2 * 8
    with no_grad():
        assert ops.conv_batch_norm(x, Tensor(w, requires_grad=True), *[None] * 4,
                                   training=True).creator is None


def test_gradients_of_gamma_and_residual_alone(cp, rng):
    x, w, gamma, residual = (cp.asarray(rng.standard_normal(s).astype("float16")) for s in
                             ((2, 4, 4, 8), (8, 1, 1, 8), (8,), (2, 4, 4, 8)))
    gamma, residual = (Tensor(a, requires_grad=True) for a in (gamma, residual))
    y = ops.conv_batch_norm(x, w, gamma, None, None, None, training=True, residual=residual)
    assert y.creator.conv.x is None and y.creator.conv.w is None
    y.backward(cp.ones(y.shape, "float16"))
    assert host(residual.grad).tolist() == np.ones(y.shape).tolist()
    assert abs(host(gamma.grad).astype(float)).max() < 0.1  # sums of xhat


def test_empty_batch(xp):
    x, w = (Tensor(xp.ones(s, "float16"), requires_grad=True) for s in ((0, 4, 4, 8), (8, 3, 3, 8)))
    y = ops.conv_batch_norm(x, w, None, None, None, None, training=True, pool=True)
    y.backward(xp.ones(y.shape, "float16"))
    assert y.shape == (0, 1, 1, 8) and not host(w.grad).any()


@pytest.mark.parametrize("change, message", [
    (dict(x=(1, 3, 3, 2)), "one value per channel"),
    (dict(pool=True, x=(2, 3, 3, 2)), r"does not fit \(1, 1\)"),
    (dict(w=(3, 3, 3, 5)), "conv_batch_norm: x has 2 channels, w wants 5"),
    (dict(gamma=(4,)), r"gamma has shape \(4,\), wanted \(3,\)"),
    (dict(activation="step"), "activation is 'step'"),
    (dict(training=False), "running_mean and running_var are missing"),
    (dict(residual=(1, 2, 2, 1)), r"residual has shape \(1, 2, 2, 1\)"),
])
def test_refuses(xp, change, message):
    given = dict(x=(1, 4, 4, 2), w=(3, 3, 3, 2), gamma=None, beta=None, training=True) | change
    arrays = [a if (a := given.pop(name)) is None else xp.ones(a)
              for name in ("x", "w", "gamma", "beta")]
    if "residual" in given:
        given["residual"] = xp.ones(given["residual"])
    with pytest.raises(ValueError, match=message):
        ops.conv_batch_norm(*arrays, None, None, **given)


@pytest.mark.parametrize("value", [1.0, -10048.0, 1e18])
@pytest.mark.parametrize("pool", [False, True], ids=["", "pool"])
def test_a_constant_channel_becomes_beta(cp, rng, pool, value):
    """Its moments are taken while it is in registers: in a block that is full, and in one not."""
    x = np.full((3, 10, 10, 8), value).astype(make(0, "bfloat16").dtype)
    w, gamma, beta = (make(rng.uniform(0.5, 1, s), "bfloat16") for s in ((16, 1, 1, 8), 16, 16))
    mean, var = (cp.zeros(16, "float32") for _ in range(2))
    x, w, gamma, beta = map(cp.asarray, (x, w, gamma, beta))
    y = host(ops.conv_batch_norm(x, w, gamma, beta, mean, var, pool=pool, training=True,
                                 momentum=1.0))
    np.testing.assert_array_equal(y, np.broadcast_to(host(beta), y.shape))
    z = host(ops.conv2d(x, w))
    np.testing.assert_array_equal(host(mean), z[0, 0, 0].astype("float32"))
    assert not host(var).any()
