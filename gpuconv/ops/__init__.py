"""Operations, with gradients, on arrays of NumPy and CuPy; here are their public names.

Arrays in give arrays out; any Tensor in, a Tensor out.
"""

from gpuconv.ops.conv import (
    col2im,
    conv2d,
    conv_batch_norm,
    conv_max_pool,
    im2col,
    load_table,
    tuned,
)
from gpuconv.ops.elementwise import activation, add, bias_relu, div, dropout, mul, sub
from gpuconv.ops.elementwise.activation import *  # noqa: F403  the functions of the table
from gpuconv.ops.loss import log_softmax, softmax, softmax_cross_entropy
from gpuconv.ops.matmul import linear, matmul
from gpuconv.ops.norm import batch_norm
from gpuconv.ops.pool import avg_pool2d, global_avg_pool2d, global_max_pool2d, max_pool2d
from gpuconv.ops.reduce import max_ as max
from gpuconv.ops.reduce import mean
from gpuconv.ops.reduce import sum_ as sum
from gpuconv.ops.shape import flatten, getitem, pad2d, reshape, transpose
from gpuconv.recompute import recompute

__all__ = [
    "add", "avg_pool2d", "batch_norm", "bias_relu", "col2im", "conv2d", "conv_batch_norm",
    "conv_max_pool", "div", "dropout", "flatten", "getitem", "global_avg_pool2d",
    "global_max_pool2d", "im2col", "linear", "load_table", "log_softmax", "matmul", "max",
    "max_pool2d", "mean", "mul", "pad2d", "recompute", "reshape", "softmax",
    "softmax_cross_entropy", "sub", "sum", "transpose", "tuned",
]
__all__ += activation.__all__
