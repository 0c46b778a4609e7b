"""Reductions over any axes: sum, mean and max.

    sum     y = sum of x        gx = gy, repeated
    mean    y = sum of x / n    gx = gy / n, repeated
    max     y = max of x        gx = gy at the first maximum in scan order, 0 elsewhere

NaN counts as the largest number: the first NaN takes the gradient. ``axis`` is one axis, several,
or None for all; with ``keepdims`` each of them stays, with size 1.
"""

from typing import Any

from gpuconv.backend import Array, get_array_module


def sum_(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the sums of x over the axes.

    >>> import numpy as np
    >>> sum_(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    array([4., 6.])
    """
    return x.sum(axis=axis, keepdims=keepdims)


def sum_backward(gy: Array, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the gradient of ``sum``.

    >>> import numpy as np
    >>> sum_backward(np.array([1.0, 2.0]), np.zeros((2, 2)), axis=0)
    array([[1., 2.],
           [1., 2.]])
    """
    kept = x.sum(axis=axis, keepdims=True).shape
    return get_array_module(x).zeros_like(x) + gy.reshape(kept)


def mean(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the means of x over the axes.

    >>> import numpy as np
    >>> mean(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1, keepdims=True)
    array([[1.5],
           [3.5]])
    """
    y = x.sum(axis=axis, keepdims=keepdims)
    return y / (x.size / y.size)


def mean_backward(gy: Array, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the gradient of ``mean``.

    >>> import numpy as np
    >>> mean_backward(np.array([1.0, 2.0]), np.zeros((2, 2)), axis=0)
    array([[0.5, 1. ],
           [0.5, 1. ]])
    """
    return sum_backward(gy / (x.size / gy.size), x, axis, keepdims)


def max_(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the largest elements of x along the axes.

    >>> import numpy as np
    >>> max_(np.array([[1.0, 2.0], [np.nan, 4.0]]), axis=1)
    array([ 2., nan])
    """
    return x.max(axis=axis, keepdims=keepdims)


def max_backward(gy: Array, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Return the gradient of ``max``.

    >>> import numpy as np
    >>> max_backward(np.array([1.0, 2.0]), np.array([[5.0, 5.0], [np.nan, np.nan]]), axis=1)
    array([[1., 0.],
           [2., 0.]])
    """
    xp = get_array_module(x)
    y = x.max(axis=axis, keepdims=True)
    number = xp.arange(x.size).reshape(x.shape)  # of each element, in scan order
    first = xp.where((x == y) | xp.isnan(x), number, x.size).min(axis=axis, keepdims=True)
    return xp.where(number == first, gy.reshape(y.shape), 0)
