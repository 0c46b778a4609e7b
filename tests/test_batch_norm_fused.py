"""batch_norm and what follows it in the same op, bit for bit; moments from elsewhere."""

import sys

import numpy as np
import pytest
from test_batch_norm import SHAPES, count, data
from test_capture import Captured

from check import DTYPES, FUSED, close, grad_check, host, make, nchw, nhwc
from gpuconv import backend, kernels
from gpuconv.autograd import Tensor
from gpuconv.backend import accumulator
from gpuconv.ops.elementwise import activated, add, relu
from gpuconv.ops.engine import row_partition
from gpuconv.ops.norm.batch_norm import BatchNorm, batch_norm
from hostcuda import fake_cupy

module = sys.modules[batch_norm.__module__]  # the name in gpuconv.ops is the function


# -- with ReLU in one op -----------------------------------------------------------------


def with_relu(xp, x, gamma, beta, gy, mean, var, training, together):
    """What ``run`` gives, by one op or by two."""
    x, gamma, beta = (Tensor(xp.asarray(a), requires_grad=True) for a in (x, gamma, beta))
    mean, var = (xp.asarray(a.copy()) for a in (mean, var))
    y = batch_norm(x, gamma, beta, mean, var, training=training,
                   activation="relu" if together else None)
    y = y if together else relu(y)
    y.backward(xp.asarray(gy))
    return [host(a) for a in (y, x.grad, gamma.grad, beta.grad, mean, var)]


