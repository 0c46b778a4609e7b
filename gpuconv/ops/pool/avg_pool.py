"""Average pooling.

    y[n,p,q,c]  = 1/D[p,q] * sum over r,s of  x[n, p*SH - PT + r, q*SW - PL + s, c]    (0 outside x)
    gx[n,h,w,c] = sum of gy[n,p,q,c] / D[p,q] over the windows (p,q) that (h,w) is in

D[p,q] is how many pixels of the window are inside x or, with ``count_include_pad``, inside x and
its padding. What hangs over the far edge by ``ceil_mode`` is neither. The backward pass needs
nothing but shapes.
"""

import math
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.checks import LARGEST_INT, check_images
from gpuconv.ops.engine.chunks import POOL_WORKSPACE, Chunk, clear, copy_pixels, image_chunks
from gpuconv.ops.engine.packs import packs, tile_packs
from gpuconv.ops.engine.sums import BLOCK, block_sums
from gpuconv.ops.pool.cpu_windows import planes_of, scatter_add, windows_view
from gpuconv.ops.pool.pool_window import pool_window
from gpuconv.ops.window import IntOrPair, Padding, Window, kept_taps, levelled


def avg_pool2d(x: Array, kernel_size: IntOrPair, stride: IntOrPair | None = None,
               padding: Padding = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Array:
    """Return the mean of each window, per channel.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        kernel_size: window (R, S) or one int, pixels.
        stride: (SH, SW) or one int, pixels. Default: ``kernel_size``, windows side by side.
        padding: zeros around x: one int, (PH, PW) or ((top, bottom), (left, right)), pixels; at
            most half of ``kernel_size``.
        ceil_mode: round P and Q up: a last window may hang over the bottom or right edge, if it
            starts inside x or the padding above or left of it. Its mean is over what it covers.
        count_include_pad: do the zeros of the padding count in the mean?

    Returns:
        (N, P, Q, C), dtype of x, P = (H + top + bottom - R) // SH + 1, Q likewise;
        a Tensor if x is one, else an array.

    Raises:
        ValueError: x is not 4-d, the window does not fit, or there is too much padding.
        TypeError: x is not floating-point.

    >>> image = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> avg_pool2d(image, 2)[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])

    Source: CS231n, Convolutional Networks, Pooling Layer (General pooling).
    """
    check_images("avg_pool2d", x)
    window = pool_window("avg_pool2d", x, kernel_size, stride, padding, ceil_mode=ceil_mode)
    return AvgPool2d(window, bool(count_include_pad))(x)


class AvgPool2d(Op):
    """Saves: the shape of x."""

    depends_on, multiply_adds = "window", 0

    def __init__(self, window: Window, count_include_pad: bool = True):
        self.window, self.count_include_pad = window, count_include_pad

    @property
    def level(self) -> Window:
        """Levelled window of these images."""
        return levelled(self.window, *self.x_shape[1:3], "pooled")

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        N, H, W, C = self.x_shape = x.shape
        window, dtype = self.level, accumulator(x.dtype)
        (P, Q), taps = window.out_shape(H, W), math.prod(window.size)
        y = memory.empty((N, P, Q, C), x.dtype)
        planes_under, divisor = planes_of(x, window, dtype, 0), self.divisor(dtype)

        def work(chunk: Chunk) -> None:
            here = y[chunk]
            total = here if here.dtype == dtype else threads.workspace("total", here.shape, dtype)
            pixels = planes_under(chunk)
            planes = threads.workspace("planes", pixels.shape, dtype)
            copy_pixels(pixels, planes)
            if taps <= BLOCK:
                np.add.reduce(planes.reshape(taps, *here.shape), axis=0, out=total)
            else:
                total[...] = block_sums(planes.reshape(1, taps, here.size)).reshape(here.shape)
            np.divide(total, divisor[chunk.rows], out=total)
            if total is not here:
                here[...] = total

        row = taps * Q * C * dtype.itemsize  # bytes of the planes
        threads.each(work, image_chunks(N, P, row, POOL_WORKSPACE))
        return y

    def backward_cpu(self, gy):
        window, dtype = self.level, accumulator(gy.dtype)
        gx = memory.empty(self.x_shape, gy.dtype)
        scaled, divisor = memory.empty(gy.shape, dtype), self.divisor(dtype)
        threads.each(lambda some: np.divide(gy[some].astype(dtype, copy=False), divisor,
                                            out=scaled[some]),
                     threads.chunks(len(gy), scaled[:1].nbytes))
        if not (window.inside and window.disjoint):
            scatter_add(scaled, None, window, gx)
            return (gx,)
        if not window.tiles(*gx.shape[1:3]):
            clear(gx)
        pixels = windows_view(gx, window, *gy.shape[1:3])  # (R, S, N, P, Q, C)
        threads.each(lambda some: copy_pixels(scaled[some], pixels[:, :, some]),
                     threads.chunks(len(gx), gx[:1].nbytes))
        return (gx,)

    def divisor(self, dtype: np.dtype) -> np.ndarray:
        """Return the number of pixels of each window's mean: (P, Q, C); (P, 1, 1) if equal."""
        H, W = self.x_shape[1:3]
        counts = []
        for axis, (n, out) in enumerate(zip((H, W), self.window.out_shape(H, W), strict=True)):
            near, far = self.window.pad[axis]
            low, high = (-near, n + far) if self.count_include_pad else (0, n)
            start = np.arange(out) * self.level.stride[axis] - near
            stop = np.minimum(start + self.window.size[axis], high)
            counts.append(stop - np.maximum(start, low))
        rows, columns = counts
        each = (rows[:, None] * columns.astype(np.float64))[:, :, None].astype(dtype)
        return each[:, :1] if (each == each[0, 0]).all() else each.repeat(self.x_shape[3], axis=2)

    # -- GPU: kernels/pool/avg_pool.cu, same names, same order ----------------------------

    def forward_gpu(self, x):
        N, H, W, C = self.x_shape = x.shape
        P, Q = self.window.out_shape(H, W)
        y = cupy().empty((N, P, Q, C), x.dtype)
        self.kernel("avg_pool_forward", x, y)(packs(y, C), x, y, N, H, W, C, P, Q)
        return y

    def backward_gpu(self, gy):
        N, H, W, C = self.x_shape
        _, P, Q, _ = gy.shape
        gx = cupy().empty(self.x_shape, gy.dtype)
        self.kernel("avg_pool_backward", gx, gy)(
            tile_packs(gx, C, self.level), gy, gx, N, H, W, C, P, Q)
        return (gx,)

    def kernel(self, function: str, x: Array, y: Array) -> Any:
        """Return the CUDA function, compiled for this window and for arrays like these."""
        (_, PB), (_, PR) = self.window.pad
        FULL_R, FULL_S = self.window.size
        r, s = kept_taps(self.window, *self.x_shape[1:3], "pooled")
        if max(FULL_R, FULL_S) >= LARGEST_INT:
            raise ValueError(f"avg_pool2d: window {self.window.size}: on a GPU below 2**30 pixels "
                             f"high and wide")
        return kernels.kernel("pool/avg_pool.cu", function, T=x.dtype, I=kernels.index(x, y), PB=PB,
                              PR=PR, FULL_R=FULL_R, FULL_S=FULL_S, CUT_R=r.start, CUT_S=s.start,
                              INCLUDE=int(self.count_include_pad), **self.level.macros())
