"""LossScale: PyTorch's GradScaler, what is found, float16 that would underflow, state, refusals."""

import numpy as np
import pytest
from optim_tools import draw, give, joined, parameters

import gpuconv as gpc
from check import DTYPES, close, host, make
from gpuconv import files, kernels, nn, ops, threads
from gpuconv.autograd import Parameter
from gpuconv.optim import SGD, Adam, LossScale, clip_grad_norm, flat

#        overflows, one step each
PLANS = {"never": "........", "grows between": "...x....x..", "at once": "xxx....",
         "just before growth": "..x..x...", "always": "xxxxxx", "on growth": "...x...x...x"}


def numbers(scaler):
    """Scale, counter, multiplier, skip."""
    control = host(scaler.optimizer.control)
    return float(host(scaler.scale)), int(host(scaler.counter)), control[1], control[2]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_is_pytorchs_grad_scaler(xp, rng, plan, max_norm):
    torch = pytest.importorskip("torch")
    ps = parameters(xp, rng)
    theirs = [torch.nn.Parameter(torch.tensor(host(p.data))) for p in ps]
    sgd, their = SGD(ps, 0.1, momentum=0.9), torch.optim.SGD(theirs, 0.1, momentum=0.9)
    options = dict(growth_factor=4.0, backoff_factor=0.25, growth_interval=3)
    scaler = LossScale(sgd, 2.0**8, growth=4.0, backoff=0.25, interval=3)
    judge = torch.amp.GradScaler("cpu", init_scale=2.0**8, **options)
    judge.scale(torch.zeros(()))  # only now does it have a scale
    for step, bad in enumerate(plan):
        scale = judge.get_scale()
        assert float(host(scaler.scale)) == scale
        gradients = [make(scale * g, "float32") for g in draw(rng)]
        if bad == "x":
            gradients[step % 4].ravel()[-1:] = (np.inf, np.nan, -np.inf)[step % 3]
        give(ps, gradients, xp)
        for q, g in zip(theirs, gradients, strict=True):
            q.grad = torch.tensor(g)
        scaler.check()
        judge.unscale_(their)
        if max_norm:
            norm = clip_grad_norm(sgd, max_norm)
            want = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
            close(norm, want.numpy(), terms=200)
        sgd.step()
        judge.step(their)
        judge.update()
        tracker = judge.state_dict()["_growth_tracker"]
        assert numbers(scaler) == (judge.get_scale(), tracker, 1 / scale, bad == "x")
        close(joined([p.data for p in ps]), joined([q.detach().numpy() for q in theirs]),
              terms=100)


