"""What a model answers on a whole set of images, and what can be counted from that.

    p[n, k]      = e^z[n, k] / sum over j of e^z[n, j]      z: the model's logits
    answer[n]    = the class with the largest z[n, k]; the first of equals; a NaN wins
    loss         = mean over n of -log p[n, label[n]]
    confusion[a, b] = images of class a that were answered b
    recall[a]    = confusion[a, a] / images of class a
    precision[b] = confusion[b, b] / images answered b

The model computes where it is; its logits, a few numbers per image, come to the CPU and are
counted there, in the dtype that sums are taken in.
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
    """How one class fares."""

    name: str
    images: int               # that are of this class
    right: int                # of them, answered so
    recall: float | None      # right / images; None: there are no such images
    precision: float | None   # right / times this was the answer; None: it never was


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """What a model answered.

    Args:
        logits: (N, K) float32 or float64, on the CPU.
        labels: (N,) integers, 0 .. K - 1.
        classes: K names.

    Raises:
        ValueError: these do not fit together, or there is no image.

    >>> found = Predictions(np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 1, 1]),
    ...                     ("cat", "dog"))
    >>> found.answers, found.confusion.tolist(), found.mistakes()
    (array([0, 0, 1]), [[1, 0], [1, 1]], array([1]))
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
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
        with np.errstate(all="ignore"):  # inf - inf: a NaN, which shows
            z = self.logits - self.logits.max(axis=1, keepdims=True)
            return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K) float32."""
        with np.errstate(under="ignore"):
            return np.exp(self._log_probabilities).astype(np.float32)

    @functools.cached_property
    def answers(self) -> np.ndarray:
        """(N,) the class with the largest logit."""
        return self.logits.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32: the probability of each answer."""
        return self.probabilities[np.arange(len(self.labels)), self.answers]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return float(np.mean(self.answers == self.labels))

    @property
    def loss(self) -> float:
        """Mean cross-entropy per image, nats; of the logits, so it has no underflow."""
        chosen = self._log_probabilities[np.arange(len(self.labels)), self.labels]
        return float(-chosen.mean(dtype=np.float64))

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) counts [label, answer]."""
        K = len(self.classes)
        cells = self.labels.astype(np.int64) * K + self.answers
        return np.bincount(cells, minlength=K * K).reshape(K, K)

    def per_class(self) -> list[ClassResult]:
        """A row per class, in their order."""
        rows, counts = [], self.confusion
        for name, right, images, answered in zip(
                self.classes, counts.diagonal().tolist(), counts.sum(axis=1).tolist(),
                counts.sum(axis=0).tolist(), strict=True):
            rows.append(ClassResult(name, images, right, right / images if images else None,
                                    right / answered if answered else None))
        return rows

    def mistakes(self, count: int | None = None) -> np.ndarray:
        """(M,) numbers of the images answered wrongly, the most confident first.

        Args:
            count: how many at most; None: all.
        """
        wrong = np.flatnonzero(self.answers != self.labels)
        order = np.argsort(-self.confidence[wrong], kind="stable")  # a NaN comes last
        return wrong[order][:count]


def predictions(model: Module, data: Dataset, *, mean: PerChannel | None = None,
                std: PerChannel | None = None, batch_size: int = 256,
                views: str = "none") -> Predictions:
    """Return what a model, as it is in use (``eval``), answers on a data set.

    Args:
        model: maps x (N, H, W, C) to logits (N, K), a K for each of the data's classes.
        data: N images, at least one; moved to where the model is.
        mean, std: (C,) that the images are normalised to: those of the *training* set.
            Default: the data's own.
        batch_size: images at a time; makes no difference to what is computed.
        views: "none"; "mirror" or "six": average the logits of so many views of each image, moved a
            little (see ``train.VIEWS``).

    Raises:
        TypeError: data is no Dataset.
        ValueError: no images, batch_size below 1, no such views, images that do not fit the model,
            or another number of classes than the model has logits.
        FloatingPointError: an answer is not finite; says which.

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
    there = as_dataset("predictions", data, model)
    mean, std = check_mean_std("predictions", there, mean, std)
    assert isinstance(there, Dataset)
    logits = averaged_logits(model, there, views, batch_size=batch_size, mean=mean, std=std)
    found = Predictions(logits, to_cpu(data.labels), data.classes)
    _check_finite(logits, data, model)
    return found


def _check_finite(logits: np.ndarray, data: Dataset, model: Module) -> None:
    """Raise FloatingPointError where logits (N, K) have no probabilities; say of which images."""
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
