"""Sums over the rows of a matrix: the gradient of a bias, and the sum of partial sums.

    out[c] = sum over r of rows[r, c]

16 bytes of a row at a time, in one pass and, where there are many rows, a second one over a few
hundred partial sums. Both passes depend on the shape alone and add in a fixed order.
"""

import math
from typing import NamedTuple

from gpuconv import kernels
from gpuconv.backend import Array, accumulator, cupy

BLOCK = 256    # threads of a block
LINES = 8      # lines that a thread reads at once
BLOCKS = 512   # blocks of the first pass, at most: they fill a large GPU


class Pass(NamedTuple):
    """Partition of a pass over (n, K): see kernels/reduce/column_sums.cu."""

    V: int       # elements that a thread reads at once
    line: int    # elements, a multiple of K and of V
    lanes: int   # packs of a line for one block
    slices: int  # of the lines, each with its own sums


def first_pass(n: int, K: int, itemsize: int) -> Pass:
    """Return the first pass over a matrix; with one slice it is the only pass.

    >>> first_pass(131072, 10, 2), first_pass(128, 10, 2)
    (Pass(V=8, line=40, lanes=5, slices=80), Pass(V=1, line=10, lanes=10, slices=1))
    """
    V = 16 // itemsize
    line = math.lcm(K, V)
    tiles = math.ceil(line / V / 32)
    lanes = math.ceil(line / V / tiles)
    lines = math.ceil(n * K / line)
    slices = min(BLOCKS // tiles, lines // (LINES * (BLOCK // lanes)))
    return Pass(V, line, lanes, slices) if slices > 1 else last_pass(n, K, itemsize)


def last_pass(n: int, K: int, itemsize: int) -> Pass:
    """Return a pass of one slice: blocks share the columns, and each adds all rows."""
    V = 16 // itemsize
    V = 1 if K % V else V
    lanes = min(K // V, 32)
    while lanes > 2 and n > LINES * (BLOCK // lanes):
        lanes = math.ceil(lanes / 2)
    return Pass(V, K, lanes, 1)


def column_sums(rows: Array, out: Array) -> None:
    """Write the sum of the rows into out, in the accumulator's arithmetic, rounded once.

    Args:
        rows: (n, K), any float dtype; n may be 0.
        out: written: (K,), any float dtype: of rows, or its accumulator.
    """
    n, K = rows.shape
    if not K:
        return
    how = first_pass(n, K, rows.dtype.itemsize)
    if how.slices > 1:
        partial = cupy().empty((how.slices * how.line // K, K), accumulator(rows.dtype))
        _launch(rows, partial, how)
        rows, how = partial, last_pass(len(partial), K, partial.dtype.itemsize)
    _launch(rows, out, how)


def bias_gradient(gy: Array) -> Array:
    """Return the sum of gy (..., K) over all axes but the last: (K,), dtype of gy."""
    gb = cupy().empty(gy.shape[-1], gy.dtype)
    if not gy.size:
        gb.fill(0)
    else:
        column_sums(gy.reshape(-1, len(gb)), gb)
    return gb


def _launch(rows: Array, out: Array, how: Pass) -> None:
    blocks = math.ceil(how.line / how.V / how.lanes) * how.slices
    sums = kernels.kernel("reduce/column_sums.cu", "column_sums", T=rows.dtype, O=out.dtype,
                          V=how.V, BLOCK=BLOCK)
    sums(blocks * BLOCK, rows, out, *rows.shape, how.line, how.lanes, how.slices, block=BLOCK,
         every=True)
