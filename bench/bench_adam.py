"""One update of all parameters of cifar_convnet; PyTorch's, plain and fused."""

import harness
import numpy as np
import pytest

from check import close
from gpuconv import models, optim

SETTINGS = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=5e-4)


@harness.one_layout_float32
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_adam(benchmark, library, kind, fused, rng):
    if fused and not library.torch:
        pytest.skip("gpuconv's update is always fused")
    start = [rng.standard_normal(p.shape, "float32") for p in models.cifar_convnet().parameters()]
    slopes = [rng.standard_normal(a.shape, "float32") for a in start]
    make = torch_adam if library.torch else our_adam
    params, optimizer = make(library, kind, start, slopes, fused)
    optimizer.step()
    for p, a, g in zip(params, start, slopes, strict=True):
        decay = np.float32(5e-4) * a
        d, w = (g + decay, a) if kind == "Adam" else (g, a - np.float32(1e-3) * decay)
        moved = p.detach().cpu().numpy() if library.torch else p.numpy()
        way = d / (np.abs(d) + np.float32(1e-8))
        close(moved.reshape(a.shape), w - np.float32(1e-3) * way, terms=4)
    library.name += " fused" * fused
    size = sum(a.nbytes for a in start)
    harness.time(benchmark, optimizer.step, library, f"{kind.lower()} cifar_convnet", flops=0,
                 traffic=7 * size, images=0)  # reads p, g, m, v; writes p, m, v


def our_adam(library, kind, start, slopes, fused):
    model = models.cifar_convnet().to(library.device)
    params = list(model.parameters())
    optimizer = getattr(optim, kind)(params, **SETTINGS)
    for p, a, g in zip(params, start, slopes, strict=True):
        p.data, p.grad[...] = library.array(a), library.array(g)
    return params, optimizer


def torch_adam(library, kind, start, slopes, fused):
    import torch
    params = [torch.nn.Parameter(torch.tensor(a, device=library.device)) for a in start]
    for p, g in zip(params, slopes, strict=True):
        p.grad = torch.tensor(g, device=library.device)
    return params, getattr(torch.optim, kind)(params, fused=fused or None, **SETTINGS)
