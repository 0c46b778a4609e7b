"""Layers that compute each element by itself: activations, Dropout, Scale, Identity."""

from typing import ClassVar

from gpuconv import random
from gpuconv.autograd import Tensor
from gpuconv.backend import Array
from gpuconv.checks import check_number
from gpuconv.nn.module import Module
from gpuconv.ops.elementwise import ACTIVATIONS, dropout, mul
from gpuconv.recompute import replay

__all__ = ["GELU", "Activation", "Dropout", "Identity", "ReLU", "Scale", "SiLU", "Sigmoid", "Tanh"]


class Activation(Module):
    """The base class of activation layers: y = f(x), where f is ``gpuconv.ops.<name>``."""

    name: ClassVar[str]

    def forward(self, x: Tensor) -> Tensor:
        """Return the result, shape of x."""
        return ACTIVATIONS[self.name].apply(x)


class ReLU(Activation):
    """y = max(x, 0)."""

    name = "relu"


class GELU(Activation):
    """y = x * Phi(x), Phi the normal distribution function."""

    name = "gelu"


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x))."""

    name = "sigmoid"


class Tanh(Activation):
    """y = tanh(x)."""

    name = "tanh"


class SiLU(Activation):
    """y = x / (1 + exp(-x))."""

    name = "silu"


# The layers that can be fused. Their subclasses are not here: they may compute something else.
ACTIVATION_LAYERS: dict[type[Module], str] = {
    layer: layer.name for layer in (ReLU, GELU, Sigmoid, Tanh, SiLU)}


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
        """Return the result, shape of x."""
        if self.key is None:
            return dropout(x, self.p, training=self.training)
        key = replay(self.next_key)
        return dropout(x, self.p, training=self.training, key=key, step=self.step,
                       counter=self.counter)

    def next_key(self) -> tuple[int, int]:
        """Return the key of the next call: each call in a step has its own stream."""
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


class Scale(Module):
    """y = factor * x.

    Args:
        factor: a number, not learned; logits that are divided by 256 are Scale(1 / 256).

    Raises:
        ValueError: factor is not finite.

    >>> import numpy as np
    >>> Scale(0.5)(np.array([3.0, 4.0])).numpy()
    array([1.5, 2. ])
    """

    def __init__(self, factor: float):
        self.factor = check_number("Scale", "factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result, shape of x."""
        return mul(x, self.factor)

    def arguments(self) -> str:
        """Return the factor."""
        return f"{self.factor:g}"


class Identity(Module):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x
