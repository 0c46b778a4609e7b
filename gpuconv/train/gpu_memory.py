"""Memory of a training step on a GPU: what a pool of its own hands out, op by op; what graphs keep.

All arrays of a step come from CuPy's allocator, which knows at any time how many bytes are in use;
their most between two ops is what an op needs. It grows with the batch in a straight line, but for
the partial sums of weight gradients: their number is chosen for each size
(ops/conv/gpu_dispatch.py), so they are noted apart, and asked for again at the size in question.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import cupy
from gpuconv.ops.conv import gpu_dispatch
from gpuconv.ops.conv.shape import Problem


def graph_pool() -> Any:
    """A memory pool for graphs, which hold addresses: it gives nothing back while it lives.

    CuPy's own pools do, when memory runs out or their limit is reached: they free all blocks that
    no array holds, and ask again. A graph captured before would go on writing there.
    """
    pool = cupy().cuda.MemoryPool(Kept())
    pool.set_limit(size=0)  # of this device: none, Kept minds that of all other arrays
    return pool


class Kept:
    """An allocator for a pool: memory that is not there is an error that the pool cannot mend."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, size: int) -> Any:
        """A block.

        Raises:
            MemoryError: there is none, or the limit of CuPy's default pool is reached.
        """
        cp = cupy()
        others = cp.get_default_memory_pool()
        limit, held = others.get_limit(), others.total_bytes() + self.bytes
        if limit and held + size > limit:
            raise MemoryError(f"{size} bytes for a graph: {held} of {limit} allowed are in use")
        try:
            found = cp.cuda.MemoryPointer(cp.cuda.Memory(size), 0)
        except cp.cuda.runtime.CUDARuntimeError as error:
            raise MemoryError(f"{size} bytes for a graph: {error}") from error
        self.bytes += size
        return found


class Work(NamedTuple):
    """A weight gradient."""

    before: int      # bytes in use when it begins
    chosen: Any      # the engine
    problem: Problem
    dtype: np.dtype

    def workspace(self, factor: float) -> int:
        """Bytes of its partial sums, with so many times the images."""
        grown = self.problem._replace(N=max(1, round(self.problem.N * factor)))
        return gpu_dispatch.workspace(self.chosen, grown, self.dtype)


class Meter:
    """Bytes in use, of what this thread allocates ``noting``."""

    def __init__(self) -> None:
        self.pool = cupy().cuda.MemoryPool()
        self.peak = 0
        self.works: list[Work] = []

    def malloc(self, size: int) -> Any:
        """An allocator of CuPy's kind."""
        found = self.pool.malloc(size)
        self.peak = max(self.peak, self.pool.used_bytes())
        return found

    def take(self) -> tuple[int, list[Work]]:
        """(most bytes in use since the last call, but for partial sums; the weight gradients)."""
        found = self.peak, self.works
        self.peak, self.works = self.pool.used_bytes(), []
        return found

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, this thread's arrays come from the pool, and weight gradients are noted."""
        compute, here = gpu_dispatch.compute, threading.get_ident()

        def noting_compute(chosen: Any, direction: Any, p: Problem, a: Any, *rest: Any,
                           **epilogue: Any) -> None:
            if direction != "weight_gradient" or threading.get_ident() != here:
                compute(chosen, direction, p, a, *rest, **epilogue)
                return
            self.works.append(Work(self.pool.used_bytes(), chosen, p, a.dtype))
            peak = self.peak
            compute(chosen, direction, p, a, *rest, **epilogue)
            self.peak = peak

        with cupy().cuda.using_allocator(self.malloc):
            gpu_dispatch.compute = noting_compute
            try:
                yield
            finally:
                gpu_dispatch.compute = compute
                self.pool.free_all_blocks()  # a pool that goes would take them along
