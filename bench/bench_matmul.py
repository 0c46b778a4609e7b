"""Products of batches of matrices, one with long sums: value and gradients."""

import pytest
from harness import Work, libraries, measure

from gpuconv.ops import matmul

SIZES = {"64x256x64-256": (64, 256, 64, 256), "16x512x512-512": (16, 512, 512, 512),
         "1x64x65536-64": (1, 64, 65536, 64)}


@libraries(channels_last=False)
@pytest.mark.parametrize("gradient", ["", "ab"], ids=["forward", "ga-gb"])
@pytest.mark.parametrize("size", SIZES)
def test_matmul(benchmark, library, size, gradient, rng):
    Z, N, C, K = SIZES[size]
    a, b, gy = (rng.standard_normal(shape, "float32")
                for shape in [(Z, N, C), (Z, C, K), (Z, N, K)])
    work = Work(f"matmul {size} {'ga gb' if gradient else 'forward'}", dict(a=a, b=b, gy=gy),
                ours=matmul, torch=torch_matmul, gradient_of=tuple(gradient),
                flops=2 * Z * N * C * K * max(1, len(gradient)),
                traffic=a.nbytes + b.nbytes + gy.nbytes, images=Z, terms=max(N, C, K))
    measure(benchmark, work, library)


def torch_matmul(a, b):
    import torch
    return torch.matmul(a, b)
