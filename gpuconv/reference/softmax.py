"""Softmax and its logarithm, along one axis.

    softmax      y = e^x / sum of e^x           gx = y * (gy - sum of gy * y)
    log_softmax  y = x - log(sum of e^x)        gx = gy - e^y * (sum of gy)

The maximum of x is subtracted first: y stays the same, and nothing overflows.

Source: CS231n, "Linear classification: softmax classifier", on numeric stability.
"""

from gpuconv.backend import Array, get_array_module


def softmax(x: Array, axis: int = -1) -> Array:
    """Return e^x / sum of e^x.

    >>> import numpy as np
    >>> softmax(np.array([0.0, np.log(3.0)]))
    array([0.25, 0.75])
    """
    e = get_array_module(x).exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def softmax_backward(gy: Array, x: Array, axis: int = -1) -> Array:
    """Return the gradient of ``softmax``.

    >>> import numpy as np
    >>> softmax_backward(np.array([1.0, 0.0]), np.zeros(2))
    array([ 0.25, -0.25])
    """
    y = softmax(x, axis)
    return y * (gy - (gy * y).sum(axis=axis, keepdims=True))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return the logarithm of ``softmax``, without its underflow.

    >>> import numpy as np
    >>> log_softmax(np.array([0.0, 1000.0]))
    array([-1000.,     0.])
    """
    xp = get_array_module(x)
    x = x - x.max(axis=axis, keepdims=True)
    return x - xp.log(xp.exp(x).sum(axis=axis, keepdims=True))


def log_softmax_backward(gy: Array, x: Array, axis: int = -1) -> Array:
    """Return the gradient of ``log_softmax``.

    >>> import numpy as np
    >>> log_softmax_backward(np.array([1.0, 0.0]), np.zeros(2))
    array([ 0.5, -0.5])
    """
    return gy - softmax(x, axis) * gy.sum(axis=axis, keepdims=True)
