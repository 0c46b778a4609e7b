"""Batch normalisation: in training, its gradients, and in use; with more, in one pass."""

import numpy as np
import pytest
from harness import Work, all_libraries, measure

from gpuconv import Tensor, backend
from gpuconv.ops import batch_norm

N = 128
LAYERS = {"32x32x32": (32, 32), "16x16x64": (16, 64), "8x8x128": (8, 128)}
MODES = {"training": (True, ()), "gradients": (True, ("x", "gamma", "beta")), "in use": (False, ())}
FUSED = {"relu": 3, "gelu": 3, "sum relu": 4}  # passes over x, at least


@all_libraries
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm(benchmark, library, layer, mode, rng):
    (H, C), (training, gradient_of) = LAYERS[layer], MODES[mode]
    x, gy = rng.standard_normal((2, N, H, H, C), "float32")
    ones, zeros = np.ones(C, "float32"), np.zeros(C, "float32")
    here = statistics(library, zeros), statistics(library, ones)
    cpu = zeros.copy(), ones.copy()  # of the result to compare with
    passes = {"training": 3, "gradients": 5, "in use": 2}[mode]  # over x and gy, at least
    work = Work(
        f"batch_norm {layer} {mode}", dict(x=x, gamma=ones, beta=zeros, gy=gy),
        ours=lambda x, gamma, beta: batch_norm(
            x, gamma, beta, *(here if backend.is_gpu(array(x)) else cpu),
            training=training),
        torch=lambda x, gamma, beta: torch_norm(x, gamma, beta, *here, training),
        gradient_of=gradient_of, traffic=passes * x.nbytes, images=N, terms=N * H * H)
    measure(benchmark, work, library)


@all_libraries
@pytest.mark.parametrize("mode", FUSED)
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm_and_more(benchmark, library, layer, mode, rng):
    H, C = LAYERS[layer]
    x, more = rng.standard_normal((2, N, H, H, C), "float32")
    ones, zeros = np.ones(C, "float32"), np.zeros(C, "float32")
    arrays = dict(x=x, gamma=ones, beta=zeros) | (dict(more=more) if "sum" in mode else {})
    activation = "gelu" if "gelu" in mode else "relu"
    work = Work(
        f"batch_norm {layer} {mode}", arrays,
        ours=lambda x, gamma, beta, more=None: batch_norm(
            x, gamma, beta, None, None, training=True, activation=activation,
            residual=more),
        torch=lambda **arrays: torch_more(activation, **arrays), traffic=FUSED[mode] * x.nbytes,
        images=N, terms=N * H * H)
    measure(benchmark, work, library)


def torch_more(activation, x, gamma, beta, more=None):
    import torch
    y = torch_norm(x, gamma, beta, None, None, True)
    return getattr(torch.nn.functional, activation)(y if more is None else y + more)


def array(x):
    return x.data if isinstance(x, Tensor) else x


def statistics(library, a):
    """In float32, whatever the precision."""
    if library.torch:
        import torch
        return torch.tensor(a, device=library.device)
    return backend.asarray(a.copy(), library.device)


def torch_norm(x, gamma, beta, mean, var, training):
    import torch
    return torch.nn.functional.batch_norm(
        x, mean, var, gamma.float(), beta.float(), training=training)
