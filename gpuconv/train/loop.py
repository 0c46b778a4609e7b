"""The training loop, and the measurement of a model.

    step:  logits = model(x),  loss = cross-entropy(logits, labels),  backward,  lr,  update

Everything random is a function of (seed, epoch, step), so a run gives the same bits twice. The
data are moved to the model's device once, as bytes, and become floats batch by batch. On a GPU
nothing in a step waits for it: losses stay there and are fetched, in one copy, every READ steps.
"""

import contextlib
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpuconv import random
from gpuconv.autograd import no_grad
from gpuconv.backend import Array, array_device, get_array_module, to_cpu
from gpuconv.data import Augment, Dataset
from gpuconv.nn import Module
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.arithmetic import wide
from gpuconv.optim import Constant, Optimizer
from gpuconv.train.callback import Callback, Run, check_callbacks
from gpuconv.train.feed import Data, Floats, Numbers, batches, dataset
from gpuconv.train.history import Epoch, History, Metrics

READ = 20  # steps between two looks at the loss on a GPU; on the CPU each is looked at


def fit(model: Module, train: Data, *, test: Data | None = None, epochs: int, batch_size: int,
        optimizer: Optimizer, schedule: Callable[[int, int], float] | None = None,
        augment: Augment | None = None, label_smoothing: float = 0.0, seed: int = 0,
        callbacks: Sequence[Callback] = ()) -> History:
    """Train a model to classify images.

    Args:
        model: maps x (N, H, W, C) to logits (N, classes). It is trained where it is, in its dtype,
            all of it in training mode; afterwards each module is in the mode it was in.
        train: Dataset, or a pair (images, labels): uint8 images (N, H, W, C) are treated as a
            Dataset, which is normalised to its own mean and standard deviation per channel; float
            images, of the model's dtype, are used as they are.
        test: likewise, measured after each epoch; normalised like the training set, never
            augmented.
        epochs: passes over train, at least 1.
        batch_size: images of a step; the last step of an epoch may have fewer.
        optimizer: of the model's parameters.
        schedule: schedule(step, steps of the run) is a factor of the learning rate. Default: 1.
        augment: what happens to training images.
        label_smoothing: share of the target that is spread over all classes, 0 .. 1.
        seed: of order, augmentation and dropout, 0 .. 2**32 - 1.
        callbacks: what watches the run.

    Returns:
        What was measured, epoch by epoch.

    Raises:
        ValueError: an argument makes no sense, images of train and test differ in shape, or a label
            has no logit.
        TypeError: train or test is no data, or of the wrong dtype.
        FloatingPointError: the loss is no longer finite; says where, and the learning rate.

    >>> import numpy as np
    >>> from gpuconv import nn, optim
    >>> x = np.float32([[[[0, 1]]], [[[1, 0]]]])
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    >>> history = fit(model, (x, [1, 0]), epochs=20, batch_size=2,
    ...               optimizer=optim.SGD(model.parameters(), lr=1.0))
    >>> history.last.train.accuracy
    1.0
    """
    for thing, kind in ((model, Module), (optimizer, Optimizer), (augment, Augment | None)):
        if not isinstance(thing, kind):
            raise TypeError(f"fit: {thing!r} is no {getattr(kind, '__name__', 'Augment')}")
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if operator.index(number) < 1:
            raise ValueError(f"fit: {name} {number}, wanted at least 1")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"fit: label_smoothing {label_smoothing}, wanted 0..1")
    random.check_seed(seed)
    callbacks = check_callbacks(callbacks)
    schedule = schedule or Constant()
    mine = {id(p) for p in model.parameters()}
    if not any(id(p) in mine for group in optimizer.groups for p in group["params"]):
        raise ValueError("fit: optimizer holds no parameter of the model")
    data = dataset("fit: train", train, model)
    trial = None if test is None else dataset("fit: test", test, model)
    _check_alike(data, trial, augment)

    loader = batches(data, batch_size, dtype=model.dtype, shuffle=True, seed=seed, augment=augment)
    statistics = dict(mean=data.mean, std=data.std) if isinstance(data, Dataset) else {}
    run = Run(model, optimizer, epochs, len(loader), History())
    with mode(model, True), contextlib.ExitStack() as after, _watched(run, callbacks):
        after.callback(model.reseed, None)  # dropout of other calls is not that of the last step
        for epoch in range(1, epochs + 1):
            run.epoch, began = epoch, time.perf_counter()
            measured = _epoch(run, loader, schedule, label_smoothing, seed, callbacks)
            tested = None
            if trial is not None:
                for callback in callbacks:
                    callback.on_test_start(run)
                tested = _measure(model, trial, batch_size, **statistics)
            run.history.rows.append(Epoch(run.epoch, measured, tested, run.images_per_second,
                                          time.perf_counter() - began, run.lr))
            for callback in callbacks:
                callback.on_epoch_end(run)
            if run.stop:
                break
    return run.history


