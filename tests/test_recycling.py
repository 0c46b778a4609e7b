"""Memory is used again only when nobody can see it, and no more is kept than was once needed."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuconv import memory, threads
from gpuconv.memory import LEAST, PAGE, empty

KB64 = 1 << 16


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """A pool of its own for each test."""
    own = memory.Pool()
    monkeypatch.setattr(memory, "_pool", own)
    return own


def address(a):
    return a.__array_interface__["data"][0]


# -- what it gives -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bool", "int32", "bfloat16"])
@pytest.mark.parametrize("shape", [300_000, (300_000,), (7, 100, 211), (1, 1 << 20, 1)], ids=str)
def test_an_array_like_any_other(shape, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    for _ in range(3):
        a = empty(shape, dtype)
        want = np.empty(shape, dtype)
        assert type(a) is np.ndarray and (a.shape, a.dtype) == (want.shape, want.dtype)
        assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
        assert address(a) % 64 == 0
        a.reshape(-1)[-1:] = 1
        del a


@pytest.mark.parametrize("shape", [0, (), (0, 1 << 20), (1 << 20, 0), (3, 4), LEAST // 4 - 1],
                         ids=str)
def test_small_ones_and_empty_ones_are_numpys(pool, shape):
    a = empty(shape, np.float32)
    assert a.flags.owndata and a.shape == np.empty(shape).shape
    assert pool.in_use == pool.waiting == 0


def test_a_shape_that_is_none():
    with pytest.raises(ValueError, match="negative"):
        empty((-1, 5), np.float32)
    with pytest.raises(TypeError):
        empty("ab", np.float32)


def test_what_is_gone_is_used_again():
    a = empty((256, 1024), np.float32)
    where = address(a)
    del a
    b = empty(1 << 17, np.float64)
    assert address(b) == where
    c = empty(1 << 17, np.float64)
    assert not np.shares_memory(b, c)


# -- who still sees it -------------------------------------------------------------------


VIEWS = {
    "a part": lambda a: a[5:],
    "a part of a part": lambda a: a[5:][::2],
    "reshaped": lambda a: a.reshape(-1, 4),
    "transposed": lambda a: a.T,
    "another dtype": lambda a: a.view(np.int32),
    "its base": lambda a: a.base,
    "the base of its base": lambda a: np.asarray(a.base.base),
    "windows": lambda a: np.lib.stride_tricks.sliding_window_view(a, 3),
    "a memoryview": lambda a: np.asarray(memoryview(a)),
    "frombuffer": lambda a: np.frombuffer(a, np.uint8),
    "DLPack": np.from_dlpack,
    "another class": lambda a: a.view(np.recarray),
    "read-only": lambda a: np.broadcast_to(a, (2, *a.shape)),
}


@pytest.mark.parametrize("see", VIEWS.values(), ids=VIEWS)
def test_a_view_outlives_its_array(pool, see):
    a = empty(KB64, np.float32)
    a[...] = np.arange(KB64)
    view = see(a)
    seen = np.array(view)
    del a
    others = [empty(KB64, np.float32) for _ in range(3)]
    for other in others:
        other[...] = -1
    np.testing.assert_array_equal(view, seen)
    del view, other, others
    gc.collect()
    memory.free_all_blocks()
    assert pool.in_use == 0


def test_pytorch_shares_it():
    torch = pytest.importorskip("torch")
    for share in (torch.from_numpy, torch.from_dlpack):
        a = empty(KB64, np.float32)
        a[...] = 3
        tensor = share(a)
        del a
        empty(KB64, np.float32)[...] = 4
        assert (tensor == 3).all()


def test_copies_pickles_and_files(tmp_path):
    a = empty((64, 512), np.float32)
    a[...] = np.arange(512)
    np.save(tmp_path / "a.npy", a)
    with open(tmp_path / "a.raw", "wb") as file:
        a.tofile(file)
    others = [a.copy(), copy.copy(a), copy.deepcopy(a), pickle.loads(pickle.dumps(a)),
              pickle.loads(pickle.dumps(a, 5)), np.load(tmp_path / "a.npy"),
              np.fromfile(tmp_path / "a.raw", np.float32).reshape(a.shape)]
    for other in others:
        np.testing.assert_array_equal(other, a)
        assert not np.shares_memory(other, a)


def test_flags_can_be_set():
    a = empty(KB64, np.float32)
    a.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1
    a.flags.writeable = True
    a[0] = 1
    with pytest.raises(ValueError, match="own"):
        a.resize(3)
    a.shape = 2, -1
    assert a.shape == (2, KB64 // 2)


# -- accounting --------------------------------------------------------------------------


sizes = st.integers(1, 12).map(lambda n: n * 40_000)
steps = st.lists(st.one_of(st.tuples(st.just("allocate"), sizes),
                           st.tuples(st.sampled_from(["view", "drop", "drop", "drop"]),
                                     st.integers(0, 50)),
                           st.tuples(st.just("free"), st.none())), max_size=60)


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(steps)
def test_any_sequence(todo):
    memory._pool = pool = memory.Pool()  # the fixture puts the first one back
    held = []  # (array, the value it is filled with)
    for value, (what, n) in enumerate(todo):
        before = total(pool)
        if what == "allocate":
            held.append((empty(n, np.uint8), value))
            held[-1][0][...] = value
        elif what == "free":
            memory.free_all_blocks()
        elif held and what == "view":
            a, old = held[n % len(held)]
            held.append((a[len(a) // 2:], old))
            del a
        elif held:
            del held[n % len(held)]
        assert all((a == old).all() for a, old in held)
        pool.collect()
        roots = {address(root(a)): root(a).nbytes for a, _ in held}
        assert pool.in_use == sum(-(-n // PAGE) * PAGE for n in roots.values() if n >= LEAST)
        assert pool.waiting + pool.in_use == total(pool) and pool.in_use <= pool.most
        assert total(pool) <= max(before, pool.most) or not whole(pool)
        assert pool.order == sorted((size, start) for start, size in pool.sizes.items())
        assert pool.starts == {start + size: start for start, size in pool.sizes.items()}
        assert not pool.starts.keys() & pool.sizes.keys()  # neighbours have grown together
    held.clear()
    memory.free_all_blocks()
    assert pool.in_use == pool.waiting == pool.most == 0 and not pool.blocks and not pool.order


def root(a):
    """The array over the whole lease."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def total(pool):
    return sum(b.size - memory.ALIGN for b in pool.blocks.values())


