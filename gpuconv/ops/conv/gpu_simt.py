"""Convolutions on the ordinary cores: every dtype, stride, dilation and group, exact arithmetic.

    forward          y (N, P, Q, K)                 kernels/conv/conv_simt.cu
    input_gradient   gx (N, H, W, C)                kernels/conv/conv_simt.cu, the filters turned
    weight_gradient  gw (K, R, S, C/groups)         kernels/conv/conv_simt_wgrad.cu

Products and sums are in the accumulator of the dtype, rounded once at the end; the sums of a weight
gradient over runs of the pixels are added in order by column_sums.py. Groups of a few channels,
depthwise convolutions above all, fill no tile: kernels/conv/conv_depthwise.cu takes them.
"""

from typing import Any, NamedTuple

import numpy as np

from gpuconv import kernels
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.conv.shape import Problem
from gpuconv.ops.engine.column_sums import column_sums

STEP = 8             # pixels of a step of the weight gradient: BK of its kernel
FEW = 8              # channels or filters of a group, below which a tile is not worth while
ENOUGH = 4 * 132     # blocks that keep a large GPU busy
SLICE = 512          # pixels that are worth a partial sum of the weight gradient, at the least
LONGEST = 4096       # pixels of a run of the weight gradient, as long as partial sums are no more
WORKSPACE = 64 << 20  # than so many bytes
LANES = 32           # of a block of the direct weight gradient


class Tile(NamedTuple):
    """A block computes BM x BN of the result, one thread TM x TN of it.

    >>> Tile(128, 64, 8, 8).threads
    128
    """

    BM: int  # rows: pixels; filters in the weight gradient
    BN: int  # columns: filters; numbers of a filter in the weight gradient
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.BM // self.TM * (self.BN // self.TN)


TILES = (Tile(128, 64, 8, 8), Tile(64, 128, 8, 8), Tile(128, 32, 8, 4), Tile(32, 128, 4, 8),
         Tile(64, 32, 4, 4))
DOUBLE_TILES = (Tile(64, 64, 4, 4), Tile(64, 32, 4, 4))  # their sums take twice the registers
SINGLE_TILES = TILES[2:]  # for x read number by number, whose addresses take registers


