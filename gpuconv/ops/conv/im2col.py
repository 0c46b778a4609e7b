"""Image patches as rows of a matrix, and back.

    col[n,p,q, (r*S + s)*C + c] = x[n, p*SH - PT + r*DH, q*SW - PL + s*DW, c]        (0 outside x)
    col2im, the adjoint:  x[n,h,w,c] = sum of the col[n,p,q,j] that im2col copies from (n,h,w,c)

A convolution is a product of this matrix with the filters: a row holds what one filter position
sees. Because channels come last, a row is R runs of S*C contiguous values (without dilation).
Each op is the other's backward pass; nothing is saved but the shape.

On the CPU, cpu_im2col.py computes both for one chunk of a batch.
"""

import math

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, cupy, is_gpu
from gpuconv.checks import check_shape
from gpuconv.ops.checks import check_arrays, check_images, check_numbers, check_size
from gpuconv.ops.conv.cpu_im2col import fold, unfold
from gpuconv.ops.engine.packs import packs
from gpuconv.ops.window import IntOrPair, Pair, Window, levelled, window_from


def im2col(x: Array, kernel_size: IntOrPair, stride: IntOrPair = 1,
           padding: IntOrPair | tuple[Pair, Pair] = 0, dilation: IntOrPair = 1) -> Array:
    """Return the pixels under each position of the window as one row.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        kernel_size: window (R, S) or one int, pixels.
        stride: (SH, SW) or one int, pixels.
        padding: zeros around x: one int, (PH, PW), or ((top, bottom), (left, right)), pixels.
        dilation: distance (DH, DW) between the pixels of a window, or one int.

    Returns:
        (N, P, Q, R*S*C), dtype of x, P = (H + top + bottom - DH*(R-1) - 1) // SH + 1, Q likewise.

    Raises:
        ValueError: x is not 4-d, or the window does not fit the padded image.
        TypeError: x is not floating-point.

    >>> image = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> im2col(image, 2)[0, 0]
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.]])

    Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
    processing", 2006.
    """
    check_images("im2col", x)
    window = window_from("im2col", kernel_size, stride, padding, dilation)
    try:
        window.out_shape(*x.shape[1:3])
    except ValueError as error:
        raise ValueError(f"im2col: {error}") from None
    check_size("im2col", x.shape, x.dtype.itemsize, window, math.prod(window.size) * x.shape[3])
    _check_on_gpu("im2col", x, x.shape, window)
    return Im2col(window)(x)


def col2im(col: Array, input_shape: tuple[int, int, int, int], kernel_size: IntOrPair,
           stride: IntOrPair = 1, padding: IntOrPair | tuple[Pair, Pair] = 0,
           dilation: IntOrPair = 1) -> Array:
    """Add rows of patches back into images: the adjoint of ``im2col``.

    Args:
        col: Tensor or array (N, P, Q, R*S*C), any float dtype.
        input_shape: (N, H, W, C) of the images.
        kernel_size, stride, padding, dilation: as given to ``im2col``.

    Returns:
        (N, H, W, C), dtype of col; 16-bit values are added in float32.

    Raises:
        ValueError: col has not the shape of ``im2col`` of such images.
        TypeError: col is not floating-point.

    >>> col2im(np.ones((1, 2, 2, 4)), (1, 3, 3, 1), 2)[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    check_arrays("col2im", col=col)
    window = window_from("col2im", kernel_size, stride, padding, dilation)
    images = check_shape("col2im", "input_shape", input_shape, 4)
    try:
        want = col_shape(images, window)
    except ValueError as error:
        raise ValueError(f"col2im: {error}") from None
    if tuple(col.shape) != want:
        raise ValueError(f"col2im: col has shape {tuple(col.shape)}, images {images} "
                         f"under this window give {want}")
    _check_on_gpu("col2im", col, images, window)
    return Col2im(window, images)(col)


def _check_on_gpu(op: str, a: Array, x_shape: tuple[int, ...], window: Window) -> None:
    if is_gpu(a.data if isinstance(a, Tensor) else a):
        check_numbers(op, x_shape, window, "all")


def col_shape(x_shape: tuple[int, ...], window: Window) -> tuple[int, int, int, int]:
    """Return the shape (N, P, Q, R*S*C) of the im2col of images of this shape."""
    N, H, W, C = x_shape
    R, S = window.size
    return N, *window.out_shape(H, W), R * S * C


class Im2col(Op):
    """Saves: the shape of x."""

    depends_on, multiply_adds = "window", 0

    def __init__(self, window: Window):
        self.window = window

    def forward_cpu(self, x):
        self.x_shape = x.shape
        return rows_of(x, self.window)

    def backward_cpu(self, gy):
        return (images_of(gy, self.x_shape, self.window),)

    def forward_gpu(self, x):
        self.x_shape = x.shape
        return rows_of_gpu(x, self.window)

    def backward_gpu(self, gy):
        return (images_of_gpu(gy, self.x_shape, self.window),)


class Col2im(Op):
    """Saves: nothing."""

    depends_on, multiply_adds = "all", 0

    def __init__(self, window: Window, x_shape: tuple[int, ...]):
        self.window, self.x_shape = window, x_shape

    def forward_cpu(self, col):
        return images_of(col, self.x_shape, self.window)

    def backward_cpu(self, gy):
        return (rows_of(gy, self.window),)

    def forward_gpu(self, col):
        return images_of_gpu(col, self.x_shape, self.window)

    def backward_gpu(self, gy):
        return (rows_of_gpu(gy, self.window),)


# -- CPU: cpu_im2col.py, chunk by chunk --------------------------------------------------


def rows_of(x: np.ndarray, window: Window) -> np.ndarray:
    """Return the im2col of NumPy images."""
    col = memory.empty(col_shape(x.shape, window), x.dtype)

    def work(chunk: slice) -> None:
        unfold(x[chunk], window, slice(0, col.shape[1]), col.shape[2], x.dtype, col[chunk])

    threads.each(work, threads.chunks(len(x), col[:1].nbytes))
    return col


def images_of(col: np.ndarray, x_shape: tuple[int, ...], window: Window) -> np.ndarray:
    """Return the col2im of NumPy rows."""
    x = memory.empty(x_shape, col.dtype)

    def work(chunk: slice) -> None:
        x[chunk] = fold(col[chunk], x[chunk].shape, window)

    threads.each(work, threads.chunks(len(x), col[:1].nbytes))
    return x


# -- GPU: kernels/conv/im2col.cu, same names, same order --------------------------------------


def rows_of_gpu(x: Array, window: Window) -> Array:
    """Return the im2col of CuPy images: (N, P, Q, R*S*C)."""
    N, H, W, C = x.shape
    P, Q = window.out_shape(H, W)
    col = cupy().empty(col_shape(x.shape, window), x.dtype)
    call = kernels.kernel("conv/im2col.cu", "im2col", T=x.dtype, I=kernels.index(x, col),
                          **levelled(window, H, W, "all").macros())
    call(packs(col, C), x, col, N, H, W, C, P, Q)
    return col


def images_of_gpu(col: Array, x_shape: tuple[int, ...], window: Window) -> Array:
    """Return the col2im of CuPy rows (N, P, Q, R*S*C)."""
    N, H, W, C = x_shape
    P, Q = window.out_shape(H, W)
    x = cupy().empty(x_shape, col.dtype)
    call = kernels.kernel("conv/im2col.cu", "col2im", T=col.dtype, I=kernels.index(x, col),
                          **levelled(window, H, W, "all").macros())
    call(packs(x, C), col, x, N, H, W, C, P, Q)
    return x
