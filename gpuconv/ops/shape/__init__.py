"""Ops that move elements: reshape, transpose, slices, padding."""

from gpuconv.ops.shape.pad import MODES, Pad2d, pad2d
from gpuconv.ops.shape.reshape import Reshape, check_axes, flatten, getitem, reshape, transpose

__all__ = [
    "MODES", "Pad2d", "Reshape", "check_axes", "flatten", "getitem", "pad2d", "reshape",
    "transpose",
]
