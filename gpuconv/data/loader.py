"""Batches of a data set, epoch by epoch.

The order and the augmentation of an epoch are functions of (seed, epoch): an epoch can be iterated
again from any batch, on either device, with the same bits. There is no other state, so a run
resumes from two numbers, epoch and batch. A captured step reads them from device memory, its step
state (``fetch_batch``).
"""

from collections.abc import Iterator

import numpy as np

from gpuconv import kernels, random
from gpuconv.backend import (
    Array,
    array_device,
    check_arrays,
    cupy,
    float_dtype,
    get_array_module,
    is_gpu,
)
from gpuconv.checks import check_count, check_kind
from gpuconv.data.augment import (
    BLOCK,
    NO_AUGMENT,
    Augment,
    augment_batch,
    augment_cpu,
    blocks_per_image,
    byte_mean_std,
    check_augment,
    launch_augment,
)
from gpuconv.data.dataset import DATASET, Dataset, PerChannel, check_per_channel

SHUFFLE, AUGMENT = random.stream("shuffle"), random.stream("augment")


def epoch_order(labels: Array, seed: int | None, epoch: int, out: Array | None = None) -> Array:
    """Return the order of the images in an epoch, (N,) int32, on the labels' device.

    Args:
        labels: (N,) of the set.
        seed: None keeps the order of the set.
        epoch: number of the epoch.
        out: array to write the order to and to return. Default: a new one.
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
    """Compute ``random.permutation`` on the GPU: one launch and a sort."""
    keys = cupy().empty(n, np.uint64)
    kernels.kernel("data/shuffle.cu", "shuffle_keys")(n, keys, *key, step, n)
    return cupy().argsort(keys, kind="stable").astype(np.int32)


class Loader:
    """Batches of normalised images of a data set and their labels.

    Args:
        dataset: on the device that the batches shall be on.
        batch_size: images of a batch; the last one of an epoch may hold fewer.
        shuffle: whether each epoch has an order of its own. Else that of the set.
        augment: random changes of the images; None only normalises them.
        seed: of order and augmentation, 0 .. 2**32 - 1.
        dtype: of the images: float32, float64, float16 or bfloat16.
        drop_last: whether to leave out a last batch that holds fewer images.
        mean, std: (C,) of pixels in 0 .. 1. Default: the data set's own; for a test set pass those
            of the training set.

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
                 drop_last: bool = False, mean: PerChannel | None = None,
                 std: PerChannel | None = None):
        check_kind("Loader", "dataset", dataset, Dataset, DATASET)
        if augment is not None:
            check_kind("Loader", "augment", augment, Augment)
        float_dtype(dtype, "Loader: ")
        self.dataset, self.shuffle = dataset, shuffle
        self.batch_size = check_count("Loader", "batch_size", batch_size)
        self.augment, self.seed, self.dtype = augment, random.check_seed(seed, "Loader"), dtype
        self.drop_last, C = drop_last, dataset.images.shape[3]
        self.mean, self.std = (
            getattr(dataset, name) if given is None else check_per_channel("Loader", name, given, C)
            for name, given in (("mean", mean), ("std", std)))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order(self, epoch: int, out: Array | None = None) -> Array:
        """Return the order of the images in an epoch, (N,) int32; write it to ``out`` if given."""
        return epoch_order(self.dataset.labels, self.seed if self.shuffle else None, epoch, out)

    def fetch(self, order: Array, step_state: Array, x: Array, labels: Array) -> None:
        """Write the batch that a captured step has reached into x and labels.

        Args:
            order: (N,) int32, as ``order`` fills it at the beginning of an epoch.
            step_state: (2,) int64 or longer, on the device of the set: epoch, batch.
            x: (B, H, W, C) of ``dtype``; B is batch_size, or the size of a smaller last batch.
            labels: (B,) int32.
        """
        with array_device(labels):
            fetch_batch(self.dataset.images, self.dataset.labels, order, step_state, x, labels,
                        batch_size=self.batch_size, mean=self.mean, std=self.std,
                        key=(self.seed, AUGMENT), augment=self.augment)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield (x, labels) of each batch: x (B, H, W, C) of ``dtype``, labels (B,) int32.

        Args:
            epoch: 0, 1, 2 ...
            start: number of the first batch, to resume in the middle of an epoch.

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


