"""What changes from step to step, beside the parameters: factor, multiplier, skip, counts."""

import numpy as np
import pytest
from optim_tools import KINDS, SHAPES, Weights, draw, everything, give, joined, parameters

from check import DTYPES, close, host
from gpuconv import kernels
from gpuconv.autograd import Parameter
from gpuconv.optim import EMA, SGD, Adam, LossScale, Muon, clip_grad_norm

# -- factor, multiplier --------------------------------------------------------------------


def test_factor_is_written_where_the_kernels_read_it(xp, rng):
    sgd = SGD(parameters(xp, rng), 0.1)
    assert sgd.factor == 1 and host(sgd.control).tolist() == [1, 1, 0, 0]
    assert isinstance(sgd.control, xp.ndarray) and sgd.control.dtype == "float64"
    sgd.factor = 1 / 3
    assert sgd.factor == 1 / 3 and host(sgd.control).tolist() == [1 / 3, 1, 0, 0]


def in_two(kind, ps, **settings):
    """An optimiser of two groups."""
    return kind([{"params": ps[:2]}, {"params": ps[2:]}], **settings)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind, settings", KINDS)
def test_each_group_may_have_a_factor_of_its_own(xp, rng, kind, settings, dtype):
    """As two optimisers."""
    ps = parameters(xp, rng, dtype)
    twins = [Parameter(p.data.copy()) for p in ps]
    optimizer = in_two(kind, ps, **settings)
    others = kind(twins[:2], **settings), kind(twins[2:], **settings)
    for factors in ((0.5, 0.125), (1.0, 0.0), (0.25, 0.25)):
        some = draw(rng)
        give(ps, some, xp)
        give(twins, some, xp)
        optimizer.factor = list(factors)
        for other, factor in zip(others, factors, strict=True):
            other.factor = factor
        assert optimizer.factors == factors and optimizer.factor == factors[0]
        for one in (optimizer, *others):
            one.step()
        for p, q in zip(ps, twins, strict=True):
            np.testing.assert_array_equal(host(p.data), host(q.data))


def test_a_row_for_each_group(xp, rng):
    sgd = in_two(SGD, parameters(xp, rng), lr=0.1)
    assert host(sgd.table).tolist() == [[1, 1, 0, 0]] * 2
    sgd.factor = 0.5
    assert host(sgd.table).tolist() == [[0.5, 1, 0, 0]] * 2 and sgd.factors == (0.5, 0.5)
    sgd.factor = np.array([0.25, 2])
    assert host(sgd.table).tolist() == [[0.25, 1, 0, 0], [2, 1, 0, 0]]
    sgd.control[2:3].fill(7)  # the first row, live
    assert host(sgd.table).tolist()[0] == [0.25, 1, 7, 0]
    assert [flat.control.tolist()[0] for flats in sgd.flats for flat in flats] == [0.25, 2]


@pytest.mark.parametrize("factors", [[], [0.5], [1, 2, 3]])
def test_as_many_factors_as_groups(rng, factors):
    sgd = in_two(SGD, parameters(np, rng), lr=0.1)
    sgd.factor = 0.5
    with pytest.raises(ValueError, match="SGD: factor is .*, wanted a number, or one for each of "
                                         "2 groups"):
        sgd.factor = factors
    assert sgd.factors == (0.5, 0.5) and sgd.table[:, 0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_loss_scale_speaks_to_every_group(xp, rng, bad):
    """Wherever the overflow was."""
    ps = parameters(xp, rng)
    sgd = in_two(SGD, ps, lr=0.1)
    sgd.factor = [0.5, 0.25]
    scaler = LossScale(sgd, 4.0)
    for value, skip in ((np.inf, 1), (1, 0)):
        before = [host(p.data).copy() for p in ps]
        ps[3 * bad].grad.fill(value)
        scaler.check()
        scale = 4 if skip else 2
        assert host(sgd.table).tolist() == [[0.5, 1 / scale, skip, 0], [0.25, 1 / scale, skip, 0]]
        sgd.step()
        assert [(host(p.data) == a).all() for p, a in zip(ps, before, strict=True)] == (
            [True] * 4 if skip else [i != 3 * bad for i in range(4)])


# -- stop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, settings", [*KINDS, pytest.param(
    Muon, dict(lr=0.1, orthogonal=False), id="Muon")])
