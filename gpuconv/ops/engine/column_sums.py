"""Sums over the rows of a matrix: the gradient of a bias, and the sum of partial sums.

    out[c] = sum over r of rows[r, c]

16 bytes of a row at a time, in one pass and, where there are many rows, a second one over a few
hundred partial sums. Both are cut by shape alone, and added in a fixed order.
"""

import math
from typing import NamedTuple

from gpuconv import kernels
from gpuconv.backend import Array, accumulator, cupy

BLOCK = 256    # threads of a block
LINES = 8      # that a thread reads at once
BLOCKS = 512   # of the first pass, at most: what fills a large GPU


class Cut(NamedTuple):
    """How a pass goes over (n, K): see kernels/reduce/column_sums.cu."""

    V: int       # elements that a thread reads at once
    line: int    # elements, a multiple of K and of V
    lanes: int   # packs of a line for one block
    slices: int  # of the lines, each with its own sums


def cut(n: int, K: int, itemsize: int) -> Cut:
    """The first pass over a matrix; it is the only one where there is one slice.

    >>> cut(131072, 10, 2), cut(128, 10, 2)
    (Cut(V=8, line=40, lanes=5, slices=80), Cut(V=1, line=10, lanes=10, slices=1))
    """
    V = 16 // itemsize
    line = math.lcm(K, V)
    tiles = math.ceil(line / V / 32)
    lanes = math.ceil(line / V / tiles)
    lines = math.ceil(n * K / line)
    slices = min(BLOCKS // tiles, lines // (LINES * (BLOCK // lanes)))
    return Cut(V, line, lanes, slices) if slices > 1 else last_cut(n, K, itemsize)


def last_cut(n: int, K: int, itemsize: int) -> Cut:
    """A pass that leaves nothing to do: many columns are shared out, many rows go to one block."""
    V = 16 // itemsize
    V = 1 if K % V else V
    lanes = min(K // V, 32)
    while lanes > 2 and n > LINES * (BLOCK // lanes):
        lanes = math.ceil(lanes / 2)
    return Cut(V, K, lanes, 1)


def column_sums(rows: Array, out: Array) -> None:
    """out = rows summed over its rows, in the accumulator's arithmetic, rounded once.

    Args:
        rows: (n, K), any float dtype; n may be 0.
        out: written: (K,), any float dtype: of rows, or its accumulator.
    """
    n, K = rows.shape
    if not K:
        return
    how = cut(n, K, rows.dtype.itemsize)
    if how.slices > 1:
        partial = cupy().empty((how.slices * how.line // K, K), accumulator(rows.dtype))
        _launch(rows, partial, how)
        rows, how = partial, last_cut(len(partial), K, partial.dtype.itemsize)
    _launch(rows, out, how)


def _launch(rows: Array, out: Array, how: Cut) -> None:
    blocks = math.ceil(how.line / how.V / how.lanes) * how.slices
    sums = kernels.kernel("reduce/column_sums.cu", "column_sums", T=rows.dtype, O=out.dtype,
                          V=how.V, BLOCK=BLOCK)
    sums(blocks * BLOCK, rows, out, *rows.shape, how.line, how.lanes, how.slices, block=BLOCK,
         every=True)
