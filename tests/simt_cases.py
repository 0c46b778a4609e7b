"""The convolutions of ops/conv/gpu_simt.py, as the tables of kernels know them."""

from unittest import mock

import numpy as np

import gpuconv as gpc
from gpuconv import backend, ops
from gpuconv.ops.conv import gpu_simt
from gpuconv.ops.elementwise import ACTIVATIONS
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.window import ConvShape, Window, sides

KINDS = {  # how many channels, filters and groups
    "packs": (8, 12, 1), "single": (3, 5, 1), "groups": (16, 24, 2), "depthwise": (6, 6, 6),
}


def kernel_case(kind, stride=1):
    """All three directions, the weight gradient by partial sums."""
    C, K, groups = KINDS[kind]

    def run(xp, make):
        shape = (2, 7 * stride, 5 * stride, C)
        x, w, b = make(*shape), make(K, 3, 3, C // groups), make(K)
        gy, residual = make(2, 7, 5, K), make(2, 7, 5, K)
        how = dict(stride=stride, padding=1, groups=groups)
        if xp is np:
            gx, gw = gpc.vjp(lambda x, w: ops.conv2d(x, w, **how), x, w)[1](gy)
            return [ops.relu(ops.conv2d(x, w, b, **how) + residual), gx, gw]
        y, gx, gw = xp.empty_like(gy), xp.empty_like(x), xp.empty_like(w)
        p = ConvShape(*shape, K, window(3, stride, 1), groups)
        gpu_simt.forward(p, x, w, y, Epilogue(b, residual, "relu"))
        gpu_simt.dgrad(p, gy, w, gx)
        with mock.patch.object(gpu_simt, "SLICE", 16):
            gpu_simt.wgrad(p, x, gy, gw)
        return [y, gx, gw]

    return run


def window(size, stride, padding, dilation=1):
    """A square one."""
    return Window((size,) * 2, (stride,) * 2, sides(padding), (dilation,) * 2)


def drive(cp, dtype, geometries=None):
    """The tiles, packs or numbers, a stride, the activations; the first few geometries, or all."""
    for C, K, groups, pixels, stride, activation in [
            (64, 256, 1, 200, 1, None), (4, 4, 4, 40, 1, "gelu"), (8, 32, 1, 200, 2, "relu"),
            (3, 32, 1, 200, 1, "gelu"), (16, 24, 2, 4, 1, None), (33, 7, 1, 200, 1, None),
            (6, 6, 6, 40, 2, None),
            *((8, 32, 1, 200, 1, name) for name in ACTIVATIONS),
            *((4, 4, 4, 40, 1, name) for name in ACTIVATIONS)][:geometries]:
        x, w = cp.empty((1, pixels, pixels, C), dtype), cp.empty((K, 3, 3, C // groups), dtype)
        p = ConvShape(*x.shape, K, window(3, stride, 1), groups)
        y, row = cp.empty((1, p.P, p.Q, K), dtype), cp.empty(K, dtype)
        gpu_simt.forward(p, x, w, y, Epilogue(row, y, activation))
        gpu_simt.dgrad(p, y, w, x)
        gpu_simt.wgrad(p, x, y, w)


def traffic(*directions, groups=None):
    """Runs some of the directions, on the shapes of tests/traffic.py."""
    def run(make, o):
        K = o.filters if groups is None else o.shape[-1]
        each = 1 if groups is None else o.shape[-1]
        win = window(o.kernel_size, o.stride or 1, o.padding, o.dilation)
        x, w = make(*o.shape), make(K, o.kernel_size, o.kernel_size, o.shape[-1] // each)
        p = ConvShape(*x.shape, K, win, each)
        y = make(p.N, p.P, p.Q, p.K)
        if "forward" in directions:
            gpu_simt.forward(p, x, w, y, Epilogue(make(K), make(*y.shape)))
        if "dgrad" in directions:
            gpu_simt.dgrad(p, y, w, x)
        if "wgrad" in directions:
            wide = backend.accumulator(o.dtype)
            gpu_simt.wgrad(p, x, y, make(*w.shape).astype(wide))

    return run
