"""Files that are either whole or not there: atomic writes, verified downloads, named tensors.

A file is written under a temporary name in its own folder, synced, renamed over the old one, and
the folder synced: after a crash there is the old file or the new one, never a piece of it. Tensors
are kept as safetensors, which cannot run code when read.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from gpuconv.backend import Array, float_dtype, to_cpu

FORMAT = "gpuconv"
VERSION = 1
PATIENCE = 5     # seconds that a server may be silent
BLOCK = 1 << 20  # bytes


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file that becomes ``path`` when the block ends well, and vanishes when it does not.

    >>> import tempfile, os
    >>> target = os.path.join(tempfile.mkdtemp(), "note.txt")
    >>> with atomic_write(target, "w") as file:
    ...     _ = file.write("whole")
    >>> pathlib.Path(target).read_text()
    'whole'
    """
    path = check_writable(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _keep_mode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def check_writable(path: str | os.PathLike) -> pathlib.Path:
    """The path, if a file can be written there: better asked before hours of work than after."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted the name of a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path}: the folder {path.absolute().parent} cannot be written to")
    return path


def _keep_mode(path: pathlib.Path, temporary: str) -> None:
    """mkstemp makes files for their owner only: give the new one what the old had, or the usual."""
    if path.exists():
        os.chmod(temporary, path.stat().st_mode & 0o777)
    else:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)


def _sync_folder(folder: pathlib.Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder, and needs no such call
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Hash of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(url: str, path: str | os.PathLike, *, sha256: str, size: int,
             progress: Callable[[int, int], object] | None = None) -> None:
    """Fetch a file, and keep it only if it is the one that was expected.

    Args:
        url: http, https or file.
        path: where to; its folder is made. What stands there is replaced only by a verified file.
        sha256: expected hash, in hex.
        size: expected length, bytes; nothing beyond it is read.
        progress: called with (bytes so far, size) after each block.

    Raises:
        OSError: the server cannot be reached, refuses, or is silent for five seconds.
        ValueError: what came has another length or another hash.
    """
    path, hashed, done = pathlib.Path(path), hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for block in _fetch(url, size):
            file.write(block)
            hashed.update(block)
            done += len(block)
            if progress:
                progress(done, size)
        if done != size:
            amount = f"more than {size}" if done > size else f"only {done}"
            raise ValueError(f"download: {url} gave {amount} bytes, wanted {size}")
        if hashed.hexdigest() != sha256:
            raise ValueError(f"download: {url} has SHA-256 {hashed.hexdigest()}, wanted {sha256}")


def _fetch(url: str, size: int) -> Iterator[bytes]:
    """Blocks of what a server sends: at most one byte more than size."""
    import http.client  # slow to import, and seldom used
    import urllib.request
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            announced = answer.headers.get("Content-Length")
            if announced is not None and announced != str(size):
                raise ValueError(f"download: {url} is {announced} bytes long, wanted {size}")
            left = size + 1
            while left and (block := answer.read(min(BLOCK, left))):
                left -= len(block)
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"download: {url}: {error}") from error


def save(path: str | os.PathLike, state: Mapping[str, Array],
         metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays as a safetensors file.

    Args:
        path: the file; replaced as a whole.
        state: arrays of numpy or cupy, any float or integer dtype; ``module.state_dict()``, say.
        metadata: what to remember beside them, JSON values by name.

    Raises:
        TypeError: a value is no array.
        ValueError: safetensors has no such dtype, or what was written does not read back.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/w.safetensors"
    >>> save(path, {"w": np.ones(2)}, {"epoch": 3})
    >>> load(path)
    ({'w': array([1., 1.])}, {'epoch': 3})
    """
    import safetensors.numpy
    arrays, text = {}, json.dumps(metadata or {})
    for name, a in state.items():
        if not hasattr(a, "dtype"):
            raise TypeError(f"save: {name} is {type(a).__name__}, wanted an array")
        a = to_cpu(a)
        # safetensors 0.8.0 writes the memory of a strided array as if it were dense (issue 825).
        dense = np.ascontiguousarray(a, a.dtype.newbyteorder("=") if not a.dtype.isnative else None)
        arrays[name] = dense.reshape(a.shape)  # a number had become (1,)
    described = {"format": FORMAT, "version": str(VERSION), "metadata": text,
                 "crc32": _checksum(arrays, f"{VERSION}{text}")}
    try:
        blob = safetensors.numpy.save(arrays, described)
        for name, back in safetensors.deserialize(blob):
            if back["data"] != arrays[name].tobytes():
                raise ValueError(f"save: {name} does not read back as it was")
    except safetensors.SafetensorError as error:
        raise ValueError(f"save: {error}") from None
    with atomic_write(path) as file:
        file.write(blob)


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``save`` wrote.

    Returns:
        (state, metadata): NumPy arrays by name; the metadata given to ``save``.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: it holds bfloat16, and the package ml_dtypes is missing.
        ValueError: it is damaged, truncated, or not a gpuconv file; nothing of it is returned.
    """
    import safetensors
    with open(path, "rb"):
        pass  # where this fails, the system's error names the path; safe_open's does not
    try:
        with safetensors.safe_open(path, "np") as file:
            described = file.metadata() or {}
            if described.get("format") != FORMAT:
                raise ValueError(f"{path}: a safetensors file, but not one of gpuconv "
                                 f"(format {described.get('format')!r})")
            version = described.get("version", "")
            if version.isdecimal() and int(version) > VERSION:
                raise ValueError(f"{path}: written by a newer gpuconv (version {version}, "
                                 f"this one reads up to {VERSION})")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file: {error}") from None
    except TypeError:  # "data type 'bfloat16' not understood"
        float_dtype("bfloat16")  # says what to install
        raise
    text = described.get("metadata", "")
    if described.get("crc32") != _checksum(state, version + text):
        raise ValueError(f"{path}: damaged: its content has not the checksum it was written with")
    return state, json.loads(text)


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """CRC-32 of text (version and metadata) and of all names, dtypes, shapes and contents."""
    crc = zlib.crc32(text.encode())
    for name in sorted(arrays):
        a = arrays[name]
        crc = zlib.crc32(f"{name} {a.dtype.name} {a.shape}".encode(), crc)
        crc = zlib.crc32(a.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"
