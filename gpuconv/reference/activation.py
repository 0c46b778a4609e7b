"""Activations, element by element.

    relu     y = max(x, 0)         gx = gy where x > 0, else 0
    gelu     y = x * F(x)          gx = gy * (F(x) + x * f(x))
    sigmoid  y = 1 / (1 + e^-x)    gx = gy * y * (1 - y)
    tanh     y = tanh(x)           gx = gy * (1 - y*y)
    silu     y = x * s             gx = gy * s * (1 + x * (1 - s))    s = 1 / (1 + e^-x)

F is the distribution function of the standard normal law, F(x) = (1 + erf(x / sqrt(2))) / 2, and
f is its density, f(x) = e^(-x*x/2) / sqrt(2 pi). NaN stays NaN, and relu passes its gradient on.

Source: Hendrycks, Gimpel, "Gaussian error linear units", 2016; Elfwing, Uchibe, Doya,
"Sigmoid-weighted linear units", 2017 (silu).
"""

import math

import numpy as np

from gpuconv.backend import Array, get_array_module, to_cpu

__all__ = ["gelu", "gelu_backward", "relu", "relu_backward", "sigmoid", "sigmoid_backward", "silu",
           "silu_backward", "tanh", "tanh_backward"]


def relu(x: Array) -> Array:
    """Return max(x, 0).

    >>> import numpy as np
    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return get_array_module(x).maximum(x, 0)


def relu_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``relu``.

    >>> import numpy as np
    >>> relu_backward(np.ones(3), np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 1.])
    """
    return get_array_module(x).where(x <= 0, 0, gy)


def gelu(x: Array) -> Array:
    """Return x * F(x).

    >>> import numpy as np
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    return x * normal(x)


def gelu_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``gelu``.

    >>> import numpy as np
    >>> gelu_backward(np.ones(3), np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.0833,  0.5   ,  1.0833])
    """
    density = get_array_module(x).exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return gy * (normal(x) + x * density)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x).

    >>> import numpy as np
    >>> sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    with np.errstate(over="ignore"):  # e^-x may be inf: then y is 0
        return 1 / (1 + get_array_module(x).exp(-x))


def sigmoid_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``sigmoid``.

    >>> import numpy as np
    >>> sigmoid_backward(np.ones(1), np.zeros(1))
    array([0.25])
    """
    y = sigmoid(x)
    return gy * y * (1 - y)


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent.

    >>> import numpy as np
    >>> tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    return get_array_module(x).tanh(x)


def tanh_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``tanh``.

    >>> import numpy as np
    >>> tanh_backward(np.ones(1), np.zeros(1))
    array([1.])
    """
    y = tanh(x)
    return gy * (1 - y * y)


def silu(x: Array) -> Array:
    """Return x / (1 + e^-x).

    >>> import numpy as np
    >>> silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return x * sigmoid(x)


def silu_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``silu``.

    >>> import numpy as np
    >>> silu_backward(np.ones(1), np.zeros(1))
    array([0.5])
    """
    s = sigmoid(x)
    return gy * s * (1 + x * (1 - s))


def normal(x: Array) -> Array:
    """Return F(x), the distribution function of the standard normal law; SciPy computes its erf.

    >>> import numpy as np
    >>> normal(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    from scipy.special import erf  # slow to import
    half = erf(to_cpu(x) / math.sqrt(2)).astype(x.dtype)  # of 16 bits SciPy makes 32
    return (1 + get_array_module(x).asarray(half)) / 2
