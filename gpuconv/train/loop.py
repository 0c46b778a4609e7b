"""The training loop.

    step:  logits = model(x),  loss = cross-entropy(logits, labels),  backward,  lr,  update

Everything random is a function of (seed, epoch, step), so a run gives the same bits twice, and one
that was cut off goes on to the same bits. The data are moved to the model's device once, as bytes,
and become floats batch by batch. On a GPU nothing in a step waits for it: losses stay there and are
fetched, in one copy, every ``step.READ`` steps.
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
from gpuconv.nn import Module, SavedBuffers
from gpuconv.ops.conv import tuning_table
from gpuconv.optim import EMA, Constant, LossScale, Optimizer
from gpuconv.train.arguments import check_alike, check_callbacks, check_fit, scaling
from gpuconv.train.atomic_step import whole_start
from gpuconv.train.batches import Data, batches, dataset, first_images, moments, numbers
from gpuconv.train.callback import Callback, Run
from gpuconv.train.checkpoint import resume_from
from gpuconv.train.history import Epoch, History, Metrics
from gpuconv.train.lr_plan import Schedule
from gpuconv.train.measure import measure, mode
from gpuconv.train.memory import explain
from gpuconv.train.step import EagerStep, Plan, training_step

PREPARED = 5000  # images that a model may look at before its first step


def fit(model: Module, train: Data, *, test: Data | None = None, epochs: int, batch_size: int,
        optimizer: Optimizer, schedule: Schedule | None = None, augment: Augment | None = None,
        label_smoothing: float = 0.0, clip_norm: float | None = None, ema: EMA | None = None,
        seed: int = 0, resume: str | os.PathLike | None = None,
        callbacks: Sequence[Callback] = (), eager: bool | None = None,
        loss_scale: str | float | None = None, reduction: str = "mean", drop_last: bool = False,
        normalize: tuple[Any, Any] | None = None) -> History:
    """Train a model to classify images.

    Args:
        model: maps x (N, H, W, C) to logits (N, classes). It is trained where it is, in its dtype,
            all of it in training mode; afterwards each module is in the mode it was in. If it has a
            method ``prepare``, that is called once before the first step of a run, not of one that
            goes on, with the first 5,000 training images (n, H, W, C) as the model will see
            them, but not augmented: to set first weights by them, in place.
        train: Dataset, or a pair (images, labels): uint8 images (N, H, W, C) are treated as a
            Dataset, which is normalised to its own mean and standard deviation per channel; float
            images, of the model's dtype, are used as they are.
        test: likewise, measured after each epoch; normalised like the training set, never
            augmented.
        epochs: passes over train, at least 1.
        batch_size: images of a step; the last step of an epoch may have fewer.
        optimizer: of the model's parameters. A group with a setting "stop" below 1 is trained for
            that share of the steps, and then frozen until fit ends.
        schedule: schedule(step, steps of the run, or until its stop) is a factor of a group's
            learning rate. Default: 1.
        augment: what happens to training images.
        label_smoothing: share of the target that is spread over all classes, 0 .. 1.
        clip_norm: gradients are scaled down to this norm, taken over all of them, if it is more.
        ema: averages of the model's weights: they are tested in place of the weights, and the model
            carries them when all epochs are done.
        seed: of order, augmentation and dropout, 0 .. 2**32 - 1.
        resume: a file that a ``Checkpoint`` wrote, or their folder: go on from there, to the bits
            that the run would have come to. All other arguments must be those of that run.
        callbacks: what watches the run.
        eager: on a GPU, launch each kernel of a step by itself? Else a step is one CUDA graph, with
            the same bits: False demands that, None goes on eagerly, with a warning, where an op
            cannot be captured. The schedule is then asked for all steps beforehand.
        loss_scale: what the loss is multiplied by, a power of two, so that small gradients do not
            vanish in 16 bits; updates do not see it. "dynamic": as much as does not overflow; a
            step whose gradients did is left out. Default: "dynamic" in float16, else 1.
        reduction: of the loss over a batch that is differentiated, "mean" or "sum". Losses are
            reported as means all the same.
        drop_last: leave out the last batch of an epoch where it has fewer images?
        normalize: (mean, std) of each channel that uint8 images are normalised to, pixels in 0 ..
            1. Default: those of train.

    Returns:
        What was measured, epoch by epoch.

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
    data = dataset("fit: train", train, model)
    trial = None if test is None else dataset("fit: test", test, model)
    check_alike(data, trial, augment)
    given = numbers(data, normalize)
    loader = batches(data, batch_size, dtype=model.dtype, shuffle=True, seed=seed, augment=augment,
                     drop_last=drop_last, **moments(data, given))
    if not len(loader):
        raise ValueError(f"fit: {len(data)} images make no batch of {batch_size}: drop_last leaves "
                         "out all there are")
    run = Run(model, optimizer, data, epochs, len(loader), dict(
        epochs=epochs, batch_size=batch_size, schedule=_words(schedule), augment=_words(augment),
        label_smoothing=label_smoothing, clip_norm=clip_norm, seed=seed, dtype=model.dtype.name,
        optimizer=_settings(optimizer), ema=ema and ema.decay,
        loss_scale=scaling(loss_scale, model.dtype), tuned=_tuned(model), reduction=reduction,
        drop_last=bool(drop_last), normalize=given), ema=ema, test=trial)
    plan = Plan(schedule, label_smoothing, clip_norm, seed, reduction)
    with contextlib.ExitStack() as during:
        during.enter_context(threads.single_threaded_blas())  # once, not in each op
        during.enter_context(_memory(run, batch_size))
        during.enter_context(_scaled(run))
        if resume is not None:
            with whole_start(run):
                resume_from(resume, run)
        else:
            _prepare(run)
        during.enter_context(mode(model, True))
        during.callback(model.reseed, None)  # dropout of later calls is not that of the last step
        step = during.enter_context(training_step(run, loader, plan, eager, callbacks))
        during.enter_context(_watched(run, callbacks))
        try:
            try:
                while len(run.history.rows) < epochs and not run.stop:
                    run.begin()
                    _epoch(run, step, batch_size, callbacks)
            finally:
                step.restore()
        finally:
            step.restore()  # a signal that came just before the first: it makes no difference else
    if ema and len(run.history.rows) == run.epoch:
        ema.copy_to_module()
    return run.history