def evaluate(model: Module, data: Data, *, batch_size: int = 256, mean: Numbers | None = None,
             std: Numbers | None = None) -> Metrics:
    """Measure a model, as it is in use (``eval``), without gradients.

    Args:
        model: maps x (N, H, W, C) to logits (N, classes).
        data: Dataset, or a pair (images, labels), as for ``fit``.
        batch_size: images at a time; makes no difference to what is computed.
        mean, std: (C,) that a Dataset is normalised to: those of the *training* set, as in ``fit``.
            Default: the data's own.

    Returns:
        Mean loss, share of correct answers, and number of images.

    Raises:
        ValueError, TypeError: as for ``fit``.

    >>> import numpy as np
    >>> from gpuconv import nn
    >>> x = np.float32([[[[0, 9]]], [[[9, 0]]], [[[9, 0]]]])
    >>> evaluate(nn.Flatten().eval(), (x, [1, 0, 1])).accuracy
    0.6666666666666666
    """
    if operator.index(batch_size) < 1:
        raise ValueError(f"evaluate: batch_size {batch_size}, wanted at least 1")
    return _measure(model, dataset("evaluate", data, model), batch_size, mean, std)


@contextlib.contextmanager
def mode(model: Module, training: bool) -> Iterator[None]:
    """All of the model in training mode, or not; afterwards each module as it was before."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, was in before:
            module.training = was


class Tally:
    """Losses and correct answers of batches. ``add`` only queues; ``read`` waits for the device."""

    def __init__(self) -> None:
        self.loss, self.correct, self.count = 0.0, 0, 0
        self.waiting: list[tuple[int, Array, Array]] = []  # images, mean loss (), correct ()

    def add(self, logits: Array, loss: Array, labels: Array) -> None:
        """Count one batch, without waiting."""
        with array_device(logits):
            correct = (wide(logits).argmax(axis=1) == labels).sum()
        self.waiting.append((len(labels), loss, correct))

    def read(self) -> list[float]:
        """Fetch what is waiting, in one copy each; its losses."""
        counts, losses, correct = zip(*self.waiting, strict=True)
        self.waiting = []
        xp = get_array_module(*losses)
        with array_device(losses[0]):
            losses, correct = (to_cpu(xp.stack(a)).tolist() for a in (losses, correct))
        self.loss += sum(n * loss for n, loss in zip(counts, losses, strict=True))
        self.correct += sum(correct)
        self.count += sum(counts)
        return losses

    def metrics(self) -> Metrics:
        """Means over what has been read."""
        return Metrics(self.loss / self.count, self.correct / self.count, self.count)


@contextlib.contextmanager
def _watched(run: Run, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Between on_fit_start and on_fit_end, which every callback gets that was started."""
    with contextlib.ExitStack() as ends:
        for callback in callbacks:
            ends.callback(callback.on_fit_end, run)
            callback.on_fit_start(run)
        yield


def _epoch(run: Run, loader: Any, schedule: Callable[[int, int], float], label_smoothing: float,
           seed: int, callbacks: Sequence[Callback]) -> Metrics:
    """One pass over the training set."""
    model, optimizer, tally = run.model, run.optimizer, Tally()
    done, total = (run.epoch - 1) * run.steps, run.epochs * run.steps
    every = 1 if model.device == "cpu" else READ
    began = time.perf_counter()
    for step, (x, labels) in enumerate(loader.epoch(run.epoch - 1), done):
        model.reseed(seed, step)
        logits = model(x)
        loss = softmax_cross_entropy(logits, labels, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        run.step = step - done + 1
        tally.add(logits.data, loss.data, labels)
        if run.step % every == 0 or run.step == run.steps:
            _read(run, tally, began)  # before a loss that is NaN can reach the weights
        optimizer.factor = schedule(step, total)
        optimizer.step()
        run.lr = float(optimizer.groups[0]["lr"] * optimizer.factor)
        for callback in callbacks:
            callback.on_step(run)
    return tally.metrics()


def _read(run: Run, tally: Tally, began: float) -> None:
    first = run.step - len(tally.waiting) + 1
    for step, loss in enumerate(tally.read(), first):
        if not math.isfinite(loss):
            hint = ("are there such numbers among the images?" if math.isnan(run.lr) else
                    f"the learning rate was {run.lr:.3g}: a smaller one may help")
            raise FloatingPointError(f"fit: the loss is {loss} in epoch {run.epoch}, step {step} "
                                     f"of {run.steps}; {hint}")
    metrics = tally.metrics()
    run.loss, run.accuracy = metrics.loss, metrics.accuracy
    run.images_per_second = tally.count / (time.perf_counter() - began)


def _measure(model: Module, data: Dataset | Floats, batch_size: int, mean: Numbers | None = None,
             std: Numbers | None = None) -> Metrics:
    """``evaluate``, of data that are where the model is."""
    tally = Tally()
    loader = batches(data, batch_size, dtype=model.dtype, shuffle=False, mean=mean, std=std)
    with mode(model, False), no_grad():
        for x, labels in loader.epoch(0):
            logits = model(x)
            tally.add(logits.data, softmax_cross_entropy(logits, labels).data, labels)
    tally.read()
    return tally.metrics()


def _check_alike(train: Dataset | Floats, test: Dataset | Floats | None,
                 augment: Augment | None) -> None:
    if augment is not None and isinstance(train, Floats):
        raise ValueError(f"fit: augment wants uint8 images, train is {train.images.dtype}")
    if test is None:
        return
    if type(test) is not type(train):
        raise TypeError(f"fit: train is {train.images.dtype}, test {test.images.dtype}: "
                        "they would not be normalised alike")
    if test.images.shape[1:] != train.images.shape[1:]:
        raise ValueError(f"fit: images of train are {train.images.shape[1:]}, "
                         f"of test {test.images.shape[1:]}")
