"""Reductions over any axes: sum, mean and max.

    sum     y = sum of x        gx = gy, repeated
    mean    y = sum of x / n    gx = gy / n, repeated
    max     y = max of x        gx = gy at the first maximum in scan order, 0 elsewhere

Sums have blocks in the accumulator dtype, which are added in float64, and are rounded once. NaN
counts as the largest number.
"""

import math
from typing import Any, cast

import numpy as np

from gpuconv import memory
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, cupy, get_array_module
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.engine.elements import total, wide
from gpuconv.ops.engine.maxima import max_middle, scatter_middle
from gpuconv.ops.shape import check_axes

Axis = int | tuple[int, ...] | None


def sum_(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum of the elements.

    Args:
        x: Tensor or array.
        axis: the axis or axes to sum over. Default: all.
        keepdims: keep each of them, with size 1.

    Returns:
        The sums, dtype of x.

    Raises:
        ValueError: x has no such axis, or it is named twice.

    >>> sum_(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([4., 6.])
    """
    check_arrays("sum", x=x)
    return Sum(check_axes("sum", axis, x.shape), keepdims)(x)


def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Average of the elements; NaN where there is none. Arguments as of ``sum``.

    >>> mean(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1, keepdims=True)
    array([[1.5],
           [3.5]])
    """
    check_arrays("mean", x=x)
    return Mean(check_axes("mean", axis, x.shape), keepdims)(x)


def max_(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Largest element; NaN wins. Arguments as of ``sum``.

    The first maximum in scan order, or the first NaN, takes the whole gradient.

    Raises:
        ValueError: x has no such axis, or the maximum of nothing is asked for.

    >>> max_(np.array([[1.0, 2.0], [np.nan, 4.0]]), axis=1)
    array([ 2., nan])
    """
    check_arrays("max", x=x)
    axes = check_axes("max", axis, x.shape)
    if axes and 0 in [x.shape[a] for a in axes]:
        raise ValueError(f"max: no elements along axis {axis} of shape {x.shape}")
    return Max(axes, keepdims)(x)


class Reduction(Op):
    """Base of the reductions: keeps ``axes``, rising, and the shape of x."""

    multiply_adds = 0

    def __init__(self, axes, keepdims):
        self.axes, self.keepdims = axes, keepdims

    @property
    def depends_on(self) -> str:
        """Pixels of x: the same one, where x is images and only channels or images are reduced."""
        return "all" if len(self.x_shape) != 4 or {1, 2} & {*self.axes} else "pixel"

    def measure(self, x):
        """Note the shape of x, how much becomes one element, and the shape that y keeps."""
        self.x_shape = x.shape
        self.count = math.prod(x.shape[a] for a in self.axes)
        self.kept = tuple(1 if a in self.axes else n for a, n in enumerate(x.shape))

        self.y_shape = self.kept if self.keepdims else tuple(
            n for a, n in enumerate(x.shape) if a not in self.axes)

    def total(self, x):
        """Return the sums in float64, in the shape of y."""
        self.measure(x)
        return total(x, self.axes).reshape(self.y_shape)

    def middle(self, x):
        """Return x as (A, count, C), a view if possible; axis 1 holds the reduced elements."""
        self.order = [*range(x.ndim)]
        first = self.axes[0] if self.axes else 0
        if self.axes != tuple(range(first, first + len(self.axes))):
            self.order = [a for a in self.order if a not in self.axes]
            first = len(self.order)
            self.order += self.axes
        shape = [x.shape[a] for a in self.order]
        return x.transpose(self.order).reshape(
            math.prod(shape[:first]), self.count, math.prod(shape[first + len(self.axes):]))

    def spread(self, gy):
        """Return gy broadcast to the shape of x: a view on the CPU."""
        xp = get_array_module(gy)
        return xp.broadcast_to(gy.reshape(self.kept), self.x_shape)


class Sum(Reduction):
    """Saves: the shape of x."""

    def forward_cpu(self, x):
        with np.errstate(all="ignore"):
            return self.total(x).astype(x.dtype, copy=False)

    def backward_cpu(self, gy):
        return (self.spread(gy),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Mean(Reduction):
    """Saves: the shape of x."""

    def forward_cpu(self, x):
        with np.errstate(all="ignore"):  # 0/0, and what overflows 16 bits
            return (self.total(x) / np.float64(self.count)).astype(x.dtype, copy=False)

    def backward_cpu(self, gy):
        with np.errstate(all="ignore"):
            g = wide(gy)
            return (self.spread((g / g.dtype.type(self.count)).astype(gy.dtype, copy=False)),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Max(Reduction):
    """Saves: the shape of x and, if x needs a gradient, where the maxima are.

    On the CPU one byte per output, but int64 where it is one of more than 256; on the GPU int64.
    """

    first: Any

    def forward_cpu(self, x):
        self.measure(x)
        middle = self.middle(x)
        y = np.empty((len(middle), middle.shape[2]), x.dtype)
        self.first = None
        if self.needs[0]:
            self.first = np.empty(y.shape, np.uint8 if self.count <= 256 else np.int64)
        max_middle(middle, y, self.first)
        return y.reshape(self.y_shape)

    def forward_gpu(self, x):
        cp, rows = cupy(), self.rows(x)
        y = rows.max(axis=-1)
        if self.needs[0]:  # CuPy's argmax does not say which of several NaN it finds
            found = (rows == y[..., None]) | cp.isnan(rows)
            self.first = cp.where(found, cp.arange(self.count), self.count).min(axis=-1)
        return y.astype(x.dtype).reshape(self.y_shape)

    def backward_cpu(self, gy):
        shape = [self.x_shape[a] for a in self.order]
        gx = memory.empty(tuple(shape), gy.dtype)
        scatter_middle(gy.reshape(self.first.shape), self.first,
                  gx.reshape(len(self.first), self.count, self.first.shape[1]))
        return (gx.transpose(np.argsort(self.order)),)

    def backward_gpu(self, gy):
        xp = cupy()
        at = self.first[..., None] == xp.arange(self.count)
        g = wide(gy).reshape(*self.first.shape, 1)
        gx = xp.where(at, g, g.dtype.type(0)).astype(gy.dtype, copy=False)
        gx = gx.reshape([self.x_shape[a] for a in self.order])  # axes in the order of rows
        return (gx.transpose(sorted(range(len(self.order)), key=self.order.__getitem__)),)

    def rows(self, x):
        """Return x as (..., count): the last axis holds the reduced elements, in scan order."""
        self.measure(x)
        kept = [a for a in range(x.ndim) if a not in self.axes]
        self.order = [*kept, *self.axes]
        return wide(x).transpose(self.order).reshape(*(x.shape[a] for a in kept), self.count)


Tensor.sum = cast(Any, sum_)
Tensor.mean = cast(Any, mean)
Tensor.max = cast(Any, max_)
