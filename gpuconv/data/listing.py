"""The image files of a folder, by set and class.

    pets/cat/1.jpg                      pets/train/cat/1.jpg
    pets/cat/from-anna/2.png     or     pets/train/dog/2.jpg
    pets/dog/1.jpg                      pets/test/cat/3.jpg

A set's folder is named as in SETS, in any letter case. Where there are several to test on, ``test``
(or ``testing``) is used and ``val`` (``valid``, ``validation``) is not. Whatever else could be
meant is an error: a set's folder beside a folder of images with another name, two folders for one
set, a test folder without a training folder.

Hidden files, ``__MACOSX`` and files without a suffix of an image are passed over; images of kinds
that cannot be read, and images without a suffix, are listed apart. A folder without images is no
class. Links are followed; a link to a folder that is gone is an error, and a link to a folder that
it lies in is passed over. A file that a class reaches by several paths counts once there, under the
path without links, else under the first by name. Two classes may share a file; a training folder
and a test folder may not.
"""

import dataclasses
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gpuconv.data.images import SUFFIXES, suffixes
from gpuconv.data.walk import Identity, Walked, subfolders, walk

SETS = {"train": "train", "training": "train", "test": "test", "testing": "test",
        "val": "validation", "valid": "validation", "validation": "validation"}
AROUND = r"(data)?set|data|images?|imgs?|photos?|pictures?|samples?|folder|split|seg|[^a-z]"


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
    unread: tuple[str, ...] = ()  # names of images of kinds that cannot be read, or without suffix
    empty: tuple[str, ...] = ()   # names of folders that are no classes, for they hold no image


def list_folder(path: pathlib.Path, complete: bool = True) -> Listing:
    """List the image files of a folder.

    Args:
        path: holds a folder of images for each class, or folders of sets that do.
        complete: leave out classes without images, and refuse a single class?

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
    names = _classes(top, 2 if complete else 1)
    if complete and train is None and (sets := _both_sets(names, _plain)):
        raise ValueError(f"{path} holds {_together(sets)}, which look like sets, not classes: if "
                         "they are sets, call them train/ and test/; if classes, give them other "
                         "names")
    walked = _walk_classes(path, top, names, complete)
    empty = [name for name in names if complete and not walked[name].images]
    classes = tuple(name for name in names if name not in empty)
    if len(classes) < 2 and empty:
        raise ValueError(_no_image(top / empty[0]))
    files = _files(path, top, classes, walked)
    unread, bare = _unread(path, top, walked), [_below(path, top, name) for name in empty]
    if test is None:
        return Listing(classes, files, None, unread, tuple(bare))
    there = subfolders(path / test)
    for name in there:
        if name not in names:
            raise ValueError(_unknown(path / test / name, top, classes))
    walked = _walk_classes(path, path / test, there, complete)
    for name in there:
        if name in empty and walked[name].images:
            raise ValueError(f"{top / name} holds no image, and {path / test / name} does: wanted "
                             "training images of each class")
        if complete and not walked[name].images:
            bare.append(_below(path, path / test, name))
    tested = _files(path, path / test, classes, walked)
    if complete and not tested:
        raise ValueError(_no_image(path / bare[-1] if there else path / test))
    known = {file.identity: file for file in files}
    for file in tested:
        twin = known.get(file.identity)
        if twin and (file.shared or twin.shared
                     or os.path.realpath(file.path) == os.path.realpath(twin.path)):
            raise ValueError(f"{file.path} is the same file as {twin.path}: a training image "
                             "cannot be a test image; remove one of the two")
    unread += _unread(path, path / test, walked)
    return Listing(classes, files, tested, unread, tuple(bare))


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
    names = subfolders(path)
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
              walk(path, path / name).images]
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


def _plain(name: str) -> str:
    """Return a folder's name without the words around that of a set: train of "Train_Images"."""
    return re.sub(AROUND, "", name.lower())


def _both_sets(names: Iterable[str], plain: Callable[[str], str] = str.lower) -> list[str]:
    """Return the names of sets among these, if there are both a training and a test set."""
    roles = {name: SETS[plain(name)] for name in names if plain(name) in SETS}
    both = "train" in roles.values() and len(set(roles.values())) > 1
    return sorted(roles, key=lambda name: roles[name] != "train") if both else []


def _classes(path: pathlib.Path, least: int) -> tuple[str, ...]:
    classes = tuple(subfolders(path))
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


def _walk_classes(root: pathlib.Path, top: pathlib.Path, classes: Sequence[str],
                  complete: bool) -> dict[str, Walked]:
    """Return what is in the folder of each class."""
    if sets := _both_sets(classes):
        raise ValueError(f"{top} holds {_together(sets)} beside or as "
                         f"classes: if these are sets, give {top} as the data")
    found = {}
    for name in classes:
        images, unread = found[name] = walk(root, top / name)
        inside = {item.split("/")[0]: None for _, item, _, _ in images if "/" in item}
        if sets := _both_sets(inside):
            raise ValueError(f"{top / name} holds {_together(sets)}: wanted "
                             f"the sets above the classes, {top / sets[0] / name}")
        if complete and unread and not images:
            raise ValueError(f"{top / name} holds no image that can be read, but {len(unread):,} "
                             f"of other kinds or without a suffix ({few(unread)}): convert them "
                             "to JPEG or PNG")
    return found


def _files(root: pathlib.Path, top: pathlib.Path, classes: Sequence[str],
           walked: dict[str, Walked]) -> list[File]:
    """Return the files of each class, sorted by class and name."""
    found: list[File] = []
    for label, name in enumerate(classes):
        if name in walked:
            below = _below(root, top, name)
            found += sorted((File(path, f"{below}/{item}", item, label, identity, shared)
                             for path, item, identity, shared in walked[name].images),
                            key=lambda file: file.item)
    return found


def _unread(root: pathlib.Path, top: pathlib.Path, walked: dict[str, Walked]) -> tuple[str, ...]:
    return tuple(f"{_below(root, top, name)}/{item}" for name, (_, unread) in walked.items()
                 for item in unread)


def _below(root: pathlib.Path, top: pathlib.Path, name: str) -> str:
    return name if top == root else f"{top.name}/{name}"


def _no_image(path: pathlib.Path) -> str:
    return f"{path} holds no image: nothing there ends in one of {' '.join(suffixes())}"


def few(names: Sequence[str]) -> str:
    """Return a few of the names as part of a sentence."""
    rest = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