def whole(pool):
    """Blocks that nobody uses."""
    return [b for start, b in pool.blocks.items() if pool.sizes.get(start) == b.size - memory.ALIGN]


def test_no_more_is_kept_than_was_in_use_at_once(pool):
    a, b = empty(10 * KB64, np.uint8), empty(20 * KB64, np.uint8)
    del a, b                     # 30 wait
    c = empty(25 * KB64, np.uint8)  # neither is large enough: both go
    assert (pool.in_use, pool.waiting, pool.most) == (25 * KB64, 0, 30 * KB64)
    d = empty(5 * KB64, np.uint8)
    del d
    e = empty(6 * KB64, np.uint8)
    assert (pool.in_use, pool.waiting, pool.most) == (31 * KB64, 0, 31 * KB64)
    del c, e


def test_the_oldest_block_goes_first(pool):
    held = [empty(n * KB64, np.uint8) for n in (10, 11, 12)]
    del held
    empty(20 * KB64, np.uint8)
    assert [b.size // KB64 for b in pool.blocks.values()] == [12, 20]


def test_a_part_that_is_much_too_large_is_left_alone(pool):
    a, b = empty(100 * KB64, np.uint8), empty(KB64, np.uint8)
    del a
    c = empty(KB64, np.uint8)
    assert len(pool.blocks) == 2 and not pool.waiting  # of 100 nothing was cut, it went
    del b, c
    d = empty(8 * KB64, np.uint8)
    del d
    where = address(d := empty(KB64, np.uint8))
    assert where in pool.blocks
    del d


def test_parts_grow_together_again(pool):
    a = empty(4 * KB64, np.uint8)
    where = address(a)
    del a
    parts = [empty(KB64, np.uint8) for _ in range(4)]
    assert sorted(map(address, parts)) == [where + i * KB64 for i in range(4)]
    for i in (2, 0, 3, 1):
        parts[i] = None
    assert address(empty(4 * KB64, np.uint8)) == where
    assert len(pool.blocks) == 1


def test_tracemalloc_sees_no_more_than_the_most_in_use(pool):
    tracemalloc.start()
    try:
        for n in (8, 30, 5, 30, 12, 31):
            held = [empty(n * KB64, np.uint8) for _ in range(3)]
            del held
        assert tracemalloc.get_traced_memory()[1] < 93 * KB64 + 20_000
        memory.free_all_blocks()
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_inside_fresh_arrays_are_numpys(pool):
    a = empty(KB64, np.float32)
    del a
    with memory.fresh():
        with memory.fresh():
            assert empty(KB64, np.float32).flags.owndata
        assert empty(KB64, np.float32).flags.owndata
    assert not empty(KB64, np.float32).flags.owndata
    with pytest.raises(KeyError), memory.fresh():
        raise KeyError
    assert pool.lends


# -- shortage, threads, finalizers, the end ----------------------------------------------


class Short:
    """np, but empty fails while more than ``limit`` bytes are alive in the pool."""

    def __init__(self, pool, limit):
        self.pool, self.limit = pool, limit

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, size, dtype):
        if sum(b.size for b in self.pool.blocks.values()) + size > self.limit:
            raise MemoryError("short")
        return np.empty(size, dtype)


