"""Pixels around an image: zeros, its mirror image, its edge, or its other side.

    y[n, h, w, c] = x[n, source(h - top), source(w - left), c]

    reflect    ... 2 1 | 0 1 2 3 | 2 1 ...     the edge itself is not repeated
    replicate  ... 0 0 | 0 1 2 3 | 3 3 ...
    circular   ... 2 3 | 0 1 2 3 | 0 1 ...

The backward pass sends each padded pixel's gradient to its source: the padding is folded back, one
axis after the other.
"""

import sys
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.checks import check_choice, short
from gpuconv.ops.checks import check_images
from gpuconv.ops.engine.packs import packs
from gpuconv.ops.window import IntOrPair, Pair, sides

MODES = ("zeros", "reflect", "replicate", "circular")


def pad2d(x: Array, padding: IntOrPair | tuple[Pair, Pair], mode: str = "zeros") -> Array:
    """Put a border around images.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        padding: one int, (PH, PW), or ((top, bottom), (left, right)), pixels.
        mode: "zeros", "reflect", "replicate" or "circular".

    Returns:
        (N, top + H + bottom, left + W + right, C), dtype of x.

    Raises:
        ValueError: x is not 4-d, unknown mode, a negative padding, or more padding than the mode
            has pixels for: H - 1 for "reflect", H for "circular".
        TypeError: x is not floating-point.

    >>> import numpy as np
    >>> pad2d(np.arange(3.0).reshape(1, 1, 3, 1), (0, 2), "reflect").ravel()
    array([2., 1., 0., 1., 2., 1., 0.])
    """
    check_images("pad2d", x)
    try:
        pads = sides(padding)
    except (TypeError, ValueError) as error:
        raise type(error)(f"pad2d: {error}") from None
    check_choice("pad2d", "mode", mode, MODES)
    for n, side in zip(x.shape[1:3], pads, strict=True):
        most = {"reflect": n - 1, "circular": n}.get(mode)
        if min(side) < 0 or most is not None and max(side) > most:
            limit = "at least 0" if most is None else f"0 to {most}"
            raise ValueError(f"pad2d: padding {short(pads)} around x {tuple(x.shape)}, {mode!r} "
                             f"takes {limit} here")
    N, H, W, C = x.shape
    shape = N, H + sum(pads[0]), W + sum(pads[1]), C
    if max(N, 1) * shape[1] * shape[2] * C * x.dtype.itemsize > sys.maxsize:
        raise ValueError(f"pad2d: the result would have shape {short(shape)}, more than fits an "
                         f"address space: pad less")
    return Pad2d(pads, mode)(x)


class Pad2d(Op):
    """Saves: nothing but the numbers it was made with."""

    depends_on, multiply_adds = "pixel", 0

    def __init__(self, pads: tuple[Pair, Pair], mode: str):
        self.pads, self.mode = pads, mode

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x):
        (top, bottom), (left, right) = self.pads
        N, H, W, C = x.shape
        y = memory.empty((N, top + H + bottom, left + W + right, C), x.dtype)
        return self.by_images(self.padded, x, y)

    def backward_cpu(self, gy):
        (top, bottom), (left, right) = self.pads
        N, H, W, C = gy.shape
        gx = memory.empty((N, H - top - bottom, W - left - right, C), gy.dtype)
        return (self.by_images(self.folded, gy, gx),)

    def by_images(self, f, source, out):
        """``out = f(source)``, as many images at a time as fit the cache."""
        def work(some):
            out[some] = f(source[some])

        threads.each(work, threads.chunks(len(out), out[:1].nbytes))
        return out

    def padded(self, x):
        """Return the padded images."""
        for axis, (near, far) in enumerate(self.pads, start=1):
            x = x.swapaxes(0, axis)
            pieces = [*self.border(x, near, near=True), x, *self.border(x, far, near=False)]
            x = np.concatenate(pieces) if len(pieces) > 1 else x  # (near + n + far, ...)
            x = x.swapaxes(0, axis)
        return np.ascontiguousarray(x)

    def border(self, x, count, near):
        """Return the ``count`` lines before x (along axis 0), or after it, as a list of arrays."""
        if not count:
            return []
        if self.mode == "zeros":
            return [np.zeros((count, *x.shape[1:]), x.dtype)]
        if self.mode == "replicate":
            return [x[:1] if near else x[-1:]] * count
        if self.mode == "circular":
            return [x[-count:] if near else x[:count]]
        return [x[count:0:-1] if near else x[-2 : -count - 2 : -1]]  # reflect

    def folded(self, gy):
        """Return the gradient of x."""
        g = gy.astype(accumulator(gy.dtype), copy=False)
        for axis, (near, far) in enumerate(self.pads, start=1):
            g = g.swapaxes(0, axis)
            n = len(g) - near - far
            before, inside, after = g[:near], g[near : near + n], g[near + n :]
            if self.mode != "zeros" and near + far:
                inside = inside.copy()
                self.fold(inside, before, near, after, far)
            g = inside.swapaxes(0, axis)
        return np.ascontiguousarray(g.astype(gy.dtype, copy=False))

    def fold(self, inside, before, near, after, far):
        """Add the gradients of both borders to the lines they were copied from."""
        if self.mode == "replicate":
            inside[0] += before.sum(axis=0)
            inside[-1] += after.sum(axis=0)
        elif self.mode == "circular":
            if near:
                inside[-near:] += before
            if far:
                inside[:far] += after
        else:  # reflect
            if near:
                inside[near:0:-1] += before
            if far:
                inside[-2 : -far - 2 : -1] += after

    # -- GPU: kernels/shape/pad.cu ---------------------------------------------------------

    def forward_gpu(self, x):
        (top, bottom), (left, right) = self.pads
        N, H, W, C = x.shape
        y = cupy().empty((N, top + H + bottom, left + W + right, C), x.dtype)
        self.launch("pad_forward", y, x, y, x.shape, y.shape)
        return y

    def backward_gpu(self, gy):
        (top, bottom), (left, right) = self.pads
        N, H, W, C = gy.shape
        gx = cupy().empty((N, H - top - bottom, W - left - right, C), gy.dtype)
        self.launch("pad_backward", gx, gy, gx, gx.shape, gy.shape)
        return (gx,)

    def launch(self, function: str, out: Array, a: Array, b: Array, inner: Any, outer: Any) -> None:
        """Run a kernel on two arrays, of images and of padded images of these shapes."""
        (top, _), (left, _) = self.pads
        kernels.kernel("shape/pad.cu", function, T=out.dtype, I=kernels.index(a, b),
                       MODE=MODES.index(self.mode))(
            packs(out, out.shape[3]), a, b, *inner, *outer[1:3], top, left)
