"""Chunks cover everything; each() keeps order, passes errors on, nests, and puts BLAS back."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuconv import threads, vjp
from gpuconv.autograd import Op
from gpuconv.ops import conv2d, linear, matmul

PIECES = [slice(i, i + 1) for i in range(12)]


def blas_threads():
    return [lib["num_threads"] for lib in threadpoolctl.threadpool_info()
            if lib["user_api"] == "blas"]


@pytest.fixture
def two_blas_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if set(blas_threads()) != {2}:
            pytest.skip("a BLAS that will not use two threads")
        yield


# -- chunks ------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(1, 500), st.integers(1, 2000), st.integers(1, 10_000))
def test_chunks_cover_everything_evenly_within_the_budget(items, item_bytes, budget):
    cut = threads.chunks(items, item_bytes, budget)
    assert [i for c in cut for i in range(items)[c]] == list(range(items))
    sizes = [c.stop - c.start for c in cut]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or max(sizes) * item_bytes <= budget
    fewer = -(-items // (len(cut) - 1)) if len(cut) > 1 else 0
    assert not fewer or fewer * item_bytes > budget  # no chunk too many


def test_no_items_are_no_chunks():
    assert threads.chunks(0, 100) == [] and threads.each(lambda c: 1 / 0, []) == []


def test_the_cut_does_not_depend_on_the_processors(monkeypatch):
    cuts = []
    for workers in (1, 64):
        monkeypatch.setattr(threads, "count", lambda workers=workers: workers)
        cuts.append(threads.chunks(1000, 5000))
    assert cuts[0] == cuts[1]


# -- each --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_chunks(monkeypatch, workers):
    monkeypatch.setattr(threads, "count", lambda: workers)

    def slow_first(piece):
        time.sleep(0.02 / (1 + piece.start))
        return piece.start

    assert threads.each(slow_first, PIECES) == list(range(12))


def test_the_work_is_shared(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 3)
    together = threading.Barrier(3, timeout=10)  # passes only if three run at once
    assert threads.each(lambda piece: together.wait() >= 0, PIECES[:3]) == [True] * 3


def test_workers_take_floating_point_errors_as_the_caller_does(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 4)
    ready = threading.Barrier(4, timeout=60)

    def handling(_):
        ready.wait()
        return np.geterr()["over"]

    for want in ("ignore", "raise", "warn"):
        with np.errstate(over=want):
            assert threads.each(handling, PIECES[:4]) == [want] * 4


def test_one_chunk_runs_here():
    assert threads.each(lambda piece: threading.get_ident(), PIECES[:1]) == [threading.get_ident()]


def test_an_error_comes_out(two_blas_threads):
    def fail(piece):
        if piece.start == 7:
            raise ZeroDivisionError("of chunk 7")
        return piece

    with pytest.raises(ZeroDivisionError, match="of chunk 7"):
        threads.each(fail, PIECES)
    assert set(blas_threads()) == {2}
    assert threads.each(lambda piece: piece, PIECES) == PIECES  # and the next call works


def test_inside_each_everything_runs_in_its_own_thread(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 2)

    def outer(piece):
        inner = threads.each(lambda p: threading.get_ident(), PIECES)
        return set(inner) == {threading.get_ident()}

    assert threads.each(outer, PIECES) == [True] * 12  # a pool of two would wait for itself


def test_blas_uses_one_thread_inside_and_gets_its_threads_back(two_blas_threads):
    inside = threads.each(lambda piece: blas_threads(), PIECES)
    assert all(set(limits) == {1} for limits in inside)
    assert set(blas_threads()) == {2}


def test_two_threads_of_the_caller_leave_blas_as_it_was(two_blas_threads):
    """The second must not take the limit of the first for what was there before."""
    entered, leave = threading.Event(), threading.Event()

    def other():
        with threads.single_threaded_blas():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with threads.single_threaded_blas():
        thread.start()
        assert entered.wait(10)
    assert set(blas_threads()) == {1}  # the other is still inside
    leave.set()
    thread.join()
    assert set(blas_threads()) == {2}


def test_the_bits_do_not_depend_on_the_number_of_threads(monkeypatch, rng):
    x, w = rng.standard_normal((500, 300)), rng.standard_normal((300, 70))
    sums = []
    for workers in (1, 2, 7):
        monkeypatch.setattr(threads, "count", lambda workers=workers: workers)
        parts = threads.each(lambda c: (x[c] @ w).sum(axis=0), threads.chunks(500, 300 * 8, 65536))
        sums.append(sum(parts).tobytes())
    assert len(parts) > 10 and len(set(sums)) == 1


# -- fork --------------------------------------------------------------------------------

FORK = """
import os, signal, threading
import threadpoolctl
from gpuconv import threads

threads.set_count(2)
work = [slice(i, i + 1) for i in range(4)]
assert threads.each(lambda p: p, work) == work
threadpoolctl.threadpool_limits(2, "blas")

def blas():
    return {lib["num_threads"] for lib in threadpoolctl.threadpool_info()
            if lib["user_api"] == "blas"}

two = blas()  # {1} of a BLAS that will not use two threads

def right():
    with threads.single_threaded_blas():
        inside = blas()
    return threads.each(lambda p: p, work) == work and inside <= {1} and blas() == two

def child(check):
    pid = os.fork()
    if not pid:
        signal.alarm(20)  # ends a child that hangs
        os._exit(not check())
    assert os.waitpid(pid, 0)[1] == 0
