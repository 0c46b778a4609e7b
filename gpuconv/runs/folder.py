"""Folder of a run.

    config.json         model, data, settings, seed, and the command that was typed
    environment.json    versions and devices
    manifest.json       names and hashes of the training and test images, of a folder or .npz file
    tuned.json          tuning table of ``--tuned``
    metrics.csv, metrics.jsonl     a row per epoch
    views.json          the test after the last epoch with test-time augmentation, if there is one
    checkpoints/        the newest few, and the best
    plots/              pictures
    report.html         written by ``gpuconv report``
    run.lock            while a process trains in it
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import warnings
from typing import Any

from gpuconv import files, reading
from gpuconv.checks import check_path
from gpuconv.data import Dataset
from gpuconv.data.manifest import Manifest
from gpuconv.messages import program
from gpuconv.ops.conv import Table
from gpuconv.runs.checks import check_free
from gpuconv.runs.config import Config
from gpuconv.runs.environment import environment
from gpuconv.runs.lock import in_use, locked
from gpuconv.runs.model_file import model_file
from gpuconv.runs.sets import Sets, run_sets
from gpuconv.runs.tta_result import TtaResult
from gpuconv.train import EarlyStopping, History, checkpoints, read_metrics
from gpuconv.train.checkpoint import BEST, candidates

PARENT = "runs"  # folder of all runs, in the current folder


class RunFolder:
    """Folder of a run; files are read when they are needed.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(check_path("RunFolder", "path", path))
        self.checkpoints_folder = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.tuned = self.path / "tuned.json"
        self.manifest_file = self.path / "manifest.json"
        self.views = self.path / "views.json"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, config: Config, path: str | os.PathLike | None = None,
               parent: str | os.PathLike = PARENT, tuned: Table | None = None) -> "RunFolder":
        """Make the folder of a new run, with its config, environment and table of algorithms.

        Args:
            config: of the run.
            path: the folder; it may exist if it is empty, or holds leftovers of a run that ended
                before it had a config. Default: a new one in parent, named by date, time, recipe.
            parent: folder of new run folders.
            tuned: tuning table of ``gpuconv tune``.

        Raises:
            FileExistsError: the folder is there, and not empty; or it is a file.
            RuntimeError: another process makes a run there.
            OSError: it cannot be made or written to.
        """
        if path is not None:
            check_free(path)
        folder = cls(_made(pathlib.Path(parent), config.recipe or "run") if path is None else path)
        files.make_folder(folder.path)
        with locked(folder.path):
            check_free(folder.path)  # again, now that the folder is locked
            files.remove_leftovers(folder.path)
            files.make_folder(folder.plots)
            if tuned is not None:
                tuned.save(folder.tuned)
            config.write(folder.path / "config.json")  # from here on the run can be started again
            folder.write_environment()
        return folder

    def config(self) -> Config:
        """Return the configuration of the run.

        Raises:
            FileNotFoundError: this is no folder of a run.
            OSError: config.json cannot be read, or is no file.
            ValueError: config.json is damaged.
        """
        path = self.path / "config.json"
        if not self.path.exists():
            raise FileNotFoundError(f"there is no folder {self.path}")
        if not os.path.lexists(path):
            inside = "".join(f"; the newest run in it is {run.path}" for run in find(self.path)[:1])
            raise FileNotFoundError(f"{self.path} is no folder of a run: it has no config.json"
                                    f"{inside}")
        return Config.read(path)

    def environment(self) -> dict[str, str]:
        """Return the environment of the run; empty if it was not kept.

        Raises:
            OSError: environment.json cannot be read, or is no file.
            ValueError: it is damaged.
        """
        path = self.path / "environment.json"
        if not os.path.lexists(path):
            return {}
        found = reading.read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"{path}: damaged: it is {found!r:.80}, wanted names and values")
        return {name: f"{value!s:.1000}" for name, value in found.items()}

    def write_environment(self) -> None:
        """Write environment.json, unless it is there.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path / "environment.json"
        if not os.path.lexists(path):
            with files.atomic_write(path, "w") as file:
                file.write(json.dumps(environment(), indent=2) + "\n")

    def history(self) -> History:
        """Return the metrics of the epochs so far.

        Raises:
            OSError: metrics.jsonl cannot be read, or is no file.
            ValueError: metrics.jsonl is damaged.
        """
        return read_metrics(self.path)

    def tta_result(self) -> TtaResult | None:
        """Return the result of the test with augmentation; None if there is none yet.

        Raises:
            OSError: views.json cannot be read, or is no file.
            ValueError: it is damaged.
        """
        return TtaResult.read(self.views) if os.path.lexists(self.views) else None

    def write_tta_result(self, tta_result: TtaResult) -> None:
        """Write views.json.

        Raises:
            OSError: it cannot be written.
        """
        tta_result.write(self.views)

    def checkpoints(self) -> list[pathlib.Path]:
        """Return the checkpoints to resume from, the newest last."""
        return checkpoints(self.checkpoints_folder)

    def best(self) -> pathlib.Path | None:
        """Return the checkpoint of the best epoch; None before the end of the first epoch."""
        path = self.checkpoints_folder / BEST
        return path if path.is_file() else None

    def status(self) -> str:
        """Return the state of the run.

        "finished"; "training now": a process of this machine trains it; "can be resumed" from a
        checkpoint; "can be started again": it ended before its first checkpoint; or "nothing
        saved": its checkpoints are missing or are no files.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        settings, history = self.config().settings, self.history()
        done = len(history.rows) >= settings.epochs
        if settings.patience and history.rows and not done and all(
                row.test for row in history.rows):
            done = EarlyStopping(settings.patience).exhausted(history)
        if done:
            return "finished"
        if in_use(self.path):
            return "training now"
        if self.checkpoints() or self.best():
            return "can be resumed"
        return "can be started again" if self.unsaved() else "nothing saved"

    def unsaved(self) -> bool:
        """Return whether the run ended before its first checkpoint.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        return not candidates(self.checkpoints_folder) and not self.history().rows

    def manifest(self) -> Manifest | None:
        """Return the manifest of the run's images; None if it has none.

        Raises:
            ValueError: manifest.json is damaged.
        """
        there = os.path.lexists(self.manifest_file)
        return Manifest.read(self.manifest_file) if there else None

    def sets(self, place: str | os.PathLike | None = None, **more: Any) -> Sets:
        """Load the images of the run, and find how they have changed.

        Args:
            place: where the images are now; default: where they were.
            more: identity (default: of a checkpoint), download, progress, skip_broken: as of
                ``run_sets``.

        Raises:
            OSError, ValueError: the images are not there, or they are others.
        """
        manifest = self.manifest()
        if "identity" not in more:
            with contextlib.suppress(OSError, ValueError, IndexError, MemoryError):  # none, damaged
                kept = self.best() or self.checkpoints()[-1]
                more["identity"] = files.load(kept)[1].get("identity")
        return run_sets(self.config(), manifest, place=place, **more)

    def resume_with(self, sets: Sets) -> None:
        """Check that the run can continue with these images, and record where they are now.

        Raises:
            ValueError: images are missing or have changed since its checkpoints were written.
        """
        if self.checkpoints() or self.best():
            sets.check_complete()
        config = self.config()
        if sets.source.path != config.source.path:
            dataclasses.replace(config, source=sets.source).write(self.path / "config.json")

    def data(self) -> tuple[Dataset, Dataset]:
        """Return (train, test) of the run; warn if the images have changed.

        Raises:
            OSError, ValueError: the images are not there, or they are others.
        """
        found = self.sets()
        found.warn()
        return found.train, found.test


def find(parent: str | os.PathLike = PARENT) -> list[RunFolder]:
    """Return the runs in a folder, the newest first; whatever has a config.json counts."""
    there = pathlib.Path(parent)
    found = [RunFolder(path) for path in (there.iterdir() if there.is_dir() else ())
             if os.path.lexists(path / "config.json")]
    return sorted(found, key=_age, reverse=True)


def newest(parent: str | os.PathLike = PARENT) -> RunFolder:
    """Return the newest run in a folder that has a model.

    Runs that are damaged, or have saved nothing yet, are passed over with a warning.

    Raises:
        FileNotFoundError: there is none.
    """
    problems = []
    for folder in find(parent):
        try:
            folder.config()
            model_file(folder)
        except (OSError, ValueError) as error:
            problems.append(f"{folder.path} is passed over: {error}")
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}; this is {folder.path}", stacklevel=2)
        return folder
    raise FileNotFoundError("; ".join([
        f"there is no run in {pathlib.Path(parent).absolute()}"
        f"{' that has a model' if problems else ''}: {program()} train makes one", *problems]))


def _age(folder: RunFolder) -> tuple[float, str]:
    try:
        return os.stat(folder.path / "config.json").st_mtime, folder.path.name
    except OSError:  # a link to nowhere
        return 0.0, folder.path.name


def _made(parent: pathlib.Path, name: str) -> pathlib.Path:
    """Make a new folder under parent, also if another run starts in the same second."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise AssertionError  # numbers do not end
