"""Work on the CPU, cut into chunks by shape alone and shared out over threads.

NumPy lets go of the interpreter lock while it computes, so plain threads scale. The cut depends
only on the sizes, never on the number of threads, and whoever adds partial results adds them in the
order of the chunks: the bits do not depend on the machine. BLAS runs single-threaded inside, one
call per thread.
"""

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")

CACHE = 1 << 20  # bytes that one chunk's workspace should fit in: a core's L2

_inside = threading.local()  # .worker: this thread is one of the pool


def count() -> int:
    """Threads that share the work: the processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool(workers: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(workers, "gpuconv")


@functools.cache
def _blas() -> Any:
    import threadpoolctl
    return threadpoolctl.ThreadpoolController()  # looks through all loaded libraries: once


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread per call; the limits of before come back."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


def chunks(items: int, item_bytes: int, budget: int = CACHE) -> list[slice]:
    """Slices of 0..items, each of as many items as fit the budget (at least one), nearly equal.

    >>> chunks(10, 300, 1000)
    [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """
    if not items:
        return []
    pieces = -(-items // max(1, min(items, budget // max(1, item_bytes))))
    cuts = [items * i // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


def each(f: Callable[[slice], Result], pieces: Sequence[slice]) -> list[Result]:
    """[f(piece) for piece in pieces], on all processors; BLAS inside f uses one thread."""
    if len(pieces) < 2 or getattr(_inside, "worker", False):
        return [f(piece) for piece in pieces]

    def marked(piece: slice) -> Result:
        _inside.worker = True
        return f(piece)

    with single_threaded_blas():
        return list(_pool(count()).map(marked, pieces))


def scratch(name: str, size: int, dtype: Any) -> Any:
    """1-d array of ``size`` elements of this thread, reused by the next call with that name.

    For temporaries inside f of ``each``: what it holds before is undefined, and it must not escape.
    """
    import numpy as np
    held = _inside.__dict__.setdefault("scratch", {})
    need = size * np.dtype(dtype).itemsize
    if name not in held or held[name].nbytes < need:
        held[name] = np.empty(need, np.uint8)
    return held[name][:need].view(dtype)
