"""Fusion: which layers run together, on both devices; the same result as layer by layer."""

import copy
import functools
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check import close, host
from gpuconv import kernels, nn, random
from gpuconv.autograd import Op, Tensor, no_grad
from gpuconv.backend import get_array_module
from gpuconv.nn import fusion
from gpuconv.nn import observed as observers
from gpuconv.nn.layers import ACTIVATION_LAYERS
from gpuconv.nn.observed import observed
from gpuconv.ops.elementwise import saves_result


def calls(model, x):
    """Paths of the calls that an observer sees; those of layers that run together joined."""
    return ["+".join(paths) for paths in observers.calls(model, x)]


def conv(bias=False, **options):
    return nn.Conv2d(8, 8, 1, bias=bias, **options)


def norm():
    return nn.BatchNorm2d(8)


class Bent(nn.ReLU):
    """Half of it."""

    def forward(self, x):
        return super().forward(x) * 0.5


def own(layer):
    """The same layer, of a subclass that changes nothing."""
    layer.__class__ = type("Own", (type(layer),), {})
    return layer


def hand_set(layer):
    """The same layer, with a forward that somebody has set."""
    layer.forward = functools.partial(type(layer).forward, layer)
    return layer


CHAINS = {  # modules on images (2, 6, 6, 8): what runs together on a GPU, and on the CPU
    "conv norm": (lambda: [conv(), norm()], "0+1", "0 1"),
    "conv norm relu": (lambda: [conv(), norm(), nn.ReLU()], "0+1+2", "0 1+2"),
    "conv pool norm gelu": (lambda: [conv(), nn.MaxPool2d(2), norm(), nn.GELU()],
                            "0+1+2+3", "0 1 2 3"),
    "conv pool": (lambda: [conv(bias=True), nn.MaxPool2d(2)], "0+1", "0 1"),
    "conv pool relu": (lambda: [conv(bias=True), nn.MaxPool2d(2), nn.ReLU()], "0+1+2", "0 1 2"),
    "conv relu pool": (lambda: [conv(bias=True), nn.ReLU(), nn.MaxPool2d(2)], "0+1+2", "0 1+2"),
    "conv relu wide pool": (lambda: [conv(), nn.ReLU(), nn.MaxPool2d(3, 2)], "0+1+2", "0 1+2"),
    **{f"conv {name}": (lambda layer=layer: [conv(bias=True), layer()], "0+1", "0 1")
       for layer, name in ACTIVATION_LAYERS.items()},
    "conv alone": (lambda: [conv(), nn.Identity(), nn.ReLU()], "0 1 2", "0 1 2"),
    "linear relu": (lambda: [nn.Flatten(), nn.Linear(288, 8), nn.ReLU()], "0 1+2", "0 1 2"),
    "linear alone": (lambda: [nn.Flatten(), nn.Linear(288, 8)], "0 1", "0 1"),
    "norm relu": (lambda: [norm(), nn.ReLU()], "0+1", "0+1"),
    "norm gelu": (lambda: [norm(), nn.GELU()], "0+1", "0 1"),
    "norm relu relu norm": (lambda: [norm(), nn.ReLU(), nn.ReLU(), norm()], "0+1 2 3", "0+1 2 3"),
    "relu pool": (lambda: [nn.ReLU(), nn.MaxPool2d(2)], "0+1", "0+1"),
    "residual": (lambda: [nn.Residual(conv(), norm(), nn.ReLU(), conv(), norm()), nn.ReLU()],
                 "0.body.0+0.body.1+0.body.2 0.body.3+0.body.4+0+1",
                 "0 0.body 0.body.0 0.body.1+0.body.2 0.body.3 0.body.4 1"),
    "shortcut": (lambda: [nn.Residual(norm(), conv(bias=True), shortcut=conv()), nn.ReLU()],
                 "0.body.0 0.shortcut 0.body.1+0+1",
                 "0 0.body 0.body.0 0.body.1 0.shortcut 1"),
    "residual norm": (lambda: [nn.Residual(nn.Identity(), norm())], "0.body.0 0.body.1+0",
                      "0 0.body 0.body.0 0.body.1"),
    "residual in residual": (lambda: [nn.Residual(nn.Residual(conv(), nn.ReLU()), norm())],
                             "0.body.0.body.0+0.body.0.body.1 0.body.0 0.body.1+0",
                             "0 0.body 0.body.0 0.body.0.body 0.body.0.body.0 "
                             "0.body.0.body.1 0.body.1"),
    "residual without a norm": (lambda: [nn.Residual(nn.Sigmoid()), nn.ReLU()],
                                "0.body.0 0 1", "0 0.body 0.body.0 1"),
    # settings and classes that prevent it
    "bias before a norm": (lambda: [conv(bias=True), norm(), nn.GELU()], "0 1+2", "0 1 2"),
    "reflected": (lambda: [conv(padding=1, padding_mode="reflect"), norm()], "0 1", "0 1"),
    "reflected, pool": (lambda: [conv(padding=1, padding_mode="reflect"), nn.MaxPool2d(2)],
                        "0 1", "0 1"),
    "reflected, relu": (lambda: [conv(padding=1, padding_mode="reflect"), nn.ReLU()],
                        "0+1", "0 1"),
    "groups": (lambda: [nn.Conv2d(8, 8, 1, groups=4), nn.MaxPool2d(2)], "0 1", "0 1"),
    "groups, norm": (lambda: [nn.Conv2d(8, 8, 1, groups=4, bias=False), norm()], "0 1", "0 1"),
    "dilated pool": (lambda: [nn.ReLU(), nn.MaxPool2d(2, 1, 1, dilation=2)], "0 1", "0 1"),
    "conv, dilated pool": (lambda: [conv(), nn.ReLU(), nn.MaxPool2d(2, 1, 1, dilation=2)],
                           "0+1 2", "0 1 2"),
    "wide pool before a norm": (lambda: [conv(), nn.MaxPool2d(3, 2), norm()], "0 1 2", "0 1 2"),
    "pool with a stride": (lambda: [conv(), nn.MaxPool2d(2, 1)], "0 1", "0 1"),
    "own ReLU": (lambda: [norm(), Bent()], "0 1", "0 1"),
    "own norm": (lambda: [conv(), own(norm()), nn.ReLU()], "0 1 2", "0 1 2"),
    "own conv": (lambda: [own(conv()), nn.ReLU()], "0 1", "0 1"),
    "own linear": (lambda: [nn.Flatten(), own(nn.Linear(288, 8)), nn.ReLU()], "0 1 2", "0 1 2"),
    "own pool": (lambda: [nn.ReLU(), own(nn.MaxPool2d(2))], "0 1", "0 1"),
    "own residual": (lambda: [own(nn.Residual(conv(), norm())), nn.ReLU()],
                     "0 0.body.0+0.body.1+0 1", "0 0.body 0.body.0 0.body.1 1"),
    "hand-set norm": (lambda: [conv(), hand_set(norm()), nn.ReLU()], "0 1 2", "0 1 2"),
    "hand-set relu": (lambda: [norm(), hand_set(nn.ReLU())], "0 1", "0 1"),
    "hand-set residual": (lambda: [hand_set(nn.Residual(conv(), norm())), nn.ReLU()],
                          "0 0.body.0+0.body.1+0 1", "0 0.body 0.body.0 0.body.1 1"),
    "hand-set body": (lambda: [hand_set_body(nn.Residual(conv(), norm())), nn.ReLU()],
                      "0 0.body 0.body.0+0.body.1 1", "0 0.body 0.body.0 0.body.1 1"),
    "a chain inside": (lambda: [norm(), nn.Sequential(nn.ReLU())], "0 1 1.0", "0 1 1.0"),
}
NUMBERS = [name for name in CHAINS if not name.startswith(("own", "hand", "other", "a chain"))]


