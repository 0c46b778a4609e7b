"""Sums, means and maxima over axes; sums of the columns of a matrix."""

from gpuconv.ops.reduce.reduction import Reduction, max_, mean, sum_

__all__ = [
    "Reduction", "max_", "mean", "sum_",
]