def test_every_group_has_a_stop(rng, kind, settings):
    first, second = parameters(np, rng), parameters(np, rng)
    optimizer = kind([{"params": first[:2], "stop": 0.25}, {"params": first[2:]}], **settings)
    assert [group["stop"] for group in optimizer.groups] == [0.25, 1]
    state = optimizer.state_dict()
    assert state["group.0.stop"] == 0.25 and state["group.1.stop"] == 1
    other = in_two(kind, second, **settings)
    other.load_state_dict(state)
    assert [group["stop"] for group in other.groups] == [0.25, 1]
    older = {name: a for name, a in state.items() if not name.endswith("stop")}
    other.groups[1]["stop"] = 0.5
    other.load_state_dict(older)  # of a version that had none
    assert [group["stop"] for group in other.groups] == [0.25, 0.5]
    for stop in (0, -0.5, 1.5, float("nan")):
        message = f"{kind.__name__}: stop is {stop}, wanted .*more than"
        with pytest.raises(ValueError, match=message):
            kind([{"params": Parameter(np.ones(1)), "stop": stop}], **settings)
        with pytest.raises(ValueError, match=f"stop is {stop}"):
            other.load_state_dict(state | {"group.0.stop": np.array(stop)})
    assert [group["stop"] for group in other.groups] == [0.25, 0.5]


# -- control -------------------------------------------------------------------------------


def test_a_control_that_somebody_else_wrote_counts(xp):
    """A captured step writes it by a kernel: ``factor`` is only what was last set from here."""
    p = Parameter(xp.ones(3, "float32"))
    sgd = SGD([p], 0.5)
    p.grad.fill(1)
    sgd.control[:1].fill(0.5)
    sgd.step()
    assert host(p.data).tolist() == [0.75] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, settings", KINDS)
def test_the_multiplier_divides_what_the_loss_was_multiplied_by(xp, rng, kind, settings, dtype):
    gradients = [draw(rng) for _ in range(3)]
    ps = parameters(xp, rng, dtype)
    twins = [Parameter(p.data.copy()) for p in ps]
    plain, scaled = kind(ps, **settings), kind(twins, **settings)
    scaled.control[1:2].fill(1 / 64)
    for some in gradients:
        give(ps, some, xp)
        for p, q in zip(ps, twins, strict=True):
            q.grad[...] = p.grad * 64
        plain.step()
        scaled.step()
        for p, q in zip(ps, twins, strict=True):
            np.testing.assert_array_equal(host(p.data), host(q.data))


def test_clip_measures_the_true_gradients(xp, rng):
    torch = pytest.importorskip("torch")
    ps, gradients = parameters(xp, rng), draw(rng)
    theirs = [torch.nn.Parameter(torch.zeros(s)) for s in SHAPES]
    for q, g in zip(theirs, gradients, strict=True):
        q.grad = torch.tensor(g.astype("float32"))
    want = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    sgd = SGD(ps, 0.1)
    give(ps, [1024 * g for g in gradients], xp)
    sgd.control[1:2].fill(1 / 1024)
    close(clip_grad_norm(sgd, 0.5), want.numpy(), terms=158)
    close(joined([p.grad for p in ps]), 1024 * joined([q.grad.numpy() for q in theirs]), terms=158)


# -- skip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind, settings", KINDS)
def test_a_step_that_is_left_out_changes_not_a_bit(xp, rng, kind, settings, dtype):
    model = Weights(parameters(xp, rng, dtype), xp)
    ps = list(model.parameters())
    optimizer, ema = kind(ps, master=True, **settings), EMA(model, 0.9)
    give(ps, draw(rng), xp)
    optimizer.step()
    ema.update(optimizer)
    give(ps, [np.full(s, v) for s, v in zip(SHAPES, (np.inf, np.nan, 1, -np.inf), strict=True)], xp)
    model.count[...] = xp.asarray(np.arange(5) + 7)
    before, slopes = everything(model, optimizer, ema), [host(p.grad).tobytes() for p in ps]
    optimizer.control[2:3].fill(1)
    assert not np.isfinite(float(clip_grad_norm(optimizer, 0.5)))
    optimizer.step()
    ema.update(optimizer)
    assert everything(model, optimizer, ema) == before and ema.updates == 1
    assert [host(p.grad).tobytes() for p in ps] == slopes
    optimizer.control[2:3].fill(0)
    give(ps, draw(rng), xp)
    optimizer.step()
    ema.update(optimizer)
    after = everything(model, optimizer, ema)
    assert ema.updates == 2 and all(
        after[name] != before[name] for name in before if not name.startswith(("group", "count")))


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("kind, settings", KINDS)
def test_steps_after_one_that_is_left_out_know_nothing_of_it(xp, kind, settings, master):
    def trained(*skips):
        rng = np.random.default_rng(4)
        ps = parameters(xp, rng, "float16" if master else "float32")
        optimizer = kind(ps, master=master, **settings)
        for skip in skips:
            optimizer.control[2:3].fill(skip)
            give(ps, [np.full(s, np.nan) for s in SHAPES] if skip else draw(rng), xp)
            optimizer.step()
        return everything(Weights(ps, xp), optimizer)

    assert trained(0, 1, 1, 0) == trained(0, 0) and trained(1, 0) == trained(0)


