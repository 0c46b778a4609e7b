"""Layers with one line of computation: Linear, norms, Dropout, activations, Scale, Flatten."""

from typing import Any

import numpy as np

from gpuconv import random
from gpuconv.autograd import Parameter, Tensor
from gpuconv.backend import Array
from gpuconv.checks import check_count, check_number
from gpuconv.nn import init
from gpuconv.nn.module import Module
from gpuconv.ops.activation import gelu, relu, sigmoid, tanh
from gpuconv.ops.arithmetic import mul
from gpuconv.ops.batch_norm import batch_norm
from gpuconv.ops.checkpoint import once
from gpuconv.ops.dropout import dropout
from gpuconv.ops.gpu.choice import check_precision
from gpuconv.ops.linear import linear
from gpuconv.ops.shape import flatten


def positive(layer: str, **sizes: Any) -> tuple[int, ...]:
    """The sizes, if they are ints of at least 1.

    Raises:
        TypeError, ValueError: one is not; names it.
    """
    return tuple(check_count(layer, name, size) for name, size in sizes.items())


class Linear(Module):
    """y = x w^T + b.

    Args:
        in_features: C, of x (N, C).
        out_features: K, of y (N, K).
        bias: add b?
        precision: of float32 products on a GPU: "ieee", or "tf32", faster and rounded to 10 bits.

    Attributes:
        weight: (K, C), uniform within 1/sqrt(C) at first.
        bias: (K,), likewise; or None.

    >>> Linear(8, 3)(np.ones((2, 8), "float32")).shape
    (2, 3)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 precision: str = "ieee"):
        C, K = positive("Linear", in_features=in_features, out_features=out_features)
        check_precision("Linear", precision)
        self.precision = precision
        self.weight = Parameter(np.empty((K, C), "float32"))
        self.bias = Parameter(np.empty(K, "float32")) if bias else None
        init.torch_default_(self.weight, self.bias)

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """(N, C) -> (N, K); with an activation behind it in one op, if wanted."""
        return linear(x, self.weight, self.bias, precision=self.precision, activation=activation)

    def arguments(self) -> str:
        """In, out, and what is not the default."""
        K, C = self.weight.shape
        changed = [f"{name}={value!r}" for name, value, usual in (
            ("bias", self.bias is not None, True), ("precision", self.precision, "ieee"))
            if value != usual]
        return ", ".join([f"{C}, {K}", *changed])


class BatchNorm2d(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, per channel.

    In training, mean and var are the batch's, and the running ones move towards them by
    ``momentum``; else they are the running ones.

    Args:
        channels: C, of x (N, H, W, C).
        eps: added to the variance.
        momentum: share of the batch in the new running statistics.

    Attributes:
        weight, bias: (C,), 1 and 0 at first.
        running_mean, running_var: (C,) buffers, 0 and 1 at first, float32; float64 in a float64
            module.
        num_batches_tracked: () int64 buffer: batches seen in training.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        C, = positive("BatchNorm2d", channels=channels)
        check_number("BatchNorm2d", "eps", eps, above=0)
        check_number("BatchNorm2d", "momentum", momentum, least=0, most=1)
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(C, "float32"))
        self.bias = Parameter(np.zeros(C, "float32"))
        self.register_buffer("running_mean", np.zeros(C, "float32"))
        self.register_buffer("running_var", np.ones(C, "float32"))
        self.register_buffer("num_batches_tracked", np.zeros((), "int64"))

    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def forward(self, x: Tensor, activation: str | None = None,
                residual: Tensor | None = None) -> Tensor:
        """(N, H, W, C) -> the same shape; with a sum and an activation in one op, if wanted."""
        return batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var,
                          training=self.training, momentum=self.momentum, eps=self.eps,
                          activation=activation, residual=residual,
                          num_batches_tracked=self.num_batches_tracked)

    def arguments(self) -> str:
        """Channels, and what is not the default."""
        changed = [f"{name}={value}" for name, value, usual in (
            ("eps", self.eps, 1e-5), ("momentum", self.momentum, 0.1)) if value != usual]
        return ", ".join([str(self.weight.size), *changed])


class Dropout(Module):
    """In training, zeroes each element with probability p and divides the others by 1 - p.

    Its numbers are new at each call, unless ``reseed`` has keyed them to a step.

    Args:
        p: 0..1.
    """

    def __init__(self, p: float = 0.5):
        check_number("Dropout", "p", p, least=0, most=1)
        self.p = p
        self.key: tuple[int, int] | None = None
        self.counter: Array | None = None
        self.step = self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if self.key is None:
            return dropout(x, self.p, training=self.training)
        key = once(self.next_key)
        return dropout(x, self.p, training=self.training, key=key, step=self.step,
                       counter=self.counter)

    def next_key(self) -> tuple[int, int]:
        """A second call in one step draws from the next stream."""
        assert self.key is not None
        seed, stream = self.key
        self.calls += self.training
        return seed, (stream + self.calls - self.training) & random.LOW

    def reseed_layer(self, key: tuple[int, int] | None, step: int,
                     counter: Array | None = None) -> None:
        """Draw with this key and step (and what the counter adds to it) from now on."""
        self.key, self.step, self.counter, self.calls = key, step, counter, 0

    def arguments(self) -> str:
        """The probability."""
        return f"{self.p}"


class Flatten(Module):
    """(N, H, W, C) -> (N, H*W*C).

    ``volume`` is the (H, W, C) it flattened last, None before: what tells how to permute the
    columns of a Linear that was trained on C, H, W.
    """

    def __init__(self) -> None:
        self.volume: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """All axes but the first in one."""
        y = flatten(x)
        self.volume = tuple(x.shape[1:])
        return y


class Identity(Module):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        """X itself."""
        return x


class Scale(Module):
    """y = factor * x.

    Args:
        factor: a number, not learned; logits that are divided by 256 are Scale(1 / 256).

    Raises:
        ValueError: factor is not finite.

    >>> Scale(0.5)(np.array([3.0, 4.0])).numpy()
    array([1.5, 2. ])
    """

    def __init__(self, factor: float):
        self.factor = check_number("Scale", "factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return mul(x, self.factor)

    def arguments(self) -> str:
        """The factor."""
        return f"{self.factor:g}"


class ReLU(Module):
    """y = max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return relu(x)


class GELU(Module):
    """y = x * Phi(x), Phi the normal distribution function."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return gelu(x)


class Sigmoid(Module):
    """y = 1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return sigmoid(x)


class Tanh(Module):
    """y = tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return tanh(x)
