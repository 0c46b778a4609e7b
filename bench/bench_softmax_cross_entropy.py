"""The loss: ten classes as in CIFAR-10, a thousand as in ImageNet."""

import numpy as np
import pytest
from harness import Work, measure, one_layout

from gpuconv.ops import softmax_cross_entropy

CASES = {"128x10": (128, 10), "4096x1000": (4096, 1000)}


@one_layout
@pytest.mark.parametrize("gradient", ["", "x"], ids=["forward", "gx"])
@pytest.mark.parametrize("case", CASES)
def test_softmax_cross_entropy(benchmark, library, case, gradient, rng):
    x = rng.standard_normal(CASES[case], "float32")
    labels = rng.integers(0, x.shape[1], len(x)).astype(np.int32)
    work = Work(f"softmax_cross_entropy {case} {'gx' if gradient else 'forward'}",
                dict(x=x, labels=labels), ours=lambda x, labels: softmax_cross_entropy(x, labels),
                torch=torch_loss, gradient_of=tuple(gradient),
                traffic=(2 if gradient else 1) * x.nbytes, images=len(x), terms=x.size)
    measure(benchmark, work, library)


def torch_loss(x, labels):
    import torch
    return torch.nn.functional.cross_entropy(x, labels.long())