def assert_same_bits(got, want):
    for g, w in zip(got, want, strict=True):
        bits = f"u{g.dtype.itemsize}"
        np.testing.assert_array_equal(g.view(bits), w.view(bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_relu_it_is_both_bit_for_bit(xp, rng, shape, training, dtype):
    inputs = data(rng, shape, dtype)
    assert_same_bits(with_relu(xp, *inputs, training, together=True),
                     with_relu(xp, *inputs, training, together=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_relu_large_batches_too(rng, dtype):
    inputs = data(rng, (48, 17, 16, 24), dtype)  # rows of work that are no multiple of 8
    assert_same_bits(with_relu(np, *inputs, True, together=True),
                     with_relu(np, *inputs, True, together=False))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_with_relu_and_without_numbers(xp, rng, training):
    x, gamma, beta, gy, mean, var = data(rng, (2, 9, 3, 33), "float32")
    x[0, 0, 0, 1], x[0, 0, 0, 2], x[0, 0, 0, 3] = np.nan, np.inf, -np.inf
    gy[0, 1, 0, 4], gy[0, 1, 0, 5], gy[0, 1, 0, 6] = np.nan, np.inf, -np.inf
    gamma[7], beta[7], gamma[8], beta[8] = 0, 0, -0.0, -0.0
    inputs = x, gamma, beta, gy, mean, var
    with np.errstate(all="ignore"):
        got, want = (with_relu(xp, *inputs, training, together) for together in (True, False))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)
    assert not np.signbit(got[0][np.isfinite(got[0])]).any()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=["x", "gamma", "beta", "x+beta"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_with_relu_the_gradients_that_are_asked_for(xp, rng, training, wanted):
    x, gamma, beta, gy, mean, var = data(rng, (3, 5, 7, 4), "float32")
    want = with_relu(xp, x, gamma, beta, gy, mean, var, training, together=False)[1:4]
    inputs = [Tensor(xp.asarray(a), requires_grad=i in wanted)
              for i, a in enumerate((x, gamma, beta))]
    y = batch_norm(*inputs, xp.asarray(mean), xp.asarray(var), training=training, activation="relu")
    y.backward(xp.asarray(gy))
    for i, (tensor, w) in enumerate(zip(inputs, want, strict=True)):
        if i in wanted:
            np.testing.assert_array_equal(host(tensor.grad), w)
        else:
            assert tensor.grad is None


def test_with_relu_on_views_broadcasts_and_nothing(xp, rng):
    a, _, _, _, mean, var = data(rng, (3, 4, 6, 8), "float32")
    gamma, beta = rng.standard_normal((2, 8)).astype("float32")
    gy = np.broadcast_to(rng.standard_normal((6, 1, 8)).astype("float32"), (3, 6, 4, 8))
    inputs = a.transpose(0, 2, 1, 3), gamma, beta, gy, mean, var
    assert_same_bits(with_relu(xp, *inputs, True, together=True),
                     with_relu(xp, *inputs, True, together=False))
    empty = np.ones((0, 4, 4, 8), "float32")
    got = with_relu(xp, empty, gamma, beta, empty, mean, var, True, together=True)
    assert got[0].shape == got[1].shape == empty.shape and not got[2].any() and not got[3].any()


def test_with_relu_the_gradient_is_the_slope(rng):
    x, gamma, beta, _, mean, var = data(rng, (2, 4, 3, 2), "float64")
    grad_check(lambda x, gamma, beta: batch_norm(
        x, gamma, beta, mean.copy(), var.copy(), training=True, activation="relu"),
               x, gamma, beta, rng=rng)


def test_with_relu_it_saves_one_bit_more_for_each_number(rng):
    x, gamma, beta, gy, mean, var = data(rng, (4, 8, 8, 16), "float32")
    x, gamma, beta = (Tensor(a, requires_grad=True) for a in (x, gamma, beta))
    y = batch_norm(x, gamma, beta, mean, var, training=True, activation="relu")
    held = [a for a in vars(y.creator).values() if hasattr(a, "nbytes") and a is not x.data]
    assert sum(a.nbytes for a in held) == 4 * 16 * 4 + x.size // 8  # the mean in float64
    before = x.data.copy(), gy.copy()
    y.backward(gy)
    for now, then in zip((x.data, gy), before, strict=True):
        np.testing.assert_array_equal(now, then)


# -- with a residual and an activation in one op -------------------------------------------


MORE = [*((*pair, True) for pair in FUSED), *((None, dtype, True) for dtype in DTYPES),
        *(("gelu", dtype, False) for dtype in DTYPES)]


def with_more(xp, inputs, residual, activation, training, together, needs=(True,) * 4):
    """y, the gradients of x, gamma, beta and the residual, and the statistics afterwards."""
    *given, gy, mean, var = inputs
    tensors = [a if a is None else Tensor(xp.asarray(a), requires_grad=need)
               for a, need in zip([*given, residual], needs, strict=True)]
    more = dict(activation=activation, residual=tensors[3])
    mean, var = (xp.asarray(a.copy()) for a in (mean, var))
    y = batch_norm(*tensors[:3], mean, var, training=training, **more if together else {})
    if not together:
        y = y if residual is None else add(y, tensors[3])
        y = activated(y, activation)
    y.backward(xp.asarray(gy))
    grads = [t.grad for t in tensors if t is not None and t.requires_grad]
    return [host(a) for a in (y, *grads, mean, var)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("activation, dtype, adds", MORE)
def test_with_more_it_is_all_of_them_bit_for_bit(xp, rng, activation, adds, training, dtype):
    for shape in [(3, 5, 7, 24), (300, 7)] if dtype == "float32" else [(40, 24)]:
        inputs = data(rng, shape, dtype)
        residual = make(rng.standard_normal(shape), dtype) if adds else None
        assert_same_bits(*(with_more(xp, inputs, residual, activation, training, together)
                           for together in (True, False)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (1, 0, 1, 1)],
                         ids=["x", "gamma", "residual", "all but gamma"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_with_more_the_gradients_that_are_asked_for(xp, rng, activation, needs, training):
    inputs = data(rng, (30, 8), "float32")
    residual = rng.standard_normal((30, 8)).astype("float32")
    assert_same_bits(*(with_more(xp, inputs, residual, activation, training, together,
                                 map(bool, needs)) for together in (True, False)))


def test_with_more_a_mask_is_that_of_the_rounded_sum(xp):
    """What rounds to 0 in float16 lets nothing pass, however its sum came out."""
    x = make([[-1, -1], [1, 1]], "float16")
    beta = make([1 + 2**-10, 1], "float16")  # y of the first row is 2**-10, then 0
    residual = make([[-2.0**-10, 2**-24], [0, 0]], "float16")
    inputs = x, make([1, 1], "float16"), beta, make([[3, 5], [7, 9]], "float16"), *np.zeros(
        (2, 2), "float32")
    got = with_more(xp, inputs, residual, "relu", False, True)
    assert_same_bits(got, with_more(xp, inputs, residual, "relu", False, False))


def test_with_more_the_gradient_is_the_slope(rng):
    x, gamma, beta, residual, mean, var = data(rng, (2, 4, 3, 2), "float64")
    grad_check(lambda x, gamma, beta, residual: batch_norm(
        x, gamma, beta, mean.copy(), var.copy(), training=True, activation="gelu",
        residual=residual), x, gamma, beta, residual, rng=rng)


def test_with_a_fixed_scale_and_hardly_an_eps(xp, rng):
    """As in speed runs: gamma 1, beta trained, eps 1e-12, momentum 0.4; gelu behind it."""
    torch = pytest.importorskip("torch")
    x, _, beta, gy, mean, var = data(rng, (4, 5, 6, 8), "float32")
    tensors = [Tensor(xp.asarray(a), requires_grad=True) for a in (x, beta)]
    running = [xp.asarray(a.copy()) for a in (mean, var)]
    y = batch_norm(tensors[0], None, tensors[1], *running, training=True, momentum=0.4, eps=1e-12,
                   activation="gelu")
    y.backward(xp.asarray(gy))

    tx, tbeta, tgy, tmean, tvar = (torch.from_numpy(a.astype("float64")) for a in (
        nchw(x), beta, nchw(gy), mean, var))
    leaves = tx.requires_grad_(), tbeta.requires_grad_()
    ty = torch.nn.functional.gelu(torch.nn.functional.batch_norm(
        tx, tmean, tvar, None, tbeta, True, 0.4, 1e-12))
    tgx, tgbeta = torch.autograd.grad(ty, leaves, tgy)
    want = nhwc(ty), nhwc(tgx), tgbeta.numpy(), tmean.numpy(), tvar.numpy()
    for got, w in zip((y, *(t.grad for t in tensors), *running), want, strict=True):
        close(got, w.astype("float32"), terms=count(x))


def test_with_more_and_nothing_in_it(xp):
    empty, ones = np.ones((0, 4, 4, 8), "float32"), np.ones(8, "float32")
    for training in (True, False):
        for activation in (None, "gelu", "relu"):
            y, gx, ggamma, gbeta, more, mean, var = with_more(
                xp, (empty, ones, ones, empty, 2 * ones, 3 * ones), empty, activation, training,
                together=True)
            assert y.shape == gx.shape == more.shape == empty.shape
            assert not ggamma.any() and not gbeta.any()
            assert (mean == 2).all() and (var == 3).all()


@pytest.mark.skipif(backend._cupy is not fake_cupy, reason="captures with the stand-in")
def test_a_captured_pass_is_the_eager_one(rng):
    x, gamma, beta, gy, mean, var = data(rng, (70, 24), "float32")
    arrays = [fake_cupy.asarray(a) for a in (x, gamma, beta, x[::-1].copy())]
    running, gy = [fake_cupy.asarray(a) for a in (mean, var)], fake_cupy.asarray(gy)

    def step():
        tensors = [Tensor(a, requires_grad=True) for a in arrays]
        y = batch_norm(*tensors[:3], *running, training=True, activation="gelu",
                       residual=tensors[3])
        y.backward(gy)
        return [y.data, *(t.grad for t in tensors), *running]

    captured = Captured(step)
    results = []
    for run in (captured.replay, step):
        arrays[0][...] = fake_cupy.asarray(2 * x + 1)
        for a, start in zip(running, (mean, var), strict=True):
            a[...] = fake_cupy.asarray(start)
        fake_cupy.cuda.Device().synchronize()
        results.append([host(a) for a in run()])
    assert_same_bits(*results)


# -- moments from elsewhere, and memory that begins anywhere ---------------------------------


def of_slices(x, each):
    """(means, variances) of slices of so many rows of x (n, C); the last may hold fewer."""
    parts = [x[i:i + each].astype(np.float64) for i in range(0, len(x), each)]
    return [np.array([f(p) for p in parts], accumulator(x.dtype)) for f in (
        lambda p: p.mean(axis=0), lambda p: p.var(axis=0))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("each", [100, 64, 1], ids=["one slice", "two", "too many slices"])
def test_moments_take_the_place_of_a_pass_over_x(cp, rng, monkeypatch, each, dtype):
    monkeypatch.setattr(module, "SLICES", 32)
    monkeypatch.setattr(module, "MERGED", 30)
    x, gamma, beta, _, mean, var = data(rng, (100, 24), dtype)
    results = []
    for moments in (None, of_slices(x, each)):
        running = [cp.asarray(a.copy()) for a in (mean, var)]
        op = BatchNorm(*running, True, 0.3, 1e-5, "relu")
        op.needs = (False,) * 3
        monkeypatch.setattr(op, "moments", None) if moments else None  # not asked for
        y = op.forward_gpu(*map(cp.asarray, (x, gamma, beta)), moment_rows=each, moments=None
                           if moments is None else [cp.asarray(a) for a in moments])
        results.append([y, *running])
    for got, want in zip(*results, strict=True):
        close(got, want, terms=count(x))


@pytest.mark.parametrize("which", range(5), ids=["x", "gamma", "beta", "residual", "gy"])
def test_arrays_that_begin_anywhere(cp, rng, which):
    x, gamma, beta, gy, mean, var = data(rng, (30, 8), "float32")
    residual = rng.standard_normal((30, 8)).astype("float32")

    def given(a, i):
        if i != which:
            return cp.asarray(a)
        return cp.concatenate([cp.ones(1, a.dtype), cp.asarray(a).reshape(-1)])[1:].reshape(a.shape)

    def gradients(place):
        tensors = [Tensor(place(a, i), requires_grad=True)
                   for i, a in enumerate((x, gamma, beta, residual))]
        y = batch_norm(*tensors[:3], cp.asarray(mean), cp.asarray(var), training=True,
                       activation="relu", residual=tensors[3])
        y.backward(place(gy, 4))
        return [y, *(t.grad for t in tensors)]

    assert given((x, gamma, beta, residual, gy)[which], which).data.ptr % 16
    for got, want in zip(gradients(given), gradients(lambda a, i: cp.asarray(a)), strict=True):
        close(got, host(want), terms=count(x))


@pytest.mark.parametrize("itemsize, V", [(2, 8), (4, 4), (4, 1), (8, 2), (2, 1)])
def test_every_row_and_channel_is_in_one_part(itemsize, V):
    for n in (1, 7, 255, 256, 4097, 10**6, 10**9):
        for columns in (1, 2, 3, 8, 13, 32, 33, 40, 65, 256):
            cut = row_partition.partition((n, columns * V), V, itemsize)
            assert (cut.S - 1) * cut.per < n <= cut.S * cut.per
            assert 1 <= cut.lanes <= min(32, columns)
            tiles = -(-columns // cut.lanes)
            assert tiles * cut.S <= max(*row_partition.PARTS, tiles)
            assert cut.threads(V) == tiles * cut.S * kernels.BLOCK
            assert tiles == 1 or cut.lanes * V * itemsize % row_partition.SECTOR == 0
            assert columns > (tiles - 1) * cut.lanes
    assert row_partition.partition((0, 8), V, itemsize).threads(V) == 0


def test_on_the_gpu_an_activation_costs_no_memory(cp, rng):
    x, gamma, beta, residual, mean, var = (
        cp.asarray(a) for a in data(rng, (4, 8, 8, 16), "float32"))
    for activation in ("relu", "gelu"):
        tensors = [Tensor(a, requires_grad=True) for a in (x, gamma, beta, residual)]
        op = batch_norm(*tensors[:3], mean, var, training=True, activation=activation,
                        residual=tensors[3]).creator
        held = [a for a in vars(op).values() if hasattr(a, "nbytes")
                and not any(a is t.data for t in tensors)]
        assert sum(a.nbytes for a in held) == 2 * 16 * 4
