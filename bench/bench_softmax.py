"""log_softmax over few and over many classes."""

import pytest
from harness import Work, measure, one_layout

from gpuconv.ops import log_softmax


@one_layout
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
@pytest.mark.parametrize("shape", [(8192, 10), (1024, 1000)], ids=["8192x10", "1024x1000"])
def test_log_softmax(benchmark, library, shape, gradient, rng):
    x, gy = rng.standard_normal((2, *shape), "float32")
    work = Work(f"log_softmax {shape[0]}x{shape[1]} {'gx' if gradient else 'forward'}",
                dict(x=x, gy=gy), ours=log_softmax, torch=torch_log_softmax,
                gradient_of=tuple(gradient), traffic=(3 if gradient else 2) * x.nbytes,
                images=shape[0], terms=shape[1])
    measure(benchmark, work, library)


def torch_log_softmax(x):
    import torch
    return torch.log_softmax(x, dim=-1)
