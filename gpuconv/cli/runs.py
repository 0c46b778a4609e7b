"""``gpuconv runs``: the runs in a folder."""

import argparse
import datetime
import os
import pathlib
import statistics
from typing import TYPE_CHECKING, Any

from gpuconv.cli.output import console, percent, say, sentence, table, write_json
from gpuconv.messages import program

if TYPE_CHECKING:
    from gpuconv.runs import RunFolder

SAYS = "Show past runs as a table."
EXAMPLES = ("gpuconv runs", "gpuconv runs ~/experiments --json")
LONG = 40  # characters of a model's notation that are shown


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv runs``."""
    to.add_argument("folder", nargs="?", default="runs", metavar="DIR",
                    help="where the runs are (default: ./runs)")
    to.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv runs``.

    Raises:
        FileNotFoundError: a folder was named, and is not there.
    """
    from gpuconv import runs
    parent = pathlib.Path(args.folder)
    if not parent.is_dir() and args.folder != "runs":
        raise FileNotFoundError(f"there is no folder {parent}")
    folders = runs.find(parent)
    if os.path.lexists(parent / "config.json"):  # a run itself
        folders.insert(0, runs.RunFolder(parent))
    found, out = [about(folder) for folder in folders], console()
    if args.json:
        write_json(out, found)
    elif not found:
        say(out, f"there are no runs in {parent.absolute()}; {program()} train makes one")
    else:
        table(out, ["run", "model", "data", "epochs", "best test accuracy", "with views",
                    "images/s", "date", "status"], [cells(row) for row in found],
              right=(3, 4, 5, 6), spare=(7, 6, 5))
        for row in found:
            if row["problem"]:
                say(out, f"{row['run']}: {row['problem']}")


def about(folder: "RunFolder") -> dict[str, Any]:
    """Return the facts of a run by name; "problem" says what cannot be read, or is None."""
    row: dict[str, Any] = dict.fromkeys(
        ("run", "path", "model", "data", "epochs", "epochs_asked", "best_test_accuracy",
         "views", "views_accuracy", "images_per_second", "date", "status", "problem"))
    row |= {"run": folder.path.resolve().name, "path": str(folder.path), "status": "damaged"}
    try:
        began = (folder.path / "config.json").stat().st_mtime
        row["date"] = datetime.datetime.fromtimestamp(began).isoformat(" ", "minutes")
        config = folder.config()
        place = pathlib.Path(config.source.path).name if config.source.path else None
        row |= {"model": config.model.get("name") or config.model.get("notation"),
                "data": config.source.kind if place is None or config.source.kind == "cifar10"
                else place,
                "epochs_asked": config.settings.epochs}
        rows = folder.history().rows
        row["epochs"] = len(rows)
        row["best_test_accuracy"] = max((r.test.accuracy for r in rows if r.test), default=None)
        if rows:
            row["images_per_second"] = statistics.median(r.images_per_second for r in rows)
        row["status"] = folder.status()
        if tta_result := folder.tta_result():  # last: the other values do not depend on this file
            row |= {"views": tta_result.views, "views_accuracy": tta_result.accuracy}
    except Exception as error:  # whatever is wrong with one run, the others are shown
        row["problem"] = sentence(error)
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    model = row["model"] or "-"
    epochs = "-" if row["epochs"] is None else f"{row['epochs']}/{row['epochs_asked']}"
    speed = row["images_per_second"]
    return [row["run"], model if len(model) <= LONG else model[:LONG - 3] + "...",
            row["data"] or "-", epochs, percent(row["best_test_accuracy"], 2),
            percent(row["views_accuracy"], 2), "-" if speed is None else f"{speed:,.0f}",
            row["date"] or "-", row["status"]]
