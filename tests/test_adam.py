"""Adam, AdamW: PyTorch's numbers, CUDA against NumPy, groups, freezing, state, refusals."""

import numpy as np
import pytest
from optim_tools import SHAPES, draw, give, joined, parameters

from check import DTYPES, close, host, make
from gpuconv import files, kernels, threads
from gpuconv.autograd import Parameter
from gpuconv.backend import accumulator, float_dtype
from gpuconv.optim import SGD, Adam, AdamW

KINDS = [
    pytest.param(Adam, {}, id="Adam"),
    pytest.param(Adam, dict(weight_decay=0.05), id="Adam-decay"),
    pytest.param(Adam, dict(weight_decay=1), id="Adam-all-decay"),
    pytest.param(Adam, dict(betas=(0.0, 0.5), eps=0.1), id="Adam-betas-eps"),
    pytest.param(AdamW, dict(weight_decay=0.05), id="AdamW"),
]


def run(ps, optimizer, gradients, xp=np):
    for some in gradients:
        give(ps, some, xp)
        optimizer.step()
    return [host(p.data).copy() for p in ps]


class Theirs:
    """PyTorch's optimiser over copies of our parameters, in the same groups."""

    def __init__(self, torch, kind, groups, lr, **settings):
        self.torch, self.params = torch, []
        listed = []
        for group in groups:
            mine = [torch.nn.Parameter(torch.tensor(p.data)) for p in group["params"]]
            self.params += mine
            listed.append(dict(group, params=mine))
        self.optimizer = getattr(torch.optim, kind.__name__)(listed, lr, **settings)

    def step(self, gradients, factor=1.0):
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = None if g is None else self.torch.tensor(g).to(p.dtype)
        before = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        self.optimizer.step()
        for group, lr in zip(self.optimizer.param_groups, before, strict=True):
            group["lr"] = lr

    def data(self):
        return joined([p.detach().numpy() for p in self.params])


