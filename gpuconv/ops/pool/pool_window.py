"""Window of pooling ops and layers, from a user's arguments."""

from typing import Any

from gpuconv.autograd import Tensor
from gpuconv.backend import Array, is_gpu
from gpuconv.ops.checks import channels_last, check_numbers, check_size
from gpuconv.ops.window import Window, window_from


def pool_window(op: str, x: Array, kernel_size: Any, stride: Any, padding: Any,
                dilation: Any = 1, ceil_mode: bool = False) -> Window:
    """Return the window of a pooling op over images x (N, H, W, C).

    Without a stride the windows lie side by side.

    Raises:
        ValueError: the window does not fit, or padding is more than half of kernel_size: as in
            PyTorch, the dilation notwithstanding.

    >>> import numpy as np
    >>> pool_window("max_pool2d", np.ones((1, 4, 4, 1)), 3, 1, 2)
    Traceback (most recent call last):
    ValueError: max_pool2d: padding ((2, 2), (2, 2)) is more than half of the window (3, 3)
    """
    window = pooling(op, kernel_size, stride, padding, dilation, ceil_mode)
    try:
        window.out_shape(*x.shape[1:3])
    except ValueError as error:
        H, W, C = x.shape[1:]
        hint = channels_last("x", x.shape, H) if H < C else ""
        raise ValueError(f"{op}: {error}{hint}") from None
    check_size(op, x.shape, x.dtype.itemsize, window, x.shape[3])
    if is_gpu(x.data if isinstance(x, Tensor) else x):
        check_numbers(op, x.shape, window, "pooled")
    return window


def pooling(op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
            ceil_mode: bool) -> Window:
    """Return the window of a pooling op or layer, for images of any size.

    Raises:
        TypeError, ValueError: as ``window_from``; padding is more than half of kernel_size.
    """
    window = window_from(op, kernel_size, kernel_size if stride is None else stride, padding,
                         dilation, bool(ceil_mode))
    if any(2 * p > k for k, both in zip(window.size, window.pad, strict=True) for p in both):
        raise ValueError(f"{op}: padding {window.pad} is more than half of the window "
                         f"{window.size}")
    return window
