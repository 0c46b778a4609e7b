"""One operation per file; here are their public names."""

from gpuconv.ops.activation import gelu, relu, sigmoid, tanh
from gpuconv.ops.arithmetic import add, div, exp, log, matmul, mul, neg, sub
from gpuconv.ops.bias_relu import bias_relu
from gpuconv.ops.linear import linear
from gpuconv.ops.reduction import max_ as max
from gpuconv.ops.reduction import mean
from gpuconv.ops.reduction import sum_ as sum
from gpuconv.ops.shape import flatten, reshape, transpose
from gpuconv.ops.softmax import log_softmax, softmax

__all__ = ["add", "bias_relu", "div", "exp", "flatten", "gelu", "linear", "log", "log_softmax",
           "matmul", "max", "mean", "mul", "neg", "relu", "reshape", "sigmoid", "softmax", "sub",
           "sum", "tanh", "transpose"]
