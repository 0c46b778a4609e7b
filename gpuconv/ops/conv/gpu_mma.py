"""Convolutions on tensor cores: forward and dgrad, as implicit products of matrices.

    Y (pixels x K) = X (pixels x depth) W^T (depth x K)     pixels = N*P*Q, depth = R*S*C

float16 and bfloat16 are multiplied exactly and summed in float32; float32 is rounded to tf32 (10
bits of fraction) before it is multiplied. ``gpuconv/kernels/conv/conv_mma.cu`` finishes a tile
before it is stored: bias, residual, activation, 2x2 max pool, moments for batch_norm.

The input gradient is the same product, of gy and of the filters rotated by 180 degrees. With a
stride the pixels of gx form classes, each with its own taps.
"""

import math
from typing import Any

from gpuconv import kernels
from gpuconv.backend import Array, cupy, float_dtype
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.engine.epilogue import NO_EPILOGUE, Epilogue
from gpuconv.ops.window import ConvShape

TILES = (                           # BK for 16-bit floats; float32 has half of it, see tiles()
    Tile(128, 128, 32, 64, 64, 3), Tile(128, 128, 32, 64, 64, 4), Tile(128, 128, 64, 64, 64, 3),
    Tile(128, 256, 32, 64, 64, 3), Tile(256, 128, 32, 64, 64, 3), Tile(256, 64, 32, 64, 64, 3),
    Tile(128, 64, 32, 64, 32, 3), Tile(128, 64, 32, 64, 32, 4), Tile(256, 32, 32, 64, 32, 3),
    Tile(128, 32, 32, 32, 32, 4), Tile(64, 64, 32, 32, 32, 4), Tile(64, 32, 32, 32, 16, 4),
)
DEFAULTS = {                        # (BM, BN): share of the speed of the first, by its traffic
    (128, 128): 1.0, (256, 64): 0.95, (128, 64): 0.85, (256, 32): 0.7, (64, 64): 0.65,
    (128, 32): 0.6, (64, 32): 0.45,
}
START = 128                         # depth that a block's beginning and end take as long as
SMS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 170}  # multiprocessors, at most
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a block may have