def test_in_a_shortage_what_waits_is_given_back(pool, monkeypatch):
    monkeypatch.setattr(memory, "np", Short(pool, 45 * KB64))
    a, b = empty(20 * KB64, np.uint8), empty(20 * KB64, np.uint8)
    del a
    c = empty(21 * KB64, np.uint8)
    assert pool.in_use == 41 * KB64 and not pool.waiting
    with pytest.raises(MemoryError, match="short"):
        empty(21 * KB64, np.uint8)
    assert pool.in_use == 41 * KB64
    assert pool.lock.acquire(timeout=1)
    pool.lock.release()
    del b, c


def test_threads_do_not_share_what_is_alive(pool):
    wrong, pieces = [], [slice(i, i + 1) for i in range(64)]

    def work(piece):
        rng = np.random.default_rng(piece.start)
        held = []
        for _ in range(50):
            if held and rng.random() < 0.5:
                a, value = held.pop(rng.integers(len(held)))
                if not (a == value).all():
                    wrong.append(value)
            else:
                a = empty(int(rng.integers(1, 9)) * KB64, np.uint8)
                a[...] = value = int(rng.integers(256))
                held.append((a, value))
            a = None

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        many = [threading.Thread(target=threads.each, args=(work, pieces[i::4])) for i in range(4)]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    memory.free_all_blocks()
    assert pool.in_use == pool.waiting == 0


def test_who_comes_in_between_gets_an_array_too(pool):
    def elsewhere():
        found.append(empty(KB64, np.float32).flags.owndata)

    found, other = [], threading.Thread(target=elsewhere)
    with pool.lock:  # another thread is inside
        other.start()
        other.join()
    pool.changing = True  # this one is, below a finalizer or a signal handler
    elsewhere()
    pool.changing = False
    elsewhere()
    assert found == [True, True, False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_signal_handler_may_fork_in_the_middle_of_a_change(pool):
    with pool.lock:
        pool.changing = True
        if not (child := os.fork()):
            os._exit(not empty(KB64, np.float32).flags.owndata)
        pool.changing = False
    assert os.waitpid(child, 0)[1] == 0


def test_arrays_in_a_cycle_come_back_within_an_allocation(pool):
    class Node:
        pass

    gc.disable()
    try:
        node = Node()
        node.me, node.a = node, empty(KB64, np.float32)
        where = address(node.a)
        del node
        assert address(empty(KB64, np.float32)) != where
        with pool.lock:
            gc.collect()
        assert len(pool.returned) == 2 and pool.in_use == 8 * KB64
    finally:
        gc.enable()
    memory.free_all_blocks()
    assert pool.in_use == 0


CODE = """
import atexit, os, sys
import numpy as np
from gpuconv import memory

kept = memory.empty(1 << 20, np.uint8)
kept[...] = 5
sys.kept = kept[1:]            # lives as long as can be
atexit.register(lambda: print(int(sys.kept.max()), int(memory.empty(1 << 20, np.uint8).size)))
if hasattr(os, "fork"):
    gone = memory.empty(1 << 20, np.uint8); del gone
    child = os.fork()
    again = memory.empty(1 << 20, np.uint8)
    again[...] = 1 if child else 2
    if not child:
        memory.free_all_blocks()
        os._exit(int(kept.sum() // (1 << 20)) + int(again[0]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), again[0])
else:
    print(7, 1)
"""


def test_forked_and_at_the_end():
    done = subprocess.run([sys.executable, "-X", "dev", "-c", CODE], capture_output=True, text=True,
                          timeout=60, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["7", "1", "5", "1048576"]
