"""Copies of state, put back or not: arrays, buffers of modules; and signals meanwhile."""

import signal
import threading

import numpy as np
import pytest
from test_accumulate import counted

from check import host, make, shifted
from gpuconv import backend, nn
from gpuconv.autograd import Parameter
from gpuconv.optim import SGD
from gpuconv.undo import PAIRS, Undo, copied, put_back, uninterrupted

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 31, 0, 256, 257, 300, 1000, 2, 16, 33, *range(10, 20)]


def spoil(arrays, xp):
    for a in arrays:
        with backend.array_device(a):
            a.fill(1)


@pytest.mark.parametrize("place", ["aligned", "elsewhere"])
@pytest.mark.parametrize("flag", [None, 0, 1, 2, "here 0", "here 1"])
def test_arrays_of_any_length_and_dtype(xp, rng, place, flag):
    """A flag is a number, or lies beside the arrays."""
    values = [make(rng.standard_normal(n), dtype) for n, dtype in zip(
        LENGTHS, ("float16", "float32", "float64") * 9, strict=True)]
    values += [np.int64(7)[()] * np.ones((), "int64"), np.arange(5, dtype="int32") > 2,
               np.arange(300, dtype="uint8").reshape(3, 100)]
    arrays = [shifted(xp, v) if place == "elsewhere" and v.ndim == 1 else xp.asarray(v.copy())
              for v in values]
    pairs, before = copied(arrays), [host(a).tobytes() for a in arrays]
    spoil(arrays, xp)
    spoiled = [host(a).tobytes() for a in arrays]
    number = int(flag[-1]) if isinstance(flag, str) else flag
    put_back(pairs, xp.asarray(np.float64(number)) if isinstance(flag, str) else flag)
    assert [host(a).tobytes() for a in arrays] == (spoiled if number == 0 else before)
    assert spoiled != before


def test_arrays_of_any_order(xp, rng):
    turned = xp.asarray(rng.standard_normal((3, 4)).astype("float32")).T
    want = host(turned).copy()
    for flag in (None, xp.asarray(np.float64(1)), xp.asarray(np.float64(0))):
        pairs = copied([turned])
        turned += 1
        put_back(pairs, flag)
        np.testing.assert_array_equal(host(turned), want + (flag is not None and not float(flag)))


