"""What commands write: tables in a terminal, plain lines in a pipe, a file or a notebook."""

import json
import math
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


def table(console: Any, headings: Sequence[str], rows: Sequence[Sequence[Any] | None],
          right: Collection[int] = ()) -> None:
    """Columns under headings: a table in a terminal, else aligned lines.

    Args:
        headings: one word or a few each.
        rows: a cell per heading: text, or rich's Text where it has colours. None: a line between
            rows, in a terminal.
        right: numbers of the columns that are aligned at the right; their cells never break.
    """
    if not console.is_terminal:
        words = [[str(cell) for cell in row] for row in [headings, *rows] if row is not None]
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
        if cells is None:
            made.add_section()
        else:
            made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    console.print(made)


def write_json(console: Any, value: Any) -> None:
    """A value as JSON, which has no NaN and no infinity: they become null."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inside) for key, inside in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inside) for inside in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    say(console, json.dumps(plain(value), indent=2))


def percent(share: float | None, digits: int = 1) -> str:
    """A share in words.

    >>> percent(0.5), percent(None)
    ('50.0%', '-')
    """
    return "-" if share is None else f"{share:.{digits}%}"
