"""2-d convolution as the course notes teach it: patches as rows, one matrix product, and back.

    y  = col(x) w^T + b        col(x): im2col, a row for each position of the window (N*P*Q, R*S*C)
    gw = gy^T col(x)           w:      a row for each filter (K, R*S*C)
    gx = col2im(gy w)          gy:     a row for each position (N*P*Q, K)

A row of col(x) holds what a filter sees at one position, so that its product with a filter is one
output. The matrix repeats each pixel up to R*S times: simple and fast, at the price of memory.
``gpuconv.ops.im2col`` and ``col2im`` make the rows, on a GPU by one CUDA kernel each, in
kernels/conv/im2col.cu. ``reference.conv2d`` is the definition that this algorithm computes.

Source: CS231n, Convolutional Networks, "Implementation as Matrix Multiplication".
"""

from typing import Any

from gpuconv.backend import Array, get_array_module
from gpuconv.ops import col2im, im2col
from gpuconv.reference.conv2d import parts
from gpuconv.reference.window import window


def conv2d_im2col(x: Array, w: Array, b: Array | None = None, *, stride: Any = 1, padding: Any = 0,
                  dilation: Any = 1, groups: int = 1) -> Array:
    """Return y (N, P, Q, K): K filters slid over images.

    Args:
        x: images (N, H, W, C).
        w: filters (K, R, S, C/groups).
        b: bias (K,), or None.
        stride, padding, dilation: see ``window``.
        groups: number of parts that channels and filters fall into.

    >>> import numpy as np
    >>> conv2d_im2col(np.arange(9.0).reshape(1, 3, 3, 1), np.ones((1, 2, 2, 1)))[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    (K, R, S, C), win = w.shape, window(x.shape[1:3], w.shape[1:3], stride, padding, dilation)
    y = get_array_module(x).empty((len(x), *win.out, K), x.dtype)
    for c, k in parts(x.shape[3], K, groups):
        col = im2col(x[..., c], (R, S), win.stride, win.pad, win.dilation)   # (N, P, Q, R*S*C)
        col = col.reshape(-1, R * S * C)                                     # (N*P*Q, R*S*C)
        filters = w[k].reshape(-1, R * S * C)                                # (K/G, R*S*C)
        y[..., k] = (col @ filters.T).reshape(*y.shape[:3], len(filters))    # (N, P, Q, K/G)
    return y if b is None else y + b


def conv2d_im2col_backward(gy: Array, x: Array, w: Array, b: Array | None = None, *,
                           stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                           groups: int = 1) -> tuple[Array, Array, Array | None]:
    """Return the gradients (gx, gw, gb) of ``conv2d_im2col``, from gy (N, P, Q, K).

    The rows of patches are made again: keeping them takes R*S times the memory of x.

    >>> import numpy as np
    >>> x, w = np.arange(9.0).reshape(1, 3, 3, 1), np.ones((1, 2, 2, 1))
    >>> gx, gw, _ = conv2d_im2col_backward(np.ones((1, 2, 2, 1)), x, w)
    >>> gw[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    gx = conv2d_im2col_dgrad(gy, x, w, stride, padding, dilation, groups)
    gw = conv2d_im2col_wgrad(gy, x, w, stride, padding, dilation, groups)
    return gx, gw, None if b is None else gy.sum(axis=(0, 1, 2))


def conv2d_im2col_dgrad(gy: Array, x: Array, w: Array, stride: Any = 1, padding: Any = 0,
                        dilation: Any = 1, groups: int = 1) -> Array:
    """Return the input gradient gx (N, H, W, C); of x only the shape is read.

    >>> import numpy as np
    >>> x, w = np.arange(9.0).reshape(1, 3, 3, 1), np.ones((1, 2, 2, 1))
    >>> conv2d_im2col_dgrad(np.ones((1, 2, 2, 1)), x, w)[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    (K, R, S, C), win = w.shape, window(x.shape[1:3], w.shape[1:3], stride, padding, dilation)
    gx = get_array_module(x).empty(x.shape, x.dtype)
    for c, k in parts(x.shape[3], K, groups):
        filters = w[k].reshape(-1, R * S * C)                                # (K/G, R*S*C)
        g = gy[..., k].reshape(-1, len(filters))                             # (N*P*Q, K/G)
        gcol = (g @ filters).reshape(*gy.shape[:3], R * S * C)               # (N, P, Q, R*S*C)
        gx[..., c] = col2im(gcol, (*x.shape[:3], C), (R, S), win.stride, win.pad, win.dilation)
    return gx


def conv2d_im2col_wgrad(gy: Array, x: Array, w: Array, stride: Any = 1, padding: Any = 0,
                        dilation: Any = 1, groups: int = 1) -> Array:
    """Return the weight gradient gw (K, R, S, C/groups); of w only the shape is read.

    >>> import numpy as np
    >>> x, w = np.arange(9.0).reshape(1, 3, 3, 1), np.ones((1, 2, 2, 1))
    >>> conv2d_im2col_wgrad(np.ones((1, 2, 2, 1)), x, w)[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    (K, R, S, C), win = w.shape, window(x.shape[1:3], w.shape[1:3], stride, padding, dilation)
    gw = get_array_module(w).empty(w.shape, w.dtype)
    for c, k in parts(x.shape[3], K, groups):
        col = im2col(x[..., c], (R, S), win.stride, win.pad, win.dilation)   # (N, P, Q, R*S*C)
        col = col.reshape(-1, R * S * C)                                     # (N*P*Q, R*S*C)
        g = gy[..., k].reshape(len(col), -1)                                 # (N*P*Q, K/G)
        gw[k] = (g.T @ col).reshape(-1, R, S, C)                             # (K/G, R, S, C)
    return gw