def fetch_batch(images: Array, labels: Array, order: Array, step_state: Array, x: Array,
                out_labels: Array, *, batch_size: int, mean: PerChannel, std: PerChannel,
                key: tuple[int, int] = (0, 0), augment: Augment | None = None) -> None:
    """Write the batch of a captured step, with epoch and batch read from device memory.

    Image b of x, for each b below len(x), is ``order[step_state[1]*batch_size + b]``, augmented for
    epoch ``step_state[0]``: the same bits as from a Loader with this order. On the GPU this is one
    launch, and no argument from Python changes from batch to batch.

    Args:
        images, labels: (N, H, W, C) uint8 and (N,) int32, the whole set.
        order: (n,) int32: the images in the order of this epoch.
        step_state: (2,) int64, or longer: epoch, batch; further elements are not used.
        x, out_labels: (B, H, W, C) of a float dtype and (B,) int32: written. A last batch that
            holds fewer images has fewer rows.
        batch_size: images of all batches but the last.
        mean, std, key, augment: as in ``augment_batch``.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices.

    >>> image, x, label = np.uint8([[[[51]]], [[[255]]]]), np.empty((1, 1, 1, 1)), np.int32([0])
    >>> step_state, order = np.int64([3, 1]), np.int32([1, 0])
    >>> fetch_batch(image, np.int32([7, 8]), order, step_state, x, label, batch_size=1,
    ...             mean=[0.0], std=[1.0])
    >>> x.item(), label.item()
    (0.2, 7)
    """
    check_augment("fetch_batch", images, order, augment)
    _check_batch("fetch_batch", images, labels, order, step_state, x, out_labels)
    byte_mean, byte_std = byte_mean_std(images.shape[3], mean, std)
    float_dtype(x.dtype)
    augment = augment or NO_AUGMENT
    if is_gpu(images):
        launch_augment(images, labels, order, step_state, x, out_labels, batch_size,
                       (byte_mean, byte_std), key, 0, augment)
        return
    index = order[int(step_state[1]) * batch_size :][: len(x)]
    x[...] = augment_cpu(images, index, byte_mean, byte_std, x.dtype, key, int(step_state[0]),
                         augment)
    out_labels[...] = labels[index]


def gather_batch(images: Array, labels: Array, order: Array, step_state: Array, x: Array,
                 out_labels: Array, *, batch_size: int) -> None:
    """Write a batch as ``fetch_batch`` does, of float images (N, H, W, C), which are only copied.

    >>> x, label = np.empty((1, 1, 1, 1)), np.int32([0])
    >>> gather_batch(np.ones((2, 1, 1, 1)), np.int32([7, 8]), np.int32([1, 0]), np.int64([0, 1]), x,
    ...              label, batch_size=1)
    >>> x.item(), label.item()
    (1.0, 7)
    """
    _check_batch("gather_batch", images, labels, order, step_state, x, out_labels)
    if images.dtype != x.dtype or order.dtype != np.int32:
        raise TypeError(f"gather_batch: images are {images.dtype}, x is {x.dtype}, order "
                        f"{order.dtype}, wanted one float dtype, and int32")
    if is_gpu(images):
        parts = blocks_per_image(x[0].size if len(x) else 1, x.dtype)
        kernels.kernel("data/augment.cu", "augment_gather", T=x.dtype,
                       I=kernels.index(images, x), C=1)(
            len(x) * parts * BLOCK, images, labels, order, step_state, x, out_labels, len(x),
            len(images), x.size // max(1, len(x)), batch_size, len(order), parts, block=BLOCK)
        return
    index = order[int(step_state[1]) * batch_size :][: len(x)]
    x[...], out_labels[...] = images[index], labels[index]


def _check_batch(caller: str, images: Array, labels: Array, order: Array, step_state: Array,
                 x: Array, out_labels: Array) -> None:
    check_arrays(caller, images=images, labels=labels, order=order, step_state=step_state, x=x,
                 out_labels=out_labels)
    if (labels.dtype, out_labels.dtype, step_state.dtype) != (np.int32, np.int32, np.int64):
        raise TypeError(f"{caller}: labels are {labels.dtype}, out_labels {out_labels.dtype}, "
                        f"step_state is {step_state.dtype}, wanted int32, int32, int64")
    if (labels.shape != images.shape[:1] or x.shape[1:] != images.shape[1:] or step_state.size < 2
            or out_labels.shape != x.shape[:1] or order.ndim != 1 or len(x) > len(order)):
        raise ValueError(f"{caller}: images {images.shape}, labels {labels.shape}, order "
                         f"{order.shape}, step_state {step_state.shape}, x {x.shape}, out_labels "
                         f"{out_labels.shape}: they do not fit")
