"""Convolution: the op, its fused forms, im2col, and the engines that compute it."""

from gpuconv.ops.conv.conv2d import Conv2d, conv2d
from gpuconv.ops.conv.conv_batch_norm import conv_batch_norm
from gpuconv.ops.conv.conv_max_pool import HALVES, conv_max_pool
from gpuconv.ops.conv.cpu_dispatch import most_sums
from gpuconv.ops.conv.gpu_dispatch import (
    default_algorithm,
    wgrad_observed,
    wgrad_workspace,
)
from gpuconv.ops.conv.gpu_dispatch import dgrad as conv_dgrad_gpu
from gpuconv.ops.conv.gpu_dispatch import forward as conv_forward_gpu
from gpuconv.ops.conv.gpu_dispatch import wgrad as conv_wgrad_gpu
from gpuconv.ops.conv.im2col import Col2im, Im2col, col2im, im2col
from gpuconv.ops.conv.tuning_table import Table, load_table, tuned

__all__ = [
    "Col2im", "Conv2d", "HALVES", "Im2col", "Table", "col2im", "conv2d", "conv_batch_norm",
    "conv_dgrad_gpu", "conv_forward_gpu", "conv_max_pool", "conv_wgrad_gpu", "default_algorithm",
    "im2col", "load_table", "most_sums", "tuned", "wgrad_observed", "wgrad_workspace",
]
