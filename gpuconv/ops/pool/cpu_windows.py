"""Pixels under pooling windows, for all positions at a time.

    planes[r*S + s, n, p, q, c] = x[n, p*SH - PT + r*DH, q*SW - PL + s*DW, c]

NumPy starts its loop again for each run of C elements of a strided view, and threads wait for each
other between its calls. So pixels are copied into planes first, all planes by one call, and whole
planes are the operands of the arithmetic. All windows here are levelled for pooling: they begin at
the first pixel of the image or in the padding.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import (
    POOL_WORKSPACE,
    Chunk,
    clear,
    copy_pixels,
    copy_taps,
    image_chunks,
    overlap,
)
from gpuconv.ops.engine.sums import BLOCK
from gpuconv.ops.window import Window


def planes_of(x: np.ndarray, window: Window, dtype: Any,
              fill: float) -> Callable[[Chunk], np.ndarray]:
    """Return a function of a chunk: the pixels (R, S, n, P, Q, C) under its windows.

    Its result is a view of x, or of a copy of some of x in the dtype, with ``fill`` outside of x.
    """
    (H, W), taps = x.shape[1:3], math.prod(window.size)
    P, Q = window.out_shape(H, W)
    if window.inside and x.dtype == dtype:
        every = windows_view(x, window, P, Q)
        return lambda chunk: every[:, :, chunk.images, chunk.rows]

    def planes(chunk: Chunk) -> np.ndarray:
        images, rows = x[chunk.images], chunk.rows.stop - chunk.rows.start
        height, width = window.reach(rows, Q)
        if height * width > taps * rows * Q:
            pixels = threads.workspace(
                "frame", (*window.size, len(images), rows, Q, x.shape[-1]), dtype)
            copy_taps(images, window, chunk.rows.start, pixels.transpose(2, 3, 4, 0, 1, 5), fill)
            return pixels
        top, left = window.first(chunk.rows.start)
        (into_h, from_h), (into_w, from_w) = overlap(top, height, H), overlap(left, width, W)
        part = images[:, from_h, from_w]
        frame = threads.workspace("frame", (len(part), height, width, part.shape[-1]), dtype)
        if part.shape != frame.shape:
            frame.fill(fill)
        frame[:, into_h, into_w] = part
        return windows_view(frame, window, rows, Q)

    return planes


def windows_view(frame: np.ndarray, window: Window, rows: int, columns: int) -> np.ndarray:
    """Return a view (R, S, n, rows, columns, C) of the pixels under windows.

    The first window begins at the first pixel of ``frame`` (n, h, w, C).

    >>> frame = np.arange(6).reshape(1, 1, 6, 1)
    >>> windows_view(frame, Window((1, 2), (1, 2)), 1, 3).ravel()
    array([0, 2, 4, 1, 3, 5])
    """
    (R, S), (SH, SW), (DH, DW) = window.size, window.stride, window.dilation
    image, row, column, channel = frame.strides
    return as_strided(frame, (R, S, len(frame), rows, columns, frame.shape[-1]),
                      (DH * row, DW * column, image, SH * row, SW * column, channel))


def scatter_add(gy: np.ndarray, argmax: np.ndarray | None, window: Window, gx: np.ndarray) -> None:
    """Write into each pixel of gx the sum of gy over the windows it is in.

    With argmax only the windows that chose the pixel count: argmax is the number r*S + s of the
    pixel that a window chose.

    Pixel (r, s) of window (p, q) is pixel (a, b) of cell (p + i, q + j), where a cell is as large
    as a stride: i, a = divmod(r*DH, SH). So with one plane for each pixel of a cell, and rows of
    windows as long as rows of cells, window and pixel are a fixed distance apart in memory.
    """
    (N, P, Q, C), (H, W) = gy.shape, gx.shape[1:3]
    (R, S), (SH, SW), (DH, DW) = window.size, window.stride, window.dilation
    (PT, _), (PL, _) = window.pad
    dtype = accumulator(gy.dtype) if R * S <= BLOCK else np.dtype(np.float64)
    reach = (R - 1) * DH // SH  # cells below a window's own
    bits, rows, columns = f"u{dtype.itemsize}", P + reach, Q + (S - 1) * DW // SW  # of cells
    if rows * SH - PT < H or columns * SW - PL < W:
        clear(gx)

    def widened(name: str, a: np.ndarray, chunk: Chunk) -> np.ndarray:
        """Return rows of windows as long as those of cells, 0 where there is no window, flat."""
        start, stop = max(0, chunk.rows.start - reach), min(chunk.rows.stop, P)
        part = a[chunk.images, start:stop]
        wide = threads.workspace(name, (len(part), chunk.rows.stop - start, columns, C),
                                 dtype if a is gy else a.dtype)
        wide.fill(0)
        wide[:, :stop - start, :Q] = part
        return wide.reshape(-1)

    def work(chunk: Chunk) -> None:
        g = widened("frame", gy, chunk)
        marks = None if argmax is None else widened("marks", argmax, chunk)
        planes = threads.workspace("planes", (SH, SW, g.size), dtype)
        planes.fill(0)
        for r, s in np.ndindex(R, S):
            (i, a), (j, b) = divmod(r * DH, SH), divmod(s * DW, SW)
            size = max(0, g.size - (i * columns + j) * C)
            part, sums = g[:size], planes[a, b, g.size - size:]
            if marks is not None:
                hits = threads.workspace("hits", (size,), bool)
                np.equal(marks[:size], r * S + s, out=hits)
                part = threads.workspace("part", (size,), dtype)
                np.copyto(part.view(bits), hits)
                np.multiply(part.view(bits), g[:size].view(bits), out=part.view(bits))
            np.add(sums, part, out=sums)
        above = chunk.rows.start - max(0, chunk.rows.start - reach)
        cells = planes.reshape(SH, SW, -1, chunk.rows.stop - chunk.rows.start + above, columns, C)
        for a, b in np.ndindex(SH, SW):
            down = overlap(chunk.rows.start * SH + a - PT, cells.shape[3] - above, H, SH)
            across = overlap(b - PL, columns, W, SW)
            mine = cells[a, b, :, above:]
            copy_pixels(mine[:, down[0], across[0]], gx[chunk.images, down[1], across[1]])

    row = SH * SW * columns * C * dtype.itemsize  # bytes of the planes
    threads.each(work, image_chunks(N, rows, row, POOL_WORKSPACE))
