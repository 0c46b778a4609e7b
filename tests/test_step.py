"""The captured step is the eager one, bit for bit; and what a graph cannot hold is noticed."""

import functools
import math

import numpy as np
import pytest
from test_checkpoint import StopAt, told
from test_train import same, tiny, weights

from gpuconv import backend, models, nn, ops, optim, random, train
from gpuconv.data import Augment, Dataset
from gpuconv.ops.conv import autotune
from gpuconv.ops.conv.tuning_table import Algorithm, Table, here
from gpuconv.recipes import RECIPES
from gpuconv.train import Callback, Checkpoint, fit
from gpuconv.train import step as steps
from hostcuda import changed, compiler, deferred, fake_cupy, launches, room

pytestmark = pytest.mark.skipif(backend._cupy is fake_cupy and not compiler(),
                                reason="neither a GPU nor g++")


def network(dtype="float32", device="cuda"):
    random.seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
                         nn.Linear(16, 3)).to(device, dtype)


OPTIMIZERS = {
    "sgd": lambda ps: optim.SGD(ps, 0.05),
    "nesterov": lambda ps: optim.SGD(ps, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda ps: optim.AdamW(ps, 0.01), "muon": lambda ps: muon(list(ps)),
    "masters": lambda ps: optim.SGD(ps, 0.05, momentum=0.9, master=True)}


def muon(parameters):
    return optim.Muon([{"params": [p for p in parameters if p.ndim > 1]},
                       {"params": [p for p in parameters if p.ndim == 1], "orthogonal": False}],
                      0.02)


def job(eager, *, dtype="float32", device="cuda", kind="nesterov", ema=None, model=None, data=None,
        **more):
    """A run with everything random in it: 4 epochs of 2 steps, the second of them of 4 images.

    So steps 1 and 2 have no graph, 3 and 4 are captured, and the others are replayed.

    Returns:
        What must be the same: {name: array}, and rows.
    """
    model = network(dtype, device) if model is None else model
    optimizer = OPTIMIZERS[kind](model.parameters())
    average = optim.EMA(model, ema) if ema else None
    history = fit(model, tiny(12) if data is None else data, eager=eager, **dict(
        epochs=4, batch_size=8, optimizer=optimizer, schedule=optim.OneCycle(), seed=3, ema=average,
        augment=Augment(pad=1) if data is None else None, test=tiny(3, seed=5) if data is None
        else None) | more)
    state = weights(model) | {f"optimizer/{name}": np.asarray(backend.to_cpu(a)).copy()
                              for name, a in optimizer.state_dict().items()}
    if ema:
        state |= {f"ema/{name}": backend.to_cpu(a).copy()
                  for name, a in average.state_dict().items()}
    return state, told(history)


def equal(got, want):
    assert got[1] == want[1]
    assert [name for name in want[0] if got[0][name].tobytes() != want[0][name].tobytes()] == []
    assert got[0].keys() == want[0].keys()


@pytest.fixture
def graphs(monkeypatch, cp):
    """The graphs that are captured, as (batch size, graph)."""
    made, capture = [], steps.CapturedStep.capture

    def noted(self, n):
        capture(self, n)
        if n in self.graphs:
            made.append((n, self.graphs[n]))

    monkeypatch.setattr(steps.CapturedStep, "capture", noted)
    return made


# -- the same bits -------------------------------------------------------------------------


@pytest.mark.parametrize("more", [
    dict(), dict(dtype="float16", kind="masters"), dict(dtype="bfloat16", kind="sgd"),
    dict(kind="adamw"), dict(kind="muon"),
    dict(dtype="float16", kind="adamw", ema=0.9), dict(ema=0.9, clip_norm=0.5),
    dict(label_smoothing=0.1, augment=None, clip_norm=1.0, kind="sgd"),
], ids=lambda more: " ".join(map(str, more.values())) or "plain")
def test_a_captured_run_is_the_eager_run(graphs, more):
    want = job(True, **more)
    assert not graphs
    equal(job(False, **more), want)
    assert [n for n, _ in graphs] == [8, 4]  # one for each size, for the whole run


def test_a_batch_that_is_the_whole_epoch(graphs):
    more = dict(batch_size=32, epochs=3)
    equal(job(False, **more), job(True, **more))
    assert [n for n, _ in graphs] == [12]


def test_float_images_and_another_loss_dtype(graphs):
    x = np.random.default_rng(0).standard_normal((12, 4, 4, 1))
    more = dict(dtype="float64", data=(x, np.arange(12) % 3))
    equal(job(False, **more), job(True, **more))
    assert len(graphs) == 2


def test_the_gpu_may_be_as_late_as_it_likes(graphs):
    """Nothing is computed until somebody waits; races of streams are found."""
    want = job(True, ema=0.9, clip_norm=1.0)
    with deferred():
        equal(job(False, ema=0.9, clip_norm=1.0), want)
    assert len(graphs) == 2


@functools.cache
def whole(**more):
    """An eager run, once for several tests."""
    return job(True, **more)


@pytest.mark.parametrize("first, then, cut", [
    (True, False, 2), (True, False, 5), (False, True, 3), (False, True, 5), (False, False, 4)])
def test_a_run_goes_on_in_the_other_kind(cp, tmp_path, first, then, cut):
    """Cut in the middle of an epoch, at its end, and while graphs are replayed."""
    more = dict(ema=0.9, kind="adamw")
    job(first, **more, callbacks=[StopAt(cut), Checkpoint(tmp_path)])
    equal(job(then, **more, resume=tmp_path), whole(**more))


def test_an_epoch_is_launches_of_graphs_and_nothing_else(graphs, monkeypatch):
    """Python sees each batch size twice: to compile, and to capture."""
    model, seen, read = network(), [], []
    forward, fetch = model.forward, steps.StepResults.fetch
    model.forward = lambda x: seen.append(x.shape[0]) or forward(x)
    monkeypatch.setattr(steps.StepResults, "fetch",
                        lambda self: read.append(len(self)) or fetch(self))
    job(False, model=model, test=None)
    assert seen == [8, 4, 8, 4] and read == [2, 2, 2, 2]  # one copy per epoch
    assert len({n for n, _ in graphs}) == 2


@pytest.mark.skipif(backend._cupy is not fake_cupy, reason="looks into the stand-in's graphs")
@pytest.mark.parametrize("kind, dtype", [("nesterov", "float32"), ("adamw", "float16")])
def test_no_number_and_no_address_differs_between_two_steps(graphs, monkeypatch, kind, dtype):
    """What a replay would do otherwise than the step itself: nothing, in whichever step."""
    take = steps.CapturedStep.run_step
    monkeypatch.setattr(steps.CapturedStep, "run_step",
                        lambda self: self.graphs.clear() or take(self))
    job(False, kind=kind, dtype=dtype, ema=0.9, clip_norm=1.0)
    assert [n for n, _ in graphs] == [8, 4, 8, 4, 8, 4]
    for n in (8, 4):
        first, *others = (graph for size, graph in graphs if size == n)
        assert [text for graph in others for text in changed(first, graph)] == []


@pytest.mark.slow
@pytest.mark.skipif(backend._cupy is not fake_cupy, reason="looks into the stand-in's graphs")
@pytest.mark.parametrize("kind, count", [("nesterov", 81), ("recipe", 267)])
def test_how_many_launches_a_step_is(graphs, kind, count):
    """Of cifar_convnet in float16: README's figures."""
    random.seed(0)
    model = models.cifar_convnet().to("cuda", "float16")
    settings = RECIPES["cifar10"].settings.replace(batch_size=2, epochs=3)
    settings = settings if kind == "recipe" else settings.with_optimizer("sgd")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    fit(model, Dataset(images, np.arange(2, dtype="int32"), tuple("abcdefghij"), "two"),
        **settings.fit_arguments(model))
    (_, graph), = graphs
    assert len(launches(graph)) == count


def test_what_the_graphs_held_is_given_back(cp, monkeypatch):
    """A pool of CuPy's that goes (14.1, 14.2) takes its free blocks along."""
    made, make = [], steps.graph_pool
    monkeypatch.setattr(steps, "graph_pool", lambda: made.append(make()) or made[-1])
    job(False, kind="muon", ema=0.9)
    assert len(made) > 1 and not any(pool.total_bytes() for pool in made)


# -- what changes between steps ------------------------------------------------------------


class Change(Callback):
    """Calls f(run) after a step."""

    def __init__(self, f, at=5):
        self.f, self.at = f, at

    def on_step(self, run):
        if (run.epoch - 1) * run.steps + run.step == self.at:
            self.f(run)


def replace_statistics(run):
    with run.model[1].running_mean.device:
        run.model[1].running_mean = run.model[1].running_mean + 1


@pytest.mark.parametrize("change", [
    lambda run: run.optimizer.groups[0].update(lr=0.01),
    lambda run: run.optimizer.groups[0].update(weight_decay=0.5),
    lambda run: run.model[0].requires_grad_(False),
    lambda run: run.model[1].eval(),
    lambda run: setattr(run.model[1], "momentum", 0.7),
    lambda run: setattr(run.model[5], "p", 0.8),
    lambda run: run.model.load_state_dict(network().state_dict()),
    lambda run: run.model.reseed(77, 5),
    replace_statistics,
], ids="lr decay frozen eval momentum dropout weights reseed buffer".split())
def test_a_callback_may_change_what_was_captured(graphs, change):
    want = job(True, callbacks=[Change(change)])
    equal(job(False, callbacks=[Change(change)]), want)
    assert [n for n, _ in graphs] in ([8, 4, 4], [8, 4])  # the latter where addresses stayed
    if change.__code__.co_names[-1:] != ("reseed",):  # a step has its own numbers
        assert not same(whole()[0], want[0])


def test_the_constants_of_averages_may_change(graphs):
    change = Change(lambda run: setattr(run.ema, "decay", 0.1))
    want = job(True, callbacks=[change], ema=0.9)
    equal(job(False, callbacks=[change], ema=0.9), want)
    assert [n for n, _ in graphs] == [8, 4, 4]
    assert not same(whole(ema=0.9)[0], want[0])


def test_those_of_the_loss_scale_may_change(graphs):
    found = []

    def change(run):
        run.scale.interval, run.scale.growth = 1, 0.5
        found.append((run.scale, float(run.scale.scale)))

    for eager in (True, False):
        job(eager, callbacks=[Change(change)], dtype="float16")
    assert [n for n, _ in graphs] == [8, 4, 4]
    assert [float(scale.scale) for scale, before in found] == [
        before / 2**3 for _, before in found]  # once in each of the last three steps


def test_what_was_captured_is_captured_again(graphs):
    job(False, callbacks=[Change(lambda run: run.optimizer.groups[0].update(lr=0.01), at=4)])
    assert [n for n, _ in graphs] == [8, 4, 8, 4]


def test_a_passive_callback_is_trusted(graphs, monkeypatch, tmp_path):
    looks, graph_key = [], steps.graph_key
    monkeypatch.setattr(steps, "graph_key", lambda run: looks.append(1) or graph_key(run))
    job(False, callbacks=[Checkpoint(tmp_path, minutes=1e-9), train.EarlyStopping(9)])
    few = len(looks)
    job(False, callbacks=[Change(print, at=-1)])
    assert few <= 4 + 2 < len(looks) - few  # epochs, captures; and steps


def test_a_callback_sees_the_factor_and_the_rate(cp):
    def run(eager):
        seen = []

        class Watch(Callback):
            def on_step(self, run):
                seen.append((run.optimizer.factor, run.lr, run.step))

        job(eager, callbacks=[Watch()])
        return seen

    assert run(False) == run(True)


def test_losses_are_read_now_and_then(cp, monkeypatch):
    monkeypatch.setattr(steps, "READ", 2)

    def run(eager):
        seen = []

        class Watch(Callback):
            passive = True

            def on_step(self, run):
                seen.append((run.loss, run.accuracy))

        job(eager, callbacks=[Watch()])
        return seen

    assert str(run(False)) == str(run(True))


# -- measured algorithms -------------------------------------------------------------------


@pytest.fixture
def table(cp):
    """A table that says SIMT for each convolution of a step."""
    model = network("float16")
    keys = autotune.asked(lambda: fit(model, tiny(12), epochs=1, batch_size=8, eager=True,
                                     optimizer=optim.SGD(model.parameters(), 0.1)))
    return Table(here(), {key: [(Algorithm("simt"), 1.0)] for key in keys})


def test_a_tuned_run_is_the_same_in_either_kind(graphs, table, tmp_path):
    more = dict(dtype="float16")
    with ops.tuned(table):
        want = job(True, **more)
        equal(job(None, **more), want)
        job(False, **more, callbacks=[StopAt(5), Checkpoint(tmp_path)])
        equal(job(True, **more, resume=tmp_path), want)
    with pytest.raises(ValueError, match=f"tuned was {table.hash}, is None"):
        job(True, **more, resume=tmp_path)
    if backend._cupy is fake_cupy:
        assert {"conv_simt"} <= {name for _, graph in graphs for name in launches(graph)}


# -- what cannot be captured ---------------------------------------------------------------


class Peek(nn.Module):
    """Looks at its input."""

    def forward(self, x):
        if float(x.data.sum()) > 1e9:
            raise AssertionError
        return x


def peeking():
    return nn.Sequential(Peek(), *network())


def test_what_cannot_be_captured_goes_on_without_a_graph(graphs):
    want = job(True, model=peeking())
    with pytest.warns(UserWarning, match="fit: the step is not captured as a CUDA graph, and goes "
                                         "on launch by launch .*: Peek: "):
        got = job(None, model=peeking())
    equal(got, want)
    assert not graphs


def test_or_is_an_error_where_a_graph_was_asked_for(cp):
    with pytest.raises(RuntimeError, match="the step cannot be captured: Peek: .*eager=True"):
        job(False, model=peeking())
    stream = cp.cuda.get_current_stream()
    assert stream == cp.cuda.Stream.null and not stream.is_capturing()
    equal(job(False), job(True))  # it leaves nothing behind


@pytest.mark.parametrize("kib", [4, 11])
def test_without_memory_for_a_graph_it_goes_on_without(graphs, kib):
    """CuPy's own pool would give back what the graph has used so far: 12 KiB in all are enough."""
    if backend._cupy is not fake_cupy:
        pytest.skip("only the stand-in can be short of memory")
    with room(kib << 10), pytest.warns(UserWarning, match="not captured.* bytes for a graph: "):
        got = job(None)
    equal(got, job(True))
    with room(kib << 10), pytest.raises(RuntimeError, match="cannot be captured: .* for a graph"):
        job(False)


def test_an_error_in_a_capture_is_the_callers(cp):
    calls = []

    class Second(nn.Module):
        def forward(self, x):
            calls.append(x)
            if len(calls) == 2:
                raise KeyError("mine")
            return x

    with pytest.raises(KeyError, match="mine"):
        job(None, model=nn.Sequential(Second(), *network()))
    assert cp.cuda.get_current_stream() == cp.cuda.Stream.null


def test_a_gradient_that_was_replaced_is_told(cp):
    def replace(run):
        run.model[0].weight.grad = run.model[0].weight.grad.copy()

    for eager in (True, False):
        with pytest.raises(RuntimeError, match="grad of parameter 0 .* was replaced"):
            job(eager, callbacks=[Change(replace)])


def test_the_cpu_is_always_eager(monkeypatch):
    monkeypatch.setattr(steps, "CapturedStep", None)
    for eager in (False, None):
        equal(job(eager, device="cpu"), job(True, device="cpu"))


# -- what is reported ----------------------------------------------------------------------


def test_the_step_of_a_nan_is_named(cp):
    x = np.random.default_rng(0).standard_normal((12, 4, 4, 1)).astype("float32")

    def spoil(run):
        x = run.data.images
        with x.device:
            x.fill(math.nan)

    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 3, step 2 of 2"):
        job(False, data=(x, np.arange(12) % 3), callbacks=[Change(spoil)])


def test_a_label_without_a_logit_is_refused(cp):
    data = tiny(12)
    with pytest.raises(ValueError, match=r"label 3 is outside 0\.\.2"):
        job(False, data=(data.images, np.arange(12) % 4))


def test_what_a_callback_does_is_in_order(cp):
    """It computes on the stream of the steps, and what it reads is there."""
    seen = []

    class Watch(Callback):
        def on_step(self, run):
            seen.append(backend.to_cpu(run.model[6].bias.data * 1).copy())

    with deferred():
        state, _ = job(False, callbacks=[Watch()])
    assert seen[-1].tobytes() == state["6.bias"].tobytes() and len(seen) == 8


def test_nothing_stays_on_the_device_when_the_run_is_over(cp):
    import gc
    import weakref
    made = []

    class Watch(Callback):
        def on_fit_start(self, run):
            made.append(weakref.ref(run))

    job(False, callbacks=[Watch()])
    gc.collect()
    assert made[0]() is None