def tiles(dtype: Any) -> tuple[Tile, ...]:
    """Return the tiles for a dtype: TILES, with stages of the same depth in bytes."""
    itemsize = float_dtype(dtype).itemsize
    return tuple(t._replace(BK=t.BK * 2 // itemsize) for t in TILES)


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Return the shared memory of a block, bytes: its stages, and afterwards its tile of y."""
    stages = tile.STAGES * (tile.BM + tile.BN) * tile.BK
    return itemsize * max(stages, tile.BM * tile.BN)


def fits(tile: Tile, dtype: Any, architecture: int) -> bool:
    """Return True if a block of that architecture has the shared memory for a tile."""
    limit = SHARED[max(a for a in SHARED if a <= max(architecture, 80))]
    return shared_bytes(tile, float_dtype(dtype).itemsize) <= limit << 10


def default_tile(shape: ConvShape, dtype: Any, direction: str, architecture: int) -> Tile:
    """Return the tile that should take the least time, counting full tiles in waves of blocks.

    It depends on the arguments alone: it is the same on every machine.

    Args:
        shape: the convolution.
        dtype: of its arrays.
        direction: "forward" or "dgrad".
        architecture: compute capability, 90.
    """
    multiprocessors = SMS[max(a for a in SMS if a <= max(architecture, 80))]
    if direction == "forward":
        rows, columns, depth, classes = shape.pixels, shape.K, shape.depth, 1
    else:
        classes = math.prod(shape.window.stride)
        rows, columns = math.ceil(shape.N * shape.H * shape.W / classes), shape.C
        depth = math.ceil(shape.R * shape.S * shape.K / classes)

    def time(tile: Tile) -> float:
        blocks = classes * math.ceil(rows / tile.BM) * math.ceil(columns / tile.BN)
        work = tile.BM * tile.BN * (depth + START) / DEFAULTS[tile[:2]]
        return math.ceil(blocks / multiprocessors) * work

    first: dict[tuple[int, ...], Tile] = {}
    for tile in tiles(dtype):
        if tile[:2] in DEFAULTS and fits(tile, dtype, architecture):
            first.setdefault(tile[:2], tile)
    return min(first.values(), key=time)


def supported(shape: ConvShape, dtype: Any) -> bool:
    """Return True if these kernels can compute the convolution and its input gradient."""
    small = 2**31 - 2**10  # room for the rows of a last tile
    N, H, W, C, K, R, S, P, Q = (getattr(shape, name) for name in "NHWCKRSPQ")
    (SH, SW), (DH, DW) = shape.window.stride, shape.window.dilation
    reach = (H + R * DH) * (W + S * DW) * C, (P + R * DH) * (Q + S * DW) * K
    counts = N * H * W, shape.pixels, R * S * max(C, K), P * SH, Q * SW
    return (float_dtype(dtype).name in ("float16", "bfloat16", "float32") and shape.groups == 1
            and R + S < 32 and max(*reach, *counts, SH * SW) < small)


def moment_rows(tile: Tile, pooled: bool) -> int:
    """Return the rows of y.reshape(-1, K) whose moments ``forward`` writes as one slice."""
    return tile.BM // 4 if pooled else tile.BM


def forward(shape: ConvShape, x: Array, w: Array, y: Array, epilogue: Epilogue = NO_EPILOGUE, *,
            tile: Tile | None = None) -> None:
    """Write conv(x, w), finished by the epilogue, into y.

    Args:
        shape: sizes of the convolution.
        x: images (N, H, W, C).
        w: filters (K, R, S, C).
        y: written: (N, P, Q, K), with a pool (N, P//2, Q//2, K).
        epilogue: its moments have a slice for each ``moment_rows`` rows of y.
        tile: None: ``default_tile``.

    Raises:
        ValueError: moments after an activation or a residual, or a pool after a residual: no layer
            needs these.
    """
    bias, residual, activation = epilogue.bias, epilogue.residual, epilogue.activation
    pool, moments = epilogue.pool, epilogue.moments
    if (moments and (activation or residual is not None)) or (pool is not None
                                                              and residual is not None):
        raise ValueError("moments with activation or residual, or pool with residual: separately")
    tile = tile or default_tile(shape, x.dtype, "forward", _architecture(x))
    means, variances = moments or (None, None)
    N, P, Q, K = shape.y_shape
    edge = 1 if pool is None else 2
    rows = N * (P // edge) * (Q // edge) * edge * edge
    flags = dict(GRADIENT=0, BIAS=int(bias is not None), RESIDUAL=int(residual is not None),
                 POOL=int(pool is not None), MOMENTS=int(moments is not None),
                 ACTIVATION=activation or "none")
    stored = [a for a in (y, residual) if a is not None]
    _launch(shape, tile, shape.C, rows, flags, stored, x, w, bias, residual, y, pool, means,
            variances, N, shape.H, shape.W, P, Q, K)


def dgrad(shape: ConvShape, gy: Array, w: Array, gx: Array, *, tile: Tile | None = None) -> None:
    """Write the input gradient into gx.

    Args:
        shape: sizes of the convolution.
        gy: gradient of y (N, P, Q, K).
        w: filters (K, R, S, C).
        gx: written: (N, H, W, C).
        tile: None: ``default_tile``.
    """
    tile = tile or default_tile(shape, gy.dtype, "dgrad", _architecture(gy))
    N, H, W, C = shape.x_shape
    SH, SW = shape.window.stride
    if shape.classes < SH * SW:
        gx.fill(0)  # pixels that no tap meets
    rows = N * math.ceil(H / SH) * math.ceil(W / SW)  # of the largest class
    flags = dict(GRADIENT=1, BIAS=0, RESIDUAL=0, POOL=0, MOMENTS=0, ACTIVATION="none")
    _launch(shape, tile, shape.K, rows, flags, [gx], gy, rotate_filters(shape, w), None, None, gx,
            None, None, None, N, shape.P, shape.Q, H, W, C, classes=shape.classes)


def rotate_filters(shape: ConvShape, w: Array) -> Array:
    """Return the filters in the order of ``dgrad``: (C, taps, K), class after class of pixels."""
    rotated = cupy().empty(w.size, w.dtype)
    (K, R, S, C), (SH, SW), (DH, DW) = shape.w_shape, shape.window.stride, shape.window.dilation
    tiles = R * S * math.ceil(K / 32) * math.ceil(C / 32)
    kernels.kernel("conv/conv_rotate_filters.cu", "conv_rotate_filters", T=w.dtype, R=R, S=S,
                   SH=SH, SW=SW, DH=DH, DW=DW)(tiles * 256, w, rotated, K, C)
    return rotated


def _architecture(a: Array) -> int:
    """Return the compute capability of an array's device: 90."""
    return int(a.device.compute_capability)


def _launch(shape: ConvShape, tile: Tile, channels: int, rows: int, flags: dict[str, Any],
            stored: list[Array], x: Array, w: Array, *arguments: Any, classes: int = 1) -> None:
    """Launch conv_mma: a block per tile of ``rows`` rows, of each class.

    Args:
        shape, tile, flags: compile-time constants.
        channels: of x.
        rows: of the product.
        stored: arrays that are read and written in rows as long as those of y.
        x, w, arguments: of the kernel; the last one is the length of those rows.
        classes: products of that many rows.
    """
    size, columns = x.dtype.itemsize, arguments[-1]
    unit = channels * size | x.data.ptr | w.data.ptr | 16
    wide = columns * size | math.gcd(*(a.data.ptr for a in stored), 16)
    if flags["POOL"]:
        wide |= arguments[3].data.ptr * size  # marks are bytes, as many at once
    blocks = classes * math.ceil(rows / tile.BM) * math.ceil(columns / tile.BN)
    conv = kernels.kernel("conv/conv_mma.cu", "conv_mma", T=x.dtype, C=channels,
                          UNIT=unit & -unit, WIDE=int(wide % 16 == 0), **flags,
                          **shape.window.macros(), **tile._asdict())
    conv(blocks * tile.threads, x, w, *arguments, block=tile.threads,
         shared=shared_bytes(tile, size), every=True)
