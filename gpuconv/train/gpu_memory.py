"""Memory of a training step on a GPU: what a pool of its own hands out, op by op; what graphs keep.

All arrays of a step come from CuPy's allocator, which knows at any time how many bytes are in use;
their most between two ops is what an op needs. It grows with the batch in a straight line, but for
the partial sums of weight gradients: their number is chosen for each size
(ops/conv/gpu_dispatch.py), so they are noted apart, and asked for again at the size in question.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backend import cupy
from gpuconv.ops.conv import wgrad_observed, wgrad_workspace
from gpuconv.ops.window import ConvShape


def graph_pool() -> Any:
    """Return a memory pool for graphs, which hold addresses: it never frees a block.

    CuPy's own pools free all blocks that no array uses when memory runs out or their limit is
    reached, and allocate again. A graph captured before would go on writing there.
    """
    pool = cupy().cuda.MemoryPool(Kept())
    pool.set_limit(size=0)  # of this device: none, Kept minds that of all other arrays
    return pool


class Kept:
    """Allocator of a pool that cannot free blocks: without memory it raises MemoryError."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, size: int) -> Any:
        """Return a block of memory.

        Raises:
            MemoryError: no memory is left, or the limit of CuPy's default pool is reached.
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
    """Weight gradient of a step."""

    before: int      # bytes in use when it begins
    algorithm: Any   # of gpu_dispatch.py
    shape: ConvShape
    dtype: np.dtype

    def workspace(self, factor: float) -> int:
        """Return the bytes of its partial sums, with so many times the images."""
        grown = dataclasses.replace(self.shape, N=max(1, round(self.shape.N * factor)))
        return wgrad_workspace(self.algorithm, grown, self.dtype)


class Meter:
    """Meter of the bytes that this thread allocates inside ``noting``."""

    def __init__(self) -> None:
        self.pool = cupy().cuda.MemoryPool()
        self.peak = 0
        self.works: list[Work] = []

    def malloc(self, size: int) -> Any:
        """Return a block of the pool, as CuPy's allocators do."""
        found = self.pool.malloc(size)
        self.peak = max(self.peak, self.pool.used_bytes())
        return found

    def take(self) -> tuple[int, list[Work]]:
        """Return the most bytes in use since the last call, and the weight gradients since then.

        Partial sums of weight gradients do not count.
        """
        found = self.peak, self.works
        self.peak, self.works = self.pool.used_bytes(), []
        return found

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Allocate this thread's arrays in the pool, and note weight gradients, in the block."""
        with cupy().cuda.using_allocator(self.malloc):
            try:
                with wgrad_observed(self.note):
                    yield
            finally:
                self.pool.free_all_blocks()  # a pool that goes would take them along

    @contextlib.contextmanager
    def note(self, algorithm: Any, shape: ConvShape, dtype: np.dtype) -> Iterator[None]:
        """Note a weight gradient; what it allocates in the block does not count in ``peak``."""
        self.works.append(Work(self.pool.used_bytes(), algorithm, shape, dtype))
        peak = self.peak
        yield
        self.peak = peak
