"""The images that a run was trained and tested on, by name and by a digest of their pixels.

A run keeps its manifest as JSON, and is measured on exactly the test images in it whatever has been
added, deleted, renamed or moved since. An image of a manifest is found

    1. by name and pixels;
    2. by pixels: it was renamed, or moved between folders. An image with the pixels of a training
       image is a training image, whatever its name;
    3. by name: its pixels have changed, and it is left out.

A digest is of the pixels that the model sees, after resizing: an image that was only stored in
another lossless format is the same image. Images of an .npz file have no names.
"""

import collections
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from gpuconv import files, reading, threads
from gpuconv.backend import to_cpu
from gpuconv.data.dataset import Dataset
from gpuconv.data.listing import normal

BYTES = 16          # of a digest
SHOWN = 5           # names in a sentence
REPAIR = "put back a copy of the file; without it only a checkpoint knows the run's images"
UNKNOWN = -1        # label of an image whose class the run does not have

Row = tuple[str, int, bytes]  # name in Unicode's form NFC or "", label, digest


def digests(images: Any) -> list[bytes]:
    """Return a hash of the pixels of each image (N, H, W, C)."""
    start = hashlib.blake2b(repr(tuple(images.shape[1:])).encode(), digest_size=BYTES)

    def work(chunk: slice) -> list[bytes]:
        found = []
        for image in np.ascontiguousarray(to_cpu(images[chunk])):
            one = start.copy()
            one.update(image)
            found.append(one.digest())
        return found

    chunks = threads.chunks(len(images), int(np.prod(images.shape[1:])))
    return [digest for chunk in threads.each(work, chunks) for digest in chunk]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


@dataclasses.dataclass(frozen=True)
class Listed:
    """The images of one set, in its order."""

    names: tuple[str, ...] | None  # below the data folder; None: they have none
    labels: tuple[int, ...]
    digests: tuple[bytes, ...]

    def rows(self) -> list[Row]:
        """Return a row of each image."""
        names = map(normal, self.names or [""] * len(self.labels))
        return list(zip(names, self.labels, self.digests, strict=True))