def test_the_numbers_of_a_plan_by_hand(xp):
    p = Parameter(xp.zeros(3, "float16"))
    sgd = SGD([p], 0.1)
    scaler = LossScale(sgd, 8.0, interval=2)
    found = []
    for bad in "..x...":
        p.grad.fill(np.nan if bad == "x" else 1)
        scaler.check()
        found.append(numbers(scaler))
    assert found == [(8, 1, 1 / 8, 0), (16, 0, 1 / 8, 0), (8, 0, 1 / 16, 1), (8, 1, 1 / 8, 0),
                     (16, 0, 1 / 8, 0), (16, 1, 1 / 16, 0)]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bad_number_is_found_wherever_it_is(xp, rng, dtype, bad):
    ps = parameters(xp, rng, dtype)
    scaler = LossScale(SGD([{"params": ps[:2]}, {"params": ps[2:]}], 0.1))
    largest = 3e38 if dtype in ("float32", "bfloat16") else 6e4 if dtype == "float16" else 1e308
    for p in ps:
        p.grad.fill(largest)  # whose square, or sum, would overflow
    scaler.check()
    assert numbers(scaler)[3] == 0
    for p in ps:
        for where in {0, p.size // 2, p.size - 1}:
            p.grad.reshape(-1)[where : where + 1].fill(bad)
            scaler.check()
            assert numbers(scaler)[3] == 1, (p.shape, where)
            p.grad.fill(0)
            scaler.check()
            assert numbers(scaler)[3] == 0


def test_frozen_parameters_do_not_count(xp, rng):
    ps = parameters(xp, rng)
    scaler = LossScale(SGD(ps, 0.1))
    ps[1].requires_grad = ps[2].requires_grad = False
    ps[2].grad.fill(np.nan)
    scaler.check()
    assert numbers(scaler)[3] == 0
    ps[2].requires_grad = True
    scaler.check()
    assert numbers(scaler)[3] == 1
    for p in ps:
        p.requires_grad = False
    scaler.check()
    assert numbers(scaler)[3] == 0


@pytest.mark.parametrize("blocks", [1, 7, 2**16])
@pytest.mark.parametrize("where", [0, 70_001, 299_999])
def test_large_gradients_in_slices(xp, monkeypatch, blocks, where):
    monkeypatch.setattr(kernels, "MAX_BLOCKS", blocks)
    monkeypatch.setattr(flat, "CHUNK", 50_000)
    monkeypatch.setattr(threads, "count", lambda: 2)
    p = Parameter(xp.zeros(300_000, "float16"))
    scaler = LossScale(SGD([p], 0.1))
    p.grad[where : where + 1].fill(np.inf)
    scaler.check()
    assert numbers(scaler) == (2.0**15, 0, 2.0**-16, 1)


def test_more_slices_than_a_block_has_threads(xp):
    ps = [Parameter(xp.zeros(1, "float32")) for _ in range(300)]
    scaler = LossScale(SGD([{"params": [p]} for p in ps], 0.1))  # a flat buffer each
    for bad in (ps[299:], ps):
        for p in bad:
            p.grad.fill(np.inf)
        scaler.check()
        assert numbers(scaler)[3] == 1  # however many there are


def test_a_scale_stays_within_float32(xp):
    p = Parameter(xp.zeros(1, "float32"))
    scaler = LossScale(SGD([p], 0.1), 2.0**126, interval=1)
    for _ in range(3):
        scaler.check()
    assert numbers(scaler) == (2.0**127, 0, 2.0**-127, 0)
    p.grad.fill(np.nan)
    scaler = LossScale(scaler.optimizer, 2.0**-125)
    for used in (2.0**-125, 2.0**-126, 2.0**-126):  # the least of full precision
        scaler.check()
        assert numbers(scaler) == (2.0**-126, 0, 1 / used, 1)


def test_a_fixed_scale_leaves_steps_out_all_the_same(xp):
    p = Parameter(xp.ones(2, "float16"))
    sgd = SGD([p], 0.5)
    scaler = LossScale(sgd, 128.0, growth=1, backoff=1, interval=1)
    for value, want in ((np.inf, 1), (128, 0.5), (np.nan, 0.5)):
        p.grad.fill(value)
        scaler.check()
        sgd.step()
        assert host(p.data).tolist() == [want] * 2 and float(host(scaler.scale)) == 128


# -- with a loss ---------------------------------------------------------------------------


def test_scale_is_what_backward_begins_with(xp, rng):
    x, labels = xp.asarray(make(rng.standard_normal((6, 4)), "float32")), xp.arange(6) % 3
    layer = nn.Linear(4, 3)
    if xp is not np:
        layer.to("cuda")
    scaler = LossScale(SGD(layer.parameters(), 0.1), 2.0**12)
    found = []
    for backward in (lambda loss: loss.backward(), lambda loss: loss.backward(scaler.scale),
                     lambda loss: scaler.multiply(loss).backward(),
                     lambda loss: loss.backward(scaler.multiply(xp.ones((), "float32")))):
        scaler.optimizer.zero_grad()
        backward(ops.softmax_cross_entropy(layer(x), labels))
        found.append(host(scaler.optimizer.all_flats()[0].grad).copy())
    for scaled in found[1:]:
        np.testing.assert_array_equal(scaled, found[0] * 2**12)
    assert float(host(scaler.scale)) == 2**12


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_gradients_that_float16_cannot_hold(xp, kind):
    """A slope of 1e-8 is 0 in float16: nothing is learnt without a scale."""
    def trained(scale):
        p = Parameter(xp.ones(4, "float16"))
        optimizer = kind([p], 2.0**20 if kind is SGD else 0.25)
        scaler = LossScale(optimizer, scale)
        for _ in range(2):
            optimizer.zero_grad()
            tiny = xp.asarray(np.float16(1e-4)), xp.asarray(np.float16(1e-4))
            y = gpc.Tensor(xp.ones(4, "float16")) * p
            for t in tiny:
                y = y * t
            y.backward(xp.full(4, float(host(scaler.scale)), "float16"))
            scaler.check()
            optimizer.step()
        return host(p.data)

    assert (trained(1.0) == 1).all()
    assert (trained(2.0**14) < 0.99).all()


# -- state ---------------------------------------------------------------------------------


def test_goes_on_where_it_was(xp, tmp_path):
    def make_one(scale):
        return LossScale(SGD([Parameter(xp.zeros(1, "float32"))], 0.1), scale, interval=3)

    first, second = make_one(64.0), make_one(2.0)
    for _ in range(4):
        first.check()
    files.save(tmp_path / "scale", first.state_dict())
    held = second.scale
    second.load_state_dict(files.load(tmp_path / "scale")[0])
    assert second.scale is held
    for _ in range(3):
        first.check()
        second.check()
        assert numbers(first) == numbers(second)
    assert numbers(first) == (256, 1, 1 / 256, 0)


@pytest.mark.parametrize("change, message", [
    ({"scale": None}, "missing scale"), ({"more": np.ones(1)}, "unexpected more"),
    ({"scale": np.array(2.0)}, r"scale is float64 \(\), wanted float32 \(\)"),
    ({"counter": np.zeros(1, "int64")}, r"counter is int64 \(1,\), wanted int64 \(\)"),
    ({"scale": np.array(3.0, "float32")}, "scale is 3.0, wanted a power of two"),
    ({"scale": np.array(np.nan, "float32")}, "scale is nan, wanted a power of two"),
    ({"counter": np.array(-1)}, "counter is -1, wanted at least 0"),
])
def test_a_bad_state_changes_nothing(xp, change, message):
    scaler = LossScale(SGD([Parameter(xp.zeros(1, "float32"))], 0.1), 4.0)
    bad = {n: a for n, a in ({"scale": np.array(8, "float32"), "counter": np.array(5)}
                             | change).items() if a is not None}
    with pytest.raises(ValueError, match=f"LossScale: load_state_dict: .*{message}"):
        scaler.load_state_dict(bad)
    assert numbers(scaler)[:2] == (4, 0)


@pytest.mark.parametrize("options, message", [
    (dict(scale=3.0), "scale is 3.0, wanted a power of two"),
    (dict(scale=0.0), "scale is 0.0"), (dict(scale=-2.0), "scale is -2.0"),
    (dict(scale=float("inf")), "scale is inf"), (dict(scale=2.0**128), "scale is 3.4"),
    (dict(growth=1.5), "growth is 1.5"), (dict(backoff=0.3), "backoff is 0.3"),
    (dict(growth=0.5), "growth is 0.5, wanted at least 1"),
    (dict(backoff=2.0), "backoff is 2.0, wanted at most 1"),
    (dict(interval=0), "interval is 0, wanted at least 1"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=f"LossScale: .*{message}"):
        LossScale(SGD([Parameter(np.zeros(1))], 0.1), **options)


def test_refuses_what_is_no_optimiser_or_spent_or_too_narrow():
    with pytest.raises(TypeError, match="LossScale: optimizer is list, wanted an Optimizer"):
        LossScale([])
    p = Parameter(np.zeros(1, "float16"))
    sgd = SGD([p], 0.1)
    scaler = LossScale(sgd)
    with pytest.raises(TypeError, match="wants a loss of float32 or float64, got float16"):
        scaler.multiply(p)
    sgd.release()
    with pytest.raises(RuntimeError, match=r"check after release\(\): the optimiser holds"):
        scaler.check()


@pytest.mark.parametrize("y, got", [
    (np.ma.ones(2), "MaskedArray"), (np.arange(3), "int64"), (np.ones(2, complex), "complex128"),
    (nn.Linear(1, 1), "Linear"), (np, "module"), (1.0, "float"), ([1.0], "list"),
    (np.dtype("float32"), "Float32DType"), (np.float32, "the class float32"),
    (gpc.Tensor(np.arange(3)), "int64"), (np.array(["a"]), "<U1")],
    ids=lambda value: repr(value)[:20])
def test_multiply_refuses_what_is_no_loss(y, got):
    scaler = LossScale(SGD([Parameter(np.zeros(1, "float32"))], 0.1), 4.0)
    with pytest.raises(TypeError, match=f"LossScale.multiply wants a loss of float32 or float64, "
                                        f"got {got}"):
        scaler.multiply(y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_multiply_keeps_the_dtype(dtype):
    scaler = LossScale(SGD([Parameter(np.zeros(1, "float32"))], 0.1), 4.0)
    for y in (np.ones(2, dtype), np.ones((), dtype), np.dtype(dtype).type(1)):
        scaled = scaler.multiply(y)
        assert scaled.dtype == dtype and (scaled == 4).all()
    assert scaler.multiply(gpc.Tensor(np.ones(2, dtype))).data.tolist() == [4, 4]


def test_devices_do_not_mix(cp):
    sgd = SGD([Parameter(np.zeros(2)), Parameter(cp.zeros(2))], 0.1)
    with pytest.raises(ValueError, match="SGD: parameters are on cpu and cuda:0, wanted one dev"):
        LossScale(sgd)
