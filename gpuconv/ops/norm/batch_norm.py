"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch, then a new scale.

    mean = 1/n sum x        var = 1/n sum (x - mean)^2        over the n = N*H*W values of a channel
    xhat = (x - mean) / sqrt(var + eps)
    y    = gamma xhat + beta

    gbeta = sum gy          ggamma = sum gy xhat
    gx    = gamma / sqrt(var + eps) (gy - gbeta/n - xhat ggamma/n)

In inference mean and var are the running statistics, constants, and the last two terms fall away.

Memory is read once for both moments: each chunk of the batch gets its mean and variance while it is
in the cache, and chunks merge by Chan's formula. The GPU subtracts a mean first; so does the CPU if
a channel's mean is more than 4 standard deviations from 0, else E[x^2] - E[x]^2 loses at most four
bits. Normalising follows the same rule. Backward keeps x and computes xhat again.

An activation may be fused, and a residual may be added before it, which saves passes over memory in
either direction:

    y = act(gamma xhat + beta + residual)

and gy act' takes the place of gy above, and is the residual's gradient, too. It rounds where the
ops one after another would, and so gives their bits. On the GPU backward computes gamma xhat + beta
again; the CPU fuses ReLU alone, which keeps a bit for each element.

Source: Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing
internal covariate shift", ICML 2015; Chan, Golub, LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", Stanford STAN-CS-79-773, 1979.
"""

import math
from typing import Any

import numpy as np

from gpuconv import backend, kernels, memory
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, accumulator, cupy, is_gpu
from gpuconv.checks import check_number
from gpuconv.ops.checks import channels_last, check_arrays
from gpuconv.ops.elementwise import activated, add, check_activation
from gpuconv.ops.engine import row_partition
from gpuconv.ops.norm import cpu_batch
from gpuconv.recompute import is_recomputing

LARGEST = {4: 2.0**120, 8: 2.0**1000}  # variance by itemsize of the accumulator; see batch_norm
SLICES, MERGED = 2048, 256  # GPU: one block adds up the moments of slices; more merge before


def batch_norm(x: Array, gamma: Array | None, beta: Array | None, running_mean: Array | None,
               running_var: Array | None, *, training: bool, momentum: float = 0.1,
               eps: float = 1e-5, activation: str | None = None,
               residual: Array | None = None, num_batches_tracked: Array | None = None) -> Array:
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
        activation: name of an activation, such as "relu", with the bits of two ops; or None.
        residual: shape and dtype of x, added before the activation. None: nothing.
        num_batches_tracked: (), int64. Training adds 1 in place. None: nobody counts.

    Returns:
        Shape and dtype of x; a Tensor if any operand is one. A channel whose values are all equal
        gives exactly beta. An empty batch gives an empty result, leaves the statistics alone, and
        its parameter gradients are zeros.

        Values up to 1e18 are normalised (1e150 in float64). Beyond, a variance above 2^120 (2^1000)
        counts as infinite: y is beta, running_var becomes inf, the gradient of x is 0. Differences
        of values that overflow, from 1.7e38 on, may give NaN.

    Raises:
        ValueError: one value per channel in training (its variance means nothing), a shape that
            does not fit x, no running statistics in inference, eps < 0, or another activation.
        TypeError: dtypes differ, or CPU meets GPU.

    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> mean, var = np.zeros(2), np.ones(2)
    >>> batch_norm(x, None, None, mean, var, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean, var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """
    shape = getattr(x, "shape", ())
    op = normaliser("batch_norm", shape, x, gamma, beta, running_mean, running_var,
                    num_batches_tracked, training, momentum, eps, activation, residual)
    if is_gpu(x.data if isinstance(x, Tensor) else x):
        return op(*[x, gamma, beta, residual][:3 + (residual is not None)])
    if residual is None and activation in (None, "relu"):
        return op(x, gamma, beta)
    op.activation = None
    y = op(x, gamma, beta)
    return activated(y if residual is None else add(y, residual), activation)


