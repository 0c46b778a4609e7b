"""Evaluation of a model: loss and accuracy over a data set."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.autograd import no_grad
from gpuconv.backend import Array, array_device, get_array_module, to_cpu
from gpuconv.checks import check_count, check_kind
from gpuconv.data import Dataset
from gpuconv.data.batches import (
    Data,
    FloatDataset,
    PerChannel,
    as_dataset,
    check_mean_std,
    make_loader,
)
from gpuconv.nn import Module
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.loss import count_correct
from gpuconv.train.history import Metrics


def evaluate(model: Module, data: Data, *, batch_size: int = 256, mean: PerChannel | None = None,
             std: PerChannel | None = None) -> Metrics:
    """Measure loss and accuracy of a model in eval mode, without gradients.

    Args:
        model: maps x (N, H, W, C) to logits (N, classes).
        data: Dataset, or a pair (images, labels), as for ``fit``.
        batch_size: images of a batch; it does not change the result.
        mean, std: (C,) that a Dataset is normalised to: those of the *training* set, as in ``fit``.
            Default: the data's own.

    Returns:
        Mean loss, accuracy, and number of images.

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
    dataset = as_dataset("evaluate", data, model.device, model.dtype)
    mean, std = check_mean_std("evaluate", dataset, mean, std)
    metrics = measure(model, dataset, batch_size, mean, std)
    assert metrics is not None  # it is never stopped
    return metrics


def measure(model: Module, data: Dataset | FloatDataset, batch_size: int,
            mean: PerChannel | None = None, std: PerChannel | None = None,
            stopped: Callable[[], bool] = lambda: False) -> Metrics | None:
    """Do what ``evaluate`` does, with checked data on the model's device.

    Returns:
        The metrics; None if ``stopped()`` became true before the last batch.
    """
    tally = Tally()
    loader = make_loader(data, batch_size, dtype=model.dtype, shuffle=False, mean=mean, std=std)
    with training_mode(model, False), no_grad():
        for x, labels in loader.epoch(0):
            if stopped():
                return None
            logits = model(x)
            tally.add(logits.data, softmax_cross_entropy(logits, labels).data, labels)
    tally.read()
    return tally.metrics()


@contextlib.contextmanager
def training_mode(model: Module, training: bool) -> Iterator[None]:
    """Set the mode of all modules inside the block; restore each module's own mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, was in before:
            module.training = was


class BatchResult(NamedTuple):
    """Result of one batch."""

    images: int
    loss: float            # mean over the images, nats
    correct: int           # images classified correctly
    skipped: float = 0.0   # 1: the update was skipped, because a gradient was not finite
    scale: float = 1.0     # loss scale after the step


class ResultQueue:
    """Queue of batch results that are still on the device."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.rows: list[tuple[Array, ...]] = []  # loss (), correct (); skipped (), scale ()

    def __len__(self) -> int:
        """Return the number of batches in the queue."""
        return len(self.sizes)

    def add(self, images: int, *row: Array) -> None:
        """Add the result of a batch."""
        self.sizes.append(images)
        self.rows.append(row)

    def fetch(self) -> list[BatchResult]:
        """Wait for the device, return all results, and empty the queue."""
        if not self.rows:
            return []
        columns, sizes = list(zip(*self.rows, strict=True)), self.sizes
        xp, numbers = get_array_module(*columns[0]), []
        for column in columns:
            with array_device(column[0]):
                numbers.append(to_cpu(xp.stack(column)).tolist())
        self.sizes, self.rows = [], []
        return [BatchResult(n, *row) for n, *row in zip(sizes, *numbers, strict=True)]


class Tally:
    """Sums of losses and correct predictions over batches.

    ``add`` queues a batch; ``read`` waits for the device. Losses are added one by one, in order, so
    the sum does not depend on when they are read. A batch whose loss is not finite is left out if
    its update was skipped.

    Attributes:
        pending: queue of results that have not been read.
        skipped: number of skipped updates.
    """

    def __init__(self, loss: float = 0.0, correct: int = 0, count: int = 0,
                 skipped: int = 0) -> None:
        self.loss, self.correct, self.count, self.skipped = loss, correct, count, skipped
        self.pending: Any = ResultQueue()

    def add(self, logits: Array, loss: Array, labels: Array, *more: Array) -> None:
        """Queue one batch, without waiting for the device.

        Args:
            logits: (N, K).
            loss: () mean.
            labels: (N,).
            more: (), whether the update is skipped, and (), the loss scale.
        """
        with array_device(logits):
            correct = get_array_module(logits).empty((), np.int64)
            count_correct(logits, labels, correct)
        self.pending.add(len(labels), loss, correct, *more)

    def read(self) -> list[BatchResult]:
        """Fetch the pending results, add them to the sums, and return them."""
        results: list[BatchResult] = self.pending.fetch()
        self.add_results(results)
        return results

    def add_results(self, results: list[BatchResult]) -> None:
        """Add fetched results to the sums."""
        for result in results:
            self.skipped += int(result.skipped)
            if math.isfinite(result.loss) or not result.skipped:
                self.loss += result.images * result.loss
                self.correct += result.correct
                self.count += result.images

    def metrics(self) -> Metrics:
        """Return the means over all batches read so far; NaN if there are none."""
        if not self.count:
            return Metrics(math.nan, math.nan, 0)
        return Metrics(self.loss / self.count, self.correct / self.count, self.count)

    def as_dict(self) -> dict[str, Any]:
        """Return the sums by name; ``Tally(**sums)`` makes an equal one."""
        return {"loss": self.loss, "correct": self.correct, "count": self.count,
                "skipped": self.skipped}
