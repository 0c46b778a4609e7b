"""Groups of an optimiser that stop before the end of a run: their schedule, and then frozen."""

import functools
import math

import numpy as np
import pytest
from test_checkpoint import StopAt, told
from test_train import place, same, tiny, weights

from gpuconv import backend, nn, optim, random
from gpuconv.data import Loader
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.conv import Conv2d
from gpuconv.train import Callback, Checkpoint, fit
from gpuconv.train import step as steps
from gpuconv.train.lr_plan import LrPlan
from hostcuda import compiler, deferred, fake_cupy

captures = pytest.mark.skipif(backend._cupy is fake_cupy and not compiler(),
                              reason="neither a GPU nor g++")
STEPS = 12  # of a run of 4 epochs


def network(device="cpu", dtype="float32"):
    random.seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, 3)).to(device, dtype)


def groups(model, stop):
    return [{"params": list(model[0].parameters()), "stop": stop},
            {"params": [*model[1].parameters(), *model[4].parameters()], "lr": 0.02}]


KINDS = {"sgd": functools.partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
         "adamw": functools.partial(optim.AdamW, lr=0.01),
         "muon": functools.partial(optim.Muon, lr=0.02, orthogonal=False)}


def job(device="cpu", stop=0.4, *, kind="sgd", dtype="float32", n=24, model=None, **more):
    """4 epochs of 3 steps (n = 24, or 20: the third is smaller); (what must be the same, rows)."""
    model = network(device, dtype) if model is None else model
    optimizer = KINDS[kind](groups(model, stop))
    ema = more.pop("ema", None) and optim.EMA(model, 0.9)
    history = fit(model, tiny(n), **dict(epochs=4, batch_size=8, optimizer=optimizer, seed=3,
                                         schedule=optim.Linear(), ema=ema) | more)
    state = weights(model) | {name: np.asarray(backend.to_cpu(a)).copy()
                              for name, a in optimizer.state_dict().items()}
    return state, told(history)


def equal(got, want):
    assert got[1] == want[1]
    assert [name for name in want[0] if got[0][name].tobytes() != want[0][name].tobytes()] == []


class Watch(Callback):
    """Notes after each step which parameters are frozen, and the factors."""

    passive = True

    def __init__(self):
        self.rows = []

    def on_step(self, run):
        self.rows.append((tuple(not p.requires_grad for p in run.model.parameters()),
                          run.optimizer.factors, run.lr))


# -- what it means -------------------------------------------------------------------------


@pytest.mark.parametrize("stop, end", [(0.4, 5), (0.5, 6), (0.05, 1), (0.01, 0), (1.0, 12)])
def test_a_group_stops_as_if_somebody_had_frozen_it(xp, stop, end):
    want = network(place(xp))
    optimizer, data, number = KINDS["sgd"](groups(want, 1.0)), tiny().to(place(xp)), 0
    for epoch in range(4):
        for x, labels in Loader(data, 8, seed=3).epoch(epoch):
            if number == end:
                want[0].requires_grad_(False)
            optimizer.zero_grad()
            softmax_cross_entropy(want(x), labels).backward()
            optimizer.factor = [1 - number / end if number < end else 0.0,  # asked by nobody
                                1 - number / STEPS]
            optimizer.step()
            number += 1
    model = network(place(xp))
    job(place(xp), stop, model=model, eager=True)
    assert same(weights(model), weights(want))


def test_factors_and_flags_step_by_step(xp):
    watch = Watch()
    job(place(xp), callbacks=[watch])
    frozen = (True, True, False, False, False, False)
    assert [row[0] for row in watch.rows] == [(False,) * 6] * 5 + [frozen] * 7
    assert [row[1] for row in watch.rows] == [
        (1 - step / 5 if step < 5 else 0, 1 - step / 12) for step in range(12)]
    assert [row[2] for row in watch.rows] == [0.02 * row[1][1] for row in watch.rows]


def test_the_rate_that_is_told_is_that_of_the_most_numbers_in_training():
    """The head's 203 while they are trained, then the convolution's 40."""
    watch, model = Watch(), network()
    optimizer = optim.SGD([{"params": list(model[0].parameters()), "lr": 0.5},
                           {"params": [*model[1].parameters(), *model[4].parameters()],
                            "lr": 0.02, "stop": 0.5}], lr=1.0)
    history = fit(model, tiny(24), epochs=4, batch_size=8, optimizer=optimizer, seed=3,
                  schedule=optim.Linear(), callbacks=[watch])
    assert [row[2] for row in watch.rows] == pytest.approx(
        [0.02 * (1 - step / 6) for step in range(6)]
        + [0.5 * (1 - step / 12) for step in range(6, 12)])
    assert [row.lr for row in history.rows] == [watch.rows[step][2] for step in (2, 5, 8, 11)]


def test_a_schedule_is_asked_once_for_each_length(xp):
    asked = []

    def schedule(step, total):
        asked.append((step, total))
        return 1.0

    job(place(xp), schedule=schedule)
    assert sorted(asked) == sorted([(step, 12) for step in range(12)]
                                   + [(step, 5) for step in range(5)])


def test_a_frozen_layer_has_no_backward_pass(monkeypatch):
    calls, backward = [], Conv2d.backward_cpu
    monkeypatch.setattr(Conv2d, "backward_cpu",
                        lambda self, gy: calls.append(1) or backward(self, gy))
    job(stop=0.4)
    assert len(calls) == 5


