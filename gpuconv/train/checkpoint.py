"""Checkpoints: the state of a run as files, from which it can be resumed.

    step-00000391.safetensors     after that many steps; the newest few are kept
    best.safetensors              the epoch of the highest test accuracy so far

A file holds the weights to use under their own names (``gpuconv.load`` reads them);
"optimizer/...", the optimiser's state; "scale/...", the loss scale, if there is one. With averaged
weights it also holds the averages, "ema/...", and the weights that training continues with,
"raw/...". Its metadata are the model, the classes, mean and std, and the position: epoch, step,
sums of the epoch so far, history. Order, augmentation, dropout and schedule have no state: they are
functions of seed and step.

A resumed run is bit-identical to an uninterrupted one on the same machine with the same versions.
OpenBLAS selects its kernels by the processor: on another CPU the last bits may differ.
"""

import os
import pathlib
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuconv import files
from gpuconv.backend import Array, accumulator, to_cpu
from gpuconv.checks import check_count, check_number, check_path
from gpuconv.data import Dataset
from gpuconv.data.batches import normalization
from gpuconv.state import check_state
from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import row_to_dict
from gpuconv.train.measure import Tally
from gpuconv.train.position import check_position
from gpuconv.undo import uninterrupted

BEST = "best.safetensors"
STEP = re.compile(r"step-(\d{8,})\.safetensors")


class Checkpoint(Callback):
    """Callback that writes checkpoints: after each epoch, every few minutes, and on a stop.

    Args:
        folder: of the checkpoints; made if it does not exist. ``fit(resume=folder)`` resumes there.
        keep: number of newest checkpoints to keep, at least 1; the best is kept, too.
        minutes: longest time between two checkpoints within an epoch.
        model: description for ``models.build``, or any JSON that says how to build the model.

    Raises:
        ValueError: keep is less than 1, or minutes is not positive.
        OSError: the folder cannot be made or written to.
    """

    passive = True

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2, minutes: float = 5.0,
                 model: Any = None):
        check_count("Checkpoint", "keep", keep)
        place = check_path("Checkpoint", "folder", folder)
        check_number("Checkpoint", "minutes", minutes, above=0, infinite=True)
        self.folder, self.keep, self.minutes = pathlib.Path(place), keep, minutes
        self.model = model
        files.make_folder(self.folder)
        files.check_writable(self.folder / BEST)
        self.saved_at, self.saved = 0.0, (-1, -1)  # seconds; (steps, epochs)

    def on_fit_start(self, run: Run) -> None:
        """Start the timer; refuse to start a new run in the folder of another."""
        if not run.epoch and (there := candidates(self.folder)):
            raise ValueError(f"Checkpoint: {self.folder} holds those of another run "
                             f"({there[-1].name}): go on with resume, or choose another folder")
        files.remove_leftovers(self.folder)
        self.saved_at, self.saved = time.monotonic(), (-1, -1)

    def on_step(self, run: Run) -> None:
        """Save if ``minutes`` have passed."""
        if time.monotonic() - self.saved_at > 60 * self.minutes:
            self.save(run)

    def on_epoch_end(self, run: Run) -> None:
        """Save."""
        self.save(run)

    def on_fit_end(self, run: Run) -> None:
        """Save the last complete step of a run that a callback has stopped."""
        if run.stop and run.epoch:  # else there was no step yet
            self.save(run)

    def save(self, run: Run) -> pathlib.Path:
        """Write a checkpoint of the current state, and remove the oldest ones.

        At the end of the best epoch so far, write the best checkpoint first, so that no checkpoint
        is newer than the best it knows. SIGINT and SIGTERM are handled after the write.

        Raises:
            FloatingPointError: the loss or a weight is not finite; nothing is written.
            OSError: it cannot be written; the older ones are kept.
        """
        steps = (run.epoch - 1) * run.steps + run.step
        path = self.folder / f"step-{steps:08}.safetensors"
        rows = run.history.rows
        with uninterrupted():
            if (position := (steps, len(rows))) != self.saved:
                if len(rows) == run.epoch and run.history.best is rows[-1]:
                    self._write(run, self.folder / BEST)
                self._write(run, path)
                self.saved, run.checkpoint = position, path
                written = [old for old in checkpoints(self.folder) if _step(old) <= steps]
                for old in written[:-self.keep]:  # newer ones could not be read before
                    old.unlink(missing_ok=True)
            self.saved_at = time.monotonic()
        return path

    def _write(self, run: Run, path: pathlib.Path) -> None:
        state, metadata = run_state(run)
        try:
            files.save(path, state, {"model": self.model, **metadata})
        except OSError as error:
            newest = f"; the newest that is whole is {run.checkpoint}" if run.checkpoint else ""
            raise OSError(f"cannot write the checkpoint {path}: {error}{newest}") from error