def normaliser(op: str, shape: tuple[int, ...], x: Array, gamma: Array | None, beta: Array | None,
               running_mean: Array | None, running_var: Array | None, batches: Array | None,
               training: bool, momentum: float, eps: float, activation: str | None,
               residual: Array | None) -> "BatchNorm":
    """The op that normalises an array of this shape and of x's dtype; x itself, or made from it.

    Raises:
        ValueError, TypeError: as ``batch_norm``; the text begins with ``op``.
    """
    check_arrays(op, ("gamma", "beta", "residual"), x=x, gamma=gamma, beta=beta, residual=residual)
    check_activation(op, activation)
    if len(shape) < 2 or not shape[-1]:
        raise ValueError(f"{op}: x has shape {shape}, wanted (..., C), channels last")
    C, count = shape[-1], math.prod(shape[:-1])
    mean, var = (a.data if isinstance(a, Tensor) else a for a in (running_mean, running_var))
    backend.check_arrays(op, x=x.data if isinstance(x, Tensor) else x, running_mean=mean,
                         running_var=var, num_batches_tracked=batches)
    for name, a in (("gamma", gamma), ("beta", beta), ("running_mean", mean), ("running_var", var)):
        if a is not None and tuple(a.shape) != (C,):
            hint = channels_last("x", x.shape, a.size) if len(a.shape) == 1 else ""
            raise ValueError(f"{op}: {name} has shape {a.shape}, wanted ({C},) for x {shape}{hint}")
    for name, a in (("running_mean", mean), ("running_var", var)):
        if a is not None and a.dtype != accumulator(x.dtype):
            raise TypeError(f"{op}: {name} is {a.dtype}, wanted {accumulator(x.dtype)} "
                            f"for x {x.dtype}")
    if batches is not None and (batches.dtype != np.int64 or batches.shape != ()):
        raise ValueError(f"{op}: num_batches_tracked is {batches.dtype} {batches.shape}, wanted "
                         "int64 ()")
    if (mean is None) != (var is None) or (mean is None and not training):
        given = ("missing" if a is None else "given" for a in (mean, var))
        raise ValueError(f"{op}: running_mean and running_var are {' and '.join(given)}, wanted "
                         "both" + ", or neither" * training)
    if training and count == 1:
        raise ValueError(f"{op}: x {shape} has one value per channel: training needs at least two")
    if residual is not None and residual.shape != tuple(shape):
        raise ValueError(f"{op}: residual has shape {residual.shape}, wanted {shape}")
    check_number(op, "eps", eps, least=0), check_number(op, "momentum", momentum)
    if training and is_recomputing():  # the first run has moved the running statistics
        mean = var = batches = None
    return BatchNorm(mean, var, training, momentum, eps, activation, batches)


