"""SGD: PyTorch's numbers, CUDA against NumPy, groups, freezing, state, refusals."""

import copy
import pickle

import numpy as np
import pytest

from check import close, host
from gpuconv import kernels, threads
from gpuconv.autograd import Parameter, Tensor
from gpuconv.backend import accumulator, float_dtype
from gpuconv.nn.module import Module
from gpuconv.optim import SGD

DTYPES = ["float32", "float64", "float16", "bfloat16"]
SHAPES = [(3, 5), (), (70,), (4, 3, 3, 2)]
SETTINGS = [
    pytest.param(dict(momentum=m, nesterov=n, weight_decay=d),
                 id=f"momentum{m}-{'nesterov-' * n}decay{d}")
    for m, n in [(0, False), (0.9, False), (0.9, True)] for d in (0, 0.05, 1)]


def parameters(xp, rng, dtype="float32"):
    return [Parameter(xp.asarray(np.asarray(rng.standard_normal(shape)).astype(float_dtype(dtype))))
            for shape in SHAPES]


def give(ps, gradients, xp=np):
    for p, g in zip(ps, gradients, strict=True):
        p.grad[...] = xp.asarray(np.asarray(g).astype(p.dtype))


def draw(rng):
    return [rng.standard_normal(shape) for shape in SHAPES]


def joined(arrays):
    """One vector: rounding is judged by the largest of all parameters."""
    return np.concatenate([host(a).ravel() for a in arrays])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_pytorchs(rng, settings, dtype):
    torch = pytest.importorskip("torch")
    ps = parameters(np, rng, dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ps]
    ours, their = SGD(ps, 0.1, **settings), torch.optim.SGD(theirs, 0.1, **settings)
    for step in range(20):
        ours.factor = 1 / (1 + step)
        their.param_groups[0]["lr"] = 0.1 * ours.factor
        gradients = draw(rng)
        give(ps, gradients)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = torch.tensor(np.asarray(g, dtype))
        ours.step()
        their.step()
        close(joined([p.data for p in ps]), joined([q.detach().numpy() for q in theirs]),
              terms=20 * 5)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_is_numpy(cp, rng, settings, dtype):
    there = parameters(np, rng, dtype)
    here = [Parameter(cp.asarray(p.data)) for p in there]
    gpu, cpu = SGD(here, 0.1, **settings), SGD(there, 0.1, **settings)
    for _ in range(3):
        gradients = draw(rng)
        give(here, gradients, cp)
        give(there, gradients)
        gpu.step()
        cpu.step()
    got, want = gpu.state_dict(), cpu.state_dict()
    assert got.keys() == want.keys()
    names = [name for name in want if name.startswith("momentum.")]
    assert len(names) == (len(SHAPES) if settings["momentum"] else 0)
    if names:
        close(joined([got[n] for n in names]), joined([want[n] for n in names]), terms=10)
    close(joined([p.data for p in here]), joined([p.data for p in there]), terms=10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_computed_in_float32(rng, dtype):
    ps = parameters(np, rng, dtype)
    wide = [p.data.astype("float32") for p in ps]
    m = [np.zeros_like(w) for w in wide]
    sgd = SGD(ps, 0.1, momentum=0.9, weight_decay=0.05)
    for _ in range(3):
        give(ps, draw(rng))
        for i, p in enumerate(ps):
            m[i] = np.float32(0.9) * m[i] + (p.grad.astype("float32") + np.float32(0.05) * wide[i])
            wide[i] = (wide[i] - np.float32(0.1) * m[i]).astype(p.dtype).astype("float32")
        sgd.step()
        for i, p in enumerate(ps):
            np.testing.assert_array_equal(p.data.astype("float32"), wide[i])
    assert sgd.state_dict()["momentum.0"].dtype == "float32"


def test_one_launch_per_flat_buffer(cp, rng, monkeypatch):
    launched = []
    monkeypatch.setattr("gpuconv.optim.sgd.kernels.kernel", lambda *a, _k=kernels.kernel, **c: (
        launched.append(a) or _k(*a, **c)))
    sgd = SGD(parameters(cp, rng), 0.1)
    sgd.step()
    assert len(launched) == 1
    sgd.flats[0][0].members[1][1].requires_grad = False
    sgd.step()
    assert len(launched) == 3


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)
    p = Parameter(cp.asarray(rng.standard_normal(5000).astype("float32")))
    want = host(p.data) - np.float32(0.5)
    sgd = SGD([p], 0.5, momentum=0.9)
    sgd.flats[0][0].grad.fill(1)
    sgd.step()
    close(p.data, want)


