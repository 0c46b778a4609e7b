"""Operations, with gradients, on arrays of NumPy and CuPy; here are their public names.

Arrays in give arrays out; any Tensor in, a Tensor out.
"""

from gpuconv.ops.activation import gelu, relu, sigmoid, tanh
from gpuconv.ops.arithmetic import add, div, exp, log, mul, neg, sub
from gpuconv.ops.avg_pool import avg_pool2d
from gpuconv.ops.batch_norm import batch_norm
from gpuconv.ops.bias_relu import bias_relu
from gpuconv.ops.checkpoint import checkpoint
from gpuconv.ops.conv import conv2d
from gpuconv.ops.conv_batch_norm import conv_batch_norm
from gpuconv.ops.conv_max_pool import conv_max_pool
from gpuconv.ops.dropout import dropout
from gpuconv.ops.global_pool import global_avg_pool2d, global_max_pool2d
from gpuconv.ops.gpu.table import load_table, tuned
from gpuconv.ops.im2col import col2im, im2col
from gpuconv.ops.linear import linear
from gpuconv.ops.matmul import matmul
from gpuconv.ops.max_pool import max_pool2d
from gpuconv.ops.pad import pad2d
from gpuconv.ops.reduction import max_ as max
from gpuconv.ops.reduction import mean
from gpuconv.ops.reduction import sum_ as sum
from gpuconv.ops.shape import flatten, getitem, reshape, transpose
from gpuconv.ops.softmax import log_softmax, softmax
from gpuconv.ops.softmax_cross_entropy import softmax_cross_entropy

__all__ = [
    "add", "avg_pool2d", "batch_norm", "bias_relu", "checkpoint", "col2im", "conv2d",
    "conv_batch_norm", "conv_max_pool", "div", "dropout", "exp", "flatten", "gelu", "getitem",
    "global_avg_pool2d", "global_max_pool2d", "im2col", "linear", "load_table", "log",
    "log_softmax", "matmul", "max", "max_pool2d", "mean", "mul", "neg", "pad2d", "relu",
    "reshape", "sigmoid", "softmax", "softmax_cross_entropy", "sub", "sum", "tanh", "transpose",
    "tuned",
]
