"""Verified downloads that resume where they broke off.

What arrives is kept beside the target as ``<name>.part``. A later try asks the server for the rest
only (HTTP Range); a server that cannot do that sends the whole again. The size and the SHA-256 are
those of the finished file as it lies on the disk, and only then does it take its name. Whatever was
in the partial file, the result is the right file or an error that says what to do.

Source: RFC 9110, section 14.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import IO, Any

from gpuconv import files, reading

PATIENCE = 5     # seconds that a server may be silent
TRIES = 3        # in a row that bring nothing new; then it gives up
BLOCK = 1 << 20  # bytes

Progress = Callable[[int, int], object]


class BrokenError(OSError):
    """A transfer ended too early: another try may bring the rest."""


def download(url: str, path: str | os.PathLike, *, sha256: str, size: int,
             progress: Progress | None = None) -> None:
    """Fetch a file, and keep it only if it is the one that was expected.

    Args:
        url: http, https or file.
        path: where to; its folder is made. What stands there is replaced only by a verified file.
        sha256: expected hash, in hex.
        size: expected length, bytes; nothing beyond it is read.
        progress: called with (bytes so far, size), at first with what an earlier try left.

    Raises:
        OSError: the server cannot be reached, refuses, is silent for five seconds or breaks off
            again and again; or the disk is full. What came so far waits in ``<name>.part``.
        ValueError: the server has a file of another length or another hash.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.check_writable(path)
    part = path.with_name(f"{path.name}.part")
    with contextlib.suppress(FileNotFoundError), reading.open_file(part):
        pass  # opening a FIFO to append would wait for ever
    by_hand = (f"by hand: get {url} ({size:,} bytes, SHA-256 {sha256}) and put it at "
               f"{path.absolute()}")
    try:
        with open(part, "a+b") as file:
            _lock(file, part)
            _complete(file, url, sha256, size, progress)
        os.replace(part, path)
    except BaseException as error:
        have = part.stat().st_size if part.exists() else 0
        if not have:
            part.unlink(missing_ok=True)
        if isinstance(error, ValueError):
            raise ValueError(f"download: {error}; {by_hand}") from None
        if isinstance(error, OSError):
            kept = (f"; {have:,} of {size:,} bytes wait in {part}, try again to go on" if have
                    else "")
            failure = OSError(f"download: {url}: {error.strerror or error}{kept}; {by_hand}")
            failure.errno = error.errno
            raise failure from error
        raise
    files.sync_folder(path.parent)


def _complete(file: IO[bytes], url: str, sha256: str, size: int,
              progress: Progress | None) -> None:
    """Download the rest of a file, and check the result."""
    fresh, idle = False, 0  # all of it is from this call? tries in a row that brought nothing new
    while True:
        before = _length(file)
        if before > size:
            before = file.truncate(0)
        fresh = fresh or not before
        try:
            if before < size:
                _fetch(file, url, size, progress)
        except BrokenError as error:
            idle = 0 if _length(file) > before else idle + 1
            if idle == TRIES or (idle and isinstance(error.__cause__, TimeoutError)):
                raise
            continue
        os.fsync(file.fileno())
        found = reading.digest(file.name)
        if found == sha256:
            return
        file.truncate(0)
        if fresh:
            raise ValueError(f"{url} has SHA-256 {found}, wanted {sha256}")


def _fetch(file: IO[bytes], url: str, size: int, progress: Progress | None) -> None:
    """Append what is missing.

    Raises:
        BrokenError: not all came. An empty file is left where it should begin from 0 again.
        ValueError: the server has something else.
    """
    import http.client  # slow to import, and seldom used
    have = _length(file)
    try:
        with contextlib.closing(_ask(url, have)) as answer:
            first, total = _offered(answer)
            if total not in (None, size):
                raise ValueError(f"{url} is {total} bytes long, wanted {size}")
            if first != have:
                have = file.truncate(0)
                if first:
                    raise BrokenError("the server sent another part of the file than was asked for")
            if progress:
                progress(have, size)
            while block := answer.read1(min(BLOCK, size + 1 - have)):
                have += len(block)
                if have > size:
                    file.truncate(0)
                    raise ValueError(f"{url} gave more than {size} bytes, wanted {size}")
                file.write(block)
                file.flush()
                if progress:
                    progress(have, size)
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise BrokenError(_reason(error)) from error
    if have < size:
        raise BrokenError(f"the transfer broke off: only {have} bytes came, wanted {size}")


def _length(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _ask(url: str, first: int) -> Any:
    """Return the server's answer, from byte ``first`` on if it supports that, else from 0."""
    import urllib.error
    import urllib.request
    headers = {"Range": f"bytes={first}-"} if first else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers),
                                      timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and first:  # its file ends before that
            return _ask(url, 0)
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise OSError(_reason(error.reason)) from error
        raise


def _offered(answer: Any) -> tuple[int, int | None]:
    """Return (first byte, size of the whole file or None) of an answer."""
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not match:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"the server was silent for {PATIENCE} seconds"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _lock(file: IO[bytes], part: pathlib.Path) -> None:
    """Lock a file against other processes that would append to it."""
    try:
        import fcntl
    except ImportError:  # Windows: the hash tells
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"another process is fetching it, into {part}") from None
