"""Augmentation: bytes to floats, cropped and mirrored at random.

    y[b,h,w,c] = (pixel - 255 mean[c]) / (255 std[c])
    pixel      = images[i, h + oh, w' + ow, c],   i = index[b],   w' = w, or flipped, W-1-w

    oh, ow = -pad .. pad, and flip: functions of (key, i, epoch): words of Philox at (i, 0, epoch)

Image i is cropped the same way in ``epoch`` in every batch and order, on the CPU and on the GPU.
Outside the image a pixel is 0 (black, before normalisation, as in torchvision's RandomCrop), or its
mirror image with ``padding_mode="reflect"``. Both devices give the same bits: the GPU looks them up
in a table of 256 values per channel that NumPy computed.
"""

import dataclasses
import functools
import operator

import numpy as np

from gpuconv import kernels, random, threads
from gpuconv.backend import (
    Array,
    accumulator,
    array_device,
    check_arrays,
    cupy,
    float_dtype,
    is_array,
    is_gpu,
)
from gpuconv.checks import check_choice, check_count, no_array, type_name
from gpuconv.data.dataset import PerChannel, check_per_channel

BLOCK = 128  # GPU: threads per block
FLIPS = False, True, "alternate"  # in the order of augment.cu
PAD = 2**30                       # pixels, at most: 2 * pad + 1 fits an int of augment.cu
ALWAYS = len(FLIPS)               # mirror all images


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of a training image.

    Args:
        flip: True mirrors each image left to right at random in each epoch. "alternate" mirrors it
            in every other epoch, half of the images in the first: two epochs show every image both
            ways. False mirrors none.
        pad: largest shift of the crop in each direction, pixels; 0 for no crop.
        padding_mode: pixels outside the image: "zeros" (black) or "reflect".

    Raises:
        ValueError: pad is negative, or flip or padding_mode is not one of these.

    >>> Augment(pad=2)
    Augment(flip=True, pad=2, padding_mode='zeros')

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6
    (alternating flip).
    """

    flip: bool | str = True
    pad: int = 4
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        """Check the values."""
        check_count("Augment", "pad", self.pad, 0, PAD)
        check_choice("Augment", "flip", self.flip, FLIPS)
        check_choice("Augment", "padding_mode", self.padding_mode, ("zeros", "reflect"))


@dataclasses.dataclass(frozen=True)
class Move:
    """One fixed move, the same for all images.

    Args:
        down, right: pixel (h, w) becomes the pixel at (h + down, w + right).
        mirror: whether to mirror left to right after the shift.
        padding_mode: pixels outside the image: "zeros" (black) or "reflect".
    """

    down: int = 0
    right: int = 0
    mirror: bool = False
    padding_mode: str = "reflect"

    @property
    def pad(self) -> int:
        """Largest shift in any direction, pixels."""
        return max(abs(self.down), abs(self.right))


NO_AUGMENT = Augment(flip=False, pad=0)


def augment_batch(images: Array, index: Array, *, mean: PerChannel, std: PerChannel,
                  dtype: str = "float32", key: tuple[int, int] = (0, 0), epoch: int = 0,
                  augment: Augment | Move | None = None) -> Array:
    """Return the images of one batch: cropped and mirrored by ``augment``, then normalised.

    Args:
        images: (N, H, W, C) uint8, the whole set.
        index: (B,) int32, indices of the batch's images, 0 .. N-1, on the same device. The GPU
            replaces an index out of range by the nearest valid one.
        mean, std: (C,) of pixels scaled to 0 .. 1; ``dataset.mean`` and ``dataset.std``.
        dtype: of the result: float32, float64, float16 or bfloat16 (rounded from float32).
        key: two words, (seed, stream).
        epoch: number of the pass over the set; each epoch moves an image differently.
        augment: None only normalises, for evaluation; a ``Move`` moves all images alike.

    Returns:
        (B, H, W, C) of ``dtype``, on the device of images.

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
    check_augment("augment_batch", images, index, augment)
    epoch = check_count("augment_batch", "epoch", epoch, 0)
    C = images.shape[3]
    byte_mean, byte_std = byte_mean_std(C, mean, std)
    run, augment = _augment_gpu if is_gpu(images) else augment_cpu, augment or NO_AUGMENT
    T = float_dtype(dtype, "augment_batch: ")
    with array_device(images):
        return run(images, index, byte_mean, byte_std, T, key, epoch, augment)


def check_augment(caller: str, images: Array, index: Array, augment: Augment | Move | None) -> None:
    """Raise TypeError or ValueError for arrays or an augmentation that cannot be used."""
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


def byte_mean_std(C: int, mean: PerChannel, std: PerChannel) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std as (C,) float64, for pixels of 0 .. 255."""
    return (255 * check_per_channel("augment_batch", "mean", mean, C),
            255 * check_per_channel("augment_batch", "std", std, C))


def kernel_arguments(augment: Augment | Move) -> tuple[int, int, int, int]:
    """Return the arguments of augment.cu: largest random shift, flip mode, fixed shifts."""
    if isinstance(augment, Move):
        return 0, ALWAYS if augment.mirror else 0, augment.down, augment.right
    return augment.pad, FLIPS.index(augment.flip), 0, 0


def image_moves(index: np.ndarray, key: tuple[int, int], epoch: int,
                augment: Augment | Move) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the shifts and flips of images ``index`` in ``epoch``.

    Returns:
        oh, ow: (B,) int32, rows down and columns right, -pad .. pad.
        flip: (B,) bool.
    """
    if isinstance(augment, Move):
        oh, ow = (np.full(len(index), by, np.int32) for by in (augment.down, augment.right))
        return oh, ow, np.full(len(index), augment.mirror)
    step = operator.index(epoch)
    word = random.philox((index, 0, step & random.LOW, step >> 32), key)
    reach = np.uint64(2 * augment.pad + 1)
    oh, ow = ((w * reach >> np.uint64(32)).astype(np.int32) - np.int32(augment.pad)
              for w in word[:2])
    if augment.flip == "alternate":
        first = random.philox((index, 0, 0, 0), key)[2]
        return oh, ow, (first >> np.uint64(31)).astype(bool) ^ bool(step % 2)
    return oh, ow, (word[2] >> np.uint64(31)).astype(bool) & augment.flip


