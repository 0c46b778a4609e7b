"""Activations, element by element.

    relu     y = max(x, 0)         gx = gy where y > 0, else 0
    gelu     y = x * F(x)          gx = gy * (F(x) + x * f(x))
    sigmoid  y = 1 / (1 + e^-x)    gx = gy * y * (1 - y)
    tanh     y = tanh(x)           gx = gy * (1 - y*y)

F is the distribution of the normal law, F(x) = (1 + erf(x / sqrt(2))) / 2, and f its density.
NaN stays NaN in all of them. Where x is NaN, relu passes its gradient on, as PyTorch does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.checks import check_choice
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.elementwise import cpu_gelu
from gpuconv.ops.elementwise.cpu_relu import masked, nonzero, rectify
from gpuconv.ops.engine.elements import wide, write

BYTES = 64  # that a thread of activation.cu reads at once


def relu(x: Array) -> Array:
    """Rectifier: ``y = max(x, 0)``; its slope at 0 is 0.

    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    check_arrays("relu", x=x)
    return ReLU()(x)


def gelu(x: Array) -> Array:
    """Gaussian error linear unit, the exact one: ``y = x * F(x)``; NaN at -inf, as in PyTorch.

    Source: Hendrycks and Gimpel, "Gaussian error linear units", 2016.

    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    check_arrays("gelu", x=x)
    return GELU()(x)


def sigmoid(x: Array) -> Array:
    """Logistic function: ``y = 1 / (1 + e^-x)``.

    >>> sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """
    check_arrays("sigmoid", x=x)
    return Sigmoid()(x)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent: ``y = tanh(x)``.

    >>> tanh(np.array([-np.inf, 0.0, np.inf]))
    array([-1.,  0.,  1.])
    """
    check_arrays("tanh", x=x)
    return Tanh()(x)


ACTIVATIONS = None, "relu", "gelu"  # that other ops can have inside; numbered in activate.cuh


def check_activation(op: str, activation: str | None) -> None:
    """It must be one of ACTIVATIONS.

    >>> check_activation("batch_norm", "tanh")
    Traceback (most recent call last):
    ValueError: batch_norm: activation is 'tanh', wanted None, 'relu' or 'gelu'
    """
    check_choice(op, "activation", activation, ACTIVATIONS)


def activated(y: Array, activation: str | None) -> Array:
    """The activation of y, as an op of its own."""
    return y if activation is None else {"relu": relu, "gelu": gelu}[activation](y)


def fused_relu(activation: str | None, y: Array, needs: Sequence[bool]) -> "ReLU | None":
    """What takes gradients back through the activation that was inside the op that gave y.

    On the GPU. Of GELU nothing: it is inside only where no gradient will be asked for.
    """
    if activation != "relu" or not any(needs):
        return None
    relu = ReLU()
    relu.saved = y
    return relu


class Activation(Op):
    """How the four reach kernels/elementwise/activation.cu; ``name`` is the name there."""

    depends_on, multiply_adds = "pixel", 0
    name: str

    def forward_gpu(self, x):
        y = cupy().empty(x.shape, x.dtype)
        self.launch(f"{self.name}_forward", x, y)
        self.saved = (x if self.name == "gelu" else y) if self.needs[0] else None
        return y

    def backward_gpu(self, gy):
        gx = cupy().empty(gy.shape, gy.dtype)
        self.launch(f"{self.name}_backward", gy, self.saved, gx)
        return (gx,)

    def launch(self, function, *arrays):
        """Run a kernel that takes arrays of one size, and the size."""
        y = arrays[-1]
        kernel = kernels.kernel("elementwise/activation.cu", function, T=y.dtype,
                                I=kernels.index(y))
        kernel(-(-y.nbytes * (len(arrays) - 1) // BYTES), *arrays, y.size)


class ReLU(Activation):
    """Saves: on the CPU where y is not 0, one bit each; on the GPU y, which the next op reads."""

    name = "relu"
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


class GELU(Activation):
    """Saves: on the CPU the slope F(x) + x * f(x), in the accumulator dtype; on the GPU x."""

    name = "gelu"

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


class Sigmoid(Activation):
    """Saves: y."""

    name = "sigmoid"

    def forward_cpu(self, x):
        y = write(self.value, x)
        self.saved = y if self.needs[0] else None
        return y

    def backward_cpu(self, gy):
        return (write(self.gradient, gy, self.saved),)

    @staticmethod
    def value(x, out):
        """``out = 1 / (1 + e^-x)``."""
        np.negative(x, out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=out)
        np.divide(1, out, out=out)

    @staticmethod
    def gradient(gy, y, out):
        """``out = gy * y * (1 - y)``."""
        np.subtract(1, y, out=out)
        np.multiply(out, y, out=out)
        np.multiply(out, gy, out=out)


class Tanh(Activation):
    """Saves: y."""

    name = "tanh"

    def forward_cpu(self, x):
        y = write(np.tanh, x)
        self.saved = y if self.needs[0] else None
        return y

    def backward_cpu(self, gy):
        return (write(self.gradient, gy, self.saved),)

    @staticmethod
    def gradient(gy, y, out):
        """``out = gy * (1 - y*y)``."""
        np.multiply(y, y, out=out)
        np.subtract(1, out, out=out)
        np.multiply(out, gy, out=out)
