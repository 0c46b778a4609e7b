"""Chunks of a batch for CPU threads, and copies of the pixels under windows."""

from typing import NamedTuple

import numpy as np

from gpuconv import threads
from gpuconv.ops.window import Pair, Window

POOL_WORKSPACE = 2 << 20  # bytes of images that a thread pools at a time; fewer cost more in calls


class Chunk(NamedTuple):
    """Some rows of the outputs of some images: the part of a batch that a thread computes."""

    images: slice
    rows: slice


def image_chunks(images: int, rows: int, row_bytes: int, budget: int,
                 at_least: float = 0) -> list[Chunk]:
    """Return chunks of a batch: whole images, or rows of one image.

    They depend on these numbers only, never on the number of threads.

    Args:
        images: of the batch.
        rows: of the output of an image.
        row_bytes: workspace for one row, bytes.
        budget: workspace for one chunk, bytes; a chunk has at least one row.
        at_least: number of chunks to make even if fewer would fit the budget, so that threads can
            share the work; at most ``threads.SHARES`` count.

    >>> image_chunks(4, 2, 100, 400)
    [Chunk(images=slice(0, 2, None), rows=slice(0, 2, None)), \
Chunk(images=slice(2, 4, None), rows=slice(0, 2, None))]
    >>> image_chunks(1, 4, 100, 200)
    [Chunk(images=slice(0, 1, None), rows=slice(0, 2, None)), \
Chunk(images=slice(0, 1, None), rows=slice(2, 4, None))]
    """
    fewest = min(threads.SHARES, int(at_least))
    if rows * row_bytes <= budget and images >= fewest:
        return [Chunk(some, slice(0, rows))
                for some in threads.chunks(images, rows * row_bytes, budget, at_least)]
    runs = threads.chunks(rows, row_bytes, budget, -(-fewest // max(1, images)))
    return [Chunk(slice(i, i + 1), some) for i in range(images) for some in runs]


def copy_framed(x: np.ndarray, start: Pair, out: np.ndarray) -> None:
    """Copy x (n, H, W, C) from pixel ``start`` on into out (n, h, w, C); zeros outside of x.

    >>> out = np.empty((1, 2, 3, 1)); copy_framed(np.ones((1, 2, 2, 1)), (-1, 0), out)
    >>> out[0, :, :, 0]
    array([[0., 0., 0.],
           [1., 1., 0.]])
    """
    into, source = zip(*(overlap(first, room, size) for first, room, size
                         in zip(start, out.shape[1:3], x.shape[1:3], strict=True)), strict=True)
    if any(some != slice(0, room) for some, room in zip(into, out.shape[1:3], strict=True)):
        out.fill(0)  # everywhere: fewer calls than the four sides
    out[:, *into] = x[:, *source]


def copy_taps(x: np.ndarray, window: Window, row: int, out: np.ndarray, fill: float = 0) -> None:
    """Copy the pixels under windows into out (n, P, Q, R, S, C), one tap at a time.

    A copy of all pixels that the windows span, which ``copy_framed`` makes, is larger than that
    where stride or dilation is large.

    Args:
        x: (n, H, W, C).
        window: its padding says where the first position begins.
        row: of positions, which the first of out is.
        out: any dtype and strides.
        fill: value of the pixels outside of x.
    """
    (_, P, Q, R, S, _), (H, W) = out.shape, x.shape[1:3]
    out.fill(fill)
    (top, left), (SH, SW), (DH, DW) = window.first(row), window.stride, window.dilation
    across = [overlap(left + s * DW, Q, W, SW) for s in range(S)]
    for r in range(R):
        into_h, from_h = overlap(top + r * DH, P, H, SH)
        for s, (into_w, from_w) in enumerate(across):
            out[:, into_h, into_w, r, s] = x[:, from_h, from_w]


def overlap(first: int, count: int, size: int, step: int = 1) -> tuple[slice, slice]:
    """Return which of ``count`` places first, first + step, ... are inside 0..size, and where.

    >>> overlap(-1, 4, 2)
    (slice(1, 3, None), slice(0, 2, 1))
    """
    low = min(count, max(0, -(first // step)))
    high = max(low, min(count, -((first - size) // step)))
    return slice(low, high), slice(first + low * step, first + high * step, step)


def clear(gx: np.ndarray) -> None:
    """Fill an array with zeros, in parallel."""
    threads.each(lambda some: gx[some].fill(0), threads.chunks(len(gx), gx[:1].nbytes))


def copy_pixels(source: np.ndarray, to: np.ndarray) -> None:
    """Copy ``source`` to ``to``, both (..., C); pixels as a whole if channels are contiguous."""
    C, size = source.shape[-1], to.itemsize
    if C > 1 and source.dtype == to.dtype and source.strides[-1] == to.strides[-1] == size:
        pixel = np.dtype((np.void, C * size))
        source, to = source.view(pixel), to.view(pixel)
    np.copyto(to, source, casting="unsafe")
