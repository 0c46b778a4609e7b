"""Products of matrices, and the operator @ of Tensor.

    y = a @ b    ga = gy @ b^T      gb = a^T @ gy

Leading axes are a batch, and broadcast; a gradient is summed over those along which its operand was
broadcast. 16-bit numbers are summed in float32 and rounded once.
"""

import math
from typing import Any

import numpy as np

from gpuconv import memory, threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, is_gpu
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.engine.elements import sum_to, wide
from gpuconv.ops.engine.sums import LONG, multiply

PIECE = 1 << 24  # least multiplications of one thread's piece of a product, on the CPU
PIECES = 8       # a large product is cut into: a BLAS wants many rows


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
    return MatMul()(a, b)


def gemm(a: Array, b: Array) -> Array:
    """``a @ b``, with 16-bit numbers summed in float32 and rounded once.

    cuBLAS does so by itself, where CuPy calls it: CuPy 14 takes a product that is one number in 16
    bits, and stacks of 16-bit matrices as float32 copies, or not at all (cupy#10317).
    """
    if not is_gpu(a):
        return _gemm_cpu(a, b)
    stacked, one_number = max(a.ndim, b.ndim) > 2, a.size == b.size == a.shape[-1]
    if stacked or one_number:
        return (wide(a) @ wide(b)).astype(a.dtype, copy=False)
    return a @ b


def _gemm_cpu(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a @ b``, cut along its longer side by shape alone: bits do not depend on threads."""
    if a.ndim != 2 or b.ndim != 2:
        n = a.shape[-1]
        if n > LONG and max(a.ndim, b.ndim) <= 2:  # with a vector
            y = _gemm_cpu(np.atleast_2d(a), b.reshape(n, -1))
            return y.reshape(a.shape[:-1] + b.shape[1:])
        with threads.single_threaded_blas():
            if n <= LONG:
                return a @ b
            runs = ((a[..., run] @ (b[..., run, :] if b.ndim > 1 else b[run])).astype(np.float64)
                    for run in threads.chunks(n, 1, LONG))
            return sum(runs).astype(a.dtype)
    (N, C), K = a.shape, b.shape[1]
    y = memory.empty((N, K), np.result_type(a, b))
    budget = max(PIECE, N * C * K // PIECES)
    if N >= K:
        threads.each(lambda some: multiply(a[some], b, y[some]),
                     threads.chunks(N, C * K, budget))
    else:
        threads.each(lambda some: multiply(a, b[:, some], y[:, some]),
                     threads.chunks(K, N * C, budget))
    return y


class MatMul(Op):
    """Saves: the shapes, and each operand if the other one needs a gradient.

    On the CPU 16-bit matrices are multiplied in float32; cuBLAS takes them as they are and adds
    in float32.
    """

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
        return self.product(wide(a), wide(b), a, b).astype(a.dtype, copy=False)

    def forward_gpu(self, a, b):
        return self.product(a, b, a, b)

    def product(self, x, w, a, b):
        """x @ w, which are a and b in the dtype to multiply in."""
        self.shapes = a.shape, b.shape
        self.a = a if self.needs[1] else None
        self.b = b if self.needs[0] else None
        return gemm(x, w)

    def backward_cpu(self, gy):
        return self.gradients(wide(gy), gy.dtype)

    def backward_gpu(self, gy):
        return self.gradients(gy, gy.dtype)

    def gradients(self, g, dtype):
        """Both gradients; g is gy in the dtype to multiply in, or wider where a sum follows."""
        a_shape, b_shape = self.shapes
        row = (1, *a_shape) if len(a_shape) == 1 else a_shape     # (..., N, C)
        column = (*b_shape, 1) if len(b_shape) == 1 else b_shape  # (..., C, K)
        batch = np.broadcast_shapes(row[:-2], column[:-2])
        g = g.reshape(*batch, row[-2], column[-1])                # (..., N, K)

        def product(a, b, wanted, shape):
            if batch != wanted[:-2]:  # a sum over the batch follows
                a, b = wide(a), wide(b)
            else:
                a, b = a.astype(g.dtype, copy=False), b.astype(g.dtype, copy=False)
            return sum_to(gemm(a, b), wanted, dtype).reshape(shape)

        ga = (product(g, _swapped(self.b.reshape(column)), row, a_shape)
              if self.needs[0] else None)
        gb = (product(_swapped(self.a.reshape(row)), g, column, b_shape)
              if self.needs[1] else None)
        return ga, gb


def _swapped(a: Array) -> Array:
    return a.transpose(*range(a.ndim - 2), a.ndim - 1, a.ndim - 2)  # the last two axes


Tensor.__matmul__ = matmul  # type: ignore[method-assign]
Tensor.__rmatmul__ = lambda b, a: matmul(a, b)  # type: ignore[method-assign]