def hand_set_body(residual):
    hand_set(residual.body)
    return residual


def images(rng, xp=np):
    return xp.asarray(rng.standard_normal((2, 6, 6, 8)).astype("float32"))


def chain_of(name):
    """The chain, with statistics and parameters of its norms that are not 0 and 1."""
    chain = nn.Sequential(*CHAINS[name][0]())
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[...], module.bias.data[...] = np.linspace(-1, 2, 8), np.arange(8)
            module.running_mean[...], module.running_var[...] = np.arange(8), np.arange(1, 9)
    return chain


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", CHAINS)
def test_what_runs_together(rng, name, device):
    """Also the patterns of a GPU can be run on the CPU: that gives the same."""
    _, *plans = CHAINS[name]
    chain, x = chain_of(name).eval(), images(rng)
    want = chain(x).data
    with fusion.planned_for(device):
        assert calls(chain, x) == ["", *plans[device == "cpu"].split()]
        np.testing.assert_array_equal(chain(x).data, want)


def test_every_pattern_of_the_table_has_a_chain(rng, monkeypatch):
    seen, run = set(), fusion._Run.__call__
    for name in CHAINS:
        for device in ("cpu", "cuda"):
            monkeypatch.setattr(fusion._Run, "__call__", lambda self, x, device=device: seen.add(
                (device, self.pattern)) or run(self, x))
            with fusion.planned_for(device):
                chain_of(name)(images(rng))
    assert seen == {(device, p) for p in fusion.PATTERNS for device in p.devices}


