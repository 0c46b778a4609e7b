"""Dispatch of convolutions on the GPU: which kernels compute one, with which tiles.

    tensor_cores   float16, bfloat16, and float32 with precision="tf32"; one group; devices of
                   compute capability 8.0 or more
    simt           everything else: exact float32 ("ieee"), float64, groups, older devices

The default is a pure function of (direction, shape, dtype, precision, architecture), and a stream
can capture every kernel: an eager step and a captured one have the same bits, and so has a resumed
run. What `gpuconv tune` has measured is used inside ``tuned(table)`` alone, see tuning_table.py.

A Linear layer is a convolution of N images of one pixel under filters of one pixel.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.conv import gpu_mma, gpu_mma_wgrad, gpu_simt, tuning_table
from gpuconv.ops.conv.tuning_table import Algorithm, Direction
from gpuconv.ops.engine.epilogue import NO_EPILOGUE, Epilogue
from gpuconv.ops.window import ConvShape

# -- selection -----------------------------------------------------------------------------


@functools.lru_cache(4096)
def default_algorithm(direction: Direction, shape: ConvShape, dtype: np.dtype, precision: str,
                      architecture: int) -> Algorithm:
    """Return the algorithm of a convolution that was not measured.

    Args:
        direction: "forward", "dgrad" or "wgrad".
        shape: sizes of the convolution.
        dtype: of x, w and y.
        precision: "ieee", or "tf32": float32 products may be rounded to 10 bits of mantissa.
        architecture: of the device: 90 for compute capability 9.0.
    """
    if not on_tensor_cores(shape, dtype, precision, architecture):
        return Algorithm("simt")
    if direction == "wgrad":
        tile = gpu_mma_wgrad.default_tile(shape, dtype, architecture)
        splits = gpu_mma_wgrad.default_splits(shape, dtype, tile, architecture)
        return Algorithm("tensor_cores", tile, splits)
    return Algorithm("tensor_cores", gpu_mma.default_tile(shape, dtype, direction, architecture))


def on_tensor_cores(shape: ConvShape, dtype: np.dtype, precision: str, architecture: int) -> bool:
    """Return True if tensor cores can compute it, as exactly as ``precision`` says."""
    narrow = dtype.itemsize == 2 or (dtype.name == "float32" and precision == "tf32")
    return narrow and architecture >= 80 and gpu_mma.supported(shape, dtype)


def candidates(direction: Direction, shape: ConvShape, dtype: np.dtype, precision: str,
               architecture: int) -> Iterator[Algorithm]:
    """Yield all algorithms that ``gpuconv tune`` measures, the default first."""
    first = default_algorithm(direction, shape, dtype, precision, architecture)
    found = [first]
    if first.engine == "tensor_cores" and direction == "wgrad":
        for tile in gpu_mma_wgrad.tiles(dtype):
            if not gpu_mma_wgrad.runs_on(tile, shape, dtype):
                continue
            usual = gpu_mma_wgrad.default_splits(shape, dtype, tile, architecture)
            found += [Algorithm("tensor_cores", tile, splits)
                      for splits in (usual, max(1, usual // 2), 2 * usual)]
    elif first.engine == "tensor_cores":
        found += [Algorithm("tensor_cores", tile) for tile in gpu_mma.tiles(dtype)
                  if gpu_mma.fits(tile, dtype, architecture)]
    yield from dict.fromkeys([*found, Algorithm("simt")])


def dispatch(direction: Direction, shape: ConvShape, dtype: np.dtype, precision: str) -> Algorithm:
    """Return the fastest algorithm of this thread's tuning table, else the default."""
    measured = tuning_table.find(direction, shape, dtype, precision)
    return measured[0] if measured else default_algorithm(
        direction, shape, dtype, precision, architecture())


def architecture() -> int:
    """Return the compute capability of the current device: 90 for 9.0."""
    return int(cupy().cuda.Device().compute_capability)


# -- computation ---------------------------------------------------------------------------


