"""What a model is fed with: batches of a Dataset, or of plain arrays."""

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
    is_array,
    to_cpu,
)
from gpuconv.checks import short, type_name
from gpuconv.data import Augment, Dataset, Loader
from gpuconv.data.augment import augment_batch, channel_numbers, gather_batch
from gpuconv.data.loader import order_of
from gpuconv.nn import Module

Data = Dataset | tuple[Any, Any]  # or (images, labels)
Numbers = Any  # (C,) floats


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Floats:
    """Float images (N, H, W, C), used as they are, and labels (N,) int32."""

    images: Array
    labels: Array

    def __repr__(self) -> str:
        return f"Floats({len(self)} images {self.images.shape[1:]} of {self.images.dtype})"

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def to(self, device: str) -> "Floats":
        """The same on another device."""
        return Floats(asarray(self.images, device), asarray(self.labels, device))

    @functools.cached_property
    def fingerprint(self) -> str:
        """CRC-32 of images and labels: equal sets have equal ones."""
        crc = 0
        for a in (self.images, self.labels):
            flat = np.ascontiguousarray(to_cpu(a)).reshape(-1)
            crc = zlib.crc32(flat.view(np.uint8).data, zlib.crc32(str(a.shape).encode(), crc))
        return f"{crc:08x}"


@dataclasses.dataclass(frozen=True, eq=False)
class FloatBatches:
    """Batches of Floats, in the order in which a Loader of that seed would give them."""

    data: Floats
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool = False

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int, out: Array | None = None) -> Array:
        """(N,) int32: the images in the order of this epoch; into ``out`` where it is given."""
        return order_of(self.data.labels, self.seed if self.shuffle else None, epoch, out)

    def fetch(self, order: Array, clock: Array, x: Array, labels: Array) -> None:
        """Write the batch that a clock stands at into x and labels, as a captured step does."""
        with array_device(labels):
            gather_batch(self.data.images, self.data.labels, order, clock, x, labels,
                         batch_size=self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield (x, labels) of each batch from number ``start`` on."""
        images, labels, order = self.data.images, self.data.labels, self.order(epoch)
        for batch in range(start, len(self)):
            with array_device(labels):
                index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                x, chosen = images[index], labels[index]
            yield x, chosen


def dataset(caller: str, data: Data, model: Module) -> Dataset | Floats:
    """The data on the model's device, checked.

    Args:
        caller: for messages.
        data: Dataset, or (images, labels): images (N, H, W, C) uint8 are a Dataset, floats are used
            as they are and must have the model's dtype.
        model: says where to, and which dtype.

    Raises:
        TypeError, ValueError: it is none of these; empty; images and labels do not fit.
    """
    if isinstance(data, Dataset):
        found: Dataset | Floats = data
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        images, labels = (adopt(caller, name, part) for name, part in zip(
            ("images", "labels"), data, strict=True))
        found = _from_pair(caller, images, labels, model)
    else:
        raise TypeError(f"{caller}: data is {type_name(data)}, wanted a Dataset or a pair "
                        "(images, labels)")
    if not len(found):
        raise ValueError(f"{caller}: no images")
    there = found.to(model.device)
    with array_device(there.images):
        dense = get_array_module(there.images).ascontiguousarray(there.images)
    return there if dense is there.images else dataclasses.replace(there, images=dense)


def _from_pair(caller: str, images: Array, labels: Array, model: Module) -> Dataset | Floats:
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
        raise TypeError(f"{caller}: images are {images.dtype}, wanted uint8 or {model.dtype}")
    if images.dtype != model.dtype:
        raise TypeError(f"{caller}: images are {images.dtype}, the model is {model.dtype}: "
                        "convert one of them")
    return Floats(images, labels)


def batches(data: Dataset | Floats, batch_size: int, *, dtype: np.dtype, shuffle: bool,
            seed: int = 0, augment: Augment | None = None, mean: Numbers | None = None,
            std: Numbers | None = None, drop_last: bool = False) -> Loader | FloatBatches:
    """A Loader of the Dataset; its equivalent for floats, which nothing is done to."""
    if isinstance(data, Floats):
        return FloatBatches(data, batch_size, shuffle, seed, drop_last)
    return Loader(data, batch_size, shuffle=shuffle, augment=augment, seed=seed, dtype=dtype.name,
                  drop_last=drop_last, mean=mean, std=std)


def moments(data: Dataset | Floats, normalize: Any) -> dict[str, Numbers]:
    """Mean and std (C,) that images of a run are normalised to; of Floats nothing.

    Args:
        data: the training set.
        normalize: (mean, std) to use in place of the set's own, or None.
    """
    if isinstance(data, Floats):
        return {}
    mean, std = (data.mean, data.std) if normalize is None else map(np.asarray, normalize)
    return {"mean": mean, "std": std}


def given_moments(caller: str, data: Dataset | Floats, mean: Any,
                  std: Any) -> tuple[Numbers | None, Numbers | None]:
    """Return the mean and std (C,) that a user gave, checked; None stays None.

    Raises:
        TypeError, ValueError: not C finite numbers, or a std that is not positive.
    """
    C = data.images.shape[3]
    found = (None if given is None else channel_numbers(caller, name, given, C)
             for name, given in (("mean", mean), ("std", std)))
    return next(found), next(found)


def numbers(data: Dataset | Floats, normalize: Any) -> list[list[float]] | None:
    """Given mean and std as plain numbers.

    Raises:
        ValueError: not C finite numbers each, or a std that is not positive; or images are floats.
    """
    if normalize is None:
        return None
    if isinstance(data, Floats):
        raise ValueError(f"fit: normalize wants uint8 images, train is {data.images.dtype}")
    if not (isinstance(normalize, (tuple, list)) or is_array(normalize)) or len(normalize) != 2:
        raise TypeError(f"fit: normalize is {short(normalize)}, wanted (mean, std)")
    C = data.images.shape[3]
    mean, std = (channel_numbers("fit: normalize", name, part, C).tolist() for name, part in zip(
        ("mean", "std"), normalize, strict=True))
    return [mean, std]


def first_images(data: Dataset | Floats, count: int, dtype: np.dtype, normalize: Any) -> Array:
    """(n, H, W, C) of the set, n at most ``count``: as the model sees them, but never augmented."""
    with array_device(data.images):
        if isinstance(data, Floats):
            return data.images[:count]
        index = get_array_module(data.images).arange(min(count, len(data)), dtype=np.int32)
        return augment_batch(data.images, index, **moments(data, normalize), dtype=dtype.name)