# -- results -------------------------------------------------------------------------------


def one_by_one(chain, x):
    """The chain's value, without its forward."""
    for module in chain:
        if isinstance(module, nn.Residual):
            y = one_by_one(module.body, x)
            x = y + (module.shortcut(x) if module.shortcut else x)
        else:
            x = module(x)
    return x


def results(run, chain, x, training):
    """Value without gradients; value, gradients and buffers with them."""
    chain.train(training)
    with no_grad():
        alone = run(chain, x).data
    held = Tensor(x, requires_grad=True)
    y = run(chain, held)
    gy = np.resize(np.linspace(-1, 1, 53), y.shape).astype("float32")
    y.backward(get_array_module(x).asarray(gy))
    return [alone, y.data, held.grad, *(p.grad for p in chain.parameters()), *chain.buffers()]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", NUMBERS)
def test_it_is_layer_by_layer(xp, rng, name, training):
    """To the bit on the CPU; on a GPU within rounding of the CPU."""
    chain, x = chain_of(name), images(rng)
    twin = copy.deepcopy(chain)
    want = results(one_by_one, chain, x, training)
    if xp is not np:
        twin.to("cuda")
    got = results(nn.Module.__call__, twin, xp.asarray(x), training)
    if name == "bias before a norm" and training:  # its gradient is 0, but for rounding
        del got[4], want[4]
    for one, two in zip(got, want, strict=True):
        if xp is np:
            assert one.tobytes() == two.tobytes()
        else:
            close(one, two, terms=600)


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
    chain, found = nn.Sequential(nn.ReLU(), pool), []
    for run in (nn.Module.__call__, one_by_one):
        held = Tensor(x, requires_grad=True)
        y = run(chain, held)
        assert type(y.creator).__name__ == ("MaxPool2d" if run is one_by_one else "ReLU")
        y.backward(np.random.default_rng(seed).standard_normal(y.shape).astype("float32"))
        found.append((y.data, held.grad))
    for one, two in zip(*found, strict=True):
        assert one.tobytes() == two.tobytes()


def ops_of(monkeypatch, chain, x):
    """The names of the ops that run, in order."""
    seen, call = [], Op.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Op, "__call__", lambda op, *inputs: seen.append(
            type(op).__name__) or call(op, *inputs))
        chain(x)
    return " ".join(seen)


@pytest.mark.parametrize("name, with_gradient, without", [
    ("conv norm relu", "ConvBatchNorm", "ConvBatchNorm"),
    ("conv pool norm gelu", "ConvBatchNorm", "ConvBatchNorm"),
    ("conv relu pool", "ConvMaxPool", "ConvMaxPool"),
    ("conv relu wide pool", "Conv2d MaxPool2d ReLU", "Conv2d MaxPool2d ReLU"),
    *((f"conv {name}", "Conv2d" if saves_result(name) else f"Conv2d {layer.__name__}", "Conv2d")
      for layer, name in ACTIVATION_LAYERS.items()),
    ("linear relu", "Reshape Linear", "Reshape Linear"),
    ("residual", "ConvBatchNorm ConvBatchNorm", "ConvBatchNorm ConvBatchNorm"),
    ("shortcut", "BatchNorm Conv2d Conv2d", "BatchNorm Conv2d Conv2d"),
])
def test_which_ops_run_on_a_gpu(cp, rng, monkeypatch, name, with_gradient, without):
    chain, x = chain_of(name).to("cuda"), images(rng, cp)
    assert ops_of(monkeypatch, chain, x) == with_gradient
    with no_grad():
        assert ops_of(monkeypatch, chain, x) == without


