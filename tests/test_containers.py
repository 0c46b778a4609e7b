"""Sequential, ModuleList, Residual."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check import close, grad_check, host
from gpuconv import nn
from gpuconv.autograd import Op, Parameter, Tensor, no_grad
from gpuconv.backend import get_array_module
from gpuconv.nn.layers import ACTIVATION_LAYERS
from gpuconv.nn.observed import observed
from gpuconv.ops.elementwise import saves_result
from gpuconv.ops.reduce.reduction import sum_


class Scale(nn.Module):
    """y = x * weight."""

    def __init__(self, value):
        self.weight = Parameter(np.full((), value, "float32"))

    def forward(self, x):
        return x * self.weight


class Sum(nn.Module):
    def forward(self, x):
        return sum_(x, axis=1)


def test_sequential_is_a_chain(xp):
    chain = nn.Sequential(Scale(2), Scale(3), nn.Identity())
    if xp is not np:
        chain.to("cuda")
    y = chain(xp.ones(3, "float32"))
    assert isinstance(y, Tensor)
    close(y.data, np.full(3, 6, "float32"))
    assert list(chain.state_dict()) == ["0.weight", "1.weight"]


def test_sequential_as_a_list():
    a, b, c = Scale(1), Scale(2), Scale(3)
    chain = nn.Sequential(a, b)
    assert chain.append(c) is chain
    assert len(chain) == 3 and list(chain) == [a, b, c]
    assert chain[0] is a and chain[-1] is c
    part = chain[1:]
    assert type(part) is nn.Sequential and list(part) == [b, c]
    assert list(part.state_dict()) == ["0.weight", "1.weight"]
    assert list(chain[::-1]) == [c, b, a]
    with pytest.raises(IndexError):
        chain[3]


def test_one_module_may_stand_at_two_places():
    a = Scale(2)
    chain = nn.Sequential(a, nn.Identity(), a)
    assert len(chain) == 3 and chain[2] is a
    assert chain(np.ones(1, "float32")).item() == 4
    assert list(chain.state_dict()) == ["0.weight"]


def test_an_empty_chain_is_the_identity():
    x = Tensor(np.ones(2))
    assert nn.Sequential()(x) is x and len(nn.Sequential()) == 0


class Bent(nn.ReLU):
    """Half of it."""

    def forward(self, x):
        return super().forward(x) * 0.5


def normed(*modules):
    """A chain with weights and statistics that are not 1 and 0."""
    chain = nn.Sequential(*modules)
    for norm in (m for m in chain.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data[...], norm.bias.data[...] = np.arange(-1, 2), np.arange(3)
        norm.running_mean[...], norm.running_var[...] = np.arange(3), np.arange(1, 4)
    return chain


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_batch_norm_and_relu_run_as_one_op_with_the_same_bits(rng, training):
    x, gy = rng.standard_normal((2, 4, 5, 5, 3)).astype("float32")
    results = []
    for apart in (False, True):
        chain = normed(nn.BatchNorm2d(3), nn.ReLU()).train(training)
        held = Tensor(x, requires_grad=True)
        y = chain[1](chain[0](held)) if apart else chain(held)
        assert type(y.creator).__name__ == ("ReLU" if apart else "BatchNorm")
        y.backward(gy)
        results.append([y.data, held.grad, *(p.grad for p in chain.parameters()),
                        *chain.buffers()])
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("modules, ops", [
    ([nn.BatchNorm2d(3), nn.ReLU(), nn.ReLU(), nn.BatchNorm2d(3)], "BatchNorm ReLU BatchNorm"),
    ([nn.ReLU(), nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()], "ReLU BatchNorm ReLU"),
    ([nn.BatchNorm2d(3), Bent()], "BatchNorm ReLU Scale"),
    ([type("Own", (nn.BatchNorm2d,), {})(3), nn.ReLU()], "BatchNorm ReLU"),
    ([nn.BatchNorm2d(3), nn.Sequential(nn.ReLU())], "BatchNorm ReLU"),
], ids=["in between", "something between", "own ReLU", "own norm", "a chain inside"])
def test_only_plain_neighbours_do(rng, monkeypatch, modules, ops):
    seen = []
    call = Op.__call__
    monkeypatch.setattr(Op, "__call__", lambda op, *inputs: seen.append(
        type(op).__name__) or call(op, *inputs))
    normed(*modules)(rng.standard_normal((4, 5, 5, 3)).astype("float32"))
    assert seen[:len(ops.split()[:2])] == ops.split()[:2]
    assert len(seen) == len(ops.split())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 4), stride=st.integers(1, 4), padding=st.integers(0, 2),
       ceil=st.booleans(), seed=st.integers(0, 99), data=st.data())
def test_relu_and_max_pool_change_places_with_the_same_bits(size, stride, padding, ceil, seed,
                                                            data):
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 3, (2, 6, 7, 3)).astype("float32")  # ties, and windows below 0
    for value in (np.nan, -np.nan, np.inf, -np.inf, -0.0):
        if data.draw(st.booleans()):
            x[tuple(rng.integers(0, x.shape))] = value
    pool = nn.MaxPool2d(size, stride, min(padding, size // 2), ceil_mode=ceil)
    chain, results = nn.Sequential(nn.ReLU(), pool), []
    for apart in (False, True):
        held = Tensor(x, requires_grad=True)
        y = pool(chain[0](held)) if apart else chain(held)
        assert type(y.creator).__name__ == ("MaxPool2d" if apart else "ReLU")
        y.backward(np.random.default_rng(seed).standard_normal(y.shape).astype("float32"))
        results.append((y.data, held.grad))
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


def test_relu_stays_before_a_pool_whose_windows_may_be_empty():
    chain = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 1, 1, dilation=2))
    y = chain(Tensor(np.ones((1, 3, 3, 1), "float32"), requires_grad=True))
    assert type(y.creator).__name__ == "MaxPool2d"


# -- on a GPU ------------------------------------------------------------------------------

CHAINS = {  # modules on images (2, 6, 6, 8): ops in training, in inference
    "conv norm relu": (lambda: [conv(), nn.BatchNorm2d(8), nn.ReLU()],
                       "ConvBatchNorm", "ConvBatchNorm"),
    "conv pool norm gelu": (lambda: [conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.GELU()],
                            "ConvBatchNorm", "ConvBatchNorm"),
    "conv with bias, norm": (lambda: [conv(bias=True), nn.BatchNorm2d(8), nn.GELU()],
                             "Conv2d BatchNorm", "Conv2d BatchNorm"),
    "conv relu pool": (lambda: [conv(bias=True), nn.ReLU(), nn.MaxPool2d(2)],
                       "ConvMaxPool", "ConvMaxPool"),
    "conv pool relu": (lambda: [conv(bias=True), nn.MaxPool2d(2), nn.ReLU()],
                       "ConvMaxPool", "ConvMaxPool"),
    "conv relu wide pool": (lambda: [conv(), nn.ReLU(), nn.MaxPool2d(3, 2)],
                            "Conv2d MaxPool2d ReLU", "Conv2d MaxPool2d ReLU"),
    **{f"conv {name}": (lambda layer=layer: [conv(), layer()], "Conv2d" if saves_result(name) else
                        f"Conv2d {layer.__name__}", "Conv2d")
       for layer, name in ACTIVATION_LAYERS.items()},
    "own activation": (lambda: [conv(), type("Own", (nn.ReLU,), {})()], "Conv2d ReLU",
                       "Conv2d ReLU"),
    "reflected": (lambda: [conv(padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)],
                  "Pad2d Conv2d BatchNorm", "Pad2d Conv2d BatchNorm"),
    "groups": (lambda: [nn.Conv2d(8, 8, 1, groups=4), nn.MaxPool2d(2)],
               "Conv2d MaxPool2d", "Conv2d MaxPool2d"),
    "linear relu": (lambda: [nn.Flatten(), nn.Linear(288, 8), nn.ReLU()],
                    "Reshape Linear", "Reshape Linear"),
    "own norm": (lambda: [conv(), type("Own", (nn.BatchNorm2d,), {})(8), nn.ReLU()],
                 "Conv2d BatchNorm ReLU", "Conv2d BatchNorm ReLU"),
    "residual": (lambda: [nn.Residual(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(),
                                      nn.BatchNorm2d(8)), nn.ReLU()],
                 "ConvBatchNorm ConvBatchNorm", "ConvBatchNorm ConvBatchNorm"),
    "residual with a shortcut": (
        lambda: [nn.Residual(nn.BatchNorm2d(8), conv(bias=True), shortcut=conv()), nn.ReLU()],
        "Conv2d BatchNorm Conv2d", "Conv2d BatchNorm Conv2d"),
    "residual without a norm": (lambda: [nn.Residual(nn.Sigmoid()), nn.ReLU()],
                                "Sigmoid Add ReLU", "Sigmoid Add ReLU"),
}


def conv(bias=False, **options):
    return nn.Conv2d(8, 8, 1, bias=bias, **options)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", CHAINS)
def test_what_follows_a_convolution_runs_with_it(cp, rng, monkeypatch, name, training):
    build, *ops_of = CHAINS[name]
    cpu, gpu = (nn.Sequential(*build()) for _ in range(2))
    gpu.load_state_dict(cpu.state_dict())
    gpu.to("cuda")
    x = rng.standard_normal((2, 6, 6, 8)).astype("float32")
    seen, call = [], Op.__call__
    results = []
    for model, array in ((cpu, x), (gpu, cp.asarray(x))):
        model.train(training)
        monkeypatch.setattr(Op, "__call__", lambda op, *inputs: seen.append(
            type(op).__name__) or call(op, *inputs))
        seen.clear()
        with contextlib.nullcontext() if training else no_grad():
            y = model(array)
        monkeypatch.undo()
        held = Tensor(array, requires_grad=True)
        (model(held) * 1.0).backward(as_gradient(y))
        results.append([y.data, held.grad, *(p.grad for p in model.parameters()),
                        *model.buffers()])
    assert seen == ops_of[not training].split()
    if name == "conv with bias, norm":  # whose bias makes no difference, but for rounding
        del results[0][3:4], results[1][3:4]
    for a, b in zip(*results, strict=True):
        close(b, host(a), terms=600)


def as_gradient(y):
    xp = get_array_module(y.data)
    return xp.asarray(np.resize(np.linspace(-1, 1, 53), y.shape).astype("float32"))


@pytest.mark.parametrize("name", ["conv norm relu", "residual", "conv relu pool"])
def test_on_a_gpu_too_an_observer_sees_all_and_nothing_else_changes(cp, rng, name):
    chain = nn.Sequential(*CHAINS[name][0]()).to("cuda")
    names, seen = list(chain.state_dict()), []

    def around(path, module, forward, *inputs):
        seen.append(path)
        return forward(*inputs)

    x = cp.asarray(rng.standard_normal((2, 6, 6, 8)).astype("float32"))
    got = chain.eval()(x).data
    with observed(chain, around):
        close(chain(x).data, host(got), terms=100)
    assert sorted(seen) == sorted(path for path, _ in chain.named_modules())
    assert list(chain.state_dict()) == names
    assert str(nn.summary(chain, (6, 6, 8))).replace("cuda", "cpu") == str(
        nn.summary(chain.to("cpu"), (6, 6, 8)))


@pytest.mark.parametrize("path", ["0", "1"])
def test_an_observer_sees_both(rng, path):
    seen = []

    def around(path, module, forward, *inputs):
        seen.append(path)
        return forward(*inputs)

    chain = normed(nn.BatchNorm2d(3), nn.ReLU())
    x = rng.standard_normal((4, 5, 5, 3)).astype("float32")
    with observed(chain, around):
        got = chain(x).data
    assert seen == ["", "0", "1"]
    seen.clear()
    with observed(chain[int(path)], around):
        np.testing.assert_array_equal(chain(x).data, got)
    assert seen == [""]
    np.testing.assert_array_equal(chain(x).data, got)


def test_module_list():
    class Owner(nn.Module):
        def __init__(self):
            self.parts = nn.ModuleList(Scale(i) for i in range(3))

        def forward(self, x):
            return self.parts[0](x) + self.parts[2](x)

    owner = Owner()
    owner.parts.append(Scale(3))
    assert [n for n, _ in owner.named_parameters()] == [f"parts.{i}.weight" for i in range(4)]
    assert type(owner.parts[:2]) is nn.ModuleList and len(owner.parts[:2]) == 2
    assert owner(np.ones(1, "float32")).item() == 2
    with pytest.raises(NotImplementedError, match="ModuleList defines no forward"):
        owner.parts(np.ones(1))


def test_residual(xp):
    block = nn.Residual(Scale(2), Scale(3))
    other = nn.Residual(Scale(2), shortcut=Scale(10))
    if xp is not np:
        block.to("cuda"), other.to("cuda")
    x = xp.ones(2, "float32")
    assert host(block(x).data).tolist() == [7, 7]
    assert host(other(x).data).tolist() == [12, 12]
    assert list(block.state_dict()) == ["body.0.weight", "body.1.weight"]
    assert list(other.state_dict()) == ["body.0.weight", "shortcut.weight"]


def test_gradients_of_both_branches_add(rng):
    block = nn.Residual(Scale(2), Scale(3)).to("float64")
    grad_check(block, rng.standard_normal((2, 3)), rng=rng)
    x = Tensor(np.ones(2), requires_grad=True)
    block.zero_grad()
    block(x).backward(np.ones(2))
    assert x.grad.tolist() == [7, 7]
    assert block.body[0].weight.grad == 6 and block.body[1].weight.grad == 4


@pytest.mark.parametrize("make, error, message", [
    (lambda: nn.Sequential(Scale(1), 3), TypeError, "Sequential: item 1 is int, wanted a Module"),
    (lambda: nn.Sequential([Scale(1)]), TypeError, "Sequential: item 0 is list, wanted a Module"),
    (lambda: nn.ModuleList([None]), TypeError, "ModuleList: item 0 is NoneType"),
    (lambda: nn.Residual(Scale(1), shortcut=3), TypeError, "Residual: shortcut is int"),
    (lambda: nn.Residual(Sum())(np.ones((2, 1))), ValueError,
     r"Residual: body gives \(2,\), shortcut \(2, 1\)"),
])
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_repr():
    assert repr(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Identity()))) == (
        "Sequential(\n  0: ReLU()\n  1: Sequential(\n    0: Identity()\n  )\n)")
