"""Stream capture: a step as a graph of its launches, replayed with other inputs.

All of it by the stand-in: what is written down here is what CUDA and CuPy promise, and no more.
"""

import functools
import gc
import re

import numpy as np
import pytest
from test_streams import add, fresh, same  # noqa: F401  # fresh is a fixture

import gpuconv as gpc
from check import close, host
from gpuconv import backend, nn, ops, optim
from gpuconv.train.gpu_memory import graph_pool
from hostcuda import changed, compiler, deferred, fake_cupy, launches, room

cp = fake_cupy
pytestmark = pytest.mark.skipif(backend._cupy is not fake_cupy or not compiler(),
                                reason="wants the stand-in, and g++")


# -- capture -------------------------------------------------------------------------------


class Captured:
    """f() of a stream, captured: ``graph``, what f returned, and the stream and pool to keep."""

    def __init__(self, f, warm=True):
        self.stream, self.pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
        with self.stream:
            if warm:  # compile, and allocate what is allocated once
                f()
            with cp.cuda.using_allocator(self.pool.malloc):
                self.stream.begin_capture()
                self.value = f()
                self.graph = self.stream.end_capture()

    def replay(self):
        self.graph.launch(self.stream)
        self.stream.synchronize()
        return self.value


def test_a_capture_runs_nothing_and_a_replay_takes_what_the_addresses_hold():
    x, y = cp.ones(3, "float32"), cp.zeros(3, "float32")
    captured = Captured(lambda: add(x, y, 1) or (y * 2).sum(), warm=False)
    assert not y.get().any() and np.isnan(captured.value.get())
    assert launches(captured.graph) == ["add", "*", "sum"]
    for start in (1, 5):
        x.fill(start)
        assert float(captured.replay()) == 6 * (start + 1)
    with deferred():
        x.fill(7)
        captured.stream.wait_event(cp.cuda.get_current_stream().record())
        captured.graph.launch(captured.stream)
        assert y.host.tolist() == [6] * 3  # later
        captured.stream.synchronize()
        assert y.host.tolist() == [8] * 3


@pytest.mark.parametrize("name, f, message", [
    ("get", lambda s, a: a.get(), "D2H transfers are disallowed"),
    ("item", lambda s, a: a.sum().item(), "D2H transfers"),
    ("if", lambda s, a: bool(a[0] > 0), "D2H transfers"), ("print", lambda s, a: str(a), "D2H"),
    ("mask", lambda s, a: a[a > 0], "D2H transfers"),
    ("asarray", lambda s, a: cp.asarray(np.ones(3)), "H2D transfers are disallowed"),
    ("synchronize", lambda s, a: s.synchronize(), "cudaErrorStreamCaptureUnsupported"),
    ("device", lambda s, a: cp.cuda.Device().synchronize(), "cudaErrorStreamCaptureUnsupported"),
    ("event", lambda s, a: s.record().synchronize(), "cudaErrorCapturedEvent"),
    ("matmul", lambda s, a: a @ a, "calling cuBLAS API during stream capture is currently unsupp"),
    ("error word", lambda s, a: backend.error_word(), "nothing may wait"),
])
def test_what_a_capture_refuses(name, f, message):
    a, stream, pool = cp.ones(3), cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    with stream, cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        with pytest.raises((RuntimeError, NotImplementedError), match=re.escape(message)):
            f(stream, a)
        if "cudaError" in message:  # CUDA itself has ended it
            with pytest.raises(RuntimeError, match="invalidated"):
                stream.is_capturing()
            with pytest.raises(RuntimeError, match="StreamCaptureInvalidated"):
                stream.end_capture()


def test_memory_of_a_capture_comes_from_a_pool_of_its_own():
    a, stream = cp.ones(3), cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="24 bytes of the default pool, in a capture"):
            a + 1
        stream.end_capture()
    captured = Captured(lambda: a + 1)
    with cp.cuda.using_allocator(captured.pool.malloc):
        with pytest.raises(RuntimeError, match="belongs to a captured graph"):
            cp.ones(3)
    assert captured.replay().tolist() == [2] * 3
    del captured.pool
    gc.collect()
    with pytest.raises(RuntimeError, match="the pool that the graph's memory came from is gone"):
        captured.replay()


def test_a_pool_that_gives_blocks_back_is_not_for_graphs():
    """CuPy's own does when memory runs out, or at its limit: a graph would write there."""
    captured = Captured(lambda: (cp.ones(1000) + 1).sum())
    captured.replay()
    captured.pool.free_all_blocks()
    with pytest.raises(RuntimeError, match="given free blocks back"):
        captured.replay()

    def step():  # the second array does not fit beside the first, which is free by then
        cp.ones(1000)
        return cp.ones(1200)

    with room(10 << 10):
        captured = Captured(step)
    with pytest.raises(RuntimeError, match="given free blocks back"):
        captured.replay()
    with room(10 << 10), pytest.raises(MemoryError, match="9728 bytes"):
        Captured(lambda: [cp.ones(100), cp.ones(1200)])


@pytest.mark.parametrize("limited", [False, True])
def test_a_pool_for_graphs_gives_nothing_back(limited, monkeypatch):
    stream, default = cp.cuda.Stream(non_blocking=True), cp.get_default_memory_pool()
    monkeypatch.setattr(default, "_limit", (default.total_bytes() + 10000) * limited)
    with room(10 << 10), stream, cp.cuda.using_allocator((pool := graph_pool()).malloc):
        stream.begin_capture()
        y = cp.ones(1000)
        first = stream.end_capture()
        del y
        stream.begin_capture()
        with pytest.raises(MemoryError, match="bytes for a graph: " + (
                r"\d+ of \d+ allowed" if limited else "cudaErrorMemoryAllocation")):
            cp.ones(1200)
        stream.end_capture()
    first.launch(stream)
    assert pool.total_bytes() >= 8000  # they are there still


