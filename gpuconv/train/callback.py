"""What can watch a run, and what it sees."""

import dataclasses
import math
import pathlib
import time
from typing import Any, ClassVar

from gpuconv.data import Dataset
from gpuconv.nn import Module
from gpuconv.optim import EMA, LossScale, Optimizer
from gpuconv.train.batches import Floats
from gpuconv.train.history import History
from gpuconv.train.measure import Seen, Tally
from gpuconv.undo import Undo

SMALLEST = 2.0**-14  # loss scale: where gradients overflow even so, it is not their size


@dataclasses.dataclass(repr=False)
class Run:
    """The state of a run, as callbacks see it.

    ``loss`` and ``accuracy`` are means over the epoch so far. On a GPU they are read every
    ``step.READ`` steps, not at each: waiting for the GPU would cost more than the step. ``read``
    brings them up to date.
    """

    model: Module
    optimizer: Optimizer
    data: Dataset | Floats   # the training set, where the model is
    epochs: int
    steps: int               # of one epoch
    arguments: dict[str, Any]  # of fit, in words: what must be the same for a run to go on
    history: History = dataclasses.field(default_factory=History)  # of the epochs that have ended
    ema: EMA | None = None
    test: Dataset | Floats | None = None  # the test set, likewise
    epoch: int = 0           # the current one: 1, 2, ... epochs
    step: int = 0            # steps done in it: 0 .. steps
    loss: float = math.nan
    accuracy: float = math.nan
    images_per_second: float = math.nan
    lr: float = math.nan     # of the last step, see ``rate``
    stop: bool = False       # a callback may set it: the run ends after this step, or this epoch
    checkpoint: pathlib.Path | None = None  # the newest that was written, or gone on from
    tally: Tally = dataclasses.field(default_factory=Tally)  # of the current epoch
    scale: LossScale | None = None  # what keeps gradients in the range of float16
    began: float = 0.0       # when the epoch did, time.perf_counter seconds

    def __repr__(self) -> str:
        return (f"Run({type(self.model).__name__}, epoch {self.epoch} of {self.epochs}, step "
                f"{self.step} of {self.steps})")

    def begin(self) -> None:
        """The next epoch, unless one has been left in the middle."""
        if len(self.history.rows) == self.epoch:
            self.began = time.perf_counter()
            self.epoch, self.step, self.tally = self.epoch + 1, 0, Tally()

    def rate(self) -> float:
        """The learning rate of the optimiser's largest group: that of most numbers being trained.

        Of groups of one size the first counts.
        """
        groups, factors = self.optimizer.groups, self.optimizer.factors
        at = 0 if len(groups) == 1 else max(range(len(groups)), key=lambda i: sum(
            p.size for p in groups[i]["params"] if p.requires_grad))
        return float(groups[at]["lr"] * factors[at])

    def read(self) -> None:
        """Wait for the device, and bring loss, accuracy and speed up to date.

        A step whose loss is not finite has changed nothing, nor have those after it (see step.py):
        then ``step`` and the sums are those of the step before it.

        Raises:
            FloatingPointError: a loss is not finite, or with a loss scale no gradient is any more;
                says where, the learning rate, and which checkpoint is the last good one.
            ValueError: a label has no logit.
        """
        rows, label = self.tally.waiting, None
        first = self.step - len(rows) + 1
        with Undo() as undo:
            undo.keep_attributes(self, "step")
            undo.keep_attributes(self.tally)
            undo.keep_attributes(rows)
            try:
                found = rows.fetch()
            except ValueError as error:  # is raised once; the loss of such a label is NaN
                label, found = error, rows.fetch()
            whole = next((i for i, seen in enumerate(found) if self._halts(seen)), len(found))
            self.tally.count_up(found[:whole])
            self.step = first + whole - 1 if whole < len(found) else self.step
        if label:
            raise label
        for step, seen in enumerate(found, first):
            if problem := self._problem(seen):
                raise FloatingPointError(f"fit: {problem} in epoch {self.epoch}, step {step} of "
                                         f"{self.steps}; {self.hint()}")
        if self.tally.skipped >= self.steps and not self.dynamic:
            raise FloatingPointError(f"fit: no step of epoch {self.epoch} had finite gradients: "
                                     f"a smaller loss scale may help; {self.hint()}")
        if self.tally.count:
            metrics = self.tally.metrics()
            self.loss, self.accuracy = metrics.loss, metrics.accuracy
            self.images_per_second = metrics.count / (time.perf_counter() - self.began)

    def _problem(self, seen: Seen) -> str | None:
        """What ends a run, if this step does.

        With a dynamic loss scale gradients may overflow: the step is skipped, and the scale falls.
        """
        if seen.skipped and seen.scale < SMALLEST:
            return f"gradients are not finite, even with a loss scale of {seen.scale:.2g},"
        return f"the loss is {seen.loss}" if self._halts(seen) else None

    def _halts(self, seen: Seen) -> bool:
        """Is this the step from which on nothing is updated? The condition of step_state.cu."""
        return not math.isfinite(seen.loss) and not (seen.skipped and self.dynamic)

    @property
    def dynamic(self) -> bool:
        """Does the loss scale follow the gradients?"""
        return self.arguments.get("loss_scale") == "dynamic"

    def hint(self) -> str:
        """What to do when numbers are no longer finite."""
        first = math.isnan(self.lr) or (self.epoch, self.step) == (1, 0)  # no step was made
        hint = ("are there such numbers among the images?" if first else
                f"the learning rate was {self.lr:.3g}: a smaller one may help")
        return hint + (f". The last good checkpoint is {self.checkpoint}" if self.checkpoint
                       else "")


class Callback:
    """Watches a run: override any of these. All are called in the order of ``callbacks``.

    A callback may change settings: a learning rate, which parameters are frozen. A captured step
    must then be captured anew, so after each ``on_step`` all that could have changed is looked at,
    which takes some time. A callback that only looks says ``passive = True``.

    >>> class Enough(Callback):
    ...     def on_epoch_end(self, run):
    ...         run.stop = run.history.last.test.accuracy > 0.9
    """

    passive: ClassVar[bool] = False  # does on_step leave model and optimiser as they are?

    def on_fit_start(self, run: Run) -> None:
        """Before the first step; of a run that goes on, too."""

    def on_step(self, run: Run) -> None:
        """After each step."""

    def on_test_start(self, run: Run) -> None:
        """After the last step of an epoch, before the test set; not without one."""

    def on_epoch_end(self, run: Run) -> None:
        """After the epoch, with ``run.history.last``."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch, and also when an exception ends the run.

        Then the model, the optimiser, the averages and ``run.step`` are those after the last step
        that was completed.
        """
