"""Products of matrices, and the operator @ of Tensor.

    y = a @ b    ga = gy @ b^T      gb = a^T @ gy

Leading axes are a batch, and broadcast; a gradient is summed over those along which its operand was
broadcast. 16-bit numbers are summed in float32 and rounded once.
"""

import math
from typing import Any

import numpy as np

from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.engine.elements import sum_to, wide
from gpuconv.ops.matmul.gemm import gemm


def matmul(a: Array, b: Array) -> Array:
    """Matrix product, ``y[..., n, k] = sum over c of a[..., n, c] * b[..., c, k]``.

    Args:
        a: Tensor or array (..., N, C), or a vector (C,).
        b: Tensor or array (..., C, K), or a vector (C,). Leading axes broadcast.

    Returns:
        (..., N, K), without the axis of a vector; dtype of a.

    Raises:
        TypeError: a or b is a number, or they differ in dtype or device.
        ValueError: the inner sizes differ, or an operand has no axes.

    >>> matmul(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0]))
    array([21., 43.])
    """
    check_arrays("matmul", a=a, b=b)
    if not a.shape or not b.shape:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}, wanted at least one axis each")
    if a.shape[-1] != b.shape[max(0, len(b.shape) - 2)]:
        raise ValueError(f"matmul: the inner sizes of {a.shape} and {b.shape} differ")
    try:
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: leading axes of {a.shape} and {b.shape} do not "
                         "broadcast") from None
    return MatMul()(a, b)


class MatMul(Op):
    """Saves: the shapes, and each operand if the other one needs a gradient."""

    a: Any
    b: Any

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Pixels of a and b: of images a the same pixel."""
        return "pixel" if len(self.shapes[0]) == 4 else "all", "all"

    @property
    def multiply_adds(self) -> int:
        """Number of products: N C K for each pair of matrices."""
        a, b = self.shapes
        rows = a if len(a) > 1 else (1, *a)        # (..., N, C)
        columns = b[-1] if len(b) > 1 else 1       # K
        return math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * rows[-2] * rows[-1] * columns

    def forward_cpu(self, a, b):
        self.shapes = a.shape, b.shape
        self.a = a if self.needs[1] else None
        self.b = b if self.needs[0] else None
        return gemm(a, b)

    def backward_cpu(self, gy):
        a_shape, b_shape = self.shapes
        row = (1, *a_shape) if len(a_shape) == 1 else a_shape     # (..., N, C)
        column = (*b_shape, 1) if len(b_shape) == 1 else b_shape  # (..., C, K)
        batch = np.broadcast_shapes(row[:-2], column[:-2])
        gy = gy.reshape(*batch, row[-2], column[-1])              # (..., N, K)

        def product(a, b, wanted, shape):
            if batch != wanted[:-2]:  # a sum over the batch follows
                a, b = wide(a), wide(b)
            return sum_to(gemm(a, b), wanted, gy.dtype).reshape(shape)

        ga = (product(gy, self.b.reshape(column).swapaxes(-1, -2), row, a_shape)
              if self.needs[0] else None)
        gb = (product(self.a.reshape(row).swapaxes(-1, -2), gy, column, b_shape)
              if self.needs[1] else None)
        return ga, gb

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


Tensor.__matmul__ = matmul  # type: ignore[method-assign]
Tensor.__rmatmul__ = lambda b, a: matmul(a, b)  # type: ignore[method-assign]
