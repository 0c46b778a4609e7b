"""A captured update: clipping, loss scale, optimiser and averages as a graph of their launches."""

import numpy as np
import pytest
from optim_tools import KINDS, Weights, everything, parameters

from check import host
from gpuconv import backend
from gpuconv.optim import EMA, SGD, AdamW, LossScale, Muon, clip_grad_norm
from hostcuda import changed, compiler, fake_cupy, launches

pytestmark = pytest.mark.skipif(backend._cupy is not fake_cupy or not compiler(),
                                reason="wants the stand-in, and g++")


def muon(parameters, **settings):
    """Muon, orthogonal where it can be."""
    return Muon([dict(params=[p for p in parameters if (p.ndim > 1) == orthogonal],
                      orthogonal=orthogonal) for orthogonal in (True, False)], **settings)


KINDS = [*KINDS, pytest.param(muon, dict(lr=0.1, normalize=True, iterations=2), id="Muon")]


def training(cp, kind, settings, dtype):
    """A step of everything: gradients come from ``slopes``, as if backward had written them."""
    rng = np.random.default_rng(7)
    model = Weights(parameters(cp, rng, dtype), cp)
    ps = list(model.parameters())
    optimizer, ema = kind(ps, master=True, **settings), EMA(model, 0.9)
    scaler = LossScale(optimizer, 2.0**10, interval=3)
    slopes = [cp.zeros(p.shape, "float32") for p in ps]

    def step():
        optimizer.zero_grad()
        for p, g in zip(ps, slopes, strict=True):
            p.grad += scaler.multiply(g).astype(p.dtype)
        scaler.check()
        norm = clip_grad_norm(optimizer, 3.0)
        optimizer.step()
        ema.update(optimizer)
        return norm

    def feed(number):
        draws = np.random.default_rng(number)
        optimizer.factor = 1 / (1 + number)
        for p in slopes:
            p[...] = cp.asarray(np.asarray(draws.standard_normal(p.shape), "float32"))
        if number in (2, 5):  # an overflow
            slopes[2][3:4].fill(np.inf)

    def state():
        return everything(model, optimizer, ema) | everything(model, scaler)

    return step, feed, state


def captured(cp, step):
    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.get_current_stream().synchronize()
    with stream, cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        norm = step()
        graph = stream.end_capture()
    return graph, stream, pool, norm


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind, settings", KINDS)
def test_a_replayed_step_is_the_eager_one(cp, kind, settings, dtype):
    """With other factors, scales, skips and counts than the capture saw."""
    step, feed, want = training(cp, kind, settings, dtype)
    other, feed_other, got = training(cp, kind, settings, dtype)
    for number in (0, 1):
        for write, run in ((feed, step), (feed_other, other)):
            write(number)
            run()
    graph, stream, *_, norm = captured(cp, other)
    names = launches(graph)
    assert {"loss_scale_find", "loss_scale_update", "clip_norm", "ema_prepare"} <= set(names)
    skipped = 0
    for number in range(2, 9):
        feed(number)
        feed_other(number)
        cp.cuda.get_current_stream().synchronize()
        before = want()
        length = step()
        graph.launch(stream)
        stream.synchronize()
        assert got() == want() and host(norm).tobytes() == host(length).tobytes()
        skipped += before["p0"] == want()["p0"]
    assert skipped == 2


@pytest.mark.parametrize("kind, settings", KINDS)
def test_no_number_of_a_step_is_baked_in(cp, kind, settings):
    step, feed, _ = training(cp, kind, settings, "float16")
    feed(0)
    step()
    first, *held = captured(cp, step)
    feed(2)
    step()  # is left out: another scale, too
    feed(3)
    step()
    assert changed(first, captured(cp, step)[0]) == [] and held


def test_the_first_step_cannot_be_captured(cp, rng):
    """Momentum that is made inside would be zero again in each replay."""
    model = Weights(parameters(cp, rng), cp)
    sgd, ema = SGD(model.parameters(), 0.1, momentum=0.9), EMA(model)
    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    with stream, cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="momentum is made by the first step: do that once"):
            sgd.step()
        with pytest.raises(RuntimeError, match="EMA: averages move beside .*: do that once before"):
            ema.update(sgd)
        stream.end_capture()


def test_nothing_waits_and_nothing_is_copied_from_here(cp, rng, monkeypatch):
    step, feed, _ = training(cp, AdamW, dict(lr=0.1), "float16")
    feed(0)
    step()

    def fetched(*_, **__):
        raise AssertionError("a copy to the CPU, or from it")

    with monkeypatch.context() as m:
        for name in ("get", "item", "tolist", "__float__", "__bool__"):
            m.setattr(cp.ndarray, name, fetched)
        m.setattr(cp, "array", fetched)
        step()
