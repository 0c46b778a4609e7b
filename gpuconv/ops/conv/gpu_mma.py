"""Convolutions on tensor cores: forward and the gradient of the images, as implicit products.

    Y (pixels x K) = X (pixels x depth) W^T (depth x K)     pixels = N*P*Q, depth = R*S*C

float16 and bfloat16 are multiplied exactly and summed in float32; float32 is rounded to tf32 (10
bits of fraction) before it is multiplied. ``gpuconv/kernels/conv/conv_mma.cu`` finishes a tile
before it is stored: bias, residual, activation, 2x2 max pool, moments for batch_norm.

The gradient of the images is the same product: of gy, and of filters turned by half a turn.
With a stride the pixels of gx fall into classes, each with its own taps.
"""

import math
from typing import Any

from gpuconv import kernels
from gpuconv.backend import Array, cupy, float_dtype
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.conv.shape import Problem

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
SMS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 170}  # of the largest device of a kind
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a block may have


def tiles(dtype: Any) -> tuple[Tile, ...]:
    """The candidates: TILES, with stages of the same depth in bytes."""
    itemsize = float_dtype(dtype).itemsize
    return tuple(t._replace(BK=t.BK * 2 // itemsize) for t in TILES)


def shared_bytes(tile: Tile, itemsize: int) -> int:
    """Of a block: its stages, and afterwards its part of y."""
    stages = tile.STAGES * (tile.BM + tile.BN) * tile.BK
    return itemsize * max(stages, tile.BM * tile.BN)


def fits(tile: Tile, dtype: Any, architecture: int) -> bool:
    """Has a block of that architecture the shared memory?"""
    limit = SHARED[max(a for a in SHARED if a <= max(architecture, 80))]
    return shared_bytes(tile, float_dtype(dtype).itemsize) <= limit << 10


def default_tile(p: Problem, dtype: Any, direction: str, architecture: int) -> Tile:
    """The tile that should take the least time, by counting: full tiles, in waves over the device.

    Args:
        p: the convolution.
        dtype: of its arrays.
        direction: "forward" or "input_gradient".
        architecture: compute capability, 90.

    A pure function: the same on every machine.
    """
    multiprocessors = SMS[max(a for a in SMS if a <= max(architecture, 80))]
    if direction == "forward":
        rows, columns, depth, classes = p.pixels, p.K, p.depth, 1
    else:
        classes = p.stride[0] * p.stride[1]
        rows, columns = math.ceil(p.N * p.H * p.W / classes), p.C
        depth = math.ceil(p.R * p.S * p.K / classes)

    def time(tile: Tile) -> float:
        blocks = classes * math.ceil(rows / tile.BM) * math.ceil(columns / tile.BN)
        work = tile.BM * tile.BN * (depth + START) / DEFAULTS[tile[:2]]
        return math.ceil(blocks / multiprocessors) * work

    first: dict[tuple[int, ...], Tile] = {}
    for tile in tiles(dtype):
        if tile[:2] in DEFAULTS and fits(tile, dtype, architecture):
            first.setdefault(tile[:2], tile)
    return min(first.values(), key=time)


def supported(p: Problem, dtype: Any) -> bool:
    """Can these kernels compute the convolution and its gradient?"""
    small = 2**31 - 2**10  # room for the rows of a last tile
    (SH, SW), (DH, DW) = p.stride, p.dilation
    reach = (p.H + p.R * DH) * (p.W + p.S * DW) * p.C, (p.P + p.R * DH) * (p.Q + p.S * DW) * p.K
    counts = p.N * p.H * p.W, p.pixels, p.R * p.S * max(p.C, p.K), p.P * SH, p.Q * SW
    return (float_dtype(dtype).name in ("float16", "bfloat16", "float32") and p.groups == 1
            and p.R + p.S < 32 and max(*reach, *counts, SH * SW) < small)


def moment_rows(p: Problem, tile: Tile, pooled: bool) -> int:
    """Rows of y.reshape(-1, K) whose moments ``forward`` writes as one slice."""
    return tile.BM // 4 if pooled else tile.BM


def forward(p: Problem, x: Array, w: Array, y: Array, *, bias: Array | None = None,
            residual: Array | None = None, activation: str | None = None,
            moments: tuple[Array, Array] | None = None, pool: Array | None = None,
            tile: Tile | None = None) -> None:
    """y = f(conv2d(x, w) + bias + residual), or its 2x2 max pool.

    Args:
        p: its sizes.
        x: images (N, H, W, C).
        w: filters (K, R, S, C).
        y: written: (N, P, Q, K), with ``pool`` (N, P//2, Q//2, K).
        bias: (K,)
        residual: like y.
        activation: name of f, or None.
        moments: written: (means, variances), each (slices, K) of the accumulator's dtype: those
            of each slice of ``moment_rows`` rows of y.
        pool: written: like y, uint8: 2*r + s of the first NaN in a window, else of the first
            maximum.
        tile: None: ``default_tile``.

    Raises:
        ValueError: a combination that no layer needs: moments of what follows an activation or a
            residual, a pool of a sum with a residual.
    """
    if (moments and (activation or residual is not None)) or (pool is not None
                                                              and residual is not None):
        raise ValueError("moments with activation or residual, or pool with residual: separately")
    tile = tile or default_tile(p, x.dtype, "forward", _architecture(x))
    means, variances = moments or (None, None)
    edge = 1 if pool is None else 2
    rows = p.N * (p.P // edge) * (p.Q // edge) * edge * edge
    flags = dict(GRADIENT=0, BIAS=int(bias is not None), RESIDUAL=int(residual is not None),
                 POOL=int(pool is not None), MOMENTS=int(moments is not None),
                 ACTIVATION=activation or "none")
    stored = [a for a in (y, residual) if a is not None]
    _launch(p, tile, p.C, rows, flags, stored, x, w, bias, residual, y, pool, means, variances,
            p.N, p.H, p.W, p.P, p.Q, p.K)


def input_gradient(p: Problem, gy: Array, w: Array, gx: Array, *, tile: Tile | None = None) -> None:
    """gx = the gradient of conv2d(x, w) with respect to x, for the gradient gy of its value.

    Args:
        p: the sizes of that convolution.
        gy: (N, P, Q, K).
        w: filters (K, R, S, C).
        gx: written: (N, H, W, C).
        tile: None: ``default_tile``.
    """
    tile = tile or default_tile(p, gy.dtype, "input_gradient", _architecture(gy))
    SH, SW = p.stride
    if p.classes < SH * SW:
        gx.fill(0)  # pixels that no tap meets
    rows = p.N * math.ceil(p.H / SH) * math.ceil(p.W / SW)  # of the largest class
    flags = dict(GRADIENT=1, BIAS=0, RESIDUAL=0, POOL=0, MOMENTS=0, ACTIVATION="none")
    _launch(p, tile, p.K, rows, flags, [gx], gy, turn(p, w), None, None, gx, None, None, None,
            p.N, p.P, p.Q, p.H, p.W, p.C, classes=p.classes)


def turn(p: Problem, w: Array) -> Array:
    """The filters as ``input_gradient`` reads them: class after class of pixels, (C, taps, K)."""
    turned = cupy().empty(w.size, w.dtype)
    tiles = p.R * p.S * math.ceil(p.K / 32) * math.ceil(p.C / 32)
    (SH, SW), (DH, DW) = p.stride, p.dilation
    kernels.kernel("conv/conv_rotate_filters.cu", "conv_rotate_filters", T=w.dtype, R=p.R, S=p.S,
                   SH=SH, SW=SW, DH=DH, DW=DW)(
        tiles * 256, w, turned, p.K, p.C)
    return turned


def _architecture(a: Array) -> int:
    """Compute capability of its device: 90."""
    return int(a.device.compute_capability)


def _window(p: Problem) -> dict[str, int]:
    (SH, SW), (DH, DW), (PT, PL) = p.stride, p.dilation, p.pad
    return dict(R=p.R, S=p.S, SH=SH, SW=SW, DH=DH, DW=DW, PT=PT, PL=PL)


def _launch(p: Problem, tile: Tile, channels: int, rows: int, flags: dict[str, Any],
            stored: list[Array], x: Array, w: Array, *arguments: Any, classes: int = 1) -> None:
    """Launch conv_mma: a block per tile of ``rows`` rows, of each class.

    Args:
        p, tile, flags: its constants.
        channels: of x.
        rows: of the product.
        stored: what is read and written in rows as long as those of y.
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
                          UNIT=unit & -unit, WIDE=int(wide % 16 == 0), **flags, **_window(p),
                          **tile._asdict())
    conv(blocks * tile.threads, x, w, *arguments, block=tile.threads,
         shared=shared_bytes(tile, size), every=True)
