"""Models: names, shapes, counts, and equality with a twin made of PyTorch's layers."""

import numpy as np
import pytest

from check import close, host
from gpuconv import models, nn, random
from gpuconv.autograd import no_grad
from gpuconv.ops.softmax_cross_entropy import softmax_cross_entropy

COUNTS = {"cifar_convnet": 307_946, "simple_convnet": 84_362}


@pytest.mark.parametrize("name", models.MODELS)
def test_counts(name):
    model = models.MODELS[name]()
    assert sum(p.size for p in model.parameters()) == COUNTS[name]
    grey = models.MODELS[name](in_channels=1, classes=7)
    with no_grad():
        assert grey.eval()(np.zeros((2, 32, 32, 1), "float32")).shape == (2, 7)


def test_names_of_cifar_convnet():
    channels = {0: (3, 32), 3: (32, 32), 7: (32, 64), 10: (64, 64), 14: (64, 128), 17: (128, 128)}
    want = {}
    for i, (C, K) in channels.items():
        want |= {f"{i}.weight": (K, 3, 3, C)}
        want |= {f"{i + 1}.{n}": (K,) for n in ("weight", "bias", "running_mean", "running_var")}
        want |= {f"{i + 1}.num_batches_tracked": ()}
    want |= {"22.weight": (10, 2048), "22.bias": (10,)}
    assert {n: a.shape for n, a in models.cifar_convnet().state_dict().items()} == want


def test_names_of_simple_convnet():
    assert {n: a.shape for n, a in models.simple_convnet().state_dict().items()} == {
        "0.weight": (32, 5, 5, 3), "0.bias": (32,), "4.weight": (10, 8192), "4.bias": (10,)}


def test_filters_start_as_pytorchs_do():
    random.seed(1)
    weight = models.cifar_convnet()[17].weight.data
    limit = (1 / (9 * 128)) ** 0.5  # uniform between -limit and limit
    assert abs(weight).max() <= limit and weight.std() == pytest.approx(limit / 3**0.5, rel=0.02)
    random.seed(1)
    np.testing.assert_array_equal(models.cifar_convnet()[17].weight.data, weight)


def twin(torch, model):
    """The same network of PyTorch's layers, its weights copied: (model, how to permute each)."""
    layers, orders, channels = [], {}, 0
    for i, m in enumerate(model):
        if isinstance(m, nn.Conv2d):
            K, R, _, C = m.weight.shape
            (pad, _), _ = m.padding
            layers.append(torch.nn.Conv2d(C, K, R, padding=pad, bias=m.bias is not None))
            orders[f"{i}.weight"] = lambda a: a.transpose(0, 3, 1, 2)  # (K, C, R, S)
            channels = K
        elif isinstance(m, nn.Linear):
            K, n = m.weight.shape
            H = int((n // channels) ** 0.5)
            layers.append(torch.nn.Linear(n, K))
            orders[f"{i}.weight"] = lambda a, H=H, C=channels: (
                a.reshape(-1, H, H, C).transpose(0, 3, 1, 2).reshape(len(a), -1))  # (K, C*H*W)
        else:
            layers.append({
                nn.BatchNorm2d: lambda m: torch.nn.BatchNorm2d(len(m.weight)),
                nn.ReLU: lambda _: torch.nn.ReLU(), nn.Flatten: lambda _: torch.nn.Flatten(),
                nn.MaxPool2d: lambda _: torch.nn.MaxPool2d(2)}[type(m)](m))
    theirs = torch.nn.Sequential(*layers).to(torch.float64)
    same = lambda a: a  # noqa: E731
    theirs.load_state_dict({n: torch.tensor(np.ascontiguousarray(orders.get(n, same)(a)))
                            for n, a in model.state_dict().items()})
    return theirs, lambda n, a: orders.get(n, same)(a)


@pytest.mark.parametrize("name", models.MODELS)
def test_is_its_twin_of_pytorch(rng, name):
    torch = pytest.importorskip("torch")
    random.seed(2)
    ours = models.MODELS[name]().to("float64")
    theirs, permuted = twin(torch, ours)
    x, labels = rng.standard_normal((4, 32, 32, 3)), rng.integers(0, 10, 4)

    logits = ours(x)
    loss = softmax_cross_entropy(logits, labels)
    loss.backward()
    want = theirs(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    want_loss = torch.nn.functional.cross_entropy(want, torch.tensor(labels))
    want_loss.backward()

    close(logits.data, want.detach().numpy(), terms=1 << 14)
    assert loss.item() == pytest.approx(want_loss.item(), rel=1e-12)
    gradients = dict(theirs.named_parameters())
    for n, p in ours.named_parameters():
        close(permuted(n, p.grad), gradients[n].grad.numpy(), terms=1 << 14)
    for n, b in ours.named_buffers():
        close(b, dict(theirs.named_buffers())[n].numpy(), terms=1 << 12)


@pytest.mark.parametrize("name", models.MODELS)
def test_cuda_is_numpy(cp, rng, name):
    random.seed(3)
    model = models.MODELS[name]()
    x = rng.standard_normal((1, 32, 32, 3)).astype("float32")
    want = model.predict(x)
    got = model.to("cuda").predict(cp.asarray(x))
    assert isinstance(got, cp.ndarray)
    close(host(got), want, terms=1 << 12)
