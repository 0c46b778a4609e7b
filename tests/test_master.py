"""Master weights: 16-bit parameters that learn as float32 ones do; who wrote last; state."""

import numpy as np
import pytest
from optim_tools import SHAPES, draw, give, joined, parameters

from check import close, host, make
from gpuconv import files, kernels, nn, ops, threads
from gpuconv.autograd import Parameter
from gpuconv.backend import float_dtype
from gpuconv.optim import EMA, SGD, Adam, AdamW, LossScale

NARROW = ["float16", "bfloat16"]
KINDS = [
    pytest.param(SGD, dict(lr=0.1), id="SGD"),
    pytest.param(SGD, dict(lr=0.1, momentum=0.9), id="momentum"),
    pytest.param(SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05), id="Nesterov"),
    pytest.param(Adam, dict(lr=0.1, weight_decay=0.05), id="Adam"),
    pytest.param(AdamW, dict(lr=0.1), id="AdamW"),
]


def masters(optimizer):
    return [host(a) for name, a in optimizer.state_dict().items() if name.startswith("master.")]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind, settings", KINDS)
def test_learns_as_float32_does_bit_for_bit(xp, rng, kind, settings, dtype):
    """From the same gradients; the parameters are the masters, rounded."""
    ps = parameters(xp, rng, dtype)
    wide = [Parameter(p.data.astype("float32")) for p in ps]
    ours, reference = kind(ps, master=True, **settings), kind(wide, **settings)
    for step in range(5):
        ours.factor = reference.factor = 1 / (1 + step)
        gradients = [make(g, dtype) for g in draw(rng)]
        give(ps, gradients, xp)
        give(wide, gradients, xp)
        ours.step()
        reference.step()
        for p, w, master in zip(ps, wide, masters(ours), strict=True):
            np.testing.assert_array_equal(master, host(w.data))
            np.testing.assert_array_equal(host(p.data), master.astype(float_dtype(dtype)))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind, settings", KINDS)
def test_cuda_is_numpy(cp, rng, kind, settings, dtype):
    there = parameters(np, rng, dtype)
    here = [Parameter(cp.asarray(p.data)) for p in there]
    gpu, cpu = (kind(ps, master=True, **settings) for ps in (here, there))
    for _ in range(3):
        gradients = draw(rng)
        give(here, gradients, cp)
        give(there, gradients)
        gpu.step()
        cpu.step()
    got, want = gpu.state_dict(), cpu.state_dict()
    assert got.keys() == want.keys()
    close(joined(masters(gpu)), joined(masters(cpu)), terms=20)


@pytest.mark.parametrize("kind, lr", [(SGD, 2.0**-13), (Adam, 2.0**-13)])
@pytest.mark.parametrize("dtype", NARROW)
def test_steps_below_the_last_place_are_not_lost(xp, dtype, kind, lr):
    """1 - 2^-13 is 1 in 16 bits. A hundred such steps are not."""
    def trained(master):
        p = Parameter(xp.ones(5, float_dtype(dtype)))
        optimizer = kind([p], lr, master=master)
        for _ in range(100):
            p.grad.fill(1)
            optimizer.step()
        return host(p.data)

    assert (trained(False).astype("float32") == 1).all()
    close(trained(True), np.full(5, 1 - 100 * lr).astype(float_dtype(dtype)))


# -- who wrote last ------------------------------------------------------------------------


@pytest.mark.parametrize("kind, settings", KINDS[1:])
def test_a_parameter_that_somebody_writes_counts(xp, rng, kind, settings):
    ps = parameters(xp, rng, "float16")
    optimizer = kind(ps, master=True, **settings)
    give(ps, draw(rng), xp)
    optimizer.step()
    kept = [a.copy() for a in masters(optimizer)]
    value = host(ps[2].data).copy()
    value[:3] = 5, np.inf, np.nan
    ps[2].data = xp.asarray(value)  # three new numbers, the others as they were
    twins = [Parameter(xp.asarray(a)) for a in kept]
    twins[2].data[:3] = xp.asarray(value[:3].astype("float32"))
    reference = kind(twins, **settings)
    reference.load_state_dict({n: a for n, a in optimizer.state_dict().items()
                               if not n.startswith("master")})
    gradients = [make(g, "float16") for g in draw(rng)]
    for some, its in ((ps, optimizer), (twins, reference)):
        give(some, gradients, xp)
        its.step()
    for master, twin in zip(masters(optimizer), twins, strict=True):
        np.testing.assert_array_equal(master, host(twin.data))


