"""The passes of batch normalisation over memory, on the CPU.

A batch (..., C) is taken as long rows, F times C numbers each, in pieces of a few rows; see fold.
ReLU goes into the same passes: ``positive`` holds one bit for each number of y. What overflows, and
inf - inf, gives no warning, as in all other ops: it shows in the result.
"""

import math
from typing import Any

import numpy as np

from gpuconv import memory, threads
from gpuconv.backend import accumulator
from gpuconv.ops.elementwise import masked, nonzero
from gpuconv.ops.engine.sums import block_sums
from gpuconv.ops.engine.zeros import zeros

WIDTH = 4096   # elements of one row of work, see fold
FAR = 4        # standard deviations from 0, beyond which a mean is subtracted first: see far


def fold(x: Any) -> tuple[Any, list[slice], int]:
    """Return x as (n/F, F*C) with F*C up to WIDTH, chunks of its rows, and F.

    NumPy starts its loop again for each row, which takes as long as 100 numbers. Chunks are twice
    as large as the cache of a core: threads that do less at a time wait longer for the
    interpreter's lock than they gain. They begin at multiples of 8 rows.
    """
    C = x.shape[-1]
    n = math.prod(x.shape[:-1])
    F = math.gcd(n, 1 << max(0, (WIDTH // C).bit_length() - 1)) or 1
    rows = np.ascontiguousarray(x).reshape(n // F, F * C)
    eight = 8 * F * C * accumulator(x.dtype).itemsize  # bytes
    eights = threads.chunks(-(-len(rows) // 8), eight, 2 * threads.CACHE)
    return rows, [slice(8 * some.start, min(8 * some.stop, len(rows))) for some in eights], F


@np.errstate(all="ignore")  # of all threads
def moments(x: Any) -> tuple[Any, Any]:
    """Return mean and sum of squared deviations (C,), in float64, of a batch that is not empty.

    Each piece is summed as it stands. If its mean turns out to be ``far`` from 0, it is summed
    again after the rounded mean has been subtracted, which is exact for values close to it; if
    squares overflow, once more. So a constant channel has its very value for a mean, and a sum of
    exactly 0. Deviations of finite numbers whose squares overflow give inf.
    """
    wide = accumulator(x.dtype)
    rows, pieces, F = fold(x)                                    # (n/F, F*C)

    def work(piece: slice) -> tuple[Any, Any, Any]:
        v = memory.widened(rows[piece], wide)
        d = memory.empty(v.shape, wide)
        count = len(v) * F
        mean, m2 = _centered(v, d, F)
        if far(mean, m2 / count) or not np.isfinite(m2).all():
            for _ in range(2):
                center = mean.astype(wide)
                np.subtract(v, np.tile(center, F), out=d)
                off, m2 = _centered(d, d, F)
                mean = center + off
                if np.isfinite(m2).all():
                    break
            m2[np.isnan(m2) & np.isfinite(mean)] = np.inf
        return count, mean, m2

    counts, *rest = (np.array(part, np.float64)
                     for part in zip(*threads.each(work, pieces), strict=True))
    return _merge(counts[:, None], *rest)


@np.errstate(all="ignore")
def normalise(x: Any, center: Any, scale: Any, shift: Any, relu: bool,
              keep: bool) -> tuple[Any, Any]:
    """Return ``(x - center) * scale + shift``, rectified if wanted, and ``positive`` if kept.

    A center of zeros costs no pass.
    """
    wide = accumulator(x.dtype)
    rows, pieces, F = fold(x)                                    # (n/F, F*C)
    a, b, center = np.tile(scale, F), np.tile(shift, F), _repeated(center, F)  # (F*C,)
    y = memory.empty(rows.shape, x.dtype)
    positive = memory.empty(-(-x.size // 8), np.uint8) if relu and keep else None

    def work(piece: slice) -> None:
        here = y[piece]
        v = _target(here, wide)
        _shifted(memory.widened(rows[piece], wide), center, a, v)
        v += b
        if relu:
            np.maximum(v, zeros(v.shape[1], wide), out=v)
        _store(here, v)
        if positive is not None:
            positive[_bits(rows, piece)] = nonzero(here)

    threads.each(work, pieces)
    return y.reshape(x.shape), positive


@np.errstate(all="ignore")
def sums(gy: Any, x: Any, center: Any, positive: Any, gz: Any) -> tuple[Any, Any]:
    """Return the sums of gy and of gy * (x - center) over the batch, (C,) in float64.

    With ``positive`` of what the ReLU lets pass of gy, which is put into gz.
    """
    rows, pieces, F = fold(gy)                                   # (n/F, F*C)
    wide = accumulator(gy.dtype)
    x, center = fold(x)[0], np.tile(center, F)                   # (n/F, F*C), (F*C,)

    def work(piece: slice) -> tuple[Any, Any]:
        g = memory.widened(_passed(rows, piece, positive, gz), wide)
        d = memory.empty(g.shape, wide)
        np.subtract(memory.widened(x[piece], wide), center, out=d)
        d *= g
        return _sums(g, F), _sums(d, F)

    total, along = (np.sum(part, axis=0, dtype=np.float64)
                    for part in zip(*threads.each(work, pieces), strict=True))
    return total, along


@np.errstate(all="ignore")
def pull(gy: Any, x: Any, center: Any, scale: Any, slope: Any, level: Any, positive: Any,
         gx: Any) -> None:
    """Write into gx ``scale * (gy + slope * (x - center) + level)``, or without x ``scale * gy``.

    With ``positive`` of what the ReLU lets pass of gy.
    """
    rows, pieces, F = fold(gy)                                   # (n/F, F*C)
    wide = accumulator(gy.dtype)
    scale, a, b = (np.tile(v.astype(wide), F) for v in (scale, slope, level))  # (F*C,)
    center = _repeated(center, F)
    x = None if x is None else fold(x)[0]
    gx = gx.reshape(rows.shape)

    def work(piece: slice) -> None:
        g = memory.widened(_passed(rows, piece, positive, gx), wide)
        v = g
        if x is not None:
            v = memory.empty(g.shape, wide)
            _shifted(memory.widened(x[piece], wide), center, a, v)
            v += b
            v += g
        here = _target(gx[piece], wide)  # with ReLU the memory of g
        np.multiply(v, scale, out=here)
        _store(gx[piece], here)

    threads.each(work, pieces)


def _passed(gy: Any, piece: slice, positive: Any, gz: Any) -> Any:
    """Return a chunk of gy, masked by the ReLU into gz if there is one."""
    if positive is None:
        return gy[piece]
    gz = gz.reshape(gy.shape)
    masked(gy[piece].reshape(-1), positive[_bits(gy, piece)], gz[piece].reshape(-1))
    return gz[piece]


def _bits(rows: Any, piece: slice) -> slice:
    """Return the slice of the bit mask for a chunk of rows; chunks begin at multiples of 8."""
    W = rows.shape[1]
    return slice(piece.start // 8 * W, -(-piece.stop * W // 8))


def far(mean: Any, var: Any) -> bool:
    """Return whether the mean of any channel is many standard deviations away from 0.

    Else ``x * scale - mean * scale`` is as good as ``(x - mean) * scale``, and E[x^2] - E[x]^2 as
    good as the mean of squared deviations: either loses four bits at most. NaN is far.
    """
    return not (np.abs(mean) <= FAR * np.sqrt(var)).all()


def _repeated(center: Any, F: int) -> Any:
    """Return F copies of center, or None if it is 0."""
    return np.tile(center, F) if center.any() else None


def _shifted(x: Any, center: Any, scale: Any, out: Any) -> None:
    """Write ``(x - center) * scale`` into out."""
    np.multiply(x if center is None else np.subtract(x, center, out=out), scale, out=out)


def _centered(v: Any, squares: Any, F: int) -> tuple[Any, Any]:
    """Return mean and sum of squared deviations of v (M, F*C), by E[v^2] - E[v]^2.

    ``squares`` is overwritten; it may be v.
    """
    count, total = len(v) * F, _sums(v, F)
    np.multiply(v, v, out=squares)
    return total / count, np.maximum(_sums(squares, F) - total * total / count, 0)


def _sums(v: Any, F: int) -> Any:
    """Return the sum over the rows of v (M, F*C), and over F: (C,) in float64."""
    v = v.reshape(1, len(v) * F, -1)
    total = block_sums(v)[0]
    if not np.isfinite(total).all():  # a block that overflows, where the sum need not
        total = np.add.reduce(v[0], axis=0, dtype=np.float64)
    return total


def _merge(counts: Any, means: Any, m2s: Any) -> tuple[Any, Any]:
    """Return mean and sum of squared deviations of all groups, from those of each.

    counts is (groups, 1), the others are (groups, C).
    """
    mean = means[0] + (counts * (means - means[0])).sum(axis=0) / counts.sum()
    return mean, (m2s + counts * (means - mean) ** 2).sum(axis=0)


def _target(out: Any, dtype: np.dtype) -> Any:
    """Return out if it has this dtype, else a new array of its shape."""
    return out if out.dtype == dtype else memory.empty(out.shape, dtype)


def _store(out: Any, value: Any) -> None:
    """Round to the dtype of out, unless the value was computed in place."""
    if value.dtype != out.dtype:
        out[...] = value
