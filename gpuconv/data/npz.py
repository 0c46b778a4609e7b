"""Arrays of images and labels in one .npz file become a training set and a test set.

Known by the names of the arrays, with or without a test set:

    images, labels              test_images, test_labels       and perhaps classes: their names
    x_train, y_train            x_test, y_test                 as Keras' data sets have them
    train_images, train_labels  test_images, test_labels       as MedMNIST has them

Images are (N, H, W) or (N, H, W, C), uint8 or floats of 0..1; labels are integers or strings. An
array of Python objects is a pickle, which could run code: it is refused unread. Before arrays are
read, their sizes are compared with free memory (``members``), and so are those of copies of images.
"""

import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import threads
from gpuconv.checks import check_count, check_path, listed
from gpuconv.data.dataset import Dataset
from gpuconv.data.images import height_and_width, resized
from gpuconv.data.manifest import digests
from gpuconv.data.members import read_members
from gpuconv.data.split import split, split_by_position
from gpuconv.free_memory import check_free_memory

NAMES = (("images", "labels", "test_images", "test_labels"),
         ("x_train", "y_train", "x_test", "y_test"),
         ("train_images", "train_labels", "test_images", "test_labels"))

Indices = tuple[np.ndarray, np.ndarray]  # of the training images, and of the test images


def npz(path: str | os.PathLike, image_size: int | tuple[int, int] | None = None,
        test_share: float = 0.2, seed: int = 0, *,
        limit: int | None = None) -> tuple[Dataset, Dataset]:
    """Read the images of an .npz file.

    Args:
        path: the file.
        image_size: height and width, or one number for both; default: as they are.
        test_share: of each class, where there is no test set. A class is split by the pixels of
            its images, so their positions do not matter; of identical images some may come into
            either set.
        seed: of that choice, and of the order it leaves; 0 .. 2**32 - 1.
        limit: only the first so many images of each set.

    Returns:
        (train, test): images (N, H, W, C) uint8. Without names in the file, the sorted labels name
        the classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else; says what.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/digits.npz"
    >>> np.savez(path, images=np.zeros((10, 8, 8)), labels=[7, 8] * 5)
    >>> train, test = npz(path)
    >>> train.images.shape, test.images.shape, train.classes
    ((8, 8, 8, 1), (2, 8, 8, 1), ('7', '8'))
    """
    def by_pixels(labels: np.ndarray, images: np.ndarray, *more: Any) -> Indices:
        return split(labels, digests(images), *more)

    path = pathlib.Path(check_path("npz", "path", path))
    return _sets(path, by_pixels, image_size, test_share, seed, limit)


def npz_by_position(path: str | os.PathLike, image_size: int | tuple[int, int] | None,
                    test_share: float, seed: int, *,
                    limit: int | None = None) -> tuple[Dataset, Dataset]:
    """Read an .npz file as runs did whose config.json has no ``split``; see ``npz``."""
    def by_position(labels: np.ndarray, images: np.ndarray, *more: Any) -> Indices:
        return split_by_position(labels, *more)

    path = pathlib.Path(check_path("npz", "path", path))
    return _sets(path, by_position, image_size, test_share, seed, limit)


def _sets(path: pathlib.Path, choose: Callable[..., Indices],
          image_size: int | tuple[int, int] | None, test_share: float, seed: int,
          limit: int | None) -> tuple[Dataset, Dataset]:
    """Return (train, test) of a file; ``choose`` splits it where it has no test set."""
    if image_size is not None:
        image_size = height_and_width("npz", "image_size", image_size)
    if limit is not None:
        check_count("npz", "limit", limit)
    images, numbers, classes = _read(path, bool(image_size))
    if len(images) == 1:
        both = choose(numbers[0], images[0], classes, test_share, seed, f"{path}: ")
        chosen = [part[:limit] for part in both]
        check_free_memory(sum(map(len, chosen)) * images[0][0].nbytes, f"{path}: both sets")
        images, numbers = [images[0][i] for i in chosen], [numbers[0][i] for i in chosen]
    train, test = (
        Dataset(resized(x[:limit], image_size) if image_size else x[:limit], y[:limit], classes,
                f"{path.stem} {part}")
        for x, y, part in zip(images, numbers, ("train", "test"), strict=True))
    return train, test


def whole_npz(path: str | os.PathLike,
              image_size: int | tuple[int, int] | None = None) -> Dataset:
    """Read the images of an .npz file, training and test images together; as ``npz``."""
    path = pathlib.Path(check_path("npz", "path", path))
    images, numbers, classes = _read(path, bool(image_size))
    if image_size:
        images = [resized(x, image_size) for x in images]
    check_free_memory(sum(x.nbytes for x in images[1:] and images), f"{path}: both sets")
    both = np.concatenate(images) if len(images) > 1 else images[0]
    return Dataset(both, np.concatenate(numbers), classes, path.stem)


