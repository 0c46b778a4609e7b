"""batch_norm: definition, gradient, running statistics, CPU and CUDA alike, and the edges."""

import numpy as np
import pytest

from check import DTYPES, close, defined, grad_check, host, make, nchw, nhwc
from gpuconv import kernels, reference, threads
from gpuconv.autograd import Tensor, no_grad
from gpuconv.backend import accumulator
from gpuconv.gradients import vjp
from gpuconv.ops.norm.batch_norm import batch_norm

SHAPES = [
    pytest.param((6, 3), id="features"),
    pytest.param((3, 5, 7, 4), id="odd-counts"),
    pytest.param((4, 8, 8, 32), id="a-tile-of-channels"),
    pytest.param((2, 9, 3, 33), id="one-channel-over-the-tile"),
    pytest.param((500, 1), id="one-channel"),
    pytest.param((151, 40), id="two-turns-of-a-thread-in-uneven-slices"),
    pytest.param((2, 2, 2, 300), id="more-channels-than-values"),
    pytest.param((70, 24), id="three-packs-of-16-bit-channels"),
    pytest.param((9, 2048), id="tiles-of-a-warp"),
]


def definition(x, gamma, beta, gy, training, mean=None, var=None, **options):
    """y, gx, ggamma, gbeta, in the longest float there is."""
    return defined("batch_norm", gy, x, gamma, beta, mean, var, training=training, **options,
                   wide=np.longdouble)


def statistics(x, mean, var, momentum=0.1):
    """The running mean and variance after a step of training, in float64."""
    mean, var = (a.astype(np.float64) for a in (mean, var))
    reference.batch_norm(x.astype(np.float64), None, None, mean, var, training=True,
                         momentum=momentum)
    return mean, var


def data(rng, shape, dtype):
    """x, gamma, beta, gy, running mean and variance."""
    C, wide = shape[-1], accumulator(make(0, dtype).dtype)
    x, gy = 2 * rng.standard_normal(shape) + 0.5, rng.standard_normal(shape)
    gamma, beta, mean = rng.standard_normal((3, C))
    return (*(make(a, dtype) for a in (x, gamma, beta, gy)),
            mean.astype(wide), rng.uniform(0.5, 2, C).astype(wide))


def run(xp, x, gamma, beta, gy, mean, var, training=True, **options):
    """y, gx, ggamma, gbeta, and the running statistics afterwards."""
    x, gamma, beta = (Tensor(xp.asarray(a), requires_grad=True) for a in (x, gamma, beta))
    mean, var = (xp.asarray(a.copy()) for a in (mean, var))
    y = batch_norm(x, gamma, beta, mean, var, training=training, **options)
    y.backward(xp.asarray(gy))
    return [host(a) for a in (y, x.grad, gamma.grad, beta.grad, mean, var)]


def count(x):
    return x.size // x.shape[-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_definition(xp, rng, shape, training, dtype):
    x, gamma, beta, gy, mean, var = data(rng, shape, dtype)
    *got, new_mean, new_var = run(xp, x, gamma, beta, gy, mean, var, training)
    want = definition(x, gamma, beta, gy, training, mean, var)
    for g, w in zip(got, want, strict=True):
        close(g, w.astype(x.dtype), terms=count(x))
    if training:
        for g, w in zip((new_mean, new_var), statistics(x, mean, var), strict=True):
            close(g, w.astype(mean.dtype), terms=count(x))
    else:
        np.testing.assert_array_equal(new_mean, mean)
        np.testing.assert_array_equal(new_var, var)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_agrees_with_pytorch(xp, rng, training):
    torch = pytest.importorskip("torch")
    x, gamma, beta, gy, mean, var = data(rng, (4, 5, 6, 7), "float32")
    got = run(xp, x, gamma, beta, gy, mean, var, training, momentum=0.3, eps=1e-3)

    tx, tgamma, tbeta, tgy, tmean, tvar = (
        torch.from_numpy(a.astype("float64")) for a in (nchw(x), gamma, beta, nchw(gy), mean, var))
    leaves = [a.requires_grad_() for a in (tx, tgamma, tbeta)]
    ty = torch.nn.functional.batch_norm(tx, tmean, tvar, tgamma, tbeta, training, 0.3, 1e-3)
    tgx, tggamma, tgbeta = torch.autograd.grad(ty, leaves, tgy)
    want = nhwc(ty), nhwc(tgx), tggamma.numpy(), tgbeta.numpy(), tmean.numpy(), tvar.numpy()
    for g, w in zip(got, want, strict=True):
        close(g, w.astype("float32"), terms=count(x))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3, 2)], ids=["features", "images"])
