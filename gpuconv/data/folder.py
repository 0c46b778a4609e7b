"""A folder of images per class becomes a training set and a test set.

``listing`` says which files these are. The folders' names, sorted, are the classes. An image that
cannot be read is an error. Where there is no test folder, each class is split by the names of its
files below the folder of the class (``split``): copies of a file under other names may come into
both sets. The result is a function of the files' names and contents, the image size and the seed:
not of the order in which a file system lists them.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuconv import backend, threads
from gpuconv.data.dataset import Dataset
from gpuconv.data.images import pillow, read_image
from gpuconv.data.legacy import list_by_position
from gpuconv.data.listing import File, Listing, list_folder, normal
from gpuconv.data.split import mixed_up, split, split_by_position

ROUND = 32  # images for each processor between two calls of progress

Indices = tuple[np.ndarray, np.ndarray]  # of the training images, and of the test images


def folder(path: str | os.PathLike, image_size: int | tuple[int, int] = 32,
           test_share: float = 0.2, seed: int = 0, *, channels: int = 3, limit: int | None = None,
           progress: Callable[[int, int], object] | None = None) -> tuple[Dataset, Dataset]:
    """Read the images of a folder, all at one size.

    Args:
        path: folder that holds a folder of images for each class, at any depth below it; or the
            folders ``train`` and ``test`` (or ``val``) that do.
        image_size: height and width, or one number for both; ``read_image`` says how images are
            cut and resized.
        test_share: of each class, where there is no test folder.
        seed: of that choice, and of the order; 0 .. 2**32 - 1.
        channels: 3 for RGB, 1 for grey.
        limit: read only the first so many images of each set.
        progress: called with (images read, images in all) now and then.

    Returns:
        (train, test): images (N, H, W, C) uint8, shuffled; names below ``path``.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: fewer than two classes, a class without images or with too few, folders that
            may be sets or classes, or images that cannot be read: names the first and says how
            many.
        MemoryError: all of them do not fit.
    """
    path = pathlib.Path(path)

    def by_name(labels: np.ndarray, files: Sequence[File], *more: Any) -> Indices:
        items = [normal(file.item).encode("utf-8", "surrogatepass") for file in files]
        return split(labels, items, *more)

    return _sets(path, list_folder(path), by_name, image_size, test_share, seed, channels, limit,
                 progress)


def folder_by_position(path: str | os.PathLike, image_size: int | tuple[int, int],
                       test_share: float, seed: int, *, limit: int | None = None,
                       progress: Callable[[int, int], object] | None = None
                       ) -> tuple[Dataset, Dataset]:
    """Read a folder as runs did whose config.json has no ``split``; see ``folder``."""
    path = pathlib.Path(path)

    def by_position(labels: np.ndarray, files: Sequence[File], *more: Any) -> Indices:
        return split_by_position(labels, *more)

    return _sets(path, list_by_position(path), by_position, image_size, test_share, seed, 3, limit,
                 progress)


def _sets(path: pathlib.Path, listing: Listing, choose: Callable[..., Indices],
          image_size: int | tuple[int, int], test_share: float, seed: int, channels: int,
          limit: int | None, progress: Callable[[int, int], object] | None
          ) -> tuple[Dataset, Dataset]:
    """Return (train, test) of the files in a listing; ``choose`` splits them."""
    if listing.test is None:
        labels = np.array([file.label for file in listing.train])
        chosen = choose(labels, listing.train, listing.classes, test_share, seed, f"{path}: ")
        parts = [[listing.train[i] for i in part] for part in chosen]
    else:
        parts = [[part[i] for i in mixed_up(np.arange(len(part)), seed, which)]
                 for which, part in enumerate((listing.train, listing.test))]
    train, test = (part[:limit] for part in parts)
    both = _dataset(path, train + test, listing.classes, image_size, channels, progress)
    n = len(train)
    return (dataclasses.replace(both[:n], name=f"{both.name} train"),
            dataclasses.replace(both[n:], name=f"{both.name} test"))


def whole_folder(path: str | os.PathLike, image_size: int | tuple[int, int] = 32,
                 names: Sequence[str] = (), only: bool = False, *,
                 progress: Callable[[int, int], object] | None = None) -> Dataset:
    """Read the images of a folder, training and test images together.

    Args:
        path, image_size, progress: as of ``folder``.
        names: images that come first, in this order.
        only: read no others?

    Returns:
        Images (N, H, W, 3) uint8; with ``only`` perhaps none.

    Raises:
        OSError, ValueError, MemoryError: as ``folder``. One class is enough, and a class may be
            without images.
    """
    path = pathlib.Path(path)
    listing = list_folder(path, complete=False)
    first = {normal(name): place for place, name in enumerate(names)}
    files = sorted([*listing.train, *(listing.test or [])],
                   key=lambda file: first.get(normal(file.name), len(first)))
    if only:
        files = [file for file in files if normal(file.name) in first]
    elif not files:
        raise ValueError(f"{path} holds no image in a folder of its class")
    return _dataset(path, files, listing.classes, image_size, 3, progress)


def _dataset(path: pathlib.Path, files: Sequence[File], classes: tuple[str, ...],
             size: int | tuple[int, int], channels: int,
             progress: Callable[[int, int], object] | None) -> Dataset:
    images = _read(path, files, size, channels, progress)
    return Dataset(images, np.array([file.label for file in files], np.int32), classes,
                   path.absolute().name, np.array([file.name for file in files], object))


# -- reading them --------------------------------------------------------------------------------


def _read(path: pathlib.Path, files: Sequence[File], size: int | tuple[int, int], channels: int,
          progress: Callable[[int, int], object] | None) -> np.ndarray:
    """(N, H, W, C) uint8."""
    pillow()  # not there: said before any thread starts
    height, width = size if isinstance(size, tuple) else (size, size)
    need, free = len(files) * height * width * channels, backend.free_memory()
    if free is not None and need > free:
        raise MemoryError(f"{path}: {len(files):,} images of {height}x{width}x{channels} take "
                          f"{need:,} bytes, and {free:,} are free: take smaller or fewer images")
    images = np.empty((len(files), height, width, channels), np.uint8)
    wrong: list[tuple[int, Exception]] = []

    def work(piece: slice) -> None:
        for i in range(piece.start, piece.stop):
            try:
                images[i] = read_image(files[i].path, (height, width), channels)
            except (ValueError, OSError) as error:
                wrong.append((i, error))

    step = ROUND * threads.count()  # not all at once: for progress, and for Ctrl-C
    for first in range(0, len(files), step):
        last = min(first + step, len(files))
        threads.each(work, [slice(i, min(i + 4, last)) for i in range(first, last, 4)])
        if progress:
            progress(last, len(files))
    if wrong:
        i, error = min(wrong, key=lambda both: files[both[0]].path)
        says: object = error
        if isinstance(error, OSError) and error.strerror:  # whose own text begins with "[Errno"
            says = f"{files[i].path}: {error.strerror}"
        raise ValueError(f"{says} ({len(wrong):,} of the {len(files):,} images in {path} cannot "
                         "be read; repair or remove them)")
    return images
