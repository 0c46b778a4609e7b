"""How the work of a convolution is cut, and where its windows lie."""

from typing import NamedTuple

import numpy as np

from gpuconv import threads

Pair = tuple[int, int]


class Slide(NamedTuple):
    """Windows that slide over images: each pair is (height, width), pixels.

    Window (p, q) begins at pixel ``start + step * (p, q)``, which may be outside the image, where
    there are zeros; its pixels are ``apart``.
    """

    size: Pair
    step: Pair
    apart: Pair
    start: Pair

    def first(self, row: int) -> Pair:
        """The pixel where the first window of a row begins."""
        return self.start[0] + row * self.step[0], self.start[1]

    def reach(self, rows: int, columns: int) -> Pair:
        """Height and width of the pixels under so many windows."""
        height, width = ((count - 1) * step + (size - 1) * apart + 1 for count, size, step, apart
                         in zip((rows, columns), self.size, self.step, self.apart, strict=True))
        return height, width


class Piece(NamedTuple):
    """Some rows of the outputs of some images."""

    images: slice
    rows: slice


def cut(images: int, rows: int, row_bytes: int, budget: int, worth: float = 0) -> list[Piece]:
    """Pieces whose workspace fits the budget: whole images, or rows of one image.

    For threads to share there are as many as the work is ``worth``, up to threads.SHARES. The cut
    depends on these numbers only, never on the number of threads.

    >>> cut(4, 2, 100, 400)
    [Piece(images=slice(0, 2, None), rows=slice(0, 2, None)), \
Piece(images=slice(2, 4, None), rows=slice(0, 2, None))]
    >>> cut(1, 4, 100, 200)
    [Piece(images=slice(0, 1, None), rows=slice(0, 2, None)), \
Piece(images=slice(0, 1, None), rows=slice(2, 4, None))]
    """
    shares = min(threads.SHARES, int(worth))
    if rows * row_bytes <= budget and images >= shares:
        return [Piece(some, slice(0, rows))
                for some in threads.chunks(images, rows * row_bytes, budget, worth)]
    pieces = threads.chunks(rows, row_bytes, budget, -(-shares // max(1, images)))
    return [Piece(slice(i, i + 1), some) for i in range(images) for some in pieces]


def copy_framed(x: np.ndarray, start: Pair, out: np.ndarray) -> None:
    """Into out (n, h, w, C): x (n, H, W, C) from pixel ``start`` on, zeros where x has none.

    >>> out = np.empty((1, 2, 3, 1)); copy_framed(np.ones((1, 2, 2, 1)), (-1, 0), out)
    >>> out[0, :, :, 0]
    array([[0., 0., 0.],
           [1., 1., 0.]])
    """
    into, source = zip(*(overlap(first, room, size) for first, room, size
                         in zip(start, out.shape[1:3], x.shape[1:3], strict=True)), strict=True)
    if any(some != slice(0, room) for some, room in zip(into, out.shape[1:3], strict=True)):
        out.fill(0)  # all of it: fewer calls than the four sides
    out[:, *into] = x[:, *source]


def copy_taps(x: np.ndarray, slide: Slide, row: int, out: np.ndarray, beside: float = 0) -> None:
    """Copy the pixels under windows into out (n, P, Q, R, S, C), one tap at a time.

    A copy of all pixels that the windows span, which ``copy_framed`` makes, is larger than that
    where the taps or the windows lie far apart.

    Args:
        x: (n, H, W, C).
        slide: where the windows are.
        row: of windows, which the first of out is.
        out: any dtype and strides.
        beside: what there is outside of x.
    """
    (_, P, Q, R, S, _), (H, W) = out.shape, x.shape[1:3]
    out.fill(beside)
    (top, left), (SH, SW), (DH, DW) = slide.first(row), slide.step, slide.apart
    across = [overlap(left + s * DW, Q, W, SW) for s in range(S)]
    for r in range(R):
        into_h, from_h = overlap(top + r * DH, P, H, SH)
        for s, (into_w, from_w) in enumerate(across):
            out[:, into_h, into_w, r, s] = x[:, from_h, from_w]


def overlap(first: int, count: int, size: int, step: int = 1) -> tuple[slice, slice]:
    """Which of ``count`` places first, first + step, ... are inside 0..size, and where that is.

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
