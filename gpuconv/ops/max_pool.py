"""Max pooling.

    y[n,p,q,c]  = max over r,s of  x[n, p*SH - PT + r*DH, q*SW - PL + s*DW, c]    (-inf outside x)
    gx[n,h,w,c] = sum of gy[n,p,q,c] over the windows (p,q) whose maximum sits at (h,w)

The backward pass needs only *where* each maximum sat: r*S + s, one byte per output. The first
maximum of a window, in scan order, takes the whole gradient. NaN counts as the largest number, so
the first NaN does. Padding never does, not even when all of the window is -inf.

The CPU pads nothing: it takes pixel (r, s) of all windows that have it inside the image, as one
strided view per (r, s), and goes on to the next.
"""

from typing import Any, cast

import numpy as np

from gpuconv import kernels, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, array_device, cupy, get_array_module
from gpuconv.ops.checks import check_images
from gpuconv.ops.window import POOL_WORKSPACE, IntOrPair, Padding, Window, pool_window


def max_pool2d(x: Array, kernel_size: IntOrPair, stride: IntOrPair | None = None,
               padding: Padding = 0, dilation: IntOrPair = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Any:
    """Largest value of each window, per channel.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        kernel_size: window (R, S) or one int, pixels.
        stride: (SH, SW) or one int, pixels. Default: ``kernel_size``, windows side by side.
        padding: pixels around x, none of which is ever chosen: one int, (PH, PW) or ((top, bottom),
            (left, right)); at most half of ``kernel_size``.
        dilation: distance (DH, DW) between the pixels of a window, or one int.
        ceil_mode: round P and Q up: a last window may hang over the bottom or right edge, if it
            starts inside x or the padding above or left of it.
        return_indices: also give the place of each maximum.

    Returns:
        (N, P, Q, C), dtype of x, P = (H + top + bottom - DH*(R-1) - 1) // SH + 1, Q likewise;
        a Tensor if x is one, else an array. With ``return_indices`` a pair: this, and an array
        (N, P, Q, C), int64, of h*W + w; -1 where dilation left no pixel of x in the window.

    Raises:
        ValueError: x is not 4-d, the window does not fit, or there is too much padding.
        TypeError: x is not floating-point.

    >>> image = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool2d(image, 2)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])

    Source: CS231n, Convolutional Networks, Pooling Layer.
    """
    check_images("max_pool2d", x)
    window = pool_window("max_pool2d", x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    op = MaxPool2d(window, mark=return_indices)
    y = op(x)
    return (y, op.indices()) if return_indices else y


class MaxPool2d(Op):
    """Saves: the shape of x and, if x needs a gradient, ``argmax`` (N, P, Q, C), uint8.

    A window of over 256 pixels makes argmax int32. With ``mark`` it is saved in any case.
    """

    argmax: Any

    def __init__(self, window: Window, mark: bool = False):
        self.window, self.mark = window, mark
        small = window.size[0] * window.size[1] <= 256
        self.mark_dtype: np.dtype = np.dtype(np.uint8 if small else np.int32)

    @property
    def saving(self) -> bool:
        """Will somebody ask where the maxima sat?"""
        return self.needs[0] or self.mark

    def indices(self) -> Array:
        """(N, P, Q, C) int64: h*W + w of each maximum, -1 for a window without a pixel of x."""
        xp: Any = get_array_module(self.argmax)
        (_, S), (SH, SW), (DH, DW) = self.window.size, self.window.stride, self.window.dilation
        (PT, _), (PL, _) = self.window.pad
        (_, H, W, _), (_, P, Q, _) = self.x_shape, self.argmax.shape
        with array_device(self.argmax):
            where = self.argmax.astype(np.int64)
            h = where // S * DH + (xp.arange(P) * SH - PT).reshape(P, 1, 1)  # (N, P, Q, C)
            w = where % S * DW + (xp.arange(Q) * SW - PL).reshape(Q, 1)  # (N, P, Q, C)
            inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            return xp.where(inside, h * W + w, -1)

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        N, H, W, C = self.x_shape = x.shape
        P, Q = self.window.out_shape(H, W)
        dtype, inside, first = accumulator(x.dtype), self.window.inside(H, W), self.first(P, Q)
        y = np.empty((N, P, Q, C), x.dtype)
        self.argmax = np.empty(y.shape, self.mark_dtype) if self.saving else None

        def piece_of(piece: slice) -> None:
            images, best = x[piece].astype(dtype, copy=False), y[piece]
            if best.dtype != dtype:
                best = threads.scratch("best", best.size, dtype).reshape(best.shape)
            if self.argmax is None:
                _largest(images, inside, best)
            else:
                self.argmax[piece] = first if first.any() else 0
                _first_largest(images, inside, best, self.argmax[piece])
            if best.dtype != y.dtype:
                y[piece] = best

        image = H * W * C * dtype.itemsize  # bytes
        threads.each(piece_of, threads.chunks(N, image, POOL_WORKSPACE))
        return y

    def first(self, P: int, Q: int) -> np.ndarray:
        """(P, Q, 1): r*S + s of the first pixel of each window that is inside x."""
        (_, S), (SH, SW), (DH, DW) = self.window.size, self.window.stride, self.window.dilation
        (PT, _), (PL, _) = self.window.pad
        r = -(np.minimum(0, np.arange(P) * SH - PT) // DH)
        s = -(np.minimum(0, np.arange(Q) * SW - PL) // DW)
        return (r[:, None] * S + s)[:, :, None]

    def backward_cpu(self, gy):
        N, H, W, C = self.x_shape
        gx, inside = np.empty(self.x_shape, gy.dtype), self.window.inside(H, W)
        apart = self.window.apart  # then a gradient is moved, bit by bit, and never added to
        dtype = gy.dtype if apart else accumulator(gy.dtype)
        gaps = not self.window.tiles(H, W)

        def piece_of(piece: slice) -> None:
            g, argmax, into = gy[piece].astype(dtype, copy=False), self.argmax[piece], gx[piece]
            if into.dtype != dtype:
                into = threads.scratch("gx", into.size, dtype).reshape(into.shape)
            if gaps:
                into.fill(0)
            for where, windows, at in inside:
                shape, size = argmax[windows].shape, argmax[windows].size
                hit = threads.scratch("hit", size, bool).reshape(shape)
                np.equal(argmax[windows], where, out=hit)
                if apart:
                    _where(hit, g[windows], out=into[at])
                else:
                    part = threads.scratch("part", size, dtype).reshape(shape)
                    into[at] += _where(hit, g[windows], out=part)
            if into.dtype != gx.dtype:
                gx[piece] = into

        image = H * W * C * dtype.itemsize  # bytes
        threads.each(piece_of, threads.chunks(N, image, POOL_WORKSPACE))
        return (gx,)

    # -- GPU: kernels/max_pool.cu, same names, same order ----------------------------

    def forward_gpu(self, x):
        cp = cupy()
        N, H, W, C = self.x_shape = x.shape
        P, Q = self.window.out_shape(H, W)
        y = cp.empty((N, P, Q, C), x.dtype)
        self.argmax = cp.empty(y.shape, self.mark_dtype) if self.saving else None
        self.kernel("max_pool_forward", x, y)(y.size, x, y, self.argmax, N, H, W, C, P, Q)
        return y

    def backward_gpu(self, gy):
        N, H, W, C = self.x_shape
        _, P, Q, _ = gy.shape
        gx = cupy().empty(self.x_shape, gy.dtype)
        self.kernel("max_pool_backward", gx, gy)(gx.size, gy, self.argmax, gx, N, H, W, C, P, Q)
        return (gx,)

    def kernel(self, function: str, x: Array, y: Array) -> Any:
        """The CUDA function, compiled for this window and for arrays like these."""
        return kernels.kernel("max_pool.cu", function, T=x.dtype, I=kernels.index(x, y),
                              MARK=self.mark_dtype, SAVE=int(self.saving), **self.window.macros())


# -- CPU: a piece of the batch; inside is Window.inside ----------------------------------


def _start(x: np.ndarray, inside: list, y: np.ndarray) -> list:
    """Into y: the first pixel of each window, -inf where that is padding. The others are left."""
    _, windows, at = inside[0]
    if x[at].shape != y.shape:
        y.fill(-np.inf)
    y[windows] = x[at]
    return inside[1:]


def _largest(x: np.ndarray, inside: list, y: np.ndarray) -> None:
    """Into y: the largest value of each window, NaN if there is one."""
    for _, windows, at in _start(x, inside, y):
        np.maximum(y[windows], x[at], out=y[windows])


def _first_largest(x: np.ndarray, inside: list, y: np.ndarray, argmax: np.ndarray) -> None:
    """And into argmax, which holds the first pixel of each window that is inside: where it sat.

    Later pixels have greater numbers, so argmax is a running maximum as well.
    """
    for where, windows, at in _start(x, inside, y):
        best, marks, v = y[windows], argmax[windows], x[at]
        better = threads.scratch("better", v.size, bool).reshape(v.shape)
        mark = threads.scratch("mark", v.size, argmax.dtype).reshape(v.shape)
        np.greater(v, best, out=better)
        np.multiply(better.view(np.uint8), argmax.dtype.type(where), out=mark)
        np.maximum(marks, mark, out=marks)
        np.maximum(best, v, out=best)
    if np.isnan(y, out=threads.scratch("better", y.size, bool).reshape(y.shape)).any():
        for where, windows, at in reversed(inside):
            np.copyto(argmax[windows], cast(Any, where), where=np.isnan(x[at]))


def _where(hit: np.ndarray, g: np.ndarray, out: np.ndarray) -> np.ndarray:
    """G where hit, else 0: as integers, because inf times 0 is not 0; a masked copy is slower."""
    bits = np.dtype(f"i{g.dtype.itemsize}")
    np.multiply(g.view(bits), hit, out=out.view(bits))
    return out
