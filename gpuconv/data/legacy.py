"""The files that a run saw whose config.json has no ``split``: it must find the same ones again.

Such runs did not follow links to folders inside a class, and knew the folders of sets only in
small letters and without other folders beside them. New runs use ``listing``.
"""

import os
import pathlib

from gpuconv.data.images import SUFFIXES
from gpuconv.data.listing import File, Listing

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there was used


def list_by_position(path: pathlib.Path) -> Listing:
    """List the image files of a folder as before; see ``list_folder``."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    names, train, test = _folders(path), path, None
    if "train" in names and len(names) > 1 and {"train", *TEST_NAMES} >= set(names):
        train, test = path / "train", path / next(name for name in TEST_NAMES if name in names)
    elif names == ["train"]:
        train = path / "train"
    classes = tuple(_folders(train))
    if len(classes) < 2:
        raise ValueError(f"{train} holds {len(classes)} classes, wanted at least two")
    if test and (strange := set(_folders(test)) - set(classes)):
        raise ValueError(f"{test / min(strange)} is a class that {train} does not have")
    return Listing(classes, _files(path, train, classes), _files(path, test, classes) if test
                   else None)


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not _hidden(p.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _files(root: pathlib.Path, top: pathlib.Path, classes: tuple[str, ...]) -> list[File]:
    found: list[File] = []
    for label, name in enumerate(classes):
        mine: list[str] = []
        for where, folders, files in os.walk(top / name):
            folders[:] = [f for f in folders if not _hidden(f)]
            mine += [os.path.join(where, f) for f in files
                     if f.lower().endswith(SUFFIXES) and not _hidden(f)]
        mine.sort(key=lambda file: file.replace(os.sep, "/"))
        found += [File(file, os.path.relpath(file, root).replace(os.sep, "/"), "", label, (0, 0),
                       False) for file in mine]
    return found
