"""Softmax and cross-entropy in one: the loss of a classifier, from its raw scores z.

    target[n,k] = (1 - s) onehot(label[n])[k] + s/K              s = label_smoothing
    loss[n]     = -sum over k of target[n,k] * log_softmax(z)[n,k]
    gz[n,k]     = gy[n] * (softmax(z)[n,k] - target[n,k])        gy/N for the mean

A class whose target is 0 adds nothing, however small its probability.

Source: CS231n, "Linear classification: softmax classifier"; Szegedy, Vanhoucke, Ioffe, Shlens,
Wojna, "Rethinking the Inception architecture for computer vision", CVPR 2016, section 7.
"""

from gpuconv.backend import Array, get_array_module
from gpuconv.reference.softmax import log_softmax, softmax


def softmax_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0,
                          reduction: str = "mean") -> Array:
    """Return the negative log-probability of the labels under softmax(logits).

    Args:
        logits: scores (N, K).
        labels: integers (N,), 0 .. K-1.
        label_smoothing: probability that is spread over all K classes.
        reduction: "mean" over the batch, "sum", or "none" for the loss of each sample (N,).

    >>> import numpy as np
    >>> softmax_cross_entropy(np.zeros((2, 4)), np.array([0, 3])).round(4)
    np.float64(1.3863)
    """
    t = target(logits, labels, label_smoothing)
    logp = get_array_module(t).where(t == 0, 0, log_softmax(logits))  # 0 log 0 is 0
    loss = -(t * logp).sum(axis=1)
    return loss if reduction == "none" else loss.sum() / (len(loss) if reduction == "mean" else 1)


def softmax_cross_entropy_backward(gy: Array, logits: Array, labels: Array, *,
                                   label_smoothing: float = 0.0,
                                   reduction: str = "mean") -> Array:
    """Return the gradient (N, K) of ``softmax_cross_entropy`` with respect to the logits.

    >>> import numpy as np
    >>> softmax_cross_entropy_backward(np.array(1.0), np.zeros((1, 2)), np.array([0]))
    array([[-0.5,  0.5]])
    """
    gy = gy.reshape(-1, 1) / (len(logits) if reduction == "mean" else 1)  # (N, 1) or (1, 1)
    return gy * (softmax(logits) - target(logits, labels, label_smoothing))


def target(logits: Array, labels: Array, label_smoothing: float) -> Array:
    """Return the wanted probabilities (N, K).

    >>> import numpy as np
    >>> target(np.zeros((1, 2)), np.array([0]), 0.2)
    array([[0.9, 0.1]])
    """
    K = logits.shape[1]
    onehot = labels[:, None] == get_array_module(logits).arange(K)  # (N, K)
    return onehot.astype(logits.dtype) * (1 - label_smoothing) + label_smoothing / K
