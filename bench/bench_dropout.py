"""Dropout: the mask is drawn again in the backward pass, not stored."""

import pytest
from harness import Library, Work, measure, one_layout

from gpuconv.ops import dropout

SHAPE = 128, 8192


@one_layout
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
def test_dropout(benchmark, library: Library, gradient, rng):
    if library.torch:
        pytest.skip("PyTorch draws another mask: no result to compare")
    x, gy = rng.standard_normal((2, *SHAPE), "float32")
    work = Work(f"dropout {'gx' if gradient else 'forward'}", dict(x=x, gy=gy),
                ours=lambda x: dropout(x, 0.5, key=(0, 1), step=0), torch=lambda x: x,
                gradient_of=tuple(gradient), traffic=2 * x.nbytes, images=SHAPE[0])
    measure(benchmark, work, library)