def test_the_first_step_may_be_left_out(xp):
    p = Parameter(xp.ones(3, "float16"))
    adam, ema = Adam([p], 0.5, master=True), EMA(Weights([p], xp))
    p.grad.fill(np.inf)
    adam.control[2:3].fill(1)
    adam.step()
    ema.update(adam)
    assert host(p.data).tolist() == [1] * 3 and host(adam.counters["step"]).tolist() == [0]
    adam.control[2:3].fill(0)
    p.grad.fill(1)
    adam.step()
    assert host(p.data).tolist() == [0.5] * 3 and host(adam.counters["step"]).tolist() == [1]


# -- counts --------------------------------------------------------------------------------


def test_counts_lie_beside_the_parameters(xp, rng):
    ps = parameters(xp, rng)
    adam = Adam([{"params": ps[:1]}, {"params": ps[1:]}])
    ps[2].requires_grad = False
    for _ in range(3):
        adam.step()
    state = adam.state_dict()
    assert isinstance(state["step"], xp.ndarray) and state["step"].dtype == "int64"
    assert host(state["step"]).tolist() == [3, 3, 0, 3]
    adam.load_state_dict(state | {"step": np.array([5, 6, 7, 7])})
    assert adam.counters["step"] is state["step"] and host(state["step"]).tolist() == [5, 6, 7, 7]


def test_two_dtypes_in_a_group_count_each_its_own(xp, rng):
    wide, narrow = (parameters(xp, rng, dtype) for dtype in ("float32", "float16"))
    mixed = [p for pair in zip(wide, narrow, strict=True) for p in pair]
    adam = Adam(mixed, 0.1)
    twins = [Parameter(p.data.copy()) for p in mixed]
    others = [Adam([p], 0.1) for p in twins]
    for frozen in ((1, 4), (4,), ()):
        for i, (p, twin) in enumerate(zip(mixed, twins, strict=True)):
            p.requires_grad = twin.requires_grad = i not in frozen
            p.grad.fill(i - 3)
            twin.grad.fill(i - 3)
        for optimizer in (adam, *others):
            optimizer.step()
    assert host(adam.counters["step"]).tolist() == [3, 2, 3, 3, 1, 3, 3, 3]
    for p, twin in zip(mixed, twins, strict=True):
        np.testing.assert_array_equal(host(p.data), host(twin.data))


# -- averages over flat buffers ------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_flat_buffers_have_the_bits_of_averages_one_by_one(xp, rng, dtype):
    model = Weights(parameters(xp, rng, dtype), xp)
    one, whole = EMA(model, 0.75), EMA(model, 0.75)
    optimizer = SGD(model.parameters(), 0.1)
    for _ in range(4):
        give(model.parameters(), draw(rng), xp)
        optimizer.step()
        one.update()
        whole.update(optimizer)
    got, want = ({n: host(a).tobytes() for n, a in ema.state_dict().items()}
                 for ema in (whole, one))
    assert got == want
    optimizer.release()
    whole.update(SGD(model.parameters(), 0.1))  # another takes over
    one.update()
    for name, a in one.averages.items():
        np.testing.assert_array_equal(host(a), host(whole.averages[name]))


def test_parameters_of_another_module_in_the_buffer(xp, rng):
    ps = parameters(xp, rng)
    optimizer, model = SGD(ps, 0.1), Weights(ps[:2], xp)
    ema = EMA(model, 0.5, warmup=False)
    before = [host(p.data).copy() for p in ps]
    give(ps, [np.ones(s) for s in SHAPES], xp)
    optimizer.step()
    ema.update(optimizer)
    for i in range(2):
        close(ema.averages[f"p{i}"], (before[i] + host(ps[i].data)) / np.float32(2))


def test_one_launch_per_flat_buffer_of_averages(cp, rng, monkeypatch):
    launched, kernel = [], kernels.kernel
    model = Weights(parameters(cp, rng), cp)
    optimizer, ema = SGD(model.parameters(), 0.1), EMA(model)
    monkeypatch.setattr(kernels, "kernel", lambda *a, **c: launched.append(a[1]) or kernel(*a, **c))
    ema.update(optimizer)
    assert launched == ["ema_prepare", "ema_update", "ema_copy"]
