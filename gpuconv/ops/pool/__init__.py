"""Pooling: windows slid over images, and whole images."""

from gpuconv.ops.pool.avg_pool import AvgPool2d, avg_pool2d
from gpuconv.ops.pool.global_pool import global_avg_pool2d, global_max_pool2d
from gpuconv.ops.pool.max_pool import MaxPool2d, max_pool2d
from gpuconv.ops.pool.pool_window import pooling

__all__ = [
    "AvgPool2d", "MaxPool2d", "avg_pool2d", "global_avg_pool2d", "global_max_pool2d",
    "max_pool2d", "pooling",
]
