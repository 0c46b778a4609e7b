"""The lock of a run's folder: one process at a time trains in it.

The operating system's lock on the open file ``run.lock`` decides. It ends with the process, however
that ends, so that a file which a crash has left hinders nobody. The text of the file says who holds
the lock. It also guards where a shared file system keeps locks to each machine: a lock that was
left by another machine is respected until the file is deleted.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import platform
import stat
import warnings
from collections.abc import Iterator
from typing import Any

from gpuconv import reading

NAME = "run.lock"
BOOT = "/proc/sys/kernel/random/boot_id"  # Linux: the same in all containers of a machine
PLACE = 1 << 30  # Windows: the byte that is locked; what is locked there cannot be read
BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_held: set[int] = set()  # descriptors of this process


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a run's folder inside the block.

    Args:
        folder: of the run; it is there.

    Raises:
        RuntimeError: the lock is held, by another process or elsewhere in this one; or it was left
            by another machine. Says who holds it.
        OSError: the file of the lock cannot be written.
    """
    path = pathlib.Path(folder, NAME)
    descriptor = _acquire(path)
    try:
        yield
    finally:
        if descriptor in _held:  # else this is a forked child, which holds nothing
            if _is_open(path, descriptor):
                with contextlib.suppress(OSError):  # Windows deletes no open file
                    path.unlink()
            _close(descriptor)


def in_use(folder: str | os.PathLike) -> bool:
    """Return whether the text of the lock names a process of this machine that is alive.

    For a table to show: it takes no lock, so it disturbs nobody. On Windows, where it cannot be
    told without that, always False.
    """
    holder = _holder(pathlib.Path(folder, NAME))
    pid = holder["pid"] if holder and not _elsewhere(holder, _this_process()) else 0
    if os.name == "nt" or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # of another user
        return True
    except (OSError, OverflowError):
        return False
    return True


def _acquire(path: pathlib.Path) -> int:
    """Return a descriptor of the locked file, with this process in its text."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise OSError(f"{path} is no file of its own, so it cannot be locked: delete it")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
                             | getattr(os, "O_NOFOLLOW", 0), 0o666)
        _held.add(descriptor)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise OSError(f"{path} is no file of its own, so it cannot be locked: delete it")
            if not _lock(descriptor, path):
                raise RuntimeError(_in_use(path))
            if _is_open(path, descriptor):  # else its holder has just ended, and deleted it
                _take_over(descriptor, path)
                return descriptor
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)


def _lock(descriptor: int, path: pathlib.Path) -> bool:
    """Ask the operating system for the lock; return whether it was free."""
    try:
        try:
            import fcntl
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            import msvcrt
            os.lseek(descriptor, PLACE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in BUSY:
            return False
        if error.errno not in UNSUPPORTED:
            raise
        warnings.warn(f"{path}: this file system has no locks, so nothing keeps a second process "
                      "from training in this folder", stacklevel=5)
    return True


def _take_over(descriptor: int, path: pathlib.Path) -> None:
    """Write this process into a locked file, unless a process of another machine is in it."""
    mine, was = _this_process(), _holder(path)
    if was and _elsewhere(was, mine):
        raise RuntimeError(_in_use(path))
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(mine).encode())
    except OSError as error:  # the system's error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None


def _this_process() -> dict[str, Any]:
    boot = ""
    with contextlib.suppress(OSError):
        boot = pathlib.Path(BOOT).read_text(encoding="ascii").strip()
    return {"pid": os.getpid(), "host": platform.node(), "boot": boot or platform.node(),
            "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"}


def _holder(path: pathlib.Path) -> dict[str, Any] | None:
    """Return what the file says about its holder; None if it says nothing yet, or no sense."""
    try:
        with reading.open_file(path) as file:
            told = json.loads(file.read(4096))
        return told if {"pid", "host", "boot", "since"} <= told.keys() else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _elsewhere(holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Return whether the holder is a process of another machine than this one."""
    return holder["host"] != mine["host"] and holder["boot"] != mine["boot"]


def _in_use(path: pathlib.Path) -> str:
    """Return the sentence for a caller that cannot have the lock."""
    holder, mine = _holder(path), _this_process()
    if holder is None:
        return f"{path.parent} is in use by another process: one process trains a run at a time"
    this = ", this one," if (holder["pid"], holder["boot"]) == (mine["pid"], mine["boot"]) else ""
    says = (f"if that process has ended, delete {path}" if _elsewhere(holder, mine) else
            "one process trains a run at a time")
    return (f"{path.parent} is in use by process {holder['pid']}{this} on {holder['host']}, since "
            f"{holder['since']}: {says}")


def _is_open(path: pathlib.Path, descriptor: int) -> bool:
    """Return whether the name still belongs to the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _start_child() -> None:
    """Close, in a forked child, the locks of its parent: it would keep them after its parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_child)
