"""The table of elementwise functions: activations, and exp, log and neg.

    relu     y = max(x, 0)         gx = gy where y > 0, else 0
    gelu     y = x * F(x)          gx = gy * (F(x) + x * f(x))
    sigmoid  y = 1 / (1 + e^-x)    gx = gy * y * (1 - y)
    tanh     y = tanh(x)           gx = gy * (1 - y*y)
    silu     y = x * s             gx = gy * s * (1 + x * (1 - s)),   s = 1 / (1 + e^-x)
    exp      y = e^x               gx = gy * y
    log      y = ln(x)             gx = gy / x
    neg      y = -x                gx = -gy

F is the distribution of the normal law, F(x) = (1 + erf(x / sqrt(2))) / 2, and f its density.
NaN stays NaN in all of them. Where x is NaN, relu passes its gradient on, as PyTorch does.

An entry of the table is a function and its op (see function.py). A functor of the same name in
kernels/elementwise/functors.cuh computes it on the GPU, also in the epilogues of other ops. Those
ops, layers, tests and benches read the table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import memory, threads
from gpuconv.backend import Array, accumulator
from gpuconv.checks import check_choice
from gpuconv.ops.elementwise import cpu_gelu
from gpuconv.ops.elementwise.cpu_relu import masked, nonzero, rectify
from gpuconv.ops.elementwise.function import Elementwise
from gpuconv.ops.engine.elements import wide, write

__all__ = ["exp", "gelu", "log", "neg", "relu", "sigmoid", "silu", "tanh"]


def relu(x: Array) -> Array:
    """Rectifier: ``y = max(x, 0)``; its slope at 0 is 0.

    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return ReLU.apply(x)


