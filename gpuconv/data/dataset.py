"""Labelled images as two arrays."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import backend, threads
from gpuconv.backend import (
    Array,
    adopt,
    array_device,
    check_arrays,
    device_name,
    is_array,
    to_cpu,
)
from gpuconv.checks import check_kind, no_array, short, type_name

PerChannel = Sequence[float] | np.ndarray  # (C,)
DATASET = ": Dataset(images uint8 (N, H, W, C), labels int32 (N,), classes, name)"  # a hint


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and their labels, on the CPU or on a GPU.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int32, 0 .. len(classes) - 1.
        classes: the name of each label.
        name: of the set.
        names: (N,) array of str, dtype object: origin of each image. None: not known.

    Raises:
        TypeError: an array of another dtype, or one on the CPU and one on the GPU.
        ValueError: wrong rank, different lengths, or a label that has no class.

    >>> tiny = Dataset(np.zeros((3, 2, 2, 1), "uint8"), np.int32([0, 1, 0]), ("cat", "dog"), "tiny")
    >>> len(tiny), tiny[1:].labels, tiny.mean
    (3, array([1, 0], dtype=int32), array([0.]))
    """

    images: Array
    labels: Array
    classes: tuple[str, ...]
    name: str
    names: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_kind("Dataset", "name", self.name, str)
        me = f"Dataset {self.name}"
        if not isinstance(self.classes, (tuple, list)):
            raise TypeError(f"Dataset: classes is {type_name(self.classes)}, wanted a tuple of str")
        for number, name in enumerate(self.classes):
            check_kind("Dataset", f"class {number}", name, str)
        for field, rank, dtype in (("images", 4, "uint8"), ("labels", 1, "int32")):
            array = getattr(self, field)
            if not is_array(array):
                raise TypeError(f"Dataset: {field} is {no_array(array, field)}")
            if array.dtype != dtype:
                hint = f": {field}.astype({dtype!r})" * (rank == 1 and array.dtype.kind in "iu")
                raise TypeError(f"{me}: {field} are {array.dtype}, wanted {dtype}{hint}")
            if array.ndim != rank:
                wanted = "(N, H, W, C)" if rank == 4 else "(N,)"
                raise ValueError(f"{me}: {field} have shape {array.shape}, wanted {wanted}")
        N, H, W, C = self.images.shape
        if H in (1, 3) and W == C > 4:
            raise ValueError(f"{me}: images have shape {(N, H, W, C)}, wanted (N, H, W, C): "
                             "channels come last: images.transpose(0, 2, 3, 1)")
        check_arrays("Dataset", images=self.images, labels=self.labels)
        if len(self.images) != len(self.labels):
            raise ValueError(f"{me}: {len(self.images)} images, {len(self.labels)} labels")
        if self.names is not None and not isinstance(self.names, np.ndarray):
            raise TypeError(f"Dataset: names is {no_array(self.names, 'names')} of str")
        if self.names is not None and len(self.names) != len(self.labels):
            raise ValueError(f"{me}: {len(self.names)} names, {len(self.labels)} labels")
        if len(self.labels):
            with array_device(self.labels):
                low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"{me}: label {low if low < 0 else high} is outside "
                                 f"0..{len(self.classes) - 1}")

    def __repr__(self) -> str:
        return (f"Dataset({short(self.name)}, {len(self)} images {tuple(self.images.shape[1:])}, "
                f"{len(self.classes)} classes, {device_name(self.images)})")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, which: Any) -> "Dataset":
        """Return the images of a slice or an array of indices; a slice shares their memory."""
        with array_device(self.labels):
            try:
                if isinstance(which, np.ma.MaskedArray):
                    raise TypeError(no_array(which, "index"))
                images, labels = self.images[which], self.labels[which]
            except TypeError as error:
                raise TypeError(f"Dataset: index: {error}") from None
        if labels.ndim != 1:
            raise TypeError(f"Dataset {self.name}: index {short(which)} gives one image, wanted a "
                            "slice or an array of indices")
        names = self.names
        if names is not None:
            names = names[to_cpu(which) if backend.is_gpu(which) else which]
        return dataclasses.replace(self, images=images, labels=labels, names=names)

    def to(self, device: str) -> "Dataset":
        """Return the set on "cpu", "cuda" or "cuda:1"; itself if it is there already."""
        images, labels = (backend.asarray(a, device) for a in (self.images, self.labels))
        if images is self.images and labels is self.labels:
            return self
        return dataclasses.replace(self, images=images, labels=labels)

    @property
    def mean(self) -> np.ndarray:
        """(C,) float64: mean of each channel, pixels scaled to 0 .. 1."""
        return self._mean_and_std[0]

    @property
    def std(self) -> np.ndarray:
        """(C,) float64: standard deviation of each channel (divisor N*H*W), pixels in 0 .. 1."""
        return self._mean_and_std[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """CRC-32 of images, labels and classes, in hex; differs if the data differ.

        >>> tiny = Dataset(np.zeros((1, 2, 2, 1), "uint8"), np.int32([0]), ("a",), "tiny")
        >>> tiny.fingerprint
        '3d0c7f02'
        """
        crc = zlib.crc32(repr((tuple(self.images.shape), tuple(map(str, self.classes)))).encode())
        for array in (self.images, self.labels):
            dense = np.ascontiguousarray(to_cpu(array))
            crc = zlib.crc32(dense.reshape(-1).view(np.uint8).data, crc)
        return f"{crc:08x}"

    @functools.cached_property
    def _mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and std exactly: sums of integers, divided once."""
        images = to_cpu(self.images)
        N, H, W, C = images.shape
        if not images.size:
            raise ValueError(f"Dataset {self.name}: no pixels, shape {images.shape}, so no mean")

        def sums(chunk: slice) -> np.ndarray:
            x = images[chunk].astype(np.uint16)  # a square fits too
            return np.stack([v.sum(axis=0, dtype=np.uint64).sum(axis=(0, 1)) for v in (x, x * x)])

        chunks = threads.chunks(N, 4 * H * W * C)
        first, second = np.sum(threads.each(sums, chunks), axis=0).tolist()  # C Python ints each
        n = N * H * W
        mean = np.array([a / (255 * n) for a in first])
        std = np.array([math.sqrt(n * b - a * a) / (255 * n)
                        for a, b in zip(first, second, strict=True)])
        mean.flags.writeable = std.flags.writeable = False
        return mean, std


def check_per_channel(caller: str, name: str, values: PerChannel, C: int) -> np.ndarray:
    """Return the mean or the std of each channel as (C,) float64.

    Args:
        caller: name of the function, for messages.
        name: "mean" or "std".
        values: numbers, one for each channel.
        C: channels.

    Raises:
        TypeError, ValueError: not C finite numbers, or a std that is not positive.
    """
    array = to_cpu(adopt(caller, name, values))
    if array.dtype.kind == "c":
        raise TypeError(f"{caller}: {name} has dtype {array.dtype}, wanted real numbers")
    array = np.asarray(array, np.float64)
    if array.shape != (C,):
        raise ValueError(f"{caller}: {name} has shape {array.shape}, wanted ({C},), a number for "
                         "each channel")
    if name == "std" and not (array > 0).all():
        raise ValueError(f"{caller}: std {short(array.tolist())}: a channel does not vary, so it "
                         "cannot be normalised; pass a std of your own, each more than 0")
    if not np.isfinite(array).all():
        raise ValueError(f"{caller}: {name} is {short(array.tolist())}, wanted finite numbers")
    return array
