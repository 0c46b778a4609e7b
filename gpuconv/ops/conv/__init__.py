"""Convolution: the op, its fused forms, im2col, and the engines that compute it."""

from gpuconv.ops.conv.conv2d import Conv2d, conv2d
from gpuconv.ops.conv.conv_batch_norm import conv_batch_norm
from gpuconv.ops.conv.conv_max_pool import HALVES, conv_max_pool
from gpuconv.ops.conv.gpu_dispatch import check_precision
from gpuconv.ops.conv.im2col import Col2im, Im2col, col2im, im2col
from gpuconv.ops.conv.tuning_table import Table, load_table, tuned

__all__ = [
    "Col2im", "Conv2d", "HALVES", "Im2col", "Table", "check_precision", "col2im", "conv2d",
    "conv_batch_norm", "conv_max_pool", "im2col", "load_table", "tuned",
]
