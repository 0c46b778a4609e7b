"""Convolution on the CPU: products of matrices, a few images at a time.

    algorithm   what it does                             for
    winograd    4 times fewer products                   3x3, stride 1, many channels, float32
    planar      im2col, one channel at a time            few channels, stride 1 along a row
    im2col      patches in cache-sized chunks            everything else; a window that covers the
                                                         image, or is one pixel, needs no copy

The input gradient is a convolution again (``dgrad_parts``): with stride 1 of gy with the filters
rotated by 180 degrees; with a larger stride each pixel of x in a square of SH x SW has filter
pixels of its own that meet it, or none. Each pixel of the square that has some makes a small
convolution, which writes to every SH-th row and SW-th column; the others are zero.
Where x has few channels, or is much larger than gy, gx = col2im(gy w) takes less time.

The algorithm and all chunks depend on shapes only, and partial weight gradients are added in the
order of the batch: the bits do not depend on the number of threads.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.conv import cpu_winograd
from gpuconv.ops.conv.cpu_im2col import Im2colConv
from gpuconv.ops.conv.cpu_planar import PlanarConv
from gpuconv.ops.engine.chunks import Chunk, clear
from gpuconv.ops.engine.sums import BLOCK
from gpuconv.ops.window import ConvShape, spanning

IM2COL, PLANAR, WINOGRAD = Im2colConv(), PlanarConv(), cpu_winograd.WinogradConv()
SUMS = 8         # partial weight gradients, each over a run of chunks; half, if they are not SMALL
SMALL = 1 << 20  # bytes
CHANNELS = 16    # Winograd: channels and filters, at least, or its transforms cost too much
SAVED = 2        # Winograd: ratio of products, at least, with tiles that hang over the edge
FEW = 12         # channels of x below which gx = col2im(gy w)
LARGE = 64 << 20  # bytes of gy w for one image, at most, for gx = col2im(gy w)


def forward(shape: ConvShape, x: np.ndarray, w: np.ndarray, b: np.ndarray | None,
            y: np.ndarray) -> None:
    """Write the convolution of x (N, H, W, C) with w (K, R, S, C/groups), plus b (K,), into y."""
    one, dtype = shape.group, accumulator(x.dtype)
    bias = None if b is None else b.astype(dtype, copy=False)
    algorithm = select(one, dtype)
    for c, k in groups_of(shape):
        taps = w[k].transpose(1, 2, 3, 0).astype(dtype, copy=False)  # (R, S, C/G, K/G)
        algorithm.forward(one, x[..., c], taps, bias if bias is None else bias[k], y[..., k])


def gradients(shape: ConvShape, x: np.ndarray | None, w: np.ndarray | None, gy: np.ndarray,
              gx: np.ndarray | None, gw: np.ndarray | None) -> None:
    """Write the gradients of ``forward`` into gx and gw, or into one of them.

    Args:
        shape: as for ``forward``.
        x: (N, H, W, C), for gw.
        w: filters (K, R, S, C/groups), for gx.
        gy: (N, P, Q, K), any float dtype.
        gx: shape and dtype of x, or None.
        gw: shape of w, accumulator(gy.dtype), or None.
    """
    one = shape.group
    for c, k in groups_of(shape):
        images, filters, g = x if x is None else x[..., c], w if w is None else w[k], gy[..., k]
        into_x, into_w = gx if gx is None else gx[..., c], gw if gw is None else gw[k]
        if images is not None and filters is not None and into_x is not None and (
                into_w is not None) and _both_by_winograd(one, into_w.dtype):
            dgrad_wgrad(one, images, filters, g, into_x, into_w)
            continue
        if filters is not None and into_x is not None:
            dgrad(one, g, filters, into_x)
        if images is not None and into_w is not None:
            wgrad(one, images, g, into_w)


def dgrad(shape: ConvShape, gy: np.ndarray, w: np.ndarray, gx: np.ndarray) -> None:
    """Write the input gradient of one group into gx (N, H, W, C)."""
    dtype = accumulator(gy.dtype)
    if _by_col2im(shape, dtype):
        PLANAR.dgrad(shape, gy, w.astype(dtype, copy=False), gx)
        return
    parts, (SH, SW) = dgrad_parts(shape), shape.window.stride
    if len(parts) < min(SH, shape.H) * min(SW, shape.W):
        clear(gx)
    for (h, v), taps, part in parts:
        select(part, dtype).forward(part, gy, _rotated(w, *taps, dtype), None, gx[:, h::SH, v::SW])


def wgrad(shape: ConvShape, x: np.ndarray, gy: np.ndarray, gw: np.ndarray) -> None:
    """Write the weight gradient of one group into gw (K, R, S, C)."""
    algorithm = select(shape, gw.dtype)

    def partial(chunk: Chunk, out: np.ndarray) -> None:
        algorithm.wgrad(shape, x, gy, chunk, out)

    _sum_partials(algorithm, shape, partial, algorithm.wgrad_chunks(shape, gw.dtype), gw)


def dgrad_wgrad(shape: ConvShape, x: np.ndarray, w: np.ndarray, gy: np.ndarray, gx: np.ndarray,
                gw: np.ndarray) -> None:
    """Write both gradients of one group by Winograd's algorithm."""
    (_, taps, back), = dgrad_parts(shape)
    filters = WINOGRAD.filters(_rotated(w, *taps, gw.dtype))

    def partial(chunk: Chunk, out: np.ndarray) -> None:
        WINOGRAD.dgrad_wgrad(back, x, gy, filters, chunk, gx, out)

    _sum_partials(WINOGRAD, shape, partial, WINOGRAD.wgrad_chunks(back), gw[:, ::-1, ::-1])


