"""The weight gradient of a convolution on tensor cores, split along the pixels.

    GW (K x depth) = GY^T (K x pixels) X (pixels x depth)     pixels = N*P*Q, depth = R*S*C

K and depth are small beside the pixels, so a tile of GW for each block would leave most of the
device idle. The pixels are cut into ``splits`` runs with partial sums of their own in float32,
which column_sums adds in order. 16-bit floats are multiplied exactly and summed in float32; float32
is rounded to tf32 (10 bits of fraction) before it is multiplied.
"""

import functools
import math
from typing import Any

import numpy as np

from gpuconv import kernels
from gpuconv.backend import Array, cupy, float_dtype
from gpuconv.ops.conv import gpu_mma
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.conv.shape import Problem
from gpuconv.ops.engine.column_sums import column_sums

TILES = (                           # BK for 16-bit floats; float32 has half of it, see tiles()
    Tile(128, 128, 32, 64, 64, 3), Tile(128, 128, 32, 64, 64, 4), Tile(128, 64, 32, 64, 32, 3),
    Tile(64, 128, 32, 32, 64, 3), Tile(64, 64, 32, 32, 32, 3), Tile(32, 128, 32, 32, 32, 4),
    Tile(64, 32, 64, 32, 16, 3), Tile(32, 64, 64, 16, 32, 3), Tile(32, 32, 64, 16, 16, 3),
)
DEFAULTS = {                        # (BM, BN): share of the speed of the first, by its traffic
    (128, 128): 1.0, (128, 64): 0.85, (64, 128): 0.85, (64, 64): 0.65, (32, 128): 0.5,
    (64, 32): 0.4, (32, 64): 0.4, (32, 32): 0.25,
}
HELD = 16                           # elements of 2 bytes that a thread can keep in registers
START = 8                           # stages that a block's beginning and end take as long as
WORKSPACE = 64 << 20                # bytes of partial sums, at most
LONGEST = 1 << 15                   # pixels of a run, if there is room: its sum is in float32
PRODUCTS = 512                      # of 16-bit floats, that a multiprocessor adds in a cycle, about
BANDWIDTH = 16                      # bytes of partial sums of a multiprocessor in a cycle, about


