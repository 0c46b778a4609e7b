"""Weight gradient of a convolution on tensor cores, split along the pixels.

    GW (K x depth) = GY^T (K x pixels) X (pixels x depth)     pixels = N*P*Q, depth = R*S*C

K and depth are small beside the pixels, so a tile of GW for each block would leave most of the
device idle. The pixels are divided into ``splits`` runs with partial sums of their own in float32,
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
from gpuconv.ops.engine.column_sums import column_sums
from gpuconv.ops.window import ConvShape

TILES = (                           # BK for 16-bit floats; float32 has half of it, see tiles()
    Tile(128, 128, 32, 64, 64, 3), Tile(128, 128, 32, 64, 64, 4), Tile(128, 64, 32, 64, 32, 3),
    Tile(64, 128, 32, 32, 64, 3), Tile(64, 64, 32, 32, 32, 3), Tile(32, 128, 32, 32, 32, 4),
    Tile(64, 32, 64, 32, 16, 3), Tile(32, 64, 64, 16, 32, 3), Tile(32, 32, 64, 16, 16, 3),
)
DEFAULTS = {                        # (BM, BN): share of the speed of the first, by its traffic
    (128, 128): 1.0, (128, 64): 0.85, (64, 128): 0.85, (64, 64): 0.65, (32, 128): 0.5,
    (64, 32): 0.4, (32, 64): 0.4, (32, 32): 0.25,
}
IN_REGISTERS = 16                   # elements of 2 bytes that a thread can keep in registers
START = 8                           # stages that a block's beginning and end take as long as
WORKSPACE = 64 << 20                # bytes of partial sums, at most
LONGEST = 1 << 15                   # pixels of a run, if there is room: its sum is in float32
PRODUCTS = 512                      # of 16-bit floats, that a multiprocessor adds in a cycle, about
BANDWIDTH = 16                      # bytes of partial sums of a multiprocessor in a cycle, about


def tiles(dtype: Any) -> tuple[Tile, ...]:
    """Return the tiles for a dtype: TILES, with stages of the same depth in bytes."""
    itemsize = float_dtype(dtype).itemsize
    return tuple(t._replace(BK=t.BK * 2 // itemsize) for t in TILES)


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Return the shared memory of a block, bytes: its stages.

    Rows of float32 are padded, so that they share no banks.
    """
    padding = 16 if itemsize == 4 else 0
    return itemsize * tile.STAGES * tile.BK * (tile.BM + tile.BN + padding)


def runs_on(tile: Tile, shape: ConvShape, dtype: Any) -> bool:
    """Return True if a tile's threads can copy these channels.

    An odd number of 16-bit channels goes through registers, of which there are IN_REGISTERS.
    """
    size = float_dtype(dtype).itemsize
    counts = [tile.BK * wide // tile.threads
              for wide, channels in ((tile.BM, shape.K), (tile.BN, shape.C)) if channels * size % 4]
    return max(counts, default=0) <= IN_REGISTERS


@functools.lru_cache(4096)
def default_tile(shape: ConvShape, dtype: Any, architecture: int) -> Tile:
    """Return the tile that should take the least time, counting full tiles.

    It depends on the arguments alone: it is the same on every machine.

    Args:
        shape: the convolution.
        dtype: of its arrays.
        architecture: compute capability, 90; does not matter yet.
    """
    first: dict[tuple[int, ...], Tile] = {}
    for tile in tiles(dtype):
        if runs_on(tile, shape, dtype):
            first.setdefault(tile[:2], tile)

    def time(tile: Tile) -> float:
        full = math.ceil(shape.K / tile.BM) * tile.BM * math.ceil(shape.depth / tile.BN) * tile.BN
        return full / DEFAULTS[tile[:2]]

    return min(first.values(), key=time)