def _sum_partials(algorithm: Any, shape: ConvShape, partial: Callable[[Chunk, np.ndarray], None],
                  chunks: list[Chunk], gw: np.ndarray) -> None:
    """Write the sum of the partial gradients of all chunks into gw (K, R, S, C), in their order."""
    size, dtype = algorithm.partial_shape(shape), gw.dtype
    count = min(len(chunks), most_sums(gw.nbytes))
    edges = [len(chunks) * i // count for i in range(count + 1)] if count else []

    def sum_of(run: slice) -> np.ndarray:
        total, part = (threads.workspace(name, size, dtype) for name in ("gw", "gw_part"))
        partial(chunks[run.start], total)
        if run.stop - run.start > BLOCK:  # or float32 would lose digits
            total = total.astype(np.float64)
        for chunk in chunks[run.start + 1 : run.stop]:
            partial(chunk, part)
            total += part
        return algorithm.filter_gradient(shape, total.astype(dtype, copy=False))

    sums = threads.each(sum_of, [slice(*both) for both in zip(edges, edges[1:], strict=False)])

    def add(filters: slice) -> None:
        gw[filters] = sums[0][filters] if sums else 0
        for more in sums[1:]:
            gw[filters] += more[filters]

    threads.each(add, threads.chunks(len(gw), 2 * gw[:1].nbytes))


def most_sums(size: int) -> int:
    """Return the largest number of partial weight gradients of so many bytes."""
    return SUMS if size <= SMALL else SUMS // 2


def groups_of(shape: ConvShape) -> Iterator[tuple[slice, slice]]:
    """Yield the channels and the filters of each group."""
    c, k = shape.C // shape.groups, shape.K // shape.groups
    for g in range(shape.groups):
        yield slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)


class DgradPart(NamedTuple):
    """A convolution of gy that makes every SH-th row and SW-th column of gx, from pixel (h, w)."""

    first: tuple[int, int]      # (h, w)
    taps: tuple[slice, slice]   # of the filters, last first
    shape: ConvShape            # of gy (N, P, Q, K) with C filters


@functools.lru_cache(4096)
def dgrad_parts(shape: ConvShape) -> tuple[DgradPart, ...]:
    """Return the convolutions of gy that make the input gradient of one group.

    Pixels of x that no filter meets belong to none of them.
    """
    rows, columns = (list(_classes(shape, axis)) for axis in (0, 1))
    (SH, SW), parts = shape.window.stride, []
    for h, r, *down in rows:
        for v, s, *across in columns:
            size, dilation, near = zip(down, across, strict=True)
            window = spanning(size, (1, 1), near, dilation, (shape.P, shape.Q),
                              (-(-(shape.H - h) // SH), -(-(shape.W - v) // SW)))
            parts.append(DgradPart((h, v), (r, s), ConvShape(
                shape.N, shape.P, shape.Q, shape.K, shape.C, window)))
    return tuple(parts)


def _classes(shape: ConvShape, axis: int) -> Iterator[tuple[int, slice, int, int, int]]:
    """Yield the classes h = i*stride + a of pixels of x that filters meet, by increasing a < n.

    Pixel r of the filter meets h at position p if p*stride - near + r*dilation = h. Each class is
    (a; the r that meet it, last first; and of the window over gy that makes it: size, dilation,
    near padding).
    """
    n, window = (shape.H, shape.W)[axis], shape.window
    size, stride, dilation = window.size[axis], window.stride[axis], window.dilation[axis]
    near = window.pad[axis][0]
    jump = stride // math.gcd(stride, dilation)  # from one r of a class to the next
    for a, r in sorted(((r * dilation - near) % stride, r) for r in range(min(size, jump))):
        if a < n:
            count = (size - 1 - r) // jump + 1
            last = r + (count - 1) * jump
            last_first = slice(last, r - 1 if r else None, -jump)
            yield (a, last_first, count, jump * dilation // stride,
                   (last * dilation - near - a) // stride)


def _rotated(w: np.ndarray, r: slice, s: slice, dtype: np.dtype) -> np.ndarray:
    """Return these taps, last first, of the filters w (K, R, S, C) as (R', S', K, C)."""
    return np.ascontiguousarray(w[:, r, s].transpose(1, 2, 0, 3), dtype)


def _by_col2im(shape: ConvShape, dtype: np.dtype) -> bool:
    """Return True if gx = col2im(gy w) takes less time than the convolutions of gy."""
    (SH, SW), pixels = shape.window.stride, shape.P * shape.Q
    image = pixels * shape.R * shape.S * shape.C * dtype.itemsize  # bytes of the products
    return image <= LARGE and (
        shape.C < FEW or 2 * shape.H * shape.W > 3 * pixels * SH * SW)


def _both_by_winograd(shape: ConvShape, dtype: np.dtype) -> bool:
    """Return True if Winograd's algorithm is the best for both gradients."""
    if _by_col2im(shape, dtype) or select(shape, dtype) is not WINOGRAD:
        return False
    (_, _, back), = dgrad_parts(shape)
    return select(back, dtype) is WINOGRAD


def select(shape: ConvShape, dtype: np.dtype) -> Any:
    """Return the fastest algorithm for one group, computed in ``dtype``: by shape alone."""
    window = shape.window
    if (window.size == (3, 3) and window.stride == window.dilation == (1, 1)
            and dtype == np.float32 and min(shape.C, shape.K) >= CHANNELS):
        tiles = -(-shape.P // cpu_winograd.M) * -(-shape.Q // cpu_winograd.M)
        if 9 * shape.P * shape.Q >= SAVED * cpu_winograd.E**2 * tiles:
            return WINOGRAD
    if window.stride[1] == 1 and shape.Q >= 2 * shape.S * shape.C and shape.R * shape.S > 1:
        return PLANAR
    return IM2COL
