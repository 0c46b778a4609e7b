"""The image files of a folder, by set and class.

    pets/cat/1.jpg                      pets/train/cat/1.jpg
    pets/cat/from-anna/2.png     or     pets/train/dog/2.jpg
    pets/dog/1.jpg                      pets/test/cat/3.jpg

A set's folder is named as in SETS, in any letter case. Where there are several to test on, ``test``
(or ``testing``) is used and ``val`` (``valid``, ``validation``) is not. Whatever else could be
meant is an error: a set's folder beside a folder of images with another name, two folders for one
set, a test folder without a training folder.

Hidden files, ``__MACOSX`` and files without a suffix of an image are passed over. Links are
followed; a link that leads nowhere is an error, and a link to a folder that it lies in is passed
over. A file that a class reaches by several paths counts once there, under the path without
links, else under the first by name. Two classes may share a file; a training folder and a test
folder may not.
"""

import dataclasses
import heapq
import os
import pathlib
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gpuconv.data.images import SUFFIXES

SETS = {"train": "train", "training": "train", "test": "test", "testing": "test",
        "val": "validation", "valid": "validation", "validation": "validation"}

Identity = tuple[int, int]  # of a file, under whatever name: device and inode


class File(NamedTuple):
    """An image file."""

    path: str
    name: str    # below the data folder, with "/" as separator
    item: str    # below the folder of its class
    label: int
    identity: Identity
    shared: bool  # reached by a link, or a file with several names


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a folder, sorted by class and name."""

    classes: tuple[str, ...]
    train: list[File]
    test: list[File] | None  # None: there is no test folder, so ``train`` has to be split


def list_folder(path: pathlib.Path, complete: bool = True) -> Listing:
    """List the image files of a folder.

    Args:
        path: holds a folder of images for each class, or folders of sets that do.
        complete: refuse a class without images, and a single class?

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it is not clear what the folders are, or images are missing; says what was found
            and what to do.
    """
    if not path.is_dir():
        problem = NotADirectoryError if path.exists() else FileNotFoundError
        raise problem(f"{path}: no such folder")
    train, test, _ = find_sets(path)
    top = path if train is None else path / train
    classes = _classes(top, 2 if complete else 1)
    files = _files(path, top, classes, range(len(classes)), complete)
    if test is None:
        return Listing(classes, files, None)
    there = _subfolders(path / test)
    for name in there:
        if name not in classes:
            raise ValueError(_unknown(path / test / name, top, classes))
    tested = _files(path, path / test, there, [classes.index(name) for name in there], complete)
    known = {file.identity: file for file in files}
    for file in tested:
        twin = known.get(file.identity)
        if twin and (file.shared or twin.shared
                     or os.path.realpath(file.path) == os.path.realpath(twin.path)):
            raise ValueError(f"{file.path} is the same file as {twin.path}: a training image "
                             "cannot be a test image; remove one of the two")
    return Listing(classes, files, tested)


def normal(name: str) -> str:
    """Return a file's name in Unicode's form NFC: systems differ in how they store accents."""
    return unicodedata.normalize("NFC", name)


# -- which folders are sets ------------------------------------------------------------------------


def find_sets(path: pathlib.Path) -> tuple[str | None, str | None, str | None]:
    """Return the names of the training folder, the test folder and a test folder that is not used.

    Each is None if there is none.

    Raises:
        ValueError: it is not clear which folders are sets, and which are classes.
    """
    names = _subfolders(path)
    found: dict[str, str] = {}
    for name in names:
        role = SETS.get(name.lower())
        if role and role in found:
            raise ValueError(f"{path} holds {found[role]}/ and {name}/, two names of the {role} "
                             "set: wanted one; join them, or move one elsewhere")
        if role:
            found[role] = name
    if not found:
        return None, None, None
    others = [name for name in names if name not in found.values() and
              _walk(path, path / name)]
    if others or "train" not in found:
        sets = _together([found[role] for role in ("train", "test", "validation") if role in found])
        beside = f"beside {_together(others)}" if others else "but no train/"
        put = f"move {_together(others)} elsewhere" if others else "put training images into train/"
        raise ValueError(f"{path} holds {sets} {beside}: unclear whether these are sets or "
                         f"classes. If they are sets, {put}; if classes, give {sets} another name")
    test, val = found.get("test"), found.get("validation")
    return found["train"], test or val, val if test else None


def unused_set(path: str | os.PathLike) -> str | None:
    """Return the name of the folder that could be tested on, but is not because of another."""
    return find_sets(pathlib.Path(path))[2]


def _together(folders: Sequence[str]) -> str:
    """Return a few names of folders as part of a sentence."""
    return " and ".join(f"{name}/" for name in folders[:4]) + " and others" * (len(folders) > 4)


def _both_sets(names: Iterable[str]) -> list[str]:
    """Return the names of sets among these, if there are both a training and a test set."""
    roles = {name: SETS[name.lower()] for name in names if name.lower() in SETS}
    both = "train" in roles.values() and len(set(roles.values())) > 1
    return sorted(roles, key=lambda name: roles[name] != "train") if both else []


def _classes(path: pathlib.Path, least: int) -> tuple[str, ...]:
    classes = tuple(_subfolders(path))
    if len(classes) < least:
        found = f"only the folder {classes[0]}" if classes else "no folders"
        if not classes and any(p.suffix.lower() in SUFFIXES for p in path.iterdir()):
            found = "images, but no folders"
        raise ValueError(f"{path} holds {found}: wanted a folder of images for each class, at "
                         "least two")
    return classes


def _unknown(path: pathlib.Path, top: pathlib.Path, classes: Sequence[str]) -> str:
    """Return the message about a class of the test set that the training set does not have."""
    def plain(name: str) -> str:
        return normal(name).casefold()

    alike = [name for name in classes if plain(name) == plain(path.name)]
    if alike:
        return (f"{path} and {top / alike[0]} are spelt differently: wanted one name for a class; "
                "rename one of the two")
    return f"{path} is a class that {top} does not have"


# -- walking through folders -----------------------------------------------------------------------


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _entries(path: str) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    """Return what lies in a folder, sorted by name, without what is hidden."""
    with os.scandir(path) as found:
        entries = sorted((e for e in found if not _hidden(e.name)), key=lambda e: e.name)
    both = []
    for entry in entries:
        try:
            both.append((entry, os.stat(entry.path)))  # Windows: an entry's own has no inode
        except OSError as error:
            if entry.name.lower().endswith(SUFFIXES):  # is counted with all that cannot be read
                both.append((entry, os.lstat(entry.path)))
                continue
            what = "a link that leads nowhere" if entry.is_symlink() else "cannot be read"
            raise ValueError(f"{entry.path}: {what} ({error.strerror}); repair or remove "
                             "it") from None
    return both


def _subfolders(path: pathlib.Path) -> list[str]:
    return [entry.name for entry, status in _entries(str(path)) if stat.S_ISDIR(status.st_mode)]


def _is_link(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a link, or Windows' kind of link to a folder."""
    junction: Callable[[], bool] | None = getattr(entry, "is_junction", None)  # from Python 3.12 on
    return entry.is_symlink() or bool(junction and junction())


