"""Composite ops: several ops that gpuconv computes as one. Their definition is their composition.

    bias_relu        y = relu(x + b)
    conv_max_pool    y = max_pool2d(activation(conv2d(x, w) + b), 2)
    conv_batch_norm  y = activation(batch_norm(z) + residual)    z = conv2d(x, w), or of it
                                                                     max_pool2d(., 2) with ``pool``

The arguments ``activation`` and ``residual`` of conv2d, linear and batch_norm mean the same:
activation(op(x) + residual). Backward applies the gradients of the parts in reverse order.
"""

from typing import Any

from gpuconv.backend import Array
from gpuconv.reference import activation as activations
from gpuconv.reference.activation import relu, relu_backward
from gpuconv.reference.arithmetic import add_backward
from gpuconv.reference.conv2d import conv2d, conv2d_backward
from gpuconv.reference.norm import batch_norm, batch_norm_backward
from gpuconv.reference.pool import max_pool2d, max_pool2d_backward


def activate(x: Array, activation: str | None) -> Array:
    """Return the activation of this name of x; x itself for None.

    >>> import numpy as np
    >>> activate(np.array([-1.0, 1.0]), "relu")
    array([0., 1.])
    """
    return x if activation is None else getattr(activations, activation)(x)


def activate_backward(gy: Array, x: Array, activation: str | None) -> Array:
    """Return the gradient of ``activate``.

    >>> import numpy as np
    >>> activate_backward(np.ones(2), np.array([-1.0, 1.0]), "relu")
    array([0., 1.])
    """
    return gy if activation is None else getattr(activations, f"{activation}_backward")(gy, x)


def bias_relu(x: Array, b: Array) -> Array:
    """Return relu(x + b), for x (..., C) and b (C,).

    >>> import numpy as np
    >>> bias_relu(np.array([[1.0, -3.0], [-2.0, 4.0]]), np.array([1.0, 2.0]))
    array([[2., 0.],
           [0., 6.]])
    """
    return relu(x + b)


def bias_relu_backward(gy: Array, x: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients (gx, gb) of ``bias_relu``.

    >>> import numpy as np
    >>> bias_relu_backward(np.ones((2, 1)), np.array([[1.0], [-1.0]]), np.zeros(1))[1]
    array([1.])
    """
    return add_backward(relu_backward(gy, x + b), x, b)


def conv_max_pool(x: Array, w: Array, b: Array | None = None, *, stride: Any = 1, padding: Any = 0,
                  dilation: Any = 1, activation: str | None = None) -> Array:
    """Return max_pool2d(activation(conv2d(x, w, b)), 2).

    >>> import numpy as np
    >>> conv_max_pool(np.arange(4.0).reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1))).item()
    3.0
    """
    z = conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation)
    return max_pool2d(activate(z, activation), 2)


def conv_max_pool_backward(gy: Array, x: Array, w: Array, b: Array | None = None, *,
                           stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                           activation: str | None = None) -> tuple[Array, Array, Array | None]:
    """Return the gradients (gx, gw, gb) of ``conv_max_pool``.

    >>> import numpy as np
    >>> x = np.arange(4.0).reshape(1, 2, 2, 1)
    >>> conv_max_pool_backward(np.ones((1, 1, 1, 1)), x, np.ones((1, 1, 1, 1)))[0].ravel()
    array([0., 0., 0., 1.])
    """
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    z = conv2d(x, w, b, **geometry)
    g = max_pool2d_backward(gy, activate(z, activation), 2)
    return conv2d_backward(activate_backward(g, z, activation), x, w, b, **geometry)


def conv_batch_norm(x: Array, w: Array, gamma: Array | None, beta: Array | None,
                    running_mean: Any, running_var: Any, *, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1, pool: bool = False, training: bool, momentum: float = 0.1,
                    eps: float = 1e-5, activation: str | None = None,
                    residual: Array | None = None) -> Array:
    """Return activation(batch_norm(z) + residual), z being conv2d(x, w), pooled with ``pool``.

    >>> import numpy as np
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 8.0]).reshape(2, 2, 2, 1)
    >>> conv_batch_norm(x, np.ones((1, 1, 1, 1)), None, None, None, None, pool=True,
    ...                 training=True).ravel().round(3)
    array([-1.,  1.])
    """
    z = conv2d(x, w, stride=stride, padding=padding, dilation=dilation)
    z = max_pool2d(z, 2) if pool else z
    y = batch_norm(z, gamma, beta, running_mean, running_var, training=training,
                   momentum=momentum, eps=eps)
    return activate(y if residual is None else y + residual, activation)


def conv_batch_norm_backward(gy: Array, x: Array, w: Array, gamma: Array | None,
                             beta: Array | None, running_mean: Any, running_var: Any, *,
                             stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                             pool: bool = False, training: bool, eps: float = 1e-5,
                             activation: str | None = None,
                             residual: Array | None = None) -> tuple:
    """Return the gradients (gx, gw, ggamma, gbeta, gresidual) of ``conv_batch_norm``.

    >>> import numpy as np
    >>> x = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> gx, *others = conv_batch_norm_backward(
    ...     np.ones((2, 1, 1, 1)), x, np.ones((1, 1, 1, 1)), None, None, None, None, training=True)
    >>> gx.ravel()
    array([0., 0.])
    """
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    conv = conv2d(x, w, **geometry)
    z = max_pool2d(conv, 2) if pool else conv
    running = (None, None) if training else (running_mean, running_var)
    y = batch_norm(z, gamma, beta, *running, training=training, eps=eps)
    g = activate_backward(gy, y if residual is None else y + residual, activation)
    gz, ggamma, gbeta = batch_norm_backward(g, z, gamma, beta, *running, training=training, eps=eps)
    gconv = max_pool2d_backward(gz, conv, 2) if pool else gz
    gx, gw, _ = conv2d_backward(gconv, x, w, **geometry)
    return gx, gw, ggamma, gbeta, None if residual is None else g