def _epoch(run: Run, step: EagerStep, batch_size: int, callbacks: Sequence[Callback]) -> None:
    """One pass over the training set, or the rest of it, and the test. May be stopped anywhere."""
    step.begin()
    while run.step < run.steps:
        step.take()
        for callback in callbacks:
            callback.on_step(run)
        if run.stop:
            break
    if run.stop:  # in the middle of the epoch: it is no row of the history
        return
    tested = _test(run, step, batch_size, callbacks) if run.test is not None else None
    if run.test is not None and tested is None:  # it will be measured when the run goes on
        return
    run.history.rows.append(Epoch(
        run.epoch, run.tally.metrics(), tested, run.images_per_second,
        time.perf_counter() - run.began, run.lr, run.tally.skipped))
    for callback in callbacks:
        callback.on_epoch_end(run)


def _test(run: Run, step: EagerStep, batch_size: int,
          callbacks: Sequence[Callback]) -> Metrics | None:
    """The measurement of the test set; None if it was stopped before its end."""
    for callback in callbacks:
        callback.on_test_start(run)
    assert run.test is not None
    step.undo.call(SavedBuffers(run.model).put_back)  # a user's forward may change them here, too
    step.undo.keep(*(run.model.state_dict().values() if run.ema else ()))
    with run.ema.applied() if run.ema else contextlib.nullcontext():
        tested = measure(run.model, run.test, batch_size, stopped=lambda: run.stop,
                         **moments(run.data, run.arguments["normalize"]))
    step.undo.restore() if tested is None else step.undo.forget()
    if tested is not None and not math.isfinite(tested.loss):
        raise FloatingPointError(f"fit: the test loss is {tested.loss} after epoch {run.epoch}; "
                                 f"{run.hint()}")
    return tested


def _prepare(run: Run) -> None:
    """Let a model that wants to look at the training images; averages begin after that."""
    prepare = getattr(run.model, "prepare", None)
    if prepare is None:
        return
    with whole_start(run), no_grad():
        prepare(first_images(run.data, PREPARED, run.model.dtype, run.arguments["normalize"]))
    if run.ema and not run.ema.updates:
        values = run.model.state_dict()
        for name, average in run.ema.averages.items():
            with array_device(average):
                average[...] = values[name]


@contextlib.contextmanager
def _watched(run: Run, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Between on_fit_start and on_fit_end, which every callback gets that was started."""
    with contextlib.ExitStack() as ends:
        for callback in callbacks:
            ends.callback(callback.on_fit_end, run)
            callback.on_fit_start(run)
        yield


def _tuned(model: Module) -> str | None:
    """Which table of measured algorithms is in use."""
    here = tuning_table.current()
    return None if here is None or model.device == "cpu" else here.hash


@contextlib.contextmanager
def _scaled(run: Run) -> Iterator[None]:
    """With the loss scale of ``run.arguments``; afterwards the optimiser knows of none."""
    scaling, optimizer = run.arguments["loss_scale"], run.optimizer
    if scaling is None:
        yield
        return
    run.scale = (LossScale(optimizer) if scaling == "dynamic" else
                 LossScale(optimizer, scaling, growth=1, backoff=1))
    try:
        yield
    finally:
        with array_device(optimizer.control):
            optimizer.table[:, 1:2].fill(1)  # the multipliers; skip: see training_step


@contextlib.contextmanager
def _memory(run: Run, batch_size: int) -> Iterator[None]:
    """Say of a MemoryError what was needed."""
    try:
        yield
    except MemoryError as error:  # CuPy's own is one, too
        shape = run.data.images.shape[1:]
        raise explain(error, run.model, shape, batch_size, run.optimizer) from None


def _words(thing: Any) -> str:
    """A schedule or an augmentation, in words that are the same in the next process."""
    if thing is None or dataclasses.is_dataclass(thing):
        return repr(thing)
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def _settings(optimizer: Optimizer) -> list[Any]:
    """The optimiser and the settings of its groups, likewise."""
    return [optimizer.name, *({name: value if isinstance(value, bool) else float(value)
                               for name, value in group.items() if name != "params"}
                              for group in optimizer.groups)]