class BatchNorm(Op):
    """Saves: references to x and gamma; ``mean`` (in float64 on the CPU) and ``inv_std``, (C,).

    In inference, when x alone wants a gradient, no x. With an activation on the GPU references to
    beta, x and the residual as well; with ReLU on the CPU one bit for each element of y.
    """

    multiply_adds = 0
    x: Any
    gamma: Any
    mean: Any
    inv_std: Any
    beta = residual = positive = None

    def __init__(self, running_mean: Any, running_var: Any, training: bool, momentum: float,
                 eps: float, activation: str | None = None, batches: Any = None):
        self.running, self.batches = (running_mean, running_var), batches
        self.training, self.activation = training, activation
        self.momentum, self.eps = momentum, eps

    @property
    def depends_on(self) -> str:
        """Pixels of x: the same one in inference; in training all, through mean and variance."""
        return "all" if self.training else "pixel"

    # -- CPU -------------------------------------------------------------------------

    @np.errstate(all="ignore")
    def forward_cpu(self, x: Any, gamma: Any, beta: Any) -> Any:
        wide, n = accumulator(x.dtype), math.prod(x.shape[:-1])
        if not self.training:
            mean, var = (np.array(a, np.float64) for a in self.running)
        elif n:
            mean, m2 = cpu_batch.moments(x)
            var = m2 / n
            var[var > LARGEST[wide.itemsize]] = np.inf
            for running, batch in zip(self.running, (mean, var * (n / (n - 1))), strict=True):
                if running is not None:
                    running[...] = (1 - self.momentum) * running + self.momentum * batch
            if self.batches is not None:
                self.batches += 1
        else:
            mean, var = np.zeros(x.shape[-1]), np.ones(x.shape[-1])
        inv_std = (1 / np.sqrt(var + self.eps)).astype(wide)
        scale = inv_std if gamma is None else gamma.astype(wide) * inv_std
        center = mean.astype(wide) if cpu_batch.far(mean, var) else np.zeros_like(inv_std)
        shift = (center - mean) * scale + (0 if beta is None else beta.astype(np.float64))
        y, self.positive = cpu_batch.normalise(x, center, scale, shift.astype(wide),
                                               bool(self.activation), keep=any(self.needs))
        self.save(x, gamma, mean, inv_std)
        return y

    def save(self, x: Any, gamma: Any, mean: Any, inv_std: Any, recomputes: bool = False) -> None:
        """Keep what backward will want; x where there are sums over the batch to be taken."""
        if any(self.needs):
            wanted = self.needs[1] or self.needs[2] or self.training or recomputes
            self.x = x if wanted else None
            self.gamma, self.mean, self.inv_std = gamma, mean, inv_std
        self.running, self.batches = (None, None), None

    @np.errstate(all="ignore")
    def backward_cpu(self, gy: Any) -> tuple:
        wide, n = accumulator(gy.dtype), max(1, math.prod(gy.shape[:-1]))
        gx: Any = memory.empty(gy.shape, gy.dtype) if self.needs[0] or self.activation else None
        gbeta, ggamma, center = *np.zeros((2, gy.shape[-1])), self.mean.astype(wide)
        if self.x is not None and gy.size:
            gbeta, along = cpu_batch.sums(gy, self.x, center, self.positive, gx)
            ggamma = (along - (self.mean - center) * gbeta) * self.inv_std
            if self.activation:
                gy, self.positive = gx, None  # what the ReLU lets pass is there already
        if self.needs[0]:
            scale = self.inv_std if self.gamma is None else self.gamma.astype(wide) * self.inv_std
            slope = -ggamma / n * self.inv_std.astype(np.float64)
            if not cpu_batch.far(self.mean, 1 / self.inv_std.astype(np.float64) ** 2):
                center = np.zeros_like(center)
            cpu_batch.pull(gy, self.x if self.training else None, center, scale, slope,
                           -gbeta / n - slope * (self.mean - center), self.positive, gx)
        return (gx if self.needs[0] else None,
                ggamma.astype(gy.dtype) if self.needs[1] else None,
                gbeta.astype(gy.dtype) if self.needs[2] else None)

    # -- GPU: kernels/norm/batch_norm.cu ----------------------------------------------------

    def forward_gpu(self, x: Any, gamma: Any, beta: Any, residual: Any = None,
                    moments: Any = None, moment_rows: int = 0) -> Any:
        """Return y.

        ``moments`` replaces a pass over x: means and variances of slices of x.reshape(-1, C), each
        (slices, C) in the accumulator dtype. A slice has ``moment_rows`` rows, the last one fewer.
        """
        cp, C, wide = cupy(), x.shape[-1], accumulator(x.dtype)
        V = row_partition.channels(x, gamma, beta, residual)
        cut = row_partition.partition(x.shape, V, x.dtype.itemsize)
        y, mean, inv_std = cp.empty(x.shape, x.dtype), cp.empty(C, wide), cp.empty(C, wide)
        if not self.training:
            self.kernel("batch_norm_fixed", x, V)(C, *self.running, mean, inv_std, C, self.eps)
        elif cut.rows:
            if moments is None:
                moments, moment_rows = self.moments(x, cut, V), cut.per
            self.statistics(moments, moment_rows, cut.rows, mean, inv_std, x, V)
        self.kernel("batch_norm_forward", x, V)(
            cut.threads(V), x, gamma, beta, mean, inv_std, residual, y, *cut)
        self.save(x, gamma, mean, inv_std, recomputes=self.activation is not None)
        if any(self.needs) and self.activation:
            self.beta, self.residual = beta, residual
        return y

    def moments(self, x: Any, cut: row_partition.Partition, V: int) -> Any:
        """Return means and variances of the slices of x, each (S, C)."""
        both = cupy().empty((2, cut.S, cut.C), accumulator(x.dtype))
        self.kernel("batch_norm_moments", x, V)(cut.threads(V), x, both[0], both[1], *cut)
        return both

    def statistics(self, moments: Any, each: int, count: int, mean: Any, inv_std: Any, x: Any,
                   V: int) -> None:
        """Write the statistics of ``count`` rows to mean and inv_std; update the running ones."""
        (slices, C), lanes = moments[0].shape, row_partition.totals(x.shape[-1])
        if slices > SLICES:
            few = row_partition.Partition(slices, C, -(-slices // MERGED), MERGED, lanes)
            both = cupy().empty((2, few.S, C), mean.dtype)
            self.kernel("batch_norm_merge", x, V)(
                few.threads(1), moments[0], moments[1], both[0], both[1], count, slices, each,
                *few[1:])
            moments, slices, each = both, few.S, each * MERGED
        self.kernel("batch_norm_statistics", x, V)(
            row_partition.Partition(slices, C, 1, slices, lanes).threads(1), *moments, mean,
            inv_std, *self.running, self.batches, count, each, C, slices, lanes, self.momentum,
            self.eps, LARGEST[mean.itemsize])

    def backward_gpu(self, gy: Any) -> tuple:
        cp, C = cupy(), gy.shape[-1]
        activation, wide = self.activation, accumulator(gy.dtype)
        gx = cp.empty(gy.shape, gy.dtype) if self.needs[0] else None
        gbeta = ggamma = None
        totals: Any = (None, None)
        if self.residual is not None or self.training or self.needs[1] or self.needs[2]:
            gz = cp.empty(gy.shape, gy.dtype) if self.residual is not None else None
            totals = cp.empty((2, C), wide)
            ggamma, gbeta = cp.empty(C, gy.dtype), cp.empty(C, gy.dtype)
            self.sums(gy, gz, totals, ggamma, gbeta)
            if gz is not None:
                gy, activation = gz, None
        if gx is not None:
            x = self.x if self.training or activation else None
            V = row_partition.channels(gy, x, self.gamma, self.beta)
            cut = row_partition.partition(gy.shape, V, gy.dtype.itemsize)
            self.kernel("batch_norm_backward", gy, V, activation)(
                cut.threads(V), gy, x, self.gamma, self.beta, self.mean, self.inv_std,
                *(totals if self.training else (None, None)), gx, *cut)
        all_four = (gx, ggamma if self.needs[1] else None, gbeta if self.needs[2] else None, gy)
        return all_four[:len(self.needs)]

    def sums(self, gy: Any, gz: Any, totals: Any, ggamma: Any, gbeta: Any) -> None:
        """Write the sums over the batch, in both dtypes, and the activation's gradient into gz."""
        V = row_partition.channels(gy, self.x, self.gamma, self.beta, self.residual)
        cut = row_partition.partition(gy.shape, V, gy.dtype.itemsize)
        lanes = row_partition.totals(cut.C)
        slices = cupy().empty((2, cut.S, cut.C), totals.dtype)
        if not cut.rows:
            for a in (totals, ggamma, gbeta):
                a.fill(0)
            return
        self.kernel("batch_norm_backward_sums", gy, V)(
            cut.threads(V), gy, self.x, self.gamma, self.beta, self.mean, self.inv_std,
            self.residual, gz, slices[0], slices[1], *cut)
        self.kernel("batch_norm_backward_totals", gy, V)(
            row_partition.Partition(cut.S, cut.C, 1, cut.S, lanes).threads(1), *slices,
            self.inv_std, totals[0], totals[1], ggamma, gbeta, cut.C, cut.S, lanes)

    def kernel(self, function: str, x: Any, V: int, activation: str | None = "its own") -> Any:
        """The CUDA function, compiled for arrays like x."""
        name = self.activation if activation == "its own" else activation
        return kernels.kernel("norm/batch_norm.cu", function, T=x.dtype, BLOCK=kernels.BLOCK, V=V,
                              ACTIVATION=name or "none")