def test_gradient_is_the_slope(rng, shape, training):
    x, gamma, beta, _, mean, var = data(rng, shape, "float64")

    def f(x, gamma=None, beta=None):
        return batch_norm(x, gamma, beta, mean.copy(), var.copy(), training=training)

    grad_check(f, x, gamma, beta, rng=rng)
    grad_check(f, x, rng=rng)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_without_gamma_and_beta_they_are_one_and_zero(xp, rng, training):
    x, _, _, gy, mean, var = data(rng, (3, 5, 7, 4), "float32")
    t = Tensor(xp.asarray(x), requires_grad=True)
    y = batch_norm(t, None, None, xp.asarray(mean), xp.asarray(var), training=training)
    y.backward(xp.asarray(gy))
    want = definition(x, np.ones(4), np.zeros(4), gy, training, mean, var)
    for got, w in zip((y, t.grad), want, strict=False):
        close(got, w.astype("float32"), terms=count(x))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=["x", "gamma", "beta", "x+beta"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_gives_the_gradients_that_are_asked_for(xp, rng, training, wanted):
    x, gamma, beta, gy, mean, var = data(rng, (3, 5, 7, 4), "float32")
    inputs = [Tensor(xp.asarray(a), requires_grad=i in wanted)
              for i, a in enumerate((x, gamma, beta))]
    y = batch_norm(*inputs, xp.asarray(mean), xp.asarray(var), training=training)
    y.backward(xp.asarray(gy))
    want = definition(x, gamma, beta, gy, training, mean, var)[1:]
    for i, (tensor, w) in enumerate(zip(inputs, want, strict=True)):
        if i in wanted:
            close(tensor.grad, w.astype("float32"), terms=count(x))
        else:
            assert tensor.grad is None


def test_variance_does_not_cancel(xp, rng):
    x = (1000 + rng.integers(-4, 5, (16, 8, 8, 3)) / 8).astype("float32")  # exact; E[x^2] is not
    mean, var = xp.zeros(3, "float32"), xp.zeros(3, "float32")
    batch_norm(xp.asarray(x), None, None, mean, var, training=True, momentum=1)
    wide = x.astype("float64")
    close(mean, wide.mean(axis=(0, 1, 2)).astype("float32"), terms=count(x))
    close(var, wide.var(axis=(0, 1, 2), ddof=1).astype("float32"), terms=count(x))


def test_running_variance_is_unbiased(xp):
    x = xp.asarray(np.array([[1.0], [3.0]]))  # variance 1, unbiased 2
    mean, var = xp.zeros(1), xp.ones(1)
    batch_norm(x, None, None, mean, var, training=True, momentum=0.5)
    assert (host(mean)[0], host(var)[0]) == (1.0, 1.5)


def test_half_precision_statistics_do_not_stall(xp):
    x = xp.ones((1, 64, 128, 1), "float16")  # a float16 sum of ones stays at 2048
    mean, var = xp.zeros(1, "float32"), xp.ones(1, "float32")
    y = batch_norm(x, None, None, mean, var, training=True, momentum=1)
    assert (host(mean)[0], host(var)[0]) == (1, 0)
    assert not host(y).any()


@pytest.mark.parametrize("shape", [(6, 3), (9, 2048), (5000, 2)])
def test_batches_are_counted_in_training(xp, shape):
    """Once each, however many blocks there are."""
    x, counter = xp.ones(shape, "float32"), xp.full((), 7, "int64")
    statistics = xp.zeros(shape[-1], "float32"), xp.ones(shape[-1], "float32")
    for training in (True, False, True):
        batch_norm(x, None, None, *statistics, training=training, num_batches_tracked=counter)
    batch_norm(x[:0], None, None, *statistics, training=True, num_batches_tracked=counter)
    batch_norm(x, None, None, None, None, training=True, num_batches_tracked=counter)
    assert host(counter) == 10 and counter.shape == () and counter.dtype == "int64"


@pytest.mark.parametrize("counter", [np.zeros((), "int32"), np.zeros(1, "int64")])
def test_refuses_to_count_in_something_else(counter):
    with pytest.raises(ValueError, match=r"num_batches_tracked is .*, wanted int64 \(\)"):
        batch_norm(np.ones((3, 2)), None, None, None, None, training=True,
                   num_batches_tracked=counter)


def test_large_batch_is_cut_into_pieces(rng):
    x, gamma, beta, gy, mean, var = data(rng, (48, 16, 16, 64), "float32")  # 3 MB
    *got, new_mean, _ = run(np, x, gamma, beta, gy, mean, var)
    for g, w in zip(got, definition(x, gamma, beta, gy, True), strict=True):
        close(g, w.astype("float32"), terms=count(x))
    close(new_mean, statistics(x, mean, var)[0].astype("float32"), terms=count(x))


def test_bits_do_not_depend_on_the_threads(rng, monkeypatch):
    inputs = data(rng, (48, 16, 16, 64), "float32")
    results = []
    for number in (1, 3):
        monkeypatch.setattr(threads, "count", lambda number=number: number)
        results.append(run(np, *inputs))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_bits_do_not_depend_on_the_grid(cp, rng, monkeypatch, training):
    inputs = data(rng, (40, 8, 8, 33), "float32")  # two tiles of channels, 40 slices of rows
    results = [run(cp, *inputs, training)]
    monkeypatch.setattr(kernels, "MAX_BLOCKS", 1)  # one block takes every part in turn
    results.append(run(cp, *inputs, training))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("view", [
    pytest.param(lambda a: a.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda a: a[:, ::-1, ::2, ::-1], id="negative-strides"),
])
def test_views_and_broadcast_gradients(xp, rng, view, training):
    a, _, _, _, mean, var = data(rng, (3, 4, 6, 8), "float32")
    gamma, beta = rng.standard_normal((2, 16)).astype("float32")
    x = Tensor(view(xp.asarray(a)), requires_grad=True)
    scale, shift = (Tensor(xp.asarray(v)[::2], requires_grad=True) for v in (gamma, beta))
    y = batch_norm(x, scale, shift, xp.asarray(mean), xp.asarray(var), training=training)
    gy = rng.standard_normal((y.shape[1], 1, 8)).astype("float32")
    y.backward(xp.broadcast_to(xp.asarray(gy), y.shape))
    wide_gy = np.broadcast_to(gy, y.shape)
    want = definition(view(a), gamma[::2], beta[::2], wide_gy, training, mean, var)
    for got, w in zip((y, x.grad, scale.grad, shift.grad), want, strict=True):
        close(got, w.astype("float32"), terms=count(y))


def test_broadcast_x(xp):
    x = xp.broadcast_to(xp.asarray(np.float32([[1.0], [3.0]]))[:, None, None], (2, 4, 4, 5))
    y = batch_norm(x, None, None, None, None, training=True, eps=0)
    np.testing.assert_array_equal(host(y)[:, 0, 0, 0], [-1, 1])


# -- what it saves -----------------------------------------------------------------------


def test_saves_x_itself_and_two_numbers_per_channel(xp, rng):
    x, gamma, beta, _, mean, var = data(rng, (4, 8, 8, 16), "float32")
    x, gamma, beta = (Tensor(xp.asarray(a), requires_grad=True) for a in (x, gamma, beta))
    mean, var = xp.asarray(mean), xp.asarray(var)
    op = batch_norm(x, gamma, beta, mean, var, training=True).creator
    assert op.x is x.data and op.gamma is gamma.data
    held = [a for a in vars(op).values() if hasattr(a, "nbytes") and a is not op.x]
    assert sum(a.nbytes for a in held) == (3 + (xp is np)) * 16 * 4  # the mean in float64
    assert not any(a is mean or a is var for a in held)


def test_saves_no_x_where_statistics_are_fixed(xp, rng):
    x, gamma, beta, _, mean, var = data(rng, (4, 8, 8, 16), "float32")
    x = Tensor(xp.asarray(x), requires_grad=True)
    gamma, beta, mean, var = map(xp.asarray, (gamma, beta, mean, var))
    assert batch_norm(x, gamma, beta, mean, var, training=False).creator.x is None
    with no_grad():
        assert batch_norm(x, gamma, beta, mean, var, training=True).creator is None


def test_later_changes_of_the_running_statistics_do_not_reach_backward(xp, rng):
    x, gamma, beta, gy, mean, var = data(rng, (5, 3), "float32")
    want = run(xp, x, gamma, beta, gy, mean, var, training=False)[2]
    mean, var = xp.asarray(mean), xp.asarray(var)
    scale = Tensor(xp.asarray(gamma), requires_grad=True)
    y = batch_norm(xp.asarray(x), scale, xp.asarray(beta), mean, var, training=False)
    mean += 1
    var += 1
    y.backward(xp.asarray(gy))
    np.testing.assert_array_equal(host(scale.grad), want)


def test_empty_batch(xp):
    empty, ones = np.ones((0, 4, 4, 3), "float32"), np.ones(3, "float32")
    for training in (True, False):
        y, gx, ggamma, gbeta, mean, var = run(
            xp, empty, ones, ones, empty, 2 * ones, 3 * ones, training)
        assert y.shape == gx.shape == (0, 4, 4, 3)
        assert (ggamma.tolist(), gbeta.tolist()) == ([0, 0, 0], [0, 0, 0])
        assert (mean.tolist(), var.tolist()) == ([2, 2, 2], [3, 3, 3])  # untouched


def test_arrays_in_array_out_and_nan_spreads_over_its_channel_only(xp):
    a = np.ones((4, 2), "float32") * np.arange(4, dtype="float32")[:, None]
    a[0, 1] = np.nan
    x = xp.asarray(a)
    y = batch_norm(x, None, None, None, None, training=True)
    assert type(y) is type(x)
    assert np.isnan(host(y)).all(axis=0).tolist() == [False, True]
    assert not np.isnan(host(y)[:, 0]).any()


def f32(*shape):
    return np.ones(shape, "float32")


@pytest.mark.parametrize("x, gamma, beta, mean, var, training, error, message", [
    (f32(1, 3), None, None, f32(3), f32(3), True, ValueError,
     r"x \(1, 3\) has one value per channel"),
    (f32(1, 1, 1, 3), None, None, None, None, True, ValueError, r"x \(1, 1, 1, 3\) has one value"),
    (f32(3), None, None, f32(3), f32(3), True, ValueError, r"x has shape \(3,\), wanted"),
    (f32(4, 0), None, None, f32(0), f32(0), True, ValueError, r"x has shape \(4, 0\), wanted"),
    (f32(4, 3), f32(4), None, f32(3), f32(3), True, ValueError,
     r"gamma has shape \(4,\), wanted \(3,\) for x \(4, 3\)"),
    (f32(4, 3), None, f32(1, 3), f32(3), f32(3), True, ValueError, r"beta has shape \(1, 3\)"),
    (f32(4, 3), None, None, f32(3), f32(2), True, ValueError, r"running_var has shape \(2,\)"),
    (f32(4, 3), None, None, None, None, False, ValueError, "missing and missing, wanted both$"),
    (f32(4, 3), None, None, f32(3), None, True, ValueError, "given and missing, wanted both, or"),
    (f32(4, 3), f32(3).astype(float), None, f32(3), f32(3), True, TypeError,
     "x is float32, gamma is float64"),
    (f32(4, 3).astype("float16"), None, None, f32(3).astype("float16"), f32(3), True, TypeError,
     "running_mean is float16, wanted float32 for x float16"),
    (f32(4, 3).astype(int), None, None, f32(3), f32(3), True, TypeError, "x is int64, wanted"),
])
def test_refuses(x, gamma, beta, mean, var, training, error, message):
    with pytest.raises(error, match=message):
        batch_norm(x, gamma, beta, mean, var, training=training)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("bad", ["inf", "nan", "1e38"])
def test_what_overflows_does_so_quietly(rng, dtype, activation, bad):
    """As in all other ops: a loss scale looks for it. A warning is an error in these tests."""
    x, gy = (rng.standard_normal((2, 20, 3)) * 100).astype(dtype)
    with np.errstate(over="ignore"):
        x[0, 0], gy[1, 1] = (np.float64(bad).astype(dtype) for _ in "xg")
    y, pull = vjp(lambda x, gamma, beta: batch_norm(
        x, gamma, beta, None, None, training=True, activation=activation), x, np.ones(3, dtype),
        np.zeros(3, dtype))
    assert not all(np.isfinite(a.astype("float64")).all() for a in (y, *pull(gy)))


def test_refuses_other_activations_and_residuals():
    with pytest.raises(ValueError, match="activation is 'step', wanted None, 'relu', "):
        batch_norm(f32(4, 3), None, None, None, None, training=True, activation="step")
    with pytest.raises(ValueError, match=r"residual has shape \(3,\), wanted \(4, 3\)"):
        batch_norm(f32(4, 3), None, None, None, None, training=True, residual=f32(3))
    with pytest.raises(TypeError, match="x is float32, residual is float64"):
        batch_norm(f32(4, 3), None, None, None, None, training=True, residual=np.ones((4, 3)))


def test_refuses_a_negative_eps():
    with pytest.raises(ValueError, match="eps is -1, wanted at least 0"):
        batch_norm(f32(4, 3), None, None, None, None, training=True, eps=-1)


def test_refuses_statistics_on_the_other_device(cp):
    with pytest.raises(TypeError, match="do not mix"):
        batch_norm(cp.asarray(f32(4, 3)), None, None, f32(3), f32(3), training=True)


# -- constant channels, and numbers far from 0 ------------------------------------------------


CONSTANTS = {  # dtype: values, of which few are a short binary fraction
    "float32": [0.0, 1.0, 0.1, 100.1, 10000.1, -3.3e7, 1.7e12, 1e18, 1e-30],
    "float64": [0.0, 0.1, 10000.1, 1e18, -1.1e140], "float16": [0.1, 999.9, 65504.0],
    "bfloat16": [0.1, 10000.1, 1e18]}


@pytest.mark.parametrize("shape", [(16, 8, 8), (3, 7, 7), (1, 5, 40)], ids=str)
@pytest.mark.parametrize("dtype", CONSTANTS)
def test_a_constant_channel_becomes_beta(xp, rng, dtype, shape):
    """Its mean is its very value and its variance 0; so are its gradients."""
    values = make(CONSTANTS[dtype], dtype)
    C = len(values)
    x = np.broadcast_to(values, (*shape, C)).copy()
    _, gamma, beta, gy, mean, var = data(rng, (*shape, C), dtype)
    y, gx, ggamma, gbeta, new_mean, new_var = run(xp, x, gamma, beta, gy, 0 * mean, var,
                                                  momentum=0.5)
    np.testing.assert_array_equal(y, np.broadcast_to(beta, y.shape))
    np.testing.assert_array_equal(new_mean, values.astype(new_mean.dtype) / 2)
    np.testing.assert_array_equal(new_var, var / 2)
    np.testing.assert_array_equal(ggamma, np.zeros_like(gamma))
    want = definition(x, gamma, beta, gy, True)
    close(gbeta, want[3].astype(gbeta.dtype), terms=count(x))
    close(gx, want[1].astype(gx.dtype), terms=count(x))


def test_a_constant_channel_in_many_chunks(rng, monkeypatch):
    monkeypatch.setattr(threads, "CACHE", 1 << 12)
    x = np.full((40, 8, 8, 3), 10000.1, "float32")
    x[..., 1] = rng.standard_normal(x.shape[:3])
    y = batch_norm(x, None, None, None, None, training=True)
    assert not y[..., [0, 2]].any()
    want = definition(x[..., 1:2], np.ones(1), np.zeros(1), x[..., 1:2], True)[0]
    close(y[..., 1:2], want.astype("float32"), terms=count(x))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12, 2e17])
