"""Work on the CPU, cut into chunks by shape alone and shared out over threads.

NumPy lets go of the interpreter lock while it computes, so plain threads scale. The cut depends
only on the sizes, never on the number of threads, and whoever adds partial results adds them in the
order of the chunks: the bits do not depend on the machine. BLAS runs single-threaded inside, one
call per thread.
"""

import contextlib
import functools
import math
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")

CACHE = 1 << 20  # bytes that one chunk's workspace should fit in: a core's L2
SHARES = 4       # chunks that little work is cut into, for threads to share
LINE = 64        # bytes of a line of the cache, where a workspace begins
BUFFER = 512     # elements; NumPy copies operands through its buffer whose runs are half as long

_inside = threading.local()  # .worker: this thread is one of the pool
_wanted: int | None = None


def count() -> int:
    """Return the number of threads: the processors of this process, or the number set."""
    if _wanted:
        return _wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_count(threads: int | None) -> None:
    """Set the number of CPU threads; results do not depend on it.

    Args:
        threads: at least 1. None: as many as processors that this process may run on.

    Raises:
        TypeError, ValueError: it is no such number.

    >>> set_count(1); count()
    1
    >>> set_count(None)
    """
    global _wanted
    if threads is not None and operator.index(threads) < 1:
        raise ValueError(f"threads: {threads}, wanted at least 1")
    _wanted = None if threads is None else operator.index(threads)


@functools.cache
def _pool(workers: int) -> Any:
    with _Limit.lock:  # a child that is forked during an import could never import that module
        from concurrent.futures import ThreadPoolExecutor
    return ThreadPoolExecutor(workers, "gpuconv")


@functools.lru_cache(1)
def _blas(modules: int) -> Any:
    """Return a controller of the BLAS libraries that are loaded with so many modules imported."""
    import threadpoolctl
    return threadpoolctl.ThreadpoolController()


class _Limit:
    """The limit of BLAS threads in this process: set by its first user, lifted by its last.

    The lock is held during a fork, so that a child gets a state between two changes. It is
    reentrant: a signal handler or a finalizer may fork in the middle of a change.
    """

    lock = threading.RLock()
    users = 0
    controller: Any = None  # of the libraries that were loaded when the first user came
    limiter: Any = None
    forks = 0  # from the first process to this one


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread per call inside the block; restore the limits afterwards.

    A child that is forked meanwhile starts with the previous limits.
    """
    with _Limit.lock:
        if not _Limit.users:
            _Limit.controller = _blas(len(sys.modules))
            _Limit.limiter = _Limit.controller.limit(limits=1, user_api="blas")
        _Limit.users += 1
        forks = _Limit.forks
    try:
        yield
    finally:
        with _Limit.lock:
            if forks == _Limit.forks:  # else a child leaves a block that its parent has entered
                _Limit.users -= 1
                if not _Limit.users:
                    _lift()


def _lift() -> None:
    """Restore the limits of before the first user."""
    _take_over()  # the first user may have been another thread
    _Limit.limiter.restore_original_limits()
    _take_over()


def _take_over() -> None:
    """Undo that threadpoolctl >= 3.7 lets only the thread that set a limit change it."""
    for library in _Limit.controller.lib_controllers:
        getattr(library, "clear_controlling_thread", lambda force: None)(force=True)


def _start_child() -> None:
    """Forget, in a forked child, the threads of its parent and what they have set."""
    try:
        _pool.cache_clear()
        _inside.worker = False
        _Limit.forks += 1
        if _Limit.users:
            _Limit.users = 0
            _lift()
    finally:
        _Limit.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_Limit.lock.acquire, after_in_parent=_Limit.lock.release,
                        after_in_child=_start_child)


def chunks(items: int, item_bytes: int, budget: int = CACHE, worth: float = 0) -> list[slice]:
    """Return slices of 0..items, nearly equal, of as many items as fit the budget (at least one).

    Where that makes fewer than SHARES, there are as many as the work is ``worth``, up to SHARES.

    >>> chunks(10, 300, 1000)
    [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """
    if not items:
        return []
    pieces = -(-items // max(1, min(items, budget // max(1, item_bytes))))
    pieces = max(pieces, min(int(worth), SHARES, items))
    cuts = [items * i // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


def each(f: Callable[[Part], Result], pieces: Sequence[Part]) -> list[Result]:
    """Return [f(chunk) for chunk in chunks], on all processors; BLAS inside f uses one thread.

    The calling thread works too, and each worker takes the next piece when it is done with one.
    NumPy works with a small buffer meanwhile: with its own, of 8,192 elements, it copies operands
    whose contiguous runs are shorter than 4,096, at half the speed.

    When it returns or raises, an interruption too, no other thread is inside f any more.
    """
    import numpy as np
    if getattr(_inside, "worker", False):
        return [f(piece) for piece in pieces]
    workers = min(count(), len(pieces))
    results: list[Any] = [None] * len(pieces)
    todo = iter(enumerate(pieces))
    busy: set[int] = set()  # other threads that may be inside f
    handling = np.geterr()  # of floating-point errors, as the caller wants it

    def work() -> None:
        buffer, before = np.getbufsize(), np.geterr()  # of this thread
        try:
            _inside.worker = True
            np.setbufsize(BUFFER)
            np.seterr(**handling)
            for number, piece in todo:
                results[number] = f(piece)
        finally:
            _inside.worker = False
            np.setbufsize(buffer)
            np.seterr(**before)

    def help_with_work() -> None:
        busy.add(threading.get_ident())  # before it takes a piece
        try:
            work()
        finally:
            busy.discard(threading.get_ident())

    others: list[Any] = []
    with single_threaded_blas():
        try:
            for _ in range(workers - 1):
                others.append(_pool(count() - 1).submit(help_with_work))
            work()
        finally:
            for _ in todo:  # after an error nobody begins another piece
                pass
            _wait(others, busy)
    for other in others:
        if error := other.exception():
            raise error
    return results


def _wait(others: Sequence[Any], busy: set[int]) -> None:
    """Wait until no other thread is inside f, whatever a signal raises meanwhile; then raise that.

    Args:
        others: futures; a signal may have kept the last from being noted.
        busy: idents of threads, which they remove themselves.
    """
    raised: BaseException | None = None
    while True:
        try:
            if not busy and all(other.done() for other in others):
                break
            for other in others:
                other.exception()
            if busy:
                time.sleep(0.001)
        except BaseException as error:
            raised = error
    if raised:
        raise raised


def workspace(name: str, shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Return an array of this thread; the next call with the same name reuses its memory.

    For temporaries inside f of ``each``: what it holds before is undefined, and it must not escape.
    """
    import numpy as np
    held = _inside.__dict__.setdefault("workspaces", {})
    need = (math.prod(shape) if isinstance(shape, tuple) else shape) * np.dtype(dtype).itemsize
    if name not in held or held[name].nbytes < need:
        block = np.empty(need + LINE, np.uint8)
        held[name] = block[-block.ctypes.data % LINE :][:need]
    return held[name][:need].view(dtype).reshape(shape)
