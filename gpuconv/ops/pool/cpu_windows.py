"""The pixels under pooling windows, all windows at a time.

    planes[r*S + s, n, p, q, c] = x[n, p*SH - PT + r*DH, q*SW - PL + s*DW, c]

NumPy starts its loop again for each run of C elements of a strided view, and threads wait for each
other between its calls. So pixels are copied into planes first, all planes by one call, and what is
calculated with them is calculated with whole planes.
"""

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import Piece, Slide, clear, copy_pixels, copy_taps, cut, overlap
from gpuconv.ops.engine.sums import BLOCK
from gpuconv.ops.window import POOL_WORKSPACE, Window


class Windows:
    """A window over images of one height and width; P x Q are its positions."""

    def __init__(self, window: Window, height: int, width: int):
        self.window, self.image = window, (height, width)
        self.P, self.Q = window.out_shape(height, width)
        self.taps = math.prod(window.size)
        self.inside = self._edges(slice(0, self.P))[0]  # no window hangs over an edge

    def planes(self, x: np.ndarray, dtype: Any, beside: float) -> Any:
        """A function of a piece: the pixels (R, S, n, P, Q, C) under its windows, in the dtype.

        A view of x, or of a copy of some of it, with ``beside`` where x has no pixel.
        """
        if self.inside and x.dtype == dtype:
            every = self.view(x, self.P)
            return lambda piece: every[:, :, piece.images, piece.rows]

        (top, _), (left, _) = self.window.pad
        slide = Slide(self.window.size, self.window.stride, self.window.dilation, (-top, -left))

        def of(piece: Piece) -> np.ndarray:
            inside, size, into, source = self._edges(piece.rows)
            images, rows = x[piece.images], piece.rows.stop - piece.rows.start
            if math.prod(size) > self.taps * rows * self.Q:
                planes = threads.workspace(
                    "frame", (*slide.size, len(images), rows, self.Q, x.shape[-1]), dtype)
                copy_taps(images, slide, piece.rows.start, planes.transpose(2, 3, 4, 0, 1, 5),
                          beside)
                return planes
            part = images[source]
            frame = threads.workspace("frame", (len(part), *size, part.shape[-1]), dtype)
            if not inside:
                frame.fill(beside)
            frame[into] = part
            return self.view(frame, rows)

        return of

    def view(self, frame: np.ndarray, rows: int) -> np.ndarray:
        """(R, S, n, rows, Q, C): each window's pixels, the first row of windows at the very top.

        >>> Windows(Window((1, 2), (1, 2)), 1, 6).view(np.arange(6).reshape(1, 1, 6, 1), 1).ravel()
        array([0, 2, 4, 1, 3, 5])
        """
        (R, S), (SH, SW), (DH, DW) = self.window.size, self.window.stride, self.window.dilation
        image, row, column, channel = frame.strides
        return as_strided(frame, (R, S, len(frame), rows, self.Q, frame.shape[-1]),
                          (DH * row, DW * column, image, SH * row, SW * column, channel))

    def _edges(self, rows: slice) -> tuple[bool, tuple[int, int], Any, Any]:
        """Of the pixels under some rows of windows: are all in the image? height and width; where
        those are that the image has, among them, and in the image.
        """
        (SH, SW), (EH, EW), ((PT, _), (PL, _)) = (
            self.window.stride, self.window.extent, self.window.pad)
        size = (rows.stop - rows.start - 1) * SH + EH, (self.Q - 1) * SW + EW
        down, across = (overlap(start, room, n) for start, room, n in zip(
            (rows.start * SH - PT, -PL), size, self.image, strict=True))
        inside = (down[0], across[0]) == (slice(0, size[0]), slice(0, size[1]))
        return (inside, size, (slice(None), down[0], across[0]),
                (slice(None), down[1], across[1]))


def add_back(gy: np.ndarray, argmax: np.ndarray | None, windows: Windows, gx: np.ndarray) -> None:
    """Into each pixel of gx: the sum of gy over the windows it is in.

    With argmax only over those that chose it: argmax is the number r*S + s of the pixel chosen.

    Pixel (r, s) of window (p, q) is pixel (a, b) of cell (p + i, q + j), where a cell is as large
    as a stride: i, a = divmod(r*DH, SH). So with one plane for each pixel of a cell, and rows of
    windows as long as rows of cells, window and pixel are a fixed distance apart in memory.
    """
    (N, P, Q, C), (H, W) = gy.shape, windows.image
    (R, S), (SH, SW), (DH, DW) = (
        windows.window.size, windows.window.stride, windows.window.dilation)
    (PT, _), (PL, _) = windows.window.pad
    dtype = accumulator(gy.dtype) if R * S <= BLOCK else np.dtype(np.float64)
    reach = (R - 1) * DH // SH  # cells below a window's own
    bits, rows, columns = f"u{dtype.itemsize}", P + reach, Q + (S - 1) * DW // SW  # of cells
    if rows * SH - PT < H or columns * SW - PL < W:
        clear(gx)

    def widened(name: str, a: np.ndarray, piece: Piece) -> np.ndarray:
        """Rows of windows as long as those of cells, 0 where there is no window, flat."""
        start, stop = max(0, piece.rows.start - reach), min(piece.rows.stop, P)
        part = a[piece.images, start:stop]
        wide = threads.workspace(name, (len(part), piece.rows.stop - start, columns, C),
                       dtype if a is gy else a.dtype)
        wide.fill(0)
        wide[:, :stop - start, :Q] = part
        return wide.reshape(-1)

    def work(piece: Piece) -> None:
        g = widened("frame", gy, piece)
        marks = None if argmax is None else widened("marks", argmax, piece)
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
        above = piece.rows.start - max(0, piece.rows.start - reach)
        cells = planes.reshape(SH, SW, -1, piece.rows.stop - piece.rows.start + above, columns, C)
        for a, b in np.ndindex(SH, SW):
            down = overlap(piece.rows.start * SH + a - PT, cells.shape[3] - above, H, SH)
            across = overlap(b - PL, columns, W, SW)
            mine = cells[a, b, :, above:]
            copy_pixels(mine[:, down[0], across[0]], gx[piece.images, down[1], across[1]])

    row = SH * SW * columns * C * dtype.itemsize  # bytes of the planes
    threads.each(work, cut(N, rows, row, POOL_WORKSPACE))
