"""Convolution on the CPU: products of matrices, a few images at a time.

    route       what it does                             for
    winograd    4 times fewer products                   3x3, stride 1, many channels, float32
    planes      im2col, one channel at a time            few channels, stride 1 along a row
    patches     im2col in cache-sized pieces             everything else; a window that covers the
                                                         image, or is one pixel, needs no copy

The input gradient is a convolution again: with stride 1 of gy with the filters turned by 180
degrees; with a larger stride each pixel of x in a square of SH x SW has filter pixels of its own
that touch it, or none. Each pixel of the square that has some makes a small convolution, which
writes to every SH-th row and SW-th column; the others are zero.
Where x has few channels, or is much larger than gy, the products gy w are added up instead, as the
definition says.

The route and all cuts depend on shapes only, and partial weight gradients are added in the order
of the batch: the bits do not depend on the number of threads.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.conv import cpu_winograd
from gpuconv.ops.conv.cpu_im2col import Patches
from gpuconv.ops.conv.cpu_planar import Planes
from gpuconv.ops.engine.chunks import Piece, Slide, clear
from gpuconv.ops.engine.sums import BLOCK

PATCHES, PLANES, WINOGRAD = Patches(), Planes(), cpu_winograd.Winograd()
SUMS = 8         # partial weight gradients, each over a run of pieces; half, if they are not SMALL
SMALL = 1 << 20  # bytes
FEW = 12         # channels, see _scattered
LARGE = 64 << 20  # bytes, likewise


def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, slide: Slide, groups: int,
              y: np.ndarray) -> None:
    """Into y (N, P, Q, K): x (N, H, W, C) under filters w (K, R, S, C/groups), plus b (K,)."""
    dtype = accumulator(x.dtype)
    bias = None if b is None else b.astype(dtype, copy=False)
    for c, k in parts(x.shape[3], len(w), groups):
        taps = w[k].transpose(1, 2, 3, 0).astype(dtype, copy=False)  # (R, S, C/G, K/G)
        into = y[..., k]
        _route(taps.shape, slide, dtype, into.shape).correlate(
            x[..., c], taps, bias if bias is None else bias[k], slide, into)


def gradients(x: np.ndarray | None, w: np.ndarray | None, gy: np.ndarray, slide: Slide,
              groups: int, gx: np.ndarray | None, gw: np.ndarray | None) -> None:
    """Into gx and gw, or one of them: the gradients of ``correlate``, from gy (N, P, Q, K).

    Args:
        x: (N, H, W, C), where gw is wanted.
        w: filters (K, R, S, C/groups), where gx is wanted.
        gy: any float dtype.
        slide: as of ``correlate``.
        groups: likewise.
        gx: shape and dtype of x, or None.
        gw: shape of w, accumulator(gy.dtype), or None.
    """
    C = gx.shape[3] if gx is not None else groups * gw.shape[3]  # type: ignore[union-attr]
    for c, k in parts(C, gy.shape[3], groups):
        images, filters, g = x if x is None else x[..., c], w if w is None else w[k], gy[..., k]
        into_x, into_w = gx if gx is None else gx[..., c], gw if gw is None else gw[k]
        if images is not None and filters is not None and into_x is not None and (
                into_w is not None) and _together(into_w, slide, into_x.shape, g.shape):
            _gradients(images, filters, g, slide, into_x, into_w)
            continue
        if filters is not None and into_x is not None:
            _input_gradient(g, filters, slide, into_x)
        if images is not None and into_w is not None:
            _weight_gradient(images, g, slide, into_w)


def _input_gradient(gy: np.ndarray, w: np.ndarray, slide: Slide, gx: np.ndarray) -> None:
    """Write the input gradient of one group into gx (N, H, W, C)."""
    dtype = accumulator(gy.dtype)
    if _scattered(gx.shape, gy.shape, slide, dtype):
        PLANES.scatter(gy, w.astype(dtype, copy=False), slide, gx)
        return
    rows, columns = (list(_touching(axis, slide, gx.shape[1 + axis])) for axis in (0, 1))
    if (len(rows), len(columns)) != tuple(map(min, slide.step, gx.shape[1:3])):
        clear(gx)
    for h, r, apart_h, start_h in rows:
        for v, s, apart_w, start_w in columns:
            into = gx[:, h :: slide.step[0], v :: slide.step[1]]
            taps = _turned(w, r, s, dtype)
            part = Slide(taps.shape[:2], (1, 1), (apart_h, apart_w), (start_h, start_w))
            _route(taps.shape, part, dtype, into.shape).correlate(gy, taps, None, part, into)


def _weight_gradient(x: np.ndarray, gy: np.ndarray, slide: Slide, gw: np.ndarray) -> None:
    """Into gw (K, R, S, C): of one group."""
    taps = *slide.size, x.shape[3], gy.shape[3]
    route = _route(taps, slide, gw.dtype, gy.shape)

    def share(piece: Piece, out: np.ndarray) -> None:
        route.weight_gradient(x, gy, slide, piece, out)

    _sum_shares(route, share, route.gradient_pieces(gy.shape, taps, gw.dtype), taps, gw)


def _gradients(x: np.ndarray, w: np.ndarray, gy: np.ndarray, slide: Slide, gx: np.ndarray,
               gw: np.ndarray) -> None:
    """Both, of one group, by Winograd's algorithm."""
    (_, r, _, start_h), (_, s, _, start_w) = (
        next(_touching(axis, slide, gx.shape[1 + axis])) for axis in (0, 1))
    filters = WINOGRAD.filters(_turned(w, r, s, gw.dtype))
    back = slide._replace(start=(start_h, start_w))
    taps = *slide.size, gx.shape[3], gy.shape[3]

    def share(piece: Piece, out: np.ndarray) -> None:
        WINOGRAD.gradients(x, gy, filters, back, piece, gx, out)

    pieces = WINOGRAD.gradient_pieces(gx.shape, taps)
    _sum_shares(WINOGRAD, share, pieces, taps, gw[:, ::-1, ::-1])


