"""Predictions of a model on a data set, and statistics of them.

    p[n, k]      = e^z[n, k] / sum over j of e^z[n, j]      z: the model's logits
    answer[n]    = the class with the largest z[n, k]; the first of equals; a NaN wins
    loss         = mean over n of -log p[n, label[n]]
    confusion[a, b] = images of class a that were answered b
    recall[a]    = confusion[a, a] / images of class a
    precision[b] = confusion[b, b] / images answered b

The model computes on its device; its logits are copied to the CPU and evaluated there, in
accumulator(dtype).
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from gpuconv.backend import accumulator, is_array, to_cpu
from gpuconv.checks import check_choice, check_count, check_kind, check_plain, listed, no_array
from gpuconv.data import Dataset
from gpuconv.data.batches import PerChannel, as_dataset, check_mean_std
from gpuconv.data.dataset import DATASET
from gpuconv.nn import Module
from gpuconv.train.tta import VIEWS, averaged_logits

SHOWN = 5  # images named in a message


class ClassResult(NamedTuple):
    """Statistics of one class."""

    name: str
    images: int               # of this class
    correct: int              # of them, classified correctly
    recall: float | None      # correct / images; None without such images
    precision: float | None   # correct / images answered with this class; None without these


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predictions of a model on N labelled images.

    Args:
        logits: (N, K) float32 or float64, on the CPU.
        labels: (N,) integers, 0 .. K - 1.
        classes: K names.

    Raises:
        ValueError: shapes, labels or classes do not fit together, or there is no image.

    >>> found = Predictions(np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 1, 1]),
    ...                     ("cat", "dog"))
    >>> found.answers, found.confusion.tolist(), found.mistakes()
    (array([0, 0, 1]), [[1, 0], [1, 1]], array([1]))
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check types, shapes and labels."""
        for name in ("logits", "labels"):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or not is_array(array):
                raise TypeError(f"Predictions: {name} is {no_array(array, name)} on the CPU")
            check_plain("Predictions", name, array)
        shape, labels, K = self.logits.shape, self.labels, len(self.classes)
        if len(shape) != 2 or shape[1] != K:
            raise ValueError(f"predictions: the model gives {shape}, wanted (N, {K}) for the "
                             f"classes {listed(self.classes, 5)}")
        if not len(labels) or labels.shape != shape[:1]:
            raise ValueError(f"predictions: labels {labels.shape}, logits {shape}, wanted one of "
                             "each per image, and at least one image")
        if labels.min() < 0 or labels.max() >= K:
            raise ValueError(f"predictions: labels {labels.min()}..{labels.max()} "
                             f"are not all in 0..{K - 1}")

    def __repr__(self) -> str:
        return f"Predictions({len(self.labels)} images, {len(self.classes)} classes)"

    @functools.cached_property
    def _log_probabilities(self) -> np.ndarray:
        with np.errstate(all="ignore"):  # inf - inf is NaN, which is refused later
            z = self.logits - self.logits.max(axis=1, keepdims=True)
            return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities of the classes, (N, K) float32."""
        with np.errstate(under="ignore"):
            return np.exp(self._log_probabilities).astype(np.float32)

    @functools.cached_property
    def answers(self) -> np.ndarray:
        """Class with the largest logit, (N,)."""
        return self.logits.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of each answer, (N,) float32."""
        return self.probabilities[np.arange(len(self.labels)), self.answers]

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0..1."""
        return float(np.mean(self.answers == self.labels))

    @property
    def loss(self) -> float:
        """Mean cross-entropy per image, nats; computed from the logits, so without underflow."""
        chosen = self._log_probabilities[np.arange(len(self.labels)), self.labels]
        return float(-chosen.mean(dtype=np.float64))

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, (K, K) counts [label, answer]."""
        K = len(self.classes)
        cells = self.labels.astype(np.int64) * K + self.answers
        return np.bincount(cells, minlength=K * K).reshape(K, K)

    def per_class(self) -> list[ClassResult]:
        """Return the statistics of each class, in the order of ``classes``."""
        rows, counts = [], self.confusion
        for name, correct, images, answered in zip(
                self.classes, counts.diagonal().tolist(), counts.sum(axis=1).tolist(),
                counts.sum(axis=0).tolist(), strict=True):
            rows.append(ClassResult(name, images, correct, correct / images if images else None,
                                    correct / answered if answered else None))
        return rows

    def mistakes(self, count: int | None = None) -> np.ndarray:
        """Return the indices (M,) of misclassified images, the most confident first.

        Args:
            count: largest M; None: all.
        """
        wrong = np.flatnonzero(self.answers != self.labels)
        order = np.argsort(-self.confidence[wrong], kind="stable")  # a NaN comes last
        return wrong[order][:count]


def predictions(model: Module, data: Dataset, *, mean: PerChannel | None = None,
                std: PerChannel | None = None, batch_size: int = 256,
                views: str = "none") -> Predictions:
    """Return the predictions of a model, in eval mode, on a data set.

    Args:
        model: maps x (N, H, W, C) to logits (N, K), one for each class of the data.
        data: N images, at least one; moved to the model's device.
        mean, std: (C,) to normalise the images to: those of the *training* set. Default: the
            data's own.
        batch_size: images of a batch; it does not change the result.
        views: test-time augmentation: "none"; "mirror" or "six" average the logits over transformed
            images (see ``train.VIEWS``).

    Raises:
        TypeError: data is not a Dataset.
        ValueError: no images, batch_size below 1, unknown views, images that do not fit the model,
            or a number of classes that differs from the number of logits.
        FloatingPointError: logits of an image are not finite; names the images.

    >>> from gpuconv import nn
    >>> images = np.uint8([[[[0, 9]]], [[[9, 0]]], [[[9, 0]]]])
    >>> data = Dataset(images, np.int32([1, 0, 1]), ("left", "right"), "tiny")
    >>> predictions(nn.Flatten(), data).confusion
    array([[1, 0],
           [1, 1]])
    """
    check_kind("predictions", "model", model, Module)
    check_kind("predictions", "data", data, Dataset, DATASET)
    check_count("predictions", "batch_size", batch_size)
    check_choice("predictions", "views", views, VIEWS)
    dataset = as_dataset("predictions", data, model.device, model.dtype)
    mean, std = check_mean_std("predictions", dataset, mean, std)
    assert isinstance(dataset, Dataset)
    logits = averaged_logits(model, dataset, views, batch_size=batch_size, mean=mean, std=std)
    result = Predictions(logits, to_cpu(data.labels), data.classes)
    _check_finite(logits, data, model)
    return result


def _check_finite(logits: np.ndarray, data: Dataset, model: Module) -> None:
    """Raise FloatingPointError if logits (N, K) are not finite; name the images."""
    wrong = np.flatnonzero(~np.isfinite(logits.max(axis=1)))  # a NaN is the largest
    if not len(wrong):
        return
    names = [f"number {n}" if data.names is None else str(data.names[n]) for n in wrong[:SHOWN]]
    damaged = [name for name, a in model.state_dict().items()
               if not np.isfinite(to_cpu(a).astype(accumulator(a.dtype), copy=False)).all()]
    why = f"its {damaged[0]} holds NaN or infinity" if damaged else (
        "its weights are finite, but too large for these images")
    raise FloatingPointError(
        f"predictions: the model's answers are not finite for {len(wrong):,} of {len(logits):,} "
        f"images ({', '.join(names)}{', ...' * (len(wrong) > SHOWN)}): {why}; use an earlier "
        "checkpoint, or train anew with a smaller learning rate")
