"""Shapes: reshape, flatten, transpose, slices and padding. A gradient goes back where it came from.

    y = reshape(x)         gx = gy, reshaped to x
    y = transpose(x, a)    gx = gy, transposed by the inverse of a
    y = x[key]             gx[key] = gy, 0 elsewhere

    pad2d    y[n,h,w,c]  = x[n, source(h - top), source(w - left), c]
             gx[n,i,j,c] = sum of the gy[n,h,w,c] whose source is (i, j)

    source:  reflect    ... 2 1 | 0 1 2 3 | 2 1 ...     the edge itself is not repeated
             replicate  ... 0 0 | 0 1 2 3 | 3 3 ...
             circular   ... 2 3 | 0 1 2 3 | 0 1 ...
             zeros      none outside of the image: y is 0 there
"""

import math
from typing import Any

from gpuconv.backend import Array, get_array_module
from gpuconv.reference.window import sides


def reshape(x: Array, *shape: Any) -> Array:
    """Return the same elements in another shape.

    >>> import numpy as np
    >>> reshape(np.arange(4.0), 2, -1)
    array([[0., 1.],
           [2., 3.]])
    """
    return x.reshape(*shape)


def reshape_backward(gy: Array, x: Array, *shape: Any) -> Array:
    """Return the gradient of ``reshape``.

    >>> import numpy as np
    >>> reshape_backward(np.ones((2, 2)), np.zeros(4), 2, -1)
    array([1., 1., 1., 1.])
    """
    return gy.reshape(x.shape)


def flatten(x: Array, start_axis: int = 1) -> Array:
    """Return x with all axes from ``start_axis`` on made one.

    >>> import numpy as np
    >>> flatten(np.ones((5, 4, 4, 3))).shape
    (5, 48)
    """
    return x.reshape(*x.shape[:start_axis], math.prod(x.shape[start_axis:]))


def flatten_backward(gy: Array, x: Array, start_axis: int = 1) -> Array:
    """Return the gradient of ``flatten``.

    >>> import numpy as np
    >>> flatten_backward(np.ones((5, 48)), np.ones((5, 4, 4, 3))).shape
    (5, 4, 4, 3)
    """
    return gy.reshape(x.shape)


def transpose(x: Array, *axes: int) -> Array:
    """Return x with its axes in another order, by default reversed: y.shape[i] = x.shape[axes[i]].

    >>> import numpy as np
    >>> transpose(np.ones((2, 3, 4)), 0, 2, 1).shape
    (2, 4, 3)
    """
    return x.transpose(*axes)


def transpose_backward(gy: Array, x: Array, *axes: int) -> Array:
    """Return the gradient of ``transpose``.

    >>> import numpy as np
    >>> transpose_backward(np.ones((3, 4, 2)), np.ones((2, 3, 4)), 1, 2, 0).shape
    (2, 3, 4)
    """
    order = [a % x.ndim for a in axes or reversed(range(x.ndim))]
    return gy.transpose(*(order.index(a) for a in range(x.ndim)))


def getitem(x: Array, key: Any) -> Array:
    """Return x[key], for ints, slices and an ellipsis.

    >>> import numpy as np
    >>> getitem(np.arange(6.0), slice(1, None, 2))
    array([1., 3., 5.])
    """
    return x[key]


def getitem_backward(gy: Array, x: Array, key: Any) -> Array:
    """Return the gradient of ``getitem``.

    >>> import numpy as np
    >>> getitem_backward(np.ones(3), np.arange(6.0), slice(1, None, 2))
    array([0., 1., 0., 1., 0., 1.])
    """
    gx = get_array_module(x).zeros_like(x)
    gx[key] = gy
    return gx


def pad2d(x: Array, padding: Any, mode: str = "zeros") -> Array:
    """Return images x (N, H, W, C) with a border: (N, top + H + bottom, left + W + right, C).

    Args:
        x: images (N, H, W, C).
        padding: a number, (PH, PW), or ((top, bottom), (left, right)), pixels.
        mode: "zeros", "reflect", "replicate" or "circular".

    >>> import numpy as np
    >>> pad2d(np.arange(3.0).reshape(1, 1, 3, 1), (0, 2), "reflect").ravel()
    array([2., 1., 0., 1., 2., 1., 0.])
    """
    xp = get_array_module(x)
    for axis, (near, far) in enumerate(sides(padding), start=1):
        lines = x.swapaxes(0, axis)                                      # (n, ...)
        n = len(lines)
        padded = xp.zeros((near + n + far, *lines.shape[1:]), x.dtype)
        for i in range(len(padded)):
            if (j := source(i - near, n, mode)) is not None:
                padded[i] = lines[j]
        x = padded.swapaxes(0, axis)
    return x


def pad2d_backward(gy: Array, x: Array, padding: Any, mode: str = "zeros") -> Array:
    """Return the gradient (N, H, W, C) of ``pad2d``.

    >>> import numpy as np
    >>> pad2d_backward(np.ones((1, 1, 7, 1)), np.zeros((1, 1, 3, 1)), (0, 2), "reflect").ravel()
    array([2., 3., 2.])
    """
    xp = get_array_module(x)
    for axis, (near, _) in enumerate(sides(padding), start=1):
        lines, n = gy.swapaxes(0, axis), x.shape[axis]
        folded = xp.zeros((n, *lines.shape[1:]), gy.dtype)
        for i in range(len(lines)):
            if (j := source(i - near, n, mode)) is not None:
                folded[j] += lines[i]
        gy = folded.swapaxes(0, axis)
    return gy


def source(i: int, n: int, mode: str) -> int | None:
    """Return which of n lines stands at place i, which may be outside 0 .. n-1; or None.

    >>> [source(i, 4, "reflect") for i in range(-2, 6)]
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if 0 <= i < n:
        return i
    if mode == "reflect":
        return -i if i < 0 else 2 * (n - 1) - i
    if mode == "replicate":
        return 0 if i < 0 else n - 1
    return i % n if mode == "circular" else None