def test_weights_loaded_into_a_module_are_what_training_goes_on_with(xp, rng):
    layer = nn.Linear(3, 2).to("cpu" if xp is np else "cuda", "bfloat16")
    sgd = SGD(layer.parameters(), 0.0, master=True)
    sgd.step()
    new = {name: make(rng.standard_normal(a.shape), "bfloat16")
           for name, a in layer.state_dict().items()}
    layer.load_state_dict(new)
    sgd.step()
    for name, a in layer.state_dict().items():
        np.testing.assert_array_equal(host(a), new[name])


def test_a_master_beyond_16_bits_comes_back(xp):
    """65,504 is the largest of float16: above, p is infinite, and its master is not."""
    p = Parameter(xp.full(2, 64992, "float16"))
    sgd = SGD([p], 1.0, master=True)
    for g, want in ((-2000, np.inf), (2000, 64992)):
        p.grad.fill(g)
        sgd.step()
        assert host(p.data).astype("float64").tolist() == [want] * 2


def test_frozen_parameters_keep_their_masters(xp, rng):
    ps = parameters(xp, rng, "float16")
    adam = Adam(ps, 0.1, master=True)
    for frozen in ((), (0, 2), (1,)):
        for i, p in enumerate(ps):
            p.requires_grad = i not in frozen
        before = [a.copy() for a in masters(adam)] or [np.zeros(s) for s in SHAPES]
        give(ps, draw(rng), xp)
        adam.step()
        for i, (a, b) in enumerate(zip(masters(adam), before, strict=True)):
            assert (a.tobytes() == b.tobytes()) == (i in frozen)


