"""Layers: what they pass on to their ops, their parameters, repr, refusals; PyTorch's numbers."""

import math

import numpy as np
import pytest

from check import DTYPES, close, host
from gpuconv import nn, ops, random
from gpuconv.autograd import Tensor
from gpuconv.nn.layers import ACTIVATION_LAYERS
from gpuconv.ops.conv.conv2d import conv2d
from gpuconv.ops.matmul.linear import linear
from gpuconv.ops.pool.avg_pool import avg_pool2d
from gpuconv.ops.pool.global_pool import global_avg_pool2d, global_max_pool2d
from gpuconv.ops.pool.max_pool import max_pool2d

CONVS = [  # arguments of Conv2d(4, 6, ...), repr
    pytest.param(dict(kernel_size=3), "4, 6, (3, 3)", id="plain"),
    pytest.param(dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), bias=False),
                 "4, 6, (3, 2), stride=(2, 1), padding=((1, 1), (0, 0)), bias=False", id="axes"),
    pytest.param(dict(kernel_size=3, padding="same", dilation=2, groups=2),
                 "4, 6, (3, 3), padding='same', dilation=(2, 2), groups=2", id="dilated-groups"),
    pytest.param(dict(kernel_size=3, padding=1, padding_mode="reflect"),
                 "4, 6, (3, 3), padding=((1, 1), (1, 1)), padding_mode='reflect'", id="reflect"),
]
X = (2, 7, 6, 4)
CALLS = [  # layer, what it computes, its repr
    pytest.param(nn.MaxPool2d(2), lambda x: max_pool2d(x, 2), "MaxPool2d((2, 2))", id="max"),
    pytest.param(nn.MaxPool2d((3, 2), 2, 1, 2, True),
                 lambda x: max_pool2d(x, (3, 2), 2, 1, 2, True),
                 "MaxPool2d((3, 2), stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(2, 2), "
                 "ceil_mode=True)", id="max-all"),
    pytest.param(nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                 lambda x: avg_pool2d(x, 3, 2, 1, False, False),
                 "AvgPool2d((3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), "
                 "count_include_pad=False)",
                 id="avg"),
    pytest.param(nn.AvgPool2d(3, 2, 1, True), lambda x: avg_pool2d(x, 3, 2, 1, True),
                 "AvgPool2d((3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), ceil_mode=True)",
                 id="avg-ceil"),
    pytest.param(nn.GlobalAvgPool2d(), global_avg_pool2d, "GlobalAvgPool2d()", id="global-avg"),
    pytest.param(nn.GlobalMaxPool2d(), global_max_pool2d, "GlobalMaxPool2d()", id="global-max"),
    *(pytest.param(layer(), getattr(ops, name), f"{layer.__name__}()", id=name)
      for layer, name in ACTIVATION_LAYERS.items()),
    pytest.param(nn.Scale(1 / 256), lambda x: x * (1 / 256), "Scale(0.00390625)", id="scale"),
    pytest.param(nn.Identity(), lambda x: x, "Identity()", id="identity"),
    pytest.param(nn.Flatten(), lambda x: x.reshape(len(x), -1), "Flatten()", id="flatten"),
]


@pytest.mark.parametrize("arguments, shown", CONVS)
def test_conv_passes_everything_on(rng, arguments, shown):
    layer = nn.Conv2d(4, 6, **arguments)
    assert repr(layer) == f"Conv2d({shown})"
    x = rng.standard_normal(X).astype("float32")
    options = {k: v for k, v in arguments.items() if k not in ("kernel_size", "bias")}
    bias = None if layer.bias is None else layer.bias.data
    y = layer(x)
    assert isinstance(y, Tensor) and y.requires_grad
    np.testing.assert_array_equal(y.data, conv2d(x, layer.weight.data, bias, **options))


@pytest.mark.parametrize("layer, function, shown", CALLS)
def test_layer_is_its_op(xp, rng, layer, function, shown):
    assert repr(layer) == shown
    x = xp.asarray(rng.standard_normal(X).astype("float32"))
    y = layer(x)
    assert isinstance(y, Tensor)
    np.testing.assert_array_equal(host(y.data), host(function(x)))


def test_parameters_start_as_pytorchs_do():
    random.seed(0)
    conv, lin = nn.Conv2d(8, 50, 5, groups=2), nn.Linear(100, 500)
    assert conv.weight.shape == (50, 5, 5, 4) and conv.bias.shape == (50,)
    assert lin.weight.shape == (500, 100) and lin.bias.shape == (500,)
    for p, bound in [(conv.weight, 0.1), (conv.bias, 0.1), (lin.weight, 0.1), (lin.bias, 0.1)]:
        assert p.dtype == "float32" and 0.9 * bound < np.abs(p.data).max() <= np.float32(bound)
        assert p.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.25)
    assert nn.Conv2d(1, 1, 1, bias=False).bias is None and nn.Linear(1, 1, bias=False).bias is None


def test_linear(xp, rng):
    layer = nn.Linear(5, 3)
    assert repr(layer) == "Linear(5, 3)" and repr(nn.Linear(5, 3, bias=False)).endswith("s=False)")
    x = rng.standard_normal((4, 5)).astype("float32")
    want = linear(x, layer.weight.data, layer.bias.data)
    if xp is not np:
        layer.to("cuda")
    close(layer(xp.asarray(x)).data, want, terms=5)


