"""CIFAR-10: 50,000 + 10,000 colour photographs of 32x32 pixels in ten classes.

Read from what the authors publish, packed or unpacked:

    binary version   six .bin files of records: 1 byte label, then 1024 bytes each of R, G and B
    Python version   six pickles of {b"data": (10000, 3072) uint8, b"labels": list}

An archive is read member by member, in memory; nothing is ever extracted (``tar``). A pickle can
call whatever it names, so these are read by an unpickler that knows three names, gives each a
stand-in that only remembers its arguments, and refuses all others (``unpickle``). Limits: a file
has at most BIGGEST bytes, an archive unpacks to at most ``tar.UNPACKED``.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, chapter 3;
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

import numpy as np

from gpuconv import reading, threads
from gpuconv.checks import check_path
from gpuconv.data.dataset import Dataset
from gpuconv.data.download import download as fetch
from gpuconv.data.images import RefusedError
from gpuconv.data.tar import damages, members, unpacked
from gpuconv.data.unpickle import unpickle
from gpuconv.free_memory import check_free_memory
from gpuconv.messages import program

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32                       # pixels, height and width
RECORD = 1 + 3 * SIZE * SIZE    # bytes: label, R, G, B
URL = "https://www.cs.toronto.edu/~kriz/"
BIGGEST = 1 << 26               # bytes that a file may have at all; the official ones have 2**24.9


@dataclasses.dataclass(frozen=True)
class Version:
    """One of the two forms in which the set is published."""

    folder: str
    archive: str
    archive_bytes: int
    archive_sha256: str
    md5: dict[str, str]  # file: hash; the test batch is the last


BINARY = Version(
    "cifar-10-batches-bin", "cifar-10-binary.tar.gz", 170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"})
PYTHON = Version(
    "cifar-10-batches-py", "cifar-10-python.tar.gz", 170_498_071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e"})


def cifar10(root: str | os.PathLike | None = None, download: bool = False, *, verify: bool = True,
            progress: Callable[[int, int], object] | None = None) -> tuple[Dataset, Dataset]:
    """Return the training set and the test set of CIFAR-10.

    Args:
        root: folder that holds the files of either version, or its archive, or the folder
            ``cifar-10-batches-bin`` or ``-py``; or the path of an archive. Default: looks in
            ``data``, then in this user's cache folder.
        download: fetch the binary version (170 MB) if it is not there: into root, by default into
            the cache folder.
        verify: demand the official bytes, every file's length and hash. False also reads sets in
            the same layout, with any number of pictures.
        progress: called with (bytes so far, bytes in all) during a download.

    Returns:
        (train, test): images (50000, 32, 32, 3) and (10000, 32, 32, 3) uint8.

    Raises:
        FileNotFoundError: not there; says where it looked, and how to get it.
        ValueError: a file is damaged, or not what it should be; says which and why.
        OSError: the download failed.
    """
    places = cifar10_places() if root is None else [
        pathlib.Path(check_path("cifar10", "root", root))]
    found = _search(root)
    if found is None and download:
        target = places[-1] / BINARY.archive
        fetch(URL + BINARY.archive, target, sha256=BINARY.archive_sha256,
              size=BINARY.archive_bytes, progress=progress)
        found = BINARY, target
    if found is None:
        looked = " and ".join(str(place.absolute()) for place in places)
        raise FileNotFoundError(
            f"cifar10: found no {BINARY.archive}, {PYTHON.archive} or their files in {looked}. "
            f"Either fetch it: {program()} data cifar10 --download, or cifar10(download=True). Or "
            f"by hand: get {URL}{BINARY.archive} ({BINARY.archive_bytes:,} bytes, SHA-256 "
            f"{BINARY.archive_sha256}) and put it into one of these folders, or pass its path")

    version, place = found
    blobs = (_from_archive if place.is_file() else _from_folder)(version, place, verify)
    parts = [_parse(version, place / name, blobs[name], verify) for name in version.md5]
    return (_dataset(parts[:-1], "CIFAR-10 train"), _dataset(parts[-1:], "CIFAR-10 test"))


# -- finding and reading the six files ---------------------------------------------------------


def cifar10_places() -> list[pathlib.Path]:
    """Return the default places of ``cifar10``: ``data``, then the user's cache folder."""
    import platformdirs
    return [pathlib.Path("data"), pathlib.Path(platformdirs.user_cache_dir("gpuconv"))]