# -- state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, settings", KINDS)
def test_resumes_with_the_same_bits(xp, rng, tmp_path, kind, settings):
    gradients = [draw(rng) for _ in range(6)]

    def run(ps, optimizer, some):
        for g in some:
            give(ps, g, xp)
            optimizer.step()
        return [host(p.data).copy() for p in ps]

    ps = parameters(xp, rng, "bfloat16")
    whole = kind(ps, master=True, **settings)
    half = run(ps, whole, gradients[:3])
    files.save(tmp_path / "state", whole.state_dict())
    want = run(ps, whole, gradients[3:])
    again = [Parameter(xp.asarray(a)) for a in half]
    second = kind(again, master=True, **settings)
    second.load_state_dict(files.load(tmp_path / "state")[0])
    for a, b in zip(run(again, second, gradients[3:]), want, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(masters(second), masters(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_in_state(rng):
    ps = [*parameters(np, rng, "float16"), *parameters(np, rng, "float32")]
    sgd = SGD(ps, 0.1, master=True)
    sgd.step()
    found = {n: (a.dtype, a.shape) for n, a in sgd.state_dict().items() if n.startswith("master")}
    assert found == {f"master.{i}": (np.float32, s) for i, s in enumerate(SHAPES)}  # not the wide


def test_a_state_without_masters_begins_with_the_parameters(xp, rng):
    ps = parameters(xp, rng, "float16")
    plain = SGD(ps, 0.0, momentum=0.5)
    plain.step()
    state = {n: host(a).copy() for n, a in plain.state_dict().items()}
    plain.release()
    sgd = SGD(ps, 0.0, momentum=0.5, master=True)
    sgd.step()
    sgd.load_state_dict(state)
    assert not any(a.any() for a in masters(sgd))
    sgd.step()
    for p, a in zip(ps, masters(sgd), strict=True):
        np.testing.assert_array_equal(a, host(p.data).astype("float32"))


def test_masters_are_not_thrown_away(rng):
    ps = parameters(np, rng, "float16")
    sgd = SGD(ps, 0.1, master=True)
    sgd.step()
    state = sgd.state_dict()
    sgd.release()
    with pytest.raises(ValueError, match="SGD: load_state_dict: unexpected master.0"):
        SGD(ps, 0.1).load_state_dict(state)
    del state["master.1"]
    with pytest.raises(ValueError, match="missing master.1"):
        SGD(ps, 0.1, master=True).load_state_dict(state)


# -- averages, edges -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
def test_averages_are_of_the_masters(xp, rng, dtype):
    layer = nn.Linear(5, 3).to("cpu" if xp is np else "cuda", dtype)
    sgd, ema = SGD(layer.parameters(), 0.01, master=True), EMA(layer, 0.5, warmup=False)
    want = [host(p.data).astype("float32") for p in layer.parameters()]
    for _ in range(3):
        for p in layer.parameters():
            p.grad[...] = xp.asarray(make(rng.standard_normal(p.shape), dtype))
        sgd.step()
        ema.update(sgd)
        want = [(a + b) / 2 for a, b in zip(want, masters(sgd), strict=True)]
    for name, a in zip(("weight", "bias"), want, strict=True):
        close(ema.averages[name], a, terms=4)
    before = host(ema.averages["bias"]).copy()
    layer.bias.data = xp.asarray(make(np.full(3, 7), dtype))  # is no longer its master, rounded
    ema.update(sgd)
    close(ema.averages["bias"], (before + np.float32(7)) / 2)


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_as_on_huge_arrays(cp, rng, monkeypatch, kind, limit, value):
    monkeypatch.setattr(kernels, limit, value)
    p = Parameter(cp.asarray(rng.standard_normal(5000).astype("float16")))
    want = host(p.data).astype("float32") - np.float32(0.25)
    optimizer = kind([p], 0.25, master=True)
    optimizer.all_flats()[0].grad.fill(1)
    optimizer.step()
    close(optimizer.state_dict()["master.0"], want, terms=4)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_chunks_and_threads_do_not_show(kind, monkeypatch):
    def trained():
        p = Parameter(np.arange(5000).astype("float16"))
        optimizer = kind([p], 0.1, weight_decay=0.1, master=True)
        for _ in range(3):
            p.grad[...] = np.arange(5000)[::-1]
            optimizer.step()
        return masters(optimizer)[0]

    want = trained()
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(threads, "chunks", lambda n, bytes, budget: [
        slice(i, min(n, i + 333)) for i in range(0, n, 333)])
    np.testing.assert_array_equal(trained(), want)


# -- mixed precision, all of it ------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind, settings", [(SGD, dict(lr=0.1, momentum=0.9)),
                                            (AdamW, dict(lr=0.002))], ids=["SGD", "AdamW"])
def test_steps_in_16_bits_are_those_in_float32_within_16_bits(rng, kind, settings, dtype):
    """Forward, backward and weights in 16 bits; the masters stay where float32 would be.

    Weights are between 1/2 and 1, so that the bound, which is relative to each, means something.
    """
    def net(dtype):
        signs = np.random.default_rng(3)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
        for p in model.parameters():
            p.data = make(signs.choice([-1, 1], p.shape) * signs.uniform(0.5, 1, p.shape), "float16"
                          ).astype("float32")
        return model.to("cpu", dtype)

    x, labels = make(rng.standard_normal((32, 12)) / 4, "float16"), rng.integers(0, 4, 32)
    models = [net("float32"), net(dtype)]
    losses = []
    for model in models:
        optimizer = kind(model.parameters(), master=True, **settings)
        scaler = LossScale(optimizer, 2.0**20, interval=100)
        made = 0
        losses.append([])
        while made < 6:
            optimizer.zero_grad()
            loss = ops.softmax_cross_entropy(model(x.astype(model.dtype)), labels)
            with np.errstate(over="ignore", invalid="ignore"):  # it is what check() looks for
                loss.backward(scaler.scale)
            scaler.check()
            optimizer.step()
            made += not optimizer.control[2]
            if not optimizer.control[2]:
                losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    narrow = float_dtype(dtype)
    close(np.array(losses[1]).astype(narrow), np.array(losses[0]).astype(narrow))
    for got, want in zip(masters(optimizer), models[0].parameters(), strict=True):
        close(got.astype(narrow), want.data.astype(narrow))
    if dtype == "float16":
        assert float(scaler.scale) < 2.0**20  # it had to come down first


def test_nothing_is_learnt_from_a_batch_that_overflows(xp, rng):
    layer = nn.Linear(4, 3).to("cpu" if xp is np else "cuda", "float16")
    sgd = SGD(layer.parameters(), 0.1, momentum=0.9, master=True)
    scaler = LossScale(sgd, 2.0**20)
    x, labels = xp.asarray(make(rng.standard_normal((6, 4)), "float16")), xp.arange(6) % 3
    before, scales = [host(p.data).copy() for p in layer.parameters()], []
    for _ in range(10):
        scales.append(float(host(scaler.scale)))
        sgd.zero_grad()
        with np.errstate(over="ignore", invalid="ignore"):
            ops.softmax_cross_entropy(layer(x), labels).backward(scaler.scale)
        scaler.check()
        sgd.step()
        if not host(sgd.control)[2]:
            break
        for p, a in zip(layer.parameters(), before, strict=True):
            np.testing.assert_array_equal(host(p.data), a)
    assert 2 < len(scales) < 10 and scales == [2.0**20 / 2**i for i in range(len(scales))]
    assert (host(layer.weight.data) != before[0]).any()
