"""Models: names, shapes, counts, descriptions, and equality with a twin of PyTorch's layers."""

import inspect
import json

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


# -- other images ------------------------------------------------------------------------

# image: what Linear sees, by hand: 3 pools, 1 pool, each rounding down
LINEAR = {"cifar_convnet": {8: 128, 9: 128, 28: 9 * 128, 64: 64 * 128},
          "simple_convnet": {2: 32, 3: 32, 28: 196 * 32, 64: 1024 * 32}}


@pytest.mark.parametrize("name, image", [(n, i) for n, sizes in LINEAR.items() for i in sizes])
def test_other_image_sizes(name, image):
    model = models.MODELS[name](in_channels=2, classes=5, image=image)
    assert list(model)[-1].weight.shape == (5, LINEAR[name][image])
    assert model.predict(np.zeros((2, image, image, 2), "float32")).shape == (2, 5)


@pytest.mark.parametrize("name, arguments, error, message", [
    ("cifar_convnet", dict(image=7), ValueError, "image is 7 pixels, wanted at least 8"),
    ("simple_convnet", dict(image=1), ValueError, "image is 1 pixels, wanted at least 2"),
    ("cifar_convnet", dict(image=0), ValueError, "cifar_convnet: image is 0, wanted at least 1"),
    ("cifar_convnet", dict(image=32.0), TypeError, "cifar_convnet: image is 32.0, wanted an int"),
    ("simple_convnet", dict(in_channels=0), ValueError, "simple_convnet: in_channels is 0"),
    ("simple_convnet", dict(classes=0), ValueError, "out_features is 0"),
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
    ({"name": "cifar_convnet", "arguments": {"image": "32"}}, "image is '32', wanted an int"),
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
