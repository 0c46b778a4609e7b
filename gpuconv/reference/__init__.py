"""Definitions of all ops, in short and slow array code that runs on NumPy and CuPy alike.

Read it to learn what an op does: each file has the formulas, and code that reads like them. The
fast code of ``gpuconv.ops`` is tested against it. Begin with ``window``, ``im2col`` and
``conv2d_im2col``, the algorithm of the course notes; then ``conv2d``, the definition itself.

    y = reference.conv2d(x, w, b, stride=2)
    gx, gw, gb = reference.conv2d_backward(gy, x, w, b, stride=2)

Each function has the name of its op and takes plain arrays. ``f_backward`` takes the gradient of
the result, then the arguments of ``f`` that matter for the gradient, and returns a gradient for
each array. All functions compute in the dtype of their arrays; they check no arguments.
"""

from gpuconv.reference import activation
from gpuconv.reference.activation import *  # noqa: F403  the functions of the table
from gpuconv.reference.arithmetic import (
    add,
    add_backward,
    div,
    div_backward,
    exp,
    exp_backward,
    log,
    log_backward,
    mul,
    mul_backward,
    neg,
    neg_backward,
    sub,
    sub_backward,
)
from gpuconv.reference.conv2d import conv2d, conv2d_backward
from gpuconv.reference.conv2d_im2col import (
    conv2d_im2col,
    conv2d_im2col_backward,
    conv2d_im2col_dgrad,
    conv2d_im2col_wgrad,
)
from gpuconv.reference.dropout import dropout, dropout_backward
from gpuconv.reference.fused import (
    bias_relu,
    bias_relu_backward,
    conv_batch_norm,
    conv_batch_norm_backward,
    conv_max_pool,
    conv_max_pool_backward,
)
from gpuconv.reference.im2col import col2im, col2im_backward, im2col, im2col_backward
from gpuconv.reference.loss import softmax_cross_entropy, softmax_cross_entropy_backward
from gpuconv.reference.matmul import linear, linear_backward, matmul, matmul_backward
from gpuconv.reference.norm import batch_norm, batch_norm_backward
from gpuconv.reference.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    global_max_pool2d,
    global_max_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from gpuconv.reference.reduce import max_ as max
from gpuconv.reference.reduce import max_backward, mean, mean_backward, sum_backward
from gpuconv.reference.reduce import sum_ as sum
from gpuconv.reference.shape import (
    flatten,
    flatten_backward,
    getitem,
    getitem_backward,
    pad2d,
    pad2d_backward,
    reshape,
    reshape_backward,
    transpose,
    transpose_backward,
)
from gpuconv.reference.softmax import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)

__all__ = [
    "add", "add_backward", "avg_pool2d", "avg_pool2d_backward", "batch_norm",
    "batch_norm_backward", "bias_relu", "bias_relu_backward", "col2im", "col2im_backward",
    "conv2d", "conv2d_backward", "conv2d_im2col", "conv2d_im2col_backward",
    "conv2d_im2col_dgrad", "conv2d_im2col_wgrad", "conv_batch_norm",
    "conv_batch_norm_backward", "conv_max_pool", "conv_max_pool_backward", "div",
    "div_backward", "dropout", "dropout_backward", "exp", "exp_backward", "flatten",
    "flatten_backward", "getitem", "getitem_backward", "global_avg_pool2d",
    "global_avg_pool2d_backward", "global_max_pool2d", "global_max_pool2d_backward", "im2col",
    "im2col_backward", "linear", "linear_backward", "log", "log_backward", "log_softmax",
    "log_softmax_backward", "matmul", "matmul_backward", "max", "max_backward", "max_pool2d",
    "max_pool2d_backward", "mean", "mean_backward", "mul", "mul_backward", "neg",
    "neg_backward", "pad2d", "pad2d_backward", "reshape", "reshape_backward", "softmax",
    "softmax_backward", "softmax_cross_entropy", "softmax_cross_entropy_backward", "sub",
    "sub_backward", "sum", "sum_backward", "transpose", "transpose_backward",
]
__all__ += activation.__all__