@pytest.mark.parametrize("kind, settings", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_is_pytorchs(rng, kind, settings, dtype):
    torch = pytest.importorskip("torch")
    ps = parameters(np, rng, dtype)
    theirs = Theirs(torch, kind, [{"params": ps}], 0.01, **settings)
    ours = kind(ps, 0.01, **settings)
    for step in range(60):
        ours.factor = 1 / (1 + step / 20)
        gradients = draw(rng)
        give(ps, gradients)
        ours.step()
        theirs.step(gradients, ours.factor)
        close(joined([p.data for p in ps]), theirs.data(), terms=8 * (1 + step))
    state = ours.state_dict()
    for i, p in enumerate(theirs.params):
        want = theirs.optimizer.state[p]
        for name in ("exp_avg", "exp_avg_sq"):
            close(state[f"{name}.{i}"], want[name].numpy(), terms=60)
        assert state["step"][i] == want["step"] == 60


def test_defaults_are_pytorchs():
    torch = pytest.importorskip("torch")
    for kind in (Adam, AdamW):
        group, = kind([Parameter(np.ones(2))]).groups
        want, = getattr(torch.optim, kind.__name__)([torch.ones(2)]).param_groups
        assert (group["beta1"], group["beta2"]) == want["betas"]
        assert all(group[name] == want[name] for name in ("lr", "eps", "weight_decay"))


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_groups_are_pytorchs(rng, kind):
    torch = pytest.importorskip("torch")
    ps = parameters(np, rng, "float64")
    groups = [{"params": ps[:1], "lr": 0.5, "betas": (0.5, 0.9)},
              {"params": ps[1:3], "weight_decay": 0.0},
              {"params": ps[3:], "eps": 0.01, "weight_decay": 0.2}]
    theirs = Theirs(torch, kind, groups, 0.02, weight_decay=0.1)
    ours = kind(groups, 0.02, weight_decay=0.1)
    assert [(g["lr"], g["beta1"], g["beta2"], g["weight_decay"]) for g in ours.groups] == [
        (0.5, 0.5, 0.9, 0.1), (0.02, 0.9, 0.999, 0.0), (0.02, 0.9, 0.999, 0.2)]
    for _ in range(10):
        gradients = draw(rng)
        give(ps, gradients)
        ours.step()
        theirs.step(gradients)
    close(joined([p.data for p in ps]), theirs.data(), terms=80)


def test_a_frozen_parameter_stays_and_counts_no_steps(rng):
    """As in PyTorch, where it has no gradient: the bias correction is of its own steps."""
    torch = pytest.importorskip("torch")
    ps = parameters(np, rng, "float64")
    theirs, ours = Theirs(torch, Adam, [{"params": ps}], 0.1), Adam(ps, 0.1)
    for frozen in ([1], [1, 2], [], [0, 3], [], [0, 1, 2, 3]):
        for i, p in enumerate(ps):
            p.requires_grad = i not in frozen
        gradients = draw(rng)
        give(ps, gradients)
        ours.step()
        theirs.step([None if i in frozen else g for i, g in enumerate(gradients)])
        close(joined([p.data for p in ps]), theirs.data(), terms=50)
    assert ours.state_dict()["step"].tolist() == [4, 3, 4, 4]


@pytest.mark.parametrize("kind, settings", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_is_numpy(cp, rng, kind, settings, dtype):
    there = parameters(np, rng, dtype)
    here = [Parameter(cp.asarray(p.data)) for p in there]
    gpu, cpu = kind(here, 0.1, **settings), kind(there, 0.1, **settings)
    gradients = [draw(rng) for _ in range(3)]
    run(here, gpu, gradients, cp)
    run(there, cpu, gradients)
    got, want = gpu.state_dict(), cpu.state_dict()
    assert got.keys() == want.keys()
    assert got["step"].tolist() == want["step"].tolist() == [3] * len(SHAPES)
    for kept in ("exp_avg.", "exp_avg_sq."):
        names = [name for name in want if name.startswith(kept)]
        assert len(names) == len(SHAPES)
        close(joined([got[n] for n in names]), joined([want[n] for n in names]), terms=10)
    close(joined([p.data for p in here]), joined([p.data for p in there]), terms=20)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_computed_in_float32(rng, kind, dtype):
    """The same as float32 parameters that are rounded to 16 bits after each step, bit for bit."""
    ps = parameters(np, rng, dtype)
    wide = [Parameter(p.data.astype("float32")) for p in ps]
    ours, reference = (kind(some, 0.1, weight_decay=0.05) for some in (ps, wide))
    for _ in range(4):
        gradients = [make(g, dtype) for g in draw(rng)]
        run(ps, ours, [gradients])
        run(wide, reference, [gradients])
        for p, w in zip(ps, wide, strict=True):
            w.data = w.data.astype(p.dtype).astype("float32")
            np.testing.assert_array_equal(p.data.astype("float32"), w.data)
    assert ours.state_dict()["exp_avg_sq.0"].dtype == "float32"


def test_one_launch_per_flat_buffer(cp, rng, monkeypatch):
    launched = []
    monkeypatch.setattr("gpuconv.optim.adam.kernels.kernel", lambda *a, _k=kernels.kernel, **c: (
        launched.append(a) or _k(*a, **c)))
    adam = Adam(parameters(cp, rng))
    held = adam.flats[0][0]
    adam.step()
    arrays = [held.data, held.grad, *held.state.values()]
    adam.step()
    assert len(launched) == 2 * 2  # it counts, and updates
    assert all(a is b for a, b in zip(arrays, [held.data, held.grad, *held.state.values()],
                                      strict=True))
    held.members[1][1].requires_grad = False
    adam.step()
    assert len(launched) == 4 + 2 * 2
    held.members[1][1].requires_grad = True
    adam.step()  # parameter 1 has made fewer steps: before it, it, behind it
    assert len(launched) == 8 + 1 + 3


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)
    p = Parameter(cp.asarray(rng.standard_normal(5000).astype("float32")))
    want = host(p.data) - np.float32(0.5)
    adam = Adam([p], 0.5)
    adam.flats[0][0].grad.fill(1)
    adam.step()
    close(p.data, want, terms=4)


def trained(kind):
    p = Parameter(np.arange(5000, dtype="float32"))
    optimizer = kind([p], 0.1, weight_decay=0.1)
    for _ in range(3):
        p.grad[...] = np.arange(5000)[::-1]
        optimizer.step()
    return p.data


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_chunks_and_threads_do_not_show(kind, monkeypatch):
    want = trained(kind)
    for size, workers in ((333, 1), (333, 3), (5000, 2)):
        monkeypatch.setattr(threads, "count", lambda workers=workers: workers)
        monkeypatch.setattr(threads, "chunks", lambda n, bytes, budget, size=size: [
            slice(i, min(n, i + size)) for i in range(0, n, size)])
        np.testing.assert_array_equal(trained(kind), want)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind, settings", KINDS)
def test_a_step_on_the_cpu_allocates_nothing(kind, settings, dtype, monkeypatch):
    import tracemalloc
    monkeypatch.setattr(threads, "count", lambda: 1)  # a second one might first come later
    p = Parameter(np.ones(1 << 17, dtype))
    adam = kind([p], **settings)
    for _ in range(8):
        adam.step()  # memory to recycle, moments
    tracemalloc.start()
    try:
        adam.step()
        assert tracemalloc.get_traced_memory()[1] < p.data.nbytes / 8
    finally:
        tracemalloc.stop()


def test_gradients_beyond_all_bounds_do_not_warn(xp):
    """The square of 1e30 is infinite in float32: no step. NaN stays with its parameter."""
    p = Parameter(xp.ones(4, "float32"))
    adam = Adam([p], 0.5)
    p.grad[...] = xp.asarray(np.float32([1e30, np.inf, np.nan, 2.0]))
    adam.step()
    got = host(p.data)
    assert got[0] == 1 and np.isnan(got[1:3]).all() and got[3] == 0.5
    assert not host(adam.flats[0][0].data)[4:].any()  # the gap behind it


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_without_a_mean_of_gradients_a_spike_is_forgotten(xp, kind, dtype):
    """beta1 = 0: m is the gradient of this step, whatever it was before."""
    p = Parameter(xp.asarray(make([1.0, 1.0, 1.0], dtype)))
    optimizer = kind([p], 1e-3, betas=(0.0, 0.999))
    spike = 6e4 if dtype == "float16" else 1e18
    for gradient in ([spike, -spike, 0.0], [2.0**-14, 1.0, 7.0]):
        p.grad[...] = xp.asarray(make(gradient, dtype))
        optimizer.step()
    assert host(optimizer.state_dict()["exp_avg.0"]).tolist() == [2.0**-14, 1.0, 7.0]


def test_a_gradient_of_zero_moves_nothing(xp):
    p = Parameter(xp.ones(3, "float32"))
    Adam([p], 0.5, eps=1e-30).step()
    assert (host(p.data) == 1).all()


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumes_with_the_same_bits(xp, rng, tmp_path, kind, dtype):
    gradients = [draw(rng) for _ in range(7)]
    start = [make(rng.standard_normal(s), dtype) for s in SHAPES]

    def begin(arrays, **settings):
        ps = [Parameter(xp.asarray(a.copy())) for a in arrays]
        groups = [{"params": ps[:3]}, {"params": ps[3:], "lr": 0.2, "betas": (0.8, 0.99)}]
        return ps, kind(groups, **settings)

    def until_three(ps, optimizer):  # steps; one parameter is frozen for the first
        ps[1].requires_grad = False
        run(ps, optimizer, gradients[:1], xp)
        ps[1].requires_grad = True
        return run(ps, optimizer, gradients[1:3], xp)

    settings = dict(lr=0.1, betas=(0.85, 0.95), eps=1e-4, weight_decay=0.05)
    ps, whole = begin(start, **settings)
    until_three(ps, whole)
    want = run(ps, whole, gradients[3:], xp)

    ps, first = begin(start, **settings)
    half = until_three(ps, first)
    files.save(tmp_path / "adam", first.state_dict())
    ps, second = begin(half, lr=7)
    second.load_state_dict(files.load(tmp_path / "adam")[0])
    assert [g["lr"] for g in second.groups] == [0.1, 0.2]
    assert [(g["beta1"], g["beta2"]) for g in second.groups] == [(0.85, 0.95), (0.8, 0.99)]
    for a, b in zip(run(ps, second, gradients[3:], xp), want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.state_dict()["step"].tolist() == [7, 6, 7, 7]


def test_state_has_pytorchs_names(rng):
    ps = parameters(np, rng)
    adam = Adam(ps)
    settings = [f"group.0.{name}" for name in (
        "lr", "beta1", "beta2", "eps", "weight_decay", "stop")]
    state = adam.state_dict()
    assert list(state) == [*settings, "step"] and state["step"].tolist() == [0] * 4
    adam.step()
    assert state["step"].tolist() == [1] * 4  # the live array
    assert [(n, a.shape) for n, a in adam.state_dict().items() if n not in state] == [
        (f"{name}.{i}", SHAPES[i]) for name in ("exp_avg", "exp_avg_sq") for i in range(4)]


def test_state_from_before_the_first_step_clears_all(rng):
    adam = Adam(parameters(np, rng))
    fresh = {name: a.copy() for name, a in adam.state_dict().items()}
    adam.flats[0][0].grad.fill(1)
    adam.step()
    adam.load_state_dict(fresh)
    state = adam.state_dict()
    assert not (state["exp_avg.2"].any() or state["exp_avg_sq.2"].any() or state["step"].any())


@pytest.mark.parametrize("change, message", [
    (dict(step=None), "missing step"),
    (dict(step=np.zeros(3, "int64")), r"step is int64 \(3,\), wanted int64 \(4,\)"),
    (dict(step=np.zeros(4)), r"step is float64 \(4,\), wanted int64 \(4,\)"),
    (dict(step=np.array([1, 1, -1, 1])), "step counts to less than 0"),
    ({f"exp_avg_sq.{i}": None for i in range(4)}, "missing exp_avg_sq.0; missing exp_avg_sq.1; "),
    ({"exp_avg.0": np.zeros((5, 3), "float32")}, r"exp_avg.0 is float32 \(5, 3\)"),
    ({"group.0.beta1": np.array(1.0)}, "beta1 is 1.0"),
    ({"momentum.0": np.zeros((3, 5), "float32")}, "unexpected momentum.0"),
])
def test_a_bad_state_changes_nothing(rng, change, message):
    adam = Adam(parameters(np, rng))
    adam.flats[0][0].grad.fill(1)
    adam.step()
    before = {n: a.copy() for n, a in adam.state_dict().items()}
    bad = {n: a for n, a in (before | change).items() if a is not None}
    with pytest.raises(ValueError, match=message):
        adam.load_state_dict(bad)
    for name, array in adam.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_another_optimisers_state_is_refused(rng):
    adam, sgd = Adam(parameters(np, rng)), SGD(parameters(np, rng), 0.1)
    with pytest.raises(ValueError, match="Adam: load_state_dict: missing group.0.beta1"):
        adam.load_state_dict(sgd.state_dict())


def test_moments_are_in_the_accumulator(rng):
    for dtype in DTYPES:
        adam = AdamW(parameters(np, rng, dtype))
        adam.step()
        assert all(a.dtype == accumulator(float_dtype(dtype))
                   for name, a in adam.state_dict().items() if name.startswith("exp_avg"))


def test_empty_parameters_do_no_harm(xp):
    ps = [Parameter(xp.ones(shape, "float32")) for shape in ((0, 3), (2,), (0,))]
    adam = Adam(ps, 0.5)
    adam.flats[0][0].grad.fill(1)
    for frozen in (True, False):
        ps[0].requires_grad = not frozen
        adam.step()
    assert np.abs(host(ps[1].data)).max() < 1e-6  # 1 - 0.5 - 0.5
    assert adam.state_dict()["step"][1] == 2


ONE = Parameter(np.zeros(2, "float32"))


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("params, settings, error, message", [
    ([ONE], dict(lr=-1), ValueError, "lr is -1, wanted at least 0"),
    ([ONE], dict(lr=float("nan")), ValueError, "lr is nan"),
    ([ONE], dict(weight_decay=-0.5), ValueError, "weight_decay is -0.5, wanted at least 0"),
    ([ONE], dict(betas=(1.0, 0.9)), ValueError, "beta1 is 1.0, wanted at least 0 and less than 1"),
    ([ONE], dict(betas=(0.9, -0.1)), ValueError, "beta2 is -0.1, wanted at least 0 and"),
    ([ONE], dict(betas=(0.9, float("nan"))), ValueError, "beta2 is nan"),
    ([ONE], dict(betas=0.9), TypeError, "betas is 0.9, wanted two numbers"),
    ([ONE], dict(betas=(0.9,)), TypeError, r"betas is \(0.9,\), wanted two numbers"),
    ([ONE], dict(eps=0), ValueError, "eps is 0, wanted at least 1e-30"),
    ([ONE], dict(eps=-1e-8), ValueError, "eps is -1e-08, wanted"),
    ([{"params": [ONE], "betas": (0.9, 2)}], {}, ValueError, "beta2 is 2"),
    ([{"params": [ONE], "betas": (0.9, 0.9), "beta1": 0.5}], {}, ValueError,
     r"group 0 has params, betas, beta1, wanted 'params' and any of"),
    ([{"params": [ONE], "momentum": 0.9}], {}, ValueError, r"group 0 has params, momentum"),
    ([], {}, ValueError, "group 0 has no parameters"),
    ([ONE, ONE], {}, ValueError, r"parameter 1 \(2,\) is parameter 0 again"),
])
def test_refuses(kind, params, settings, error, message):
    with pytest.raises(error, match=f"{kind.__name__}: {message}"):
        kind(params, **settings)
    assert ONE.holder is None


def test_a_setting_spoilt_later_is_noticed(rng):
    adam = Adam(parameters(np, rng))
    adam.groups[0]["beta2"] = 1
    with pytest.raises(ValueError, match="beta2 is 1"):
        adam.step()
    assert not adam.state_dict()["step"].any()


def test_no_step_after_release(rng):
    adam = Adam(parameters(np, rng))
    adam.release()
    assert adam.state_dict() == {}
    with pytest.raises(RuntimeError, match="Adam: step after release"):
        adam.step()
