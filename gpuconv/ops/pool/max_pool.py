"""Max pooling.

    y[n,p,q,c]  = max over r,s of  x[n, p*SH - PT + r*DH, q*SW - PL + s*DW, c]    (-inf outside x)
    gx[n,h,w,c] = sum of gy[n,p,q,c] over the windows (p,q) whose maximum sits at (h,w)

The backward pass needs only *where* each maximum sat: r*S + s, one byte per output. The first
maximum of a window, in scan order, takes the whole gradient. NaN counts as the largest number, so
the first NaN does. Padding never does, not even when all of the window is -inf.

The CPU compares whole planes, plane (r, s) being that pixel of all windows: see cpu_max.py.
"""

from typing import Any

import numpy as np

from gpuconv import kernels, memory
from gpuconv.autograd import Op
from gpuconv.backend import Array, array_device, cupy, get_array_module
from gpuconv.ops.checks import check_images
from gpuconv.ops.engine.packs import packs, tile_packs
from gpuconv.ops.pool.cpu_max import max_pool, scatter_to_argmax
from gpuconv.ops.pool.pool_window import pool_window
from gpuconv.ops.window import IntOrPair, Padding, Window, levelled


def max_pool2d(x: Array, kernel_size: IntOrPair, stride: IntOrPair | None = None,
               padding: Padding = 0, dilation: IntOrPair = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Any:
    """Return the largest value of each window, per channel.

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
    window = pool_window("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    op = MaxPool2d(window, mark=return_indices)
    y = op(x)
    return (y, op.indices()) if return_indices else y


class MaxPool2d(Op):
    """Saves: the shape of x and, if x needs a gradient, ``argmax`` (N, P, Q, C), uint8.

    A window of over 256 pixels makes argmax int32. With ``mark`` it is saved in any case.
    """

    depends_on, multiply_adds = "window", 0
    argmax: Any

    def __init__(self, window: Window, mark: bool = False):
        self.window, self.mark = window, mark
        small = window.size[0] * window.size[1] <= 256
        self.mark_dtype: np.dtype = np.dtype(np.uint8 if small else np.int32)

    @property
    def saving(self) -> bool:
        """True if forward has to save where the maxima sit."""
        return self.needs[0] or self.mark

    def save(self, x_shape: tuple[int, ...], argmax: Array | None) -> None:
        """Keep what backward reads, where another kernel has computed y from an x of this shape."""
        self.x_shape, self.argmax = x_shape, argmax if self.saving else None

    def indices(self) -> Array:
        """Return h*W + w of each maximum: (N, P, Q, C), int64; -1 for a window without pixels."""
        xp: Any = get_array_module(self.argmax)
        window = self.level
        (_, S), (SH, SW), (DH, DW) = window.size, window.stride, window.dilation
        (PT, _), (PL, _) = window.pad
        (_, H, W, _), (_, P, Q, _) = self.x_shape, self.argmax.shape
        with array_device(self.argmax):
            where = self.argmax.astype(np.int64)
            h = where // S * DH + (xp.arange(P) * SH - PT).reshape(P, 1, 1)  # (N, P, Q, C)
            w = where % S * DW + (xp.arange(Q) * SW - PL).reshape(Q, 1)  # (N, P, Q, C)
            inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            return xp.where(inside, h * W + w, -1)

    @property
    def level(self) -> Window:
        """Levelled window of these images; argmax counts its pixels."""
        return levelled(self.window, *self.x_shape[1:3], "pooled")

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        self.x_shape = x.shape
        shape = len(x), *self.window.out_shape(*x.shape[1:3]), x.shape[-1]
        y = memory.empty(shape, x.dtype)
        self.argmax = memory.empty(shape, self.mark_dtype) if self.saving else None
        max_pool(x, self.level, y, self.argmax)
        return y

    def backward_cpu(self, gy):
        gx = memory.empty(self.x_shape, gy.dtype)
        scatter_to_argmax(gy, self.argmax, self.level, gx)
        return (gx,)

    # -- GPU: kernels/pool/max_pool.cu, same names, same order ----------------------------

    def forward_gpu(self, x):
        cp = cupy()
        N, H, W, C = self.x_shape = x.shape
        P, Q = self.window.out_shape(H, W)
        y = cp.empty((N, P, Q, C), x.dtype)
        self.argmax = cp.empty(y.shape, self.mark_dtype) if self.saving else None
        self.kernel("max_pool_forward", x, y)(packs(y, C), x, y, self.argmax, N, H, W, C, P, Q)
        return y

    def backward_gpu(self, gy):
        N, H, W, C = self.x_shape
        _, P, Q, _ = gy.shape
        gx = cupy().empty(self.x_shape, gy.dtype)
        self.kernel("max_pool_backward", gx, gy)(
            tile_packs(gx, C, self.level), gy, self.argmax, gx, N, H, W, C, P, Q)
        return (gx,)

    def kernel(self, function: str, x: Array, y: Array) -> Any:
        """Return the CUDA function, compiled for this window and for arrays like these."""
        return kernels.kernel("pool/max_pool.cu", function, T=x.dtype, I=kernels.index(x, y),
                              MARK=self.mark_dtype, SAVE=int(self.saving), **self.level.macros())


