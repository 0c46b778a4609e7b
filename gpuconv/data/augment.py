"""Augmentation: bytes to floats, cropped and mirrored at random.

    y[b,h,w,c] = (pixel - 255 mean[c]) / (255 std[c])
    pixel      = images[i, h + oh, w' + ow, c],   i = index[b],   w' = w, or flipped, W-1-w

    oh, ow = -pad .. pad, and flip: functions of (key, i, epoch), see moves.py

So image i is cut the same way in ``epoch`` in whichever batch it comes, in whatever order, on the
CPU and on the GPU. Outside the image a pixel is 0 (black, before normalisation, as in torchvision's
RandomCrop), or its mirror image with ``padding_mode="reflect"``. The numbers are the same to the
last bit on both: the GPU looks them up in a table of 256 values per channel that NumPy computed.
"""

import functools
from collections.abc import Sequence

import numpy as np

from gpuconv import kernels, threads
from gpuconv.backend import (
    Array,
    accumulator,
    adopt,
    array_device,
    check_arrays,
    cupy,
    float_dtype,
    is_array,
    is_gpu,
    to_cpu,
)
from gpuconv.checks import check_count, no_array, short, type_name
from gpuconv.data.moves import NOTHING, Augment, Move, moves, numbers

Numbers = Sequence[float] | np.ndarray

BLOCK = 128  # GPU: threads of a block


def augment_batch(images: Array, index: Array, *, mean: Numbers, std: Numbers,
                  dtype: str = "float32", key: tuple[int, int] = (0, 0), epoch: int = 0,
                  augment: Augment | Move | None = None) -> Array:
    """The images of one batch, normalised, and cropped and mirrored if ``augment`` says so.

    Args:
        images: (N, H, W, C) uint8, the whole set.
        index: (B,) int32, which of them, 0 .. N-1, on the same device. The GPU stays within its
            arrays when one is not, and takes the nearest.
        mean, std: (C,) of pixels scaled to 0 .. 1; ``dataset.mean`` and ``dataset.std``.
        dtype: of the result: float32, float64, float16 or bfloat16 (rounded from float32).
        key: two words, (seed, stream).
        epoch: the pass over the set; another epoch moves each image differently.
        augment: None only normalises, for evaluation; a ``moves.Move`` does the same to all images.

    Returns:
        (B, H, W, C), dtype as asked, on the device of images.

    Raises:
        TypeError: wrong dtypes, or arrays on two devices.
        ValueError: wrong ranks, not C numbers in mean and std, a std of 0, or a reflection wider
            than the image.
        IndexError: on the CPU, an index outside 0 .. N-1.

    >>> image = np.uint8([[[[0], [51]], [[102], [255]]]])
    >>> augment_batch(image, np.int32([0]), mean=[0.0], std=[1.0])[0, :, :, 0]
    array([[0. , 0.2],
           [0.4, 1. ]], dtype=float32)
    """
    _check("augment_batch", images, index, augment)
    epoch = check_count("augment_batch", "epoch", epoch, 0)
    C = images.shape[3]
    middle, spread = _in_bytes(C, mean, std)
    run, augment = _gpu if is_gpu(images) else _cpu, augment or NOTHING
    T = float_dtype(dtype, "augment_batch: ")
    with array_device(images):
        return run(images, index, middle, spread, T, key, epoch, augment)


