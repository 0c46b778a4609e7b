"""Linear layer: one matrix product over the last axis.

    y[...,k]  = b[k] + sum over c of x[...,c] * w[k,c]
    gx[...,c] = sum over k of gy[...,k] * w[k,c]
    gw[k,c]   = sum over ... of gy[...,k] * x[...,c]
    gb[k]     = sum over ... of gy[...,k]

Each is one GEMM, and one sum for gb. 16-bit operands are multiplied in float32 on the CPU. On the
GPU a Linear layer is a convolution of one pixel under filters of one pixel, see conv2d.py: the same
engines (gpu_dispatch.py), sums in float32 that are rounded once, and an activation in the same op.
"""

import math
from typing import Any

from gpuconv.autograd import Op
from gpuconv.backend import Array, cupy
from gpuconv.ops.checks import check_arrays, check_precision
from gpuconv.ops.conv import conv_dgrad_gpu, conv_forward_gpu, conv_wgrad_gpu
from gpuconv.ops.elementwise import (
    Elementwise,
    activated,
    check_activation,
    fused_activation,
    saves_result,
)
from gpuconv.ops.engine.column_sums import bias_gradient
from gpuconv.ops.engine.elements import sum_to, wide
from gpuconv.ops.engine.epilogue import Epilogue, fits_epilogue
from gpuconv.ops.matmul.matmul import gemm
from gpuconv.ops.window import ConvShape, Window


def linear(x: Array, w: Array, b: Array | None = None, *, precision: str = "ieee",
           activation: str | None = None) -> Array:
    """Weighted sums of the last axis, plus a bias.

    Args:
        x: Tensor or array (..., C).
        w: Tensor or array (K, C), as in PyTorch.
        b: Tensor or array (K,), or None.
        precision: of float32 products on a GPU: "ieee", or "tf32", which rounds their factors to
            10 bits of mantissa and takes tensor cores. Elsewhere without effect.
        activation: name of an activation, such as "relu", applied to the result; or None.

    Returns:
        (..., K), dtype of x.

    Raises:
        ValueError: the shapes do not fit, or precision or activation is unknown.

    >>> import numpy as np
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.0, 10.0]))
    array([[ 3., 16.]])
    """
    check_arrays("linear", ("b",), x=x, w=w, b=b)
    if len(w.shape) != 2 or x.shape[-1:] != w.shape[1:]:
        raise ValueError(f"linear: x has shape {x.shape}, w {w.shape}, wanted (..., C) and (K, C)")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"linear: b has shape {b.shape}, w {w.shape}, wanted (K,) and (K, C)")
    check_precision("linear", precision)
    check_activation("linear", activation)
    if w.size and fits_epilogue(saves_result(activation), x, w, b):
        return Linear(precision, activation)(x, w, b)
    return activated(Linear(precision)(x, w, b), activation)


class Linear(Op):
    """Saves: x if w needs a gradient, w if x does; both shapes; y if an activation is fused."""

    rows: Any
    w: Any
    activation_op: Elementwise | None = None

    def __init__(self, precision: str = "ieee", activation: str | None = None):
        self.precision, self.activation = precision, activation

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Pixels of x, w and b: of x the same pixel, unless its pixels lie in the last axis."""
        return "pixel" if len(self.x_shape) == 4 else "all", "all", "all"

    @property
    def multiply_adds(self) -> int:
        """Number of products: K for each number of x."""
        return math.prod(self.x_shape) * self.w_shape[0]

    def forward_cpu(self, x, w, b):
        rows = self.keep(x, w)
        y = gemm(wide(rows), wide(w).T)
        if b is not None:
            y += wide(b)
        return y.astype(x.dtype, copy=False).reshape(*x.shape[:-1], len(w))

    def keep(self, x, w):
        """Save what backward needs; gives x as rows (N, C)."""
        self.x_shape, self.w_shape = x.shape, w.shape
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        self.rows = rows if self.needs[1] else None
        self.w = w if self.needs[0] else None
        return rows

    def backward_cpu(self, gy):
        (K, _), dtype = self.w_shape, gy.dtype
        gy = gy.reshape(math.prod(gy.shape[:-1]), K)  # (N, K)
        g = wide(gy)
        gx = gw = gb = None
        if self.needs[0]:
            gx = gemm(g, wide(self.w)).astype(dtype, copy=False).reshape(self.x_shape)
        if self.needs[1]:
            gw = gemm(g.T, wide(self.rows)).astype(dtype, copy=False)  # (K, C)
        if self.needs[2]:
            gb = sum_to(gy, (K,))
        return gx, gw, gb

    # -- GPU: gpu_dispatch.py ----------------------------------------------------------

    def forward_gpu(self, x, w, b):
        rows = self.keep(x, w)
        y = cupy().empty((*x.shape[:-1], len(w)), x.dtype)
        conv_forward_gpu(self.shape, rows, w, self.precision,
                         Epilogue(b, activation=self.activation), out=y)
        self.activation_op = fused_activation(self.activation, y, self.needs)
        return y

    def backward_gpu(self, gy):
        if self.activation_op:
            gy, = self.activation_op.backward_gpu(gy)
        gx = gw = gb = None
        if self.needs[0]:
            gx = conv_dgrad_gpu(self.shape, gy, self.w, self.precision).reshape(self.x_shape)
        if self.needs[1]:
            gw = conv_wgrad_gpu(self.shape, self.rows, gy, self.precision)
            gw = gw.reshape(self.w_shape)
        if self.needs[2]:
            gb = bias_gradient(gy)
        return gx, gw, gb

    @property
    def shape(self) -> ConvShape:
        """Sizes of the convolution that computes it: an image of one pixel for each row."""
        (K, C), N = self.w_shape, math.prod(self.x_shape[:-1])
        return ConvShape(N, 1, 1, C, K, Window((1, 1)))