def test_numbers_of_any_size(xp, rng, scale):
    """Up to 1e18: squares do not overflow, nor are differences lost. eps is as small as they."""
    x, gamma, beta, gy, mean, var = data(rng, (40, 6, 5, 3), "float32")
    x = (x * np.float32(scale)).astype("float32")
    eps = 1e-5 * scale**2 if scale > 1 else 1e-30
    got = run(xp, x, gamma, beta, gy, mean, var, momentum=1.0, eps=eps)
    want = definition(x, gamma, beta, gy, True, eps=eps) + [*statistics(x, mean, var, 1.0)]
    for a, b in zip(got, want, strict=True):
        close(a, b.astype("float32"), terms=count(x))


@pytest.mark.parametrize("far", [30.0, 1e4, 1e6])
def test_a_mean_far_from_0(xp, rng, far):
    """The data are as exact as float32 holds them; beside that the GPU rounds the mean."""
    x, gamma, beta, gy, mean, var = data(rng, (64, 8, 8, 3), "float32")
    x = (x + np.float32(far)).astype("float32")
    y, gx, *_ = run(xp, x, gamma, beta, gy, mean, var)
    want = definition(x, gamma, beta, gy, True)
    rounding = 0 if xp is np else 2 * far * 2.0**-23 * np.abs(gamma).max()
    assert np.abs(y - want[0]).max() <= 1e-5 + rounding
    assert np.abs(gx - want[1]).max() <= 1e-5 + rounding


