"""Reading of files that may come from anywhere: only regular files are opened."""

import hashlib
import io
import os
import stat
from typing import Any

from gpuconv import jsontext
from gpuconv.free_memory import check_free_memory

PARSED = 32  # bytes of memory that a byte of JSON can take as a value: "[],[],[],"


def open_file(path: str | os.PathLike) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError, OSError: it is a folder, a FIFO, a socket or a device, which could block
            the caller for ever; or it cannot be read.
    """
    try:
        check_regular(path, os.stat(path).st_mode)  # opening a device may already do something
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
                             | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.strerror is None:
            raise
        raise type(error)(f"{os.fspath(path)}: {error.strerror.lower()}") from None
    try:
        check_regular(path, os.fstat(descriptor).st_mode)  # it may have been replaced meanwhile
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: str | os.PathLike) -> str:
    """Read a regular file of UTF-8 text; raises what ``open_file`` does, and UnicodeDecodeError."""
    with open_file(path) as file:
        return file.read().decode("utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read a regular file of JSON.

    Raises:
        OSError: as ``open_file``.
        MemoryError: its value could take more memory than is free.
        ValueError: it is no JSON; names the file and the place.
    """
    with open_file(path) as file:
        check_free_memory(PARSED * os.fstat(file.fileno()).st_size, f"{path}: its values")
        text = file.read()
    try:
        return jsontext.parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: it is {error}") from None


def digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return the hash of a file's bytes, in hex."""
    with open_file(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_regular(path: str | os.PathLike, mode: int) -> None:
    """Raise OSError where the mode of a file, of ``os.stat``, is not that of a regular one."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{os.fspath(path)} is a folder, wanted a file")
    if not stat.S_ISREG(mode):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise OSError(f"{os.fspath(path)} is a {kind}, wanted a file")
