"""Which engine computes a convolution on the GPU, with which tiles; and has it computed.

    tensor_cores   float16, bfloat16, and float32 with precision="tf32"; one group; devices of
                   compute capability 8.0 or more
    simt           all the rest: exact float32 ("ieee"), float64, groups, older devices

The default is a pure function of (direction, problem, dtype, precision, architecture) and names
only engines that a stream can capture: an eager step and a captured one have the same bits, today,
tomorrow and after resume. What `gpuconv tune` has measured is used inside ``tuned(table)`` alone,
see tuning_table.py.

A Linear layer is a convolution of N images of one pixel under filters of one pixel.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import Array, accumulator, cupy
from gpuconv.checks import check_choice
from gpuconv.ops.conv import gpu_mma, gpu_mma_wgrad, gpu_simt, tuning_table
from gpuconv.ops.conv.shape import Problem
from gpuconv.ops.conv.tuning_table import Choice, Direction
from gpuconv.ops.engine.column_sums import column_sums

PRECISIONS = "ieee", "tf32"


def check_precision(op: str, precision: str) -> None:
    """It must be one of PRECISIONS.

    >>> check_precision("conv2d", "fp8")
    Traceback (most recent call last):
    ValueError: conv2d: precision is 'fp8', wanted 'ieee' or 'tf32'
    """
    check_choice(op, "precision", precision, PRECISIONS)


# -- choosing ------------------------------------------------------------------------------


@functools.lru_cache(4096)
def default(direction: Direction, p: Problem, dtype: np.dtype, precision: str,
            architecture: int) -> Choice:
    """What computes it where nothing was measured.

    Args:
        direction: one of DIRECTIONS.
        p: its sizes.
        dtype: of x, w and y.
        precision: "ieee", or "tf32": float32 products may be rounded to 10 bits of mantissa.
        architecture: of the device: 90 for compute capability 9.0.
    """
    if not on_tensor_cores(p, dtype, precision, architecture):
        return Choice("simt")
    if direction == "weight_gradient":
        tile = gpu_mma_wgrad.default_tile(p, dtype, architecture)
        splits = gpu_mma_wgrad.default_splits(p, dtype, tile, architecture)
        return Choice("tensor_cores", tile, splits)
    return Choice("tensor_cores", gpu_mma.default_tile(p, dtype, direction, architecture))


def on_tensor_cores(p: Problem, dtype: np.dtype, precision: str, architecture: int) -> bool:
    """Can tensor cores compute it, as exactly as is asked for?"""
    narrow = dtype.itemsize == 2 or (dtype.name == "float32" and precision == "tf32")
    return narrow and architecture >= 80 and gpu_mma.supported(p, dtype)


def candidates(direction: Direction, p: Problem, dtype: np.dtype, precision: str,
               architecture: int) -> Iterator[Choice]:
    """All that could compute it, the default first: what ``gpuconv tune`` measures."""
    first = default(direction, p, dtype, precision, architecture)
    found = [first]
    if first.engine == "tensor_cores" and direction == "weight_gradient":
        for tile in gpu_mma_wgrad.tiles(dtype):
            if not gpu_mma_wgrad.runs_on(tile, p, dtype):
                continue
            usual = gpu_mma_wgrad.default_splits(p, dtype, tile, architecture)
            found += [Choice("tensor_cores", tile, splits)
                      for splits in (usual, max(1, usual // 2), 2 * usual)]
    elif first.engine == "tensor_cores":
        found += [Choice("tensor_cores", tile) for tile in gpu_mma.tiles(dtype)
                  if gpu_mma.fits(tile, dtype, architecture)]
    yield from dict.fromkeys([*found, Choice("simt")])


def choose(direction: Direction, p: Problem, dtype: np.dtype, precision: str) -> Choice:
    """Return the fastest measured choice of this thread's tuning table, else the default."""
    measured = tuning_table.find(direction, p, dtype, precision)
    return measured[0] if measured else default(direction, p, dtype, precision, architecture())


def architecture() -> int:
    """Of the current device: 90 for compute capability 9.0."""
    return int(cupy().cuda.Device().compute_capability)


def workspace(chosen: Choice, p: Problem, dtype: np.dtype) -> int:
    """Bytes of partial sums that the weight gradient takes, of that engine, with its own tiles."""
    if chosen.engine == "simt":
        return gpu_simt.workspace(p, dtype)
    return gpu_mma_wgrad.workspace(p, dtype, architecture())


# -- computing -----------------------------------------------------------------------------


