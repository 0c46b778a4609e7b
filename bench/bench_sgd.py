"""One update of all parameters of cifar_convnet; PyTorch's, plain and fused."""

import harness
import numpy as np
import pytest

from check import close
from gpuconv import models, optim

SETTINGS = dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


@harness.one_layout_float32
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_sgd(benchmark, library, fused, rng):
    if fused and not library.torch:
        pytest.skip("gpuconv's update is always fused")
    start = [rng.standard_normal(p.shape, "float32") for p in models.cifar_convnet().parameters()]
    slopes = [rng.standard_normal(a.shape, "float32") for a in start]
    params, optimizer = (torch_sgd if library.torch else our_sgd)(library, start, slopes, fused)
    optimizer.step()
    for p, a, g in zip(params, start, slopes, strict=True):
        d = g + np.float32(5e-4) * a
        moved = p.detach().cpu().numpy() if library.torch else p.numpy()
        close(moved.reshape(a.shape), a - np.float32(0.1) * (d + np.float32(0.9) * d), terms=4)
    library.name += " fused" * fused
    size = sum(a.nbytes for a in start)
    harness.time(benchmark, optimizer.step, library, "sgd cifar_convnet", flops=0,
                 traffic=5 * size, images=0)  # reads p, g, m; writes p, m


def our_sgd(library, start, slopes, fused):
    model = models.cifar_convnet().to(library.device)
    params = list(model.parameters())
    optimizer = optim.SGD(params, **SETTINGS)
    for p, a, g in zip(params, start, slopes, strict=True):
        p.data, p.grad[...] = library.array(a), library.array(g)
    return params, optimizer


def torch_sgd(library, start, slopes, fused):
    import torch
    params = [torch.nn.Parameter(torch.tensor(a, device=library.device)) for a in start]
    for p, g in zip(params, slopes, strict=True):
        p.grad = torch.tensor(g, device=library.device)
    return params, torch.optim.SGD(params, fused=fused or None, **SETTINGS)
