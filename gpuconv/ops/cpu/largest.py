"""The largest pixel of each window, where it sat, and gradients on their way back there."""

import math

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.cpu.pieces import Piece, cut, overlap
from gpuconv.ops.cpu.windows import Windows, copy_pixels, scratch
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
        here = y[piece]
        best = here if here.dtype == dtype else scratch("best", here.shape, dtype)
        pixels = planes_of(piece)
        planes = scratch("planes", pixels.shape, dtype)
        copy_pixels(pixels, planes)
        planes = planes.reshape(windows.taps, -1)
        if argmax is None:
            _knockout(planes, best.reshape(-1))
        else:
            marks = argmax[piece]
            _knockout(planes, best.reshape(-1), marks.reshape(-1))
            if first is not None:
                np.maximum(marks, first[piece.rows].astype(marks.dtype), out=marks)
            if math.isnan(np.maximum.reduce(best, axis=None)):
                _first_nan(pixels.reshape(windows.taps, *marks.shape), marks)
        if best is not here:
            here[...] = best

    row = windows.taps * windows.Q * C * dtype.itemsize  # bytes of the planes
    threads.each(work, cut(N, windows.P, row, POOL_WORKSPACE))


def _first_inside(windows: Windows) -> np.ndarray:
    """(P, Q, 1): the number of the first pixel of each window that is inside the image."""
    window = windows.window
    r, s = (-(np.minimum(0, np.arange(count) * step - near) // apart)
            for count, step, (near, _), apart in zip(
                (windows.P, windows.Q), window.stride, window.pad, window.dilation, strict=True))
    return (r[:, None] * window.size[1] + s)[:, :, None]


def _knockout(planes: np.ndarray, y: np.ndarray, argmax: np.ndarray | None = None) -> None:
    """Into y: the largest of all planes; into argmax: the number of the first that has it.

    Of two neighbours the later wins if it is greater, and leaves its number; planes are
    overwritten. Where y is NaN, argmax is undefined.
    """
    taps, step = len(planes), 1
    if argmax is not None:
        numbers = np.arange(taps, dtype=argmax.dtype)[:, None]
        marks = scratch("marks", planes.shape, argmax.dtype)
        hits = scratch("hits", (taps // 2, y.size), bool)
        if taps % 2:
            marks[-1] = taps - 1  # it has no neighbour
    while step < taps:
        left, right = slice(0, taps - step, 2 * step), slice(step, None, 2 * step)
        a, b, last = planes[left], planes[right], 2 * step >= taps
        if argmax is not None:
            better, into = hits[:len(a)], argmax[None] if last else marks[left]
            np.greater(b, a, out=better)
            won = better.view(np.uint8)
            if step == 1:
                np.add(numbers[left], won, out=into)
            else:
                np.multiply(won, marks[right], out=marks[right])
                np.maximum(marks[left], marks[right], out=into)
        np.maximum(a, b, out=y[None] if last else a)
        step *= 2
    if taps == 1:
        y[...] = planes[0]
        if argmax is not None:
            argmax[...] = 0


def _first_nan(planes: np.ndarray, argmax: np.ndarray) -> None:
    """Into argmax: the number of the first plane that is NaN, where one is."""
    for number in reversed(range(len(planes))):
        np.copyto(argmax, argmax.dtype.type(number), where=np.isnan(planes[number]))


def send_back(gy: np.ndarray, argmax: np.ndarray, window: Window, gx: np.ndarray) -> None:
    """Into gx: each gradient where the largest pixel of its window sat, 0 elsewhere."""
    windows = Windows(window, *gx.shape[1:3])
    if windows.inside and window.apart:
        _move(gy, argmax, windows, gx)
    else:
        _add(gy, argmax, windows, gx)


def _move(gy: np.ndarray, argmax: np.ndarray, windows: Windows, gx: np.ndarray) -> None:
    """No pixel is in two windows: gradients are copied, bit by bit."""
    bits = f"u{gy.itemsize}"
    pixels = windows.view(gx.view(bits), windows.P)  # (R, S, N, P, Q, C)
    numbers = np.arange(windows.taps, dtype=argmax.dtype)[:, None]
    if not windows.window.tiles(*windows.image):
        _clear(gx)

    def work(piece: Piece) -> None:
        g = gy[piece].reshape(-1).view(bits)
        planes = scratch("planes", (windows.taps, g.size), bits)
        hits = scratch("hits", planes.shape, bool)
        np.equal(argmax[piece].reshape(-1), numbers, out=hits)
        np.copyto(planes, hits)
        np.multiply(planes, g, out=planes)
        there = pixels[:, :, piece.images, piece.rows]
        copy_pixels(planes.reshape(there.shape), there)

    row = windows.taps * windows.Q * gx.shape[-1] * gx.itemsize  # bytes of the planes
    threads.each(work, cut(len(gx), windows.P, row, POOL_WORKSPACE))


def _add(gy: np.ndarray, argmax: np.ndarray, windows: Windows, gx: np.ndarray) -> None:
    """Windows may overlap: gradients are added, in the accumulator dtype.

    Pixel (r, s) of window (p, q) is pixel (a, b) of cell (p + i, q + j), where a cell is as large
    as a stride: i, a = divmod(r*DH, SH). So with one plane for each pixel of a cell, and rows of
    windows as long as rows of cells, window and pixel are a fixed distance apart in memory.
    """
    (N, P, Q, C), (H, W) = gy.shape, windows.image
    (R, S), (SH, SW), (DH, DW) = (
        windows.window.size, windows.window.stride, windows.window.dilation)
    (PT, _), (PL, _) = windows.window.pad
    dtype, reach = accumulator(gy.dtype), (R - 1) * DH // SH  # cells below a window's own
    bits, rows, columns = f"u{dtype.itemsize}", P + reach, Q + (S - 1) * DW // SW  # of cells
    if rows * SH - PT < H or columns * SW - PL < W:
        _clear(gx)

    def work(piece: Piece) -> None:
        start, stop = max(0, piece.rows.start - reach), min(piece.rows.stop, P)
        g, marks = gy[piece.images, start:stop], argmax[piece.images, start:stop]
        shape = len(g), piece.rows.stop - start, columns, C  # cells, also those above that reach us
        wide, wide_marks = scratch("frame", shape, dtype), scratch("marks", shape, marks.dtype)
        wide.fill(0)  # no gradients where there is no window, then marks may be anything
        wide[:, :stop - start, :Q], wide_marks[:, :stop - start, :Q] = g, marks
        wide, wide_marks = wide.reshape(-1), wide_marks.reshape(-1)
        planes = scratch("planes", (SH, SW, wide.size), dtype)
        planes.fill(0)
        for r, s in np.ndindex(R, S):
            (i, a), (j, b) = divmod(r * DH, SH), divmod(s * DW, SW)
            size = max(0, wide.size - (i * columns + j) * C)
            part, hits = scratch("part", (size,), dtype), scratch("hits", (size,), bool)
            np.equal(wide_marks[:size], r * S + s, out=hits)
            np.copyto(part.view(bits), hits)
            np.multiply(part.view(bits), wide[:size].view(bits), out=part.view(bits))
            sums = planes[a, b, wide.size - size:]
            np.add(sums, part, out=sums)
        cells, first = planes.reshape(SH, SW, *shape), piece.rows.start
        for a, b in np.ndindex(SH, SW):
            down = overlap(first * SH + a - PT, piece.rows.stop - first, H, SH)
            across = overlap(b - PL, columns, W, SW)
            mine = cells[a, b, :, first - start:]
            copy_pixels(mine[:, down[0], across[0]], gx[piece.images, down[1], across[1]])

    row = SH * SW * columns * C * dtype.itemsize  # bytes of the planes
    threads.each(work, cut(N, rows, row, POOL_WORKSPACE))


def _clear(gx: np.ndarray) -> None:
    threads.each(lambda some: gx[some].fill(0), threads.chunks(len(gx), gx[:1].nbytes))