def _sum_shares(route: Any, share: Callable[[Piece, np.ndarray], None], pieces: list[Piece],
                taps: tuple[int, ...], gw: np.ndarray) -> None:
    """Into gw (K, R, S, C): the sum of what ``share`` gives for all pieces, in their order."""
    kept, dtype = route.gradient_shape(taps), gw.dtype
    count = min(len(pieces), most_sums(gw.nbytes))
    cuts = [len(pieces) * i // count for i in range(count + 1)] if count else []

    def sum_of(run: slice) -> np.ndarray:
        total, part = (threads.workspace(name, kept, dtype) for name in ("gw", "gw_part"))
        share(pieces[run.start], total)
        if run.stop - run.start > BLOCK:  # or float32 would lose digits
            total = total.astype(np.float64)
        for piece in pieces[run.start + 1 : run.stop]:
            share(piece, part)
            total += part
        return route.filter_gradient(total.astype(dtype, copy=False), taps)

    sums = threads.each(sum_of, [slice(*both) for both in zip(cuts, cuts[1:], strict=False)])

    def add(filters: slice) -> None:
        gw[filters] = sums[0][filters] if sums else 0
        for more in sums[1:]:
            gw[filters] += more[filters]

    threads.each(add, threads.chunks(len(gw), 2 * gw[:1].nbytes))


def most_sums(size: int) -> int:
    """Partial weight gradients of so many bytes, at most."""
    return SUMS if size <= SMALL else SUMS // 2


def parts(C: int, K: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """The channels and the filters of each group."""
    c, k = C // groups, K // groups
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)


def _touching(axis: int, slide: Slide, n: int) -> Iterator[tuple[int, slice, int, int]]:
    """Yield the pixels of x that filters read, as classes h = i*step + a, by increasing a < n.

    Pixel r of the filter reads h at window p if p*step + start + r*apart = h. Each class is
    (a; the r that read it, last first; how far apart their windows are; the first of these for
    i = 0).
    """
    size, step, apart, start = (pair[axis] for pair in slide)
    jump = step // math.gcd(step, apart)  # from one r of a class to the next
    for a, r in sorted(((start + r * apart) % step, r) for r in range(min(size, jump))):
        if a < n:
            last = r + (size - 1 - r) // jump * jump
            last_first = slice(last, r - 1 if r else None, -jump)
            yield a, last_first, jump * apart // step, (a - start - last * apart) // step


def _turned(w: np.ndarray, r: slice, s: slice, dtype: np.dtype) -> np.ndarray:
    """(R', S', K, C): these pixels, last first, of the filters w (K, R, S, C), to convolve gy."""
    return np.ascontiguousarray(w[:, r, s].transpose(1, 2, 0, 3), dtype)


def _scattered(x: tuple[int, ...], gy: tuple[int, ...], slide: Slide, dtype: np.dtype) -> bool:
    """Do the sums of products cost less than the products of patches?"""
    (_, H, W, C), (_, P, Q, _), (SH, SW) = x, gy, slide.step
    image = P * Q * math.prod(slide.size) * C * dtype.itemsize  # bytes of the products
    return image <= LARGE and (C < FEW or 2 * H * W > 3 * P * Q * SH * SW)


def _together(gw: np.ndarray, slide: Slide, gx: tuple[int, ...], gy: tuple[int, ...]) -> bool:
    """Is Winograd's algorithm the best for both gradients?"""
    K, R, S, C = gw.shape
    there, back = (R, S, C, K), (R, S, K, C)
    return not _scattered(gx, gy, slide, gw.dtype) and (
        _route(there, slide, gw.dtype, gy) is _route(back, slide, gw.dtype, gx) is WINOGRAD)


def _route(taps: tuple[int, ...], slide: Slide, dtype: np.dtype, y: tuple[int, ...]) -> Any:
    """Who does it best, for filters (R, S, C, K) and outputs (N, P, Q, K)."""
    (R, S, C, K), (_, P, Q, _) = taps, y
    if ((R, S) == (3, 3) and slide.step == slide.apart == (1, 1) and dtype == np.float32
            and cpu_winograd.pays(C, K, P, Q)):
        return WINOGRAD
    if slide.step[1] == 1 and Q >= 2 * S * C and R * S > 1:
        return PLANES
    return PATCHES