@pytest.mark.parametrize("count", [0, 1, PAIRS - 1, PAIRS, PAIRS + 1, 2 * PAIRS])
def test_many_arrays_are_few_launches(cp, monkeypatch, count):
    noted = counted(monkeypatch)
    pairs = copied(cp.ones(9, dtype) for dtype in (["float32", "int64", "bool"] * 16)[:count])
    noted.clear()
    put_back(pairs, cp.ones(()))
    assert len(noted) == -(-count // PAIRS) and sum(noted) == sum(
        -(-a.nbytes // 16) for a, _ in pairs)


def test_the_newest_is_put_back_first():
    a, table, thing = np.zeros(3), {"old": 1}, nn.Identity()
    thing.names, thing.number = ["x"], 1
    undo = Undo()
    for value in (1, 2):
        undo.keep(a, a)
        undo.keep_items(table)
        undo.keep_attributes(thing, "names", "number")
        a += 1
        table[value] = value
        thing.names.append(value)
        thing.number += 1
    undo.restore()
    assert a.tolist() == [0] * 3 and table == {"old": 1}
    assert (thing.names, thing.number) == (["x"], 1)
    a += 5
    undo.restore()
    assert a.tolist() == [5] * 3  # there is nothing left to put back


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_a_block_counts_if_it_ends_well(error):
    a = np.zeros(3)
    try:
        with Undo() as undo:
            undo.keep(a)
            a += 1
            if error:
                raise error
    except (ZeroDivisionError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert a.tolist() == [error is None] * 3


def test_while_a_stream_captures_nothing_is_kept(cp):
    a, stream = cp.zeros(3), cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        undo = Undo()
        undo.keep(a)
        a += 1
        graph = stream.end_capture()
    undo.restore()
    graph.launch()
    assert host(a).tolist() == [1] * 3


# -- buffers of modules --------------------------------------------------------------------


class Buffers(nn.Module):
    def __init__(self):
        self.inner = nn.BatchNorm2d(3)
        self.register_buffer("mask", np.zeros(3, "bool"))
        self.again = self.inner


def test_buffers_are_put_back_in_place_or_replaced(xp):
    device = "cpu" if xp is np else "cuda"
    module = Buffers().to(device)
    mean, saved = module.inner.running_mean, nn.SavedBuffers(module)
    want = {name: host(a).copy() for name, a in module.state_dict().items()}
    mean += 1
    module.inner.running_var = module.inner.running_var * 2  # another array of the same shape
    module.mask = xp.ones(5, "bool")                         # and one of another
    saved.put_back(xp.asarray(np.float64(0)))
    assert host(mean).tolist() == [1] * 3 and host(module.inner.running_var).tolist() == [2] * 3
    saved.put_back()
    assert module.inner.running_mean is mean
    for name, a in module.state_dict().items():
        np.testing.assert_array_equal(host(a), want[name])


def test_a_module_without_buffers_has_nothing_to_put_back():
    nn.SavedBuffers(nn.Linear(2, 2)).put_back()


# -- signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait(monkeypatch, number):
    got, before = [], signal.signal(number, lambda number, _: got.append(number))
    try:
        with uninterrupted():
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert not got
        assert got == [number] * 2
        undo = Undo()
        undo.call(lambda: signal.raise_signal(number))
        undo.call(lambda: got.append("first"))
        undo.call(lambda: signal.raise_signal(number))
        undo.restore()
        assert got[2:] == ["first", number, number]
    finally:
        signal.signal(number, before)


def test_a_signal_that_raises_does_so_when_all_is_put_back():
    a, undo = np.zeros(3), Undo()
    undo.keep(a)
    a += 1
    undo.call(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        undo.restore()
    assert a.tolist() == [0] * 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_without_a_handler_of_pythons_and_other_threads_are_left_alone():
    before, seen = signal.signal(signal.SIGTERM, signal.SIG_DFL), []

    def look():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [signal.default_int_handler]
    finally:
        signal.signal(signal.SIGTERM, before)


class Odd(nn.Module):
    """Binds its buffers to other arrays, registers one late, and keeps its input."""

    def __init__(self):
        self.register_buffer("a", np.zeros(2))
        self.register_buffer("b", np.ones(2))

    def forward(self, x):
        self.a = self.b
        self.b += 1
        self.b = np.append(self.b, 1.0)
        self.register_buffer("late", np.ones(1))
        self.a = x.data
        return x


@pytest.mark.parametrize("skip", [None, 1.0, np.ones(())])
def test_buffers_that_forward_has_bound_anew(skip):
    layer, x = Odd(), np.full(2, 7.0)
    a, b, saved = layer.a, layer.b, nn.SavedBuffers(layer)
    layer(x)
    saved.put_back(skip)
    assert layer.a is a and layer.b is b and a.tolist() == [0, 0] and b.tolist() == [1, 1]
    assert x.tolist() == [7, 7]  # another array is not written to
    assert list(layer.state_dict()) == ["a", "b"] and not hasattr(layer, "late")


def test_buffers_stay_as_forward_left_them_in_a_step_that_counts():
    layer = Odd()
    saved = nn.SavedBuffers(layer)
    layer(np.full(2, 7.0))
    saved.put_back(0.0)
    assert layer.a.tolist() == [7, 7] and layer.b.tolist() == [2, 2, 1]


def test_an_optimiser_of_ones_own_that_fails_halfway():
    """It binds state anew, changes settings and adds a counter before the error."""
    class Mine(SGD):
        fails = True

        def update(self, flat, part, group):
            if self.fails and group is self.groups[1]:
                raise MemoryError
            super().update(flat, part, group)
            flat.state["momentum"] = flat.state["momentum"] * 2
            group["lr"] *= 0.5
            self.new_counter("t")

    ps = [Parameter(np.ones(3)) for _ in range(2)]
    mine = Mine([{"params": p} for p in ps], 0.1, momentum=0.9)
    for p in ps:
        p.grad[...] = 1
    mine.fails = False
    mine.step()
    mine._counters.clear()
    before = {name: np.array(value) for name, value in mine.state_dict().items()}
    mine.fails = True
    with pytest.raises(MemoryError):
        mine.step()
    after = mine.state_dict()
    assert set(after) == set(before)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, name)
