"""Layers, and modules made of them; here are their public names."""

from gpuconv.nn import fusion, init
from gpuconv.nn.buffers import SavedBuffers
from gpuconv.nn.containers import ModuleList, Residual, Sequential
from gpuconv.nn.layers import (
    GELU,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Scale,
    Sigmoid,
    Tanh,
)
from gpuconv.nn.module import Module
from gpuconv.nn.ranges import nvtx_ranges
from gpuconv.nn.summary import Summary, summary

__all__ = ["GELU", "AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout", "Flatten", "GlobalAvgPool2d",
           "GlobalMaxPool2d", "Identity", "Linear", "MaxPool2d", "Module", "ModuleList", "ReLU",
           "Residual", "SavedBuffers", "Scale", "Sequential", "Sigmoid", "Summary", "Tanh",
           "fusion", "init", "nvtx_ranges", "summary"]
