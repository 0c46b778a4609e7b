"""Models: names, shapes, counts, descriptions, and equality with a twin of PyTorch's layers."""

import inspect
import json

import numpy as np
import pytest

from check import close, host
from gpuconv import models, nn, random
from gpuconv.autograd import no_grad
from gpuconv.nn.layers import ACTIVATION_LAYERS
from gpuconv.ops.loss.softmax_cross_entropy import softmax_cross_entropy

NORMS = 2 * 64 + 4 * 256  # of speedrun: scales, which are fixed, and biases
FILTERS = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256  # of speedrun, 3x3 each
COUNTS = {"cifar_convnet": 307_946, "simple_convnet": 84_362,
          "speedrun": 24 * 12 + 24 + 9 * FILTERS + 2 * NORMS + 2560}


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


def test_names_of_speedrun():
    want = {"0.weight": (24, 2, 2, 3), "0.bias": (24,), "25.weight": (10, 256)}
    for i, (C, K) in {2: (24, 64), 6: (64, 64), 9: (64, 256), 13: (256, 256), 16: (256, 256),
                      20: (256, 256)}.items():
        norm = i + 1 + (i in (2, 9, 16))  # behind the pool
        want |= {f"{i}.weight": (K, 3, 3, C), f"{norm}.num_batches_tracked": ()}
        want |= {f"{norm}.{n}": (K,) for n in ("weight", "bias", "running_mean", "running_var")}
    assert {n: a.shape for n, a in models.speedrun().state_dict().items()} == want


def test_speedrun_learns_1_971_640_parameters_but_for_288_that_are_whitened():
    model = models.speedrun()
    learned = {n: p.size for n, p in model.named_parameters() if p.requires_grad}
    assert sum(learned.values()) == 1_971_640 - 288 and COUNTS["speedrun"] == 1_971_640 + NORMS
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    assert not {"0.weight", "4.weight", "21.weight"} & set(learned) and len(norms) == 6
    assert all((m.eps, m.momentum) == (1e-12, 0.4) and (m.weight.data == 1).all() for m in norms)


