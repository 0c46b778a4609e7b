"""Training of a run, from its config to its last checkpoint."""

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
from gpuconv.runs.tta_result import TtaResult
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
    """Result of a run."""

    history: History
    signal: int | None  # signal that stopped the run before its end; it can be resumed
    tta_predictions: Predictions | None = None  # None without test-time augmentation


def train(config: Config, folder: RunFolder, *, data: tuple[Dataset, Dataset] | None = None,
          resume: bool = False, minutes: float = 5.0, keep: int = 2, tensorboard: bool = False,
          ranges: bool = False, eager: bool = False,
          callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train as the config says, and store the results in the folder.

    Ctrl-C and SIGTERM stop the run after the current step, or batch of a test, and save it. The
    folder is locked meanwhile.

    Args:
        config: of the run.
        folder: of the run.
        data: (train, test), if they are already loaded. Default: load them.
        resume: whether to resume from the newest checkpoint. A run that ended before its first one
            starts again, with a warning.
        minutes: longest time between two checkpoints.
        keep: checkpoints to keep besides the best.
        tensorboard: whether to write TensorBoard events, too.
        ranges: whether to mark each layer's forward pass for NVIDIA's profilers; steps are eager.
        eager: whether to run without CUDA graphs on a GPU.
        callbacks: further callbacks, called last.

    Raises:
        KeyboardInterrupt: a second signal came before the run had ended.
        RuntimeError: the folder is in use by another run.
        OSError, ValueError, FloatingPointError, MemoryError: as ``fit``.
    """
    files.make_folder(folder.plots)
    with locked(folder.path):
        checkpoint = _checkpoint_to_resume(folder, config) if resume else None
        if checkpoint is None:
            folder.write_environment()
        else:
            _warn_of_other_kernels(folder, config)
        if data is None:
            data = folder.data() if resume else config.source.load()
        if resume and checkpoint is None:  # no checkpoint has proved that the config works
            check_data(config, *data)
        return _train(config, folder, checkpoint, data, minutes, keep, tensorboard, ranges, eager,
                      callbacks)


def _train(config: Config, folder: RunFolder, checkpoint: pathlib.Path | None,
           data: tuple[Dataset, Dataset], minutes: float, keep: int, tensorboard: bool,
           ranges: bool, eager: bool, callbacks: Sequence[Callback]) -> Outcome:
    """Train in a locked folder, from a checkpoint or from the start."""
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
    own_callbacks: list[Callback] = [interrupt]
    own_callbacks += [EarlyStopping(settings.patience)] if settings.patience else []
    own_callbacks += [Checkpoint(folder.checkpoints_folder, keep=keep, minutes=minutes,
                                 model=config.model), MetricsFiles(folder.path)]
    own_callbacks += [TensorBoard(folder.path / "tensorboard")] if tensorboard else []
    with contextlib.ExitStack() as during:
        if os.path.lexists(folder.tuned):
            during.enter_context(ops.tuned(ops.load_table(folder.tuned)))
        if ranges:
            during.enter_context(nn.nvtx_ranges(model))
        history = training.fit(
            model, train_set, test=test_set, seed=config.seed,
            resume=checkpoint, callbacks=[*own_callbacks, *callbacks],
            eager=True if eager or ranges else None, **settings.fit_arguments(model))
    finished = len(history.rows) >= settings.epochs  # else a signal came too late
    stopped = None if finished else interrupt.received
    tta_predictions = None
    if settings.views != "none" and stopped is None and folder.status() == "finished":
        tta_predictions = predict_test_set(model, config, train_set, test_set)
        folder.write_tta_result(TtaResult(
            settings.views, history.last.epoch, len(tta_predictions.labels),
            tta_predictions.accuracy, tta_predictions.loss))
    return Outcome(history, stopped, tta_predictions)


def predict_test_set(model: nn.Module, config: Config, train_set: Dataset,
                     test_set: Dataset) -> Predictions:
    """Return the predictions on the test set, with the settings' test-time augmentation."""
    settings = config.settings
    return predictions(model, test_set, views=settings.views, batch_size=settings.batch_size,
                       mean=settings.mean or train_set.mean, std=settings.std or train_set.std)


def _warn_of_other_kernels(folder: RunFolder, config: Config) -> None:
    """Warn if a run on the CPU began with other BLAS kernels: the last bits may differ."""
    was, now = "", kernels()
    with contextlib.suppress(OSError, ValueError, MemoryError):  # damaged: ignore it
        was = folder.environment().get("BLAS kernels", "")  # older runs kept none
    if config.device == "cpu" and was and now and was != now:
        warnings.warn(f"{folder.path} began with BLAS kernels for {was:.80}, and goes on with "
                      f"those for {now}: the last bits of its results may differ from those of a "
                      "run without a break", stacklevel=3)


def _checkpoint_to_resume(folder: RunFolder, config: Config) -> pathlib.Path | None:
    """Return the newest checkpoint of the config's model.

    None, with a warning, if the run ended before its first checkpoint.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged, or of another model.
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
