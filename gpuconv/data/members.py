"""The arrays of an .npz file, read without believing what the file says about their sizes.

An .npz file is a zip file with an .npy file for each array. Limits, checked before any array is
read: its shape and dtype give exactly the size of its member; a member is stored, or packed by
deflate, which makes nothing more than 1,032 times smaller; a header has at most HEADER bytes, the
list of members DIRECTORY bytes; all arrays together fit into free memory.
"""

import errno
import math
import os
import pathlib
import sys
from collections.abc import Collection
from typing import IO, Any

import numpy as np

from gpuconv import reading
from gpuconv.data.images import RefusedError
from gpuconv.free_memory import check_free_memory

HEADER = 10_000      # bytes of an array's header: dtype and shape; NumPy's own limit
DIRECTORY = 1 << 22  # bytes of the list of members: some 50,000
RATIO = 1032         # of what deflate makes smaller, at most
TEXT = 8             # copies of labels and names that are made of them
KINDS = "biufcSU"    # of dtypes: numbers and strings


def read_members(path: pathlib.Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Return the arrays with the wanted names; others are left unread, as empty arrays.

    Raises:
        OSError: there is no such file, it is no regular file, or it cannot be read.
        ValueError: it is damaged, or no .npz file; names the array.
        MemoryError: the arrays do not fit into free memory.
    """
    import zipfile  # slow to import
    name, arrays = "", {}
    with reading.open_file(path) as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6"):
            raise ValueError(f"{path}: no .npz file, or its beginning is damaged")
        try:
            with zipfile.ZipFile(_Bounded(file)) as zipped:
                members = {info.filename.removesuffix(".npy"): info for info in zipped.infolist()}
                need, length = 0, os.fstat(file.fileno()).st_size
                for name in sorted(members.keys() & wanted):
                    size, kind = _size(zipped, members[name], length, f"{path}: {name}")
                    of_images = name.endswith("images") or name[0] == "x"
                    need += size if of_images and kind not in "SU" else size * TEXT
                check_free_memory(need, f"{path}: its arrays")
                for name, info in members.items():
                    arrays[name] = np.empty(0)
                    if name in wanted:
                        with zipped.open(info) as member:
                            array = np.lib.format.read_array(member, allow_pickle=False)
                        arrays[name] = _text(array) if array.dtype.kind in "SU" else array
        except MemoryError as error:
            text = str(error)
            raise MemoryError(text if text.startswith(str(path)) else
                              f"{path}: {name or 'the file'}: {text}") from None
        except RefusedError:
            raise
        except Exception as error:  # what a damaged file raises is anybody's guess
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # of the disk; EINVAL is of an offset that is none
            raise ValueError(f"{path}: {name or 'the file'} is damaged: "
                             f"{str(error)[:200] or type(error).__name__}") from None
    return arrays


class _Bounded:
    """An open file that is read in parts of at most DIRECTORY bytes: zipfile reads the list of
    members at once, whatever its length, and all else in small parts.
    """

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self.seekable, self.file = file.seek, file.tell, file.seekable, file

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes."""
        found = self.file.read(size if 0 <= size <= DIRECTORY else DIRECTORY + 1)
        if len(found) > DIRECTORY:
            raise ValueError(f"its list of members is longer than {DIRECTORY:,} bytes")
        return found


def _text(array: np.ndarray) -> np.ndarray:
    """Return strings, decoded from UTF-8 where they are bytes.

    Raises:
        ValueError: they are no Unicode.
    """
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.nbytes:
        codes = array.reshape(-1).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if codes.max() > sys.maxunicode:  # NumPy would raise SystemError, or worse, later
            raise ValueError("text that is no Unicode")
    return array


def _size(zipped: Any, info: Any, length: int, what: str) -> tuple[int, str]:
    """Return (bytes, kind of dtype) of an array, if its header, member and file agree about them.

    Args:
        zipped: ZipFile.
        info: ZipInfo of the array's member.
        length: bytes of the file.
        what: the array, for messages.
    """
    import zipfile
    if info.flag_bits & 1:
        raise RefusedError(f"{what} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f"{what} is packed by method {info.compress_type}, wanted a file as "
                           "written by numpy.savez or savez_compressed")
    packed = info.compress_type == zipfile.ZIP_DEFLATED
    if info.compress_size > length or info.file_size > info.compress_size * (
            RATIO if packed else 1) + 64:
        raise ValueError(f"{info.file_size:,} bytes cannot be in a file of {length:,}")
    with zipped.open(info) as member:
        start = member.read(12)
        version = start[6:8]
        if start[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0"):
            raise ValueError("no array, or one of a newer format")
        head = 10 if version == b"\1\0" else 12
        head += int.from_bytes(start[8:head], "little")
        if head > HEADER:
            raise ValueError(f"its header has {head:,} bytes, wanted at most {HEADER:,}")
    with zipped.open(info) as member:
        np.lib.format.read_magic(member)
        read = (np.lib.format.read_array_header_1_0 if version == b"\1\0" else
                np.lib.format.read_array_header_2_0)
        try:
            shape, _, dtype = read(member)
        except (MemoryError, RecursionError):  # of the parser, at deep nesting
            raise ValueError("its header is no description of an array") from None
    if dtype.hasobject:
        raise RefusedError(f"{what} is an array of Python objects, which could run code: wanted "
                           "numbers or strings")
    if dtype.kind not in KINDS:
        raise RefusedError(f"{what} is an array of {str(dtype):.100}, wanted numbers or strings")
    if not dtype.itemsize:  # any number of them would fit into no bytes
        raise ValueError(f"it is {dtype}, text of no characters")
    size = math.prod(map(int, shape)) * dtype.itemsize
    if min(shape, default=0) < 0 or head + size != info.file_size:
        raise ValueError(f"of shape {str(shape):.100} and {str(dtype):.100} it has {size:,} bytes, "
                         f"but {info.file_size - head:,} are there")
    return size, dtype.kind
