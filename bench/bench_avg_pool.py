"""Average pooling: side by side, and overlapping with padding."""

import pytest
from harness import Work, all_libraries, measure

from gpuconv.ops import avg_pool2d

N, C = 128, 32
CASES = {"2x2": (2, 2, 0), "3x3 stride 2": (3, 2, 1)}


@all_libraries
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
@pytest.mark.parametrize("case", CASES)
def test_avg_pool(benchmark, library, case, gradient, rng):
    window = CASES[case]
    x = rng.standard_normal((N, 32, 32, C), "float32")
    gy = rng.standard_normal((N, 16, 16, C), "float32")
    work = Work(f"avg_pool {case} {'gx' if gradient else 'forward'}", dict(x=x, gy=gy),
                ours=lambda x: avg_pool2d(x, *window), torch=lambda x: torch_pool(x, *window),
                gradient_of=tuple(gradient), traffic=x.nbytes + gy.nbytes, images=N,
                terms=window[0] ** 2)
    measure(benchmark, work, library)


def torch_pool(x, *window):
    import torch
    return torch.nn.functional.avg_pool2d(x, *window)