def fetch_batch(images: Array, labels: Array, order: Array, clock: Array, x: Array,
                out_labels: Array, *, batch_size: int, mean: Numbers, std: Numbers,
                key: tuple[int, int] = (0, 0), augment: Augment | None = None) -> None:
    """``augment_batch`` for a captured step: which batch, and of which epoch, the device knows.

    Writes images ``order[clock[1]*batch_size + b]`` as they are in epoch ``clock[0]``, for each b
    below len(x): the bits that a Loader with this order gives. On the GPU one launch, with no
    number from Python that changes from batch to batch.

    Args:
        images, labels: (N, H, W, C) uint8 and (N,) int32, the whole set.
        order: (n,) int32: the images in the order of this epoch.
        clock: (2,) int64, or longer: epoch, batch, and what else there is.
        x, out_labels: (B, H, W, C) of a float dtype and (B,) int32: written. A last batch that
            holds fewer images has fewer rows.
        batch_size: images of all batches before.
        mean, std, key, augment: as in ``augment_batch``.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices.

    >>> image, x, label = np.uint8([[[[51]]], [[[255]]]]), np.empty((1, 1, 1, 1)), np.int32([0])
    >>> clock, order = np.int64([3, 1]), np.int32([1, 0])
    >>> fetch_batch(image, np.int32([7, 8]), order, clock, x, label, batch_size=1, mean=[0.0],
    ...             std=[1.0])
    >>> x.item(), label.item()
    (0.2, 7)
    """
    _check("fetch_batch", images, order, augment)
    _check_batch("fetch_batch", images, labels, order, clock, x, out_labels)
    middle, spread = _in_bytes(images.shape[3], mean, std)
    float_dtype(x.dtype)
    augment = augment or NOTHING
    if is_gpu(images):
        _launch(images, labels, order, clock, x, out_labels, batch_size, (middle, spread), key, 0,
                augment)
        return
    index = order[int(clock[1]) * batch_size :][: len(x)]
    x[...] = _cpu(images, index, middle, spread, x.dtype, key, int(clock[0]), augment)
    out_labels[...] = labels[index]