# -- CPU: gather whole pixels, subtract, divide ----------------------------------------------


def augment_cpu(images: np.ndarray, index: np.ndarray, byte_mean: np.ndarray, byte_std: np.ndarray,
                dtype: np.dtype, key: tuple[int, int], epoch: int,
                augment: Augment | Move) -> np.ndarray:
    """Compute ``augment_batch`` on the CPU, with mean and std in units of bytes."""
    N, H, W, C = images.shape
    B, A = len(index), accumulator(dtype)
    if B and not 0 <= index.min() <= index.max() < N:
        raise IndexError(f"augment_batch: index runs from {index.min()} to {index.max()}, "
                         f"there are {N} images")
    pixels = np.ascontiguousarray(images).reshape(N, H * W * C).view(f"V{C}")  # (N, H*W)
    byte_mean, byte_std = (np.tile(v.astype(A), H * W) for v in (byte_mean, byte_std))  # (H*W*C,)
    y = np.empty((B, H * W * C), dtype)

    def normalize(chunk: slice) -> None:
        moved = _gather_pixels(pixels, index[chunk], (H, W), key, epoch, augment)
        raw = moved.view(np.uint8).reshape(-1, H * W * C)
        if dtype == A:
            np.subtract(raw, byte_mean, out=y[chunk])
            y[chunk] /= byte_std
        else:
            y[chunk] = (raw - byte_mean) / byte_std

    threads.each(normalize, threads.chunks(B, H * W * C * (1 + A.itemsize)))
    return y.reshape(B, H, W, C)


def _gather_pixels(pixels: np.ndarray, index: np.ndarray, size: tuple[int, int],
                   key: tuple[int, int], epoch: int, augment: Augment | Move) -> np.ndarray:
    """Return the moved images pixels[index] as (n, H*W) whole pixels."""
    if augment == NO_AUGMENT:
        return pixels[index]
    H, W = size
    oh, ow, flip = image_moves(index, key, epoch, augment)  # (n,)
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


def _augment_gpu(images: Array, index: Array, byte_mean: np.ndarray, byte_std: np.ndarray,
                 dtype: np.dtype, key: tuple[int, int], epoch: int,
                 augment: Augment | Move) -> Array:
    images, index = (a if a.flags.c_contiguous else a.copy(order="C") for a in (images, index))
    y = cupy().empty((len(index), *images.shape[1:]), dtype)
    launch_augment(images, None, index, None, y, None, len(index), (byte_mean, byte_std), key,
                   epoch, augment)
    return y


def launch_augment(images: Array, labels: Array | None, order: Array, step_state: Array | None,
                   y: Array, out_labels: Array | None, batch_size: int,
                   mean_std: tuple[np.ndarray, np.ndarray], key: tuple[int, int], epoch: int,
                   augment: Augment | Move) -> None:
    """Launch the kernel that writes y and, if there are labels, out_labels.

    With ``step_state`` the kernel reads epoch and batch from it (see ``loader.fetch_batch``).
    """
    B, H, W, C = y.shape
    byte_mean, byte_std = mean_std
    table = _pixel_table(byte_mean.tobytes(), byte_std.tobytes(), y.dtype, y.device.id)
    if step_state is not None:
        _captured_tables[table.data.ptr] = table
    parts = blocks_per_image(H * W * C, y.dtype)
    kernels.kernel("data/augment.cu", "augment_forward", T=y.dtype, I=kernels.index(images, y),
                   C=C)(
        B * parts * BLOCK, images, labels, order, step_state, table, y, out_labels, B, len(images),
        H, W, batch_size, len(order), parts, *kernel_arguments(augment),
        augment.padding_mode == "reflect", *key, epoch, block=BLOCK)


def blocks_per_image(size: int, dtype: np.dtype) -> int:
    """Return the thread blocks for an image of ``size`` elements; a thread loops twice."""
    per = 16 // dtype.itemsize
    return -(-size // (2 * BLOCK * (per if size % per == 0 else 1)))


_captured_tables: dict[int, Array] = {}  # by address: graphs may still use them


@functools.lru_cache(maxsize=32)
def _pixel_table(byte_mean: bytes, byte_std: bytes, dtype: np.dtype, device: int) -> Array:
    """Return (C, 256) on the GPU: the normalised value of each byte, computed as on the CPU."""
    wide = accumulator(dtype)
    a, b = (np.frombuffer(v).astype(wide)[:, None] for v in (byte_mean, byte_std))  # (C, 1)
    table = ((np.arange(256, dtype=np.uint8) - a) / b).astype(dtype)
    there = cupy().asarray(table)
    cupy().cuda.get_current_stream().synchronize()  # other streams will use it too
    return there
