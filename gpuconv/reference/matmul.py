"""Products of matrices, and the linear layer.

    matmul   y = a b              ga = gy b^T    gb = a^T gy
    linear   y = x w^T + b        gx = gy w      gw = gy^T x      gb = sum of the rows of gy

Leading axes of matmul are a batch of matrices, and broadcast; those of linear's x are many rows.
"""

from gpuconv.backend import Array
from gpuconv.reference.arithmetic import sum_to


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product of a (..., N, C) and b (..., C, K), or of vectors (C,).

    >>> import numpy as np
    >>> matmul(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0]))
    array([21., 43.])
    """
    return a @ b


def matmul_backward(gy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients (ga, gb) of ``matmul``.

    >>> import numpy as np
    >>> a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 10.0])
    >>> ga, gb = matmul_backward(np.ones(2), a, b)
    >>> ga
    array([[ 1., 10.],
           [ 1., 10.]])
    >>> gb
    array([4., 6.])
    """
    left, right = a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None]  # as matrices
    lead = gy.shape[:gy.ndim - (a.ndim > 1) - (b.ndim > 1)]
    gy = gy.reshape(*lead, left.shape[-2], right.shape[-1])                      # (..., N, K)
    ga, gb = gy @ right.swapaxes(-1, -2), left.swapaxes(-1, -2) @ gy
    return sum_to(ga, left).reshape(a.shape), sum_to(gb, right).reshape(b.shape)


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """Return weighted sums (..., K) of the last axis of x.

    Args:
        x: array (..., C).
        w: weights (K, C).
        b: bias (K,), or None.

    >>> import numpy as np
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.0, 10.0]))
    array([[ 3., 16.]])
    """
    y = x @ w.T
    return y if b is None else y + b


def linear_backward(gy: Array, x: Array, w: Array,
                    b: Array | None = None) -> tuple[Array, Array, Array | None]:
    """Return the gradients (gx, gw, gb) of ``linear``; gb is None without b.

    >>> import numpy as np
    >>> linear_backward(np.ones((1, 1)), np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    (array([[3., 4.]]), array([[1., 2.]]), None)
    """
    (K, C), gx = w.shape, gy @ w
    gy, x = gy.reshape(x[..., 0].size, K), x.reshape(x[..., 0].size, C)  # (N, K) and (N, C)
    return gx, gy.T @ x, None if b is None else gy.sum(axis=0)
