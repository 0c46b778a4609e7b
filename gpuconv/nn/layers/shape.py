"""Layers that move elements."""

from gpuconv.autograd import Tensor
from gpuconv.nn.module import Module
from gpuconv.ops.shape import flatten


class Flatten(Module):
    """(N, H, W, C) -> (N, H*W*C).

    ``volume`` is the (H, W, C) of the last input, None before the first: it tells how to permute
    the columns of a Linear that was trained on (C, H, W).
    """

    def __init__(self) -> None:
        self.volume: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x with all axes but the first in one."""
        y = flatten(x)
        self.volume = tuple(x.shape[1:])
        return y
