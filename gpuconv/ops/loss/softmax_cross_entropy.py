"""Softmax and cross-entropy in one: the loss of a classifier, from its raw scores.

    logp[n,k]  = z[n,k] - log sum_j exp(z[n,j])         the row's maximum is taken off first
    target     = (1 - s) onehot(label) + s/K            s = label_smoothing
    loss[n]    = -sum_k target[n,k] logp[n,k]
    gz[n,k]    = (exp(logp[n,k]) - target[n,k]) gy[n]   gy/N for the mean

Softmax and logarithm cancel: nothing overflows, and the gradient is a difference of probabilities.
Forward writes that difference while it has the row in hand; backward only scales it.

Source: CS231n, "Linear classification: softmax classifier"; Szegedy, Vanhoucke, Ioffe, Shlens,
Wojna, "Rethinking the Inception architecture for computer vision", CVPR 2016, section 7.
"""

from typing import Any

import numpy as np

from gpuconv import backend, kernels, threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import (
    Array,
    accumulator,
    array_device,
    cupy,
    error_word,
    is_array,
    is_gpu,
)
from gpuconv.checks import check_choice, check_number, no_array
from gpuconv.ops.checks import check_arrays

REDUCTIONS = "mean", "sum", "none"
WARPS = 8         # GPU: warps that share a long row; a power of two
SMALL = 1024      # GPU: threads of the one block that does a small batch
FEW = 20480       # logits of a small batch, 2,000 of CIFAR-10, and
FEW_CLASSES = 32  # of a row that one thread reads


def softmax_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0,
                          reduction: str = "mean") -> Array:
    """Negative log-probability of the labels under softmax(logits).

    Args:
        logits: Tensor or array (N, K), any float dtype: scores, not probabilities.
        labels: integer array (N,) on the same device, 0 .. K-1.
        label_smoothing: probability that is spread over all K classes, 0 to 1.
        reduction: "mean" over the batch, "sum", or "none" for each sample's own loss.

    Returns:
        Shape (), or (N,) for "none"; float32, but float64 for float64 logits; a Tensor if logits
        are one. The mean of an empty batch is NaN, as in PyTorch, its gradient (0, K).

    Raises:
        ValueError: a label is not in 0 .. K-1 (on the GPU: once the loss comes to the CPU, until
            then it is NaN), a shape, the smoothing or the reduction is wrong.
        TypeError: labels are not integers, logits not floating-point, or CPU meets GPU.

    >>> softmax_cross_entropy(np.zeros((2, 4)), np.array([0, 3])).round(4)
    np.float64(1.3863)
    """
    check_arrays("softmax_cross_entropy", logits=logits)
    label_array = labels.data if isinstance(labels, Tensor) else labels
    if not is_array(label_array):
        raise TypeError(f"softmax_cross_entropy: labels is {no_array(labels, 'labels')}")
    backend.check_arrays("softmax_cross_entropy", labels=label_array,
                         logits=logits.data if isinstance(logits, Tensor) else logits)
    if label_array.dtype.kind not in "iu":
        raise TypeError(f"softmax_cross_entropy: labels are {label_array.dtype}, wanted integers")
    if len(logits.shape) != 2 or not logits.shape[1]:
        raise ValueError(f"softmax_cross_entropy: logits have shape {logits.shape}, wanted (N, K)")
    if tuple(label_array.shape) != tuple(logits.shape[:1]):
        raise ValueError(f"softmax_cross_entropy: labels have shape {label_array.shape}, wanted "
                         f"({logits.shape[0]},) for logits {logits.shape}")
    check_number("softmax_cross_entropy", "label_smoothing", label_smoothing, least=0, most=1)
    check_choice("softmax_cross_entropy", "reduction", reduction, REDUCTIONS)
    return SoftmaxCrossEntropy(label_smoothing, reduction)(logits, label_array)


