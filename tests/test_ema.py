"""EMA: the definition, PyTorch's, warm-up, applied and restored, state, a module that changes."""

import sys

import numpy as np
import pytest

from check import DTYPES, close, host
from gpuconv import files, nn, threads
from gpuconv.backend import FLOATS, accumulator, asarray, float_dtype
from gpuconv.optim import EMA, SGD, Adam, flat


def net(dtype="float32", device="cpu"):
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Flatten(), nn.Linear(16, 5)).to(device, dtype)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda":
        request.getfixturevalue("cp")
    return request.param


def copied(module):
    return {name: host(a).copy() for name, a in module.state_dict().items()}


def stir(module, rng):
    """Other values in all arrays, as a step of training leaves them."""
    module.load_state_dict({
        name: np.asarray(rng.standard_normal(a.shape) if a.dtype.name in FLOATS else host(a) + 1,
                         a.dtype) for name, a in module.state_dict().items()})


def same(got, want):
    assert got.keys() == want.keys()
    for name, a in got.items():
        assert a.dtype == want[name].dtype and a.shape == want[name].shape
        assert host(a).tobytes() == host(want[name]).tobytes(), name


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_definition(rng, device, dtype, warmup):
    model, decay = net(dtype, device), 0.75
    ema = EMA(model, decay, warmup)
    want = {name: a.astype("float64") for name, a in copied(model).items()}
    for t in range(60):
        stir(model, rng)
        ema.update()
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        for name, a in copied(model).items():
            want[name] = a if a.dtype == "int64" else d * want[name] + (1 - d) * a.astype("float64")
    assert ema.updates == 60 and ema.averages["1.num_batches_tracked"].dtype == "int64"
    for name, a in ema.averages.items():
        if a.dtype != "int64":
            assert a.dtype == accumulator(float_dtype(dtype))
        close(a, want[name].astype(a.dtype), terms=60)