def tiles(dtype: Any) -> tuple[Tile, ...]:
    """The candidates: TILES, with stages of the same depth in bytes."""
    itemsize = float_dtype(dtype).itemsize
    return tuple(t._replace(BK=t.BK * 2 // itemsize) for t in TILES)


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Of a block: its stages; rows of float32 lie apart, so that they share no banks."""
    apart = 16 if itemsize == 4 else 0
    return itemsize * tile.STAGES * tile.BK * (tile.BM + tile.BN + apart)


def runs_on(tile: Tile, p: Problem, dtype: Any) -> bool:
    """Can its threads copy these channels? Odd ones of 16 bits are held in registers."""
    size = float_dtype(dtype).itemsize
    held = [tile.BK * wide // tile.threads for wide, channels in ((tile.BM, p.K), (tile.BN, p.C))
            if channels * size % 4]
    return max(held, default=0) <= HELD


@functools.lru_cache(4096)
def default_tile(p: Problem, dtype: Any, architecture: int) -> Tile:
    """The tile that should take the least time, by counting full tiles.

    Args:
        p: the convolution.
        dtype: of its arrays.
        architecture: compute capability, 90; does not matter yet.

    A pure function: the same on every machine.
    """
    first: dict[tuple[int, ...], Tile] = {}
    for tile in tiles(dtype):
        if runs_on(tile, p, dtype):
            first.setdefault(tile[:2], tile)

    def time(tile: Tile) -> float:
        full = math.ceil(p.K / tile.BM) * tile.BM * math.ceil(p.depth / tile.BN) * tile.BN
        return full / DEFAULTS[tile[:2]]

    return min(first.values(), key=time)


@functools.lru_cache(4096)
def default_splits(p: Problem, dtype: Any, tile: Tile, architecture: int) -> int:
    """The number of runs that should take the least time: whole waves of blocks over the device.

    Args:
        p, dtype, tile: as for ``default_tile``.
        architecture: compute capability, 90: its number of multiprocessors counts.

    A pure function. Partial sums take at most ``WORKSPACE`` bytes.
    """
    itemsize = float_dtype(dtype).itemsize
    known = max(a for a in gpu_mma.SMS if a <= max(architecture, 80))
    multiprocessors, shared = gpu_mma.SMS[known], gpu_mma.SHARED[known] << 10
    registers = (tile.WM * tile.WN // 32 + 100) * tile.threads  # of a block, about
    together = min(65536 // registers, shared // (shared_bytes(tile, itemsize) + 1024))
    blocks = max(1, math.ceil(p.K / tile.BM) * math.ceil(p.depth / tile.BN))
    steps = math.ceil(p.pixels / tile.BK)
    size = p.K * p.depth
    stage = tile.BM * tile.BN * tile.BK * itemsize / 2 / PRODUCTS * together  # cycles

    def time(splits: int) -> float:
        waves = math.ceil(blocks * splits / (multiprocessors * together))
        passed = 8 * splits * size if splits > 1 else 0                # bytes written, read again
        return (waves * (math.ceil(steps / splits) + START) * stage
                + passed / (BANDWIDTH * multiprocessors))

    full = math.ceil(2 * multiprocessors * together / blocks)
    room = WORKSPACE // (4 * max(1, size))
    most = max(1, min(full, steps // 4, room))
    least = max(1, min(p.pixels // LONGEST, room))
    return min(range(least, max(least, most) + 1), key=time)


def workspace(p: Problem, dtype: Any, architecture: int) -> int:
    """Bytes of partial sums that ``weight_gradient`` asks for, by default."""
    tile = default_tile(p, dtype, architecture)
    splits = default_splits(p, dtype, tile, architecture)
    return 0 if splits == 1 else 4 * splits * p.K * p.depth


def weight_gradient(p: Problem, x: Array, gy: Array, gw: Array, *, tile: Tile | None = None,
                    splits: int | None = None) -> None:
    """gw = the gradient of conv2d(x, w) with respect to w, for the gradient gy of its value.

    Args:
        p: the sizes of that convolution.
        x: images (N, H, W, C): float16, bfloat16 or float32.
        gy: (N, P, Q, K), like x.
        gw: written: (K, R, S, C), of x's dtype or float32; rounded once.
        tile: None: ``default_tile``.
        splits: runs of pixels, 1: gw is written at once; None: ``default_splits``.
    """
    architecture = int(x.device.compute_capability)
    tile = tile or default_tile(p, x.dtype, architecture)
    splits = splits or default_splits(p, x.dtype, tile, architecture)
    out = gw if splits == 1 else cupy().empty((splits, gw.size), np.dtype(np.float32))
    run = math.ceil(p.pixels / splits / tile.BK) * tile.BK
    blocks = math.ceil(p.K / tile.BM) * math.ceil(p.depth / tile.BN) * splits
    plain = ((p.R, p.S, p.P, p.Q) == (1, 1, p.H, p.W) and p.stride == (1, 1) and p.pad == (0, 0))
    conv = kernels.kernel("conv/conv_mma_wgrad.cu", "conv_mma_wgrad", T=x.dtype,
                          O=out.dtype, I=kernels.index(x, gy), X_UNIT=_unit(x, p.C),
                          GY_UNIT=_unit(gy, p.K), PLAIN=int(plain), **tile._asdict())
    conv(blocks * tile.threads, x, gy, out, *p[:9], *p.stride, *p.pad, *p.dilation, splits, run,
         block=tile.threads, shared=shared_bytes(tile, x.dtype.itemsize), every=True)
    if splits > 1:
        column_sums(out, gw.reshape(-1))


def _unit(a: Array, channels: int) -> int:
    """Bytes of one copy, a power of two, as channels and address allow."""
    unit = channels * a.dtype.itemsize | a.data.ptr | 16
    return unit & -unit