def test_memory_from_before_the_capture_must_still_be_there():
    x, y = cp.ones(3, "float32"), cp.zeros(3, "float32")
    captured = Captured(functools.partial(add, x, y, 1))
    captured.replay()
    del x
    with pytest.raises(RuntimeError, match="add reads memory .* freed since"):
        captured.replay()


def test_only_a_stream_that_waits_for_nobody_may_capture_beside_the_null_stream():
    with pytest.raises(RuntimeError, match="default .legacy. stream"):
        cp.cuda.Stream.null.begin_capture()
    stream = cp.cuda.Stream()
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureImplicit"):
        cp.ones(3)
    with pytest.raises(RuntimeError, match="StreamCaptureInvalidated"):
        stream.end_capture()
    with pytest.raises(RuntimeError, match="not capturing"):
        stream.end_capture()
    with pytest.raises(NotImplementedError, match="cannot be initiated"):
        cp.cuda.Graph()


def test_numbers_that_change_from_step_to_step_are_found():
    x, y = cp.ones(3, "float32"), cp.zeros(3, "float32")
    other = cp.ones(3, "float32")

    def capture(by, factor=2.0, start=x, more=False):
        def step():
            add(start, y, by)
            return y * factor + 1 if more else y * factor
        return Captured(step).graph

    first = capture(1)
    assert changed(first, capture(1)) == []
    assert changed(first, capture(2)) == ["add: by is 1.0, then 2.0"]
    assert changed(first, capture(1, 3.0)) == ["*: 1 is 2.0, then 3.0"]
    assert changed(first, capture(1, start=other)) == ["add: x is another array"]
    assert changed(first, capture(1, more=True)) == ["task 2 is nothing, then +"]


# -- gpuconv, captured ---------------------------------------------------------------------


def pieces(lr=0.1, momentum=0.9, **options):
    """A model, its optimiser, and the arrays that it reads a batch from."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3),
                          nn.GELU(), nn.Flatten()).to("cuda")
    x, y = cp.zeros((6, 8, 8, 4), "float32"), cp.zeros(6, "int32")
    return model, optim.SGD(model.parameters(), lr=lr, momentum=momentum), x, y


def step(model, optimizer, x, y, number=0):
    model.reseed(0, number)
    loss = ops.softmax_cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.data


def feed(x, y, rng):
    x[...] = cp.asarray(rng.standard_normal(x.shape).astype("float32"))
    y[...] = cp.asarray(rng.integers(0, 64, 6).astype("int32"))


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_replayed_step_is_the_eager_step(late):
    def run(captured):
        rng, losses = np.random.default_rng(5), []
        parts = pieces()
        feed(*parts[2:], rng)
        stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
        cp.cuda.get_current_stream().synchronize()
        with stream:
            losses.append(float(step(*parts)))  # warms up
            if captured:
                with cp.cuda.using_allocator(pool.malloc):
                    stream.begin_capture()
                    loss = step(*parts)
                    graph = stream.end_capture()
            for _ in range(3):
                feed(*parts[2:], rng)
                if captured:
                    graph.launch()
                losses.append(float(loss if captured else step(*parts)))
            return [*losses, *(host(a) for a in parts[0].state_dict().values())]

    want = run(captured=False)
    if late:
        with deferred():
            same(run(captured=True), want)
    else:
        same(run(captured=True), want)
    assert len(set(want[:4])) == 4


def test_a_step_of_today_bakes_dropout_in():
    """The tool that a captured trainer starts from: nothing may be on this list."""
    parts = pieces()
    model, optimizer, x, y = parts
    first = Captured(lambda: step(*parts)).graph
    assert {"batch_norm_forward", "dropout", "max_pool_backward",
            "softmax_cross_entropy_forward", "sgd_step"} <= set(launches(first))
    assert changed(first, Captured(lambda: step(*parts)).graph) == []
    optimizer.factor = 0.5
    assert changed(first, Captured(lambda: step(*parts)).graph) == []
    again = changed(first, Captured(lambda: step(*parts, number=1)).graph)
    assert len(again) == 2 and all(re.match(r"dropout: step is 0, then 1", text) for text in again)
    parts = model, optimizer, cp.zeros_like(x), y
    found = changed(first, Captured(lambda: step(*parts)).graph)
    assert found and all(text.endswith("is another array") for text in found)


def test_products_of_matrices_are_captured_with_their_gradients():
    x = cp.asarray(np.arange(18, dtype="float32").reshape(2, 3, 3))
    captured = Captured(lambda: gpc.vjp(ops.matmul, x, x)[1](x))
    same(map(host, captured.replay()), map(host, gpc.vjp(ops.matmul, x, x)[1](x)))


@pytest.mark.parametrize("layer, shape", [(nn.Conv2d(4, 4, 3), (2, 6, 6, 4)),
                                          (nn.Linear(4, 3), (2, 4))], ids=["conv", "linear"])
def test_layers_with_products_are_captured(layer, shape):
    layer.to("cuda")
    x = cp.ones(shape, "float32")
    captured = Captured(lambda: layer(x).sum().data)
    close(captured.replay(), host(layer(x).sum().data), terms=100)
    layer.to("cpu")