def default_tile(rows: int, columns: int, parts: int, channels: int, dtype: Any) -> Tile:
    """The tile that wastes and reads least and leaves no part of a GPU idle: by shape alone.

    Args:
        rows, columns: of a product of matrices.
        parts: how many such products there are: groups, or runs of the weight gradient.
        channels: of a group of the images that are read pixel by pixel.
        dtype: of the arrays.

    >>> default_tile(128 * 32 * 32, 64, 1, 64, "float32"), default_tile(64, 10, 1, 64, "float32")
    (Tile(BM=128, BN=64, TM=8, TN=8), Tile(BM=64, BN=32, TM=4, TN=4))
    """
    wide = accumulator(dtype).name == "float64"
    tiles = DOUBLE_TILES if wide else SINGLE_TILES if channels % 4 else TILES

    def cost(tile: Tile) -> float:
        blocks = parts * -(-rows // tile.BM) * -(-columns // tile.BN)
        idle = max(1.0, ENOUGH / max(1, blocks))  # the share of the GPU that would stand still
        return blocks * tile.BM * tile.BN * idle * (1 / tile.TM + 1 / tile.TN)

    return min(tiles, key=cost)


def forward(p: Problem, x: Array, w: Array, y: Array, *, bias: Array | None = None,
            residual: Array | None = None, activation: str | None = None) -> None:
    """y = activation(convolution + bias + residual), all arrays of one dtype."""
    if _is_direct(p):
        _direct(p, "forward", p.pixels * p.K, x, w, y, x, w, bias, residual, y,
                activation=activation)
    else:
        _gather(p, x, w, y, bias, residual, activation, turned=False)


def input_gradient(p: Problem, gy: Array, w: Array, gx: Array) -> None:
    """Gradient of x, for the gradient gy of y."""
    if _is_direct(p):
        _direct(p, "dgrad", gx.size, gy, w, gx, gy, w, gx)
    else:
        turned = p._replace(H=p.P, W=p.Q, C=p.K, P=p.H, Q=p.W, K=p.C)
        if p.classes < p.stride[0] * p.stride[1]:
            gx.fill(0)  # pixels that no tap meets
        _gather(turned, gy, w, gx, None, None, None, turned=True)


def weight_gradient(p: Problem, x: Array, gy: Array, gw: Array) -> None:
    """Gradient of w, for the gradient gy of y; gw may be float32 where x has 16 bits."""
    tile, tiles, run, splits = _plan(p, x.dtype)
    dtype = accumulator(x.dtype)
    sums = gw if splits == 1 and gw.dtype == dtype else cupy().empty((splits, gw.size), dtype)
    how = dict(_window(p), I=kernels.index(x, gy, sums))
    if tile is None:
        file, function, block = "conv/conv_depthwise.cu", "conv_depthwise_wgrad", kernels.BLOCK
        how |= dict(ACTIVATION="none", BLOCK=block)
    else:
        file, function, block = "conv/conv_simt_wgrad.cu", "conv_simt_wgrad", tile.threads
        how |= dict(tile._asdict(), LX=_pack(p.C // p.groups, x, sums),
                    LY=_pack(p.K // p.groups, gy))
    kernels.kernel(file, function, T=x.dtype, **how)(
        tiles * splits * block, x, gy, sums, p.N, p.H, p.W, p.C, p.P, p.Q, p.K, p.groups, splits,
        run, block=block, every=True)
    if sums is not gw:
        column_sums(sums, gw.reshape(-1))


def workspace(p: Problem, dtype: Any) -> int:
    """Bytes of partial sums that ``weight_gradient`` asks for, where gw has this dtype."""
    *_, splits = _plan(p, dtype)
    wide = accumulator(dtype)
    return 0 if splits == 1 and wide == dtype else splits * p.K * p.depth * wide.itemsize


def _plan(p: Problem, dtype: Any) -> tuple[Tile | None, int, int, int]:
    """(tile, or None for the direct kernel; tiles of gw; pixels of a run; runs)."""
    filters, channels = p.K // p.groups, p.C // p.groups
    if _is_direct(p):
        tile, tiles = None, p.R * -(-p.K * channels // LANES)
    else:
        tile = default_tile(filters, p.depth, p.groups * max(1, p.pixels // SLICE), channels, dtype)
        tiles = p.groups * -(-filters // tile.BM) * -(-p.depth // tile.BN)
    size = p.K * p.depth * accumulator(dtype).itemsize
    return (tile, tiles, *_runs(p.pixels, tiles, max(1, size)))


def _gather(p: Problem, x: Array, w: Array, y: Array, bias: Array | None, residual: Array | None,
            activation: str | None, turned: bool) -> None:
    rows, columns = p.N * p.P * p.Q, p.K // p.groups
    tile = default_tile(rows, columns, p.groups, p.C // p.groups, x.dtype)
    classes, pixels = 1, rows
    if turned:
        (SH, SW), classes = p.stride, p.classes
        pixels = p.N * -(-p.P // SH) * -(-p.Q // SW)
    blocks = -(-pixels // tile.BM) * classes * -(-columns // tile.BN) * p.groups
    lx, ly = _pack(p.C // p.groups, x), _pack(columns, y, bias, residual)
    lw = _pack(columns if turned else p.C // p.groups, w)
    if not turned:
        lx = lw = min(lx, lw)  # the two walk along the depth together
    kernels.kernel("conv/conv_simt.cu", "conv_simt", T=x.dtype, I=_index(p, x, w, y), **_window(p),
                   **tile._asdict(), LX=lx, LW=lw, LY=ly, TURNED=turned,
                   ACTIVATION=activation or "none")(
        blocks * tile.threads, x, w, bias, residual, y, p.N, p.H, p.W, p.C, p.P, p.Q, p.K,
        p.groups, block=tile.threads, every=True)


def _direct(p: Problem, direction: str, n: int, a: Array, b: Array, c: Array, *arrays: Any,
            activation: str | None = None) -> None:
    kernels.kernel("conv/conv_depthwise.cu", f"conv_depthwise_{direction}", T=a.dtype,
                   I=kernels.index(a, b, c), ACTIVATION=activation or "none",
                   BLOCK=kernels.BLOCK, **_window(p))(
        n, *arrays, p.N, p.H, p.W, p.C, p.P, p.Q, p.K, p.groups)


def _is_direct(p: Problem) -> bool:
    return p.groups > 1 and min(p.C, p.K) // p.groups < FEW


def _window(p: Problem) -> dict[str, int]:
    (SH, SW), (DH, DW), (PT, PL) = p.stride, p.dilation, p.pad
    return dict(R=p.R, S=p.S, SH=SH, SW=SW, DH=DH, DW=DW, PT=PT, PL=PL)


def _index(p: Problem, *arrays: Array) -> np.dtype:
    """Return the dtype for offsets into these arrays, and for those of taps outside of x."""
    (SH, SW), (DH, DW), (PT, PL) = p.stride, p.dilation, p.pad
    rows, columns = p.P * SH + p.R * DH + abs(PT), p.Q * SW + p.S * DW + abs(PL)
    far = (rows * p.W + columns) * p.C
    return np.dtype("int64") if far >= kernels.INT_ITEMS else kernels.index(*arrays)


def _pack(channels: int, *arrays: Array | None) -> int:
    """How many neighbours are read at once: as many as make 16 bytes of the accumulator."""
    given = [a for a in arrays if a is not None]
    V = 16 // accumulator(given[0].dtype).itemsize
    aligned = all(a.data.ptr % (V * a.itemsize) == 0 for a in given)
    return V if channels % V == 0 and aligned else 1


def _runs(pixels: int, tiles: int, size: int) -> tuple[int, int]:
    """Return the pixels of a run, and the number of runs, for a gw of ``size`` bytes.

    They are enough to keep a GPU busy, each worth a pass over gw; more, if WORKSPACE allows, where
    a run would be so long that its sum in float32 loses digits.
    """
    splits = max(1, min(-(-ENOUGH // tiles), pixels // SLICE))
    splits = max(splits, min(pixels // LONGEST, WORKSPACE // size))
    run = max(STEP, -(-pixels // (splits * STEP)) * STEP)
    return run, max(1, -(-pixels // run))
