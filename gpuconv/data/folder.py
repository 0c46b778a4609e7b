"""A folder of images per class becomes a training set and a test set.

``listing`` says which files these are. The folders' names, sorted, are the classes. Images that
cannot be read are an error that lists them, or are left out with a warning that does. Where there
is no test folder, each class is split by the names of its files below the folder of the class
(``split``): copies of a file under other names may come into both sets. The result is a function of
the files' names and contents, the image size and the seed: not of the order in which a file system
lists them.
"""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuconv import threads
from gpuconv.checks import check_count, check_path
from gpuconv.data.dataset import Dataset
from gpuconv.data.images import height_and_width, pillow, read_within
from gpuconv.data.legacy import list_by_position
from gpuconv.data.listing import File, Listing, few, list_folder, normal
from gpuconv.data.split import mixed_up, split, split_by_position
from gpuconv.free_memory import check_free_memory, free_memory

ROUND = 32       # images for each processor between two calls of progress
SHARE = 1 << 29  # bytes of memory in which a thread decodes an image; larger ones are decoded alone
SHOWN = 20       # broken images that a message names

Indices = tuple[np.ndarray, np.ndarray]  # of the training images, and of the test images


def folder(path: str | os.PathLike, image_size: int | tuple[int, int] = 32,
           test_share: float = 0.2, seed: int = 0, *, channels: int = 3, limit: int | None = None,
           progress: Callable[[int, int], object] | None = None,
           skip_broken: bool = False) -> tuple[Dataset, Dataset]:
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
        skip_broken: leave out the images that cannot be read, with a warning that lists them. No
            other image changes between the sets because of that.

    Returns:
        (train, test): images (N, H, W, C) uint8, shuffled; names below ``path``.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: fewer than two classes, a class with too few images or none that can be read,
            folders that may be sets or classes, or images that cannot be read: lists them.
        MemoryError: all of them do not fit.

    Warns:
        UserWarning: folders without images, which are no classes; images of kinds that cannot be
            read (HEIC, say) or without a suffix, which are left out.
    """
    path = pathlib.Path(check_path("folder", "path", path))

    def by_name(labels: np.ndarray, files: Sequence[File], *more: Any) -> Indices:
        items = [normal(file.item).encode("utf-8", "surrogatepass") for file in files]
        return split(labels, items, *more)

    listing = list_folder(path)
    _warn(path, listing)
    return _sets(path, listing, by_name, image_size, test_share, seed, channels, limit, progress,
                 skip_broken)


def folder_by_position(path: str | os.PathLike, image_size: int | tuple[int, int],
                       test_share: float, seed: int, *, limit: int | None = None,
                       progress: Callable[[int, int], object] | None = None,
                       skip_broken: bool = False) -> tuple[Dataset, Dataset]:
    """Read a folder as runs did whose config.json has no ``split``; see ``folder``."""
    path = pathlib.Path(check_path("folder", "path", path))

    def by_position(labels: np.ndarray, files: Sequence[File], *more: Any) -> Indices:
        return split_by_position(labels, *more)

    return _sets(path, list_by_position(path), by_position, image_size, test_share, seed, 3, limit,
                 progress, skip_broken)


def _sets(path: pathlib.Path, listing: Listing, choose: Callable[..., Indices],
          image_size: int | tuple[int, int], test_share: float, seed: int, channels: int,
          limit: int | None, progress: Callable[[int, int], object] | None, skip_broken: bool
          ) -> tuple[Dataset, Dataset]:
    """Return (train, test) of the files in a listing; ``choose`` splits them."""
    if limit is not None:
        check_count("folder", "limit", limit)
    if listing.test is None:
        labels = np.array([file.label for file in listing.train])
        chosen = choose(labels, listing.train, listing.classes, test_share, seed, f"{path}: ")
        parts = [[listing.train[i] for i in part] for part in chosen]
    else:
        parts = [[part[i] for i in mixed_up(np.arange(len(part)), seed, which)]
                 for which, part in enumerate((listing.train, listing.test))]
    train, test = (part[:limit] for part in parts)
    both = _dataset(path, train + test, listing.classes, image_size, channels, progress,
                    skip_broken)
    read = set(both.names.tolist()) if both.names is not None and skip_broken else None
    n = len(train) if read is None else sum(file.name in read for file in train)
    for part, images, use in ((train, both[:n], "train"), (test, both[n:], "test")):
        lost = {file.label for file in part} - set(images.labels.tolist())
        if lost and (use == "train" or not len(images)):
            raise ValueError(f"{path}: no image of class {listing.classes[min(lost)]} that can be "
                             f"read is left to {use} with: repair some, or remove the class")
    return (dataclasses.replace(both[:n], name=f"{both.name} train"),
            dataclasses.replace(both[n:], name=f"{both.name} test"))


def _warn(path: pathlib.Path, listing: Listing) -> None:
    """Issue warnings of what was found and is not used."""
    if listing.empty:
        warnings.warn(f"{path}: no image in {few(listing.empty)}: left out of the classes",
                      stacklevel=3)
    bare = [name for name in listing.unread if not os.path.splitext(name)[1]]
    other = [name for name in listing.unread if os.path.splitext(name)[1]]
    for names, what, advice in ((other, "of kinds that cannot be read", "convert them to JPEG or "
                                 "PNG"), (bare, "without a suffix", "rename them: 1.jpg, say")):
        if names:
            warnings.warn(f"{path}: left out {len(names):,} image{'s' * (len(names) > 1)} {what} "
                          f"({few(names)}): {advice}", stacklevel=3)


def whole_folder(path: str | os.PathLike, image_size: int | tuple[int, int] = 32,
                 names: Sequence[str] = (), only: bool = False, *,
                 progress: Callable[[int, int], object] | None = None,
                 skip_broken: bool = False) -> Dataset:
    """Read the images of a folder, training and test images together.

    Args:
        path, image_size, progress, skip_broken: as of ``folder``.
        names: images that come first, in this order.
        only: read no others?

    Returns:
        Images (N, H, W, 3) uint8; with ``only`` perhaps none.

    Raises:
        OSError, ValueError, MemoryError: as ``folder``. One class is enough, and a class may be
            without images.
    """
    path = pathlib.Path(check_path("folder", "path", path))
    listing = list_folder(path, complete=False)
    first = {normal(name): place for place, name in enumerate(names)}
    files = sorted([*listing.train, *(listing.test or [])],
                   key=lambda file: first.get(normal(file.name), len(first)))
    if only:
        files = [file for file in files if normal(file.name) in first]
    elif not files:
        raise ValueError(f"{path} holds no image in a folder of its class")
    if not only:
        _warn(path, listing)
    return _dataset(path, files, listing.classes, image_size, 3, progress, skip_broken)


def _dataset(path: pathlib.Path, files: Sequence[File], classes: tuple[str, ...],
             size: int | tuple[int, int], channels: int,
             progress: Callable[[int, int], object] | None, skip_broken: bool) -> Dataset:
    size = height_and_width("folder", "image_size", size)
    images, broken = _read(path, files, size, channels, progress)
    if broken:
        count = f"{len(broken):,} of the {len(files):,} images in {path} cannot be read"
        problems = [broken[i].replace("\n", "\\n")
                    for i in sorted(broken, key=lambda i: files[i].path)]
        more = [f"... and {len(problems) - SHOWN:,} more"] * (len(problems) > SHOWN)
        shown = problems[:SHOWN] + more
        if not skip_broken:
            hint = "repair or remove them, or go on without: --skip-broken, skip_broken=True"
            if len(problems) == 1:
                raise ValueError(f"{problems[0]} ({count}; {hint})")
            error = ValueError(f"{count} ({hint}):")
            for line in shown:
                error.add_note(f"  {line}")
            raise error
        warnings.warn(f"{count}, left out: {'; '.join(shown)}", stacklevel=4)
        kept = [i for i in range(len(files)) if i not in broken]
        for to, i in enumerate(kept):  # in place: all images may fill half of the memory
            images[to] = images[i]
        images, files = images[:len(kept)], [files[i] for i in kept]
    return Dataset(images, np.array([file.label for file in files], np.int32), classes,
                   path.absolute().name, np.array([file.name for file in files], object))


# -- reading them --------------------------------------------------------------------------------


def _read(path: pathlib.Path, files: Sequence[File], size: int | tuple[int, int], channels: int,
          progress: Callable[[int, int], object] | None) -> tuple[np.ndarray, dict[int, str]]:
    """Return (images (N, H, W, C) uint8, what is wrong with those that cannot be read).

    Images that take more memory than the share of a thread are read one at a time.
    """
    pillow()  # not there: said before any thread starts
    height, width = size if isinstance(size, tuple) else (size, size)
    check_free_memory(len(files) * height * width * channels,
                      f"{path}: {len(files):,} images of {height}x{width}x{channels}")
    images = np.empty((len(files), height, width, channels), np.uint8)
    share = min(SHARE, (free_memory() or SHARE) // (2 * threads.count()))
    broken: dict[int, str] = {}
    large: list[int] = []

    def read(i: int, most: int | None) -> None:
        try:
            image = read_within(files[i].path, (height, width), channels, most)
            if image is None:
                large.append(i)
            else:
                images[i] = image
        except (ValueError, OSError, MemoryError) as error:
            broken[i] = _problem(files[i].path, error)

    def work(chunk: slice) -> None:
        for i in range(chunk.start, chunk.stop):
            read(i, share)

    step = ROUND * threads.count()  # not all at once: for progress, and for Ctrl-C
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # they name no file
        for first in range(0, len(files), step):
            last = min(first + step, len(files))
            threads.each(work, [slice(i, min(i + 4, last)) for i in range(first, last, 4)])
            while large:
                read(large.pop(), None)
            if progress:
                progress(last, len(files))
    return images, broken


def _problem(path: str, error: Exception) -> str:
    """Return what is wrong with an image, with its path."""
    if isinstance(error, OSError) and error.strerror:  # whose own text begins with "[Errno"
        return f"{path}: {error.strerror.lower()}"
    return str(error) if str(error).startswith(path) else f"{path}: {error}"