def forward(shape: ConvShape, x: Array, w: Array, precision: str = "ieee",
            epilogue: Epilogue = NO_EPILOGUE, *, out: Array | None = None,
            algorithm: Algorithm | None = None) -> Array:
    """Return y (N, P, Q, K) = conv(x, w), finished by the epilogue; pooled (N, P//2, Q//2, K).

    Args:
        shape: sizes of the convolution. Arrays may have any shape with elements in this order.
        x: images (N, H, W, C).
        w: filters (K, R, S, C/groups), dtype of x.
        precision: "ieee" or "tf32".
        epilogue: with ``pool`` or ``moments`` it is one of ``fused_epilogue``.
        out: y, to write into. Default: a new array.
        algorithm: default: ``dispatch`` selects one.
    """
    pooled = epilogue.pool is not None
    y = cupy().empty(epilogue.pool.shape if pooled else shape.y_shape,  # type: ignore[union-attr]
                     x.dtype) if out is None else out
    if not w.size:  # a Linear layer of no features
        y[...] = 0 if epilogue.bias is None else epilogue.bias
    elif y.size:
        algorithm = algorithm or dispatch("forward", shape, x.dtype, precision)
        if algorithm.engine == "simt":
            gpu_simt.forward(shape, x, w, y, epilogue)
        else:
            gpu_mma.forward(shape, x, w, y, epilogue, tile=algorithm.tile)
    return y


def fused_epilogue(shape: ConvShape, dtype: np.dtype, precision: str, *, bias: Array | None = None,
                   activation: str | None = None, pool: bool = False,
                   moments: bool = False) -> Epilogue | None:
    """Return an epilogue of ``forward`` with a 2x2 max pool, or moments of y for batch_norm.

    Args:
        shape, dtype, precision: the convolution.
        bias: (K,), or None.
        activation: its name, or None; before the pool.
        pool: keep the largest of each 2x2 pixels?
        moments: are moments needed? Not with an activation.

    Returns:
        None where no kernel has such an epilogue: then the ops run one after the other.
    """
    tile = dispatch("forward", shape, dtype, precision).tile
    if tile is None or not shape.N or (pool and min(shape.P, shape.Q) < 2):
        return None
    cp, wide = cupy(), accumulator(dtype)
    N, P, Q, K = shape.y_shape
    P, Q = (P // 2, Q // 2) if pool else (P, Q)
    rows = gpu_mma.moment_rows(tile, pool)
    slices = -(-N * P * Q // rows)
    return Epilogue(
        bias, None, activation, cp.empty((N, P, Q, K), np.uint8) if pool else None,
        (cp.empty((slices, K), wide), cp.empty((slices, K), wide)) if moments else None, rows)


def dgrad(shape: ConvShape, gy: Array, w: Array, precision: str = "ieee", *,
          out: Array | None = None, algorithm: Algorithm | None = None) -> Array:
    """Return the input gradient gx (N, H, W, C), from gy (N, P, Q, K) and the filters w.

    The other arguments are those of ``forward``.
    """
    gx = cupy().empty(shape.x_shape, gy.dtype) if out is None else out
    if not shape.K:
        gx.fill(0)
    elif gx.size:
        algorithm = algorithm or dispatch("dgrad", shape, gy.dtype, precision)
        if algorithm.engine == "simt":
            gpu_simt.dgrad(shape, gy, w, gx)
        else:
            gpu_mma.dgrad(shape, gy, w, gx, tile=algorithm.tile)
    return gx


def wgrad(shape: ConvShape, x: Array, gy: Array, precision: str = "ieee", *,
          out: Array | None = None, algorithm: Algorithm | None = None) -> Array:
    """Return the weight gradient gw (K, R, S, C/groups), from x (N, H, W, C) and gy (N, P, Q, K).

    The other arguments are those of ``forward``.
    """
    gw = cupy().empty(shape.w_shape, gy.dtype) if out is None else out
    if not shape.N:
        gw.fill(0)
    elif gw.size:
        algorithm = algorithm or dispatch("wgrad", shape, gy.dtype, precision)
        with _here.observer(algorithm, shape, x.dtype):
            if algorithm.engine == "simt":
                gpu_simt.wgrad(shape, x, gy, gw)
            else:
                gpu_mma_wgrad.wgrad(shape, x, gy, gw, tile=algorithm.tile, splits=algorithm.splits)
    return gw


# -- workspaces of weight gradients, for train/gpu_memory.py ---------------------------------


class _Here(threading.local):
    """Observer of this thread's weight gradients."""

    observer: Any = staticmethod(lambda *_: contextlib.nullcontext())


_here = _Here()


@contextlib.contextmanager
def wgrad_observed(observer: Callable[[Algorithm, ConvShape, np.dtype], Any]) -> Iterator[None]:
    """Enter ``observer(algorithm, shape, dtype)`` around each weight gradient of this thread."""
    before, _here.observer = _here.observer, observer
    try:
        yield
    finally:
        _here.observer = before


def wgrad_workspace(algorithm: Algorithm, shape: ConvShape, dtype: np.dtype) -> int:
    """Return the bytes of partial sums of a weight gradient, with the engine's default tiles."""
    if algorithm.engine == "simt":
        return gpu_simt.workspace(shape, dtype)
    return gpu_mma_wgrad.workspace(shape, dtype, architecture())
