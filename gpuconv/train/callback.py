"""What can watch a run."""

import dataclasses
from typing import Any

from gpuconv.nn import Module
from gpuconv.optim import Optimizer
from gpuconv.train.history import History


@dataclasses.dataclass
class Run:
    """The state of a run, as callbacks see it.

    ``loss`` and ``accuracy`` are means over the epoch so far. On a GPU they are read every
    ``loop.READ`` steps, not at each: waiting for the GPU would cost more than the step.
    """

    model: Module
    optimizer: Optimizer
    epochs: int
    steps: int             # of one epoch
    history: History       # of the epochs that have ended
    epoch: int = 0         # the current one: 1, 2, ... epochs
    step: int = 0          # steps done in it: 0 .. steps
    loss: float = float("nan")
    accuracy: float = float("nan")
    images_per_second: float = float("nan")
    lr: float = float("nan")  # of the last step, first parameter group
    stop: bool = False     # a callback may set it: the run ends after this epoch


class Callback:
    """Watches a run: override any of these. All are called in the order of ``callbacks``.

    >>> class Patience(Callback):
    ...     def on_epoch_end(self, run):
    ...         run.stop = run.history.last.test.accuracy > 0.9
    """

    def on_fit_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step(self, run: Run) -> None:
        """After each step."""

    def on_test_start(self, run: Run) -> None:
        """After the last step of an epoch, before the test set; not without one."""

    def on_epoch_end(self, run: Run) -> None:
        """After the epoch, with ``run.history.last``."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch, and also when an exception ends the run."""


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks, if they are some."""
    for number, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"fit: callback {number} is {callback!r}, wanted a train.Callback")
    return tuple(callbacks)