def _read(path: pathlib.Path, any_size: bool) -> tuple[
        list[np.ndarray], list[np.ndarray], tuple[str, ...]]:
    """Return (images, labels, names of the classes): a list of one or two sets, as in the file."""
    arrays = read_members(path, {name for names in NAMES for name in names} | {"classes"})
    for names in NAMES:
        if names[0] in arrays and names[1] in arrays:
            break
    else:
        raise ValueError(f"{path} holds {listed(sorted(arrays)) or 'nothing':.1000}: wanted images "
                         "and labels, or x_train and y_train")
    given = [name in arrays for name in names[2:]]
    if any(given) and not all(given):
        raise ValueError(f"{path} holds only one of {names[2]} and {names[3]}")
    parts = [(images, labels) for images, labels in (names[:2], names[2:]) if labels in arrays]
    values = [_labels(path, label, arrays[label]) for _, label in parts]
    classes, numbers = _classes(path, arrays.get("classes"), values)
    images = [_images(path, image, arrays[image], len(of))
              for (image, _), of in zip(parts, values, strict=True)]
    if len(parts) > 1 and (images[0].shape[3] != images[1].shape[3] or (
            not any_size and images[0].shape[1:] != images[1].shape[1:])):
        raise ValueError(f"{path}: {parts[0][0]} have shape {images[0].shape}, {parts[1][0]} "
                         f"{images[1].shape}")
    return images, numbers, classes


def _labels(path: pathlib.Path, name: str, labels: np.ndarray) -> np.ndarray:
    """Return the labels, (N,) integers or strings."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"{path}: {name} have shape {labels.shape}, wanted (N,), the class of "
                         "each image")
    if labels.dtype.kind not in "iuU":
        raise ValueError(f"{path}: {name} are {labels.dtype}, wanted integers or strings")
    return labels


def _classes(path: pathlib.Path, names: np.ndarray | None,
             values: list[np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return (names of the classes, labels as int32 of each set)."""
    known = np.unique(values[0])
    if names is not None:
        if names.ndim != 1 or len(set(names.tolist())) < len(names):
            raise ValueError(f"{path}: classes of shape {names.shape}, wanted names, (K,), each "
                             "once")
        names = names.astype(str)
        known = np.arange(len(names)) if values[0].dtype.kind in "iu" else names
    if len(known) < 2:
        raise ValueError(f"{path} holds {len(known)} classes, wanted at least two")
    order, numbers = np.argsort(known, kind="stable"), []
    for of in values:
        if (of.dtype.kind == "U") != (known.dtype.kind == "U"):
            raise ValueError(f"{path}: labels of two kinds, {known.dtype} and {of.dtype}")
        place = np.minimum(np.searchsorted(known, of, sorter=order), len(known) - 1)
        found = order[place].astype(np.int32)
        strange = known[found] != of
        if strange.any():
            raise ValueError(f"{path}: label {of[strange][0]!s:.80} is of no class: there are "
                             f"{listed(known):.1000}")
        numbers.append(found)
    return tuple(str(name) for name in (known if names is None else names)), numbers


def _images(path: pathlib.Path, name: str, images: np.ndarray, count: int) -> np.ndarray:
    """Return the images, (N, H, W, C) uint8."""
    if images.ndim == 3:
        images = images[..., None]  # (N, H, W, 1)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{path}: {name} have shape {images.shape}, wanted (N, H, W) or "
                         "(N, H, W, C)")
    if images.shape[3] > 4 >= images.shape[1]:
        raise ValueError(f"{path}: {name} have shape {images.shape}, which looks like channels "
                         f"first; wanted (N, H, W, C): {name}.transpose(0, 2, 3, 1)")
    if len(images) != count:
        raise ValueError(f"{path}: {len(images)} {name}, {count} labels")
    if images.dtype == np.uint8:
        if (most := images.max()) in range(1, 32):
            warnings.warn(f"{path}: the largest value of {name} is {most} of 255: almost black; "
                          f"if {most} is meant to be white, divide by it and save floats",
                          stacklevel=4)
        return images
    if images.dtype.kind in "SU":
        raise ValueError(f"{path}: {name} are {images.dtype}, wanted uint8 of 0..255 or floats of "
                         "0..1")
    low, high = images.min(), images.max()
    if images.dtype.kind != "f" or not 0 <= low <= high <= 1:  # NaN as well
        raise ValueError(f"{path}: {name} are {images.dtype} of {low}..{high}, wanted uint8 of "
                         "0..255 or floats of 0..1")
    check_free_memory(images.size, f"{path}: {name} as uint8")
    out = np.empty(images.shape, np.uint8)

    def work(chunk: slice) -> None:
        out[chunk] = images[chunk] * 255 + 0.5

    threads.each(work, threads.chunks(count, images[0].nbytes))
    return out
