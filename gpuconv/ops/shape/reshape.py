"""Shapes: reshape, flatten, transpose and slices. No arithmetic; the gradient goes the way back.

    y = reshape(x)         gx = gy, reshaped to x
    y = transpose(x, a)    gx = gy, transposed by the inverse of a
    y = x[key]             gx[key] = gy, zeros elsewhere

On the CPU each result is a view of x where NumPy can make one.
"""

import math
from typing import Any, cast

import numpy as np

from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, get_array_module
from gpuconv.checks import MOST, check_count, short
from gpuconv.ops.checks import check_arrays


def reshape(x: Array, *shape: Any) -> Array:
    """Return the elements of x, in their order, in another shape.

    Args:
        x: Tensor or array of any shape.
        shape: sizes, or one tuple of them; one of them may be -1, for what is left.

    Raises:
        ValueError: the number of elements differs.

    >>> reshape(np.arange(4.0), 2, -1)
    array([[0., 1.],
           [2., 3.]])
    """
    check_arrays("reshape", x=x)
    wanted = _numbers("reshape", shape)
    given = math.prod(n for n in wanted if n != -1)
    whole = x.size == given if -1 not in wanted else given and x.size % given == 0
    if not whole or wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise ValueError(f"reshape: x has shape {x.shape}, {x.size} elements, wanted "
                         f"{short(wanted)}")
    return Reshape(wanted)(x)


def flatten(x: Array, start_axis: int = 1) -> Array:
    """All axes from ``start_axis`` on made one: (N, H, W, C) -> (N, H*W*C).

    Raises:
        ValueError: x has no such axis.

    >>> flatten(np.ones((5, 4, 4, 3))).shape
    (5, 48)
    """
    check_arrays("flatten", x=x)
    start, = check_axes("flatten", (start_axis,), x.shape)
    return Reshape((*x.shape[:start], math.prod(x.shape[start:])))(x)


def transpose(x: Array, *axes: Any) -> Array:
    """Axes in another order: ``y.shape[i] = x.shape[axes[i]]``.

    Args:
        x: Tensor or array.
        axes: their numbers, or one tuple of them. Default: reversed.

    Raises:
        ValueError: that is not each axis of x once.

    >>> transpose(np.ones((2, 3, 4)), 0, 2, 1).shape
    (2, 4, 3)
    """
    check_arrays("transpose", x=x)
    n = len(x.shape)
    given = axes and axes[0] is not None
    order = _numbers("transpose", axes, "axis") if given else tuple(range(n))[::-1]
    if sorted(a + n if a < 0 else a for a in order) != list(range(n)):
        raise ValueError(f"transpose: axes {short(order)} are not each axis of shape {x.shape} "
                         "once")
    return Transpose(tuple(a % n for a in order))(x)


def getitem(x: Array, key: Any) -> Array:
    """Slices: ``y = x[key]`` for ints, slices and an ellipsis; the gradient is zero outside.

    Raises:
        TypeError: the key holds something else: an array, a mask, None.
        IndexError: an int is outside its axis.

    >>> getitem(np.arange(6.0), slice(1, None, 2))
    array([1., 3., 5.])
    """
    check_arrays("getitem", x=x)
    op = GetItem(tuple(map(_index, key if isinstance(key, tuple) else (key,))))
    try:
        return op(x)
    except IndexError as error:
        raise IndexError(f"getitem: {error}") from None


def check_axes(op: str, axis: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of the axes, rising and none negative; all of them for None.

    Raises:
        ValueError: there is no such axis, or it is named twice.

    >>> check_axes("sum", (-1, 0), (2, 3, 4))
    (0, 2)
    """
    if axis is None:
        return tuple(range(len(shape)))
    given = _numbers(op, (axis,), "axis")
    found = sorted({a + len(shape) if a < 0 else a for a in given})
    axis = given[0] if len(given) == 1 else given
    if len(found) < len(given) or not all(0 <= a < len(shape) for a in found):
        raise ValueError(f"{op}: axis {short(axis)} of shape {shape}: "
                         f"wanted different axes from {-len(shape)} to {len(shape) - 1}")
    return tuple(found)


def _numbers(op: str, given: tuple, name: str = "a size") -> tuple[int, ...]:
    """Return (2, 3) from the arguments 2, 3 or from the one argument (2, 3)."""
    listed = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return tuple(check_count(op, name, n, -MOST) for n in listed)


def _index(part: Any) -> Any:
    if isinstance(part, slice):
        return slice(*(n if n is None else _index(n) for n in (part.start, part.stop, part.step)))
    if part is Ellipsis:
        return part
    if isinstance(part, bool) or not isinstance(part, (int, np.integer)):
        raise TypeError(f"getitem: {type(part).__name__} in the key, wanted ints, slices and ...")
    return check_count("getitem", "an int in the key", part, -MOST)


class Reshape(Op):
    """Saves: the shape of x."""

    depends_on, multiply_adds = "pixel", 0

    def __init__(self, shape):
        self.shape = shape

    def forward_cpu(self, x):
        self.x_shape = x.shape
        return x.reshape(self.shape)

    def backward_cpu(self, gy):
        return (gy.reshape(self.x_shape),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Transpose(Op):
    """Saves: the order of the axes."""

    depends_on, multiply_adds = "pixel", 0

    def __init__(self, axes):
        self.axes = axes

    def forward_cpu(self, x):
        return x.transpose(self.axes)

    def backward_cpu(self, gy):
        return (gy.transpose(sorted(range(len(self.axes)), key=self.axes.__getitem__)),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class GetItem(Op):
    """Saves: the key and the shape of x."""

    depends_on, multiply_adds = "pixel", 0

    def __init__(self, key):
        self.key = key

    def forward_cpu(self, x):
        self.x_shape = x.shape
        return x[self.key]

    def backward_cpu(self, gy):
        xp = get_array_module(gy)
        gx = xp.zeros(self.x_shape, gy.dtype)
        gx[self.key] = gy
        return (gx,)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


Tensor.reshape = cast(Any, reshape)
Tensor.transpose = cast(Any, transpose)
Tensor.flatten = cast(Any, flatten)
Tensor.__getitem__ = getitem  # type: ignore[method-assign]
