"""What commands write: tables in a terminal, plain lines in a pipe, a file or a notebook."""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

GAP = 2  # between columns


def console() -> Any:
    """Where output goes: rich's console on standard output."""
    from rich.console import Console
    return Console()


def printable(text: str) -> str:
    """The text without what would command a terminal or break a line: names of files may hold it.

    >>> print(printable("red\\x1b[31m"), printable("no Unicode\\udcff"))
    red\\x1b[31m no Unicode\\udcff
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(console: Any, text: str) -> None:
    """A line, as it is: brackets in it are no markup."""
    print(text, file=console.file, flush=True)


def show(console: Any, rows: dict[str, str]) -> None:
    """Names and values: a table in a terminal, else lines."""
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
    """Columns under headings: a table in a terminal, else aligned lines.

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
        made.add_column(Text(headings[i]), justify="right" if i in right else "left",
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
    """(of the column as it is, where only words stay whole; or all cells but the heading)."""
    from rich.cells import cell_len
    heading, *cells = column
    parts = cells if whole else [word for cell in cells for word in cell.split()]
    return (max(map(cell_len, column)),
            max(map(cell_len, [*heading.split(), *parts]), default=0))


def _total(widths: Iterable[int]) -> int:
    return sum(w + GAP for w in widths) - GAP


def _squeezed(columns: dict[int, tuple[int, int]], room: int) -> dict[int, int]:
    """Widths with which the table fits, taken from those that have most to give; {}: none do."""
    widths = {i: full for i, (full, _) in columns.items()}
    while _total(widths.values()) > room:
        i = max(widths, key=lambda i: widths[i] - columns[i][1])
        if widths[i] == columns[i][1]:
            return {}
        widths[i] -= 1
    return widths


def write_json(console: Any, value: Any) -> None:
    """A value as JSON, which has no NaN and no infinity: they become null."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inside) for key, inside in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inside) for inside in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    say(console, json.dumps(plain(value), indent=2))


def several(count: int, what: str) -> str:
    """As many of them.

    >>> several(1, "epoch"), several(2000, "image")
    ('1 epoch', '2,000 images')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in words.

    >>> percent(0.5), percent(None)
    ('50.0%', '-')
    """
    return "-" if share is None else f"{share:.{digits}%}"


def sentence(error: BaseException) -> str:
    """What an error says; a text of several lines as it is: it may point at something.

    >>> sentence(FileNotFoundError(2, "No such file or directory", "cat.png"))
    'cat.png: no such file or directory'
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    else:
        text = str(error) or type(error).__name__
    return "\n".join(map(printable, text.split("\n")))
