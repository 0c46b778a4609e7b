"""Output of the commands: tables in a terminal, plain lines in a pipe, a file or a notebook."""

import json
import math
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from gpuconv.messages import printable

GAP = 2  # between columns


def console() -> Any:
    """Return a rich console on standard output."""
    from rich.console import Console
    return Console()


def say(console: Any, text: str) -> None:
    """Write a line; brackets in it are no markup."""
    print(printable(text), file=console.file, flush=True)


def complain(kind: str, text: str) -> None:
    """Write a line to standard error, after the name of the program and "error" or another kind."""
    print(f"gpuconv: {kind}: {printable(text)}", file=sys.stderr)


def show(console: Any, rows: dict[str, str]) -> None:
    """Write names and values: a table in a terminal, else lines."""
    rows = {name: printable(value) for name, value in rows.items()}
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
          right: Collection[int] = (), spare: Sequence[int] = ()) -> None:
    """Print columns under headings: a table in a terminal, else aligned lines.

    Args:
        headings: one word or a few each.
        rows: a cell per heading: text, or rich's Text where it has colours. None: a line between
            rows, in a terminal.
        right: numbers of the columns that are aligned at the right; their cells never break.
        spare: numbers of the columns that a terminal without room for all can do without; the
            first goes first.
    """
    words = [[printable(str(cell)) for cell in row] for row in [headings, *rows] if row is not None]
    if not console.is_terminal:
        _plain(console, words, right)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text
    columns = {i: _widths([row[i] for row in words], i in right) for i in range(len(headings))}
    for i in spare:
        if _total(least for _, least in columns.values()) > console.width:
            del columns[i]
    widths = _squeezed(columns, console.width)
    made = Table(box=SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False,
                 collapse_padding=True)
    for i in columns:
        made.add_column(Text(words[0][i]), justify="right" if i in right else "left",
                        width=widths.get(i), overflow="fold")
    for cells in rows:
        if cells is None:
            made.add_section()
        else:
            made.add_row(*(cells[i] if isinstance(cells[i], Text) else
                           Text(printable(str(cells[i]))) for i in columns))
    console.print(made)


def _plain(console: Any, rows: list[list[str]], right: Collection[int]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say(console, (" " * GAP).join(
            word.rjust(w) if i in right else word.ljust(w)
            for i, (word, w) in enumerate(zip(row, widths, strict=True))).rstrip())


def _widths(column: Sequence[str], whole: bool) -> tuple[int, int]:
    """Return (full width of a column, least width: words, or cells if ``whole``, stay whole)."""
    from rich.cells import cell_len
    heading, *cells = column
    parts = cells if whole else [word for cell in cells for word in cell.split()]
    return (max(map(cell_len, column)),
            max(map(cell_len, [*heading.split(), *parts]), default=0))


def _total(widths: Iterable[int]) -> int:
    return sum(w + GAP for w in widths) - GAP


def _squeezed(columns: dict[int, tuple[int, int]], room: int) -> dict[int, int]:
    """Return widths with which the table fits, taken from the widest columns; {} if none do."""
    widths = {i: full for i, (full, _) in columns.items()}
    while _total(widths.values()) > room:
        i = max(widths, key=lambda i: widths[i] - columns[i][1])
        if widths[i] == columns[i][1]:
            return {}
        widths[i] -= 1
    return widths


def write_json(console: Any, value: Any) -> None:
    """Write a value as JSON, all in ASCII; it has no NaN and no infinity: they become null."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inside) for key, inside in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inside) for inside in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(value), indent=2), file=console.file, flush=True)


def several(count: int, what: str) -> str:
    """Return a count with its noun, in plural if needed.

    >>> several(1, "epoch"), several(2000, "image")
    ('1 epoch', '2,000 images')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage.

    >>> percent(0.5), percent(None)
    ('50.0%', '-')
    """
    return "-" if share is None else f"{share:.{digits}%}"


def sentence(error: BaseException) -> str:
    """Return what an error says, in one line.

    >>> sentence(FileNotFoundError(2, "No such file or directory", "cat.png"))
    'cat.png: no such file or directory'
    """
    if isinstance(error, FileExistsError) and error.filename is not None:  # of mkdir
        text = f"{error.filename}: a file has that name, wanted a folder"
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    else:
        text = str(error) or type(error).__name__
    return printable(text)


def traced(error: BaseException) -> str:
    """Return where an error came from, and those that led to it, the first one first.

    Python's own traceback shows the text of an error as it is.
    """
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    where = "".join(traceback.format_tb(error.__traceback__))
    return (traced(before) + "\n" if before else "") + (
        f"Traceback (most recent call last):\n{where}{type(error).__name__}: {sentence(error)}\n")