@functools.lru_cache(4096)
def default_splits(shape: ConvShape, dtype: Any, tile: Tile, architecture: int) -> int:
    """Return the number of runs of pixels that should take the least time.

    It depends on the arguments alone. Partial sums take at most ``WORKSPACE`` bytes.

    Args:
        shape: the convolution.
        dtype: of its arrays.
        tile: of a block.
        architecture: compute capability, 90, which gives the number of multiprocessors.
    """
    itemsize = float_dtype(dtype).itemsize
    known = max(a for a in gpu_mma.SMS if a <= max(architecture, 80))
    multiprocessors, shared = gpu_mma.SMS[known], gpu_mma.SHARED[known] << 10
    registers = (tile.WM * tile.WN // 32 + 100) * tile.threads  # of a block, about
    together = min(65536 // registers, shared // (shared_bytes(tile, itemsize) + 1024))
    blocks = max(1, math.ceil(shape.K / tile.BM) * math.ceil(shape.depth / tile.BN))
    steps = math.ceil(shape.pixels / tile.BK)
    size = shape.K * shape.depth
    stage = tile.BM * tile.BN * tile.BK * itemsize / 2 / PRODUCTS * together  # cycles

    def time(splits: int) -> float:
        waves = math.ceil(blocks * splits / (multiprocessors * together))
        passed = 8 * splits * size if splits > 1 else 0                # bytes written, read again
        return (waves * (math.ceil(steps / splits) + START) * stage
                + passed / (BANDWIDTH * multiprocessors))

    full = math.ceil(2 * multiprocessors * together / blocks)
    room = WORKSPACE // (4 * max(1, size))
    most = max(1, min(full, steps // 4, room))
    least = max(1, min(shape.pixels // LONGEST, room))
    return min(range(least, max(least, most) + 1), key=time)


def workspace(shape: ConvShape, dtype: Any, architecture: int) -> int:
    """Return the bytes of partial sums that ``wgrad`` allocates with its defaults."""
    tile = default_tile(shape, dtype, architecture)
    splits = default_splits(shape, dtype, tile, architecture)
    return 0 if splits == 1 else 4 * splits * shape.K * shape.depth


def wgrad(shape: ConvShape, x: Array, gy: Array, gw: Array, *, tile: Tile | None = None,
          splits: int | None = None) -> None:
    """Write the weight gradient into gw.

    Args:
        shape: sizes of the convolution.
        x: images (N, H, W, C): float16, bfloat16 or float32.
        gy: gradient of y (N, P, Q, K), dtype of x.
        gw: written: (K, R, S, C), of x's dtype or float32; rounded once.
        tile: None: ``default_tile``.
        splits: runs of pixels; with 1 there are no partial sums. None: ``default_splits``.
    """
    architecture = int(x.device.compute_capability)
    tile = tile or default_tile(shape, x.dtype, architecture)
    splits = splits or default_splits(shape, x.dtype, tile, architecture)
    N, H, W, C, K, R, S, P, Q = sizes = [getattr(shape, name) for name in "NHWCKRSPQ"]
    (PT, _), (PL, _) = shape.window.pad
    stride, dilation = shape.window.stride, shape.window.dilation
    out = gw if splits == 1 else cupy().empty((splits, gw.size), np.dtype(np.float32))
    run = math.ceil(shape.pixels / splits / tile.BK) * tile.BK
    blocks = math.ceil(K / tile.BM) * math.ceil(shape.depth / tile.BN) * splits
    plain = (R, S, P, Q) == (1, 1, H, W) and stride == (1, 1) and (PT, PL) == (0, 0)
    conv = kernels.kernel("conv/conv_mma_wgrad.cu", "conv_mma_wgrad", T=x.dtype,
                          O=out.dtype, I=kernels.index(x, gy), X_UNIT=_unit(x, C),
                          GY_UNIT=_unit(gy, K), PLAIN=int(plain), **tile._asdict())
    conv(blocks * tile.threads, x, gy, out, *sizes, *stride, PT, PL, *dilation, splits, run,
         block=tile.threads, shared=shared_bytes(tile, x.dtype.itemsize), every=True)
    if splits > 1:
        column_sums(out, gw.reshape(-1))


def _unit(a: Array, channels: int) -> int:
    """Return the bytes of one copy, a power of two, as channels and address allow."""
    unit = channels * a.dtype.itemsize | a.data.ptr | 16
    return unit & -unit
