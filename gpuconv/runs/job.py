"""Doing a run: from its config to its last checkpoint."""

import contextlib
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence

import gpuconv.train as training
from gpuconv import files, models, nn, ops, random
from gpuconv.data import Dataset
from gpuconv.data.manifest import Manifest
from gpuconv.data.source import MANIFEST_KINDS
from gpuconv.runs.checks import check_data
from gpuconv.runs.config import Config
from gpuconv.runs.environment import kernels
from gpuconv.runs.folder import RunFolder
from gpuconv.runs.lock import locked
from gpuconv.runs.trained import check_size
from gpuconv.runs.viewed import Viewed
from gpuconv.train import (
    Callback,
    Checkpoint,
    EarlyStopping,
    History,
    Interrupt,
    MetricsFiles,
    Predictions,
    TensorBoard,
    newest,
    predictions,
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    history: History
    signal: int | None  # that stopped it before its end; it can be resumed
    viewed: Predictions | None = None  # with the views of the settings, where these are several


def train(config: Config, folder: RunFolder, *, data: tuple[Dataset, Dataset] | None = None,
          resume: bool = False, minutes: float = 5.0, keep: int = 2, tensorboard: bool = False,
          ranges: bool = False, eager: bool = False,
          callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train as the config says, and keep everything in the folder.

    Ctrl-C and SIGTERM end it after the current step, or batch of the test, saved. Meanwhile nobody
    else can train in the folder.

    Args:
        config: of the run.
        folder: of the run.
        data: (train, test), if they have been loaded. Default: loads them.
        resume: go on from the newest checkpoint? A run that ended before its first one starts
            again, with a warning.
        minutes: at most so long between two checkpoints.
        keep: checkpoints to keep besides the best.
        tensorboard: also write TensorBoard events?
        ranges: mark each layer's forward pass for NVIDIA's profilers? Its steps are eager.
        eager: on a GPU, no CUDA graphs?
        callbacks: more of them, called last.

    Raises:
        KeyboardInterrupt: a second signal came before the run had ended.
        RuntimeError: the run is in use, by another process or elsewhere in this one.
        OSError, ValueError, FloatingPointError, MemoryError: as ``fit`` does.
    """
    files.make_folder(folder.plots)
    with locked(folder.path):
        checkpoint = _to_go_on_from(folder, config) if resume else None
        if checkpoint is None:
            folder.keep_environment()
        else:
            _warn_of_other_kernels(folder, config)
        if data is None:
            data = folder.data() if resume else config.source.load()
        if resume and checkpoint is None:  # no checkpoint has proved that the config can be done
            check_data(config, *data)
        return _train(config, folder, checkpoint, data, minutes, keep, tensorboard, ranges, eager,
                      callbacks)


def _train(config: Config, folder: RunFolder, checkpoint: pathlib.Path | None,
           data: tuple[Dataset, Dataset], minutes: float, keep: int, tensorboard: bool,
           ranges: bool, eager: bool, callbacks: Sequence[Callback]) -> Outcome:
    """Do what ``train`` does, in a folder that is locked, from a checkpoint or from the start."""
    files.remove_leftovers(folder.plots)
    train_set, test_set = data
    if checkpoint is None and config.source.kind in MANIFEST_KINDS:
        listed = Manifest.of(train_set, test_set)
        listed.write(folder.manifest_file)
        if listed.repeated:
            warnings.warn(f"{listed.repeated:,} of the {len(test_set):,} test images have the "
                          "pixels of training images: they say nothing about unseen images",
                          stacklevel=2)
    random.seed(config.seed)
    model = models.build(config.model).to(config.device, config.dtype)
    interrupt, settings = Interrupt(), config.settings
    watching: list[Callback] = [interrupt]
    watching += [EarlyStopping(settings.patience)] if settings.patience else []
    watching += [Checkpoint(folder.checkpoints_folder, keep=keep, minutes=minutes,
                            model=config.model), MetricsFiles(folder.path)]
    watching += [TensorBoard(folder.path / "tensorboard")] if tensorboard else []
    with contextlib.ExitStack() as during:
        if os.path.lexists(folder.tuned):
            during.enter_context(ops.tuned(ops.load_table(folder.tuned)))
        if ranges:
            during.enter_context(nn.nvtx_ranges(model))
        history = training.fit(
            model, train_set, test=test_set, seed=config.seed,
            resume=checkpoint, callbacks=[*watching, *callbacks],
            eager=True if eager or ranges else None, **settings.fit_arguments(model))
    finished = len(history.rows) >= settings.epochs  # a signal came too late to stop anything
    stopped = None if finished else interrupt.received
    viewed = None
    if settings.views != "none" and stopped is None and folder.status() == "finished":
        viewed = seen_in_views(model, config, train_set, test_set)
        folder.keep_viewed(Viewed(settings.views, history.last.epoch, len(viewed.labels),
                                  viewed.accuracy, viewed.loss))
    return Outcome(history, stopped, viewed)


def seen_in_views(model: nn.Module, config: Config, train_set: Dataset,
                  test_set: Dataset) -> Predictions:
    """What the trained model answers on the test set, in the views of the settings."""
    settings = config.settings
    return predictions(model, test_set, views=settings.views, batch_size=settings.batch_size,
                       mean=settings.mean or train_set.mean, std=settings.std or train_set.std)


def _warn_of_other_kernels(folder: RunFolder, config: Config) -> None:
    """Warn if a run of the CPU began with other kernels of BLAS: the last bits may differ."""
    was, now = "", kernels()
    with contextlib.suppress(OSError, ValueError, MemoryError):  # damaged: it is only a note
        was = folder.environment().get("BLAS kernels", "")  # older runs kept none
    if config.device == "cpu" and was and now and was != now:
        warnings.warn(f"{folder.path} began with BLAS kernels for {was:.80}, and goes on with "
                      f"those for {now}: the last bits of its results may differ from those of a "
                      "run without a break", stacklevel=3)


def _to_go_on_from(folder: RunFolder, config: Config) -> pathlib.Path | None:
    """Return the newest checkpoint, if it is of the model that the config names.

    None, with a warning, of a run that ended before its first checkpoint.

    Raises:
        FileNotFoundError, ValueError: it is gone, damaged, or not of this model.
    """
    if folder.unsaved():
        warnings.warn(f"{folder.path}: the run ended before its first checkpoint, so it starts "
                      "again", stacklevel=3)
        return None
    path = newest(folder.checkpoints_folder)
    state, metadata = files.load(path)
    if (was := metadata.get("model")) != config.model:  # of weights with the same names and shapes
        raise ValueError(f"{path} is of another model: it was {was!s:.200}, is {config.model}")
    try:
        check_size(config.model, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return path
