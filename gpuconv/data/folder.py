"""A folder of images per class becomes a training set and a test set.

    pets/cat/1.jpg                      pets/train/cat/1.jpg
    pets/cat/from-anna/2.png     or     pets/train/dog/2.jpg
    pets/dog/1.jpg                      pets/test/cat/3.jpg   (or val/)

The folders' names, sorted, are the classes. What is a hidden file or has no suffix of an image is
passed over; an image that cannot be read is an error. The result is a function of the files' names
and contents, the image size and the seed: not of the order in which a file system lists them.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gpuconv import backend, threads
from gpuconv.data.dataset import Dataset
from gpuconv.data.images import SUFFIXES, pillow, read_image
from gpuconv.data.split import mixed_up, split

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is taken
ROUND = 32  # images for each processor between two calls of progress

File = tuple[str, int]  # path, label


def folder(path: str | os.PathLike, image_size: int | tuple[int, int] = 32,
           test_share: float = 0.2, seed: int = 0, *, channels: int = 3, limit: int | None = None,
           progress: Callable[[int, int], object] | None = None) -> tuple[Dataset, Dataset]:
    """The images of a folder, all of one size.

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
        (train, test): images (N, H, W, C) uint8, mixed.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: fewer than two classes, a class without images or with too few, or images that
            cannot be read: names the first and says how many.
        MemoryError: all of them do not fit.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        problem = NotADirectoryError if path.exists() else FileNotFoundError
        raise problem(f"{path}: no such folder")
    learn, check = _parts(path)
    classes = _classes(learn)
    files = _files(learn, classes)
    if check is None:
        labels = np.array([label for _, label in files])
        chosen = split(labels, classes, test_share, seed, f"{path}: ")
        parts = [[files[i] for i in part] for part in chosen]
    else:
        for name in _folders(check):
            if name not in classes:
                raise ValueError(f"{check / name} is a class that {learn} does not have")
        both = files, _files(check, [c if (check / c).is_dir() else "" for c in classes])
        parts = [[part[i] for i in mixed_up(np.arange(len(part)), seed, which)]
                 for which, part in enumerate(both)]
    train, test = (part[:limit] for part in parts)
    images = _read(path, train + test, image_size, channels, progress)
    labels = np.array([label for _, label in train + test], np.int32)
    n, name = len(train), path.absolute().name
    return (Dataset(images[:n], labels[:n], classes, f"{name} train"),
            Dataset(images[n:], labels[n:], classes, f"{name} test"))


# -- finding the files ---------------------------------------------------------------------------


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not _hidden(p.name))


def _parts(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The folders of classes to learn from and to be tested on; None: one has to be split."""
    names = _folders(path)
    if "train" in names and len(names) > 1 and {"train", *TEST_NAMES} >= set(names):
        return path / "train", path / next(name for name in TEST_NAMES if name in names)
    if names == ["train"]:
        return path / "train", None
    return path, None


def _classes(path: pathlib.Path) -> tuple[str, ...]:
    classes = tuple(_folders(path))
    if len(classes) < 2:
        found = f"only the folder {classes[0]}" if classes else "no folders"
        if not classes and any(p.suffix.lower() in SUFFIXES for p in path.iterdir()):
            found = "images, but no folders"
        raise ValueError(f"{path} holds {found}: wanted a folder of images for each class, at "
                         "least two")
    return classes


def _files(path: pathlib.Path, classes: Sequence[str]) -> list[File]:
    """(path, label) of all images, sorted by class and name; a class called "" is passed over."""
    found: list[File] = []
    for label, name in enumerate(classes):
        mine: list[str] = []
        for where, folders, files in os.walk(path / name) if name else ():
            folders[:] = [f for f in folders if not _hidden(f)]
            mine += [os.path.join(where, f) for f in files
                     if f.lower().endswith(SUFFIXES) and not _hidden(f)]
        if name and not mine:
            raise ValueError(f"{path / name} holds no image: nothing there ends in one of "
                             f"{' '.join(SUFFIXES)}")
        mine.sort(key=lambda file: file.replace(os.sep, "/"))  # Windows' would sort elsewhere
        found += [(file, label) for file in mine]
    return found


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
                images[i] = read_image(files[i][0], (height, width), channels)
            except (ValueError, OSError) as error:
                wrong.append((i, error))

    step = ROUND * threads.count()  # not all at once: for progress, and for Ctrl-C
    for first in range(0, len(files), step):
        last = min(first + step, len(files))
        threads.each(work, [slice(i, min(i + 4, last)) for i in range(first, last, 4)])
        if progress:
            progress(last, len(files))
    if wrong:
        i, error = min(wrong, key=lambda both: files[both[0]])
        says: object = error
        if isinstance(error, OSError) and error.strerror:  # whose own text begins with "[Errno"
            says = f"{files[i][0]}: {error.strerror}"
        raise ValueError(f"{says} ({len(wrong):,} of the {len(files):,} images in {path} cannot "
                         "be read; repair or remove them)")
    return images
