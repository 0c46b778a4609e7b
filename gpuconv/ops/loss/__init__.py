"""Softmax, and losses."""

from gpuconv.ops.loss.softmax import log_softmax, softmax
from gpuconv.ops.loss.softmax_cross_entropy import count_correct, softmax_cross_entropy

__all__ = [
    "count_correct", "log_softmax", "softmax", "softmax_cross_entropy",
]
