"""Convolutions on the ordinary cores: every dtype, stride, dilation and group, exact arithmetic.

    forward  y (N, P, Q, K)                 kernels/conv/conv_simt.cu
    dgrad    gx (N, H, W, C)                kernels/conv/conv_simt.cu, with rotated filters
    wgrad    gw (K, R, S, C/groups)         kernels/conv/conv_simt_wgrad.cu

Products and sums are in the accumulator of the dtype, rounded once at the end; the sums of a weight
gradient over runs of the pixels are added in order by column_sums.py. Groups of a few channels,
depthwise convolutions above all, fill no tile: kernels/conv/conv_depthwise.cu computes them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from gpuconv import kernels
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.engine.column_sums import column_sums
from gpuconv.ops.engine.epilogue import NO_EPILOGUE, Epilogue
from gpuconv.ops.window import ConvShape, Pair, Window

STEP = 8             # pixels of a step of the weight gradient: BK of its kernel
FEW = 8              # channels or filters of a group, below which conv_depthwise.cu is faster
ENOUGH = 4 * 132     # blocks that keep a large GPU busy
SLICE = 512          # pixels of a run of the weight gradient, at least
LONGEST = 4096       # pixels of a run of the weight gradient, at most, unless
WORKSPACE = 64 << 20  # partial sums would take more than so many bytes
LANES = 32           # pairs (k, c) of a block of conv_depthwise_wgrad


class Tile(NamedTuple):
    """Tile of a thread block: BM x BN of the product, TM x TN for a thread.

    >>> Tile(128, 64, 8, 8).threads
    128
    """

    BM: int  # rows: pixels; filters in the weight gradient
    BN: int  # columns: filters; numbers of a filter in the weight gradient
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.BM // self.TM * (self.BN // self.TN)


TILES = (Tile(128, 64, 8, 8), Tile(64, 128, 8, 8), Tile(128, 32, 8, 4), Tile(32, 128, 4, 8),
         Tile(64, 32, 4, 4))
DOUBLE_TILES = (Tile(64, 64, 4, 4), Tile(64, 32, 4, 4))  # their sums take twice the registers
SINGLE_TILES = TILES[2:]  # for x read one by one: addresses take registers


def default_tile(rows: int, columns: int, products: int, channels: int, dtype: Any) -> Tile:
    """Return the tile that wastes and reads least and leaves no part of a GPU idle.

    Args:
        rows, columns: of a product of matrices.
        products: number of such products: groups, or runs of the weight gradient.
        channels: of a group of the images that are read pixel by pixel.
        dtype: of the arrays.

    >>> default_tile(128 * 32 * 32, 64, 1, 64, "float32"), default_tile(64, 10, 1, 64, "float32")
    (Tile(BM=128, BN=64, TM=8, TN=8), Tile(BM=64, BN=32, TM=4, TN=4))
    """
    wide = accumulator(dtype).name == "float64"
    tiles = DOUBLE_TILES if wide else SINGLE_TILES if channels % 4 else TILES

    def cost(tile: Tile) -> float:
        blocks = products * -(-rows // tile.BM) * -(-columns // tile.BN)
        idle = max(1.0, ENOUGH / max(1, blocks))  # as much longer as the GPU is not filled
        return blocks * tile.BM * tile.BN * idle * (1 / tile.TM + 1 / tile.TN)

    return min(tiles, key=cost)


def forward(shape: ConvShape, x: Array, w: Array, y: Array,
            epilogue: Epilogue = NO_EPILOGUE) -> None:
    """Write conv(x, w), finished by the epilogue, into y; all arrays have one dtype.

    The epilogue has neither a pool nor moments.
    """
    if _is_depthwise(shape):
        _depthwise(shape, "forward", shape.pixels * shape.K, x, w, y, x, w, epilogue.bias,
                   epilogue.residual, y, activation=epilogue.activation)
    else:
        _gather(shape, x, w, y, epilogue, rotated=False)


def dgrad(shape: ConvShape, gy: Array, w: Array, gx: Array) -> None:
    """Write the input gradient into gx (N, H, W, C), from gy (N, P, Q, K)."""
    if _is_depthwise(shape):
        _depthwise(shape, "dgrad", gx.size, gy, w, gx, gy, w, gx)
    else:
        if shape.classes < math.prod(shape.window.stride):
            gx.fill(0)  # pixels that no tap meets
        _gather(shape, gy, w, gx, NO_EPILOGUE, rotated=True)


def wgrad(shape: ConvShape, x: Array, gy: Array, gw: Array) -> None:
    """Write the weight gradient into gw, from gy; gw may be float32 where x has 16 bits."""
    tile, tiles, run, splits = _plan(shape, x.dtype)
    dtype = accumulator(x.dtype)
    sums = gw if splits == 1 and gw.dtype == dtype else cupy().empty((splits, gw.size), dtype)
    constants = dict(shape.window.macros(), I=kernels.index(x, gy, sums))
    if tile is None:
        file, function, block = "conv/conv_depthwise.cu", "conv_depthwise_wgrad", kernels.BLOCK
        constants |= dict(ACTIVATION="none", BLOCK=block)
    else:
        file, function, block = "conv/conv_simt_wgrad.cu", "conv_simt_wgrad", tile.threads
        constants |= dict(tile._asdict(), LX=_pack(shape.C // shape.groups, x, sums),
                          LY=_pack(shape.K // shape.groups, gy))
    kernels.kernel(file, function, T=x.dtype, **constants)(
        tiles * splits * block, x, gy, sums, *shape.x_shape, shape.P, shape.Q, shape.K,
        shape.groups, splits, run, block=block, every=True)
    if sums is not gw:
        column_sums(sums, gw.reshape(-1))


def workspace(shape: ConvShape, dtype: Any) -> int:
    """Return the bytes of partial sums that ``wgrad`` allocates for a gw of this dtype."""
    *_, splits = _plan(shape, dtype)
    wide = accumulator(dtype)
    return 0 if splits == 1 and wide == dtype else splits * shape.K * shape.depth * wide.itemsize


def _plan(shape: ConvShape, dtype: Any) -> tuple[Tile | None, int, int, int]:
    """Return (tile, or None for conv_depthwise.cu; tiles of gw; pixels of a run; runs)."""
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    if _is_depthwise(shape):
        tile, tiles = None, shape.R * -(-shape.K * channels // LANES)
    else:
        products = shape.groups * max(1, shape.pixels // SLICE)
        tile = default_tile(filters, shape.depth, products, channels, dtype)
        tiles = shape.groups * -(-filters // tile.BM) * -(-shape.depth // tile.BN)
    size = shape.K * shape.depth * accumulator(dtype).itemsize
    return (tile, tiles, *_runs(shape.pixels, tiles, max(1, size)))


def _gather(shape: ConvShape, x: Array, w: Array, y: Array, epilogue: Epilogue,
            rotated: bool) -> None:
    """Launch conv_simt: forward, or with ``rotated`` filters dgrad, x being gy and y gx."""
    (N, H, W, C), (_, P, Q, K) = shape.x_shape, shape.y_shape
    classes, pixels = 1, shape.pixels
    if rotated:
        (SH, SW), classes = shape.window.stride, shape.classes
        pixels = N * -(-H // SH) * -(-W // SW)
        H, W, C, P, Q, K = P, Q, K, H, W, C
    rows, columns, depth = N * P * Q, K // shape.groups, C // shape.groups
    tile = default_tile(rows, columns, shape.groups, depth, x.dtype)
    blocks = -(-pixels // tile.BM) * classes * -(-columns // tile.BN) * shape.groups
    bias, residual = epilogue.bias, epilogue.residual
    lx, ly = _pack(depth, x), _pack(columns, y, bias, residual)
    lw = _pack(columns if rotated else depth, w)
    if not rotated:
        lx = lw = min(lx, lw)  # the two walk along the depth together
    kernels.kernel("conv/conv_simt.cu", "conv_simt", T=x.dtype,
                   I=_index(shape.window, (P, Q), W, C, x, w, y), **shape.window.macros(),
                   **tile._asdict(), LX=lx, LW=lw, LY=ly, TURNED=rotated,
                   ACTIVATION=epilogue.activation or "none")(
        blocks * tile.threads, x, w, bias, residual, y, N, H, W, C, P, Q, K,
        shape.groups, block=tile.threads, every=True)


def _depthwise(shape: ConvShape, function: str, n: int, a: Array, b: Array, c: Array, *arrays: Any,
               activation: str | None = None) -> None:
    """Launch conv_depthwise_<function> with n threads, a, b and c being its largest arrays."""
    kernels.kernel("conv/conv_depthwise.cu", f"conv_depthwise_{function}", T=a.dtype,
                   I=kernels.index(a, b, c), ACTIVATION=activation or "none",
                   BLOCK=kernels.BLOCK, **shape.window.macros())(
        n, *arrays, *shape.x_shape, shape.P, shape.Q, shape.K, shape.groups)


def _is_depthwise(shape: ConvShape) -> bool:
    """Return True for groups of few channels or filters, which conv_depthwise.cu computes."""
    return shape.groups > 1 and min(shape.C, shape.K) // shape.groups < FEW


def _index(window: Window, positions: Pair, width: int, channels: int, *arrays: Array) -> np.dtype:
    """Return the dtype for offsets into these arrays, and for those of taps outside of x."""
    (SH, SW), (DH, DW), ((PT, _), (PL, _)) = window.stride, window.dilation, window.pad
    (P, Q), (R, S) = positions, window.size
    rows, columns = P * SH + R * DH + abs(PT), Q * SW + S * DW + abs(PL)
    far = (rows * width + columns) * channels
    return np.dtype("int64") if far >= kernels.INT_ITEMS else kernels.index(*arrays)


def _pack(channels: int, *arrays: Array | None) -> int:
    """Return the number of neighbours that are read at once: 16 bytes of the accumulator, or 1."""
    given = [a for a in arrays if a is not None]
    V = 16 // accumulator(given[0].dtype).itemsize
    aligned = all(a.data.ptr % (V * a.itemsize) == 0 for a in given)
    return V if channels % V == 0 and aligned else 1


def _runs(pixels: int, tiles: int, size: int) -> tuple[int, int]:
    """Return the pixels of a run, and the number of runs, for a gw of ``size`` bytes.

    The runs are enough to keep a GPU busy, each long enough to pay for a pass over gw. There are
    more, if WORKSPACE allows, where a run would be so long that its sum in float32 loses digits.
    """
    splits = max(1, min(-(-ENOUGH // tiles), pixels // SLICE))
    splits = max(splits, min(pixels // LONGEST, WORKSPACE // size))
    run = max(STEP, -(-pixels // (splits * STEP)) * STEP)
    return run, max(1, -(-pixels // run))
