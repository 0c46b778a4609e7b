"""Global pooling: one number per image and channel.

    mean      y[n,c] = 1/(H*W) * sum over h,w of x[n,h,w,c]    gx[n,h,w,c] = gy[n,c] / (H*W)
    maximum   y[n,c] = max over h,w of x[n,h,w,c]    gx = gy where the maximum sat, 0 elsewhere

Pooling with a window as large as the image, as a reduction over both axes at once: a window would
be walked pixel by pixel. Ties and NaN as in max_pool.py.
"""

from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.checks import check_images
from gpuconv.ops.engine.chunks import POOL_WORKSPACE
from gpuconv.ops.engine.maxima import max_middle, scatter_middle
from gpuconv.ops.engine.packs import packs
from gpuconv.ops.engine.sums import sum_middle
from gpuconv.ops.pool.avg_pool import AvgPool2d
from gpuconv.ops.pool.max_pool import MaxPool2d
from gpuconv.ops.window import Window


def global_avg_pool2d(x: Array) -> Array:
    """Return the mean over all pixels, per image and channel.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.

    Returns:
        (N, C), dtype of x; a Tensor if x is one, else an array.

    Raises:
        ValueError: x is not 4-d.
        TypeError: x is not floating-point.

    >>> global_avg_pool2d(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[3., 4.]])

    Source: Lin, Chen, Yan, "Network in network", 2013, section 3.2.
    """
    check_images("global_avg_pool2d", x)
    return GlobalAvgPool2d(Window(x.shape[1:3]))(x)


def global_max_pool2d(x: Array) -> Array:
    """Return the largest value of all pixels, per image and channel.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.

    Returns:
        (N, C), dtype of x; a Tensor if x is one, else an array.

    Raises:
        ValueError: x is not 4-d.
        TypeError: x is not floating-point.

    >>> global_max_pool2d(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[6., 7.]])

    Source: Oquab, Bottou, Laptev, Sivic, "Is object localization for free?", 2015, section 3.2.
    """
    check_images("global_max_pool2d", x)
    return GlobalMaxPool2d(Window(x.shape[1:3]))(x)


class GlobalAvgPool2d(AvgPool2d):
    """Saves: the shape of x."""

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        N, H, W, C = self.x_shape = x.shape
        total = sum_middle(x.reshape(N, H * W, C))
        with np.errstate(all="ignore"):  # what is too large for the dtype
            return (total / np.float64(H * W)).astype(x.dtype, copy=False)

    def backward_cpu(self, gy):
        gx, dtype = memory.empty(self.x_shape, gy.dtype), accumulator(gy.dtype)
        _, H, W, _ = self.x_shape

        def work(chunk: slice) -> None:
            scaled = gy[chunk].astype(dtype, copy=False) / dtype.type(H * W)
            gx[chunk] = scaled.astype(gx.dtype, copy=False)[:, None, None]  # (n, 1, 1, C)

        threads.each(work, threads.chunks(len(gx), H * W * gx.shape[3] * dtype.itemsize,
                                          POOL_WORKSPACE))
        return (gx,)

    # -- GPU: kernels/pool/global_pool.cu -------------------------------------------------

    def forward_gpu(self, x):
        N, _, _, C = self.x_shape = x.shape
        y = cupy().empty((N, C), x.dtype)
        _launch("avg_forward", x, x, y)
        return y

    def backward_gpu(self, gy):
        gx = cupy().empty(self.x_shape, gy.dtype)
        _launch("avg_backward", gx, gy, gx)
        return (gx,)


class GlobalMaxPool2d(MaxPool2d):
    """Saves: the shape of x and, if x needs a gradient, ``argmax``: h*W + w of each maximum."""

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        N, H, W, C = self.x_shape = x.shape
        y = np.empty((N, C), x.dtype)
        self.argmax = np.empty((N, C), self.mark_dtype) if self.saving else None
        max_middle(x.reshape(N, H * W, C), y, self.argmax)
        return y

    def backward_cpu(self, gy):
        N, H, W, C = self.x_shape
        gx = memory.empty(self.x_shape, gy.dtype)
        scatter_middle(gy, self.argmax, gx.reshape(N, H * W, C))
        return (gx,)

    # -- GPU: kernels/pool/global_pool.cu -------------------------------------------------

    def forward_gpu(self, x):
        N, _, _, C = self.x_shape = x.shape
        y = cupy().empty((N, C), x.dtype)
        self.argmax = cupy().empty((N, C), self.mark_dtype) if self.saving else None
        _launch("max_forward", x, x, y, self.argmax, mark=self.mark_dtype, save=self.saving)
        return y

    def backward_gpu(self, gy):
        gx = cupy().empty(self.x_shape, gy.dtype)
        _launch("max_backward", gx, gy, self.argmax, gx, mark=self.mark_dtype, save=self.saving)
        return (gx,)


def _launch(function: str, images: Array, *arrays: Any, mark: Any = np.uint8,
            save: bool = False) -> None:
    """Run a kernel of global_pool.cu; ``images`` is the (N, H, W, C) one among the arrays.

    A block is 2^n columns of channels by ``rows`` threads: enough for about 16 pixels each, as long
    as 8 neighbours read 16 bytes of a pixel.
    """
    N, H, W, C = images.shape
    wide = packs(images[:, 0, 0], C) // max(1, N)  # columns of an image
    rows = min(_power(H * W // 16), kernels.BLOCK // min(8, _power(wide)))
    kernels.kernel("pool/global_pool.cu", f"global_pool_{function}", T=images.dtype,
                   I=kernels.index(images), MARK=np.dtype(mark), SAVE=int(save),
                   BLOCK=kernels.BLOCK)(N * wide * rows, *arrays, N, H * W, C, rows)


def _power(n: int) -> int:
    """Return the largest power of two up to n; 1 for 0."""
    return 1 << max(0, n.bit_length() - 1)
