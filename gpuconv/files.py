"""Files that are either whole or not there: atomic writes, named tensors.

A file is written under a temporary name in its own folder, synced, renamed over the old one, and
the folder synced: after a crash there is the old file or the new one, never a piece of it. Tensors
are kept as safetensors, which cannot run code when read, and are read back from the disk before
they replace the old file.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from gpuconv import jsontext, reading
from gpuconv.backend import Array, float_dtype, is_array, to_cpu
from gpuconv.checks import check_path, is_numeric, no_array, short, type_name
from gpuconv.free_memory import check_free_memory
from gpuconv.state import check_state

FORMAT = "gpuconv"
VERSION = 1
HEADER = 32 << 20  # bytes of a header, at most
DTYPES = set("F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split())
UNFINISHED = ".unfinished"  # how the name of a temporary file ends


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb",
                 check: Callable[[str], object] | None = None) -> Iterator[IO[Any]]:
    """Provide an open file that replaces ``path`` if the block succeeds, and is removed if not.

    Args:
        path: the file; what stands there is replaced as a whole, or stays as it is.
        mode: "wb" for bytes, "w" for text in UTF-8.
        check: called with the name of the temporary file, written and synced, before it takes the
            place of the old one; what it raises leaves the old one.

    Raises:
        OSError: the folder is missing or cannot be written to, or the disk is full.

    >>> import tempfile, os
    >>> target = os.path.join(tempfile.mkdtemp(), "note.txt")
    >>> with atomic_write(target, "w") as file:
    ...     _ = file.write("whole")
    >>> pathlib.Path(target).read_text()
    'whole'
    """
    path, temporary = check_writable(path), ""
    try:
        descriptor, temporary = tempfile.mkstemp(UNFINISHED, f".{path.name}.", path.parent)
        with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(temporary)
        _keep_mode(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and (
                not temporary or error.filename in (None, temporary)):
            raise _unwritten(path, error) from error  # its own text names no file, or a strange one
        raise
    sync_folder(path.parent)


def _unwritten(path: pathlib.Path, error: OSError) -> OSError:
    """Return the system's error about ``path``, with the same number."""
    stays = "the file of before stays" if path.exists() else "nothing is left of it"
    said = type(error)(f"{path} could not be written: {error.strerror}; {stays}")
    said.errno = error.errno
    return said


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files of interrupted writes from a folder where nobody else writes."""
    for path in pathlib.Path(folder).glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):  # it is gone, or a folder of somebody else
            path.unlink()


def make_folder(path: str | os.PathLike) -> None:
    """Make a folder, and those that it lies in, unless it is there.

    Raises:
        NotADirectoryError: something else has that name.
        OSError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{error.filename} is no folder, wanted one: move it away or "
                                 "delete it") from None


def check_writable(path: str | os.PathLike) -> pathlib.Path:
    """Return the path, links followed, if a file can be written there.

    Raises:
        OSError: it cannot, or something that is no regular file has that name.
    """
    path = pathlib.Path(check_path("files", "path", path))
    if path.is_symlink():
        path = pathlib.Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted the name of a file")
    with contextlib.suppress(FileNotFoundError):
        reading.check_regular(path, os.stat(path).st_mode)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path}: the folder {path.absolute().parent} cannot be written to")
    return path


def _keep_mode(path: pathlib.Path, temporary: str) -> None:
    """Give the new file the mode of the old one, or the usual one: mkstemp's is private."""
    if path.exists():
        os.chmod(temporary, path.stat().st_mode & 0o777)
    else:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)


