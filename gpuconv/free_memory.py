"""Free memory, as reported by the operating system."""

import contextlib
import re


def free_memory() -> int | None:
    """Return the bytes that this process can use without swapping; None if unknown.

    The least of what is left in the machine, in the control groups that it is part of (a container,
    say; cached files count as free), and under ``ulimit -v``.

    >>> free_memory() is None or free_memory() >= 0
    True
    """
    found = []
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        available = re.search(r"MemAvailable: +(\d+)", _read("/proc/meminfo"))
        found.append(1024 * int(available[1]))  # type: ignore[index]
        for _, controllers, path in re.findall(r"(\d+):(.*):(.*)", _read("/proc/self/cgroup")):
            if controllers == "":
                found += _free_in_groups(f"/sys/fs/cgroup{path}", "max", "current", "")
            elif controllers == "memory":  # version 1
                found += _free_in_groups(f"/sys/fs/cgroup/memory{path}", "limit_in_bytes",
                                         "usage_in_bytes", "total_")
    with contextlib.suppress(OSError, ImportError):  # what ulimit -v says
        import resource
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(_read("/proc/self/statm").split()[0])
            found.append(limit - pages * resource.getpagesize())
    return max(0, min(found)) if found else None


def check_free_memory(size: int, what: str) -> None:
    """Refuse what does not fit into the memory that is free, before any of it is taken.

    Args:
        size: how much it will take, bytes.
        what: what takes it, for the message: "FILE: member x".

    Raises:
        MemoryError: it is more than is free.

    >>> check_free_memory(10**18, "big.npz: images")
    Traceback (most recent call last):
    MemoryError: big.npz: images need 1000000000.00 GB of memory, ... GB are free
    """
    free = free_memory()
    if free is not None and size > free:
        raise MemoryError(f"{what} need {size / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are "
                          "free")


def _free_in_groups(path: str, limit: str, usage: str, total: str) -> list[int]:
    """Return the free memory of a control group and of each parent; cached files count as free."""
    found = []
    while path.startswith("/sys/fs/cgroup"):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # "max" is no limit
            cached = re.search(rf"^{total}inactive_file (\d+)", _read(f"{path}/memory.stat"), re.M)
            found.append(int(_read(f"{path}/memory.{limit}")) - int(_read(f"{path}/memory.{usage}"))
                         + int(cached[1]))  # type: ignore[index]
        path = path.rpartition("/")[0]
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
