"""Activations, arithmetic, dropout: ops that compute each element by itself."""

from gpuconv.ops.elementwise import activation
from gpuconv.ops.elementwise.activation import *  # noqa: F403  the functions of the table
from gpuconv.ops.elementwise.activation import (
    ACTIVATIONS,
    FUNCTIONS,
    activated,
    check_activation,
    fused_activation,
    saves_result,
)
from gpuconv.ops.elementwise.arithmetic import add, div, mul, sub
from gpuconv.ops.elementwise.bias_relu import bias_relu
from gpuconv.ops.elementwise.cpu_relu import masked, nonzero
from gpuconv.ops.elementwise.dropout import dropout
from gpuconv.ops.elementwise.function import Elementwise

__all__ = [
    "ACTIVATIONS", "FUNCTIONS", "Elementwise", "activated", "add", "bias_relu", "check_activation",
    "div", "dropout", "fused_activation", "masked", "mul", "nonzero", "saves_result", "sub",
]
__all__ += activation.__all__
