"""What a run measured, as files: metrics.csv for spreadsheets, metrics.jsonl for programs."""

import csv
import io
import json
import math
import os
import pathlib
from typing import Any

from gpuconv import files, jsontext, reading
from gpuconv.checks import check_path
from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import History, flat, unflat

CSV, JSONL = "metrics.csv", "metrics.jsonl"
REPAIR = "delete it: a run that goes on writes it anew from its checkpoint"


class Records(Callback):
    """Writes both files after each epoch, as a whole: no gaps and no doubles after a resume.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(check_path("Records", "folder", folder))

    def on_fit_start(self, run: Run) -> None:
        """Epochs that a resumed run will do again are no longer told."""
        files.remove_leftovers(self.folder)
        self.write(run.history)

    def on_epoch_end(self, run: Run) -> None:
        """Another row."""
        self.write(run.history)

    def write(self, history: History) -> None:
        """Both files. A number that is not finite is null, or left out."""
        rows = [{name: _plain(value) for name, value in flat(row).items()} for row in history.rows]
        table = io.StringIO(newline="")
        if rows:
            writer = csv.DictWriter(table, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        for name, text in ((CSV, table.getvalue()), (JSONL, lines)):
            with files.atomic_write(self.folder / name, "w") as file:
                file.write(text)


def read_records(folder: str | os.PathLike) -> History:
    """Return the history that was written there; an empty one where there is none.

    Raises:
        OSError: the file cannot be read, or is no file.
        ValueError: the file is damaged; says which line.
    """
    path, rows = pathlib.Path(check_path("read_records", "folder", folder)) / JSONL, []
    if not os.path.lexists(path):
        return History()
    try:
        for number, line in enumerate(reading.read_text(path).splitlines(), 1):
            rows.append(unflat(_whole(jsontext.parse(line)), number))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged: byte {error.start} is not UTF-8; {REPAIR}") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged: line {number} is no row of metrics: {error}; {REPAIR}"
                         ) from None
    return History(rows)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(row: Any) -> Any:
    """Return the row with NaN for null: that was a number that is not finite, if it was measured.
    """
    if not isinstance(row, dict):
        return row
    tested = row.get("test_count") is not None
    return {name: math.nan if value is None and (tested or not name.startswith("test_")) else value
            for name, value in row.items()}
