"""Linear layer: one matrix product over the last axis.

    y[...,k]  = b[k] + sum over c of x[...,c] * w[k,c]
    gx[...,c] = sum over k of gy[...,k] * w[k,c]
    gw[k,c]   = sum over ... of gy[...,k] * x[...,c]
    gb[k]     = sum over ... of gy[...,k]

Each is one product, see gemm.py, and one sum for gb. 16-bit numbers are summed in float32 and
rounded once. On the GPU an activation is computed in the same op.
"""

import math
from typing import Any

from gpuconv.autograd import Op
from gpuconv.backend import Array
from gpuconv.ops.checks import check_arrays, check_precision
from gpuconv.ops.elementwise import (
    Elementwise,
    activated,
    check_activation,
    fused_activation,
    saves_result,
)
from gpuconv.ops.engine.column_sums import bias_gradient
from gpuconv.ops.engine.elements import sum_to
from gpuconv.ops.engine.epilogue import fits_epilogue
from gpuconv.ops.matmul.gemm import gemm


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
    if fits_epilogue(saves_result(activation), x, w, b):
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
        """Return y; x stands as rows (N, C)."""
        self.x_shape, self.w_shape = x.shape, w.shape
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        self.rows = rows if self.needs[1] else None
        self.w = w if self.needs[0] else None
        y = gemm(rows, w.T, b, activation=self.activation, precision=self.precision)
        return y.reshape(*x.shape[:-1], len(w))

    def backward_cpu(self, gy):
        gx, gw, gy = self.products(gy)
        return gx, gw, sum_to(gy, gy.shape[1:]) if self.needs[2] else None

    def products(self, gy):
        """Return gx and gw, or None where not needed, and gy as rows (N, K)."""
        gy = gy.reshape(math.prod(gy.shape[:-1]), gy.shape[-1])
        gx = gw = None
        if self.needs[0]:
            gx = gemm(gy, self.w, precision=self.precision).reshape(self.x_shape)
        if self.needs[1]:
            gw = gemm(gy.T, self.rows, precision=self.precision)  # (K, C)
        return gx, gw, gy

    def forward_gpu(self, x, w, b):
        y = self.forward_cpu(x, w, b)
        self.activation_op = fused_activation(self.activation, y, self.needs)
        return y

    def backward_gpu(self, gy):
        if self.activation_op:
            gy, = self.activation_op.backward_gpu(gy)
        gx, gw, gy = self.products(gy)
        return gx, gw, bias_gradient(gy) if self.needs[2] else None
