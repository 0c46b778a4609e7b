"""Bias over the last axis and ReLU, in one pass over memory.

    y[...,c]  = max(x[...,c] + b[c], 0)
    gx[...,c] = gy[...,c] where y[...,c] > 0, else 0
    gb[c]     = sum of gx[...,c] over all but c

Backward needs neither x nor b. NaN stays NaN, and passes its gradient on.
"""

import math
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.elementwise.cpu_relu import masked, nonzero, positive_part
from gpuconv.ops.engine import row_partition
from gpuconv.ops.engine.elements import wide
from gpuconv.ops.engine.row_broadcast import with_row
from gpuconv.ops.engine.row_partition import Partition
from gpuconv.ops.engine.sums import block_sums


def bias_relu(x: Array, b: Array) -> Array:
    """Add a bias to each channel, then rectify.

    Args:
        x: Tensor or array (..., C).
        b: Tensor or array (C,), dtype of x.

    Returns:
        (..., C), dtype of x.

    Raises:
        ValueError: the shapes do not fit.

    >>> bias_relu(np.array([[1.0, -3.0], [-2.0, 4.0]]), np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 6.]])
    """
    check_arrays("bias_relu", x=x, b=b)
    if not x.shape or b.shape != x.shape[-1:]:
        raise ValueError(f"bias_relu: x has shape {x.shape}, b {b.shape}, wanted (..., C) and (C,)")
    return BiasReLU()(x, b)


class BiasReLU(Op):
    """Saves: on the CPU where y is not 0, one bit each; on the GPU y, which the next op reads."""

    depends_on, multiply_adds = "pixel", 0
    positive: Any

    def forward_cpu(self, x, b):
        M, C = math.prod(x.shape[:-1]), x.shape[-1]
        y = memory.empty(x.shape, x.dtype)
        rows, out, bias = x.reshape(M, C), y.reshape(M, C), wide(b)
        self.positive = memory.empty(-(-x.size // 8), np.uint8) if any(self.needs) else None

        def work(piece):
            eights = slice(8 * piece.start, 8 * piece.stop)
            v = np.ascontiguousarray(wide(rows[eights]))  # it is written to, as one row
            here = out[eights] if v.dtype == y.dtype else v
            with np.errstate(all="ignore"):
                with_row(np.add, v, bias, here)
                positive_part(here, here)
                if self.positive is not None:
                    self.positive[C * piece.start:C * piece.stop] = nonzero(here)
                if here is v:
                    out[eights] = v

        threads.each(work, threads.chunks(-(-M // 8), 8 * C * bias.itemsize))
        return y

    def backward_cpu(self, gy):
        M, C = math.prod(gy.shape[:-1]), gy.shape[-1]
        gx = memory.empty(gy.shape, gy.dtype)
        g, out = gy.reshape(M, C), gx.reshape(M, C)

        def work(piece):
            eights = slice(8 * piece.start, 8 * piece.stop)
            bits = self.positive[C * piece.start:C * piece.stop]
            masked(g[eights].reshape(-1), bits, out[eights].reshape(-1))
            return block_sums(wide(out[eights])[None])[0] if self.needs[1] else None

        sums = threads.each(work, threads.chunks(-(-M // 8), 8 * C * gx.itemsize))
        if not self.needs[1]:
            return gx, None
        with np.errstate(all="ignore"):
            gb = sum(sums, np.zeros(C)).astype(gy.dtype, copy=False)
        return gx if self.needs[0] else None, gb

    # -- GPU: kernels/elementwise/bias_relu.cu ---------------------------------------------------

    def forward_gpu(self, x, b):
        y = cupy().empty(x.shape, x.dtype)
        V = row_partition.channels(x, b)
        cut = row_partition.partition(x.shape, V, x.dtype.itemsize)
        self.kernel("bias_relu_forward", y, V)(cut.threads(V), x, b, y, *cut)
        self.y = y if any(self.needs) else None
        return y

    def backward_gpu(self, gy):
        cp, C = cupy(), gy.shape[-1]
        V = row_partition.channels(gy, self.y)
        cut = row_partition.partition(gy.shape, V, gy.dtype.itemsize)
        gx = cp.empty(gy.shape, gy.dtype) if self.needs[0] else None
        gb = cp.empty(C, gy.dtype) if self.needs[1] else None
        partial = None if gb is None else cp.empty((cut.S, C), accumulator(gy.dtype))
        self.kernel("bias_relu_backward", gy, V)(cut.threads(V), gy, self.y, gx, partial, *cut)
        if gb is not None and cut.rows:
            last = Partition(cut.S, C, 1, cut.S, row_partition.totals(C))
            self.kernel("bias_relu_sum", gy, V)(last.threads(1), partial, gb, C, cut.S, last.lanes)
        elif gb is not None:
            gb.fill(0)
        return gx, gb

    def kernel(self, function, y, V):
        """The CUDA function, compiled for arrays like y."""
        return kernels.kernel("elementwise/bias_relu.cu", function, T=y.dtype,
                              BLOCK=kernels.BLOCK, V=V)
