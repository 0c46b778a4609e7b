"""Learning rate factors of each optimiser group over a run, and the step at which a group stops.

    end     = round(stop * total)            of a group, in steps, from the exact product
    factor  = schedule(step, end)            while step < end
    frozen                                   from then on: the factor is 0, no gradient is computed

All of this is a function of the step, so a resumed run needs no other state.
"""

import dataclasses
from collections.abc import Callable

from gpuconv.autograd import Parameter
from gpuconv.checks import check_number
from gpuconv.optim import Optimizer
from gpuconv.optim.schedules import steps_of

Schedule = Callable[[int, int], float]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Settings of a training step."""

    schedule: Schedule
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    seed: int = 0
    reduction: str = "mean"  # of the loss over a batch, or "sum"


class LrPlan:
    """Learning rate factors of an optimiser's groups, and their frozen parameters.

    Args:
        optimizer: its groups and their "stop" are read here, once.
        schedule: schedule(step, steps) is a factor of the learning rate.
        total: steps of the run.

    Raises:
        ValueError: all groups stop before the end.

    >>> import numpy as np
    >>> from gpuconv.optim import SGD
    >>> a, b = Parameter(np.ones(1)), Parameter(np.ones(1))
    >>> sgd = SGD([{"params": a, "stop": 0.5}, {"params": b}], lr=0.1)
    >>> plan = LrPlan(sgd, lambda step, steps: 1 - step / steps, 8)
    >>> [plan.factors(step) for step in (0, 2, 4)]
    [(1.0, 1.0), (0.5, 0.75), (0.0, 0.5)]
    >>> plan.freeze(3), plan.freeze(4), a.requires_grad, b.requires_grad
    (False, True, False, True)
    >>> plan.thaw(); a.requires_grad
    True
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total: int):
        self.optimizer, self.schedule = optimizer, schedule
        self.ends = [round(steps_of(float(group["stop"]), total)) for group in optimizer.groups]
        if max(self.ends) < total:
            stops = [float(group["stop"]) for group in optimizer.groups]
            raise ValueError(f"fit: all groups of {optimizer.name} stop before the end of the run, "
                             f"after the shares {stops} of {total} steps")
        self.frozen: list[Parameter] = []     # by ``freeze``
        self.stopped_groups: set[int] = set()

    def factors(self, step: int) -> tuple[float, ...]:
        """Return the factor of each group for a step of the run, counted from 0.

        >>> import numpy as np
        >>> from gpuconv.optim import SGD, Constant
        >>> LrPlan(SGD([Parameter(np.ones(1))], lr=0.1), Constant(), 8).factors(7)
        (1.0,)
        """
        by_end = {end: check_number("fit", f"schedule({step}, {end})", self.schedule(step, end),
                                    least=0)
                  for end in dict.fromkeys(self.ends) if step < end}
        return tuple(by_end.get(end, 0.0) for end in self.ends)

    def freeze(self, step: int) -> bool:
        """Freeze the groups that have reached their stop; return whether that froze a parameter."""
        before = len(self.frozen)
        for number, end in enumerate(self.ends):
            if end <= step and number not in self.stopped_groups:
                self.stopped_groups.add(number)
                self.frozen += [p for p in self.optimizer.groups[number]["params"]
                                if p.requires_grad]
        for p in self.frozen[before:]:
            p.requires_grad = False
        return len(self.frozen) > before

    def thaw(self) -> None:
        """Unfreeze all parameters that ``freeze`` has frozen."""
        for p in self.frozen:
            p.requires_grad = True
        self.frozen, self.stopped_groups = [], set()