"""


def forks(code):
    if not hasattr(os, "fork"):
        pytest.skip("a system without fork")
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK + code],
                   check=True)


def test_a_forked_child_gets_threads_of_its_own():
    forks("child(right)")


def test_children_forked_while_another_thread_computes():
    """Each starts with the BLAS threads that the other thread has found, and can compute."""
    forks("""
going = True

def compute():
    while going:
        with threads.single_threaded_blas():
            pass

other = threading.Thread(target=compute)
other.start()
try:
    for _ in range(12):
        child(lambda: blas() == two and right())
finally:
    going = False
    other.join()
assert blas() == two
""")


def test_a_child_forked_inside_the_limit():
    """It starts without the limit, also when it leaves the block that its parent has entered."""
    forks("""
with threads.single_threaded_blas():
    child(lambda: blas() == two and right())
    assert blas() <= {1}
    pid = os.fork()
if not pid:
    os._exit(not (blas() == two and right()))
assert os.waitpid(pid, 0)[1] == 0 and right()
""")


def test_a_child_forked_by_a_worker_has_workers_of_its_own():
    forks("""
def shared():
    together = threading.Barrier(2, timeout=10)  # passes only if two threads are in it
    return threads.each(lambda p: together.wait() >= 0, work[:2]) == [True] * 2

threads.each(lambda p: child(shared), work)
""")


def test_a_fork_waits_for_an_import_that_a_computation_needs():
    """A child never gets a half-imported module: it could not import it for itself."""
    forks("""
import sys, time
for name in [name for name in sys.modules if name.startswith("concurrent")]:
    del sys.modules[name]
threads._pool.cache_clear()
begun = threading.Event()

class Slow:
    def find_spec(self, name, *more):
        if name == "concurrent.futures.thread":
            begun.set()
            time.sleep(0.2)

sys.meta_path.insert(0, Slow())
other = threading.Thread(target=threads.each, args=(lambda p: p, work))
other.start()
begun.wait()
child(right)
other.join()
""")


# -- workspaces --------------------------------------------------------------------------


def test_a_workspace_is_reused_and_grows():
    a = threads.workspace("test", 10, "float32")
    assert a.shape == (10,) and a.dtype == np.float32
    address = a.ctypes.data
    assert threads.workspace("test", 5, "float64").ctypes.data == address  # 40 bytes again
    assert threads.workspace("other", 10, "float32").ctypes.data != address
    assert threads.workspace("test", 100, "float64").shape == (100,)
    assert threads.workspace("test", 0, "float64").shape == (0,)


@pytest.mark.parametrize("count", [1, 2])
def test_a_result_in_a_workspace_is_destroyed(count):
    """The check that all tests run with (workspaces.py): after a chunk of work, and after an op."""
    class Leaking(Op):
        def forward_cpu(self, x):
            y = threads.workspace("test", x.shape, x.dtype)
            y[...] = x
            return y

        def backward_cpu(self, gy):
            return (self.forward_cpu(gy),)

    try:
        threads.set_count(count)
        kept = threads.each(lambda piece: Leaking().forward_cpu(np.ones(9)), PIECES)
    finally:
        threads.set_count(None)
    assert np.isnan(kept).all()
    y, pull = vjp(Leaking(), np.ones(9))
    assert np.isnan(y).all() and np.isnan(pull(np.ones(9))[0]).all()


def test_a_workspace_belongs_to_a_thread(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 3)
    together = threading.Barrier(3, timeout=10)

    def f(piece):
        mine = threads.workspace("test", 1000, "int64")
        mine[:] = piece.start
        together.wait()  # all three have written
        return mine.ctypes.data, bool((mine == piece.start).all())

    addresses, untouched = zip(*threads.each(f, PIECES[:3]), strict=True)
    assert len(set(addresses)) == 3 and all(untouched)


@pytest.mark.parametrize("work", [
    pytest.param(lambda a: linear(a, a), id="linear"),
    pytest.param(lambda a: matmul(a, a), id="matmul"),
    pytest.param(lambda a: matmul(a.reshape(3, 100, 300), a), id="batched"),
    pytest.param(lambda a: conv2d(a.reshape(1, 30, 30, 100), a[:90].reshape(30, 3, 3, 100)),
                 id="one-image"),
])
def test_bits_do_not_depend_on_the_threads_of_blas(rng, work):
    a = rng.standard_normal((300, 300)).astype("float32")
    results = []
    for limit in (1, 2):
        with threadpoolctl.threadpool_limits(limit, "blas"):
            results.append(work(a).tobytes())
    assert results[0] == results[1]


@pytest.fixture
def two():
    before = threads._wanted
    threads.set_count(2)
    yield
    threads.set_count(before)


def test_a_signal_is_raised_when_nobody_is_at_work_any_more(two):
    """It comes while this thread waits for the other one."""
    done = []

    def work(piece):
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.01)  # leaves the other piece to the other thread
            return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
        done.append(piece)

    with pytest.raises(KeyboardInterrupt):
        while not done:  # this thread may have been the quicker one
            threads.each(work, range(2))
    assert done


def test_a_signal_in_the_middle_of_handing_work_over(two, monkeypatch):
    """The other thread has got its work, and this one does not know."""
    pool, done = threads._pool(1), []

    class Interrupted:
        def submit(self, work):
            pool.submit(work)
            time.sleep(0.01)
            raise KeyboardInterrupt

    def work(piece):
        time.sleep(0.03)
        done.append(piece)

    monkeypatch.setattr(threads, "_pool", lambda workers: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        threads.each(work, range(9))
    found = done.copy()
    time.sleep(0.1)
    assert done == found and len(done) < 9
