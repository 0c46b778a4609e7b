"""The training loop.

    step:  logits = model(x),  loss = cross-entropy(logits, labels),  backward,  lr,  update

Everything random is a function of (seed, epoch, step): two runs give the same bits, and a resumed
run gives those of an uninterrupted one. The data are moved to the model's device once, as bytes,
and become floats batch by batch. On a GPU no step waits for the device: losses stay there and are
read, in one copy, every ``step.READ`` steps.
"""

import contextlib
import dataclasses
import math
import operator
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gpuconv import random, threads
from gpuconv.autograd import no_grad
from gpuconv.backend import array_device
from gpuconv.checks import check_choice, check_function, check_path
from gpuconv.data import Augment
from gpuconv.data.batches import (
    Data,
    as_dataset,
    first_images,
    make_loader,
    normalization,
)
from gpuconv.nn import Module, SavedBuffers
from gpuconv.ops.conv import tuning_table
from gpuconv.optim import EMA, Constant, LossScale, Optimizer
from gpuconv.train.arguments import (
    check_alike,
    check_callbacks,
    check_fit,
    check_loss_scale,
    check_normalize,
)
from gpuconv.train.atomic_step import atomic_start
from gpuconv.train.callback import Callback, Run
from gpuconv.train.checkpoint import resume_from
from gpuconv.train.history import Epoch, History, Metrics
from gpuconv.train.lr_plan import Schedule
from gpuconv.train.measure import measure, training_mode
from gpuconv.train.memory import explain
from gpuconv.train.step import EagerStep, StepSettings, training_step

PREPARED = 5000  # images passed to a model's ``prepare``


