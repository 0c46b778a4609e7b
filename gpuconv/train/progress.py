"""Progress of a run: a live table and bar in a terminal, plain lines anywhere else."""

from typing import Any

from gpuconv.checks import check_kind
from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import HEADINGS, History, format_line, row_cells

SHOWN = 12  # newest epochs that the live table shows; the final one has all


class Progress(Callback):
    """Callback that shows the progress of a run, and its table at the end.

    Args:
        live: True redraws a table and a bar in place, False writes a line per epoch. Default: live
            in a terminal, lines in a pipe, a file or a notebook.
        console: rich.console.Console to write to. Default: standard output.
    """

    passive = True

    def __init__(self, live: bool | None = None, console: Any = None):
        from rich.console import Console
        if console is not None:
            check_kind("Progress", "console", console, Console)
        self.console = console or Console()
        self.live = (self.console.is_terminal and not self.console.is_jupyter and
                     not self.console.is_dumb_terminal if live is None else live)
        self.view: Any = None  # rich.live.Live, while it runs

    def on_fit_start(self, run: Run) -> None:
        """Start the bar, or write the headings."""
        if not self.live:
            self._plain(format_line(HEADINGS))
            return
        from rich.live import Live
        self.bar = bar(self.console)
        self.task = self.bar.add_task("", total=run.epochs * run.steps, state="")
        self.view = Live(self._frame(run), console=self.console, transient=True,
                         refresh_per_second=8)
        self.view.start()

    def on_step(self, run: Run) -> None:
        """Move the bar."""
        if self.live:
            self._show(run, f"step {run.step}/{run.steps}")

    def on_test_start(self, run: Run) -> None:
        """Show that the test runs."""
        if self.live:
            self._show(run, "testing")

    def on_epoch_end(self, run: Run) -> None:
        """Show the new row, and the number of skipped updates if there were any."""
        if self.live:
            self.view.update(self._frame(run))
        else:
            self._plain(format_line(row_cells(run.history.last)))
        if skipped := run.history.last.skipped:
            says = f"epoch {run.epoch}: {overflow(skipped)}"
            self.view.console.print(says) if self.live else self._plain(says)

    def on_fit_end(self, run: Run) -> None:
        """Stop the live display and print the final table."""
        if self.view is not None:
            self.view.stop()
            self.view = None
            if run.history.rows:
                self.console.print(table(run.history))

    def _show(self, run: Run, where: str) -> None:
        self.bar.update(
            self.task, completed=(run.epoch - 1) * run.steps + run.step,
            description=f"epoch {run.epoch}/{run.epochs}",
            state=f"{where}  loss {run.loss:.3f}  {run.accuracy:.1%}  "
                  f"{run.images_per_second:,.0f} images/s")

    def _frame(self, run: Run) -> Any:
        from rich.console import Group
        rows = run.history.rows
        return Group(table(History(rows[-SHOWN:])), self.bar) if rows else self.bar

    def _plain(self, text: str) -> None:
        print(text, file=self.console.file, flush=True)


def overflow(skipped: int) -> str:
    """Return a sentence about skipped updates.

    >>> overflow(1)
    '1 update was left out: its gradients were beyond the range of the dtype'
    """
    what = "update was left out: its" if skipped == 1 else "updates were left out: their"
    return f"{skipped} {what} gradients were beyond the range of the dtype"


def table(history: History) -> Any:
    """Return a rich table with a row per epoch."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for heading in HEADINGS:  # in a narrow terminal headings break, numbers never
        made.add_column(heading, justify="right", min_width=max(7, *map(len, heading.split())))
    best = max((row.test.accuracy for row in history.rows if row.test), default=None)
    for row in history.rows:
        style = "green" if row.test and row.test.accuracy == best else None
        made.add_row(*row_cells(row), style=style)
    return made


def bar(console: Any) -> Any:
    """Return a rich progress bar: epoch, bar, numbers, time left."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    return Bar(TextColumn("{task.description}"), BarColumn(bar_width=None),
               TextColumn("{task.fields[state]}"), TimeRemainingColumn(compact=True),
               console=console, expand=True)
