"""Max pooling on the CPU: the largest pixel of each window, and its gradient."""

import math

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import POOL_WORKSPACE, Chunk, clear, copy_pixels, image_chunks
from gpuconv.ops.engine.maxima import max_over_planes
from gpuconv.ops.pool.cpu_windows import planes_of, scatter_add, windows_view
from gpuconv.ops.window import Window


def max_pool(x: np.ndarray, window: Window, y: np.ndarray, argmax: np.ndarray | None) -> None:
    """Write the largest pixel of each window into y (N, P, Q, C), and its number into argmax.

    The number is r*S + s. NaN is the largest of all; of equal pixels the first in scan order
    counts. The window is levelled.
    """
    (N, P, Q, C), taps, dtype = y.shape, math.prod(window.size), accumulator(x.dtype)
    planes = planes_of(x, window, dtype, -np.inf)
    first = None if window.inside else _first_inside(window, P, Q)

    def work(chunk: Chunk) -> None:
        max_over_planes(planes(chunk), taps, y[chunk], None if argmax is None else argmax[chunk],
                        None if first is None else first[chunk.rows])

    row = taps * Q * C * dtype.itemsize  # bytes of the planes
    threads.each(work, image_chunks(N, P, row, POOL_WORKSPACE))


def _first_inside(window: Window, P: int, Q: int) -> np.ndarray:
    """Return the number of the first pixel of each window that is inside the image: (P, Q, 1)."""
    r, s = (-(np.minimum(0, np.arange(count) * stride - near) // dilation)
            for count, stride, (near, _), dilation in zip(
                (P, Q), window.stride, window.pad, window.dilation, strict=True))
    return (r[:, None] * window.size[1] + s)[:, :, None]


def scatter_to_argmax(gy: np.ndarray, argmax: np.ndarray, window: Window, gx: np.ndarray) -> None:
    """Write each gradient to the largest pixel of its window, and 0 elsewhere."""
    if window.inside and window.disjoint:
        _copy_to_argmax(gy, argmax, window, gx)
    else:
        scatter_add(gy, argmax, window, gx)


def _copy_to_argmax(gy: np.ndarray, argmax: np.ndarray, window: Window, gx: np.ndarray) -> None:
    """Copy gradients bit by bit where no pixel is in two windows."""
    bits, (N, P, Q, C), taps = f"u{gy.itemsize}", gy.shape, math.prod(window.size)
    pixels = windows_view(gx.view(bits), window, P, Q)  # (R, S, N, P, Q, C)
    numbers = np.arange(taps, dtype=argmax.dtype)[:, None]
    if not window.tiles(*gx.shape[1:3]):
        clear(gx)

    def work(chunk: Chunk) -> None:
        g = gy[chunk].reshape(-1).view(bits)
        planes = threads.workspace("planes", (taps, g.size), bits)
        hits = threads.workspace("hits", planes.shape, bool)
        np.equal(argmax[chunk].reshape(-1), numbers, out=hits)
        np.copyto(planes, hits)
        np.multiply(planes, g, out=planes)
        there = pixels[:, :, chunk.images, chunk.rows]
        copy_pixels(planes.reshape(there.shape), there)

    row = taps * Q * C * gx.itemsize  # bytes of the planes
    threads.each(work, image_chunks(N, P, row, POOL_WORKSPACE))
