"""What tests of optimisers share: a few parameters, and gradients for them."""

import numpy as np

from check import host, make
from gpuconv.autograd import Parameter

SHAPES = [(3, 5), (), (70,), (4, 3, 3, 2)]


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
