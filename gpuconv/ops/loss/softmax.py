"""Softmax and its logarithm, along one axis.

    softmax      y = e^(x - max) / sum of e^(x - max)         gx = y * (gy - sum of gy * y)
    log_softmax  y = x - max - log(sum of e^(x - max))        gx = gy - e^y * (sum of gy)

The maximum is subtracted so that nothing overflows. The loss that takes logits,
``softmax_cross_entropy``, does both at once and is what training uses.
"""

import numpy as np

from gpuconv.autograd import Op
from gpuconv.backend import Array, get_array_module
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.engine.elements import total, wide
from gpuconv.ops.shape import check_axes


def softmax(x: Array, axis: int = -1) -> Array:
    """Positive numbers that add up to 1 along an axis: ``y = e^x / sum of e^x``.

    Raises:
        ValueError: x has no such axis, or it is empty.

    >>> softmax(np.array([0.0, np.log(3.0)]))
    array([0.25, 0.75])
    """
    return Softmax(_axis("softmax", x, axis))(x)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Logarithm of ``softmax``, without its underflow: ``y = x - log(sum of e^x)``.

    Raises:
        ValueError: x has no such axis, or it is empty.

    >>> log_softmax(np.array([0.0, 1000.0]))
    array([-1000.,     0.])
    """
    return LogSoftmax(_axis("log_softmax", x, axis))(x)


def _axis(op: str, x: Array, axis: int) -> int:
    check_arrays(op, x=x)
    found, = check_axes(op, (axis,), x.shape)
    if not x.shape[found]:
        raise ValueError(f"{op}: no elements along axis {axis} of shape {x.shape}")
    return found


class Softmax(Op):
    """Saves: y, in the accumulator dtype."""

    multiply_adds = 0

    def __init__(self, axis):
        self.axis = axis

    @property
    def depends_on(self) -> str:
        """Pixels of x: all of them along an axis of pixels, of tokens or of a flattened volume."""
        return "all" if self.axis in (1, 2) else "pixel"

    def total(self, v):
        """Return the sums of v along the axis, which stays with size 1, in the dtype of v."""
        kept = *v.shape[:self.axis], 1, *v.shape[self.axis + 1:]
        return total(v, (self.axis,)).reshape(kept).astype(v.dtype, copy=False)

    def forward_cpu(self, x):
        xp = get_array_module(x)
        with np.errstate(all="ignore"):  # inf - inf
            v = wide(x)
            y = xp.exp(v - v.max(axis=self.axis, keepdims=True))
            y /= self.total(y)
        self.y = y if self.needs[0] else None
        return y.astype(x.dtype, copy=False)

    def backward_cpu(self, gy):
        with np.errstate(all="ignore"):
            g = wide(gy)
            inner = self.total(g * self.y)
            return ((self.y * (g - inner)).astype(gy.dtype, copy=False),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class LogSoftmax(Softmax):
    """Saves: y, in the accumulator dtype."""

    def forward_cpu(self, x):
        xp = get_array_module(x)
        with np.errstate(all="ignore"):  # inf - inf
            v = wide(x)
            y = v - v.max(axis=self.axis, keepdims=True)
            y -= xp.log(self.total(xp.exp(y)))
        self.y = y if self.needs[0] else None
        return y.astype(x.dtype, copy=False)

    def backward_cpu(self, gy):
        xp = get_array_module(gy)
        with np.errstate(all="ignore"):
            g = wide(gy)
            gx = g - xp.exp(self.y) * self.total(g)
            return (gx.astype(gy.dtype, copy=False),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu
