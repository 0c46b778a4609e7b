"""Numbers of parts of JPEG and JPEG 2000 streams, counted without decoding them."""

import struct
from typing import IO


def scans(file: IO[bytes]) -> int:
    """Return the number of scans of a JPEG; the file stays where it is.

    >>> import io
    >>> scans(io.BytesIO(b"\\xff\\xd8\\xff\\xda 1 \\xff\\xda 2"))
    2
    """
    before, found, end = file.tell(), 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        found += (end + block).count(b"\xff\xda")  # coded pixels never hold these bytes
        end = block[-1:]
    file.seek(before)
    return found


def tiles(file: IO[bytes]) -> int:
    """Return the number of tiles of a JPEG 2000, 1 where it cannot be read; the file stays."""
    before = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(before)
    at = head.find(b"\xff\x4f\xff\x51")  # the beginning of a stream, and the marker of its sizes
    if at < 0 or len(head) < at + 40:
        return 1
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", head, at + 8)
    columns = -(-(right - left) // max(width, 1))
    return max(1, columns * -(-(bottom - top) // max(height, 1)))