def test_chunks_do_not_show(rng, monkeypatch):
    def run():
        p = Parameter(np.arange(5000, dtype="float32"))
        sgd = SGD([p], 0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
        for _ in range(3):
            p.grad[...] = np.arange(5000)[::-1]
            sgd.step()
        return p.data

    want = run()
    monkeypatch.setattr(threads, "chunks", lambda n, size, budget: [
        slice(i, min(n, i + 333)) for i in range(0, n, 333)])
    np.testing.assert_array_equal(run(), want)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_on_the_cpu_allocates_nothing(rng, settings, monkeypatch):
    import tracemalloc
    monkeypatch.setattr(threads, "count", lambda: 1)  # a second one might first come later
    p = Parameter(np.ones(1 << 17, "float32"))
    sgd = SGD([p], 0.1, **settings)
    for _ in range(8):
        sgd.step()  # memory to recycle, momentum
    tracemalloc.start()
    try:
        sgd.step()
        assert tracemalloc.get_traced_memory()[1] < p.data.nbytes / 8
    finally:
        tracemalloc.stop()


def test_groups_have_their_own_settings(xp, rng):
    ps = parameters(xp, rng)
    before = [host(p.data).copy() for p in ps]
    sgd = SGD([{"params": ps[:2], "lr": 0.5}, {"params": (p for p in ps[2:])},
               ], lr=0.25)
    give(ps, [np.ones(s) for s in SHAPES], xp)
    sgd.factor = 0.5
    sgd.step()
    sgd.groups[1]["lr"] = 1.0
    sgd.step()
    for p, old, total in zip(ps, before, (0.5, 0.5, 0.625, 0.625), strict=True):
        close(p.data, old - np.float32(total), terms=2)


def test_zero_grad(xp, rng):
    ps = parameters(xp, rng)
    sgd = SGD(ps, 0.1)
    give(ps, draw(rng), xp)
    held = ps[0].grad
    sgd.zero_grad()
    assert ps[0].grad is held and not any(host(p.grad).any() for p in ps)


def test_frozen_parameters_stay(xp, rng):
    ps = parameters(xp, rng)
    ps[1].requires_grad = False
    sgd = SGD(ps, 0.1, momentum=0.9, weight_decay=0.1)
    before = [host(p.data).copy() for p in ps]
    give(ps, [np.ones(s) for s in SHAPES], xp)
    sgd.step()
    moved = [bool((host(p.data) != b).any()) for p, b in zip(ps, before, strict=True)]
    assert moved == [True, False, True, True]
    ps[1].requires_grad, ps[2].requires_grad = True, False  # at any time
    before = [host(p.data).copy() for p in ps]
    sgd.step()
    moved = [bool((host(p.data) != b).any()) for p, b in zip(ps, before, strict=True)]
    assert moved == [True, True, False, True]


def test_state_goes_on_where_it_was(xp, rng, tmp_path):
    from gpuconv import files
    gradients = [draw(rng) for _ in range(5)]
    settings = dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05)
    start = [np.asarray(rng.standard_normal(s)).astype("float16") for s in SHAPES]

    def make(arrays, lr=0.1):
        ps = [Parameter(xp.asarray(a.copy())) for a in arrays]
        return ps, SGD([{"params": ps[:3]}, {"params": ps[3:], "lr": 0.2}], **(
            settings | {"lr": lr}))

    def run(ps, sgd, some):
        for g in some:
            give(ps, g, xp)
            sgd.step()
        return [host(p.data) for p in ps]

    want = run(*make(start), gradients)
    ps, sgd = make(start)
    half = [a.copy() for a in run(ps, sgd, gradients[:2])]
    files.save(tmp_path / "sgd", sgd.state_dict())
    ps, sgd = make(half, lr=7)
    sgd.load_state_dict(files.load(tmp_path / "sgd")[0])
    assert [group["lr"] for group in sgd.groups] == [0.1, 0.2] and sgd.groups[0]["nesterov"] is True
    for a, b in zip(run(ps, sgd, gradients[2:]), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_has_names_and_shapes_not_flat_buffers(rng):
    ps = parameters(np, rng)
    sgd = SGD([{"params": ps[:1], "momentum": 0.0}, {"params": ps[1:]}], 0.1, momentum=0.9)
    scalars = [f"group.{i}.{name}" for i in (0, 1)
               for name in ("lr", "momentum", "nesterov", "weight_decay", "stop")]
    assert list(sgd.state_dict()) == scalars
    sgd.step()
    state = sgd.state_dict()
    assert [(n, a.shape) for n, a in state.items() if n not in scalars] == [
        (f"momentum.{i}", SHAPES[i]) for i in (1, 2, 3)]
    assert state["group.1.momentum"] == 0.9 and state["group.1.nesterov"].dtype == bool


def test_state_from_before_the_first_step_clears_momentum(rng):
    sgd = SGD(parameters(np, rng), 0.1, momentum=0.9)
    fresh = sgd.state_dict()
    sgd.flats[0][0].grad.fill(1)
    sgd.step()
    assert sgd.state_dict()["momentum.2"].any()
    sgd.load_state_dict(fresh)
    assert not sgd.state_dict()["momentum.2"].any()


def test_a_bad_state_is_described_whole_and_changes_nothing(rng):
    sgd = SGD(parameters(np, rng), 0.1, momentum=0.9)
    sgd.flats[0][0].grad.fill(1)
    sgd.step()
    before = {n: a.copy() for n, a in sgd.state_dict().items()}
    bad = before | {"group.0.lr": np.array(5.0), "momentum.0": np.zeros((5, 3), "float32"),
                    "momentum.2": np.zeros(70), "momentum.9": np.zeros(1)}
    del bad["momentum.1"]
    with pytest.raises(ValueError) as caught:
        sgd.load_state_dict(bad)
    assert str(caught.value) == (
        "SGD: load_state_dict: missing momentum.1; unexpected momentum.9; momentum.0 is float32 "
        "(5, 3), wanted float32 (3, 5); momentum.2 is float64 (70,), wanted float32 (70,)")
    for name, array in sgd.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_release_lets_another_take_over(rng):
    ps = parameters(np, rng)
    first = SGD(ps, 0.1)
    first.release()
    SGD(ps, 0.1).step()


def test_a_module_stays_where_its_optimiser_found_it(rng):
    module = Module()
    module.weight, = parameters(np, rng)[:1]
    sgd = SGD(module.parameters(), 0.1)
    with pytest.raises(RuntimeError, match=r"to: an optimiser holds weight \(3, 5\), float32"):
        module.to("float64")
    twin = copy.deepcopy(module).to("float64")  # a copy is free
    SGD(twin.parameters(), 0.1)
    module.load_state_dict({"weight": np.full((3, 5), 2, "float32")})
    assert (sgd.flats[0][0].data[:15] == 2).all()  # loading writes through
    sgd.release()
    assert module.to("float64").weight.dtype == module.weight.grad.dtype == "float64"


def test_a_replaced_gradient_stops_the_step_before_it_begins(rng):
    a, b = parameters(np, rng, "float32"), parameters(np, rng, "float64")
    sgd = SGD([*a, *b], 0.1)
    give([*a, *b], [np.ones(s) for s in SHAPES * 2])
    before = a[0].data.copy()
    b[3].grad = None
    with pytest.raises(RuntimeError, match=r"grad of parameter 7 \(4, 3, 3, 2\) was replaced"):
        sgd.step()
    np.testing.assert_array_equal(a[0].data, before)


def test_accumulator_of_momentum(rng):
    for dtype in DTYPES:
        sgd = SGD(parameters(np, rng, dtype), 0.1, momentum=0.5)
        sgd.step()
        assert sgd.state_dict()["momentum.0"].dtype == accumulator(float_dtype(dtype))


ONE = Parameter(np.zeros(2, "float32"))


@pytest.mark.parametrize("params, settings, error, message", [
    ([ONE], dict(lr=-1), ValueError, "SGD: lr is -1, wanted at least 0"),
    ([ONE], dict(lr=float("nan")), ValueError, "SGD: lr is nan"),
    ([ONE], dict(lr=1, momentum=-0.5), ValueError, "SGD: momentum is -0.5"),
    ([ONE], dict(lr=1, weight_decay=-0.5), ValueError, "SGD: weight_decay is -0.5"),
    ([ONE], dict(lr=1, nesterov=True), ValueError, "SGD: nesterov wants momentum, which is 0"),
    ([{"params": [ONE], "lr": -2}], dict(lr=1), ValueError, "SGD: lr is -2"),
    ([], dict(lr=1), ValueError, "SGD: group 0 has no parameters"),
    ([{"params": [ONE]}, {"params": []}], dict(lr=1), ValueError, "group 1 has no parameters"),
    ([{"params": [ONE], "lrr": 2}], dict(lr=1), ValueError, "group 0 has params, lrr"),
    ([{"lr": 2}], dict(lr=1), ValueError, "group 0 has lr, wanted 'params'"),
    ([ONE, ONE], dict(lr=1), ValueError, r"SGD: parameter 1 \(2,\) is parameter 0 again"),
    ([{"params": ONE}, {"params": [ONE]}], dict(lr=1), ValueError, "is parameter 0 again"),
    ([Tensor(np.zeros(2))], dict(lr=1), TypeError, "parameter 0 is Tensor, wanted a Parameter"),
    ([{"params": [ONE]}, ONE], dict(lr=1), TypeError, "group 1 is Parameter, wanted a dict"),
    (ONE, dict(lr=1), TypeError, "params is Parameter, wanted Parameters or dicts in a list"),
])
def test_refuses(params, settings, error, message):
    with pytest.raises(error, match=message):
        SGD(params, **settings)
    assert ONE.holder is None


def test_a_setting_spoilt_later_is_noticed(rng):
    sgd = SGD(parameters(np, rng), 0.1)
    sgd.groups[0]["lr"] = -1
    with pytest.raises(ValueError, match="lr is -1"):
        sgd.step()


def test_a_copy_would_train_nothing_and_is_refused(rng):
    sgd = SGD(parameters(np, rng), 0.1)
    for make in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="SGD cannot be copied or pickled"):
            make(sgd)


def test_no_step_after_release(rng):
    sgd = SGD(parameters(np, rng), 0.1)
    sgd.release()
    with pytest.raises(RuntimeError, match="step after release"):
        sgd.step()


def test_a_deleted_optimiser_lets_go(rng):
    ps = parameters(np, rng)
    sgd = SGD(ps, 0.1)
    assert all(p.holder for p in ps)
    del sgd
    SGD(ps, 0.1).step()


@pytest.mark.parametrize("value", [-1.0, "abc"])
def test_bad_settings_are_not_loaded(rng, value):
    sgd = SGD(parameters(np, rng), 0.1)
    state = sgd.state_dict() | {"group.0.lr": np.array(value)}
    with pytest.raises((TypeError, ValueError), match="lr"):
        sgd.load_state_dict(state)
    assert sgd.groups[0]["lr"] == 0.1
