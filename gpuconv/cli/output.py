"""What commands write: tables in a terminal, plain lines in a pipe, a file or a notebook."""

from collections.abc import Collection, Sequence
from typing import Any


def console() -> Any:
    """Where output goes: rich's console on standard output."""
    from rich.console import Console
    return Console()


def say(console: Any, text: str) -> None:
    """A line, as it is: brackets in it are no markup."""
    print(text, file=console.file, flush=True)


def show(console: Any, rows: dict[str, str]) -> None:
    """Names and values: a table in a terminal, else lines."""
    if not console.is_terminal:
        width = max(map(len, rows)) + 2
        for name, value in rows.items():
            say(console, f"{name:{width}}{value}")
        return
    from rich.table import Table
    from rich.text import Text
    made = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        made.add_row(Text(name, "bold cyan"), Text(value))
    console.print(made)


def table(console: Any, headings: Sequence[str], rows: Sequence[Sequence[Any]],
          right: Collection[int] = ()) -> None:
    """Columns under headings: a table in a terminal, else aligned lines.

    Args:
        headings: one word or a few each.
        rows: a cell per heading: text, or rich's Text where it has colours.
        right: numbers of the columns that are aligned at the right; they never break.
    """
    if not console.is_terminal:
        words = [[str(cell) for cell in row] for row in [headings, *rows]]
        widths = [max(map(len, column)) for column in zip(*words, strict=True)]
        for row in words:
            say(console, "  ".join(word.rjust(w) if i in right else word.ljust(w) for i, (word, w)
                                   in enumerate(zip(row, widths, strict=True))).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text
    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(headings):
        made.add_column(Text(heading), justify="right" if i in right else "left",
                        no_wrap=i in right, overflow="fold")
    for cells in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    console.print(made)
