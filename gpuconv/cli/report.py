"""``gpuconv report``: a run as one HTML file."""

import argparse
import pathlib
import warnings
from typing import TYPE_CHECKING

from gpuconv.cli.options import add_device, choose_device, number, run_argument
from gpuconv.cli.output import console, percent, say, show
from gpuconv.messages import install, program, quoted

if TYPE_CHECKING:
    from gpuconv.runs import RunFolder

SAYS = "Write a run as one HTML file: curves, confusion matrix, mistakes, filters, settings."
EXAMPLES = ("gpuconv report", "gpuconv report runs/NAME --output net.html")
NOTES = "The file needs no network and no other file. Curves are drawn by matplotlib:\n" \
        f"{install('plot')}"


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv report``."""
    run_argument(to)
    to.add_argument("--output", type=pathlib.Path, metavar="FILE.html",
                    help="where to (default: report.html in the run's folder)")
    to.add_argument("--mistakes", type=number(int, 0, 1000), default=24, metavar="N",
                    help="show the N most confident ones (default: %(default)s)")
    to.add_argument("--data", metavar="DIR|FILE.npz",
                    help="where the images of the run are, if they have moved")
    add_device(to)


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv report``.

    Raises:
        FileNotFoundError, ValueError: there is no run, or it is damaged.
        OSError: the file cannot be written.
        RuntimeError: a GPU that is not there.
    """
    from gpuconv import report
    folder, checkpoint = choose_run(args.run)
    where, why_there = choose_device(args.device)
    written, found = report.write_findings(folder, args.output, checkpoint=checkpoint,
                                           device=where, mistakes=args.mistakes, data=args.data)
    out = console()
    rows = {"run": str(folder.path), "device": why_there}
    if found.trained is not None:
        rows["checkpoint"] = str(found.trained.path)
    if found.predictions is not None:
        rows["accuracy"] = (f"{percent(found.predictions.accuracy)} of "
                            f"{len(found.predictions.labels):,} test images")
    show(out, rows | {"report": str(written)})
    for note in found.notes:
        warnings.warn(note, stacklevel=1)
    if not report.available():
        say(out, report.hint())


def choose_run(text: str | None) -> tuple["RunFolder", pathlib.Path | None]:
    """Return (the run's folder, the named checkpoint or None) of RUN.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a checkpoint that lies in no run.
    """
    from gpuconv import runs
    if text is None:
        return runs.newest(), None
    path = pathlib.Path(text)
    if not path.is_file():
        return runs.RunFolder(path), None
    inside = path.absolute().parent.parent
    if (path.absolute().parent / "config.json").is_file():
        raise ValueError(f"{path} is no checkpoint; a report of the run: {program()} report "
                         f"{quoted(path.parent)}")
    if not (inside / "config.json").is_file():
        raise ValueError(f"{path} lies in no run's folder: a report wants the metrics and settings "
                         "that are there too")
    return runs.RunFolder(inside), path