def test_speedrun_begins_with_identities_and_a_head_of_deviation_one(rng):
    model = models.speedrun()
    x = rng.standard_normal((1, 5, 5, 64)).astype("float32")
    np.testing.assert_array_equal(model[6].predict(x), x)
    np.testing.assert_array_equal(model[9].predict(x)[..., :64], x)
    rest = model[9].weight.data[64:]
    assert rest.std() == pytest.approx((9 * 64 * 3) ** -0.5, rel=0.05)
    assert model[25].weight.data.std() == pytest.approx(1, rel=1e-6)
    assert model[26].factor == 1 / 256


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_first_layer_of_speedrun_whitens_patches(xp, rng, dtype):
    model = models.speedrun().to("cpu" if xp is np else "cuda", dtype)
    images = (rng.standard_normal((40, 9, 9, 3)) @ rng.standard_normal((3, 3))).astype(dtype)
    model.prepare(xp.asarray(images))
    patches = np.lib.stride_tricks.sliding_window_view(images.astype(float), (2, 2), (1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    seen = patches @ host(model[0].weight.data).astype(float).reshape(24, 12).T
    np.testing.assert_allclose(seen.T @ seen / len(seen), np.block(
        [[np.eye(12), -np.eye(12)], [-np.eye(12), np.eye(12)]]), atol=0.06)
    assert not model[0].weight.requires_grad


def test_filters_start_as_pytorchs_do():
    random.seed(1)
    weight = models.cifar_convnet()[17].weight.data
    limit = (1 / (9 * 128)) ** 0.5  # uniform between -limit and limit
    assert abs(weight).max() <= limit and weight.std() == pytest.approx(limit / 3**0.5, rel=0.02)
    random.seed(1)
    np.testing.assert_array_equal(models.cifar_convnet()[17].weight.data, weight)


def scaled(torch):
    """What makes a layer of PyTorch's that multiplies as nn.Scale does."""
    class Scaled(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return x * self.factor

    return lambda m: Scaled(m.factor)


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
            layers.append(torch.nn.Linear(n, K, bias=m.bias is not None))
            orders[f"{i}.weight"] = lambda a, H=H, C=channels: (
                a.reshape(-1, H, H, C).transpose(0, 3, 1, 2).reshape(len(a), -1))  # (K, C*H*W)
        else:
            layers.append({
                nn.BatchNorm2d: lambda m: torch.nn.BatchNorm2d(len(m.weight), m.eps, m.momentum),
                **{layer: lambda m: getattr(torch.nn, type(m).__name__)()
                   for layer in (*ACTIVATION_LAYERS, nn.Flatten)},
                nn.Scale: scaled(torch),
                nn.MaxPool2d: lambda m: torch.nn.MaxPool2d(m.window.size)}[type(m)](m))
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
        if not p.requires_grad:
            assert p.grad is None
            continue
        close(permuted(n, p.grad), gradients[n].grad.numpy(), terms=1 << 14)
    for n, b in ours.named_buffers():
        close(b, dict(theirs.named_buffers())[n].numpy(), terms=1 << 12)


SMALL = {"speedrun": 25}  # pixels: the stand-in takes a second for a dozen million products


@pytest.mark.parametrize("name", models.MODELS)
def test_cuda_is_numpy(cp, rng, name):
    random.seed(3)
    model = models.MODELS[name](image=(image := SMALL.get(name, 32)))
    x = rng.standard_normal((1, image, image, 3)).astype("float32")
    want = model.predict(x)
    got = model.to("cuda").predict(cp.asarray(x))
    assert isinstance(got, cp.ndarray)
    close(host(got), want, terms=1 << 12)


# -- other images ------------------------------------------------------------------------

# image: what Linear sees, by hand: pools by 2 (3 of them, 1, 3 and one by 3), each rounding down
LINEAR = {"cifar_convnet": {8: 128, 9: 128, 28: 9 * 128, 64: 64 * 128},
          "simple_convnet": {2: 32, 3: 32, 28: 196 * 32, 64: 1024 * 32},
          "speedrun": {25: 256, 48: 256, 49: 4 * 256}}


@pytest.mark.parametrize("name, image", [(n, i) for n, sizes in LINEAR.items() for i in sizes])
def test_other_image_sizes(name, image):
    model = models.MODELS[name](in_channels=2, classes=5, image=image)
    *_, last = (m for m in model if isinstance(m, nn.Linear))
    assert last.weight.shape == (5, LINEAR[name][image])
    assert model.predict(np.zeros((2, image, image, 2), "float32")).shape == (2, 5)


@pytest.mark.parametrize("name, arguments, error, message", [
    ("cifar_convnet", dict(image=7), ValueError, "image is 7 pixels, wanted at least 8"),
    ("simple_convnet", dict(image=1), ValueError, "image is 1 pixels, wanted at least 2"),
    ("speedrun", dict(image=24), ValueError, "speedrun: image is 24 pixels, wanted at least 25"),
    ("cifar_convnet", dict(image=0), ValueError, "cifar_convnet: image is 0, wanted at least 1"),
    ("cifar_convnet", dict(image=32.0), TypeError, "cifar_convnet: image is 32.0, wanted a whole"),
    ("simple_convnet", dict(in_channels=0), ValueError, "simple_convnet: in_channels is 0"),
    ("simple_convnet", dict(classes=0), ValueError, "classes is 0"),
])
def test_refuses_sizes(name, arguments, error, message):
    with pytest.raises(error, match=message):
        models.MODELS[name](**arguments)


# -- descriptions ------------------------------------------------------------------------

NOTATION = "INPUT 12x8x1 | CONV3-4 RELU | FC 6"
DESCRIBED = [  # what describe is asked, its answer, the input shape
    (("cifar_convnet", {}), {"name": "cifar_convnet", "arguments": {
        "in_channels": 3, "classes": 10, "image": 32}}, (32, 32, 3)),
    ((" simple_convnet\n", dict(in_channels=1, classes=4, image=28)), {
        "name": "simple_convnet", "arguments": {"in_channels": 1, "classes": 4, "image": 28}},
     (28, 28, 1)),
    (("simple_convnet", dict(image=(16, 16))), {"name": "simple_convnet", "arguments": {
        "in_channels": 3, "classes": 10, "image": 16}}, (16, 16, 3)),
    ((NOTATION, {}), {"notation": NOTATION}, (12, 8, 1)),
    ((f"  {NOTATION} \n", dict(in_channels=1, classes=6, image=(12, 8))), {"notation": NOTATION},
     (12, 8, 1)),
    (("input4x4x2,fc3", dict(image=4)), {"notation": "input4x4x2,fc3"}, (4, 4, 2)),
]


@pytest.mark.parametrize("asked, want, shape", DESCRIBED)
def test_a_description_is_json_and_builds_the_net(asked, want, shape):
    text, data = asked
    description = models.describe(text, **data)
    assert description == want == json.loads(json.dumps(description))
    assert models.input_shape(description) == shape
    y = models.build(description).predict(np.zeros((2, *shape), "float32"))
    assert y.shape[1:] == (data.get("classes") or y.shape[1],)


def test_every_model_has_the_three_arguments_of_a_description():
    for make in models.MODELS.values():
        assert list(inspect.signature(make).parameters)[:3] == ["in_channels", "classes", "image"]


@pytest.mark.parametrize("text, data, message", [
    ("cifar_convnt", {}, "unknown model 'cifar_convnt': wanted cifar_convnet, simple_convnet"),
    ("", {}, "unknown model ''"),
    ("cifar_convnet", dict(image=(32, 16)), "square images, not for 32 pixels high and 16 wide"),
    (NOTATION, dict(image=12), "images of 12x8x1, the data are 12x12x1\n.*\n    \\^{12}$"),
    (NOTATION, dict(image=(8, 12)), "images of 12x8x1, the data are 8x12x1"),
    (NOTATION, dict(in_channels=3), "images of 12x8x1, the data are 12x8x3"),
    (NOTATION, dict(classes=10), "the net gives 6 numbers, the data have 10 classes\n.*\n"
                                 " {34}\\^{4}$"),
    ("INPUT 4x4x3 CONV3-10", dict(classes=10), "ends in an image of 4x4x10, the data have 10 cla"),
    ("INPUT 4x4x3 CNOV3-10", {}, "cannot read 'CNOV3-10'"),
    ("conv net", {}, "character 1: cannot read 'conv'"),
])
def test_describe_refuses(text, data, message):
    with pytest.raises(ValueError, match=message):
        models.describe(text, **data)


@pytest.mark.parametrize("description, message", [
    ({}, r"no description of a model: \{\}, wanted"),
    (None, "no description of a model: None"),
    ({"notation": 3}, "no description of a model"),
    ({"notation": NOTATION, "name": "cifar_convnet"}, "no description of a model"),
    ({"name": ["cifar_convnet"]}, "no description of a model"),
    ({"name": "resnet"}, "unknown model 'resnet'"),
    ({"name": "cifar_convnet", "arguments": {"depth": 3}}, "unexpected keyword argument 'depth'"),
    ({"name": "cifar_convnet", "arguments": [3]}, r"cifar_convnet: arguments \[3\]"),
    ({"name": "cifar_convnet", "arguments": {"image": "32"}}, "image is '32', wanted a whole"),
    ({"name": "cifar_convnet", "arguments": {"image": 4}}, "image is 4 pixels"),
    ({"notation": "INPUT 4x4x3 FC"}, "wanted FC n"),
])
def test_build_refuses(description, message):
    with pytest.raises(ValueError, match=message):
        models.build(description)


@pytest.mark.parametrize("arguments", [{"image": "32"}, {"in_channels": 0}, {"image": None}])
def test_input_shape_refuses(arguments):
    with pytest.raises(ValueError, match="model cifar_convnet: (image|in_channels) is"):
        models.input_shape({"name": "cifar_convnet", "arguments": arguments})
