"""Batches for a model: of a Dataset, or of plain arrays."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv.backend import (
    FLOATS,
    Array,
    adopt,
    array_device,
    asarray,
    get_array_module,
    to_cpu,
)
from gpuconv.checks import type_name
from gpuconv.data.augment import Augment, augment_batch
from gpuconv.data.dataset import Dataset, PerChannel, check_per_channel
from gpuconv.data.loader import Loader, epoch_order, gather_batch

Data = Dataset | tuple[Any, Any]  # or (images, labels)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FloatDataset:
    """Float images (N, H, W, C), used as they are, and labels (N,) int32."""

    images: Array
    labels: Array

    def __repr__(self) -> str:
        return f"FloatDataset({len(self)} images {self.images.shape[1:]} of {self.images.dtype})"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def to(self, device: str) -> "FloatDataset":
        """Return the set on another device."""
        return FloatDataset(asarray(self.images, device), asarray(self.labels, device))

    @functools.cached_property
    def fingerprint(self) -> str:
        """CRC-32 of images and labels, in hex; differs if the data differ."""
        crc = 0
        for a in (self.images, self.labels):
            flat = np.ascontiguousarray(to_cpu(a)).reshape(-1)
            crc = zlib.crc32(flat.view(np.uint8).data, zlib.crc32(str(a.shape).encode(), crc))
        return f"{crc:08x}"


@dataclasses.dataclass(frozen=True, eq=False)
class FloatLoader:
    """Batches of a FloatDataset, in the order of a Loader with the same seed."""

    data: FloatDataset
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool = False

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int, out: Array | None = None) -> Array:
        """Return the order of the images in an epoch, (N,) int32; write it to ``out`` if given."""
        return epoch_order(self.data.labels, self.seed if self.shuffle else None, epoch, out)

    def fetch(self, order: Array, step_state: Array, x: Array, labels: Array) -> None:
        """Write the batch that a captured step has reached into x and labels."""
        with array_device(labels):
            gather_batch(self.data.images, self.data.labels, order, step_state, x, labels,
                         batch_size=self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield (x, labels) of each batch from number ``start`` on."""
        images, labels, order = self.data.images, self.data.labels, self.order(epoch)
        for batch in range(start, len(self)):
            with array_device(labels):
                index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                x, chosen = images[index], labels[index]
            yield x, chosen


def as_dataset(caller: str, data: Data, device: str, dtype: np.dtype) -> Dataset | FloatDataset:
    """Check the data of a model and return them on its device.

    Args:
        caller: name of the function, for messages.
        data: Dataset, or (images, labels): images (N, H, W, C) uint8 become a Dataset, floats are
            used as they are and must have the model's dtype.
        device, dtype: of the model.

    Raises:
        TypeError, ValueError: data is none of these, is empty, or images and labels do not fit.
    """
    if isinstance(data, Dataset):
        checked: Dataset | FloatDataset = data
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        images, labels = (adopt(caller, name, part) for name, part in zip(
            ("images", "labels"), data, strict=True))
        checked = _from_pair(caller, images, labels, dtype)
    else:
        raise TypeError(f"{caller}: data is {type_name(data)}, wanted a Dataset or a pair "
                        "(images, labels)")
    if not len(checked):
        raise ValueError(f"{caller}: no images")
    moved = checked.to(device)
    with array_device(moved.images):
        dense = get_array_module(moved.images).ascontiguousarray(moved.images)
    return moved if dense is moved.images else dataclasses.replace(moved, images=dense)


def _from_pair(caller: str, images: Array, labels: Array,
               dtype: np.dtype) -> Dataset | FloatDataset:
    """Check images and labels and return them as a Dataset (uint8) or a FloatDataset."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{caller}: images have shape {images.shape}, wanted (N, H, W, C)")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{caller}: images have shape {images.shape}, labels {labels.shape}, "
                         f"wanted ({len(images)},)")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{caller}: labels are {labels.dtype}, wanted integers")
    with array_device(labels):
        low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if not 0 <= low <= high < 2**31:
            raise ValueError(f"{caller}: label {low if low < 0 else high} is no class")
        labels = labels.astype(np.int32)
    if images.dtype == np.uint8:
        classes = tuple(map(str, range(high + 1))) if len(labels) else ()
        return Dataset(images, labels, classes, "images")
    if images.dtype.name not in FLOATS:
        raise TypeError(f"{caller}: images are {images.dtype}, wanted uint8 or {dtype}")
    if images.dtype != dtype:
        raise TypeError(f"{caller}: images are {images.dtype}, the model is {dtype}: "
                        "convert one of them")
    return FloatDataset(images, labels)


def make_loader(data: Dataset | FloatDataset, batch_size: int, *, dtype: np.dtype, shuffle: bool,
                seed: int = 0, augment: Augment | None = None, mean: PerChannel | None = None,
                std: PerChannel | None = None, drop_last: bool = False) -> Loader | FloatLoader:
    """Return a Loader of a Dataset, or a FloatLoader, which ignores the settings of pixels."""
    if isinstance(data, FloatDataset):
        return FloatLoader(data, batch_size, shuffle, seed, drop_last)
    return Loader(data, batch_size, shuffle=shuffle, augment=augment, seed=seed, dtype=dtype.name,
                  drop_last=drop_last, mean=mean, std=std)


def normalization(data: Dataset | FloatDataset, normalize: Any) -> dict[str, Any]:
    """Return {"mean": (C,), "std": (C,)} to normalise the images of a run by; {} for floats.

    Args:
        data: the training set.
        normalize: (mean, std) to use in place of the set's own, or None.
    """
    if isinstance(data, FloatDataset):
        return {}
    mean, std = (data.mean, data.std) if normalize is None else map(np.asarray, normalize)
    return {"mean": mean, "std": std}


def check_mean_std(caller: str, data: Dataset | FloatDataset, mean: Any,
                   std: Any) -> tuple[PerChannel | None, PerChannel | None]:
    """Check a user's mean and std and return them as (C,) float64; None stays None.

    Raises:
        TypeError, ValueError: not C finite numbers, or a std that is not positive.
    """
    C = data.images.shape[3]
    return (None if mean is None else check_per_channel(caller, "mean", mean, C),
            None if std is None else check_per_channel(caller, "std", std, C))


def first_images(data: Dataset | FloatDataset, count: int, dtype: np.dtype,
                 normalize: Any) -> Array:
    """Return the first ``count`` images (n, H, W, C), normalised but not augmented."""
    with array_device(data.images):
        if isinstance(data, FloatDataset):
            return data.images[:count]
        index = get_array_module(data.images).arange(min(count, len(data)), dtype=np.int32)
        return augment_batch(data.images, index, **normalization(data, normalize), dtype=dtype.name)
