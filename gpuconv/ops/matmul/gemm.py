"""Matrix product of plain arrays, on both devices: what linear, matmul and Muon call.

    y[...,n,k] = f(bias[k] + sum over c of a[...,n,c] * b[...,c,k])

16-bit numbers are summed in float32 and rounded once. Bits depend on shapes, layouts, dtypes and
the device's architecture alone.

On the CPU BLAS multiplies chunks of rows or columns; a long sum is cut into runs, see
engine/sums.py. On the GPU two kinds of kernels multiply, and a stream can capture both:

    one matrix by another   the kernels of convolutions, on tensor cores where dtype and precision
                            allow: a matrix (N, C) is N images of one pixel, see _as_convolution
    all other products      kernels/matmul/gemm.cu: batches; exact sums of more than LONGEST terms;
                            layouts and epilogues that convolutions do not have
"""

import math
from typing import NamedTuple

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import Array, accumulator, cupy, is_gpu
from gpuconv.ops.conv import conv_dgrad_gpu, conv_forward_gpu, conv_wgrad_gpu
from gpuconv.ops.elementwise import activated
from gpuconv.ops.engine.column_sums import column_sums
from gpuconv.ops.engine.elements import wide
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.engine.sums import LONG, multiply
from gpuconv.ops.window import ConvShape, Window

CHUNK = 1 << 24  # multiplications of one thread's chunk of a product on the CPU, at least
CHUNKS = 8       # of a large product: a BLAS is fast with many rows

STEP = 8             # terms that kernels/matmul/gemm.cu adds from one tile in shared memory
LONGEST = 1 << 12    # terms of a running sum on the GPU
SLICE = 1 << 9       # terms that are worth a partial sum, at least
ENOUGH = 4 * 132     # blocks that keep a large GPU busy


class Tile(NamedTuple):
    """A block computes BM x BN of a product, one thread TM x TN of it."""

    BM: int  # rows
    BN: int  # columns
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.BM // self.TM * (self.BN // self.TN)


TILES = (Tile(128, 64, 8, 8), Tile(64, 128, 8, 8), Tile(64, 32, 4, 4), Tile(32, 64, 4, 4))
DOUBLE_TILES = TILES[2:]  # sums in float64 take twice the registers


def gemm(a: Array, b: Array, bias: Array | None = None, *, activation: str | None = None,
         precision: str = "ieee") -> Array:
    """Return ``activation(a @ b + bias)``, rounded once.

    A transposed operand is given as a view, ``gemm(x, w.T)``: it is read as it lies in memory. On
    the GPU operands with other gaps or negative strides are copied first.

    Args:
        a: array (..., N, C), or a vector (C,).
        b: array (..., C, K), or a vector (C,), of the dtype and device of a. Leading axes
            broadcast.
        bias: (K,), or None.
        activation: name of an activation, such as "relu", or None.
        precision: of float32 products of two matrices on a GPU: "ieee", or "tf32", which rounds
            their factors to 10 bits of mantissa and takes tensor cores.

    Returns:
        (..., N, K), without the axis of a vector; dtype of a.

    >>> gemm(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]).T, np.array([0.0, 10.0]))
    array([[ 3., 16.]])
    """
    if is_gpu(a):
        return _gemm_gpu(a, b, bias, activation, precision)
    y = _gemm_cpu(wide(a), wide(b))
    if bias is not None:
        y += wide(bias)
    return activated(y.astype(a.dtype, copy=False), activation)


# -- CPU -----------------------------------------------------------------------------------