def gather_batch(images: Array, labels: Array, order: Array, clock: Array, x: Array,
                 out_labels: Array, *, batch_size: int) -> None:
    """``fetch_batch`` of float images (N, H, W, C), which are taken as they are.

    >>> x, label = np.empty((1, 1, 1, 1)), np.int32([0])
    >>> gather_batch(np.ones((2, 1, 1, 1)), np.int32([7, 8]), np.int32([1, 0]), np.int64([0, 1]), x,
    ...              label, batch_size=1)
    >>> x.item(), label.item()
    (1.0, 7)
    """
    _check_batch("gather_batch", images, labels, order, clock, x, out_labels)
    if images.dtype != x.dtype or order.dtype != np.int32:
        raise TypeError(f"gather_batch: images are {images.dtype}, x is {x.dtype}, order "
                        f"{order.dtype}, wanted one float dtype, and int32")
    if is_gpu(images):
        parts = _parts(x[0].size if len(x) else 1, x.dtype)
        kernels.kernel("data/augment.cu", "augment_gather", T=x.dtype,
                       I=kernels.index(images, x), C=1)(
            len(x) * parts * BLOCK, images, labels, order, clock, x, out_labels, len(x),
            len(images), x.size // max(1, len(x)), batch_size, len(order), parts, block=BLOCK)
        return
    index = order[int(clock[1]) * batch_size :][: len(x)]
    x[...], out_labels[...] = images[index], labels[index]


def _check_batch(caller: str, images: Array, labels: Array, order: Array, clock: Array, x: Array,
                 out_labels: Array) -> None:
    check_arrays(caller, images=images, labels=labels, order=order, clock=clock, x=x,
                 out_labels=out_labels)
    if (labels.dtype, out_labels.dtype, clock.dtype) != (np.int32, np.int32, np.int64):
        raise TypeError(f"{caller}: labels are {labels.dtype}, out_labels {out_labels.dtype}, "
                        f"clock is {clock.dtype}, wanted int32, int32, int64")
    if (labels.shape != images.shape[:1] or x.shape[1:] != images.shape[1:] or clock.size < 2
            or out_labels.shape != x.shape[:1] or order.ndim != 1 or len(x) > len(order)):
        raise ValueError(f"{caller}: images {images.shape}, labels {labels.shape}, order "
                         f"{order.shape}, clock {clock.shape}, x {x.shape}, out_labels "
                         f"{out_labels.shape}: they do not fit")


def _check(caller: str, images: Array, index: Array, augment: Augment | Move | None) -> None:
    for name, a in (("images", images), ("index", index)):
        if not is_array(a):
            raise TypeError(f"{caller}: {name} is {no_array(a, name)}")
    check_arrays(caller, images=images, index=index)
    if not isinstance(augment, (Augment, Move, type(None))):
        raise TypeError(f"{caller}: augment is {type_name(augment)}, wanted an Augment or None")
    if images.dtype != np.uint8 or index.dtype != np.int32:
        raise TypeError(f"{caller}: images are {images.dtype}, index is {index.dtype}, "
                        "wanted uint8 and int32")
    if images.ndim != 4 or index.ndim != 1:
        raise ValueError(f"{caller}: images have shape {images.shape}, index {index.shape}, "
                         "wanted (N, H, W, C) and (B,)")
    if 0 in images.shape[1:] or (len(index) and not len(images)):
        raise ValueError(f"{caller}: images have shape {images.shape}: there is no pixel")
    if augment and augment.padding_mode == "reflect" and augment.pad >= min(images.shape[1:3]):
        raise ValueError(f"{caller}: a reflection of {augment.pad} pixels does not fit images "
                         f"of {images.shape[1:3]}")


def _in_bytes(C: int, mean: Numbers, std: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Both as (C,) float64, for pixels of 0 .. 255."""
    return (255 * channel_numbers("augment_batch", "mean", mean, C),
            255 * channel_numbers("augment_batch", "std", std, C))


def channel_numbers(caller: str, name: str, values: Numbers, C: int) -> np.ndarray:
    """Return the mean or the std of each channel as (C,) float64.

    Args:
        caller: name of the function, for messages.
        name: "mean" or "std".
        values: numbers, one for each channel.
        C: channels.

    Raises:
        TypeError, ValueError: not C finite numbers, or a std that is not positive.
    """
    given = to_cpu(adopt(caller, name, values))
    if given.dtype.kind == "c":
        raise TypeError(f"{caller}: {name} has dtype {given.dtype}, wanted real numbers")
    found = np.asarray(given, np.float64)
    if found.shape != (C,):
        raise ValueError(f"{caller}: {name} has shape {found.shape}, wanted ({C},), a number for "
                         "each channel")
    if name == "std" and not (found > 0).all():
        raise ValueError(f"{caller}: std {short(found.tolist())}: a channel does not vary, so it "
                         "cannot be normalised; pass a std of your own, each more than 0")
    if not np.isfinite(found).all():
        raise ValueError(f"{caller}: {name} is {short(found.tolist())}, wanted finite numbers")
    return found


# -- CPU: gather whole pixels, subtract, divide ----------------------------------------------


def _cpu(images: np.ndarray, index: np.ndarray, middle: np.ndarray, spread: np.ndarray,
         dtype: np.dtype, key: tuple[int, int], epoch: int,
         augment: Augment | Move) -> np.ndarray:
    N, H, W, C = images.shape
    B, A = len(index), accumulator(dtype)
    if B and not 0 <= index.min() <= index.max() < N:
        raise IndexError(f"augment_batch: index runs from {index.min()} to {index.max()}, "
                         f"there are {N} images")
    pixels = np.ascontiguousarray(images).reshape(N, H * W * C).view(f"V{C}")  # (N, H*W)
    middle, spread = (np.tile(v.astype(A), H * W) for v in (middle, spread))  # (H*W*C,)
    y = np.empty((B, H * W * C), dtype)

    def some(piece: slice) -> None:
        taken = _take(pixels, index[piece], (H, W), key, epoch, augment)
        raw = taken.view(np.uint8).reshape(-1, H * W * C)
        if dtype == A:
            np.subtract(raw, middle, out=y[piece])
            y[piece] /= spread
        else:
            y[piece] = (raw - middle) / spread

    threads.each(some, threads.chunks(B, H * W * C * (1 + A.itemsize)))
    return y.reshape(B, H, W, C)


def _take(pixels: np.ndarray, index: np.ndarray, size: tuple[int, int], key: tuple[int, int],
          epoch: int, augment: Augment | Move) -> np.ndarray:
    """(n, H*W) of whole pixels: pixels[index], moved."""
    if augment == NOTHING:
        return pixels[index]
    H, W = size
    oh, ow, flip = moves(index, key, epoch, augment)  # (n,)
    h, w = np.arange(H, dtype=np.int32), np.arange(W, dtype=np.int32)
    h = h + oh[:, None]                                        # (n, H)
    w = np.where(flip[:, None], W - 1 - w, w) + ow[:, None]    # (n, W)
    if augment.padding_mode == "reflect":
        h, w = H - 1 - abs(H - 1 - abs(h)), W - 1 - abs(W - 1 - abs(w))
        outside = None
    else:
        outside = ((h < 0) | (h >= H))[:, :, None] | ((w < 0) | (w >= W))[:, None]  # (n, H, W)
    rows = index[:, None].astype(np.intp) * H + np.clip(h, 0, H - 1)                # (n, H)
    flat = rows[:, :, None] * W + np.clip(w, 0, W - 1)[:, None]                     # (n, H, W)
    taken = pixels.reshape(-1).take(flat)
    if outside is not None:
        taken[outside] = np.zeros((), pixels.dtype)
    return taken.reshape(len(index), H * W)


# -- GPU: kernels/data/augment.cu -----------------------------------------------------------------


def _gpu(images: Array, index: Array, middle: np.ndarray, spread: np.ndarray, dtype: np.dtype,
         key: tuple[int, int], epoch: int, augment: Augment | Move) -> Array:
    images, index = (a if a.flags.c_contiguous else a.copy(order="C") for a in (images, index))
    y = cupy().empty((len(index), *images.shape[1:]), dtype)
    _launch(images, None, index, None, y, None, len(index), (middle, spread), key, epoch, augment)
    return y


def _launch(images: Array, labels: Array | None, order: Array, clock: Array | None, y: Array,
            chosen: Array | None, batch_size: int, statistics: tuple[np.ndarray, np.ndarray],
            key: tuple[int, int], epoch: int, augment: Augment | Move) -> None:
    B, H, W, C = y.shape
    middle, spread = statistics
    table = _table(middle.tobytes(), spread.tobytes(), y.dtype, y.device.id)
    if clock is not None:
        _in_graphs[table.data.ptr] = table
    parts = _parts(H * W * C, y.dtype)
    kernels.kernel("data/augment.cu", "augment_forward", T=y.dtype, I=kernels.index(images, y),
                   C=C)(
        B * parts * BLOCK, images, labels, order, clock, table, y, chosen, B, len(images), H, W,
        batch_size, len(order), parts, *numbers(augment), augment.padding_mode == "reflect", *key,
        epoch, block=BLOCK)


def _parts(size: int, dtype: np.dtype) -> int:
    """Blocks for an image of that many elements, two turns each."""
    per = 16 // dtype.itemsize
    return -(-size // (2 * BLOCK * (per if size % per == 0 else 1)))


_in_graphs: dict[int, Array] = {}  # address: a table that graphs may hold, forgotten or not


@functools.lru_cache(maxsize=32)
def _table(middle: bytes, spread: bytes, dtype: np.dtype, device: int) -> Array:
    """(C, 256) on the GPU: what a pixel becomes, by the very operations of the CPU."""
    wide = accumulator(dtype)
    a, b = (np.frombuffer(v).astype(wide)[:, None] for v in (middle, spread))  # (C, 1)
    table = ((np.arange(256, dtype=np.uint8) - a) / b).astype(dtype)
    there = cupy().asarray(table)
    cupy().cuda.get_current_stream().synchronize()  # other streams will use it too
    return there
