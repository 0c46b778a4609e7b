"""Sums, means and maxima over pixels, and over everything."""

import pytest
from harness import Work, all_libraries, measure

from gpuconv import ops

SHAPE = 128, 32, 32, 32
NAMES = {"sum": "sum", "mean": "mean", "max": "amax"}  # ours, PyTorch's


@all_libraries
@pytest.mark.parametrize("axis", [(1, 2), None], ids=["pixels", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_reduction(benchmark, library, name, axis, rng):
    x = rng.standard_normal(SHAPE, "float32")
    work = Work(f"{name} over {'pixels' if axis else 'all'}", dict(x=x),
                ours=lambda x: getattr(ops, name)(x, axis=axis),
                torch=lambda x: torch_reduction(name, x, axis),
                traffic=x.nbytes, images=SHAPE[0], terms=x.size)
    measure(benchmark, work, library)


def torch_reduction(name, x, axis):
    import torch
    f = getattr(torch, NAMES[name])
    return f(x, dim=(2, 3)) if axis else f(x)  # channels first
