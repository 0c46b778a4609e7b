"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch, then a new scale.

    mean = 1/n sum x        var = 1/n sum (x - mean)^2        over the n values of a channel
    xhat = (x - mean) / sqrt(var + eps)
    y    = gamma xhat + beta

    gbeta = sum gy          ggamma = sum gy xhat
    gx    = gamma / sqrt(var + eps) (gy - gbeta/n - xhat ggamma/n)

Training updates the running statistics:

    running_mean = (1 - momentum) running_mean + momentum mean
    running_var  = (1 - momentum) running_var  + momentum var n/(n-1)

In inference the running statistics take the place of mean and var. They are constants, and the
last two terms of gx fall away.

Source: Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing
internal covariate shift", ICML 2015.
"""

from typing import Any

from gpuconv.backend import Array, get_array_module


def batch_norm(x: Array, gamma: Array | None, beta: Array | None, running_mean: Any,
               running_var: Any, *, training: bool, momentum: float = 0.1,
               eps: float = 1e-5) -> Array:
    """Return x with each channel normalised over all other axes.

    Args:
        x: array (..., C).
        gamma: scale (C,); None: 1.
        beta: shift (C,); None: 0.
        running_mean, running_var: (C,), updated in place by training; or None.
        training: normalise with the statistics of this batch, not with the running ones.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.

    >>> import numpy as np
    >>> x, mean, var = np.array([[1.0, 10.0], [3.0, 30.0]]), np.zeros(2), np.ones(2)
    >>> batch_norm(x, None, None, mean, var, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean, var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """
    n, (mean, var) = x[..., 0].size, moments(x) if training else (running_mean, running_var)
    if training and running_mean is not None and running_var is not None:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * var * (n / (n - 1))
    xhat = (x - mean) / get_array_module(x).sqrt(var + eps)
    y = xhat if gamma is None else gamma * xhat
    return y if beta is None else y + beta


def batch_norm_backward(gy: Array, x: Array, gamma: Array | None, beta: Array | None,
                        running_mean: Any, running_var: Any, *, training: bool,
                        eps: float = 1e-5) -> tuple[Array, Array | None, Array | None]:
    """Return the gradients (gx, ggamma, gbeta) of ``batch_norm``; None for what is None.

    >>> import numpy as np
    >>> x, gy, one = np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]), np.ones(1)
    >>> gx, ggamma, gbeta = batch_norm_backward(gy, x, one, one, None, None, training=True)
    >>> gx.ravel(), ggamma, gbeta
    (array([0., 0.]), array([0.]), array([2.]))
    """
    n, (mean, var) = x[..., 0].size, moments(x) if training else (running_mean, running_var)
    axes = tuple(range(x.ndim - 1))
    std = get_array_module(x).sqrt(var + eps)
    xhat = (x - mean) / std
    gbeta, ggamma = gy.sum(axis=axes), (gy * xhat).sum(axis=axes)
    gx = gy - gbeta / n - xhat * ggamma / n if training else gy
    gx = (gx if gamma is None else gamma * gx) / std
    return gx, None if gamma is None else ggamma, None if beta is None else gbeta


def moments(x: Array) -> tuple[Array, Array]:
    """Return mean (C,) and variance (C,) of x (..., C) over all axes but the last.

    >>> import numpy as np
    >>> moments(np.array([[1.0], [3.0]]))
    (array([2.]), array([1.]))
    """
    axes, n = tuple(range(x.ndim - 1)), x[..., 0].size
    mean = x.sum(axis=axes) / n
    return mean, ((x - mean) * (x - mean)).sum(axis=axes) / n