def _gemm_cpu(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a @ b``, cut along its longer side by shape alone: bits do not depend on threads."""
    if a.ndim != 2 or b.ndim != 2:
        n = a.shape[-1]
        if n > LONG and max(a.ndim, b.ndim) <= 2:  # with a vector
            y = _gemm_cpu(np.atleast_2d(a), b.reshape(n, -1))
            return y.reshape(a.shape[:-1] + b.shape[1:])
        with threads.single_threaded_blas():
            if n <= LONG:
                return a @ b
            runs = ((a[..., run] @ (b[..., run, :] if b.ndim > 1 else b[run])).astype(np.float64)
                    for run in threads.chunks(n, 1, LONG))
            return sum(runs).astype(a.dtype)
    (N, C), K = a.shape, b.shape[1]
    y = memory.empty((N, K), np.result_type(a, b))
    budget = max(CHUNK, N * C * K // CHUNKS)
    if N >= K:
        threads.each(lambda some: multiply(a[some], b, y[some]),
                     threads.chunks(N, C * K, budget))
    else:
        threads.each(lambda some: multiply(a, b[:, some], y[:, some]),
                     threads.chunks(K, N * C, budget))
    return y


# -- GPU -----------------------------------------------------------------------------------


class Operand(NamedTuple):
    """Matrices in memory: those of a product, or their transposes."""

    stored: Array     # (Z, rows, columns), or (1, rows, columns) for all Z products; C-contiguous
    transposed: bool  # is each the transpose of its factor?


def _gemm_gpu(a: Array, b: Array, bias: Array | None, activation: str | None,
              precision: str) -> Array:
    rows = a.reshape(1, -1) if a.ndim == 1 else a        # (..., N, C)
    columns = b.reshape(-1, 1) if b.ndim == 1 else b     # (..., C, K)
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    shape = *batch, *a.shape[-2:-1], *b.shape[1:][-1:]   # of y
    C, K = columns.shape[-2:]
    if not C or not math.prod(shape):                    # no terms, or no sums
        y = cupy().empty(shape, a.dtype)
        y[...] = 0 if bias is None else bias
        return activated(y, activation)
    if math.prod(columns.shape[:-2]) == 1:               # one matrix for all rows
        rows, columns, batch = rows.reshape(-1, C), columns.reshape(C, K), ()
    left, right = _operand(rows, batch), _operand(columns, batch, prefer_transposed=True)

    exact = a.dtype.itemsize > 2 and not (precision == "tf32" and a.dtype.itemsize == 4)
    forward = right.transposed and not left.transposed
    whole = bias is None and activation is None          # nothing follows the product
    if (batch or (exact and C > LONGEST) or (left.transposed and right.transposed)
            or not (forward or whole)):
        y = cupy().empty((math.prod(batch), rows.shape[-2], K), a.dtype)
        _products(left, right, bias, activation, y)
    else:
        y = _as_convolution(left, right, bias, activation, precision)
    return y.reshape(shape)


def _operand(m: Array, batch: tuple[int, ...], prefer_transposed: bool = False) -> Operand:
    """Return the matrices m (..., rows, columns) as they lie in memory; with gaps, a copy.

    Args:
        m: its leading axes broadcast to ``batch``. A single matrix is not repeated.
        prefer_transposed: the answer for a vector, which lies both ways.
    """
    if math.prod(m.shape[:-2]) > 1 and m.shape[:-2] != batch:
        m = cupy().broadcast_to(m, (*batch, *m.shape[-2:]))
    m = m.reshape(-1, *m.shape[-2:])
    transposed = m.swapaxes(1, 2)
    if transposed.flags.c_contiguous and (prefer_transposed or not m.flags.c_contiguous):
        return Operand(transposed, True)
    return Operand(cupy().ascontiguousarray(m), False)


def _as_convolution(left: Operand, right: Operand, bias: Array | None, activation: str | None,
                    precision: str) -> Array:
    """Return a product of two matrices, computed as a convolution of images of one pixel.

        x w^T     forward, with bias and activation
        gy w      input gradient
        gy^T x    weight gradient
    """
    a, b = left.stored[0], right.stored[0]
    if right.transposed:
        shape = ConvShape(len(a), 1, 1, a.shape[1], len(b), Window((1, 1)))
        return conv_forward_gpu(shape, a, b, precision, Epilogue(bias, activation=activation))
    shape = ConvShape(len(a), 1, 1, b.shape[1], a.shape[1], Window((1, 1)))
    if left.transposed:
        return conv_wgrad_gpu(shape, b, a, precision)
    return conv_dgrad_gpu(shape, a, b, precision)


def _products(left: Operand, right: Operand, bias: Array | None, activation: str | None,
              y: Array) -> None:
    """Write activation(left right + bias) into y (Z, N, K), by kernels/matmul/gemm.cu.

    With few tiles, blocks compute slices of the sums side by side, which column_sums adds up. With
    many tiles, or an activation, each launch adds up to LONGEST terms to the sums before.
    """
    (Z, N, K), C = y.shape, left.stored.shape[1 if left.transposed else 2]
    dtype = accumulator(y.dtype)
    tile, depth = _plan(Z, N, C, K, dtype)
    if depth < C and activation is None:
        sums = cupy().empty((-(-C // depth), Z, N, K), dtype)
        _launch(tile, left, right, bias, None, None, sums, 0, depth)
        column_sums(sums.reshape(len(sums), y.size), y.reshape(-1))
        return
    sums = y if y.dtype == dtype or C <= LONGEST else cupy().empty(y.shape, dtype)
    for first in range(0, C, LONGEST):
        before, last = sums if first else None, first + LONGEST >= C
        if last:
            _launch(tile, left, right, bias, activation, before, y, first, LONGEST)
        else:
            _launch(tile, left, right, None, None, before, sums, first, LONGEST)


def _launch(tile: Tile, left: Operand, right: Operand, bias: Array | None, activation: str | None,
            before: Array | None, out: Array, first: int, depth: int) -> None:
    """Launch gemm for out (splits, Z, N, K), or (Z, N, K), from term ``first`` on."""
    (*splits, Z, N, K), (a, b) = out.shape, (left.stored, right.stored)
    C = a.shape[1 if left.transposed else 2]
    blocks = math.prod(splits) * Z * -(-N // tile.BM) * -(-K // tile.BN)
    gemm = kernels.kernel(
        "matmul/gemm.cu", "gemm", T=a.dtype, O=out.dtype, A_TRANSPOSED=left.transposed,
        B_TRANSPOSED=right.transposed, LA=_pack(a.shape[2], a), LB=_pack(b.shape[2], b),
        LY=_pack(K, out, bias), ACTIVATION=activation or "none", **tile._asdict())
    gemm(blocks * tile.threads, a, b, bias, before, out, math.prod(splits), Z, N, C, K,
         0 if len(a) == 1 else N * C, 0 if len(b) == 1 else C * K, first, depth,
         block=tile.threads, every=True)


def _plan(Z: int, N: int, C: int, K: int, dtype: np.dtype) -> tuple[Tile, int]:
    """Return the tile that wastes and reads least, and the terms of a slice of a sum, C if uncut.

    A slice for each block keeps a large GPU busy where tiles are few. The sizes alone decide.

    >>> _plan(1, 4096, 512, 4096, np.dtype("float32"))
    (Tile(BM=128, BN=64, TM=8, TN=8), 512)
    >>> _plan(1, 32, 8192, 32, np.dtype("float32"))
    (Tile(BM=64, BN=32, TM=4, TN=4), 512)
    """
    def blocks(tile: Tile) -> int:
        return Z * -(-N // tile.BM) * -(-K // tile.BN)

    def cost(tile: Tile) -> float:
        idle = max(1.0, ENOUGH / (blocks(tile) * max(1, C // SLICE)))
        return blocks(tile) * tile.BM * tile.BN * idle * (1 / tile.TM + 1 / tile.TN)

    tile = min(DOUBLE_TILES if dtype.itemsize == 8 else TILES, key=cost)
    splits = min(C // SLICE, -(-ENOUGH // blocks(tile)))
    return tile, C if splits < 2 else min(LONGEST, -(-C // (splits * STEP)) * STEP)


def _pack(n: int, *arrays: Array | None) -> int:
    """Return how many neighbours in rows of n are read at once: 16 bytes of accumulators, or 1."""
    given = [a for a in arrays if a is not None]
    V = 16 // accumulator(given[0].dtype).itemsize
    return V if n % V == 0 and all(a.data.ptr % (V * a.itemsize) == 0 for a in given) else 1
