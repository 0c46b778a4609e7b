"""Global pools, as they stand before a classifier."""

import pytest
from harness import Work, all_libraries, measure

from gpuconv import ops

SHAPE = 128, 8, 8, 256


@all_libraries
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
@pytest.mark.parametrize("name", ["avg", "max"])
def test_global_pool(benchmark, library, name, gradient, rng):
    x, gy = rng.standard_normal(SHAPE, "float32"), rng.standard_normal(SHAPE[::3], "float32")
    work = Work(f"global {name} pool {'gx' if gradient else 'forward'}", dict(x=x, gy=gy),
                ours=getattr(ops, f"global_{name}_pool2d"), torch=lambda x: torch_pool(name, x),
                gradient_of=tuple(gradient), traffic=x.nbytes, images=SHAPE[0], terms=64)
    measure(benchmark, work, library)


def torch_pool(name, x):
    import torch
    return getattr(torch.nn.functional, f"adaptive_{name}_pool2d")(x, 1).flatten(1)