def compute(chosen: Choice, direction: Direction, p: Problem, a: Array, b: Array, out: Array,
            **epilogue: Any) -> None:
    """Have it computed so: ``a`` and ``b`` into ``out``, as the direction's function has them."""
    if chosen.engine == "simt":
        getattr(gpu_simt, direction)(p, a, b, out, **epilogue)
    elif direction == "weight_gradient":
        gpu_mma_wgrad.weight_gradient(p, a, b, out, tile=chosen.tile, splits=chosen.splits)
    else:
        getattr(gpu_mma, direction)(p, a, b, out, tile=chosen.tile, **epilogue)


def forward(p: Problem, x: Array, w: Array, y: Array, precision: str, *, bias: Array | None = None,
            residual: Array | None = None, activation: str | None = None) -> None:
    """y (N, P, Q, K) = activation(conv(x, w) + bias + residual).

    Arrays have any shape of that order.
    """
    fused = residual is not None or activation is not None
    chosen = choose("forward", p, x.dtype, precision)
    more = dict(residual=residual, activation=activation) if fused else {}
    if not w.size:  # a Linear layer of no features
        y[...] = 0 if bias is None else bias
    elif y.size:
        compute(chosen, "forward", p, *_images(p, x, w, y), bias=bias, **more)


class Fused(NamedTuple):
    """What a convolution with more in its epilogue gives."""

    y: Array                             # (N, P, Q, K), or (N, P // 2, Q // 2, K) after the pool
    marks: Array | None                  # of the pool: where each maximum sat, uint8
    moments: tuple[Array, Array] | None  # means and variances, (slices, K) each, of y's rows
    rows: int                            # of y in a slice


def forward_fused(p: Problem, x: Array, w: Array, precision: str, *, bias: Array | None = None,
                  activation: str | None = None, pool: bool = False,
                  moments: bool = False) -> Fused | None:
    """The largest of each 2x2 pixels of activation(conv(x, w) + bias), and moments of it.

    Args:
        p, x, w, precision, bias, activation: as for ``forward``.
        pool: or every pixel.
        moments: are they wanted? Not with an activation.

    Returns:
        None where no engine can do it here.
    """
    chosen = choose("forward", p, x.dtype, precision)
    if chosen.tile is None or not p.N or (pool and min(p.P, p.Q) < 2):
        return None
    cp, wide = cupy(), accumulator(x.dtype)
    shape = (p.N, p.P // 2, p.Q // 2, p.K) if pool else (p.N, p.P, p.Q, p.K)
    y, marks = cp.empty(shape, x.dtype), cp.empty(shape, np.uint8) if pool else None
    rows = gpu_mma.moment_rows(p, chosen.tile, pool)
    slices = -(-(y.size // p.K) // rows)
    sums = (cp.empty((slices, p.K), wide), cp.empty((slices, p.K), wide)) if moments else None
    compute(chosen, "forward", p, x, w, y, bias=bias, activation=activation, moments=sums,
            pool=marks)
    return Fused(y, marks, sums, rows)


def gradients(p: Problem, gy: Array, x: Array | None, w: Array | None, needs: tuple[bool, ...],
              precision: str) -> tuple[Array | None, Array | None, Array | None]:
    """Those of gx (N, H, W, C), gw (K, R, S, C/groups) and gb (K,) that are needed.

    Args:
        p, precision: the convolution.
        gy: (N, P, Q, K); this and the others in any shape of that order.
        x: where gw is needed.
        w: where gx is.
        needs: of x, w and perhaps b.
    """
    cp, gx, gw, gb = cupy(), None, None, None
    x, w, gy = _images(p, x, w, gy)
    if needs[0]:
        gx = cp.empty((p.N, p.H, p.W, p.C), gy.dtype)
        if not p.K:
            gx.fill(0)
        elif gx.size:
            chosen = choose("input_gradient", p, gy.dtype, precision)
            compute(chosen, "input_gradient", p, gy, w, gx)
    if needs[1]:
        gw = cp.empty((p.K, p.R, p.S, p.C // p.groups), gy.dtype)
        if not p.N:
            gw.fill(0)
        elif gw.size:
            chosen = choose("weight_gradient", p, gy.dtype, precision)
            compute(chosen, "weight_gradient", p, x, gy, gw)
    if needs[2:3] == (True,):
        gb = cp.empty(p.K, gy.dtype)
        if not p.N:
            gb.fill(0)
        elif gb.size:
            column_sums(gy.reshape(-1, p.K), gb)
    return gx, gw, gb


def _images(p: Problem, x: Array | None, w: Array | None, y: Array) -> tuple:
    """x, w and y with the axes of images and filters."""
    return (x if x is None else x.reshape(p.N, p.H, p.W, p.C),
            w if w is None else w.reshape(p.K, p.R, p.S, p.C // p.groups),
            y.reshape(p.N, p.P, p.Q, p.K))