@pytest.mark.parametrize("shape", [(64, 4), (8, 9, 7, 3)], ids=str)
@pytest.mark.parametrize("scale", [1e19, 1e25, 1e36])
def test_beyond_1e18_both_devices_give_beta(xp, rng, scale, shape):
    x, gamma, beta, gy, mean, var = data(rng, shape, "float32")
    x[..., 1:] *= np.float32(scale)
    y, gx, ggamma, gbeta, new_mean, new_var = run(xp, x, gamma, beta, gy, mean, var)
    np.testing.assert_array_equal(y[..., 1:], np.broadcast_to(beta[1:], y[..., 1:].shape))
    assert not gx[..., 1:].any() and not ggamma[1:].any()
    assert np.isinf(new_var[1:]).all() and np.isfinite(new_mean).all()
    want = definition(x[..., :1], gamma[:1], beta[:1], gy[..., :1], True)
    close(y[..., :1], want[0].astype("float32"), terms=count(x))
    close(gbeta[:1], want[3].astype("float32"), terms=count(x))


def test_inference_far_from_0(xp, rng):
    """(x - mean) * scale, not x * scale - mean * scale."""
    x, gamma, beta, gy, mean, var = data(rng, (50, 6), "float32")
    mean = mean + np.float32(1e5)
    x = (x + mean).astype("float32")
    y = run(xp, x, gamma, beta, gy, mean, var, training=False)[0]
    want = definition(x, gamma, beta, gy, False, mean, var)[0]
    close(y, want.astype("float32"))


@pytest.mark.parametrize("dtype, value", [("float32", 1e30), ("float32", 3.6e26),
                                          ("float64", 1e200)])
@pytest.mark.parametrize("share", [0, 96])
def test_far_beyond_1e18_the_variance_is_0_or_infinite(xp, dtype, value, share):
    x = np.full((396, 1), value, dtype)
    x[:share] *= -1
    mean, var = xp.zeros(1, dtype), xp.ones(1, dtype)
    y = batch_norm(xp.asarray(x), None, None, mean, var, training=True)
    assert (host(y) == 0).all()
    close(var, np.full(1, np.inf if share else 0.9, dtype))
