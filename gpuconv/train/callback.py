"""Callbacks, and the state of a run that they see."""

import dataclasses
import math
import pathlib
import time
from typing import Any, ClassVar

from gpuconv.data import Dataset
from gpuconv.data.batches import FloatDataset
from gpuconv.nn import Module
from gpuconv.optim import EMA, LossScale, Optimizer
from gpuconv.train.history import History
from gpuconv.train.measure import BatchResult, Tally
from gpuconv.undo import Undo

SMALLEST = 2.0**-14  # loss scale: below it an overflow ends the run


@dataclasses.dataclass(repr=False)
class Run:
    """State of a run.

    ``loss`` and ``accuracy`` are means over the epoch so far. On a GPU they are read every
    ``step.READ`` steps, because waiting for the GPU would cost more than a step. ``read`` updates
    them.
    """

    model: Module
    optimizer: Optimizer
    data: Dataset | FloatDataset  # the training set, on the model's device
    epochs: int
    steps: int               # of one epoch
    arguments: dict[str, Any]  # of fit, by name; the same in a resumed run
    history: History = dataclasses.field(default_factory=History)  # of the complete epochs
    ema: EMA | None = None
    test: Dataset | FloatDataset | None = None  # the test set, on the model's device
    epoch: int = 0           # the current one: 1, 2, ... epochs
    step: int = 0            # steps done in it: 0 .. steps
    loss: float = math.nan
    accuracy: float = math.nan
    images_per_second: float = math.nan
    lr: float = math.nan     # of the last step, see ``learning_rate``
    stop: bool = False       # set by a callback to end the run after this step or epoch
    checkpoint: pathlib.Path | None = None  # the newest one written, or the one resumed from
    tally: Tally = dataclasses.field(default_factory=Tally)  # of the current epoch
    scale: LossScale | None = None  # see optim.LossScale
    began: float = 0.0       # time.perf_counter() at the start of the epoch, seconds

    def __repr__(self) -> str:
        return (f"Run({type(self.model).__name__}, epoch {self.epoch} of {self.epochs}, step "
                f"{self.step} of {self.steps})")

    def begin_epoch(self) -> None:
        """Start the next epoch, unless the current one is incomplete."""
        if len(self.history.rows) == self.epoch:
            self.epoch_start = time.perf_counter()
            self.epoch, self.step, self.tally = self.epoch + 1, 0, Tally()

    def learning_rate(self) -> float:
        """Return the learning rate of the optimiser's largest group, by trainable parameters.

        Of groups of equal size the first counts.
        """
        groups, factors = self.optimizer.groups, self.optimizer.factors
        largest = 0 if len(groups) == 1 else max(range(len(groups)), key=lambda i: sum(
            p.size for p in groups[i]["params"] if p.requires_grad))
        return float(groups[largest]["lr"] * factors[largest])

    def read(self) -> None:
        """Wait for the device, and update loss, accuracy and speed.

        A step whose loss is not finite has changed nothing, nor have the steps after it (see
        step.py): ``step`` and the sums are then set to those of the step before it.

        Raises:
            FloatingPointError: a loss is not finite, or with a loss scale all gradients overflow;
                names the step, the learning rate, and the last good checkpoint.
            ValueError: a label has no logit.
        """
        pending, label_error = self.tally.pending, None
        first = self.step - len(pending) + 1
        with Undo() as undo:
            undo.keep_attributes(self, "step")
            undo.keep_attributes(self.tally)
            undo.keep_attributes(pending)
            try:
                results = pending.fetch()
            except ValueError as error:  # is raised once; the loss of such a label is NaN
                label_error, results = error, pending.fetch()
            good = next((i for i, result in enumerate(results) if self._halts(result)),
                        len(results))
            self.tally.add_results(results[:good])
            self.step = first + good - 1 if good < len(results) else self.step
        if label_error:
            raise label_error
        for step, result in enumerate(results, first):
            if problem := self._problem(result):
                raise FloatingPointError(f"fit: {problem} in epoch {self.epoch}, step {step} of "
                                         f"{self.steps}; {self.hint()}")
        if self.tally.skipped >= self.steps and not self.dynamic:
            raise FloatingPointError(f"fit: no step of epoch {self.epoch} had finite gradients: "
                                     f"a smaller loss scale may help; {self.hint()}")
        if self.tally.count:
            metrics = self.tally.metrics()
            self.loss, self.accuracy = metrics.loss, metrics.accuracy
            self.images_per_second = metrics.count / (time.perf_counter() - self.epoch_start)

    def _problem(self, result: BatchResult) -> str | None:
        """Return why a step ends the run; None if it does not.

        With a dynamic loss scale gradients may overflow: the step is skipped, and the scale falls.
        """
        if result.skipped and result.scale < SMALLEST:
            return f"gradients are not finite, even with a loss scale of {result.scale:.2g},"
        return f"the loss is {result.loss}" if self._halts(result) else None

    def _halts(self, result: BatchResult) -> bool:
        """Return whether no update happens from this step on: the condition of step_state.cu."""
        return not math.isfinite(result.loss) and not (result.skipped and self.dynamic)

    @property
    def dynamic(self) -> bool:
        """Whether the loss scale follows the gradients."""
        return self.arguments.get("loss_scale") == "dynamic"

    def hint(self) -> str:
        """Return advice for a run whose numbers are no longer finite."""
        at_start = math.isnan(self.lr) or (self.epoch, self.step) == (1, 0)  # no step was made
        hint = ("are there such numbers among the images?" if at_start else
                f"the learning rate was {self.lr:.3g}: a smaller one may help")
        return hint + (f". The last good checkpoint is {self.checkpoint}" if self.checkpoint
                       else "")


class Callback:
    """Base class of callbacks; override any method. They are called in the order of ``callbacks``.

    A callback may change settings: a learning rate, which parameters are frozen. A captured step
    must then be captured again, so after each ``on_step`` everything that could have changed is
    compared, which takes some time. A callback that changes nothing sets ``passive = True``.

    >>> class Enough(Callback):
    ...     def on_epoch_end(self, run):
    ...         run.stop = run.history.last.test.accuracy > 0.9
    """

    passive: ClassVar[bool] = False  # whether on_step leaves model and optimiser unchanged

    def on_fit_start(self, run: Run) -> None:
        """Run before the first step, also of a resumed run."""

    def on_step(self, run: Run) -> None:
        """Run after each step."""

    def on_test_start(self, run: Run) -> None:
        """Run after the last step of an epoch, before the test; not without a test set."""

    def on_epoch_end(self, run: Run) -> None:
        """Run after the epoch; ``run.history.last`` holds its metrics."""

    def on_fit_end(self, run: Run) -> None:
        """Run after the last epoch, and also when an exception ends the run.

        Model, optimiser, averages and ``run.step`` are then those after the last complete step.
        """
