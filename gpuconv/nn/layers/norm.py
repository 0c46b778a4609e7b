"""Normalisation layers."""

from typing import Any

import numpy as np

from gpuconv.autograd import Parameter, Tensor
from gpuconv.checks import check_number
from gpuconv.nn.module import Module
from gpuconv.nn.sizes import positive
from gpuconv.ops.norm import batch_norm


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

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        return batch_norm(x, **self.options())

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``ops.batch_norm``, beside x."""
        return dict(gamma=self.weight, beta=self.bias, running_mean=self.running_mean,
                    running_var=self.running_var, training=self.training, momentum=self.momentum,
                    eps=self.eps, num_batches_tracked=self.num_batches_tracked)

    def arguments(self) -> str:
        """Channels, and what is not the default."""
        changed = [f"{name}={value}" for name, value, usual in (
            ("eps", self.eps, 1e-5), ("momentum", self.momentum, 0.1)) if value != usual]
        return ", ".join([str(self.weight.size), *changed])
