"""Normalisation."""

from gpuconv.ops.norm.batch_norm import BatchNorm, batch_norm, normaliser

__all__ = [
    "BatchNorm", "batch_norm", "normaliser",
]