# -- disabled ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "conv relu pool"])
def test_disabled_runs_layer_by_layer(xp, rng, name):
    chain, x = chain_of(name).eval(), images(rng, xp)
    if xp is not np:
        chain.to("cuda")
    fused = chain(x).data
    with fusion.disabled():
        assert sorted(calls(chain, x)) == sorted(path for path, _ in chain.named_modules())
        close(chain(x).data, host(fused), terms=100)


def planned(chain=None):
    return calls(chain or nn.Sequential(norm(), nn.ReLU()), np.ones((2, 8), "float32"))[1:]


def test_disabled_nests_and_ends_also_after_an_error():
    with fusion.disabled():
        with fusion.disabled():
            assert planned() == ["0", "1"]
        assert planned() == ["0", "1"]
    assert planned() == ["0+1"]
    with pytest.raises(KeyError), fusion.disabled():
        raise KeyError
    assert planned() == ["0+1"]


def test_disabled_is_of_one_thread():
    found = {}
    inside, done = threading.Event(), threading.Event()

    def other():
        with fusion.disabled():
            inside.set()
            done.wait(10)
            found["other"] = planned()

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    found["this"] = planned()
    done.set()
    thread.join()
    assert found == {"this": ["0+1"], "other": ["0", "1"]}


# -- plans are made anew, and observers see what runs ---------------------------------------


def test_a_chain_may_change_between_two_calls():
    chain = nn.Sequential(norm(), nn.ReLU())
    assert planned(chain) == ["0+1"]
    setattr(chain, "1", nn.Identity())
    assert planned(chain) == ["0", "1"]
    setattr(chain, "1", nn.ReLU())
    hand_set(chain[0])
    assert planned(chain) == ["0", "1"]
    del chain[0].forward
    assert planned(chain) == ["0+1"]


def test_an_observer_of_one_layer_sees_the_op_that_it_runs_in(rng):
    chain, x, seen = chain_of("norm relu"), images(rng), []

    def around(path, module, forward, *inputs):
        seen.append((path, type(module).__name__))
        return forward(*inputs)

    want = chain(x).data
    with observed(chain[0], around):
        np.testing.assert_array_equal(chain(x).data, want)
    assert seen == [("", "BatchNorm2d")]


@pytest.mark.parametrize("name", ["residual", "conv relu pool"])
def test_launches_are_the_same_when_somebody_observes(cp, rng, monkeypatch, name):
    chain, x = chain_of(name).to("cuda", "float16"), images(rng, cp).astype("float16")
    launched, kernel = [], kernels.kernel
    monkeypatch.setattr(kernels, "kernel", lambda file, function, **more: launched.append(
        (function, *sorted(more.items()))) or kernel(file, function, **more))

    def step():
        launched.clear()
        for p in chain.parameters():
            p.grad = None
        y = chain(x)
        y.backward(cp.ones(y.shape, "float16"))
        return list(launched)

    def around(path, module, forward, *inputs):
        return forward(*inputs)

    alone = step()
    with observed(chain, around):
        assert step() == alone
    with fusion.disabled():
        assert len(step()) > len(alone)


def test_a_shortcut_is_freed_when_it_has_been_added(cp):
    """A chain of residual branches does not hold the shortcuts of all of them."""
    end = fusion.Sum(nn.Residual(nn.Identity()))
    x = Tensor(cp.ones((2, 8), "float32"))
    shortcut = weakref.ref(end.begin(x))
    end.compute_shortcut()
    y = end(Tensor(cp.ones((2, 8), "float32")))
    del x
    assert shortcut() is None and host(y.data).tolist() == np.full((2, 8), 2).tolist()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_branches_of_a_residual_draw_in_one_order(device):
    """Two dropouts without keys: the body's draws first, fused or not."""
    net, found = nn.Residual(nn.Dropout(0.5), nn.Scale(10.0), shortcut=nn.Dropout(0.5)), []
    for plan in (fusion.planned_for(device), fusion.disabled()):
        random.seed(0)
        with plan:
            found.append(net(np.ones((4, 9), "float32")).numpy())
    np.testing.assert_array_equal(*found)