def sync_folder(folder: pathlib.Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":  # Windows cannot open a folder, and needs no such call
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path: str | os.PathLike, state: Mapping[str, Array],
         metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays as a safetensors file.

    Args:
        path: the file; replaced as a whole.
        state: arrays of numpy or cupy, any float or integer dtype; ``module.state_dict()``, say.
        metadata: what to remember beside them, JSON values by name.

    Raises:
        TypeError: a value is no array.
        ValueError: safetensors has no such dtype, or what the disk holds is not what was written.
        OSError: the folder cannot be written to, or the disk is full. Whatever is raised, the file
            of before stays.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/w.safetensors"
    >>> save(path, {"w": np.ones(2)}, {"epoch": 3})
    >>> load(path)
    ({'w': array([1., 1.])}, {'epoch': 3})
    """
    import safetensors.numpy
    if isinstance(path, Mapping):
        raise TypeError("save: path is a dict: the arguments are save(path, state)")
    check_path("save", "path", path)
    check_state("save", state)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"save: metadata is {type_name(metadata)}, wanted a dict")
    try:
        arrays, text = {}, json.dumps(metadata or {})
    except (TypeError, ValueError) as error:
        raise TypeError(f"save: metadata: {error}, wanted JSON values") from None
    for name, a in state.items():
        if not isinstance(name, str):
            raise TypeError(f"save: name {short(name)} is {type_name(name)}, wanted a str")
        if not (isinstance(a, np.generic) or is_array(a)):
            raise TypeError(f"save: {name} is {no_array(a)}")
        if not is_numeric(a.dtype):
            raise TypeError(f"save: {name} has dtype {str(a.dtype):.60}, wanted numbers")
        a = to_cpu(a)
        # safetensors 0.8.0 writes the memory of a strided array as if it were dense (issue 825).
        dense = np.ascontiguousarray(a, a.dtype.newbyteorder("=") if not a.dtype.isnative else None)
        arrays[name] = dense.reshape(a.shape)  # a number had become (1,)
    crc = _checksum(arrays, f"{VERSION}{text}")
    described = {"format": FORMAT, "version": str(VERSION), "metadata": text, "crc32": crc}
    try:
        blob = safetensors.numpy.save(arrays, described)
    except safetensors.SafetensorError as error:
        raise ValueError(f"save: {error}") from None

    def check(temporary: str) -> None:
        _forget(temporary)
        try:
            back = _read(temporary)[2]
        except ValueError as error:
            raise ValueError(f"save: what {path} would be does not read back: {error}") from None
        if back != crc:
            raise ValueError(f"save: what {path} would be does not read back: it has CRC-32 "
                             f"{back}, wanted {crc}")

    with atomic_write(path, check=check) as file:
        file.write(blob)


def _forget(path: str) -> None:
    """Ask the system to drop its copy of a synced file, so that reading it asks the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``save`` wrote.

    Returns:
        (state, metadata): NumPy arrays by name; the metadata given to ``save``.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no regular file, or cannot be read.
        TypeError: it holds bfloat16, and the package ml_dtypes is missing.
        MemoryError: it is larger than the memory that is free; nothing of it is read.
        ValueError: it is damaged, truncated, or not a gpuconv file; nothing of it is returned.
    """
    return _read(check_path("load", "path", path))[:2]


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Return (state, metadata, CRC-32) of a file whose checksum is right."""
    import safetensors
    with reading.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_free_memory(size, f"{path}: its arrays")
        if min(size, int.from_bytes(file.read(8), "little")) > HEADER:
            raise ValueError(f"{path}: damaged, or no safetensors file: its header has more than "
                             f"{HEADER:,} bytes")
    try:
        with safetensors.safe_open(path, "np") as file:
            described = file.metadata() or {}
            if described.get("format") != FORMAT:
                raise ValueError(f"{path}: a safetensors file, but not one of gpuconv "
                                 f"(format {described.get('format')!r:.40})")
            version = described.get("version", "")
            if version != str(VERSION):
                newer = version.isdecimal() and len(version) < 9 and int(version) > VERSION
                raise ValueError(f"{path}: {'written by a newer gpuconv' if newer else 'damaged'} "
                                 f"(version {version:.9}, this one reads up to {VERSION})")
            names = list(file.keys())
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            for name, dtype in dtypes.items():
                if dtype not in DTYPES:
                    raise ValueError(f"{path}: {name:.80} is {dtype}, wanted one of "
                                     f"{sorted(DTYPES)}")
            if "BF16" in dtypes.values():
                float_dtype("bfloat16")  # NumPy knows it by that name from now on
            try:
                state = {name: file.get_tensor(name) for name in names}
            except (ValueError, OverflowError) as error:  # a shape that NumPy cannot have
                raise ValueError(f"{path}: damaged: {error!s:.200}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file: {error!s:.200}") from None
    text = described.get("metadata", "")
    crc = _checksum(state, version + text)
    if described.get("crc32") != crc:
        raise ValueError(f"{path}: damaged: its content has not the checksum it was written with")
    check_free_memory(reading.PARSED * len(text), f"{path}: its metadata")
    try:
        metadata = jsontext.parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: its metadata are {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: damaged: its metadata are {metadata!r:.40}, wanted a mapping")
    return state, metadata, crc


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Return the CRC-32 of text (version and metadata), names, dtypes, shapes and contents."""
    crc = zlib.crc32(text.encode())
    for name in sorted(arrays):
        a = arrays[name]
        crc = zlib.crc32(f"{name} {a.dtype.name} {a.shape}".encode(), crc)
        crc = zlib.crc32(a.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"
