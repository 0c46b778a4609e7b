"""Metrics of a run as files: metrics.csv for spreadsheets, metrics.jsonl for programs."""

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
from gpuconv.train.history import History, row_from_dict, row_to_dict

CSV, JSONL = "metrics.csv", "metrics.jsonl"
REPAIR = "delete it: a resumed run writes it again from its checkpoint"


class MetricsFiles(Callback):
    """Callback that writes both files after each epoch, in full, so that a resume leaves no gaps.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(check_path("MetricsFiles", "folder", folder))

    def on_fit_start(self, run: Run) -> None:
        """Write the complete epochs only; a resumed run repeats the others."""
        files.remove_leftovers(self.folder)
        self.write(run.history)

    def on_epoch_end(self, run: Run) -> None:
        """Write the files with the new row."""
        self.write(run.history)

    def write(self, history: History) -> None:
        """Write both files; a number that is not finite becomes null in JSON, and empty in CSV."""
        rows = [{name: _finite_or_none(value) for name, value in row_to_dict(row).items()}
                for row in history.rows]
        table = io.StringIO(newline="")
        if rows:
            writer = csv.DictWriter(table, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        for name, text in ((CSV, table.getvalue()), (JSONL, lines)):
            with files.atomic_write(self.folder / name, "w") as file:
                file.write(text)


def read_metrics(folder: str | os.PathLike) -> History:
    """Return the history written to a folder; an empty one if there is none.

    Raises:
        OSError: the file cannot be read, or is no file.
        ValueError: the file is damaged; says which line.
    """
    path, rows = pathlib.Path(check_path("read_metrics", "folder", folder)) / JSONL, []
    if not os.path.lexists(path):
        return History()
    try:
        for number, line in enumerate(reading.read_text(path).splitlines(), 1):
            rows.append(row_from_dict(_with_nan(jsontext.parse(line)), number))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged: byte {error.start} is not UTF-8; {REPAIR}") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged: line {number} is no row of metrics: {error}; {REPAIR}"
                         ) from None
    return History(rows)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(row: Any) -> Any:
    """Return a row with NaN in place of null, for each number that was measured."""
    if not isinstance(row, dict):
        return row
    tested = row.get("test_count") is not None
    return {name: math.nan if value is None and (tested or not name.startswith("test_")) else value
            for name, value in row.items()}
