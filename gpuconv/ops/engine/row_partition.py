"""Partition of the rows of an array (..., C) among thread blocks: kernels/common/rows.cuh."""

import math
from typing import NamedTuple

from gpuconv import kernels
from gpuconv.backend import Array

PARTS = 512, 2048  # slices times tiles: enough for the largest device, and the most
DEEP = 4, 8        # rows of a thread, at least, with so many
WARP = 32          # columns of a tile, at most
SECTOR = 32        # bytes


class Partition(NamedTuple):
    """Partition of the rows of an array (..., C), from the shape alone."""

    rows: int
    C: int
    S: int      # slices of the rows
    per: int    # rows of a slice; the last may hold fewer
    lanes: int  # columns of a tile, V channels each; the last may hold fewer

    def threads(self, V: int) -> int:
        """Return the threads to launch."""
        return -(-self.C // (V * self.lanes)) * self.S * kernels.BLOCK if self.rows else 0


def channels(*arrays: Array | None) -> int:
    """Return the channels that a thread reads at once: 16 bytes of them, or 1.

    16 bytes where C and all addresses allow.

    Args:
        arrays: of one dtype, shapes (..., C). None: a null pointer.
    """
    given = [a for a in arrays if a is not None]
    V = 16 // given[0].dtype.itemsize
    return V if given[0].shape[-1] % V == 0 and all(a.data.ptr % 16 == 0 for a in given) else 1


def partition(shape: tuple[int, ...], V: int, itemsize: int) -> Partition:
    """Return tiles that are no wider than a warp and begin at sectors; slices that fill a device.

    >>> partition((100, 8, 8, 64), V=8, itemsize=2)  # a warp reads four rows
    Partition(rows=6400, C=64, S=50, per=128, lanes=8)
    """
    C, columns = shape[-1], max(1, shape[-1] // V)
    rows = math.prod(shape[:-1]) if C else 0
    sector = max(1, SECTOR // (V * itemsize))
    even = -(-columns // -(-columns // WARP))  # of as many tiles as there must be
    lanes = min(columns, -(-even // sector) * sector)
    height, tiles = kernels.BLOCK // lanes, -(-columns // lanes)
    S = max(1, *(min(rows // (deep * height), parts // tiles)
                 for deep, parts in zip(DEEP, PARTS, strict=True)))
    per = max(1, -(-rows // S))
    per = -(-per // height) * height if S > 1 else per
    return Partition(rows, C, max(1, -(-rows // per)), per, lanes)


def totals(C: int) -> int:
    """Return the lanes where one channel of float32 is a column: as many as fill a sector."""
    return min(8, C)