def _walk(root: pathlib.Path, top: pathlib.Path) -> list[tuple[str, str, Identity, bool]]:
    """Return (path, name below top, identity, linked) of each image file in a folder, once."""
    real = os.path.realpath(top)
    if _holds(real, [os.path.realpath(root)]):
        raise ValueError(f"{top} is a link to a folder that it lies in; remove it")
    todo, links = [(str(top), real, "", False)], list[tuple[str, str]]()
    folders, found = set[str](), list[tuple[bool, str, str, Identity, bool]]()
    while todo or links:
        if not todo:  # all that is reached without another link was seen
            name, path = heapq.heappop(links)
            target, home = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
            if target not in folders and not _holds(target, [os.path.realpath(root), real, home]):
                todo.append((path, target, name + "/", True))
            continue
        folder, here, below, linked = todo.pop()
        folders.add(here)
        for entry, status in _entries(folder):
            name, inside = below + entry.name, os.path.join(here, entry.name)
            if stat.S_ISDIR(status.st_mode):
                if _is_link(entry):
                    heapq.heappush(links, (name, entry.path))
                elif inside not in folders:
                    todo.append((entry.path, inside, name + "/", linked))
            elif entry.name.lower().endswith(SUFFIXES):
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                    raise ValueError(f"{entry.path}: no regular file; remove it")
                by_link = linked or entry.is_symlink()
                found.append((by_link, name, entry.path, (status.st_dev, status.st_ino),
                              by_link or status.st_nlink > 1))
    once: dict[Identity, str] = {}
    for _, name, _, identity, _ in sorted(found):
        once.setdefault(identity, name)
    return [(path, name, identity, shared) for _, name, path, identity, shared in found
            if not shared or once[identity] == name]


def _holds(folder: str, places: Sequence[str]) -> bool:
    """Tell whether one of the places lies in the folder, or is the folder itself."""
    return any(place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)
               for place in places)


def _files(root: pathlib.Path, top: pathlib.Path, classes: Sequence[str], labels: Sequence[int],
           complete: bool) -> list[File]:
    """Return the files of each class, sorted by class and name."""
    if sets := _both_sets(classes):
        raise ValueError(f"{top} holds {_together(sets)} beside or as "
                         f"classes: if these are sets, give {top} as the data")
    found: list[File] = []
    for name, label in zip(classes, labels, strict=True):
        walked = _walk(root, top / name)
        inside = {item.split("/")[0]: None for _, item, _, _ in walked if "/" in item}
        if sets := _both_sets(inside):
            raise ValueError(f"{top / name} holds {_together(sets)}: wanted "
                             f"the sets above the classes, {top / sets[0] / name}")
        if complete and not walked:
            raise ValueError(f"{top / name} holds no image: nothing there ends in one of "
                             f"{' '.join(SUFFIXES)}")
        below = name if top == root else f"{top.name}/{name}"
        found += sorted((File(path, f"{below}/{item}", item, label, identity, shared)
                         for path, item, identity, shared in walked), key=lambda file: file.item)
    return found