def fit(model: Module, train: Data, *, test: Data | None = None, epochs: int, batch_size: int,
        optimizer: Optimizer, schedule: Schedule | None = None, augment: Augment | None = None,
        label_smoothing: float = 0.0, clip_norm: float | None = None, ema: EMA | None = None,
        seed: int = 0, resume: str | os.PathLike | None = None,
        callbacks: Sequence[Callback] = (), eager: bool | None = None,
        loss_scale: str | float | None = None, reduction: str = "mean", drop_last: bool = False,
        normalize: tuple[Any, Any] | None = None) -> History:
    """Train a model to classify images.

    Args:
        model: maps x (N, H, W, C) to logits (N, classes). It is trained on its device, in its
            dtype, in training mode; afterwards each module is in its former mode. A method
            ``prepare`` of the model is called once before the first step of a new run, with the
            first 5,000 training images (n, H, W, C), normalised but not augmented: it may set
            initial weights in place.
        train: Dataset, or a pair (images, labels). uint8 images (N, H, W, C) become a Dataset,
            which is normalised to its own mean and standard deviation per channel; float images,
            of the model's dtype, are used as they are.
        test: as ``train``; measured after each epoch, normalised like the training set, not
            augmented.
        epochs: passes over train, at least 1.
        batch_size: images of a step; the last step of an epoch may have fewer.
        optimizer: of the model's parameters. A group with a setting "stop" below 1 is trained for
            that share of the steps, and then frozen until fit ends.
        schedule: schedule(step, steps) is a factor of a group's learning rate; steps are those of
            the run, or until the group's stop. Default: 1.
        augment: random changes of training images.
        label_smoothing: share of the target that is spread over all classes, 0 .. 1.
        clip_norm: largest norm of all gradients together; larger ones are scaled down to it.
        ema: averages of the model's weights. They are tested in place of the weights, and written
            into the model after the last epoch.
        seed: of order, augmentation and dropout, 0 .. 2**32 - 1.
        resume: a file that a ``Checkpoint`` wrote, or a folder of them, to resume from; the results
            are bit-identical to an uninterrupted run. All other arguments must be those of that
            run.
        callbacks: called at the start and end of the run, of steps and of epochs.
        eager: True launches each kernel of a step by itself. On a GPU a step is otherwise one CUDA
            graph, with the same bits, and the schedule is evaluated for all steps beforehand: False
            raises if an op cannot be captured, None then warns and runs eagerly.
        loss_scale: factor of the loss, a power of two, so that small gradients do not vanish in 16
            bits; updates divide by it. "dynamic": as large as does not overflow; a step whose
            gradients overflow is skipped. Default: "dynamic" in float16, else 1.
        reduction: of the differentiated loss over a batch, "mean" or "sum". Reported losses are
            always means.
        drop_last: whether to leave out the last batch of an epoch if it has fewer images.
        normalize: (mean, std) of each channel to normalise uint8 images to, pixels in 0 .. 1.
            Default: those of train.

    Returns:
        Metrics of each epoch.

    Raises:
        ValueError: an argument makes no sense, images of train and test differ in shape, a label
            has no logit, or a checkpoint is damaged or of another run.
        TypeError: train or test is no data, or of the wrong dtype.
        FloatingPointError: a loss is no longer finite; says where, and the learning rate.
        MemoryError: a step does not fit; says what it needs, and the batch size that would.

    >>> import numpy as np
    >>> from gpuconv import nn, optim
    >>> x = np.float32([[[[0, 1]]], [[[1, 0]]]])
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    >>> history = fit(model, (x, [1, 0]), epochs=20, batch_size=2,
    ...               optimizer=optim.SGD(model.parameters(), lr=1.0))
    >>> history.last.train.accuracy
    1.0
    """
    check_fit(model, optimizer, augment, ema, epochs=epochs, batch_size=batch_size,
              label_smoothing=label_smoothing, clip_norm=clip_norm, reduction=reduction)
    random.check_seed(seed, "fit")
    epochs, batch_size = (operator.index(n) for n in (epochs, batch_size))
    callbacks, schedule = check_callbacks(callbacks), Constant() if schedule is None else schedule
    check_function("fit", "schedule", schedule)
    if resume is not None:
        check_path("fit", "resume", resume)
    check_choice("fit", "eager", eager, (None, True, False))
    data = as_dataset("fit: train", train, model.device, model.dtype)
    test_data = None if test is None else as_dataset("fit: test", test, model.device, model.dtype)
    check_alike(data, test_data, augment)
    mean_std = check_normalize(data, normalize)
    loader = make_loader(data, batch_size, dtype=model.dtype, shuffle=True, seed=seed,
                         augment=augment, drop_last=drop_last, **normalization(data, mean_std))
    if not len(loader):
        raise ValueError(f"fit: {len(data)} images make no batch of {batch_size}: drop_last leaves "
                         "out all there are")
    run = Run(model, optimizer, data, epochs, len(loader), dict(
        epochs=epochs, batch_size=batch_size, schedule=_words(schedule), augment=_words(augment),
        label_smoothing=label_smoothing, clip_norm=clip_norm, seed=seed, dtype=model.dtype.name,
        optimizer=_settings(optimizer), ema=ema and ema.decay,
        loss_scale=check_loss_scale(loss_scale, model.dtype), tuned=_tuned(model),
        reduction=reduction, drop_last=bool(drop_last), normalize=mean_std),
        ema=ema, test=test_data)
    settings = StepSettings(schedule, label_smoothing, clip_norm, seed, reduction)
    with contextlib.ExitStack() as stack:
        stack.enter_context(threads.single_threaded_blas())  # once, not in each op
        stack.enter_context(_explained_memory_errors(run, batch_size))
        stack.enter_context(_loss_scale(run))
        if resume is not None:
            with atomic_start(run):
                resume_from(resume, run)
        else:
            _prepare(run)
        stack.enter_context(training_mode(model, True))
        stack.callback(model.reseed, None)  # later calls do not repeat the dropout of the last step
        step = stack.enter_context(training_step(run, loader, settings, eager, callbacks))
        stack.enter_context(_started(run, callbacks))
        try:
            try:
                while len(run.history.rows) < epochs and not run.stop:
                    run.begin_epoch()
                    _epoch(run, step, batch_size, callbacks)
            finally:
                step.restore()
        finally:
            step.restore()  # again: a signal may have come just before the first
    if ema and len(run.history.rows) == run.epoch:
        ema.copy_to_module()
    return run.history


