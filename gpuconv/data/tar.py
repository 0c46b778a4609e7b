"""The members of a tar archive, packed or not, read forwards in memory that has a limit.

Python's tarfile takes as much memory as an extended header says that it has bytes, and keeps all
members that it passes. Here extended headers (PAX, GNU's long names) are passed over like the
members that nobody wants, so the names of members are those of up to 256 bytes in their own
headers, and sparse members are refused. Limits: an archive unpacks to at most UNPACKED bytes; an
LZMA decoder takes at most LZMA_MEMORY bytes. No member is written to the disk.
"""

import zlib
from collections.abc import Collection, Iterator
from typing import IO, Any

UNPACKED = 1 << 29     # bytes
LZMA_MEMORY = 1 << 28  # bytes; xz -9 asks for 65 MiB
MEMBERS = 10_000        # of an archive, at most
BLOCK = 512            # bytes: headers and contents begin at multiples of it
PART = 1 << 16         # bytes that are unpacked at a time


def damages() -> tuple[type[Exception], ...]:
    """Return what reading a damaged archive raises; an OSError with a number is of the disk."""
    import lzma
    import tarfile
    return tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError


def unpacked(file: IO[bytes]) -> "Unpacked":
    """Return an open archive, unpacked: gzip, bzip2, xz or LZMA by its first bytes, or as it is."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        import gzip
        return Unpacked(gzip.GzipFile(fileobj=file))
    if start.startswith(b"BZh"):
        import bz2
        return Unpacked(bz2.BZ2File(file))
    if start.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return Unpacked(_Lzma(file))
    return Unpacked(file)


class Unpacked:
    """Unpacked content of an archive, read forwards, up to a limit."""

    def __init__(self, file: Any):
        self.file, self.left = file, UNPACKED

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end; in parts, for ``size`` may be a lie."""
        parts, missing = [], size
        while missing:
            part = self.file.read(min(missing, PART))
            if not part:
                break
            self._count(part)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes.

        Raises:
            EOFError: there are fewer.
        """
        while size > 0:
            part = self.file.read(min(size, PART))
            if not part:
                raise EOFError("it ends inside a member")
            self._count(part)
            size -= len(part)

    def _count(self, part: bytes) -> None:
        self.left -= len(part)
        if self.left < 0:
            raise ValueError(f"unpacks to more than {UNPACKED:,} bytes")


class _Lzma:
    """An open file of xz or LZMA, unpacked; ``lzma.LZMAFile`` takes any amount of memory."""

    def __init__(self, file: IO[bytes]):
        import lzma
        self.file, self.decoder = file, lzma.LZMADecompressor(memlimit=LZMA_MEMORY)

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        found = b""
        while not (found or self.decoder.eof):
            packed = self.file.read(PART) if self.decoder.needs_input else b""
            if self.decoder.needs_input and not packed:
                raise EOFError("it ends too early")
            found = self.decoder.decompress(packed, size)
        return found


def members(archive: Unpacked, wanted: Collection[str]) -> Iterator[tuple[Any, bool]]:
    """Yield (tarfile.TarInfo, is it a plain file?) of each wanted member, to be read or skipped.

    Args:
        archive: read from its beginning.
        wanted: names.

    The caller may read the content of a member, as ``info.size`` says, before it asks for the next.

    Raises:
        ValueError, EOFError, tarfile.TarError: the archive is damaged, or has a sparse member.
    """
    import tarfile
    plain = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
    bare = set(tarfile.SUPPORTED_TYPES) - {*plain, tarfile.XHDTYPE, tarfile.XGLTYPE,
                                           tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                                           tarfile.GNUTYPE_LONGLINK}  # without a content
    first = True
    for _ in range(MEMBERS):
        block = archive.read(BLOCK)
        if not block.strip(b"\0") and (block or not first):
            return
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        first = False
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError(f"{info.name} is sparse, wanted a plain file")
        if info.size < 0:
            raise ValueError(f"{info.name} has {info.size} bytes")
        before = archive.left
        if info.name.removeprefix("./") in wanted:
            yield info, info.type in plain
        if info.type not in bare:
            archive.skip(-(-info.size // BLOCK) * BLOCK - (before - archive.left))
    raise ValueError(f"more than {MEMBERS:,} members")
