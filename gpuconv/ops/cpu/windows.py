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
from gpuconv.ops.cpu.pieces import Piece, overlap
from gpuconv.ops.window import Window


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

        def of(piece: Piece) -> np.ndarray:
            inside, size, into, source = self._edges(piece.rows)
            part = x[piece.images][source]
            frame = scratch("frame", (len(part), *size, part.shape[-1]), dtype)
            if not inside:
                frame.fill(beside)
            frame[into] = part
            return self.view(frame, piece.rows.stop - piece.rows.start)

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


def copy_pixels(source: np.ndarray, to: np.ndarray) -> None:
    """``to[...] = source``, both (..., C), by whole pixels if their channels are contiguous."""
    C, size = source.shape[-1], to.itemsize
    if C > 1 and source.dtype == to.dtype and source.strides[-1] == to.strides[-1] == size:
        pixel = np.dtype((np.void, C * size))
        source, to = source.view(pixel), to.view(pixel)
    np.copyto(to, source, casting="unsafe")


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """``threads.scratch`` in a shape."""
    return threads.scratch(name, math.prod(shape), dtype).reshape(shape)
