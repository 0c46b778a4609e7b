"""The image files below a folder, by whatever links they are reached.

``listing`` says which of them belong to which set and class.
"""

import contextlib
import heapq
import os
import pathlib
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpuconv.data.images import FOREIGN, SUFFIXES, looks_like_image, suffixes

Identity = tuple[int, int]  # of a file, under whatever name: device and inode


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


def subfolders(path: pathlib.Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return [entry.name for entry, status in _entries(str(path)) if stat.S_ISDIR(status.st_mode)]


def _is_link(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a link, or Windows' kind of link to a folder."""
    junction: Callable[[], bool] | None = getattr(entry, "is_junction", None)  # from Python 3.12 on
    return entry.is_symlink() or bool(junction and junction())


class Walked(NamedTuple):
    """Files in a folder."""

    images: list[tuple[str, str, Identity, bool]]  # (path, name below the folder, identity, linked)
    unread: list[str]  # names of images of kinds that cannot be read, or without a suffix


def _is_unread(entry: os.DirEntry[str], status: os.stat_result) -> bool:
    """Tell whether a file without a suffix that can be read is an image nevertheless."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix or not stat.S_ISREG(status.st_mode):
        return suffix in FOREIGN or suffix in SUFFIXES
    with contextlib.suppress(OSError):
        return looks_like_image(entry.path)
    return False


def walk(root: pathlib.Path, top: pathlib.Path) -> Walked:
    """Find each image file in a folder, once.

    Args:
        root: folder of the data; no link to it or above it is followed.
        top: the folder, in ``root``.

    Raises:
        ValueError: a link to a folder leads nowhere, or ``top`` is a link to a folder it lies in.
    """
    real = os.path.realpath(top)
    if _holds(real, [os.path.realpath(root)]):
        raise ValueError(f"{top} is a link to a folder that it lies in; remove it")
    todo, links = [(str(top), real, "", False)], list[tuple[str, str]]()
    folders, found = set[str](), list[tuple[bool, str, str, Identity, bool]]()
    unread, readable = list[str](), suffixes()
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
            elif entry.name.lower().endswith(readable):  # a FIFO, too: reading it says what it is
                by_link = linked or entry.is_symlink()
                found.append((by_link, name, entry.path, (status.st_dev, status.st_ino),
                              by_link or status.st_nlink > 1))
            elif _is_unread(entry, status):
                unread.append(name)
    once: dict[Identity, str] = {}
    for _, name, _, identity, _ in sorted(found):
        once.setdefault(identity, name)
    return Walked([(path, name, identity, shared) for _, name, path, identity, shared in found
                   if not shared or once[identity] == name], sorted(unread))


def _holds(folder: str, places: Sequence[str]) -> bool:
    """Tell whether one of the places lies in the folder, or is the folder itself."""
    return any(place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)
               for place in places)
