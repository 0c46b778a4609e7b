"""Max pooling on the CPU: the largest pixel of each window, and its gradient."""

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import Piece, clear, copy_pixels, cut
from gpuconv.ops.engine.maxima import max_over_planes
from gpuconv.ops.pool.cpu_windows import Windows, add_back
from gpuconv.ops.window import POOL_WORKSPACE, Window


def largest(x: np.ndarray, window: Window, y: np.ndarray, argmax: np.ndarray | None) -> None:
    """Into y (N, P, Q, C): the largest pixel of each window over x; its number r*S + s in argmax.

    NaN is the largest of all; of equals it is the first in scan order.
    """
    N, H, W, C = x.shape
    dtype, windows = accumulator(x.dtype), Windows(window, H, W)
    planes_of = windows.planes(x, dtype, -np.inf)
    first = None if windows.inside else _first_inside(windows)

    def work(piece: Piece) -> None:
        max_over_planes(planes_of(piece), windows.taps, y[piece],
                        None if argmax is None else argmax[piece],
                        None if first is None else first[piece.rows])

    row = windows.taps * windows.Q * C * dtype.itemsize  # bytes of the planes
    threads.each(work, cut(N, windows.P, row, POOL_WORKSPACE))


def _first_inside(windows: Windows) -> np.ndarray:
    """(P, Q, 1): the number of the first pixel of each window that is inside the image."""
    window = windows.window
    r, s = (-(np.minimum(0, np.arange(count) * step - near) // apart)
            for count, step, (near, _), apart in zip(
                (windows.P, windows.Q), window.stride, window.pad, window.dilation, strict=True))
    return (r[:, None] * window.size[1] + s)[:, :, None]


def scatter_to_argmax(gy: np.ndarray, argmax: np.ndarray, window: Window, gx: np.ndarray) -> None:
    """Into gx: each gradient where the largest pixel of its window sat, 0 elsewhere."""
    windows = Windows(window, *gx.shape[1:3])
    if windows.inside and window.apart:
        _move(gy, argmax, windows, gx)
    else:
        add_back(gy, argmax, windows, gx)


def _move(gy: np.ndarray, argmax: np.ndarray, windows: Windows, gx: np.ndarray) -> None:
    """No pixel is in two windows: gradients are copied, bit by bit."""
    bits = f"u{gy.itemsize}"
    pixels = windows.view(gx.view(bits), windows.P)  # (R, S, N, P, Q, C)
    numbers = np.arange(windows.taps, dtype=argmax.dtype)[:, None]
    if not windows.window.tiles(*windows.image):
        clear(gx)

    def work(piece: Piece) -> None:
        g = gy[piece].reshape(-1).view(bits)
        planes = threads.workspace("planes", (windows.taps, g.size), bits)
        hits = threads.workspace("hits", planes.shape, bool)
        np.equal(argmax[piece].reshape(-1), numbers, out=hits)
        np.copyto(planes, hits)
        np.multiply(planes, g, out=planes)
        there = pixels[:, :, piece.images, piece.rows]
        copy_pixels(planes.reshape(there.shape), there)

    row = windows.taps * windows.Q * gx.shape[-1] * gx.itemsize  # bytes of the planes
    threads.each(work, cut(len(gx), windows.P, row, POOL_WORKSPACE))
