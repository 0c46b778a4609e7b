"""Large arrays whose memory is used again once nobody can see it any more.

The system gives out fresh memory page by page, and fills each page with zeros first: a training
step that asks for its activations anew spends a tenth of its time on that. So memory is lent:

    array -> base -> lease -> a part of a block

Views, and whatever else shares the memory (DLPack, the buffer protocol), hold the array and thereby
the lease. When the last is gone the part comes back, grows together with the free parts at its
sides, and waits for the next array: what anybody can still read is never given away.

Nor is more kept than a program has needed anyway: a block is made only where no part will do, and
first the oldest blocks that nobody uses go, until

    in use + waiting <= the most that was ever in use at once

which it may exceed by parts that wait beside others that are in use, in blocks that cannot go.
"""

import bisect
import collections
import contextlib
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

LEAST = 1 << 16  # bytes: smaller arrays are NumPy's, the C library keeps such memory itself
PAGE = 4096      # bytes: parts are multiples
ALIGN = 64       # bytes: a line of the cache, and the longest vector
SPLIT = 8        # a part so many times too large is not cut: it waits for a larger array


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return ``np.empty(shape, dtype)``; large arrays reuse the memory of freed ones.

    >>> a = empty((256, 256), "float32"); a[...] = 7
    >>> view = a[5:]; del a
    >>> b = empty((256, 256), "float32"); b[...] = 8
    >>> float(view.max())
    7.0
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
    lease = _pool.lease(-(-size // PAGE) * PAGE) if size >= LEAST else None
    return np.empty(shape, dtype) if lease is None else np.ndarray(shape, dtype, np.asarray(lease))


def widened(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the array itself, or its values in another dtype.

    >>> widened(np.float16([1.5]), np.dtype("float32"))
    array([1.5], dtype=float32)
    """
    if a.dtype == dtype:
        return a
    wide = empty(a.shape, dtype)
    wide[...] = a
    return wide


def free_all_blocks() -> None:
    """Give blocks that nobody uses back to the system, and forget how much was in use before."""
    _pool.free_all_blocks()


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """Disable the pool in the block, for all threads: arrays of any size are NumPy's own."""
    before, _pool.lends = _pool.lends, False
    try:
        yield
    finally:
        _pool.lends = before


class _Lease:
    """Part of the pool's memory that an array and its views use; it is free when this dies.

    That may be in any thread and between any two steps of the pool, so it takes no lock.
    """

    __slots__ = ("__array_interface__", "part", "pool")

    def __init__(self, pool: "Pool", start: int, size: int):
        self.pool, self.part = pool, (start, size)
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (size,), "data": (start, False)}

    def __del__(self) -> None:
        self.pool.returned.append(self.part)


class Pool:
    """Blocks of memory, cut into parts that are on lease or wait: starts are addresses.

    Attributes:
        in_use, waiting: bytes of either; what has just come back still counts as in use.
        most: bytes that were in use at once.
        lends: not while ``fresh`` is entered.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: a signal handler may fork in the middle
        self.changing = False  # is a thread between two steps of ``lease`` or ``free_all_blocks``?
        self.returned: collections.deque[tuple[int, int]] = collections.deque()  # start, size
        self.blocks: dict[int, np.ndarray] = {}     # start: its memory; the oldest first
        self.sizes: dict[int, int] = {}             # of the parts that wait, by start
        self.starts: dict[int, int] = {}            # and their starts by end: to find neighbours
        self.order: list[tuple[int, int]] = []      # (size, start), sorted: to find one that fits
        self.in_use = self.waiting = self.most = 0
        self.lends = True

    def lease(self, size: int) -> _Lease | None:
        """Return memory of this size; None if the pool does not lend it.

        Nor does it to who would have to wait: another thread, or a finalizer that has come between
        two steps of this very function.

        Raises:
            MemoryError: there is no memory, not even with all that waits given back.
        """
        if not self.lends or not self.lock.acquire(blocking=False):
            return None
        if self.changing:
            self.lock.release()
            return None
        try:
            self.changing = True
            self.collect()
            place = bisect.bisect(self.order, (size, 0))
            found, start = self.order[place] if place < len(self.order) else (math.inf, 0)
            if found <= SPLIT * size:
                rest = self.take(start) - size
                if rest:
                    self.put(start + size, rest)
            else:
                self.trim(max(0, self.most - self.in_use - size))
                start = self.block(size)
            self.in_use += size
            self.most = max(self.most, self.in_use)
            return _Lease(self, start, size)
        finally:
            self.changing = False
            self.lock.release()

    def collect(self) -> None:
        """Let what has come back wait."""
        while self.returned:
            start, size = self.returned.popleft()
            self.in_use -= size
            self.put(start, size)

    def put(self, start: int, size: int) -> None:
        """Let a part wait, as one with those at its sides that do. Blocks never touch."""
        if start in self.starts:
            start = self.starts[start]
            size += self.take(start)
        if start + size in self.sizes:
            size += self.take(start + size)
        self.sizes[start], self.starts[start + size] = size, start
        bisect.insort(self.order, (size, start))
        self.waiting += size

    def take(self, start: int) -> int:
        """Let a part wait no more; its size."""
        size = self.sizes.pop(start)
        del self.starts[start + size], self.order[bisect.bisect_left(self.order, (size, start))]
        self.waiting -= size
        return size

    def block(self, size: int) -> int:
        """Return memory from the system, and its address."""
        try:
            memory = np.empty(size + ALIGN, np.uint8)
        except MemoryError:
            self.trim(0)
            memory = np.empty(size + ALIGN, np.uint8)
        start = -(-memory.ctypes.data // ALIGN) * ALIGN  # a byte at least is left at the end
        self.blocks[start] = memory
        return start

    def trim(self, most: int) -> None:
        """Give blocks back that wait as a whole, the oldest first, until no more bytes wait."""
        whole = [start for start, memory in self.blocks.items()
                 if self.sizes.get(start) == memory.size - ALIGN] if self.waiting > most else []
        for start in whole:
            if self.waiting > most:
                self.take(start)
                del self.blocks[start]

    def free_all_blocks(self) -> None:
        """Give back all that can go, and count the most from now on."""
        with self.lock:
            if not self.changing:  # else a signal handler or a finalizer asks for it
                self.collect()
                self.trim(0)
                self.most = self.in_use


_pool = Pool()

if hasattr(os, "register_at_fork"):  # the child's copy must be whole
    os.register_at_fork(before=_pool.lock.acquire, after_in_parent=_pool.lock.release,
                        after_in_child=_pool.lock.release)
