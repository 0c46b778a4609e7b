"""Callbacks that stop a run before its last epoch: no more progress, or a signal."""

import contextlib
import signal
import threading
from typing import Any

from gpuconv.checks import check_count, check_number
from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import History


class EarlyStopping(Callback):
    """Callback that stops the run when test accuracy has not grown for some epochs.

    Args:
        patience: epochs without a new best, at least 1.
        min_delta: how much higher a new best must be, 0 .. 1.

    Raises:
        ValueError: patience is less than 1, or min_delta negative.
    """

    def __init__(self, patience: int, min_delta: float = 0.0):
        self.patience = check_count("EarlyStopping", "patience", patience)
        self.min_delta = check_number("EarlyStopping", "min_delta", min_delta, least=0, most=1)

    def on_fit_start(self, run: Run) -> None:
        """Stop a resumed run that had ended."""
        self.on_epoch_end(run)

    def on_epoch_end(self, run: Run) -> None:
        """Stop the run if patience is exhausted."""
        if self.exhausted(run.history):
            run.stop = True

    def exhausted(self, history: History) -> bool:
        """Return whether the last ``patience`` epochs brought no new best.

        Raises:
            ValueError: an epoch has no test.
        """
        best, since = -1.0, 0
        for row in history.rows:
            if row.test is None:
                raise ValueError("EarlyStopping: there is no test set to look at")
            if row.test.accuracy > best + (self.min_delta if best >= 0 else 0):
                best, since = row.test.accuracy, 0
            else:
                since += 1
        return since >= self.patience


class Interrupt(Callback):
    """Callback that stops the run after the current step on Ctrl-C or SIGTERM, so that it is saved.

    During a test the run stops after the current batch; a resumed run repeats the test. A second
    signal raises KeyboardInterrupt at once: an incomplete step is undone, and the run is saved as
    it was before that step. It does nothing outside the main thread, where Python delivers no
    signals.

    Attributes:
        received: number of the signal received, or None.
    """

    signals = signal.SIGINT, signal.SIGTERM

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}
        self.run: Run | None = None

    def on_fit_start(self, run: Run) -> None:
        """Install the signal handlers."""
        self.run, self.received = run, None
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._receive)

    def on_fit_end(self, run: Run) -> None:
        """Restore the former signal handlers."""
        for number, handler in self.before.items():
            with contextlib.suppress(TypeError):  # a handler that was not Python's own
                signal.signal(number, handler)
        self.before, self.run = {}, None

    def _receive(self, number: int, frame: Any) -> None:
        again, self.received = self.received is not None, number
        if again:
            raise KeyboardInterrupt
        if self.run:  # nothing is raised: the current step is completed
            self.run.stop = True
