"""The Linear of cifar_convnet, and a large one: value and gradients."""

import pytest
from harness import Work, libraries, measure

from gpuconv.ops import linear

SIZES = {"128x2048-10": (128, 2048, 10), "1024x2048-1024": (1024, 2048, 1024)}


@libraries(channels_last=False, tf32=True)
@pytest.mark.parametrize("gradient", ["", "xw"], ids=["forward", "gx-gw"])
@pytest.mark.parametrize("size", SIZES)
def test_linear(benchmark, library, size, gradient, rng):
    N, C, K = SIZES[size]
    x, w, gy = (rng.standard_normal(shape, "float32") for shape in [(N, C), (K, C), (N, K)])
    work = Work(f"linear {size} {'gx gw' if gradient else 'forward'}", dict(x=x, w=w, gy=gy),
                ours=linear, torch=torch_linear, gradient_of=tuple(gradient),
                flops=2 * N * C * K * max(1, len(gradient)),
                traffic=x.nbytes + w.nbytes + gy.nbytes, images=N, terms=max(N, C, K))
    measure(benchmark, work, library)


def torch_linear(x, w):
    import torch
    return torch.nn.functional.linear(x, w)
