"""Networks by name."""

from collections.abc import Callable

from gpuconv.models.convnet import cifar_convnet, simple_convnet
from gpuconv.nn import Module

MODELS: dict[str, Callable[..., Module]] = {
    "cifar_convnet": cifar_convnet,
    "simple_convnet": simple_convnet,
}

__all__ = ["MODELS", "cifar_convnet", "simple_convnet"]
