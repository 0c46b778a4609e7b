"""Image patches as rows of a matrix, and back.

    col[n,p,q, (r*S + s)*C + c] = x[n,h,w,c]        h = p*SH - PT + r*DH, w = q*SW - PL + s*DW
    col2im:  x[n,h,w,c] = sum of all elements of col that im2col copies from x[n,h,w,c]

x is 0 outside of the image. Each of the two is the gradient of the other.

Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
processing", 2006.
"""

from typing import Any

from gpuconv.backend import Array, get_array_module
from gpuconv.reference.window import window


def im2col(x: Array, kernel_size: Any, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1) -> Array:
    """Return the patches (N, P, Q, R*S*C) of images x (N, H, W, C).

    >>> import numpy as np
    >>> im2col(np.arange(9.0).reshape(1, 3, 3, 1), 2)[0, 0]
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.]])
    """
    (N, H, W, C), xp = x.shape, get_array_module(x)
    win = window((H, W), kernel_size, stride, padding, dilation)
    col = xp.zeros((N, *win.out, *win.size, C), x.dtype)  # (N, P, Q, R, S, C)
    for r, s, at, met in win.taps():
        col[*at, r, s] = x[met]
    return col.reshape(N, *win.out, -1)


def im2col_backward(gy: Array, x: Array, kernel_size: Any, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1) -> Array:
    """Return the gradient (N, H, W, C) of ``im2col``: col2im of gy (N, P, Q, R*S*C).

    >>> import numpy as np
    >>> im2col_backward(np.ones((1, 1, 2, 2)), np.zeros((1, 1, 3, 1)), (1, 2)).ravel()
    array([1., 2., 1.])
    """
    return col2im(gy, x.shape, kernel_size, stride, padding, dilation)


def col2im(col: Array, input_shape: tuple[int, int, int, int], kernel_size: Any, stride: Any = 1,
           padding: Any = 0, dilation: Any = 1) -> Array:
    """Return images of ``input_shape`` (N, H, W, C): the sums of patches col (N, P, Q, R*S*C).

    >>> import numpy as np
    >>> col2im(np.ones((1, 2, 2, 4)), (1, 3, 3, 1), 2)[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    (N, H, W, C), xp = input_shape, get_array_module(col)
    win = window((H, W), kernel_size, stride, padding, dilation)
    col = col.reshape(N, *win.out, *win.size, C)  # (N, P, Q, R, S, C)
    x = xp.zeros((N, H, W, C), col.dtype)
    for r, s, at, met in win.taps():
        x[met] += col[*at, r, s]
    return x


def col2im_backward(gy: Array, col: Array, input_shape: tuple[int, int, int, int],
                    kernel_size: Any, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1) -> Array:
    """Return the gradient (N, P, Q, R*S*C) of ``col2im``: im2col of gy (N, H, W, C).

    >>> import numpy as np
    >>> gy = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    >>> col2im_backward(gy, np.zeros((1, 1, 2, 2)), (1, 1, 3, 1), (1, 2))[0, 0]
    array([[1., 2.],
           [2., 3.]])
    """
    return im2col(gy, kernel_size, stride, padding, dilation)
