"""Patches as rows, and back: bound by memory."""

import pytest
from harness import Work, all_libraries, measure, one_layout

from gpuconv.ops import col2im, im2col, pad2d

SHAPE = 128, 32, 32, 32


@one_layout
@pytest.mark.parametrize("name", ["im2col", "col2im"])
def test_im2col(benchmark, library, name, rng):
    if library.torch:
        pytest.skip("PyTorch's unfold lays its rows out otherwise")
    x = rng.standard_normal(SHAPE, "float32")
    col = rng.standard_normal((*SHAPE[:3], 9 * SHAPE[3]), "float32")
    ours = {"im2col": lambda a: im2col(a, 3, padding=1),
            "col2im": lambda a: col2im(a, SHAPE, 3, padding=1)}[name]
    work = Work(f"{name} 3x3", dict(a=x if name == "im2col" else col), ours=ours, torch=ours,
                traffic=x.nbytes + col.nbytes, images=SHAPE[0])
    measure(benchmark, work, library)


@all_libraries
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
def test_pad(benchmark, library, gradient, rng):
    N, H, W, C = SHAPE
    x, gy = rng.standard_normal(SHAPE, "float32"), rng.standard_normal((N, H + 2, W + 2, C), "f")
    work = Work(f"pad2d reflect {'gx' if gradient else 'forward'}", dict(x=x, gy=gy),
                ours=lambda x: pad2d(x, 1, "reflect"), torch=torch_pad,
                gradient_of=tuple(gradient), traffic=x.nbytes + gy.nbytes, images=N)
    measure(benchmark, work, library)


def torch_pad(x):
    import torch
    return torch.nn.functional.pad(x, (1, 1, 1, 1), "reflect")
