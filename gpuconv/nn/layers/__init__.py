"""Layers, in the families of ``gpuconv.ops``."""

from gpuconv.nn.layers import elementwise
from gpuconv.nn.layers.conv import Conv2d
from gpuconv.nn.layers.elementwise import *  # noqa: F403
from gpuconv.nn.layers.elementwise import ACTIVATION_LAYERS
from gpuconv.nn.layers.matmul import Linear
from gpuconv.nn.layers.norm import BatchNorm2d
from gpuconv.nn.layers.pool import AvgPool2d, GlobalAvgPool2d, GlobalMaxPool2d, MaxPool2d
from gpuconv.nn.layers.shape import Flatten

__all__ = ["ACTIVATION_LAYERS", "AvgPool2d", "BatchNorm2d", "Conv2d", "Flatten", "GlobalAvgPool2d",
           "GlobalMaxPool2d", "Linear", "MaxPool2d"]
__all__ += elementwise.__all__
