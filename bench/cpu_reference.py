"""Convolution as everybody writes it first: all patches of the whole batch, and one product.

    y = col(x) w^T      gw = gy^T col(x)      gx = col2im(gy w)

Each call makes the matrix of patches anew: to keep it for the backward pass takes R*S times the
memory of the image. One matmul with all of BLAS's threads, one copy, nothing else.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided


def patches(x: np.ndarray, R: int, stride: int, padding: int) -> np.ndarray:
    """(N*P*Q, R*R*C) of x (N, H, W, C)."""
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    (N, H, W, C), (n, h, w, c) = x.shape, x.strides
    P, Q = (H - R) // stride + 1, (W - R) // stride + 1
    windows = as_strided(x, (N, P, Q, R, R, C), (n, stride * h, stride * w, h, w, c))
    return windows.reshape(N * P * Q, R * R * C)


def forward(x: np.ndarray, w: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """y (N, P, Q, K)."""
    K, R = w.shape[:2]
    N, P, Q = len(x), *((side + 2 * padding - R) // stride + 1 for side in x.shape[1:3])
    return (patches(x, R, stride, padding) @ w.reshape(K, -1).T).reshape(N, P, Q, K)


def input_gradient(gy: np.ndarray, w: np.ndarray, shape: tuple[int, ...], stride: int,
                   padding: int) -> np.ndarray:
    """gx of that shape (N, H, W, C)."""
    (N, P, Q, K), R, (_, H, W, C) = gy.shape, w.shape[1], shape
    col = (gy.reshape(-1, K) @ w.reshape(K, -1)).reshape(N, P, Q, R, R, C)
    gx = np.zeros((N, H + 2 * padding, W + 2 * padding, C), gy.dtype)
    for r in range(R):
        for s in range(R):
            gx[:, r:r + stride * P:stride, s:s + stride * Q:stride] += col[:, :, :, r, s]
    return gx[:, padding:padding + H, padding:padding + W]


def weight_gradient(x: np.ndarray, gy: np.ndarray, R: int, stride: int,
                    padding: int) -> np.ndarray:
    """gw (K, R, R, C)."""
    K = gy.shape[3]
    return (gy.reshape(-1, K).T @ patches(x, R, stride, padding)).reshape(K, R, R, -1)
