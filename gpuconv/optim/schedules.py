"""Learning rate schedules: schedule(step, total) is a factor of the learning rate.

    Constant   1
    StepDecay  gamma ** (number of points ``at`` that have passed)
    Linear     final + (1 - final) * (1 - share of the run)
    Cosine     final + (1 - final) * (1 + cos(pi * share of the run)) / 2
    OneCycle   start, up to 1 at ``peak_at``, down to final; each leg half a cosine, or straight

Schedules are functions of the step, without state. Points of the run are fractions of it; 0.55
means 55/100 exactly (``steps_of``). With a warm-up of W steps the factor first rises as
1/W, 2/W, ... W/W. Steps beyond ``total`` count as ``total``.

Sources: Loshchilov, Hutter, "SGDR", ICLR 2017; Smith, Topin, "Super-convergence", 2018.
"""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

from gpuconv.checks import check_choice, check_count, check_number, listed, short


@functools.lru_cache(256)
def steps_of(share: float, total: int) -> Fraction:
    """Return share * total without rounding.

    Args:
        share: of a run, 0 .. 1; a float stands for the nearest fraction with a denominator of at
            most 10^9.
        total: steps of the run.

    >>> 0.55 * 100, steps_of(0.55, 100), steps_of(1 / 3, 3)
    (55.00000000000001, Fraction(55, 1), Fraction(1, 1))
    """
    return Fraction(float(share)).limit_denominator(10**9) * total


def _fractions(schedule: Any, *names: str) -> None:
    for name in names:
        check_number(type(schedule).__name__, name, getattr(schedule, name), least=0, most=1)


def _check(schedule: Any, step: int, total: int) -> None:
    caller = type(schedule).__name__
    check_count(caller, "step", step, 0)
    check_count(caller, "total", total)


def _cosine(a: float, b: float, share: float) -> float:
    """Return the value between a and b on half a cosine, for a share of 0 to 1."""
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


def _straight(a: float, b: float, share: float) -> float:
    return a + (b - a) * share


@dataclasses.dataclass(frozen=True)
class Constant:
    """Factor 1, after a warm-up over the fraction ``warmup`` of the run.

    >>> [Constant(warmup=0.5)(step, 8) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Check the fractions."""
        _fractions(self, "warmup")

    def __call__(self, step: int, total: int) -> float:
        """Return the factor of step 0, 1, ... of ``total``."""
        _check(self, step, total)
        rise = round(steps_of(self.warmup, total))
        return min(1.0, (step + 1) / rise) if rise else 1.0


@dataclasses.dataclass(frozen=True)
class StepDecay:
    """Factor that is multiplied by ``gamma`` at each of the fractions ``at`` of the run.

    >>> [StepDecay(at=(0.5, 0.75), gamma=0.5)(step, 8) for step in range(8)]
    [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    at: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        """Check the fractions and the factor."""
        if not isinstance(self.at, (tuple, list)):
            raise TypeError(f"StepDecay: at is {short(self.at)}, wanted a tuple of fractions: "
                            "at=(0.5, 0.75)")
        for point in self.at:
            check_number("StepDecay", "a point of at", point, least=0, most=1)
        check_number("StepDecay", "gamma", self.gamma, least=0)

    def __repr__(self) -> str:
        points = listed(list(map(short, self.at))) + "," * (len(self.at) == 1)
        return f"StepDecay(at=({points}), gamma={short(self.gamma)})"

    def __call__(self, step: int, total: int) -> float:
        """Return the factor of step 0, 1, ... of ``total``."""
        _check(self, step, total)
        return float(self.gamma ** sum(step >= steps_of(point, total) for point in self.at))


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to ``final``, after a warm-up over the fraction ``warmup`` of the run.

    >>> [round(Cosine()(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the fractions."""
        _fractions(self, "warmup", "final")

    def __call__(self, step: int, total: int) -> float:
        """Return the factor of step 0, 1, ... of ``total``."""
        _check(self, step, total)
        rise = round(steps_of(self.warmup, total))
        if step < rise:
            return (step + 1) / rise
        fall = total - rise
        return _cosine(1.0, self.final, min(1.0, (step - rise) / fall) if fall else 0.0)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Straight line from 1 towards ``final``, which the step after the last would have.

    >>> [Linear()(step, 4) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the fractions."""
        _fractions(self, "final")

    def __call__(self, step: int, total: int) -> float:
        """Return the factor of step 0, 1, ... of ``total``."""
        _check(self, step, total)
        return _straight(1.0, self.final, min(1.0, step / total))


@dataclasses.dataclass(frozen=True)
class OneCycle:
    """Cycle from ``start`` up to 1, at the fraction ``peak_at`` of the run, and down to ``final``.

    >>> [round(OneCycle(peak_at=0.4, anneal="linear")(step, 5), 2) for step in range(5)]
    [0.04, 1.0, 0.67, 0.33, 0.0]
    """

    peak_at: float = 0.3
    start: float = 0.04
    final: float = 0.0
    anneal: str = "cosine"

    def __post_init__(self) -> None:
        """Check the fractions and the form."""
        _fractions(self, "peak_at", "start", "final")
        check_choice("OneCycle", "anneal", self.anneal, ("cosine", "linear"))

    def __call__(self, step: int, total: int) -> float:
        """Return the factor of step 0, 1, ... of ``total``."""
        _check(self, step, total)
        leg = _cosine if self.anneal == "cosine" else _straight
        last, peak = total - 1, max(0.0, self.peak_at * total - 1)
        if step < peak:
            return leg(self.start, 1.0, step / peak)
        return leg(1.0, self.final, min(1.0, (step - peak) / (last - peak)) if last > peak else 0.0)
