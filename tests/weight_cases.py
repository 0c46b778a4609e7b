"""Weight gradients of tensor cores and column sums, as the tables of kernels know them."""

import numpy as np

import gpuconv as gpc
from gpuconv import backend, kernels, ops
from gpuconv.ops.conv import gpu_mma_wgrad as engine
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.engine.column_sums import column_sums
from gpuconv.ops.window import ConvShape, Window, sides

SMALL = Tile(64, 32, 32, 32, 16, 3)  # for 16-bit floats; float32 has half of its depth


def window(size, stride=1, padding=0):
    """A square one."""
    return Window((size,) * 2, (stride,) * 2, sides(padding), (1, 1))


def of(tile, dtype):
    """The tile with stages of as many bytes."""
    return tile._replace(BK=tile.BK * 2 // dtype.itemsize)


def kernel_case(C, K, splits):
    """A case of kernel_cases: numbers that tf32 holds."""
    def run(xp, make):
        x, gy = (make(*shape).astype(np.float16) for shape in ((2, 9, 7, C), (2, 5, 4, K)))
        dtype = make().dtype
        x, gy, w = x.astype(dtype), gy.astype(dtype), make(K, 3, 3, C)
        if xp is np:
            return [gpc.vjp(lambda w: ops.conv2d(x, w, stride=2, padding=1), w)[1](gy)[0]]
        p = ConvShape(*x.shape, K, window(3, 2, 1))
        engine.wgrad(p, x, gy, w, tile=of(SMALL, dtype), splits=splits)
        return [w]

    return run


def column_case(n, K):
    """A case of kernel_cases."""
    def run(xp, make):
        rows, out = make(n, K), xp.empty(K, make().dtype)
        if xp is np:
            return [ops.sum(rows, 0)]
        column_sums(rows, out)
        return [out]

    return run


def drive(cp, dtype):
    """Every tile, both ways to end, and the narrow copies that defaults allow."""
    for n, K in [(1000, 64), (1000, 10), (3, 10), (3, 64)]:
        column_sums(cp.empty((n, K), dtype), cp.empty(K, dtype))
        column_sums(cp.empty((n, K), dtype), cp.empty(K, backend.accumulator(dtype)))
    if dtype.name == "float64":
        return
    shapes = [(16, 32, 3), (3, 32, 3), (16, 7, 3), (1, 1, 1), (10, 6, 3), (16, 16, 1)]
    for C, K, size in shapes if kernels.INT_ITEMS else shapes[1:2]:
        x, w = cp.empty((2, 12, 13, C), dtype), cp.empty((K, size, size, C), dtype)
        p = ConvShape(*x.shape, K, window(size, 1, size // 2))
        gy = cp.empty((2, 12, 13, K), dtype)
        default = engine.default_tile(p, dtype, 80)
        engine.wgrad(p, x, gy, w, tile=default, splits=1)
        first = {t[:2]: t for t in reversed(engine.tiles(dtype))}
        for tile in first.values() if (C, K) == (16, 32) else [default]:
            engine.wgrad(p, x, gy, w, tile=tile, splits=2)


def traffic(make, o):
    """The weight gradient, on the shapes of tests/traffic.py; no second pass."""
    win, K = window(o.kernel_size, o.stride or 1, o.padding), o.filters
    w = make(K, o.kernel_size, o.kernel_size, o.shape[-1])
    p = ConvShape(*o.shape, K, win)
    engine.wgrad(p, make(*o.shape), make(p.N, p.P, p.Q, K), w, splits=1,
                           tile=of(SMALL, o.dtype))


def column_traffic(make, o):
    """A matrix (n, K)."""
    column_sums(make(*o.shape), make(o.shape[1]))