def cifar10_path(root: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Return the folder or archive that ``cifar10(root)`` reads; None if there is none."""
    found = _search(root)
    return found and found[1]


def _search(root: str | os.PathLike | None) -> tuple[Version, pathlib.Path] | None:
    """Return version and path of the files at root; by default in the usual folders."""
    if root is not None:
        return _find(pathlib.Path(root))
    return next(filter(None, map(_find, filter(pathlib.Path.is_dir, cifar10_places()))), None)


def _find(place: pathlib.Path) -> tuple[Version, pathlib.Path] | None:
    """Return the version, and the archive or the folder of its files; None if there is none."""
    if os.path.lexists(place) and not place.is_dir():
        return _version_of(place), place
    for folder in (place, place / BINARY.folder, place / PYTHON.folder):
        for version in (BINARY, PYTHON):
            if any((folder / name).is_file() for name in version.md5):
                return version, folder
    for version in (BINARY, PYTHON):
        if (place / version.archive).is_file():
            return version, place / version.archive
    return None


def _version_of(archive: pathlib.Path) -> Version:
    """Return the version of an archive by its members: the file may have been renamed."""
    for name in _members(archive, {*BINARY.md5, *PYTHON.md5}, read=False):
        return BINARY if name in BINARY.md5 else PYTHON
    raise ValueError(f"{archive}: an archive, but with no file of CIFAR-10 in it")


def _from_folder(version: Version, folder: pathlib.Path, verify: bool) -> dict[str, bytes]:
    blobs = {}
    for name in version.md5:
        path = folder / name
        try:
            with reading.open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                _check_length(path, size)
                blobs[name] = file.read(size)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing, other files of CIFAR-10 are there"
                                    ) from None
    return blobs


def _from_archive(version: Version, archive: pathlib.Path, verify: bool) -> dict[str, bytes]:
    if verify and archive.name == version.archive:
        size = archive.stat().st_size
        if size != version.archive_bytes:
            raise ValueError(f"{archive}: {size} bytes, wanted {version.archive_bytes}: "
                             "an incomplete download?")
        found = reading.digest(archive)
        if found != version.archive_sha256:
            raise ValueError(f"{archive}: SHA-256 {found}, wanted {version.archive_sha256}")
    blobs = _members(archive, set(version.md5))
    for name in version.md5:
        if name not in blobs:
            raise ValueError(f"{archive}: holds no {name}")
    return blobs


def _members(archive: pathlib.Path, wanted: set[str], read: bool = True) -> dict[str, bytes]:
    """Return the wanted files by name; without ``read``, only the first one, with no content.

    A member counts if it is called <file> or <official folder>/<file>. All others are passed over
    unread, so absolute paths and ".." lead nowhere: no path of the archive ever meets the disk.
    """
    paths = {f"{folder}{name}": name for name in wanted
             for folder in ("", f"{BINARY.folder}/", f"{PYTHON.folder}/")}
    blobs: dict[str, bytes] = {}
    with reading.open_file(archive) as file:
        try:
            packed = unpacked(file)
            for info, plain in members(packed, paths):
                name = paths[info.name.removeprefix("./")]
                if not plain:
                    raise RefusedError(f"{archive}: {info.name} is a link or a device, "
                                       "wanted a plain file")
                if name in blobs:
                    raise RefusedError(f"{archive}: holds {name} twice")
                _check_length(archive / name, info.size)
                blobs[name] = packed.read(info.size) if read else b""
                if not read:
                    break
                if len(blobs[name]) < info.size:
                    raise EOFError(f"it ends inside {name}")
        except damages() as error:
            if isinstance(error, RefusedError) or isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(f"{archive}: damaged, or no archive: {error}") from None
    return blobs


def _check_length(path: pathlib.Path, size: int) -> None:
    if size > BIGGEST:
        raise RefusedError(f"{path}: {size} bytes, no file of CIFAR-10 has more than {BIGGEST}")
    check_free_memory(size, str(path))


# -- from bytes to arrays ----------------------------------------------------------------------


def _parse(version: Version, path: pathlib.Path, blob: bytes,
           verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels (n,), planes (n, 3, 32, 32)) uint8 of one file."""
    if verify and version is PYTHON:  # before anything reads it
        _check_hash(version, path, blob)
    if version is BINARY:
        if verify and len(blob) != 10_000 * RECORD:
            raise ValueError(f"{path}: {len(blob)} bytes, wanted {10_000 * RECORD}: truncated?")
        if len(blob) % RECORD:
            raise ValueError(f"{path}: {len(blob)} bytes are not whole records of {RECORD} bytes: "
                             "truncated?")
        records = np.frombuffer(blob, np.uint8).reshape(-1, RECORD)
        labels, planes = records[:, 0], records[:, 1:]
    else:
        labels, planes = _parse_pickle(path, blob)
    if labels.size and labels.max() >= len(CLASSES):
        record = int(np.argmax(labels >= len(CLASSES)))
        raise ValueError(f"{path}: record {record} has label {labels[record]}, "
                         f"wanted 0..{len(CLASSES) - 1}")
    if verify and version is BINARY:  # after what says more about the damage
        _check_hash(version, path, blob)
    return labels, planes.reshape(-1, 3, SIZE, SIZE)


def _check_hash(version: Version, path: pathlib.Path, blob: bytes) -> None:
    found = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    if found != version.md5[path.name]:
        raise ValueError(f"{path}: MD5 {found}, wanted {version.md5[path.name]}: damaged, or "
                         "not the official file (verify=False reads it)")


def _dataset(parts: list[tuple[np.ndarray, np.ndarray]], name: str) -> Dataset:
    labels = np.concatenate([labels for labels, _ in parts]).astype(np.int32)
    check_free_memory(len(labels) * RECORD, f"{name}: {len(labels):,} images")
    images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    first = 0
    for _, planes in parts:
        out = images[first : first + len(planes)]

        def interleave(chunk: slice, planes: np.ndarray = planes, out: np.ndarray = out) -> None:
            for c in range(3):
                out[chunk, :, :, c] = planes[chunk, c]

        threads.each(interleave, threads.chunks(len(planes), 2 * RECORD))
        first += len(planes)
    return Dataset(images, labels, CLASSES, name)


def _parse_pickle(path: pathlib.Path, blob: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = unpickle(path, blob)
        labels, state = batch[b"labels"], batch[b"data"].state
        _, (n, row), dtype, fortran, raw = state
        if type(n) is not int or type(row) is not int:  # whose text may be endless
            raise TypeError("data of a shape that is none")
        sound = (dtype.arguments[0] in ("u1", b"u1") and row == RECORD - 1
                 and isinstance(raw, bytes) and isinstance(labels, list)
                 and len(raw) == n * row and len(labels) == n
                 and all(type(label) is int and 0 <= label < 256 for label in labels))
        if not sound:
            raise ValueError(f"data of shape {n, row}, {len(labels)} labels")
        planes = np.frombuffer(raw, np.uint8).reshape(n, row, order="F" if fortran else "C")
        return np.array(labels, np.uint8), planes
    except RefusedError:
        raise
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise ValueError(f"{path}: no batch of CIFAR-10's Python version: "
                         f"{type(error).__name__}: {str(error)[:200]}") from None
