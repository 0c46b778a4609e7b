"""The convolution layer."""

from typing import Any

import numpy as np

from gpuconv.autograd import Parameter, Tensor
from gpuconv.checks import check_choice
from gpuconv.nn import init
from gpuconv.nn.module import Module
from gpuconv.nn.sizes import positive
from gpuconv.ops.checks import check_precision
from gpuconv.ops.conv.conv2d import conv2d
from gpuconv.ops.shape import MODES
from gpuconv.ops.window import IntOrPair, Padding, window_from


class Conv2d(Module):
    """K filters slid over images: ``ops.conv2d`` with filters and bias of its own.

    Args:
        in_channels: C, of x (N, H, W, C).
        out_channels: K, of y (N, P, Q, K).
        kernel_size: filter (R, S) or one int, pixels.
        stride: (SH, SW) or one int, pixels.
        padding: one int, (PH, PW), ((top, bottom), (left, right)), "same" or "valid".
        dilation: distance (DH, DW) between the pixels of a filter, or one int.
        groups: parts that channels and filters fall into; divides both.
        bias: add b?
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        precision: of float32 products on a GPU: "ieee", or "tf32", faster and rounded to 10 bits.

    Attributes:
        weight: (K, R, S, C/groups), uniform within 1/sqrt(R*S*C/groups) at first.
        bias: (K,), likewise; or None.

    >>> Conv2d(3, 8, 3, padding=1)(np.ones((2, 32, 32, 3), "float32")).shape
    (2, 32, 32, 8)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: IntOrPair,
                 stride: IntOrPair = 1, padding: Padding | str = 0, dilation: IntOrPair = 1,
                 groups: int = 1, bias: bool = True, padding_mode: str = "zeros",
                 precision: str = "ieee"):
        C, K, G = positive("Conv2d", in_channels=in_channels, out_channels=out_channels,
                           groups=groups)
        if C % G or K % G:
            raise ValueError(f"Conv2d: groups {G} must divide {C} in_channels and "
                             f"{K} out_channels")
        if isinstance(padding, str):
            check_choice("Conv2d", "padding", padding, ("same", "valid"))
        check_choice("Conv2d", "padding_mode", padding_mode, MODES)
        check_precision("Conv2d", precision)
        window = window_from("Conv2d", kernel_size, stride,
                             0 if isinstance(padding, str) else padding, dilation)
        self.stride, self.dilation, self.groups = window.stride, window.dilation, G
        self.padding: Padding | str = padding if isinstance(padding, str) else window.pad
        self.padding_mode, self.precision = padding_mode, precision
        self.weight = Parameter(np.empty((K, *window.size, C // G), "float32"))
        self.bias = Parameter(np.empty(K, "float32")) if bias else None
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, P, Q, K)."""
        return conv2d(x, self.weight, self.bias, groups=self.groups,
                      padding_mode=self.padding_mode, **self.options())

    def options(self) -> dict[str, Any]:
        """Return the arguments that all ops with a convolution in them take."""
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation,
                    precision=self.precision)

    def arguments(self) -> str:
        """In, out, filter, and what is not the default."""
        K, R, S, C = self.weight.shape
        changed = [f"{name}={value!r}" for name, value, usual in (
            ("stride", self.stride, (1, 1)), ("padding", self.padding, ((0, 0), (0, 0))),
            ("dilation", self.dilation, (1, 1)), ("groups", self.groups, 1),
            ("bias", self.bias is not None, True),
            ("padding_mode", self.padding_mode, "zeros"),
            ("precision", self.precision, "ieee")) if value != usual]
        return ", ".join([f"{C * self.groups}, {K}, {(R, S)}", *changed])