def test_is_pytorchs(rng):
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    model = nn.Linear(4, 3)
    twin = torch.nn.Linear(4, 3)
    average = AveragedModel(twin, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(20):
        stir(model, rng)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.copy_(torch.tensor(model.state_dict()[name]))
        average.update_parameters(twin)
        if step == 0:  # now it has copied: this is where ours begins
            ema = EMA(model, 0.9, warmup=False)
        ema.update()
    for name, p in average.module.named_parameters():
        close(ema.averages[name], p.detach().numpy(), terms=20)


def test_begins_as_the_module(rng, device):
    model = net("float32", device)
    stir(model, rng)
    before = copied(model)
    ema = EMA(model)
    same(ema.averages, before)
    assert all(a is not b for a, b in zip(ema.averages.values(), model.state_dict().values(),
                                          strict=True))
    ema.update()
    same(ema.averages, before)  # a value that does not change is its own average, to the bit


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_without_decay_an_average_is_the_value(device, dtype):
    """Also after a value so large that adding the difference to it would lose the new one."""
    model = nn.Linear(2, 1, bias=False).to(dtype).to(device)
    model.weight.data.fill(6e4)
    ema = EMA(model, 0.0)
    model.weight.data.fill(2.0**-14)
    ema.update()
    assert (host(ema.averages["weight"]) == 2.0**-14).all()


@pytest.mark.parametrize("decay", [1e-6, 1e-3, 0.4, 0.6])
def test_a_small_decay_keeps_its_digits(device, decay):
    model = nn.Linear(1, 1, bias=False).to(device)
    model.weight.data.fill(0)
    ema, want = EMA(model, decay, warmup=False), 0.0
    for value in (1e10, 0.0, 3.0):
        model.weight.data.fill(value)
        ema.update()
        want = decay * want + (1 - decay) * value
    close(ema.averages["weight"], np.full((1, 1), want, "float32"))


def test_the_first_update_forgets_nine_tenths(rng):
    model = nn.Linear(2, 1)
    model.weight.data = np.zeros((1, 2), "float32")
    ema = EMA(model, 0.999)
    model.weight.data = np.ones((1, 2), "float32")
    ema.update()
    close(ema.averages["weight"], np.full((1, 2), 0.9, "float32"))


@pytest.mark.parametrize("packed", [None, SGD, Adam])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_applied_and_restored(rng, device, packed, dtype):
    model = net(dtype, device)
    ema = EMA(model, 0.5)
    optimizer = packed and packed(model.parameters(), 0.1)
    stir(model, rng)
    ema.update()
    stir(model, rng)
    own, arrays = copied(model), model.state_dict()
    with ema.applied():
        for name, a in model.state_dict().items():
            assert a is arrays[name]
            np.testing.assert_array_equal(host(a), host(ema.averages[name]).astype(a.dtype))
        if optimizer:
            assert host(optimizer.flats[0][0].data)[:3].tolist() == (
                host(model[0].weight.data).ravel()[:3].tolist())
    same(model.state_dict(), own)
    if optimizer:
        for p in model.parameters():
            p.grad.fill(1)
        optimizer.step()
        assert (host(model[4].bias.data) != own["4.bias"]).all()


def test_what_happens_inside_is_undone(rng, device):
    model = net("float32", device)
    ema = EMA(model, 0.5)
    stir(model, rng)
    own, averages = copied(model), {n: host(a).copy() for n, a in ema.averages.items()}
    with pytest.raises(ZeroDivisionError), ema.applied():
        stir(model, rng)
        1 / 0  # noqa: B018
    same(model.state_dict(), own)
    same(ema.averages, averages)
    with ema.applied():  # and can be entered again
        pass
    same(model.state_dict(), own)


def test_an_optimiser_released_inside_takes_nothing_along(rng):
    model = net()
    sgd = SGD(model.parameters(), 0.1)
    ema = EMA(model, 0.5)
    stir(model, rng)
    own = copied(model)
    with ema.applied():
        sgd.release()
    same(model.state_dict(), own)


def test_inside_it_answers_as_the_averages_do(rng, device):
    model = net("float32", device)
    ema = EMA(model, 0.5, warmup=False)
    stir(model, rng)
    model[1].running_var[...] = 2
    ema.update()
    twin = net("float32", device)
    twin.load_state_dict(ema.averages)
    x = asarray(rng.standard_normal((2, 4, 4, 3), "float32"), device)
    want = host(twin.predict(x))
    with ema.applied():
        np.testing.assert_array_equal(host(model.predict(x)), want)


def test_copy_to_module(rng, device):
    model = net("float16", device)
    ema = EMA(model, 0.5)
    stir(model, rng)
    ema.update()
    arrays = model.state_dict()
    ema.copy_to_module()
    for name, a in model.state_dict().items():
        assert a is arrays[name]
        np.testing.assert_array_equal(host(a), host(ema.averages[name]).astype(a.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_goes_on_where_it_was(rng, device, dtype, tmp_path):
    model = net(dtype, device)
    ema = EMA(model, 0.9)
    values = []
    for _ in range(8):
        stir(model, rng)
        values.append(copied(model))

    def follow(ema, some):
        for state in some:
            model.load_state_dict(state)
            ema.update()

    follow(ema, values[:3])
    files.save(tmp_path / "ema", ema.state_dict())
    follow(ema, values[3:])
    other = EMA(net(dtype, device), 0.9)
    other.load_state_dict(files.load(tmp_path / "ema")[0])
    other.module = model
    assert other.updates == 3
    follow(other, values[3:])
    same(other.state_dict(), ema.state_dict())


def test_chunks_and_threads_do_not_show(monkeypatch):
    def run():
        model = nn.Linear(500, 7)
        model.weight.data = np.arange(3500, dtype="float32").reshape(7, 500) / 7
        ema = EMA(model, 0.9)
        model.weight.data = model.weight.data[::-1] * np.float32(1.1)
        ema.update()
        return ema.averages["weight"]

    want = run()
    for workers in (1, 3):
        monkeypatch.setattr(threads, "count", lambda workers=workers: workers)
        monkeypatch.setattr(threads, "chunks", lambda n, bytes, budget=None: [
            slice(i, min(n, i + 333)) for i in range(0, n, 333)])
        np.testing.assert_array_equal(run(), want)


def test_many_small_arrays_and_a_large_one_are_shared_out(rng, monkeypatch):
    model = nn.Sequential(*(nn.Linear(n, 9) for n in (40, 3, 200, 5, 7, 11)))
    values = {name: rng.standard_normal(a.shape).astype("float32")
              for name, a in model.state_dict().items()}

    def averages():
        for a in model.state_dict().values():
            a[...] = 1
        ema = EMA(model, 0.9)
        model.load_state_dict(values)
        ema.update()
        return ema.averages

    want = averages()
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(flat, "CHUNK", 100)
    monkeypatch.setattr(sys.modules[EMA.__module__], "CHUNK", 100)
    same(averages(), want)


def test_an_update_on_the_cpu_allocates_nothing(monkeypatch):
    import tracemalloc
    monkeypatch.setattr(threads, "count", lambda: 1)  # a second one might first come later
    model = nn.Linear(512, 512)
    ema = EMA(model)
    for _ in range(8):
        ema.update()
    tracemalloc.start()
    try:
        ema.update()
        assert tracemalloc.get_traced_memory()[1] < model.weight.data.nbytes / 8
    finally:
        tracemalloc.stop()


def test_tied_parameters_are_averaged_once():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    ema = EMA(nn.Sequential(a, b))
    assert list(ema.averages) == ["0.weight", "0.bias", "1.bias"]


def test_a_strided_parameter_is_followed(rng, device):
    model = nn.Linear(4, 3).to(device)
    model.weight.rebind(model.weight.data.reshape(4, 3).T)
    ema = EMA(model, 0.0)
    model.weight.data = model.weight.data * np.float32(2)
    ema.update()
    np.testing.assert_array_equal(host(ema.averages["weight"]), host(model.weight.data))
    assert ema.averages["weight"].flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_that_begin_anywhere(rng, cp, dtype):
    model = nn.Linear(7, 3).to("cuda", dtype)
    raw = cp.zeros(30, dtype)
    model.weight.rebind(raw[3:24].reshape(3, 7))  # at no multiple of 16 bytes
    ema = EMA(model, 0.5, warmup=False)
    stir(model, rng)
    ema.update()
    for name, a in model.state_dict().items():
        if name == "weight":
            close(ema.averages[name], host(a).astype("float32") / 2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_step_that_the_optimiser_leaves_out_is_none(rng, device, dtype):
    model = net(dtype, device)
    ema, sgd = EMA(model, 0.9), SGD(model.parameters(), 0.1)
    for skip in (0, 1, 0):
        before = {name: host(a).copy() for name, a in ema.state_dict().items()}
        stir(model, rng)
        sgd.control[2:3].fill(skip)
        ema.update(sgd)
        after = {name: host(a) for name, a in ema.state_dict().items()}
        assert all((after[name].tobytes() == a.tobytes()) == bool(skip)
                   for name, a in before.items())
    assert ema.updates == 2


def test_no_update_and_no_second_time_inside():
    ema = EMA(nn.Linear(2, 2))
    with ema.applied():
        with pytest.raises(RuntimeError, match=r"update inside applied\(\)"):
            ema.update()
        with pytest.raises(RuntimeError, match=r"applied\(\) inside applied\(\)"), ema.applied():
            pass
    ema.update()


@pytest.mark.parametrize("change, message", [
    (lambda m: m.to("float64"), r"0.weight of the module is float64 \(4, 3, 3, 3\) on cpu, was "
                                r"float32 \(4, 3, 3, 3\) on cpu: make a new EMA"),
    (lambda m: setattr(m[4], "bias", nn.Linear(1, 6).bias), r"4.bias .* \(6,\) on cpu, was"),
    (lambda m: m.register_buffer("more", np.zeros(2)), r"more .* on cpu, was missing"),
])
def test_a_module_that_has_changed_is_noticed(change, message):
    model = net()
    ema = EMA(model)
    change(model)
    for use in (ema.update, ema.copy_to_module, ema.applied().__enter__):
        with pytest.raises(RuntimeError, match=message):
            use()


@pytest.mark.parametrize("change, message", [
    ({"updates": None}, "missing updates"),
    ({"updates": np.array(-1)}, "updates is -1, wanted at least 0"),
    ({"updates": np.array(1.5)}, r"updates is float64 \(\), wanted int64 \(\)"),
    ({"average.0.weight": None, "average.x": np.ones(1), "average.4.bias": np.ones(5)},
     r"missing average.0.weight; unexpected average.x; average.4.bias is float64 \(5,\), wanted "
     r"float32 \(5,\)"),
])
def test_a_bad_state_changes_nothing(rng, change, message):
    model = net()
    ema = EMA(model)
    before = {name: a.copy() for name, a in ema.state_dict().items()}
    other = EMA(net())
    bad = {n: a for n, a in (other.state_dict() | change).items() if a is not None}
    with pytest.raises(ValueError, match=f"EMA: load_state_dict: .*{message}"):
        ema.load_state_dict(bad)
    same(ema.state_dict(), before)


@pytest.mark.parametrize("decay", [-0.1, 1, float("nan")])
def test_refuses_a_bad_decay(decay):
    with pytest.raises(ValueError, match=f"EMA: decay is {decay}, wanted .*at least 0 and less"):
        EMA(nn.Linear(1, 1), decay)


def test_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="EMA: module is SGD, wanted a Module"):
        EMA(SGD(nn.Linear(1, 1).parameters(), 0.1))