def test_batch_norm_is_pytorchs(xp, rng):
    torch = pytest.importorskip("torch")
    ours, theirs = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3), torch.nn.BatchNorm2d(4, 1e-3, 0.3)
    assert repr(ours) == "BatchNorm2d(4, eps=0.001, momentum=0.3)"
    ours.weight.data = rng.standard_normal(4).astype("float32")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({n: torch.tensor(a) for n, a in ours.state_dict().items()})
    if xp is not np:
        ours.to("cuda")
    counter = ours.num_batches_tracked
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x = (rng.standard_normal(X) * 3 + 5).astype("float32")
        y = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
        close(ours(xp.asarray(x)).data, y.transpose(0, 2, 3, 1), terms=84)
    for name, want in theirs.state_dict().items():
        close(ours.state_dict()[name], want.numpy(), terms=84)
    assert ours.num_batches_tracked is counter and int(counter) == 2 and counter.shape == ()


def test_batch_norm_counts_no_batch_that_failed():
    layer = nn.BatchNorm2d(2)
    with pytest.raises(ValueError):
        layer(np.ones((1, 1, 1, 2), "float32"))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_batch_norm_in_other_dtypes(xp, rng, dtype):
    layer = nn.BatchNorm2d(4).to(*(["cuda"] if xp is not np else []), dtype)
    assert layer.running_mean.dtype == ("float64" if dtype == "float64" else "float32")
    assert layer(xp.asarray(rng.standard_normal(X).astype(layer.dtype))).dtype == layer.dtype


def test_flatten_remembers_the_volume():
    layer = nn.Flatten()
    assert layer.volume is None
    assert layer(np.zeros((2, 4, 5, 3))).shape == (2, 60) and layer.volume == (4, 5, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_keeps_the_dtype(xp, rng, dtype):
    x = Tensor(xp.asarray(rng.standard_normal((4, 3)).astype(dtype)), requires_grad=True)
    y = nn.Scale(0.5)(x)
    y.sum().backward()
    assert y.dtype == x.dtype and (host(y.data) == host(x.data) / 2).all()
    assert (host(x.grad) == 0.5).all()


def test_dropout(xp, rng):
    layer = nn.Dropout(0.25)
    assert repr(layer) == "Dropout(0.25)"
    x = xp.ones((100, 100), "float32")
    y = host(layer(x).data)
    kept = np.float32(1 / 0.75)
    assert set(np.unique(y)) <= {np.float32(0), kept} and abs((y == 0).mean() - 0.25) < 0.02
    assert (host(layer(x).data) != y).any()
    layer.eval()
    np.testing.assert_array_equal(host(layer(x).data), host(x))


def test_dropout_is_a_function_of_seed_path_and_step(xp):
    def run(seed, step):
        net = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
        net.reseed(seed, step)
        x = xp.ones((4, 50), "float32")
        return host(net[0](x).data), host(net[1](x).data)

    first, second = run(3, 7)
    for again, want in zip(run(3, 7), (first, second), strict=True):
        np.testing.assert_array_equal(again, want)
    assert (first != second).any()  # another path
    assert (run(3, 8)[0] != first).any() and (run(4, 7)[0] != first).any()


@pytest.mark.parametrize("make, error, message", [
    (lambda: nn.Conv2d(0, 1, 1), ValueError, "Conv2d: in_channels is 0, wanted at least 1"),
    (lambda: nn.Conv2d(3, 1.5, 1), TypeError, "Conv2d: out_channels is 1.5, wanted a whole number"),
    (lambda: nn.Conv2d(4, 6, 1, groups=4), ValueError,
     "Conv2d: groups 4 must divide 4 in_channels and 6 out_channels"),
    (lambda: nn.Conv2d(4, 6, 0), ValueError, r"window \(0, 0\)"),
    (lambda: nn.Conv2d(4, 6, 1, stride=0), ValueError, r"stride \(0, 0\)"),
    (lambda: nn.Conv2d(4, 6, 1, padding=-1), ValueError, "padding .* at least 0"),
    (lambda: nn.Conv2d(4, 6, 1, padding="full"), ValueError, "padding is 'full', wanted 'same'"),
    (lambda: nn.Conv2d(4, 6, 1, padding_mode="mirror"), ValueError, "padding_mode is 'mirror'"),
    (lambda: nn.Linear(3, 0), ValueError, "Linear: out_features is 0"),
    (lambda: nn.Linear(True, 2), TypeError, "Linear: in_features is True, wanted a whole number"),
    (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: channels is 0"),
    (lambda: nn.BatchNorm2d(2, eps=0), ValueError, "BatchNorm2d: eps is 0, wanted more than 0"),
    (lambda: nn.BatchNorm2d(2, momentum=2), ValueError, "BatchNorm2d: momentum is 2, wanted 0..1"),
    (lambda: nn.MaxPool2d(2, padding=2), ValueError,
     r"MaxPool2d: padding \(\(2, 2\), \(2, 2\)\) is more than half of the window \(2, 2\)"),
    (lambda: nn.AvgPool2d((2, 4), padding=2), ValueError, "AvgPool2d: padding .* more than half"),
    (lambda: nn.MaxPool2d(2, 0), ValueError, r"stride \(0, 0\)"),
    (lambda: nn.Scale(math.nan), ValueError, "Scale: factor is nan, wanted a finite number"),
    (lambda: nn.Dropout(1.5), ValueError, "Dropout: p is 1.5"),
    (lambda: nn.Dropout(-0.1), ValueError, "Dropout: p is -0.1"),
])
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_dropout_draws_anew_within_a_step_and_after_a_run(xp):
    model = nn.Sequential(nn.Dropout(0.5))
    x = Tensor(xp.ones(1000, "float32"))
    model.reseed(1, step=3)
    first, second = (host(model(x).data) for _ in range(2))
    model.reseed(1, step=3)
    assert (host(model(x).data) == first).all() and (second != first).any()
    model.reseed(None)
    assert (host(model(x).data) != host(model(x).data)).any()
