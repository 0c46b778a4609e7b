"""The largest pixel of each window, where it sat, and gradients on their way back there."""

import math

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.cpu.pieces import Piece, cut
from gpuconv.ops.cpu.rows import RUN
from gpuconv.ops.cpu.windows import Windows, add_back, clear, copy_pixels
from gpuconv.ops.window import POOL_WORKSPACE, Window

LONG = 512  # elements: shorter runs are not worth a knockout


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
        best = here if here.dtype == dtype else threads.scratch("best", here.shape, dtype)
        pixels = planes_of(piece)
        planes = threads.scratch("planes", pixels.shape, dtype)
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
        marks = threads.scratch("marks", planes.shape, argmax.dtype)
        hits = threads.scratch("hits", (taps // 2, y.size), bool)
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


def largest_middle(x: np.ndarray, y: np.ndarray, argmax: np.ndarray | None) -> None:
    """Into y (A, C): the largest of x (A, B, C) along b, and which it is into argmax; B > 0.

    NaN is the largest of all; of equals it is the first.
    """
    size = accumulator(x.dtype).itemsize
    A, B, C = x.shape
    if not y.size:
        return
    if A == 1:  # some columns at a time
        c = math.gcd(C, _power_of_2(POOL_WORKSPACE // (B * size)))
        x = x.reshape(B, C // c, c).transpose(1, 0, 2)
        y, argmax = y.reshape(-1, c), None if argmax is None else argmax.reshape(-1, c)
        A, B, C = x.shape
    if B <= 256 and min(A, POOL_WORKSPACE // (B * C * size)) * C >= LONG:
        tall = None if argmax is None else argmax.reshape(A, 1, 1, C)
        largest(x.reshape(A, B, 1, C), Window((B, 1)), y.reshape(A, 1, 1, C), tall)
        return
    k = math.gcd(B, _power_of_2(RUN // C))  # maximum needs long runs as well

    def work(some: slice) -> None:
        part = x[some].astype(accumulator(x.dtype), copy=False)
        if argmax is None and C > 1:
            y[some] = part.reshape(-1, B // k, k * C).max(axis=1).reshape(-1, k, C).max(axis=1)
            return
        first = part.argmax(axis=1)  # also the first NaN
        y[some] = np.take_along_axis(part, first[:, None], axis=1)[:, 0]
        if argmax is not None:
            argmax[some] = first

    threads.each(work, threads.chunks(A, B * C * size, POOL_WORKSPACE))


def _power_of_2(most: int) -> int:
    """The largest that is not above ``most``, 1 at least."""
    return 1 << max(0, most.bit_length() - 1)


def give_back(gy: np.ndarray, argmax: np.ndarray, gx: np.ndarray) -> None:
    """Into gx (A, B, C): gy (A, C) where ``largest_middle`` found the largest, 0 elsewhere."""
    A, B, C = gx.shape

    def work(some: slice) -> None:
        into = gx[some].reshape(-1)
        into.fill(0)
        at = np.arange(some.stop - some.start)[:, None] * B + argmax[some]  # int64
        into[at * C + np.arange(C)] = gy[some]

    threads.each(work, threads.chunks(A, B * C * gx.itemsize))


def send_back(gy: np.ndarray, argmax: np.ndarray, window: Window, gx: np.ndarray) -> None:
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
        planes = threads.scratch("planes", (windows.taps, g.size), bits)
        hits = threads.scratch("hits", planes.shape, bool)
        np.equal(argmax[piece].reshape(-1), numbers, out=hits)
        np.copyto(planes, hits)
        np.multiply(planes, g, out=planes)
        there = pixels[:, :, piece.images, piece.rows]
        copy_pixels(planes.reshape(there.shape), there)

    row = windows.taps * windows.Q * gx.shape[-1] * gx.itemsize  # bytes of the planes
    threads.each(work, cut(len(gx), windows.P, row, POOL_WORKSPACE))
