"""The largest of several planes on the CPU, which plane it stood in, and maxima along an axis."""

import math

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import POOL_WORKSPACE, copy_pixels
from gpuconv.ops.engine.row_broadcast import RUN

LONG = 512  # elements: a tournament between shorter runs does not pay


def max_over_planes(pixels: np.ndarray, taps: int, y: np.ndarray, argmax: np.ndarray | None,
                    first: np.ndarray | None = None) -> None:
    """Write the largest of ``taps`` planes into y, and its number into argmax.

    NaN is the largest of all; of equals the first one counts. Runs in this thread.

    Args:
        pixels: (..., C), the planes one after the other, each of the shape of y.
        taps: number of planes.
        y: written, any float dtype.
        argmax: written, shape of y, any integer dtype; or None.
        first: lower bounds of argmax, broadcast to y: planes before them hold padding; or None.
    """
    dtype = accumulator(y.dtype)
    best = y if y.dtype == dtype else threads.workspace("best", y.shape, dtype)
    planes = threads.workspace("planes", pixels.shape, dtype)
    copy_pixels(pixels, planes)
    planes = planes.reshape(taps, -1)
    if argmax is None:
        tournament_max(planes, best.reshape(-1))
    else:
        tournament_max(planes, best.reshape(-1), argmax.reshape(-1))
        if first is not None:
            np.maximum(argmax, first.astype(argmax.dtype), out=argmax)
        if math.isnan(np.maximum.reduce(best, axis=None)):
            _first_nan(pixels.reshape(taps, *argmax.shape), argmax)
    if best is not y:
        y[...] = best


def tournament_max(planes: np.ndarray, y: np.ndarray, argmax: np.ndarray | None = None) -> None:
    """Write the largest of the planes (taps, n) into y (n,), and the first plane that has it.

    Neighbours are compared pairwise, then the winners, and so on; of two planes the later one wins
    only if it is greater. ``planes`` is overwritten. Where y is NaN, argmax is undefined.
    """
    taps, step = len(planes), 1
    if argmax is not None:
        numbers = np.arange(taps, dtype=argmax.dtype)[:, None]
        marks = threads.workspace("marks", planes.shape, argmax.dtype)
        hits = threads.workspace("hits", (taps // 2, y.size), bool)
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
    """Write the number of the first plane that is NaN into argmax, where one is."""
    for number in reversed(range(len(planes))):
        np.copyto(argmax, argmax.dtype.type(number), where=np.isnan(planes[number]))


def max_middle(x: np.ndarray, y: np.ndarray, argmax: np.ndarray | None) -> None:
    """Write the maximum of x (A, B, C) over B > 0 into y (A, C), its place along B into argmax.

    NaN is the largest of all; of equals the first one counts.
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
        threads.each(lambda some: max_over_planes(
            x[some].transpose(1, 0, 2), B, y[some], None if argmax is None else argmax[some]),
            threads.chunks(A, B * C * size, POOL_WORKSPACE))
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
    """Return the largest power of 2 up to ``most``, or 1."""
    return 1 << max(0, most.bit_length() - 1)


def scatter_middle(gy: np.ndarray, argmax: np.ndarray, gx: np.ndarray) -> None:
    """Write gy (A, C) into gx (A, B, C) where ``max_middle`` found the maximum, 0 elsewhere."""
    A, B, C = gx.shape

    def work(some: slice) -> None:
        into = gx[some].reshape(-1)
        into.fill(0)
        at = np.arange(some.stop - some.start)[:, None] * B + argmax[some]  # int64
        into[at * C + np.arange(C)] = gy[some]

    threads.each(work, threads.chunks(A, B * C * gx.itemsize))
