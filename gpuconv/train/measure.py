"""The measurement of a model: loss and share of correct answers over a set."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import no_grad
from gpuconv.backend import Array, array_device, get_array_module, to_cpu
from gpuconv.checks import check_count, check_kind
from gpuconv.data import Dataset
from gpuconv.nn import Module
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.loss import count_correct
from gpuconv.train.batches import Data, Floats, Numbers, batches, dataset, given_moments
from gpuconv.train.history import Metrics


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
    check_kind("evaluate", "model", model, Module)
    check_count("evaluate", "batch_size", batch_size)
    there = dataset("evaluate", data, model)
    mean, std = given_moments("evaluate", there, mean, std)
    measured = measure(model, there, batch_size, mean, std)
    assert measured is not None  # nobody stops it
    return measured


def measure(model: Module, data: Dataset | Floats, batch_size: int, mean: Numbers | None = None,
            std: Numbers | None = None,
            stopped: Callable[[], bool] = lambda: False) -> Metrics | None:
    """``evaluate``, of data that are where the model is; None if it was stopped before its end."""
    tally = Tally()
    loader = batches(data, batch_size, dtype=model.dtype, shuffle=False, mean=mean, std=std)
    with mode(model, False), no_grad():
        for x, labels in loader.epoch(0):
            if stopped():
                return None
            logits = model(x)
            tally.add(logits.data, softmax_cross_entropy(logits, labels).data, labels)
    tally.read()
    return tally.metrics()


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


class Seen(NamedTuple):
    """What one batch gave."""

    images: int
    loss: float            # mean over them, nats
    correct: int           # of them, answered right
    skipped: float = 0.0   # 1: its update did not happen, because a gradient was not finite
    scale: float = 1.0     # loss scale, after it


class Queue:
    """Results of batches that are still where they were computed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.rows: list[tuple[Array, ...]] = []  # loss (), correct (); skipped (), scale ()

    def __len__(self) -> int:
        """Batches."""
        return len(self.sizes)

    def add(self, images: int, *row: Array) -> None:
        """One more."""
        self.sizes.append(images)
        self.rows.append(row)

    def fetch(self) -> list[Seen]:
        """All of them, in one copy each; then there are none. Waits for the device."""
        if not self.rows:
            return []
        columns, sizes = list(zip(*self.rows, strict=True)), self.sizes
        xp, numbers = get_array_module(*columns[0]), []
        for column in columns:
            with array_device(column[0]):
                numbers.append(to_cpu(xp.stack(column)).tolist())
        self.sizes, self.rows = [], []
        return [Seen(n, *row) for n, *row in zip(sizes, *numbers, strict=True)]


class Tally:
    """Losses and correct answers of batches. ``add`` only queues; ``read`` waits for the device.

    Losses are added one by one, in order: when they are read makes no difference to the sum. A
    batch whose loss is not finite is left out if its update was skipped.

    Attributes:
        waiting: what ``read`` fetches from.
        skipped: how many updates did not happen.
    """

    def __init__(self, loss: float = 0.0, correct: int = 0, count: int = 0,
                 skipped: int = 0) -> None:
        self.loss, self.correct, self.count, self.skipped = loss, correct, count, skipped
        self.waiting: Any = Queue()

    def add(self, logits: Array, loss: Array, labels: Array, *more: Array) -> None:
        """Count one batch, without waiting.

        Args:
            logits: (N, K).
            loss: () mean.
            labels: (N,).
            more: (), whether its update is skipped, and () the loss scale.
        """
        with array_device(logits):
            correct = get_array_module(logits).empty((), np.int64)
            count_correct(logits, labels, correct)
        self.waiting.add(len(labels), loss, correct, *more)

    def read(self) -> list[Seen]:
        """Fetch what is waiting, and count it."""
        found: list[Seen] = self.waiting.fetch()
        self.count_up(found)
        return found

    def count_up(self, found: list[Seen]) -> None:
        """Count batches that have been fetched."""
        for seen in found:
            self.skipped += int(seen.skipped)
            if math.isfinite(seen.loss) or not seen.skipped:
                self.loss += seen.images * seen.loss
                self.correct += seen.correct
                self.count += seen.images

    def metrics(self) -> Metrics:
        """Means over what has been read; NaN where that is nothing."""
        if not self.count:
            return Metrics(math.nan, math.nan, 0)
        return Metrics(self.loss / self.count, self.correct / self.count, self.count)

    def numbers(self) -> dict[str, Any]:
        """What makes an equal one: ``Tally(**numbers)``."""
        return {"loss": self.loss, "correct": self.correct, "count": self.count,
                "skipped": self.skipped}
