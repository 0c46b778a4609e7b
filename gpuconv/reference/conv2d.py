"""2-d convolution (cross-correlation, as everywhere in this field), tap by tap.

    y[n,p,q,k]  = b[k] + sum over r,s,c of  x[n,h,w,c] * w[k,r,s,c]     h = p*SH - PT + r*DH,
    gx[n,h,w,c] =        sum over r,s,k of  gy[n,p,q,k] * w[k,r,s,c]    w = q*SW - PL + s*DW
    gw[k,r,s,c] =        sum over n,p,q of  gy[n,p,q,k] * x[n,h,w,c]
    gb[k]       =        sum over n,p,q of  gy[n,p,q,k]

x is 0 outside of the image. With G groups, channels and filters fall into G parts, and filters of
one part see the channels of the same part only.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
1998, section II.A; CS231n, Convolutional Networks.
"""

from collections.abc import Iterator
from typing import Any

from gpuconv.backend import Array, get_array_module
from gpuconv.reference.shape import pad2d, pad2d_backward
from gpuconv.reference.window import window


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1, groups: int = 1, padding_mode: str = "zeros") -> Array:
    """Return y (N, P, Q, K): K filters slid over images.

    Args:
        x: images (N, H, W, C).
        w: filters (K, R, S, C/groups).
        b: bias (K,), or None.
        stride, padding, dilation: see ``window``.
        groups: number of parts that channels and filters fall into.
        padding_mode: what the padding holds: "zeros", or a mode of ``pad2d``.

    >>> import numpy as np
    >>> conv2d(np.arange(9.0).reshape(1, 3, 3, 1), np.ones((1, 2, 2, 1)))[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    xp, win = get_array_module(x), window(x.shape[1:3], w.shape[1:3], stride, padding, dilation)
    if padding_mode != "zeros":
        padded = pad2d(x, win.pad, padding_mode)
        return conv2d(padded, w, b, stride=stride, dilation=dilation, groups=groups)
    y = xp.zeros((len(x), *win.out, len(w)), x.dtype)
    for c, k in parts(x.shape[3], len(w), groups):
        for r, s, at, met in win.taps():
            y[at][..., k] += x[met][..., c] @ w[k, r, s].T  # (N, P, Q, C/G) @ (C/G, K/G)
    return y if b is None else y + b


def conv2d_backward(gy: Array, x: Array, w: Array, b: Array | None = None, *, stride: Any = 1,
                    padding: Any = 0, dilation: Any = 1, groups: int = 1,
                    padding_mode: str = "zeros") -> tuple[Array, Array, Array | None]:
    """Return the gradients (gx, gw, gb) of ``conv2d``, from gy (N, P, Q, K); gb is None without b.

    >>> import numpy as np
    >>> x, w = np.arange(9.0).reshape(1, 3, 3, 1), np.ones((1, 2, 2, 1))
    >>> gx, gw, _ = conv2d_backward(np.ones((1, 2, 2, 1)), x, w)
    >>> gx[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    >>> gw[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    xp, win = get_array_module(x), window(x.shape[1:3], w.shape[1:3], stride, padding, dilation)
    if padding_mode != "zeros":
        padded = pad2d(x, win.pad, padding_mode)
        gpadded, gw, gb = conv2d_backward(gy, padded, w, b, stride=stride, dilation=dilation,
                                          groups=groups)
        return pad2d_backward(gpadded, x, win.pad, padding_mode), gw, gb
    gx, gw = xp.zeros_like(x), xp.zeros_like(w)
    for c, k in parts(x.shape[3], len(w), groups):
        for r, s, at, met in win.taps():
            g, pixels = gy[at][..., k], x[met][..., c]  # (N, P, Q, K/G) and (N, P, Q, C/G)
            gx[met][..., c] += g @ w[k, r, s]
            gw[k, r, s] = rows(g).T @ rows(pixels)
    return gx, gw, None if b is None else gy.sum(axis=(0, 1, 2))


def parts(C: int, K: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield the channels and the filters of each group, as slices.

    >>> list(parts(4, 6, groups=2))
    [(slice(0, 2, None), slice(0, 3, None)), (slice(2, 4, None), slice(3, 6, None))]
    """
    C, K = C // groups, K // groups
    for g in range(groups):
        yield slice(g * C, (g + 1) * C), slice(g * K, (g + 1) * K)


def rows(a: Array) -> Array:
    """Return a (..., C) as a matrix with a row for each pixel."""
    return a.reshape(a[..., 0].size, a.shape[-1])
