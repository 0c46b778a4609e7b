"""Long sums on the CPU, whose error does not grow with their length.

    y[a, c] = sum over b of x[a, b, c]

A float32 sum that runs over n equal terms is off by up to n/4 roundings, and stops growing at 2^24
ones. Here a float32 sum has at most BLOCK terms. The B rows become BLOCK rows that are B/BLOCK
times as long; these are added as they stand, which makes B/BLOCK sums of every B/BLOCK-th row, and
the sums are added in float64. The error stays below 1e-6 of the sum of the magnitudes.

The rows are added as a product with ones where several threads share the work: BLAS reads 20
elements in the time NumPy adds 5.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import Chunk, image_chunks

BLOCK = 64       # terms of one sum in the accumulator dtype
SMALL = 1 << 16  # bytes that NumPy adds before BLAS is ready to
LONG = 1 << 12   # terms: a product of more is split into runs, see multiply
FEW = 1 << 12    # elements of a small product, where BLAS may add all terms of a run one by one
RUNS = BLOCK, 1 << 15  # terms of a run: of a small product, of a larger one


def sum_axes(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return the sum over some axes, in float64.

    Neighbouring axes are summed in one go, so that no axes are exchanged in memory.

    Args:
        x: any float dtype and any strides.
        axes: their numbers, rising.

    >>> sum_axes(np.arange(8.0).reshape(2, 2, 2), (0, 2))
    array([10., 18.])
    """
    left = [*axes]
    while left:
        last = first = left.pop()
        while left and left[-1] == first - 1:
            first = left.pop()
        before, after = x.shape[:first], x.shape[last + 1 :]
        middle = math.prod(x.shape[first : last + 1])
        x = sum_middle(x.reshape(math.prod(before), middle, math.prod(after)))
        x = x.reshape(before + after)
    return x.astype(np.float64, copy=False)


def sum_middle(x: np.ndarray) -> np.ndarray:
    """Return (A, C) from (A, B, C), in float64; chunks are added in the order of b.

    >>> sum_middle(np.arange(6.0).reshape(1, 3, 2))
    array([[6., 9.]])
    """
    (A, B, C), dtype = x.shape, accumulator(x.dtype)

    def work(chunk: Chunk) -> np.ndarray:
        return block_sums(x[chunk].astype(dtype, copy=False))

    with np.errstate(all="ignore"):  # inf - inf
        small = threads.CACHE if A == 1 and x.dtype == dtype else SMALL
        if x.size * dtype.itemsize <= small:  # nothing to share
            return block_sums(x.astype(dtype, copy=False), _plain_sums)
        y = np.zeros((A, C))
        chunks = image_chunks(A, B, C * dtype.itemsize, threads.CACHE)
        for chunk, part in zip(chunks, threads.each(work, chunks), strict=True):
            y[chunk.images] += part
    return y


def product_sums(x: np.ndarray) -> np.ndarray:
    """Return (n, C) from (n, b, C) in the dtype of x, by BLAS: where it uses one thread."""
    ones = np.ones(x.shape[1], x.dtype)
    return x[:, :, 0] @ ones[:, None] if x.shape[2] == 1 else np.matmul(ones, x)


def _plain_sums(x: np.ndarray) -> np.ndarray:
    return np.add.reduce(x, axis=1)


def block_sums(x: np.ndarray,
               add: Callable[[np.ndarray], np.ndarray] = product_sums) -> np.ndarray:
    """Return (n, C) in float64 from (n, b, C), in this thread.

    Args:
        x: float32 or float64.
        add: sums of up to BLOCK rows, (n, C) from (n, b, C).
    """
    n, b, C = x.shape
    if b <= BLOCK:
        return add(x).astype(np.float64, copy=False)
    R = b // BLOCK
    if C == 1 and R < n:  # many short runs of memory: NumPy adds each one pairwise
        return np.add.reduce(np.ascontiguousarray(x), axis=1).astype(np.float64, copy=False)
    sums = add(x[:, : R * BLOCK].reshape(n, BLOCK, R * C)).reshape(n, R, C)
    total = add(sums.astype(np.float64, copy=False))
    return total + add(x[:, R * BLOCK :]) if b % BLOCK else total


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write ``a @ b`` into out, for matrices (M, n) and (n, K), a long sum over n in runs.

    The runs are added in float64. For a large product BLAS splits a run again, into a few
    hundred terms. It runs in this thread, where BLAS uses one.
    """
    (M, n), K = a.shape, b.shape[1]
    run = RUNS[M * K > FEW]
    if n <= max(LONG, run):  # BLAS splits it well enough
        np.matmul(a, b, out=out)
        return
    total = threads.workspace("total", (M, K), np.float64)
    total.fill(0)
    for some in threads.chunks(n // run, run * (M + K) * a.itemsize, threads.CACHE):
        rows = slice(some.start * run, some.stop * run)
        parts = threads.workspace("parts", (some.stop - some.start, M, K), out.dtype)
        np.matmul(a[:, rows].reshape(M, -1, run).swapaxes(0, 1), b[rows].reshape(-1, run, K),
                  out=parts)
        total += parts.sum(axis=0, dtype=np.float64)
    rest = n // run * run
    out[...] = total + a[:, rest:] @ b[rest:]