class SoftmaxCrossEntropy(Op):
    """Saves: ``gz`` (N, K) in the accumulator dtype, if logits want a gradient: softmax - target.

    In the accumulator dtype, because a loss scale or 1/N is still to come: float16 would have
    flushed small probabilities to zero by then.
    """

    depends_on, multiply_adds = "all", 0
    gz: Any

    def __init__(self, label_smoothing: float, reduction: str):
        self.smoothing, self.reduction = float(label_smoothing), reduction

    # -- CPU -------------------------------------------------------------------------

    def forward_cpu(self, logits: Any, labels: Any) -> Any:
        N, K = logits.shape
        outside = np.flatnonzero((labels < 0) | (labels >= K))
        if outside.size:
            raise ValueError(f"softmax_cross_entropy: label {labels[outside[0]]} is outside "
                             f"0..{K - 1} (at index {outside[0]})")
        wide = accumulator(logits.dtype)
        self.dtype = logits.dtype
        self.gz = np.empty((N, K), wide) if self.needs[0] else None
        on, off = wide.type(1 - self.smoothing), wide.type(self.smoothing / K)
        loss = np.empty(N, wide)

        def work(piece: slice) -> None:
            z = logits[piece].astype(wide)
            mine = np.arange(len(z)), labels[piece]
            with np.errstate(invalid="ignore", over="ignore"):   # inf - inf is NaN, far away -inf
                z -= z.max(axis=1, keepdims=True)
                p = np.exp(z, out=self.gz[piece] if self.gz is not None else None)
                total = p.sum(axis=1, keepdims=True)
                log_total = np.log(total[:, 0])
                loss[piece] = on * (log_total - z[mine])
                if self.smoothing:
                    loss[piece] += off * (K * log_total - z.sum(axis=1))
                if self.gz is not None:
                    p /= total
                    p -= off
                    p[mine] -= on

        threads.each(work, threads.chunks(N, 4 * K * wide.itemsize))
        if self.reduction == "none":
            return loss
        with np.errstate(invalid="ignore"):                      # 0/0 of an empty batch, inf - inf
            return loss.sum() / wide.type(N if self.reduction == "mean" else 1)

    def backward_cpu(self, gy: Any) -> tuple:
        N, K = self.gz.shape
        scale = (gy if self.reduction != "mean" else gy / gy.dtype.type(max(1, N))).reshape(-1, 1)
        with np.errstate(all="ignore"):                          # what overflows 16 bits
            return (np.multiply(self.gz, scale).astype(self.dtype, copy=False), None)

    # -- GPU: kernels/loss/softmax_cross_entropy.cu -----------------------------------------

    def forward_gpu(self, logits: Any, labels: Any) -> Any:
        cp = cupy()
        N, K = logits.shape
        wide = accumulator(logits.dtype)
        self.dtype, labels = logits.dtype, _narrow(labels)
        self.gz = cp.empty((N, K), wide) if self.needs[0] else None
        y, mean = cp.empty((), wide), self.reduction == "mean"
        if self.reduction != "none" and K <= FEW_CLASSES and N * K <= FEW:
            _kernel("small", self.dtype, labels.dtype)(
                SMALL, logits, labels, y, self.gz, error_word(), N, K, self.smoothing, mean,
                block=SMALL)
            return y
        loss = cp.empty(N, wide)
        warps = 1 if K <= 1024 else WARPS  # per row
        _kernel("forward", self.dtype, labels.dtype, warps)(
            N * warps * 32, logits, labels, loss, self.gz, error_word(), N, K, self.smoothing)
        if self.reduction == "none":
            return loss
        _kernel("sum", self.dtype)(kernels.BLOCK, loss, y, N, mean)
        return y

    def backward_gpu(self, gy: Any) -> tuple:
        N, K = self.gz.shape
        gx = cupy().empty((N, K), self.dtype)
        each = self.reduction == "none"
        _kernel("backward", self.dtype)(
            gx.size if each else -(-gx.size // 4), self.gz, gy, gx, N, K,
            self.reduction == "mean", each)
        return gx, None


def count_correct(logits: Array, labels: Array, out: Array) -> None:
    """Write how many rows of logits have their largest number at the label.

    Of equal ones the first counts; a row with a NaN, and a label outside 0 .. K-1, is wrong. One
    small launch on the GPU, with nothing to wait for: a captured step may hold it.

    Args:
        logits: (N, K) array of any float dtype.
        labels: (N,) integers on the same device.
        out: () or (1,) int64 on the same device: written.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices are not these.

    >>> out = np.zeros((), np.int64)
    >>> count_correct(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([1, 1]), out)
    >>> out.item()
    1
    """
    backend.check_arrays("count_correct", logits=logits, labels=labels, out=out)
    if labels.dtype.kind not in "iu" or out.dtype != np.int64:
        raise TypeError(f"count_correct: labels are {labels.dtype}, out is {out.dtype}, wanted "
                        "integers, and int64")
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or out.size != 1:
        raise ValueError(f"count_correct: logits have shape {logits.shape}, labels {labels.shape}, "
                         f"out {out.shape}, wanted (N, K), (N,) and (1,)")
    N, K = logits.shape
    if is_gpu(logits):
        with array_device(logits):
            logits, labels = cupy().ascontiguousarray(logits), _narrow(labels)
            _kernel("count", logits.dtype, labels.dtype)(
                SMALL, logits, labels, out, N, K, 1 if K <= FEW_CLASSES else 32, block=SMALL)
        return
    wide = logits.astype(accumulator(logits.dtype), copy=False)
    whole = ~np.isnan(wide).any(axis=1)
    out[...] = np.sum((wide.argmax(axis=1) == labels) & whole) if K else 0


def _narrow(labels: Array) -> Array:
    """Labels as the kernels take them: contiguous int32 or int64."""
    if labels.dtype not in (np.int32, np.int64):
        labels = labels.astype(np.int64)
    return labels if labels.flags.c_contiguous else labels.copy()


def _kernel(function: str, dtype: np.dtype, label: Any = np.int64, warps: int = 1) -> Any:
    """The CUDA function, compiled for logits and labels of these dtypes."""
    return kernels.kernel("loss/softmax_cross_entropy.cu", f"softmax_cross_entropy_{function}",
                          T=dtype,
                          LABEL=np.dtype(label), WARPS=warps, BLOCK=kernels.BLOCK)
