"""Pooling layers: windows slid over images, and whole images."""

from gpuconv.autograd import Tensor
from gpuconv.nn.module import Module
from gpuconv.ops.pool import avg_pool2d, global_avg_pool2d, global_max_pool2d, max_pool2d, pooling
from gpuconv.ops.window import IntOrPair, Padding, Window


class MaxPool2d(Module):
    """Largest value of each window: ``ops.max_pool2d``.

    Args:
        kernel_size: window (R, S) or one int, pixels.
        stride: (SH, SW) or one int, pixels. Default: ``kernel_size``, windows side by side.
        padding: one int, (PH, PW) or ((top, bottom), (left, right)), pixels; at most half of the
            window.
        dilation: distance (DH, DW) between the pixels of a window, or one int.
        ceil_mode: let a last window hang over the far edge?

    >>> import numpy as np
    >>> MaxPool2d(2)(np.ones((2, 32, 32, 3), "float32")).shape
    (2, 16, 16, 3)
    """

    def __init__(self, kernel_size: IntOrPair, stride: IntOrPair | None = None,
                 padding: Padding = 0, dilation: IntOrPair = 1, ceil_mode: bool = False):
        self.window = pooling("MaxPool2d", kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, P, Q, C)."""
        w = self.window
        return max_pool2d(x, w.size, w.stride, w.pad, w.dilation, w.ceil_mode)

    @property
    def may_be_empty(self) -> bool:
        """May a window hold no pixel of x, and give -inf? Only where dilation leaves it none."""
        return self.window.dilation != (1, 1)

    def arguments(self) -> str:
        """Window, and what is not the default."""
        return _arguments(self.window)


class AvgPool2d(Module):
    """Mean of each window: ``ops.avg_pool2d``.

    Args:
        kernel_size: window (R, S) or one int, pixels.
        stride: (SH, SW) or one int, pixels. Default: ``kernel_size``, windows side by side.
        padding: one int, (PH, PW) or ((top, bottom), (left, right)), pixels of zeros; at most half
            of the window.
        ceil_mode: let a last window hang over the far edge?
        count_include_pad: divide by the pixels of the window inside the padded image, or inside x?
    """

    def __init__(self, kernel_size: IntOrPair, stride: IntOrPair | None = None,
                 padding: Padding = 0, ceil_mode: bool = False, count_include_pad: bool = True):
        self.window = pooling("AvgPool2d", kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = bool(count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, P, Q, C)."""
        w = self.window
        return avg_pool2d(x, w.size, w.stride, w.pad, w.ceil_mode, self.count_include_pad)

    def arguments(self) -> str:
        """Window, and what is not the default."""
        return _arguments(self.window) + ("" if self.count_include_pad
                                          else ", count_include_pad=False")


class GlobalAvgPool2d(Module):
    """Mean over the pixels of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, C)."""
        return global_avg_pool2d(x)


class GlobalMaxPool2d(Module):
    """Largest pixel of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, C)."""
        return global_max_pool2d(x)


def _arguments(window: Window) -> str:
    changed = [f"{name}={value}" for name, value, usual in (
        ("stride", window.stride, window.size), ("padding", window.pad, ((0, 0), (0, 0))),
        ("dilation", window.dilation, (1, 1)), ("ceil_mode", window.ceil_mode, False))
        if value != usual]
    return ", ".join([f"{window.size}", *changed])
