"""Layers, in the families of ``gpuconv.ops``."""

from gpuconv.nn.layers.conv import Conv2d
from gpuconv.nn.layers.elementwise import GELU, Dropout, Identity, ReLU, Scale, Sigmoid, Tanh
from gpuconv.nn.layers.matmul import Linear
from gpuconv.nn.layers.norm import BatchNorm2d
from gpuconv.nn.layers.pool import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from gpuconv.nn.layers.shape import Flatten

__all__ = ["GELU", "AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout", "Flatten", "GlobalAvgPool2d",
           "GlobalMaxPool2d", "Identity", "Linear", "MaxPool2d", "ReLU", "Scale", "Sigmoid", "Tanh"]
