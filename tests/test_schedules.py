"""Schedules: PyTorch's numbers, end points, warm-up, refusals."""

import dataclasses
import math
from fractions import Fraction

import pytest

from gpuconv.optim import Constant, Cosine, Linear, OneCycle, StepDecay
from gpuconv.optim.schedules import steps_of

TOTAL = 40


def of_pytorch(make):
    """The factors that a scheduler of PyTorch gives to a base rate of 1."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    factors = []
    for step in range(TOTAL):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < TOTAL - 1:
            scheduler.step()
    return factors


@pytest.mark.parametrize("ours, theirs", [
    pytest.param(StepDecay(at=(0.5, 0.75), gamma=0.1),
                 lambda s, o: s.MultiStepLR(o, [20, 30], 0.1), id="step"),
    pytest.param(Cosine(), lambda s, o: s.CosineAnnealingLR(o, TOTAL), id="cosine"),
    pytest.param(Cosine(final=0.1), lambda s, o: s.CosineAnnealingLR(o, TOTAL, 0.1),
                 id="cosine-final"),
    pytest.param(Linear(), lambda s, o: s.LinearLR(o, 1.0, 0.0, TOTAL), id="linear"),
    pytest.param(Linear(final=0.2), lambda s, o: s.LinearLR(o, 1.0, 0.2, TOTAL),
                 id="linear-final"),
    pytest.param(OneCycle(final=0.04 / 1e4), lambda s, o: s.OneCycleLR(
        o, 1.0, TOTAL, cycle_momentum=False), id="onecycle"),
    pytest.param(OneCycle(peak_at=0.21, start=0.1, final=0.01), lambda s, o: s.OneCycleLR(
        o, 1.0, TOTAL, pct_start=0.21, div_factor=10, final_div_factor=10,
        cycle_momentum=False), id="onecycle-between-steps"),
    pytest.param(OneCycle(final=0.04 / 1e4, anneal="linear"), lambda s, o: s.OneCycleLR(
        o, 1.0, TOTAL, anneal_strategy="linear", cycle_momentum=False), id="onecycle-linear"),
    pytest.param(Constant(warmup=0.25), lambda s, o: s.LambdaLR(
        o, lambda step: min(1, (step + 1) / 10)), id="constant-warmup"),
])
def test_is_pytorchs(ours, theirs):
    want = of_pytorch(theirs)
    got = [ours(step, TOTAL) for step in range(TOTAL)]
    assert got == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_end_points():
    assert Constant()(0, 1) == Constant()(99, 100) == 1
    assert OneCycle()(0, 100) == pytest.approx(0.04) and OneCycle()(99, 100) == 0
    assert OneCycle()(29, 100) == 1
    assert Cosine()(0, 10) == 1 and Cosine(final=0.3)(10, 10) == 0.3
    assert StepDecay(at=())(9, 10) == 1


@pytest.mark.parametrize("schedule", [
    Constant(0.3), StepDecay(), Linear(0.3), Cosine(0.3, 0.1), OneCycle(), OneCycle(0.0),
    OneCycle(1.0), Cosine(warmup=1.0), Constant(warmup=1.0)])
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_any_length_gives_factors(schedule, total):
    factors = [schedule(step, total) for step in range(2 * total)]  # past the end: the last one
    assert all(0 <= f <= 1 and math.isfinite(f) for f in factors)
    assert len(set(factors[total:])) == 1
    assert max(factors) == 1


@pytest.mark.parametrize("total", [1, 3, 7, 20, 100, 391, 1000])
def test_a_share_of_a_run_is_the_fraction_that_is_written(total):
    """0.55 * 100 is 55.00000000000001, and step 55 is the first of what happens then, not 56."""
    for percent in range(101):
        share, exact = percent / 100, Fraction(percent, 100) * total
        assert steps_of(share, total) == exact
        decayed = [step for step in range(total) if StepDecay((share,), 0.5)(step, total) == 0.5]
        assert decayed == list(range(math.ceil(exact), total))
        rising = [step for step in range(total) if Constant(warmup=share)(step, total) < 1]
        assert rising == list(range(round(exact) - 1))
    for share in (1 / 3, 2 / 3, 1 / 7, 0.1 + 0.2, 0.123456789):
        assert math.isclose(steps_of(share, total), share * total, rel_tol=1e-15)
    assert steps_of(0.1 + 0.2, 10) == 3 == steps_of(1 / 3, 9)


def test_warmup_of_cosine():
    assert [Cosine(warmup=0.1)(step, 40) for step in range(5)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1])


def test_is_a_value():
    assert OneCycle() == OneCycle(0.3) and hash(Cosine()) == hash(Cosine())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cosine().final = 1


@pytest.mark.parametrize("make, message", [
    (lambda: Constant(-0.1), "Constant: warmup is -0.1, wanted 0..1"),
    (lambda: Cosine(final=2), "Cosine: final is 2, wanted 0..1"),
    (lambda: OneCycle(peak_at=1.5), "OneCycle: peak_at is 1.5"),
    (lambda: OneCycle(anneal="cos"), "OneCycle: anneal is 'cos', wanted 'cosine' or 'linear'"),
    (lambda: StepDecay(at=(0.5, 3)), r"StepDecay: a point of at is 3, wanted 0..1"),
    (lambda: StepDecay(gamma=-1), "StepDecay: gamma is -1"),
    (lambda: Cosine()(-1, 10), "Cosine: step is -1, wanted at least 0"),
    (lambda: Cosine()(0, 0), "Cosine: total is 0, wanted at least 1"),
])
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
