"""Activations, arithmetic, dropout: ops that compute each element by itself."""

from gpuconv.ops.elementwise.activation import (
    ACTIVATIONS,
    GELU,
    ReLU,
    activated,
    check_activation,
    fused_relu,
    gelu,
    relu,
    sigmoid,
    tanh,
)
from gpuconv.ops.elementwise.arithmetic import add, div, exp, log, mul, neg, sub
from gpuconv.ops.elementwise.bias_relu import bias_relu
from gpuconv.ops.elementwise.cpu_relu import masked, nonzero
from gpuconv.ops.elementwise.dropout import dropout

__all__ = [
    "ACTIVATIONS", "GELU", "ReLU", "activated", "add", "bias_relu", "check_activation", "div",
    "dropout", "exp", "fused_relu", "gelu", "log", "masked", "mul", "neg", "nonzero", "relu",
    "sigmoid", "sub", "tanh",
]
