"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch, then a new scale.

    mean = 1/n sum x        var = 1/n sum (x - mean)^2        over the n = N*H*W values of a channel
    xhat = (x - mean) / sqrt(var + eps)
    y    = gamma xhat + beta

    gbeta = sum gy          ggamma = sum gy xhat
    gx    = gamma / sqrt(var + eps) (gy - gbeta/n - xhat ggamma/n)

In inference mean and var are the running statistics, constants, and the last two terms fall away.

The variance is the mean square of deviations, never E[x^2] - E[x]^2, which cancels. Memory is read
once for both moments: each piece of the batch gets its mean and squared deviations from it while it
is in the cache, and the pieces merge by Chan's formula. Backward keeps x, an array that exists
anyway, and computes xhat again.

ReLU may follow in the same op, which saves a pass over memory in either direction: y is rectified
while it is in the cache, and gy loses what the ReLU does not let pass where it is read.

Source: Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing
internal covariate shift", ICML 2015; Chan, Golub, LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", Stanford STAN-CS-79-773, 1979.
"""

import math
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, accumulator, cupy, get_array_module
from gpuconv.ops.activation import ReLU
from gpuconv.ops.checkpoint import again
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.cpu.rectify import masked, nonzero
from gpuconv.ops.cpu.zeros import zeros

WIDTH = 4096   # CPU: elements of one row of work, see _fold
BLOCKS = 1024  # GPU: blocks of a reduction, enough to fill any device


def batch_norm(x: Array, gamma: Array | None, beta: Array | None, running_mean: Array | None,
               running_var: Array | None, *, training: bool, momentum: float = 0.1,
               eps: float = 1e-5, relu: bool = False) -> Array:
    """Normalise each channel over all other axes.

    Args:
        x: Tensor or array (..., C), channels last: (N, C) or (N, H, W, C).
        gamma: scale (C,), dtype of x. None: 1.
        beta: shift (C,), dtype of x. None: 0.
        running_mean: (C,), float32 (float64 for float64). Training updates it in place,
            new = (1 - momentum) * old + momentum * batch; inference normalises with it.
            Both may be None in training: nothing is recorded.
        running_var: (C,), likewise; it records the unbiased variance, n/(n-1) times the batch's.
        training: normalise with the statistics of this batch, or with the running ones?
        momentum: weight of this batch in the running statistics.
        eps: added to the variance before the root.
        relu: give ``relu`` of it, the same bits, and pass the gradient on that the two would.

    Returns:
        Shape and dtype of x; a Tensor if any operand is one. An empty batch gives an empty result,
        leaves the statistics alone, and its parameter gradients are zeros.

    Raises:
        ValueError: one value per channel in training (its variance means nothing), a shape that
            does not fit x, no running statistics in inference, or eps < 0.
        TypeError: dtypes differ, or CPU meets GPU.

    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> mean, var = np.zeros(2), np.ones(2)
    >>> batch_norm(x, None, None, mean, var, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean, var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """
    check_arrays("batch_norm", ("gamma", "beta"), x=x, gamma=gamma, beta=beta)
    if len(x.shape) < 2 or not x.shape[-1]:
        raise ValueError(f"batch_norm: x has shape {x.shape}, wanted (..., C), channels last")
    C, count = x.shape[-1], math.prod(x.shape[:-1])
    mean, var = (a.data if isinstance(a, Tensor) else a for a in (running_mean, running_var))
    get_array_module(x.data if isinstance(x, Tensor) else x, mean, var)
    for name, a in (("gamma", gamma), ("beta", beta), ("running_mean", mean), ("running_var", var)):
        if a is not None and tuple(a.shape) != (C,):
            raise ValueError(f"batch_norm: {name} has shape {a.shape}, wanted ({C},) "
                             f"for x {x.shape}")
    for name, a in (("running_mean", mean), ("running_var", var)):
        if a is not None and a.dtype != accumulator(x.dtype):
            raise TypeError(f"batch_norm: {name} is {a.dtype}, wanted {accumulator(x.dtype)} "
                            f"for x {x.dtype}")
    if (mean is None) != (var is None) or (mean is None and not training):
        raise ValueError(f"batch_norm: running_mean and running_var are {_given(mean)} and "
                         f"{_given(var)}, wanted both" + ", or neither" * training)
    if training and count == 1:
        raise ValueError(f"batch_norm: x {x.shape} has one value per channel: "
                         "training needs at least two")
    if not eps >= 0:
        raise ValueError(f"batch_norm: eps is {eps}, wanted at least 0")
    if training and again():  # checkpointed: the first run has moved the running statistics
        mean = var = None
    return BatchNorm(mean, var, training, momentum, eps, relu)(x, gamma, beta)


def _given(a: Array | None) -> str:
    return "missing" if a is None else "given"


class BatchNorm(Op):
    """Saves: x, a reference; gamma, a reference; ``mean`` and ``inv_std`` (C,), in the accumulator.

    In inference, when x alone wants a gradient, no x. With ReLU what that saves: on the CPU one
    bit for each element of y.
    """

    positive: Any = None

    def __init__(self, running_mean: Any, running_var: Any, training: bool, momentum: float,
                 eps: float, relu: bool):
        self.running = running_mean, running_var
        self.training, self.momentum, self.eps = training, momentum, eps
        self.relu = ReLU() if relu else None

    def save(self, x: Any, gamma: Any, mean: Any, inv_std: Any) -> None:
        """Keep what backward will want; x where there are sums over the batch to be taken."""
        if any(self.needs):
            wanted = self.needs[1] or self.needs[2] or self.training
            self.x = x if wanted else None
            self.gamma, self.mean, self.inv_std = gamma, mean, inv_std
        self.running = None, None

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, x: Any, gamma: Any, beta: Any) -> Any:
        wide = accumulator(x.dtype)
        rows, pieces, F = _fold(x)                               # (n/F, F*C)
        if not self.training:
            mean, var = (np.array(a) for a in self.running)
        elif x.size:
            mean, var = self.statistics(rows, pieces, F)
        else:
            mean, var = np.zeros(x.shape[-1], wide), np.ones(x.shape[-1], wide)

        inv_std = (1 / np.sqrt(var + self.eps)).astype(wide)
        scale = inv_std if gamma is None else gamma.astype(wide) * inv_std
        shift = (0 if beta is None else beta.astype(np.float64)) - mean * scale.astype(np.float64)
        a, b = np.tile(scale, F), np.tile(shift.astype(wide), F)  # (F*C,)
        y = memory.empty(rows.shape, x.dtype)
        if self.relu and any(self.needs):
            self.positive = memory.empty(-(-x.size // 8), np.uint8)

        def normalise(piece: slice) -> None:
            here = y[piece]
            v = _target(here, wide)
            np.multiply(memory.widened(rows[piece], wide), a, out=v)
            v += b
            if self.relu:
                np.maximum(v, zeros(v.shape[1], wide), out=v)
            _store(here, v)
            if self.positive is not None:
                self.positive[_bits(rows, piece)] = nonzero(here)

        threads.each(normalise, pieces)
        self.save(x, gamma, mean.astype(wide), inv_std)
        return y.reshape(x.shape)

    def statistics(self, rows: Any, pieces: list[slice], F: int) -> tuple[Any, Any]:
        """Mean and variance (C,) of the batch in float64; the running ones learn of them."""
        wide = accumulator(rows.dtype)

        def moments(piece: slice) -> tuple[Any, Any, Any]:
            v = memory.widened(rows[piece], wide)
            d = memory.empty(v.shape, wide)
            count = wide.type(len(v) * F)
            mean = _sums(v, F) / count
            np.subtract(v, np.tile(mean, F), out=d)
            np.multiply(d, d, out=d)
            return count, mean, _sums(d, F)

        n = rows.shape[0] * F
        counts, *rest = (np.array(part, np.float64)
                         for part in zip(*threads.each(moments, pieces), strict=True))
        mean, m2 = _merge(counts[:, None], *rest)                # (C,)
        for running, batch in zip(self.running, (mean, m2 / (n - 1)), strict=True):
            if running is not None:
                running[...] = (1 - self.momentum) * running + self.momentum * batch
        return mean, m2 / n

    def backward_cpu(self, gy: Any) -> tuple:
        rows, pieces, F = _fold(gy)                              # (n/F, F*C)
        gx: Any = memory.empty(rows.shape, gy.dtype) if self.needs[0] or self.relu else None
        gbeta = ggamma = np.zeros(gy.shape[-1])
        if self.x is not None and pieces:
            gbeta, ggamma = self.sums(rows, pieces, F, gx)
            if self.relu:
                rows, self.positive = gx, None  # what the ReLU lets pass is there already
        if self.needs[0]:
            self.pull(rows, pieces, F, gbeta, ggamma, gx)
        return (gx.reshape(gy.shape) if self.needs[0] else None,
                ggamma.astype(gy.dtype) if self.needs[1] else None,
                gbeta.astype(gy.dtype) if self.needs[2] else None)

    def sums(self, gy: Any, pieces: list[slice], F: int, gx: Any) -> tuple[Any, Any]:
        """Sums of gy and of gy * xhat over the batch, (C,) in float64."""
        wide = accumulator(gy.dtype)
        x, center = _fold(self.x)[0], np.tile(self.mean, F)      # (n/F, F*C), (F*C,)

        def work(piece: slice) -> tuple[Any, Any]:
            g = memory.widened(self.passed(gy, piece, gx), wide)
            d = memory.empty(g.shape, wide)
            np.subtract(memory.widened(x[piece], wide), center, out=d)
            d *= g
            return _sums(g, F), _sums(d, F)

        total, along = (np.sum(part, axis=0, dtype=np.float64)
                        for part in zip(*threads.each(work, pieces), strict=True))
        return total, along * self.inv_std

    def pull(self, gy: Any, pieces: list[slice], F: int, gbeta: Any, ggamma: Any, gx: Any) -> None:
        """The gradient of x into gx: scale (gy + a x + b), or scale gy in inference."""
        wide, n = accumulator(gy.dtype), max(1, gy.shape[0] * F)
        scale = self.inv_std if self.gamma is None else self.gamma.astype(wide) * self.inv_std
        slope = -ggamma / n * self.inv_std.astype(np.float64)
        scale, a, b = (np.tile(v.astype(wide), F)                # (F*C,)
                       for v in (scale, slope, -gbeta / n - slope * self.mean))
        x = _fold(self.x)[0] if self.training else None

        def work(piece: slice) -> None:
            g = memory.widened(self.passed(gy, piece, gx), wide)
            v = g
            if x is not None:
                v = memory.empty(g.shape, wide)
                np.multiply(memory.widened(x[piece], wide), a, out=v)
                v += b
                v += g
            here = _target(gx[piece], wide)  # with ReLU the memory of g
            np.multiply(v, scale, out=here)
            _store(gx[piece], here)

        threads.each(work, pieces)

    def passed(self, gy: Any, piece: slice, gx: Any) -> Any:
        """A piece of gy; or what the ReLU lets pass of it, put into gx."""
        if self.positive is None:
            return gy[piece]
        masked(gy[piece].reshape(-1), self.positive[_bits(gy, piece)], gx[piece].reshape(-1))
        return gx[piece]

    # -- GPU: kernels/batch_norm.cu ----------------------------------------------------

    def forward_gpu(self, x: Any, gamma: Any, beta: Any) -> Any:
        cp = cupy()
        cut, final = self.cut(x)
        rows, C, S, _ = cut
        wide = accumulator(x.dtype)
        y, mean, inv_std = cp.empty(x.shape, x.dtype), cp.zeros(C, wide), cp.ones(C, wide)
        if not self.training:
            mean = self.running[0].copy()
            self.kernel("batch_norm_inv_std", x)(C, self.running[1], inv_std, C, self.eps)
        elif rows:
            means, m2s = cp.empty((S, C), wide), cp.empty((S, C), wide)
            self.kernel("batch_norm_moments", x)(_threads(cut), x, means, m2s, *cut)
            self.kernel("batch_norm_statistics", x)(
                _threads((rows, C, 1, final)), means, m2s, mean, inv_std, *self.running,
                rows, C, S, final, self.momentum, self.eps)
        self.kernel("batch_norm_forward", x)(
            _threads(cut), x, gamma, beta, mean, inv_std, y, *cut)
        self.save(x, gamma, mean, inv_std)
        if self.relu:
            self.relu.needs = (any(self.needs),)
            y = self.relu.forward_gpu(y)
        return y

    def backward_gpu(self, gy: Any) -> tuple:
        cp = cupy()
        if self.relu:
            gy, = self.relu.backward_gpu(gy)
        cut, final = self.cut(gy)
        rows, C, S, _ = cut
        wide = accumulator(gy.dtype)
        gbeta, ggamma = cp.zeros(C, gy.dtype), cp.zeros(C, gy.dtype)
        totals = cp.empty((2, C), wide)
        if self.x is not None and rows:
            slices = cp.empty((2, S, C), wide)
            self.kernel("batch_norm_backward_sums", gy)(
                _threads(cut), gy, self.x, self.mean, slices[0], slices[1], *cut)
            self.kernel("batch_norm_backward_totals", gy)(
                _threads((rows, C, 1, final)), slices[0], slices[1], self.inv_std,
                totals[0], totals[1], ggamma, gbeta, C, S, final)
        gx = cp.empty(gy.shape, gy.dtype) if self.needs[0] else None
        if gx is not None:
            self.kernel("batch_norm_backward", gy)(
                _threads(cut), gy, self.x if self.training else None, self.gamma, self.mean,
                self.inv_std, totals[0], totals[1], gx, *cut)
        return gx, ggamma if self.needs[1] else None, gbeta if self.needs[2] else None

    def cut(self, x: Any) -> tuple[tuple[int, int, int, int], int]:
        """(rows, C, slices, lanes) of the work, from the shape alone, and lanes of the totals."""
        rows, C = math.prod(x.shape[:-1]), x.shape[-1]
        lanes = min(32, 1 << (C - 1).bit_length())
        S = min(rows // (8 * kernels.BLOCK // lanes), BLOCKS // -(-C // lanes))
        return (rows, C, max(1, S), lanes), min(8, lanes)  # 8 float32: one sector of memory

    def kernel(self, function: str, x: Any) -> Any:
        """The CUDA function, compiled for arrays like x."""
        return kernels.kernel("batch_norm.cu", function, T=x.dtype, BLOCK=kernels.BLOCK)


def _threads(cut: tuple[int, int, int, int]) -> int:
    rows, C, S, lanes = cut
    return -(-C // lanes) * S * kernels.BLOCK if rows else 0


# -- CPU helpers: a batch as long rows, and 16-bit storage ---------------------------------


def _fold(x: Any) -> tuple[Any, list[slice], int]:
    """x as (n/F, F*C) with F*C up to WIDTH, pieces of its rows, and F.

    NumPy starts its loop again for each row, which takes as long as 100 numbers. Pieces are twice
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


def _bits(rows: Any, piece: slice) -> slice:
    """Where the bits of a piece of ``rows`` are: one for each element, and pieces begin at 8."""
    W = rows.shape[1]
    return slice(piece.start // 8 * W, -(-piece.stop * W // 8))


def _sums(v: Any, F: int) -> Any:
    """Sum over the rows of v (M, F*C), and over F: (C,). BLAS adds twice as fast as NumPy."""
    both = np.dot(np.ones(len(v), v.dtype), v)
    return np.dot(np.ones(F, v.dtype), both.reshape(F, -1))


def _merge(counts: Any, means: Any, m2s: Any) -> tuple[Any, Any]:
    """Mean and sum of squared deviations of all groups, from those of each.

    counts is (groups, 1), the others are (groups, C).
    """
    mean = (counts * means).sum(axis=0) / counts.sum()
    return mean, (m2s + counts * (means - mean) ** 2).sum(axis=0)


def _target(out: Any, dtype: np.dtype) -> Any:
    """Where to compute in dtype what goes to out: there, or elsewhere."""
    return out if out.dtype == dtype else memory.empty(out.shape, dtype)


def _store(out: Any, value: Any) -> None:
    """Round to the dtype of out, unless the value was computed in place."""
    if value.dtype != out.dtype:
        out[...] = value
