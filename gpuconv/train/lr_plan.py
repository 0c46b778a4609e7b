"""How fast each group of an optimiser learns over a run, and from when on not at all.

    end     = round(stop * total)            of a group, in steps, from the exact product
    factor  = schedule(step, end)            while step < end
    frozen                                   from then on: the factor is 0, no gradient is computed

All of it is a function of the step: a run that goes on in the middle needs nothing more.
"""

import dataclasses
from collections.abc import Callable

from gpuconv.autograd import Parameter
from gpuconv.checks import check_number
from gpuconv.optim import Optimizer
from gpuconv.optim.schedules import steps_of

Schedule = Callable[[int, int], float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step does."""

    schedule: Schedule
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    seed: int = 0
    reduction: str = "mean"  # of the loss over a batch, or "sum"


class Rates:
    """The factors of an optimiser's groups, and what is frozen.

    Args:
        optimizer: its groups and their "stop", as they are now.
        schedule: schedule(step, steps) is a factor of the learning rate.
        total: steps of the run.

    Raises:
        ValueError: all groups stop before the end.

    >>> import numpy as np
    >>> from gpuconv.optim import SGD
    >>> a, b = Parameter(np.ones(1)), Parameter(np.ones(1))
    >>> sgd = SGD([{"params": a, "stop": 0.5}, {"params": b}], lr=0.1)
    >>> rates = Rates(sgd, lambda step, steps: 1 - step / steps, 8)
    >>> [rates.factors(step) for step in (0, 2, 4)]
    [(1.0, 1.0), (0.5, 0.75), (0.0, 0.5)]
    >>> rates.freeze(3), rates.freeze(4), a.requires_grad, b.requires_grad
    (False, True, False, True)
    >>> rates.thaw(); a.requires_grad
    True
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total: int):
        self.optimizer, self.schedule = optimizer, schedule
        self.ends = [round(steps_of(float(group["stop"]), total)) for group in optimizer.groups]
        if max(self.ends) < total:
            stops = [float(group["stop"]) for group in optimizer.groups]
            raise ValueError(f"fit: all groups of {optimizer.name} stop before the end of the run, "
                             f"after the shares {stops} of {total} steps")
        self.frozen: list[Parameter] = []  # by us
        self.done: set[int] = set()        # groups

    def factors(self, step: int) -> tuple[float, ...]:
        """Of each group, for this step of the run, counted from 0; asks the schedule once an end.

        >>> import numpy as np
        >>> from gpuconv.optim import SGD, Constant
        >>> Rates(SGD([Parameter(np.ones(1))], lr=0.1), Constant(), 8).factors(7)
        (1.0,)
        """
        asked = {end: check_number("fit", f"schedule({step}, {end})", self.schedule(step, end),
                                   least=0)
                 for end in dict.fromkeys(self.ends) if step < end}
        return tuple(asked.get(end, 0.0) for end in self.ends)

    def freeze(self, step: int) -> bool:
        """Freeze the groups that have come to their end; has that changed anything?"""
        before = len(self.frozen)
        for number, end in enumerate(self.ends):
            if end <= step and number not in self.done:
                self.done.add(number)
                self.frozen += [p for p in self.optimizer.groups[number]["params"]
                                if p.requires_grad]
        for p in self.frozen[before:]:
            p.requires_grad = False
        return len(self.frozen) > before

    def thaw(self) -> None:
        """Let all have gradients again that had them."""
        for p in self.frozen:
            p.requires_grad = True
        self.frozen, self.done = [], set()