@pytest.mark.parametrize("ends", ["whole", "stopped", "callback", "nan"])
def test_afterwards_all_is_as_before(xp, ends):
    """And what had been frozen by somebody else stays so."""
    model = network(place(xp))
    model[0].bias.requires_grad = model[4].bias.requires_grad = False
    seen = []

    class Break(Callback):
        def on_step(self, run):
            seen.append([p.requires_grad for p in model.parameters()])
            if len(seen) == 7 and ends == "callback":
                raise KeyboardInterrupt
            if len(seen) == 7 and ends == "nan":
                run.model[4].weight.data = run.model[4].weight.data + math.nan
            run.stop = len(seen) == 7 and ends == "stopped"

    error = {"callback": KeyboardInterrupt, "nan": FloatingPointError}.get(ends)
    if error:
        with pytest.raises(error), np.errstate(all="ignore"):
            job(place(xp), model=model, callbacks=[Break()])
    else:
        job(place(xp), model=model, callbacks=[Break()])
    assert seen[4] == [True, False, True, True, True, False]
    assert seen[5] == [False, False, True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == seen[4]


def test_a_group_stops_at_the_exact_share_of_a_run():
    """0.575 * 100 is 57.49999999999999 in floats, and 57.5, rounded to even, is 58."""
    optimizer = optim.SGD([{"params": nn.Linear(1, 1).parameters(), "stop": 0.575},
                           {"params": nn.Linear(1, 1).parameters()}], 0.1)
    assert LrPlan(optimizer, optim.Constant(), 100).ends == [58, 100]


def test_all_groups_that_stop_are_refused():
    model = network()
    for params, text in (([{"params": model.parameters(), "stop": 0.5}], r"\[0.5\] of 12 steps"),
                         (groups(model, 0.5), r"\[0.5, 0.9\] of 12 steps")):
        optimizer = optim.SGD(params, 0.1)
        optimizer.groups[-1]["stop"] = 0.9 if len(params) > 1 else 0.5
        with pytest.raises(ValueError, match=f"fit: all groups of SGD stop before the end of the "
                                             f"run, after the shares {text}"):
            fit(model, tiny(), epochs=4, batch_size=8, optimizer=optimizer)
        optimizer.release()


def test_one_that_stops_in_the_last_step_does_not(xp):
    model = network(place(xp))
    optimizer = optim.SGD([{"params": model.parameters(), "stop": 0.97}], 0.1)
    assert LrPlan(optimizer, optim.Linear(), 12).factors(11) == (1 - 11 / 12,)
    fit(model, tiny(), epochs=4, batch_size=8, optimizer=optimizer)


# -- going on ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, ema", [("sgd", None), ("adamw", 0.9), ("muon", None)])
@pytest.mark.parametrize("cut", [2, 4, 5, 6, 9])
def test_a_run_goes_on_to_the_same_bits(tmp_path, cut, kind, ema):
    """Cut before the freeze, with it, and after it; in an epoch, and at its end."""
    want = job(kind=kind, ema=ema)
    job(kind=kind, ema=ema, callbacks=[StopAt(cut), Checkpoint(tmp_path)])
    watch = Watch()
    equal(job(kind=kind, ema=ema, resume=tmp_path, callbacks=[watch]), want)
    assert [row[0][0] for row in watch.rows] == [step >= 5 for step in range(cut, 12)]


def test_another_stop_is_another_run(tmp_path):
    job(callbacks=[StopAt(2), Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match="optimizer was .*'stop': 0.4.*, is .*'stop': 0.5"):
        job(stop=0.5, resume=tmp_path)


# -- captured ------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch, cp):
    """(step of the run, batch size) of each graph that is captured."""
    made, capture = [], steps.CapturedStep.capture

    def noted(self, n):
        capture(self, n)
        made.append((self.number, n))

    monkeypatch.setattr(steps.CapturedStep, "capture", noted)
    return made


@captures
@pytest.mark.parametrize("stop, made", [
    (1.0, [1]), (0.4, [1, 6]),   # in the middle of an epoch
    (0.25, [1, 4]), (0.5, [1, 7]),  # between two
    (0.08, [2]), (0.01, [1])])   # when there was no graph yet, and from the start on
@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_the_captured_run_is_the_eager_one_and_is_captured_anew_once(graphs, stop, made, kind):
    want = job("cuda", stop, kind=kind, eager=True)
    assert not graphs
    equal(job("cuda", stop, kind=kind, eager=False), want)
    assert graphs == [(step, 8) for step in made]


@captures
@pytest.mark.parametrize("more", [
    dict(kind="adamw", ema=0.9), dict(dtype="float16"), dict(clip_norm=0.5, reduction="sum"),
    dict(callbacks=(Callback(),))], ids=["adamw ema", "float16", "clip sum", "callback"])
def test_each_batch_size_is_captured_anew_once(graphs, more):
    """The third step of an epoch has 4 images. Nothing is computed until somebody waits."""
    want = job("cuda", n=20, eager=True, **more)
    with deferred():
        equal(job("cuda", n=20, eager=False, **more), want)
    assert graphs == [(1, 8), (7, 8), (8, 4)]


@captures
@pytest.mark.parametrize("first, then", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("cut", [4, 5, 8])
def test_a_run_goes_on_in_the_other_kind(cp, tmp_path, first, then, cut):
    job("cuda", eager=first, callbacks=[StopAt(cut), Checkpoint(tmp_path)])
    equal(job("cuda", eager=then, resume=tmp_path), job("cuda", eager=True))
