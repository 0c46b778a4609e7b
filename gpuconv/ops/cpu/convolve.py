"""Convolution on the CPU: products of matrices, a few images at a time.

    route       what it does                             for
    winograd    4 times fewer products                   3x3, stride 1, many channels, float32
    planes      im2col, one channel at a time            few channels, stride 1 along a row
    patches     im2col in cache-sized pieces             everything else; a window that covers the
                                                         image, or is one pixel, needs no copy

The input gradient is a convolution again: with stride 1 of gy with the filters turned by 180
degrees; with a larger stride each pixel of x in a square of SH x SW has filter pixels of its own
that touch it, which makes SH*SW small convolutions that write to every SH-th row and SW-th column.
Where x has few channels, or is much larger than gy, the products gy w are added up instead, as the
definition says.

The route and all cuts depend on shapes only, and partial weight gradients are added in the order
of the batch: the bits do not depend on the number of threads.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.cpu import winograd
from gpuconv.ops.cpu.patches import Patches
from gpuconv.ops.cpu.pieces import Slide
from gpuconv.ops.cpu.planes import Planes

PATCHES, PLANES, WINOGRAD = Patches(), Planes(), winograd.Winograd()
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


def input_gradient(gy: np.ndarray, w: np.ndarray, slide: Slide, groups: int,
                   gx: np.ndarray) -> None:
    """Into gx (N, H, W, C), from gy (N, P, Q, K) and the filters w of the convolution."""
    dtype = accumulator(gy.dtype)
    rows, columns = (list(_touching(axis, slide)) for axis in (0, 1))
    for c, k in parts(gx.shape[3], gy.shape[3], groups):
        if _scattered(gx[..., c].shape, gy.shape, slide, dtype):
            PLANES.scatter(gy[..., k], w[k].astype(dtype, copy=False), slide, gx[..., c])
            continue
        turned = w[k].transpose(1, 2, 0, 3)                             # (R, S, K/G, C/G)
        for h, (r, apart_h, start_h) in enumerate(rows):
            for v, (s, apart_w, start_w) in enumerate(columns):
                into = gx[:, h :: slide.step[0], v :: slide.step[1], c]
                taps = np.ascontiguousarray(turned[r, s], dtype)
                if not (into.size and taps.size):
                    into[...] = 0
                    continue
                part = Slide(taps.shape[:2], (1, 1), (apart_h, apart_w), (start_h, start_w))
                _route(taps.shape, part, dtype, into.shape).correlate(
                    gy[..., k], taps, None, part, into)


def weight_gradient(x: np.ndarray, gy: np.ndarray, slide: Slide, groups: int) -> np.ndarray:
    """(K, R, S, C/groups), in accumulator(gy.dtype), from x (N, H, W, C) and gy (N, P, Q, K)."""
    (R, S), (C, K), dtype = slide.size, (x.shape[3], gy.shape[3]), accumulator(gy.dtype)
    gw = np.empty((K, R, S, C // groups), dtype)
    for c, k in parts(C, K, groups):
        _weight_gradient(x[..., c], gy[..., k], slide, gw[k])
    return gw


def _weight_gradient(x: np.ndarray, gy: np.ndarray, slide: Slide, gw: np.ndarray) -> None:
    """Into gw (K, R, S, C): of one group."""
    shape, dtype = (*slide.size, x.shape[3], gy.shape[3]), gw.dtype
    route = _route(shape, slide, dtype, gy.shape)
    pieces = route.gradient_pieces(gy.shape, shape, dtype)
    count = min(len(pieces), SUMS if gw.nbytes <= SMALL else SUMS // 2)
    cuts = [len(pieces) * i // count for i in range(count + 1)] if count else []

    def sum_of(run: slice) -> np.ndarray:
        kept = route.gradient_shape(shape)
        total, part = (threads.scratch(name, math.prod(kept), dtype).reshape(kept)
                       for name in ("gw", "gw_part"))
        route.weight_gradient(x, gy, slide, pieces[run.start], total)
        for piece in pieces[run.start + 1 : run.stop]:
            route.weight_gradient(x, gy, slide, piece, part)
            total += part
        return route.filter_gradient(total, shape)

    sums = threads.each(sum_of, [slice(*both) for both in zip(cuts, cuts[1:], strict=False)])

    def add(filters: slice) -> None:
        gw[filters] = sums[0][filters] if sums else 0
        for more in sums[1:]:
            gw[filters] += more[filters]

    threads.each(add, threads.chunks(len(gw), 2 * gw[:1].nbytes))


def sum_rows(gy: np.ndarray) -> np.ndarray:
    """(K,): the sum over all but the last axis, in chunks added in order."""
    dtype = accumulator(gy.dtype)

    def sum_of(piece: slice) -> np.ndarray:
        return gy[piece].sum(axis=(0, 1, 2), dtype=dtype)

    total = np.zeros(gy.shape[3], dtype)
    for part in threads.each(sum_of, threads.chunks(len(gy), gy[:1].nbytes)):
        total += part
    return total.astype(gy.dtype, copy=False)


def parts(C: int, K: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """The channels and the filters of each group."""
    c, k = C // groups, K // groups
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)


def _touching(axis: int, slide: Slide) -> Iterator[tuple[slice, int, int]]:
    """For the pixels h = i*step + a of x, a = 0, 1, ...: who reads them.

    That is: which pixels r of a filter, last first; how far apart the windows p are in which they
    do; and which of these comes first for i = 0. For p*step + start + r*apart = h.
    """
    size, step, apart, start = (pair[axis] for pair in slide)
    jump = step // math.gcd(step, apart)  # from one such r to the next
    for a in range(step):
        r = [r for r in range(size) if (a - start - r * apart) % step == 0]
        if r:
            last_first = slice(r[-1], r[0] - 1 if r[0] else None, -jump)
            yield last_first, jump * apart // step, (a - start - r[-1] * apart) // step
        else:
            yield slice(0, 0), 1, 0


def _scattered(x: tuple[int, ...], gy: tuple[int, ...], slide: Slide, dtype: np.dtype) -> bool:
    """Do the sums of products cost less than the products of patches?"""
    (_, H, W, C), (_, P, Q, _), (SH, SW) = x, gy, slide.step
    image = P * Q * math.prod(slide.size) * C * dtype.itemsize  # bytes of the products
    return image <= LARGE and (C < FEW or 2 * H * W > 3 * P * Q * SH * SW)


def _route(taps: tuple[int, ...], slide: Slide, dtype: np.dtype, y: tuple[int, ...]) -> Any:
    """Who does it best, for filters (R, S, C, K) and outputs (N, P, Q, K)."""
    (R, S, C, K), (_, P, Q, _) = taps, y
    if ((R, S) == (3, 3) and slide.step == slide.apart == (1, 1) and dtype == np.float32
            and min(C, K) >= winograd.CHANNELS and min(P, Q) >= winograd.PIXELS):
        return WINOGRAD
    if slide.step[1] == 1 and Q >= 2 * S * C and R * S > 1:
        return PLANES
    return PATCHES