def _epoch(run: Run, step: EagerStep, batch_size: int, callbacks: Sequence[Callback]) -> None:
    """Run an epoch, or the rest of it, and its test; a callback may stop it anywhere."""
    step.begin_epoch()
    while run.step < run.steps:
        step.run_step()
        for callback in callbacks:
            callback.on_step(run)
        if run.stop:
            break
    if run.stop:  # the epoch is incomplete: no row of the history
        return
    test_metrics = _test(run, step, batch_size, callbacks) if run.test is not None else None
    if run.test is not None and test_metrics is None:  # stopped: a resumed run repeats the test
        return
    run.history.rows.append(Epoch(
        run.epoch, run.tally.metrics(), test_metrics, run.images_per_second,
        time.perf_counter() - run.epoch_start, run.lr, run.tally.skipped))
    for callback in callbacks:
        callback.on_epoch_end(run)


def _test(run: Run, step: EagerStep, batch_size: int,
          callbacks: Sequence[Callback]) -> Metrics | None:
    """Measure the test set; return None if a callback stopped the run meanwhile."""
    for callback in callbacks:
        callback.on_test_start(run)
    assert run.test is not None
    step.undo.call(SavedBuffers(run.model).put_back)  # a user's forward may change them
    step.undo.keep(*(run.model.state_dict().values() if run.ema else ()))
    with run.ema.applied() if run.ema else contextlib.nullcontext():
        metrics = measure(run.model, run.test, batch_size, stopped=lambda: run.stop,
                          **normalization(run.data, run.arguments["normalize"]))
    step.undo.restore() if metrics is None else step.undo.forget()
    if metrics is not None and not math.isfinite(metrics.loss):
        raise FloatingPointError(f"fit: the test loss is {metrics.loss} after epoch {run.epoch}; "
                                 f"{run.hint()}")
    return metrics


def _prepare(run: Run) -> None:
    """Call the model's ``prepare``, if it has one, and restart the averages from its weights."""
    prepare = getattr(run.model, "prepare", None)
    if prepare is None:
        return
    with atomic_start(run), no_grad():
        prepare(first_images(run.data, PREPARED, run.model.dtype, run.arguments["normalize"]))
    if run.ema and not run.ema.updates:
        values = run.model.state_dict()
        for name, average in run.ema.averages.items():
            with array_device(average):
                average[...] = values[name]


@contextlib.contextmanager
def _started(run: Run, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Call on_fit_start before the block, and on_fit_end of every started callback after it."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.callback(callback.on_fit_end, run)
            callback.on_fit_start(run)
        yield


def _tuned(model: Module) -> str | None:
    """Return the hash of the tuning table in use; None without one."""
    table = tuning_table.current()
    return None if table is None or model.device == "cpu" else table.hash


@contextlib.contextmanager
def _loss_scale(run: Run) -> Iterator[None]:
    """Use the loss scale of ``run.arguments`` in the block; reset the optimiser afterwards."""
    loss_scale, optimizer = run.arguments["loss_scale"], run.optimizer
    if loss_scale is None:
        yield
        return
    run.scale = (LossScale(optimizer) if loss_scale == "dynamic" else
                 LossScale(optimizer, loss_scale, growth=1, backoff=1))
    try:
        yield
    finally:
        with array_device(optimizer.control):
            optimizer.table[:, 1:2].fill(1)  # the multipliers; atomic_steps resets skip


@contextlib.contextmanager
def _explained_memory_errors(run: Run, batch_size: int) -> Iterator[None]:
    """Replace a MemoryError of the block by one that says how much memory a step needs."""
    try:
        yield
    except MemoryError as error:  # CuPy's OutOfMemoryError is one
        shape = run.data.images.shape[1:]
        raise explain(error, run.model, shape, batch_size, run.optimizer) from None


def _words(thing: Any) -> str:
    """Return a name of a schedule or an augmentation that is the same in every process."""
    if thing is None or dataclasses.is_dataclass(thing):
        return repr(thing)
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def _settings(optimizer: Optimizer) -> list[Any]:
    """Return the name of an optimiser and the settings of its groups."""
    return [optimizer.name, *({name: value if isinstance(value, bool) else float(value)
                               for name, value in group.items() if name != "params"}
                              for group in optimizer.groups)]
