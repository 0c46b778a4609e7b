"""The max pools of cifar_convnet."""

import pytest
from harness import Work, all_libraries, measure

from gpuconv.ops import max_pool2d

N = 128
LAYERS = {"32x32x32": (32, 32), "16x16x64": (16, 64), "8x8x128": (8, 128)}


@all_libraries
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
@pytest.mark.parametrize("layer", LAYERS)
def test_max_pool(benchmark, library, layer, gradient, rng):
    H, C = LAYERS[layer]
    x = rng.standard_normal((N, H, H, C), "float32")
    gy = rng.standard_normal((N, H // 2, H // 2, C), "float32")
    marks = gy.size if gradient else 0  # one byte each
    work = Work(f"max_pool {layer} {'gx' if gradient else 'forward'}", dict(x=x, gy=gy),
                ours=lambda x: max_pool2d(x, 2), torch=torch_pool, gradient_of=tuple(gradient),
                traffic=x.nbytes + gy.nbytes, marks=marks, images=N)
    measure(benchmark, work, library)


def torch_pool(x):
    import torch
    return torch.nn.functional.max_pool2d(x, 2)