class ReLU(Elementwise):
    """Saves: on the CPU where y is not 0, one bit each; on the GPU y, which the next op reads."""

    name, saves = "relu", "y"
    positive: Any

    def forward_cpu(self, x):
        y = memory.empty(x.shape, x.dtype)
        self.positive = memory.empty(-(-x.size // 8), np.uint8) if self.needs[0] else None
        flat, out = x.reshape(-1), y.reshape(-1)

        def work(piece):
            elements = slice(8 * piece.start, 8 * piece.stop)
            rectify(flat[elements], out[elements])
            if self.positive is not None:
                self.positive[piece] = nonzero(out[elements])

        threads.each(work, threads.chunks(-(-x.size // 8), 8 * y.itemsize))
        return y

    def backward_cpu(self, gy):
        gx = memory.empty(gy.shape, gy.dtype)
        flat, out = gy.reshape(-1), gx.reshape(-1)

        def work(piece):
            elements = slice(8 * piece.start, 8 * piece.stop)
            masked(flat[elements], self.positive[piece], out[elements])

        threads.each(work, threads.chunks(len(self.positive), 8 * gx.itemsize))
        return (gx,)


def gelu(x: Array) -> Array:
    """Gaussian error linear unit, the exact one: ``y = x * F(x)``; NaN at -inf, as in PyTorch.

    Source: Hendrycks and Gimpel, "Gaussian error linear units", 2016.

    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    return GELU.apply(x)


class GELU(Elementwise):
    """Saves: on the CPU the slope F(x) + x * f(x), in the accumulator dtype; on the GPU x."""

    name, saves = "gelu", "x"

    def forward_cpu(self, x):
        y, wider = memory.empty(x.shape, x.dtype), accumulator(x.dtype)
        self.slope = memory.empty(x.shape, wider) if self.needs[0] else None
        flat, out = x.reshape(-1), y.reshape(-1)
        slope = None if self.slope is None else self.slope.reshape(-1)
        exact = cpu_gelu.gelu if wider == np.float32 else cpu_gelu.gelu_by_scipy

        def work(piece):
            v, here = wide(flat[piece]), out[piece]
            into = here if here.dtype == wider else v
            exact(v, into, None if slope is None else slope[piece])
            if into is not here:
                here[...] = into

        threads.each(work, threads.chunks(y.size, wider.itemsize))
        return y

    def backward_cpu(self, gy):
        return (write(np.multiply, gy, self.slope),)


def sigmoid(x: Array) -> Array:
    """Logistic function: ``y = 1 / (1 + e^-x)``.

    >>> sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    return Sigmoid.apply(x)


class Sigmoid(Elementwise):
    """Saves: y."""

    name, saves = "sigmoid", "y"

    @staticmethod
    def value(x, out):
        np.negative(x, out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=out)
        np.divide(1, out, out=out)

    @staticmethod
    def gradient(gy, y, out):
        np.subtract(1, y, out=out)
        np.multiply(out, y, out=out)
        np.multiply(out, gy, out=out)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent: ``y = tanh(x)``.

    >>> tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    return Tanh.apply(x)


class Tanh(Elementwise):
    """Saves: y."""

    name, saves, value = "tanh", "y", np.tanh

    @staticmethod
    def gradient(gy, y, out):
        np.multiply(y, y, out=out)
        np.subtract(1, out, out=out)
        np.multiply(out, gy, out=out)


def silu(x: Array) -> Array:
    """Sigmoid-weighted linear unit, also called swish: ``y = x / (1 + e^-x)``.

    As in PyTorch y is NaN at -inf, and its slope is NaN at -inf and inf.

    Source: Elfwing, Uchibe, Doya, "Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning", 2017; Ramachandran, Zoph, Le, "Searching for
    activation functions", 2017.

    >>> silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return SiLU.apply(x)


class SiLU(Elementwise):
    """Saves: x."""

    name, saves = "silu", "x"

    @staticmethod
    def value(x, out):
        np.negative(x, out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=out)
        np.divide(x, out, out=out)

    @staticmethod
    def gradient(gy, x, out):
        s = threads.workspace("silu", out.size, out.dtype)
        Sigmoid.value(x, s)
        np.subtract(1, s, out=out)
        np.multiply(out, x, out=out)
        np.add(out, 1, out=out)
        np.multiply(out, s, out=out)
        np.multiply(out, gy, out=out)


def exp(x: Array) -> Array:
    """Exponential: ``y = e^x``.

    >>> exp(np.array([0.0, -np.inf]))
    array([1., 0.])
    """
    return Exp.apply(x)


class Exp(Elementwise):
    """Saves: y, which is its own derivative."""

    name, saves, value, gradient = "exp", "y", np.exp, np.multiply


def log(x: Array) -> Array:
    """Natural logarithm: ``y = ln(x)``.

    >>> log(np.array([1.0, 0.0]))
    array([  0., -inf])
    """
    return Log.apply(x)


class Log(Elementwise):
    """Saves: x."""

    name, saves, value, gradient = "log", "x", np.log, np.divide


def neg(x: Array) -> Array:
    """Opposite: ``y = -x``.

    >>> neg(np.array([1.0, -2.0]))
    array([-1.,  2.])
    """
    return Neg.apply(x)


class Neg(Elementwise):
    """Saves: nothing."""

    name, saves, value = "neg", "", np.negative

    @staticmethod
    def gradient(gy, _, out):
        np.negative(gy, out=out)


# -- the table -----------------------------------------------------------------------------

# An activation has a layer in nn, and other ops take its name as an argument.
ACTIVATIONS = {op.name: op for op in (ReLU, GELU, Sigmoid, Tanh, SiLU)}
FUNCTIONS = ACTIVATIONS | {op.name: op for op in (Exp, Log, Neg)}


def check_activation(op: str, activation: str | None) -> None:
    """Refuse an ``activation`` argument that is neither None nor in ACTIVATIONS.

    >>> check_activation("batch_norm", "step")
    Traceback (most recent call last):
    ValueError: batch_norm: activation is 'step', wanted None, 'relu', 'gelu', 'sigmoid', 'tanh' \
or 'silu'
    """
    check_choice(op, "activation", activation, (None, *ACTIVATIONS))


def activated(y: Array, activation: str | None) -> Array:
    """Return the activation of y, computed by an op of its own."""
    return y if activation is None else ACTIVATIONS[activation].apply(y)


def saves_result(activation: str | None) -> bool:
    """Return whether the gradient of the activation is computed from its result alone.

    Only then can it be fused into the op before it where a gradient is needed: that op's own
    result, the argument of the activation, is never stored.
    """
    return activation is None or ACTIVATIONS[activation].saves == "y"


def fused_activation(activation: str | None, y: Array, needs: Sequence[bool]) -> Elementwise | None:
    """Return the op whose ``backward_gpu`` computes the gradient of a fused activation.

    Args:
        activation: what was fused on the GPU.
        y: its result.
        needs: which gradients are needed; None is returned if there are none.
    """
    if activation is None or not any(needs):
        return None
    op = ACTIVATIONS[activation]()
    op.saved = y
    return op
