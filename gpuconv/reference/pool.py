"""Pooling: one number of each window, per channel.

    max_pool2d   y[n,p,q,c]  = max over r,s of  x[n,h,w,c]                   h = p*SH - PT + r*DH
                 gx[n,h,w,c] = sum of gy[n,p,q,c] over the windows (p,q)     w = q*SW - PL + s*DW
                                                  whose maximum sits at (h,w)
    avg_pool2d   y[n,p,q,c]  = 1/D[p,q] * sum over r,s of  x[n,h,w,c]
                 gx[n,h,w,c] = sum of gy[n,p,q,c] / D[p,q] over the windows (p,q) with (h,w)
    global       one window, which is all of the image

Maximum: padding is never chosen. NaN counts as the largest number. The first maximum of a window in
scan order, or its first NaN, takes the whole gradient. A window without a pixel is -inf.

Mean: D[p,q] is the number of pixels of the window that are inside x or, with ``count_include_pad``,
inside x and its padding. What hangs over the far edge by ``ceil_mode`` is neither.

Source: CS231n, Convolutional Networks, Pooling Layer; Lin, Chen, Yan, "Network in network", 2013,
section 3.2.
"""

import math
from typing import Any

from gpuconv.backend import Array, get_array_module
from gpuconv.reference.reduce import max_, max_backward, mean, mean_backward
from gpuconv.reference.window import Window, window


def max_pool2d(x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Any:
    """Return the largest value of each window (N, P, Q, C); stride defaults to ``kernel_size``.

    With ``return_indices`` return a pair: this, and h*W + w of each maximum, -1 for none, as int64.

    Args:
        x: images (N, H, W, C).
        kernel_size, stride, padding, dilation, ceil_mode: see ``window``.
        return_indices: see above.

    >>> import numpy as np
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    xp, (N, H, W, C) = get_array_module(x), x.shape
    win = pool_window(x, kernel_size, stride, padding, dilation, ceil_mode)
    y = xp.full((N, *win.out, C), -math.inf, x.dtype)
    indices = xp.full(y.shape, -1, "int64")
    place = xp.arange(H * W).reshape(1, H, W, 1)
    for _, _, at, met in win.taps():
        v = x[met]
        better = (indices[at] < 0) | (v > y[at]) | (xp.isnan(v) & ~xp.isnan(y[at]))
        y[at] = xp.where(better, v, y[at])
        indices[at] = xp.where(better, place[met], indices[at])
    return (y, indices) if return_indices else y


def max_pool2d_backward(gy: Array, x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0,
                        dilation: Any = 1, ceil_mode: bool = False) -> Array:
    """Return the gradient (N, H, W, C) of ``max_pool2d``, from gy (N, P, Q, C).

    >>> import numpy as np
    >>> x = np.array([1.0, 5.0, 5.0, 2.0]).reshape(1, 1, 4, 1)
    >>> max_pool2d_backward(np.ones((1, 1, 3, 1)), x, (1, 2), 1).ravel()
    array([0., 2., 1., 0.])
    """
    xp, (_, H, W, _) = get_array_module(x), x.shape
    win = pool_window(x, kernel_size, stride, padding, dilation, ceil_mode)
    _, indices = max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, True)
    place = xp.arange(H * W).reshape(1, H, W, 1)
    gx = xp.zeros_like(x)
    for _, _, at, met in win.taps():
        gx[met] += xp.where(indices[at] == place[met], gy[at], 0)
    return gx


def avg_pool2d(x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True) -> Array:
    """Return the mean of each window (N, P, Q, C); stride defaults to ``kernel_size``.

    Args:
        x: images (N, H, W, C).
        kernel_size, stride, padding, ceil_mode: see ``window``.
        count_include_pad: count the zeros of the padding in the mean.

    >>> import numpy as np
    >>> avg_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    win = pool_window(x, kernel_size, stride, padding, 1, ceil_mode)
    y = get_array_module(x).zeros((len(x), *win.out, x.shape[3]), x.dtype)
    for _, _, at, met in win.taps():
        y[at] += x[met]
    return y / divisor(x, win, count_include_pad)


def avg_pool2d_backward(gy: Array, x: Array, kernel_size: Any, stride: Any = None, padding: Any = 0,
                        ceil_mode: bool = False, count_include_pad: bool = True) -> Array:
    """Return the gradient (N, H, W, C) of ``avg_pool2d``, from gy (N, P, Q, C).

    >>> import numpy as np
    >>> avg_pool2d_backward(np.ones((1, 1, 2, 1)), np.zeros((1, 1, 3, 1)), (1, 2), 1).ravel()
    array([0.5, 1. , 0.5])
    """
    win = pool_window(x, kernel_size, stride, padding, 1, ceil_mode)
    share = gy / divisor(x, win, count_include_pad)
    gx = get_array_module(x).zeros_like(x)
    for _, _, at, met in win.taps():
        gx[met] += share[at]
    return gx


def pool_window(x: Array, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
                ceil_mode: bool) -> Window:
    """Return the window over images x; without a stride its positions lie side by side.

    >>> import numpy as np
    >>> pool_window(np.zeros((1, 4, 4, 1)), 2, None, 0, 1, False).stride
    (2, 2)
    """
    stride = kernel_size if stride is None else stride
    return window(x.shape[1:3], kernel_size, stride, padding, dilation, ceil_mode)


def divisor(x: Array, win: Window, count_include_pad: bool) -> Array:
    """Return D (1, P, Q, 1), the number of pixels that the mean of each window is over.

    >>> import numpy as np
    >>> divisor(np.zeros((1, 1, 3, 1)), window((1, 3), (1, 2), 2, (0, 1)), False).ravel()
    array([1., 2.])
    """
    if count_include_pad:  # the padded image is all pixels, without padding
        image = (win.image[0] + sum(win.pad[0]), win.image[1] + sum(win.pad[1]))
        win = win._replace(image=image, pad=((0, 0), (0, 0)))
    count = get_array_module(x).zeros((1, *win.out, 1), x.dtype)
    for _, _, at, _ in win.taps():
        count[at] += 1
    return count


def global_avg_pool2d(x: Array) -> Array:
    """Return the mean of all pixels (N, C) of images x (N, H, W, C).

    >>> import numpy as np
    >>> global_avg_pool2d(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[3., 4.]])
    """
    return mean(x, axis=(1, 2))


def global_avg_pool2d_backward(gy: Array, x: Array) -> Array:
    """Return the gradient (N, H, W, C) of ``global_avg_pool2d``, from gy (N, C).

    >>> import numpy as np
    >>> global_avg_pool2d_backward(np.ones((1, 1)), np.zeros((1, 1, 2, 1))).ravel()
    array([0.5, 0.5])
    """
    return mean_backward(gy, x, axis=(1, 2))


def global_max_pool2d(x: Array) -> Array:
    """Return the largest value of all pixels (N, C) of images x (N, H, W, C).

    >>> import numpy as np
    >>> global_max_pool2d(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[6., 7.]])
    """
    return max_(x, axis=(1, 2))


def global_max_pool2d_backward(gy: Array, x: Array) -> Array:
    """Return the gradient (N, H, W, C) of ``global_max_pool2d``, from gy (N, C).

    >>> import numpy as np
    >>> x = np.array([5.0, 5.0]).reshape(1, 1, 2, 1)
    >>> global_max_pool2d_backward(np.ones((1, 1)), x).ravel()
    array([1., 0.])
    """
    return max_backward(gy, x, axis=(1, 2))
