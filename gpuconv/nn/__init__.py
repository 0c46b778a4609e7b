"""Layers, and modules made of them; here are their public names."""

from gpuconv.nn import fusion, init
from gpuconv.nn.buffers import SavedBuffers
from gpuconv.nn.containers import ModuleList, Residual, Sequential
from gpuconv.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    Linear,
    MaxPool2d,
    elementwise,
)
from gpuconv.nn.layers.elementwise import *  # noqa: F403  activations and others
from gpuconv.nn.module import Module
from gpuconv.nn.ranges import nvtx_ranges
from gpuconv.nn.summary import Summary, summary

__all__ = ["AvgPool2d", "BatchNorm2d", "Conv2d", "Flatten", "GlobalAvgPool2d", "GlobalMaxPool2d",
           "Linear", "MaxPool2d", "Module", "ModuleList", "Residual", "SavedBuffers", "Sequential",
           "Summary", "fusion", "init", "nvtx_ranges", "summary"]
__all__ += elementwise.__all__
