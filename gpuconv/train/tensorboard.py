"""Callback that writes TensorBoard events."""

import math
import os
from typing import Any

from gpuconv.checks import check_count, check_path
from gpuconv.messages import install
from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import row_to_dict


class TensorBoard(Callback):
    """Callback that writes TensorBoard events: the loss every few steps, all metrics per epoch.

    Args:
        folder: of the events, for ``tensorboard --logdir``.
        every: steps between two losses, at least 1.

    Raises:
        ImportError: tensorboardX is not installed; says how to get it.
        ValueError: every is less than 1.
    """

    passive = True

    def __init__(self, folder: str | os.PathLike, every: int = 20):
        check_count("TensorBoard", "every", every)
        folder = check_path("TensorBoard", "folder", folder)
        try:
            import tensorboardX
        except ImportError:
            raise ImportError("TensorBoard events need the package tensorboardX: "
                              f"{install('tensorboard')}") from None
        self.make, self.folder, self.every = tensorboardX.SummaryWriter, folder, every
        self.writer: Any = None

    def on_fit_start(self, run: Run) -> None:
        """Open the file; purge the events that a resumed run repeats."""
        done = max(0, run.epoch - 1) * run.steps + run.step
        self.writer = self.make(str(self.folder), purge_step=done + 1 if done else None)

    def on_step(self, run: Run) -> None:
        """Write the loss of the epoch so far every ``every`` steps."""
        if run.step % self.every == 0 and math.isfinite(run.loss):
            self._add(run, {"step/loss": run.loss, "step/lr": run.lr})

    def on_epoch_end(self, run: Run) -> None:
        """Write all numbers of the epoch."""
        numbers = row_to_dict(run.history.last)
        self._add(run, {f"epoch/{name}": value for name, value in numbers.items()
                        if name != "epoch" and value is not None})

    def on_fit_end(self, run: Run) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _add(self, run: Run, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, (run.epoch - 1) * run.steps + run.step)
