"""Global pooling: one number per image and channel.

    mean      y[n,c] = 1/(H*W) * sum over h,w of x[n,h,w,c]    gx[n,h,w,c] = gy[n,c] / (H*W)
    maximum   y[n,c] = max over h,w of x[n,h,w,c]    gx = gy where the maximum sat, 0 elsewhere

Pooling with a window as large as the image. On the GPU it is just that; on the CPU a reduction over
both axes at once, because a window is walked pixel by pixel. Ties and NaN as in max_pool.py.
"""

import numpy as np

from gpuconv import threads
from gpuconv.backend import Array, accumulator
from gpuconv.ops.avg_pool import AvgPool2d
from gpuconv.ops.checks import check_images
from gpuconv.ops.max_pool import MaxPool2d
from gpuconv.ops.window import POOL_WORKSPACE, Window


def global_avg_pool2d(x: Array) -> Array:
    """Mean over all pixels, per image and channel.

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
    """Largest value of all pixels, per image and channel.

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
        y, dtype = np.empty((N, C), x.dtype), accumulator(x.dtype)

        def piece_of(piece: slice) -> None:
            rows = x[piece].sum(axis=2, dtype=dtype)  # (n, H, C): short sums round less
            y[piece] = rows.sum(axis=1) / dtype.type(H * W)  # (n, C)

        threads.each(piece_of, _pieces(x.shape, dtype))
        return y

    def backward_cpu(self, gy):
        gx, dtype = np.empty(self.x_shape, gy.dtype), accumulator(gy.dtype)
        _, H, W, _ = self.x_shape

        def piece_of(piece: slice) -> None:
            share = gy[piece].astype(dtype, copy=False) / dtype.type(H * W)
            gx[piece] = share.astype(gx.dtype, copy=False)[:, None, None]  # (n, 1, 1, C)

        threads.each(piece_of, _pieces(gx.shape, dtype))
        return (gx,)

    # -- GPU: kernels/avg_pool.cu ----------------------------------------------------

    def forward_gpu(self, x):
        return super().forward_gpu(x).reshape(x.shape[0], x.shape[3])  # (N, C)

    def backward_gpu(self, gy):
        return super().backward_gpu(gy.reshape(gy.shape[0], 1, 1, gy.shape[1]))  # (N, 1, 1, C)


class GlobalMaxPool2d(MaxPool2d):
    """Saves: the shape of x and, if x needs a gradient, ``argmax``: h*W + w of each maximum."""

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        N, H, W, C = self.x_shape = x.shape
        y, dtype = np.empty((N, C), x.dtype), accumulator(x.dtype)
        self.argmax = np.empty((N, C), self.mark_dtype) if self.saving else None

        def piece_of(piece: slice) -> None:
            images = x[piece].astype(dtype, copy=False).reshape(-1, H * W, C)
            if self.argmax is None:
                y[piece] = images.max(axis=1)
            else:
                where = images.argmax(axis=1)  # the first NaN, or the first maximum
                self.argmax[piece] = where
                y[piece] = np.take_along_axis(images, where[:, None], axis=1)[:, 0]  # (n, C)

        threads.each(piece_of, _pieces(x.shape, dtype))
        return y

    def backward_cpu(self, gy):
        N, H, W, C = self.x_shape
        gx = np.zeros((N, H * W, C), gy.dtype)
        np.put_along_axis(gx, self.argmax[:, None].astype(np.intp), gy[:, None], axis=1)
        return (gx.reshape(self.x_shape),)

    # -- GPU: kernels/max_pool.cu ----------------------------------------------------

    def forward_gpu(self, x):
        return super().forward_gpu(x).reshape(x.shape[0], x.shape[3])  # (N, C)

    def backward_gpu(self, gy):
        return super().backward_gpu(gy.reshape(gy.shape[0], 1, 1, gy.shape[1]))  # (N, 1, 1, C)


def _pieces(x_shape: tuple[int, ...], dtype: np.dtype) -> list[slice]:
    N, H, W, C = x_shape
    return threads.chunks(N, H * W * C * dtype.itemsize, POOL_WORKSPACE)
