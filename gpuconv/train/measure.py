"""The measurement of a model: loss and share of correct answers over a set."""

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

from gpuconv.autograd import no_grad
from gpuconv.backend import Array, array_device, get_array_module, to_cpu
from gpuconv.data import Dataset
from gpuconv.nn import Module
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.arithmetic import wide
from gpuconv.train.feed import Data, Floats, Numbers, batches, dataset
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
    if operator.index(batch_size) < 1:
        raise ValueError(f"evaluate: batch_size {batch_size}, wanted at least 1")
    measured = measure(model, dataset("evaluate", data, model), batch_size, mean, std)
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


class Tally:
    """Losses and correct answers of batches. ``add`` only queues; ``read`` waits for the device.

    Losses are added one by one, in order: when they are read makes no difference to the sum.
    """

    def __init__(self, loss: float = 0.0, correct: int = 0, count: int = 0) -> None:
        self.loss, self.correct, self.count = loss, correct, count
        self.waiting: list[tuple[int, Array, Array]] = []  # images, mean loss (), correct ()

    def add(self, logits: Array, loss: Array, labels: Array) -> None:
        """Count one batch, without waiting."""
        with array_device(logits):
            correct = (wide(logits).argmax(axis=1) == labels).sum()
        self.waiting.append((len(labels), loss, correct))

    def read(self) -> list[float]:
        """Fetch what is waiting, in one copy each; its losses."""
        if not self.waiting:
            return []
        counts, losses, correct = zip(*self.waiting, strict=True)
        self.waiting = []
        xp = get_array_module(*losses)
        with array_device(losses[0]):
            losses, correct = (to_cpu(xp.stack(a)).tolist() for a in (losses, correct))
        for n, loss in zip(counts, losses, strict=True):
            self.loss += n * loss
        self.correct += sum(correct)
        self.count += sum(counts)
        return losses

    def metrics(self) -> Metrics:
        """Means over what has been read."""
        return Metrics(self.loss / self.count, self.correct / self.count, self.count)

    def numbers(self) -> dict[str, Any]:
        """What makes an equal one: ``Tally(**numbers)``."""
        return {"loss": self.loss, "correct": self.correct, "count": self.count}
