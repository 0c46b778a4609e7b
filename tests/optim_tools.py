"""What tests of optimisers share: a few parameters, gradients for them, kinds of optimisers."""

import numpy as np
import pytest

from check import host, make
from gpuconv.autograd import Parameter
from gpuconv.nn import Module
from gpuconv.optim import SGD, Adam, AdamW

SHAPES = [(3, 5), (), (70,), (4, 3, 3, 2)]
KINDS = [
    pytest.param(SGD, dict(lr=0.1), id="SGD"),
    pytest.param(SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05), id="Nesterov"),
    pytest.param(Adam, dict(lr=0.1, weight_decay=0.05), id="Adam"),
    pytest.param(AdamW, dict(lr=0.1), id="AdamW"),
]


class Weights(Module):
    """A module of these parameters, and a buffer of whole numbers."""

    def __init__(self, ps, xp):
        super().__init__()
        for i, p in enumerate(ps):
            setattr(self, f"p{i}", p)
        self.register_buffer("count", xp.asarray(np.arange(5)))


def everything(module, optimizer, ema=None):
    """All that a step changes, as bytes by name."""
    state = dict(module.state_dict()) | optimizer.state_dict() | (ema.state_dict() if ema else {})
    return {name: host(a).tobytes() for name, a in state.items()}


def parameters(xp, rng, dtype="float32"):
    return [Parameter(xp.asarray(make(rng.standard_normal(shape), dtype))) for shape in SHAPES]


def draw(rng):
    """One array per parameter, float64."""
    return [np.asarray(rng.standard_normal(shape)) for shape in SHAPES]


def give(ps, gradients, xp=np):
    """Write gradients where the optimiser looks for them, in the parameters' dtypes."""
    for p, g in zip(ps, gradients, strict=True):
        p.grad[...] = xp.asarray(np.asarray(g).astype(p.dtype))


def joined(arrays):
    """One vector: rounding is judged by the largest of all parameters."""
    return np.concatenate([host(a).ravel() for a in arrays])
