"""A whole training step: forward, loss, backward, update."""

import harness
import numpy as np
import pytest

from check import close
from gpuconv import models, nn, ops, optim, random
from gpuconv.nn.layers import ACTIVATION_LAYERS

N, ROUNDS = 128, 15
SETTINGS = dict(lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


@harness.libraries(tf32=True)
@pytest.mark.parametrize("name", ["cifar_convnet", "simple_convnet"])
def test_train_step(benchmark, library, name, rng):
    random.seed(0)
    model = models.MODELS[name]()
    x = library.array(harness.common(rng.standard_normal((N, 32, 32, 3), "float32")))
    if library.torch:
        x = x.float()  # autocast narrows it
    labels = library.array(rng.integers(0, 10, N).astype(np.int32))
    flops = 3 * 2 * N * sum(products(model))
    step = (torch_step if library.torch else our_step)(model, library, x, labels)
    got, want = np.float32(step()), first_loss(name)
    if library.precision == "float32":
        close(got, want, terms=4096)
    else:
        assert abs(got - want) < harness.FAR[library.precision] * want
    harness.time(benchmark, step, library, f"train step {name}", flops=flops, traffic=0, images=N,
                 rounds=ROUNDS)


_losses: dict[str, np.float32] = {}


def first_loss(name):
    """Of the same weights and images, by gpuconv on NumPy."""
    if name not in _losses:
        random.seed(0)
        model, rng = models.MODELS[name](), np.random.default_rng(0)
        x = harness.common(rng.standard_normal((N, 32, 32, 3), "float32"))
        labels = rng.integers(0, 10, N).astype(np.int32)
        _losses[name] = np.float32(ops.softmax_cross_entropy(model(x), labels).item())
    return _losses[name]


def our_step(model, library, x, labels):
    model.to(library.device, library.dtype)
    optimizer = optim.SGD(model.parameters(), **SETTINGS)
    first = ops.softmax_cross_entropy(model(x), labels).item() if library.device == "cuda" else None

    def step():
        loss = ops.softmax_cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.data if first is None else first  # no wait for the GPU inside the clock

    return step


def torch_step(model, library, x, labels):
    return twin_step(torch_twin(model), library, x, labels)


def twin_step(twin, library, x, labels):
    import torch
    twin = twin.to(library.device)
    if library.channels_last:
        twin = twin.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(twin.parameters(), **SETTINGS)
    labels = labels.long()

    def step():
        with torch.autocast(library.device, torch.float16, library.precision == "float16"):
            loss = torch.nn.functional.cross_entropy(twin(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def products(model, side=32):
    """Multiplications per image of so many pixels a side, layer by layer."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            yield side * side * layer.weight.size
        elif isinstance(layer, nn.MaxPool2d):
            side //= 2
        elif isinstance(layer, nn.Linear):
            yield layer.weight.size


def torch_twin(model):
    """The same network in PyTorch, with the same weights."""
    import torch
    kinds = {**{layer: getattr(torch.nn, layer.__name__) for layer in ACTIVATION_LAYERS},
             nn.Flatten: torch.nn.Flatten,
             nn.MaxPool2d: lambda: torch.nn.MaxPool2d(2),
             nn.GlobalMaxPool2d: lambda: torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1),
                                                             torch.nn.Flatten())}
    layers, channels = [], 3
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            K, R, S, channels = layer.weight.shape
            twin = torch.nn.Conv2d(channels, K, (R, S), padding=R // 2, bias=layer.bias is not None)
            weight, channels = np.moveaxis(layer.weight.numpy(), -1, 1), K  # (K, C, R, S)
        elif isinstance(layer, nn.BatchNorm2d):
            twin, weight = torch.nn.BatchNorm2d(channels), layer.weight.numpy()
        elif isinstance(layer, nn.Linear):
            K, features = layer.weight.shape
            side = round((features // channels) ** 0.5)
            twin = torch.nn.Linear(features, K)
            weight = layer.weight.numpy().reshape(K, side, side, channels)
            weight = np.moveaxis(weight, -1, 1).reshape(K, features)  # rows in order (C, H, W)
        else:
            layers.append(kinds[type(layer)]())
            continue
        with torch.no_grad():
            twin.weight.copy_(torch.from_numpy(np.array(weight)))
            if twin.bias is not None:
                twin.bias.copy_(torch.from_numpy(layer.bias.numpy().copy()))
        layers.append(twin)
    return torch.nn.Sequential(*layers)