@dataclasses.dataclass(frozen=True)
class Differences:
    """Differences between a manifest and the images found, as names of images."""

    missing: tuple[str, ...] = ()           # test images that are not there
    changed: tuple[str, ...] = ()           # test images with other pixels, or of another class
    missing_training: tuple[str, ...] = ()
    changed_training: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()           # pixels of a training image, under another name
    new: tuple[str, ...] = ()               # in neither set

    def sentences(self) -> list[str]:
        """Return what a person has to know, with a few names."""
        return [f"{len(names):,} {many if len(names) > 1 else one}: {_few(names)}"
                for names, one, many in (
                    (self.missing, "test image of the run is missing",
                     "test images of the run are missing"),
                    (self.changed, "test image has changed since the run: with other pixels it is "
                     "left out, in another class it counts as of that", "test images have changed "
                     "since the run: those with other pixels are left out, those in another class "
                     "count as of that"),
                    (self.trained, "file holds a training image under another name, and is no test "
                     "image", "files hold training images under other names, and are no test "
                     "images"),
                    (self.new, "image is new, and left out", "images are new, and left out"),
                    (self.missing_training, "training image of the run is missing",
                     "training images of the run are missing"),
                    (self.changed_training, "training image has other pixels or another class than "
                     "in the run", "training images have other pixels or another class than in the "
                     "run")) if names]

    def as_dict(self) -> dict[str, Any]:
        """Return counts and a few names of each kind, for JSON."""
        return {kind: {"count": len(names), "names": list(names[:SHOWN])}
                for kind, names in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Division:
    """A data set divided as a manifest says."""

    train: Dataset
    test: Dataset
    differences: Differences
    own: bool  # are at least half of the manifest's images there, or half of those there its own?


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The training and the test images of a run."""

    classes: tuple[str, ...]
    train: Listed
    test: Listed

    @classmethod
    def of(cls, train: Dataset, test: Dataset) -> "Manifest":
        """Return the manifest of two sets."""
        return cls(tuple(map(str, train.classes)), *(
            Listed(None if part.names is None else tuple(part.names.tolist()),
                   tuple(to_cpu(part.labels).tolist()), tuple(digests(part.images)))
            for part in (train, test)))

    def write(self, path: str | os.PathLike) -> None:
        """Write JSON.

        Raises:
            OSError: the file cannot be written.
        """
        def values(part: Listed) -> dict[str, Any]:
            return {"names": part.names, "labels": part.labels,
                    "digests": [digest.hex() for digest in part.digests]}

        with files.atomic_write(path, "w") as file:
            json.dump({"classes": self.classes, "train": values(self.train),
                       "test": values(self.test)}, file)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Manifest":
        """Read what ``write`` wrote.

        Raises:
            OSError: there is no such file, or it is no regular file.
            MemoryError: it could take more memory than is free.
            ValueError: it is damaged, or something else; says why.
        """
        try:
            values = reading.read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {REPAIR}") from None
        try:
            if not isinstance(values, dict) or not {"classes", "train", "test"} <= values.keys():
                raise ValueError("wanted classes, train and test")
            classes = _strings(values["classes"], "classes")
            return cls(classes, _listed(values["train"], len(classes)),
                       _listed(values["test"], len(classes)))
        except ValueError as error:
            raise ValueError(f"{path}: damaged, or no list of a run's images: {error}; {REPAIR}"
                             ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all images, those of the training set first; empty if they have none."""
        return (*(self.train.names or ()), *(self.test.names or ()))

    @property
    def repeated(self) -> int:
        """Number of test images that have the pixels of a training image."""
        trained = set(self.train.digests)
        return sum(digest in trained for digest in self.test.digests)

    def trained(self, data: Dataset) -> np.ndarray:
        """Return which images have the pixels of a training image, (N,) bool."""
        trained = set(self.train.digests)
        return np.array([digest in trained for digest in digests(data.images)], bool)

    def divide(self, data: Dataset) -> Division:
        """Find the images of both sets in a data set; the results are in the manifest's order."""
        entries = [*self.train.rows(), *self.test.rows()]
        number = {normal(name): label for label, name in enumerate(self.classes)}
        theirs = [number.get(normal(str(name)), UNKNOWN) for name in data.classes]
        images = list(zip([""] * len(data) if data.names is None else map(normal, data.names),
                          [theirs[label] for label in to_cpu(data.labels).tolist()],
                          digests(data.images), strict=True))
        cut, trained = len(self.train.labels), set(self.train.digests)
        place, by_pixels, elsewhere = _pair(entries, images, cut, trained)
        lost = [entry for entry in range(len(entries)) if entry not in place]
        changed = sorted(entry for entry, image in place.items()
                         if entries[entry][1:] != images[image][1:])
        new = [image for image in sorted(set(range(len(images))) - set(place.values()))
               if images[image][2] not in trained]
        listed = [name for part in (self.train, self.test) for name in (
            part.names or [f"an image of {self.classes[label]}" for label in part.labels])]
        shown = [f"image {image}" for image in range(len(data))] \
            if data.names is None else data.names.tolist()
        of_test, of_train = (
            [tuple(sorted(listed[entry] for entry in some if (entry < cut) == training))
             for some in (lost, changed)] for training in (False, True))
        differences = Differences(*of_test, *of_train, *(
            tuple(shown[image] for image in some) for some in (elsewhere, new)))

        def part(name: str, of: range) -> Dataset:
            mine = [(entry, place[entry]) for entry in of
                    if entry in place and entries[entry][2] == images[place[entry]][2]]
            labels = [entries[entry][1] if images[image][1] == UNKNOWN else images[image][1]
                      for entry, image in mine]
            return dataclasses.replace(
                data[_run([image for _, image in mine])], name=f"{data.name} {name}",
                labels=np.array(labels, np.int32), classes=self.classes)

        return Division(part("train", range(cut)), part("test", range(cut, len(entries))),
                        differences, 0 < min(len(entries), len(images)) <= 2 * by_pixels)


def _pair(entries: Sequence[Row], images: Sequence[Row], cut: int, trained: AbstractSet[bytes]
          ) -> tuple[dict[int, int], int, list[int]]:
    """Find the image of each entry.

    Args:
        entries: of a manifest; the first ``cut`` of them are training images.
        images: of a data set.
        trained: digests of the training images.

    Returns:
        ({entry: image}; how many of these were found by pixels; the images that have the pixels of
        a training image under another name).
    """
    place: dict[int, int] = {}
    taken: set[int] = set()

    def match(of_entries: Iterable[Any], of_images: Iterable[Any]) -> None:
        """Pair entries and images with equal keys that have no partner yet; None is no key."""
        waiting: dict[Any, collections.deque[int]] = collections.defaultdict(collections.deque)
        for entry, key in enumerate(of_entries):
            if entry not in place:
                waiting[key].append(entry)
        for image, key in enumerate(of_images):
            if key is not None and image not in taken and waiting.get(key):
                place[waiting[key].popleft()] = image
                taken.add(image)

    match(entries, images)
    exact = taken.copy()
    match(((digest, entry < cut) for entry, (_, _, digest) in enumerate(entries)),
          ((digest, digest in trained) for _, _, digest in images))
    by_pixels = len(taken)
    elsewhere = [image for image, (name, _, digest) in enumerate(images)
                 if digest in trained and image not in (exact if name else taken)]
    match((name for name, _, _ in entries),
          (name if name and label != UNKNOWN and digest not in trained else None
           for name, label, digest in images))
    return place, by_pixels, elsewhere


def _run(indices: list[int]) -> slice | np.ndarray:
    """Return the indices as a slice where they follow one another: it copies nothing."""
    if indices and indices == list(range(indices[0], indices[0] + len(indices))):
        return slice(indices[0], indices[-1] + 1)
    return np.array(indices, int)


def _strings(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what}: wanted a list of strings")
    return tuple(values)


def _listed(values: Any, classes: int) -> Listed:
    """Return a set as JSON tells it, if it is one."""
    if not isinstance(values, dict) or not {"names", "labels", "digests"} <= values.keys():
        raise ValueError("wanted names, labels and digests of each set")
    names = None if values["names"] is None else _strings(values["names"], "names")
    hexadecimal, labels = _strings(values["digests"], "digests"), values["labels"]
    if not isinstance(labels, list) or not all(
            type(label) is int and 0 <= label < classes for label in labels):
        raise ValueError(f"labels: wanted whole numbers of 0..{classes - 1}")
    if len({len(labels), len(hexadecimal), len(labels if names is None else names)}) > 1:
        raise ValueError(f"{len(labels)} labels, {len(hexadecimal)} digests, "
                         f"{'no' if names is None else len(names)} names")
    if not all(map(re.compile(f"[0-9a-f]{{{2 * BYTES}}}").fullmatch, hexadecimal)):
        raise ValueError(f"digests: wanted {BYTES} bytes each")
    hashes = tuple(map(bytes.fromhex, hexadecimal))
    return Listed(names, tuple(labels), hashes)
