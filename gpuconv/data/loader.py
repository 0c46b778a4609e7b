"""Batches of a data set, epoch by epoch.

The order of an epoch and what happens to each image in it are functions of (seed, epoch): any epoch
can be iterated again, from any batch on, on either device, and gives the same bits. There is no
other state, so a run resumes from two numbers, epoch and batch.
"""

from collections.abc import Iterator

import numpy as np

from gpuconv import kernels, random
from gpuconv.backend import Array, array_device, cupy, float_dtype, get_array_module, is_gpu
from gpuconv.checks import check_count, check_kind
from gpuconv.data.augment import Numbers, augment_batch, channel_numbers, fetch_batch
from gpuconv.data.dataset import DATASET, Dataset
from gpuconv.data.moves import Augment

SHUFFLE, AUGMENT = random.stream("shuffle"), random.stream("augment")


def order_of(labels: Array, seed: int | None, epoch: int, out: Array | None = None) -> Array:
    """(N,) int32, beside the labels: a random order of this epoch, that of the set without a seed.

    Args:
        out: written and given back, where it is given.
    """
    n, permutation = len(labels), _permutation_gpu if is_gpu(labels) else random.permutation
    with array_device(labels):
        found = (get_array_module(labels).arange(n, dtype="int32") if seed is None
                 else permutation(n, (seed, SHUFFLE), epoch))
        if out is None:
            return found
        out[...] = found
        return out


def _permutation_gpu(n: int, key: tuple[int, int], step: int) -> Array:
    """``random.permutation`` in one launch and a sort."""
    keys = cupy().empty(n, np.uint64)
    kernels.kernel("data/shuffle.cu", "shuffle_keys")(n, keys, *key, step, n)
    return cupy().argsort(keys, kind="stable").astype(np.int32)


class Loader:
    """Cuts a data set into batches of normalised images and their labels.

    Args:
        dataset: on the device where the batches are wanted.
        batch_size: images of a batch; the last one of an epoch may hold fewer.
        shuffle: another order in each epoch? Else that of the set.
        augment: what happens to the images; None only normalises them.
        seed: of order and augmentation, 0 .. 2**32 - 1.
        dtype: of the images: float32, float64, float16 or bfloat16.
        drop_last: leave out a last batch that holds fewer?
        mean, std: (C,) of pixels in 0 .. 1. Default: the data set's own; a test set wants those of
            the training set.

    Raises:
        ValueError: batch_size < 1, or seed out of range.
        TypeError: dtype is no float.

    >>> import numpy as np
    >>> images = np.arange(24, dtype="uint8").reshape(6, 2, 2, 1)
    >>> loader = Loader(Dataset(images, np.int32([0, 1, 2, 0, 1, 2]), ("a", "b", "c"), "tiny"), 4)
    >>> [(x.shape, labels.shape) for x, labels in loader.epoch(0)]
    [((4, 2, 2, 1), (4,)), ((2, 2, 2, 1), (2,))]
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, shuffle: bool = True,
                 augment: Augment | None = None, seed: int = 0, dtype: str = "float32",
                 drop_last: bool = False, mean: Numbers | None = None,
                 std: Numbers | None = None):
        check_kind("Loader", "dataset", dataset, Dataset, DATASET)
        if augment is not None:
            check_kind("Loader", "augment", augment, Augment)
        float_dtype(dtype, "Loader: ")
        self.dataset, self.shuffle = dataset, shuffle
        self.batch_size = check_count("Loader", "batch_size", batch_size)
        self.augment, self.seed, self.dtype = augment, random.check_seed(seed, "Loader"), dtype
        self.drop_last, C = drop_last, dataset.images.shape[3]
        self.mean, self.std = (
            getattr(dataset, name) if given is None else channel_numbers("Loader", name, given, C)
            for name, given in (("mean", mean), ("std", std)))

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int, out: Array | None = None) -> Array:
        """(N,) int32: the images in the order of this epoch; into ``out`` where it is given."""
        return order_of(self.dataset.labels, self.seed if self.shuffle else None, epoch, out)

    def fetch(self, order: Array, clock: Array, x: Array, labels: Array) -> None:
        """Write the batch that a clock stands at into x and labels, as a captured step does.

        Args:
            order: (N,) int32, as ``order`` fills it at the beginning of an epoch.
            clock: (2,) int64 or longer, beside the set: epoch, batch.
            x: (B, H, W, C) of ``dtype``; B is batch_size, or what a last batch holds.
            labels: (B,) int32.
        """
        with array_device(labels):
            fetch_batch(self.dataset.images, self.dataset.labels, order, clock, x, labels,
                        batch_size=self.batch_size, mean=self.mean, std=self.std,
                        key=(self.seed, AUGMENT), augment=self.augment)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield (x, labels) of each batch: x (B, H, W, C) of ``dtype``, labels (B,) int32.

        Args:
            epoch: which; 0, 1, 2 ...
            start: the batch to begin with, to go on in the middle of an epoch.

        Raises:
            ValueError: epoch is negative, or start is not 0 .. len(loader).
        """
        epoch = check_count("Loader", "epoch", epoch, 0)
        start = check_count("Loader", "start", start, 0, len(self))
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Array, Array]]:
        images, labels, order = self.dataset.images, self.dataset.labels, self.order(epoch)
        with array_device(labels):  # once, not for each batch
            images = get_array_module(labels).ascontiguousarray(images)
        for batch in range(start, len(self)):
            with array_device(labels):  # not across the yield: it would be the caller's device
                index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                x = augment_batch(images, index, mean=self.mean, std=self.std, dtype=self.dtype,
                                  key=(self.seed, AUGMENT), epoch=epoch, augment=self.augment)
                chosen = labels[index]
            yield x, chosen
