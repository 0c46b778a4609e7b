"""What ends a run before its last epoch: no more progress, or a signal."""

import contextlib
import signal
import threading
from typing import Any

from gpuconv.checks import check_count, check_number
from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import History


class EarlyStopping(Callback):
    """Ends the run when test accuracy has not grown for some epochs.

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
        """A run that had ended does not go on."""
        self.on_epoch_end(run)

    def on_epoch_end(self, run: Run) -> None:
        """Is it enough?"""
        if self.exhausted(run.history):
            run.stop = True

    def exhausted(self, history: History) -> bool:
        """Has the best not been bettered for ``patience`` epochs?

        Raises:
            ValueError: there are epochs without a test.
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
    """Ends the run after the current step on Ctrl-C or SIGTERM, so that it can be saved.

    While the test set is measured it ends after the current batch: the test is done again when the
    run goes on. A second signal raises KeyboardInterrupt wherever the run is; a step that has not
    come to its end is then undone, and the run is saved as it was before it. Outside the main
    thread, where Python delivers no signals, it does nothing.

    Attributes:
        received: the number of the signal that came, or None.
    """

    signals = signal.SIGINT, signal.SIGTERM

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}
        self.run: Run | None = None

    def on_fit_start(self, run: Run) -> None:
        """Signals come here from now on."""
        self.run, self.received = run, None
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._receive)

    def on_fit_end(self, run: Run) -> None:
        """Signals go where they went before."""
        for number, handler in self.before.items():
            with contextlib.suppress(TypeError):  # a handler that was not Python's own
                signal.signal(number, handler)
        self.before, self.run = {}, None

    def _receive(self, number: int, frame: Any) -> None:
        again, self.received = self.received is not None, number
        if again:
            raise KeyboardInterrupt
        if self.run:  # nothing is raised: the step that is under way shall not be lost
            self.run.stop = True
