"""Linear layer: one matrix product over the last axis.

    y[...,k]  = b[k] + sum over c of x[...,c] * w[k,c]
    gx[...,c] = sum over k of gy[...,k] * w[k,c]
    gw[k,c]   = sum over ... of gy[...,k] * x[...,c]
    gb[k]     = sum over ... of gy[...,k]

Each is one GEMM, and one sum for gb. 16-bit operands are multiplied in float32 on the CPU; cuBLAS
takes them as they are and adds in float32. There b rides along as one more column of w, against
a column of ones: so the sum with b, too, is rounded once.
"""

import math
from typing import Any

from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.arithmetic import wide
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.matmul import gemm


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """Weighted sums of the last axis, plus a bias.

    Args:
        x: Tensor or array (..., C).
        w: Tensor or array (K, C), as in PyTorch.
        b: Tensor or array (K,), or None.

    Returns:
        (..., K), dtype of x.

    Raises:
        ValueError: the shapes do not fit.

    >>> import numpy as np
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.0, 10.0]))
    array([[ 3., 16.]])
    """
    check_arrays("linear", ("b",), x=x, w=w, b=b)
    if len(w.shape) != 2 or x.shape[-1:] != w.shape[1:]:
        raise ValueError(f"linear: x has shape {x.shape}, w {w.shape}, wanted (..., C) and (K, C)")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"linear: b has shape {b.shape}, w {w.shape}, wanted (K,) and (K, C)")
    return Linear()(x, w, b)


class Linear(Op):
    """Saves: x if w needs a gradient, w if x does; both shapes."""

    rows: Any
    w: Any

    def forward_cpu(self, x, w, b):
        rows = self.keep(x, w)
        y = gemm(wide(rows), wide(w).T)
        if b is not None:
            y += wide(b)
        return y.astype(x.dtype, copy=False).reshape(*x.shape[:-1], len(w))

    def backward_cpu(self, gy):
        return self.gradients(gy, wide)

    def forward_gpu(self, x, w, b):
        rows = self.keep(x, w)
        if b is None:
            y = gemm(rows, w.T)
        elif accumulator(x.dtype) == x.dtype:
            y = gemm(rows, w.T)
            y += b
        else:
            y = gemm(_with_column(rows, 1), _with_column(w, b).T)
        return y.reshape(*x.shape[:-1], len(w))

    def backward_gpu(self, gy):
        return self.gradients(gy, lambda a: a)

    def keep(self, x, w):
        """Save what backward needs; gives x as rows (N, C)."""
        self.x_shape, self.w_shape = x.shape, w.shape
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        self.rows = rows if self.needs[1] else None
        self.w = w if self.needs[0] else None
        return rows

    def gradients(self, gy, multiplied):
        """All gradients; ``multiplied(a)`` is a in the dtype that is multiplied in."""
        (K, _), dtype = self.w_shape, gy.dtype
        gy = gy.reshape(math.prod(gy.shape[:-1]), K)  # (N, K)
        g = multiplied(gy)
        gx = gw = gb = None
        if self.needs[0]:
            gx = gemm(g, multiplied(self.w)).astype(dtype, copy=False).reshape(self.x_shape)
        if self.needs[1]:
            gw = gemm(g.T, multiplied(self.rows)).astype(dtype, copy=False)  # (K, C)
        if self.needs[2]:
            gb = wide(gy).sum(axis=0).astype(dtype, copy=False)
        return gx, gw, gb


def _with_column(a: Array, column: Array | int) -> Array:
    """A (N, C), the column, and zeros up to a multiple of 8 columns: tensor cores want that."""
    N, C = a.shape
    wider = cupy().zeros((N, C // 8 * 8 + 8), a.dtype)
    wider[:, :C], wider[:, C] = a, column
    return wider
