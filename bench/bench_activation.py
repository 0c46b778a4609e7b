"""Activations, and bias with ReLU in one pass."""

import numpy as np
import pytest
from harness import Work, all_libraries, measure

from gpuconv import ops
from gpuconv.ops.elementwise import FUNCTIONS

SHAPE = 128, 32, 32, 32


@all_libraries
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation(benchmark, library, name, gradient, rng):
    x, gy = rng.standard_normal((2, *SHAPE), "float32")
    x = np.abs(x) + 1 if name == "log" else x  # where it is finite
    work = Work(f"{name} {'gx' if gradient else 'forward'}", dict(x=x, gy=gy),
                ours=getattr(ops, name), torch=lambda x: torch_activation(name, x),
                gradient_of=tuple(gradient), traffic=(3 if gradient else 2) * x.nbytes,
                images=SHAPE[0])
    measure(benchmark, work, library)


@all_libraries
def test_bias_relu(benchmark, library, rng):
    x, b = rng.standard_normal(SHAPE, "float32"), rng.standard_normal(SHAPE[-1:], "float32")
    work = Work("bias_relu forward", dict(x=x, b=b), ours=ops.bias_relu,
                torch=lambda x, b: (x + b[:, None, None]).relu_(),
                traffic=2 * x.nbytes, images=SHAPE[0])
    measure(benchmark, work, library)


def torch_activation(name, x):
    import torch
    return (getattr(torch, name, None) or getattr(torch.nn.functional, name))(x)