def run_state(run: Run) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return (arrays by name, metadata) of a run, as a checkpoint stores them.

    Raises:
        FloatingPointError: the loss or a weight is not finite.
    """
    run.read()
    raw = {name: to_cpu(array) for name, array in run.model.state_dict().items()}
    for name, array in raw.items():
        if not np.isfinite(array.astype(accumulator(array.dtype), copy=False)).all():
            raise FloatingPointError(f"fit: {name} is no longer finite in epoch {run.epoch}, step "
                                     f"{run.step} of {run.steps}; {run.hint()}")
    state = dict(raw)
    if run.ema:
        state = {f"raw/{name}": array.copy() for name, array in raw.items()}
        with run.ema.applied():
            state |= {name: to_cpu(a).copy() for name, a in run.model.state_dict().items()}
        state |= {f"ema/{name}": array for name, array in run.ema.state_dict().items()}
    state |= {f"optimizer/{name}": a for name, a in run.optimizer.state_dict().items()}
    if run.scale:
        state |= {f"scale/{name}": a for name, a in run.scale.state_dict().items()}
    rows = run.history.rows
    metadata: dict[str, Any] = {
        "epoch": run.epoch, "step": run.step, "steps": run.steps, "tally": run.tally.as_dict(),
        "seconds": time.perf_counter() - run.epoch_start, "lr": run.lr,
        "history": [row_to_dict(row) for row in rows], "identity": identity(run),
        "input_shape": list(run.data.images.shape[1:])}
    if rows and rows[-1].test:
        metadata["test_accuracy"] = rows[-1].test.accuracy
    if isinstance(run.data, Dataset):
        used = normalization(run.data, run.arguments.get("normalize"))
        metadata |= {"classes": list(run.data.classes), "mean": used["mean"].tolist(),
                     "std": used["std"].tolist(), "data": run.data.name}
    return state, metadata


def identity(run: Run) -> dict[str, Any]:
    """Return everything that must be equal for a resumed run to give the same bits."""
    return {**run.arguments, "training set": run.data.fingerprint,
            "test set": run.test and run.test.fingerprint}


def _with_defaults(was: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with the defaults of settings that older versions did not have."""
    optimizer = was.get("optimizer")
    if isinstance(optimizer, list):
        optimizer = [{"stop": 1.0} | part if isinstance(part, dict) else part for part in optimizer]
    return {"reduction": "mean", "drop_last": False, "normalize": None, **was,
            "optimizer": optimizer}


def weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights and buffers to use from the arrays of a checkpoint."""
    check_state("weights", state)
    return {name: array for name, array in state.items() if "/" not in name}


def resume_from(place: str | os.PathLike, run: Run) -> None:
    """Load a checkpoint into a run.

    Args:
        place: a checkpoint, or a folder of them, of which the newest undamaged one is used.
        run: made with the arguments of that run.

    Raises:
        FileNotFoundError: no checkpoint there.
        MemoryError: it does not fit into the free memory.
        ValueError: it is damaged, not a checkpoint, or of another run; the model is unchanged.
        FloatingPointError: no step of its epoch had finite gradients.
    """
    place = pathlib.Path(place)
    path = newest(place) if place.is_dir() else place
    state, metadata = files.load(path)
    if "identity" not in metadata:
        raise ValueError(f"{path}: holds weights, but no run to resume")
    if not isinstance(metadata["identity"], dict):
        raise ValueError(f"{path}: damaged: identity is {metadata['identity']!r:.80}, wanted names "
                         "and values")
    was, now = _with_defaults(metadata["identity"]), identity(run)
    changed = [f"{name} was {was.get(name)!s:.200}, is {now.get(name)!s:.200}"
               for name in {**was, **now} if was.get(name) != now.get(name)]
    if changed:
        raise ValueError(f"fit: {path} is of another run: {'; '.join(changed[:9])}")

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): a for name, a in state.items()
                if name.startswith(prefix)}

    try:
        rows = check_position(metadata, run.epochs, run.steps)
        run.model.load_state_dict(part("raw/") if run.ema else weights(state))
        run.optimizer.load_state_dict(part("optimizer/"))
        if run.ema:
            run.ema.load_state_dict(part("ema/"))
        if run.scale:
            run.scale.load_state_dict(part("scale/"))
        run.history.rows[:] = rows
        run.epoch, run.step, run.lr = metadata["epoch"], metadata["step"], metadata["lr"]
        run.tally = Tally(**metadata["tally"])
        run.epoch_start = time.perf_counter() - metadata["seconds"]
        run.read()  # loss and speed so far: there may be no step left in this epoch
    except (ValueError, FloatingPointError) as error:
        raise type(error)(f"{path}: {error}") from None
    run.checkpoint = path


def checkpoints(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Return the files in a folder that are named like checkpoints, by step; not the best.

    Raises:
        OSError: the folder is there, but cannot be read.
    """
    folder = check_path("checkpoints", "folder", folder)
    return [path for path in candidates(folder) if path.name != BEST and os.path.isfile(path)]


def candidates(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Return the paths named like checkpoints in a folder: the best, then the others by step."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    there = [pathlib.Path(folder, name) for name in sorted(names)
             if name == BEST or STEP.fullmatch(name)]
    return sorted(there, key=_step)


def _step(path: pathlib.Path) -> int:
    """Return the step in a checkpoint's name; -1 for the best."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def newest(folder: str | os.PathLike) -> pathlib.Path:
    """Return the newest undamaged checkpoint of a folder; the best one if no other is undamaged.

    A checkpoint that is damaged, unreadable or not a file is skipped, with a warning.

    Raises:
        FileNotFoundError: there is none.
        ValueError: all are damaged.
        OSError: the folder cannot be read.
    """
    folder = check_path("newest", "folder", folder)
    return _first_whole(folder, candidates(folder)[::-1])


def best(folder: str | os.PathLike) -> pathlib.Path:
    """Return the checkpoint of the best epoch; if it is damaged the newest, with a warning.

    Raises:
        FileNotFoundError, ValueError: as ``newest``.
    """
    there = candidates(folder)
    first = [path for path in there if path.name == BEST]
    return _first_whole(folder, first + [path for path in there[::-1] if path.name != BEST])


def _first_whole(folder: str | os.PathLike, there: Sequence[pathlib.Path]) -> pathlib.Path:
    """Return the first undamaged checkpoint of a list; warn of those before it."""
    if not there:
        raise FileNotFoundError(f"{folder}: there is no checkpoint")
    problems = []
    for path in there:
        try:
            files.load(path)
        except (OSError, ValueError, MemoryError, SystemError) as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}; going on from {path.name}", stacklevel=3)
        return path
    raise ValueError(f"{folder}: no checkpoint is whole: {'; '.join(problems)}")
