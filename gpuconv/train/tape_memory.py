"""Trace of the memory of a training step, on the tape, with a few images.

A step is run, forward and backward, with a few images. After each op, in forward and backward, the
trace knows all live arrays: results and saved arrays of ops, and gradients, each followed by a weak
reference until it is freed. Arrays that share memory count once.

Two runs with different numbers of images give a straight line for each op, and thereby any batch
size. Workspaces are not linear: the memory for a chunk of the batch stops growing where
``threads.chunks`` begins to cut. So the trace also records the chunks of each op, the sizes it
passes to ``threads.workspace``, and by ``tracemalloc`` its other allocations, per op and per chunk.
On a GPU the allocator is measured instead, see gpu_memory.py.
"""

import contextlib
import dataclasses
import functools
import threading
import tracemalloc
import weakref
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from gpuconv import threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, array_device, asarray, get_array_module, is_gpu
from gpuconv.memory import fresh
from gpuconv.nn import Module
from gpuconv.nn.observed import untouched
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.engine import zeros
from gpuconv.train.gpu_memory import Meter, Work

SHARED = "zeros "  # prefix of the names of memory that all threads share


class Chunking(NamedTuple):
    """Arguments of a call of ``threads.chunks``, and the chunks that it returns."""

    items: int
    item_bytes: int
    budget: int
    worth: float

    def scaled(self, factor: float) -> "Chunking":
        """Return the chunking for ``factor`` times the images."""
        return self._replace(items=max(1, round(self.items * factor)), worth=self.worth * factor)

    @property
    def most_items(self) -> int:
        """Items of a chunk that fit the budget."""
        return max(1, min(self.items, self.budget // max(1, self.item_bytes)))

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return max(-(-self.items // self.most_items),
                   min(int(self.worth), threads.SHARES, self.items))

    @property
    def largest_chunk(self) -> int:
        """Items of the largest chunk."""
        return -(-self.items // self.chunk_count)


ONE = Chunking(1, 1, 1, 0)  # a single chunk


@dataclasses.dataclass
class Span:
    """Memory of a call of ``threads.each``, or of an op outside of such calls, bytes."""

    chunking: Chunking
    held: int           # allocated at the start (outside calls: at most), less that after the op
    chunk_count: int = 0
    temporary: int = 0  # allocated and freed by the work on a chunk
    results: int = 0    # allocated by the work on a chunk and returned
    workspaces: dict[str, int] = dataclasses.field(default_factory=dict)  # bytes, by name


@dataclasses.dataclass
class Moment:
    """Memory after an op, forward or backward, bytes."""

    activations: int  # saved for backward, or passed on
    gradients: int    # of parameters, not yet added
    spans: list[Span]
    peak: int = 0     # on a GPU: most in use, without partial sums of weight gradients
    works: list[Work] = dataclasses.field(default_factory=list)  # the partial sums


def trace(model: Module, input_shape: tuple[int, int, int], images: int) -> list[Moment]:
    """Return the moments of a training step, in order.

    Args:
        model: on its device, in its dtype; it and its gradients are not changed.
        input_shape: (H, W, C).
        images: N of the step.
    """
    x = asarray(np.zeros((images, *input_shape), model.dtype), model.device)
    step = _Step(model, x)
    with untouched(model), _traced(), step.recording(), np.errstate(all="ignore"):
        model.train()
        model.reseed(0)
        step.run(model, x)
    return step.moments


class _Step:
    """Recorder of one training step."""

    def __init__(self, model: Module, x: Array):
        own = [x, *(p.data for p in model.parameters()), *model.buffers()]
        self.alive = _Alive({_memory_of(a)[0] for a in own})
        self.moments: list[Moment] = []
        self.meter = Meter() if is_gpu(x) else None
        self.last = ONE
        self.spans: list[Span] = []
        self.outside = self.current = Span(ONE, 0, 1)

    def run(self, model: Module, x: Array) -> None:
        """Run forward, loss and backward."""
        logits = model(x)
        y = logits
        with array_device(x):
            if y.ndim == 2:
                y = softmax_cross_entropy(y, get_array_module(x).zeros(len(x), np.int32))
            gy = get_array_module(x).zeros(y.shape, y.dtype)
        self.alive.follow([gy])
        if y.creator is not None:
            self.run_backward(y.creator, gy)

    def run_backward(self, last: Op, gy: Array) -> None:
        """Run backward in the order of Tensor.backward; keep the gradients of leaves pending."""
        pending: dict[Any, Array] = {last: gy}
        queue = [(-last.serial, last)]
        while queue:
            _, op = heappop(queue)
            tracemalloc.reset_peak()
            gy = pending.pop(op)
            results = op.backward(gy)
            for parent, g in zip(op.parents, results, strict=True):
                if parent is not None:
                    self.alive.follow([g], isinstance(parent, Op))
            self.record_moment()
            del gy
            for parent, g in zip(op.parents, results, strict=True):
                if parent is None:
                    continue
                if parent in pending:
                    pending[parent] = pending[parent] + g
                    self.alive.follow([pending[parent]], isinstance(parent, Op))
                    continue
                pending[parent] = g
                if isinstance(parent, Op):
                    heappush(queue, (-parent.serial, parent))
            op.free()

    def record_moment(self) -> None:
        """Record the current moment."""
        now, peak = tracemalloc.get_traced_memory()
        self.outside.held = max(self.outside.held, peak)
        self.spans.append(self.outside)
        for span in self.spans:
            span.held -= now
        self.moments.append(Moment(self.alive.bytes[True], self.alive.bytes[False], self.spans,
                                   *(self.meter.take() if self.meter else ())))
        self.spans = []
        self.outside = self.current = Span(ONE, 0, 1)

    def record_workspace(self, name: str, array: np.ndarray) -> np.ndarray:
        """Record the size of a workspace and return it."""
        self.current.workspaces[name] = max(array.nbytes, self.current.workspaces.get(name, 0))
        return array

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record results of ops and their calls of ``threads`` in the block; use one thread."""
        call, chunks, each = Op.__call__, threads.chunks, threads.each
        workspaces, held = threads.workspace, zeros.buffer
        here = threading.get_ident()

        def this_thread_only(recording: Any, real: Any) -> Any:
            """Return a function that records in this thread only."""
            def f(*args: Any, **settings: Any) -> Any:
                return (recording if threading.get_ident() == here else real)(*args, **settings)
            return f

        def recording_call(op: Op, *inputs: Any) -> Any:
            tracemalloc.reset_peak()
            y = call(op, *inputs)
            result = y.data if isinstance(y, Tensor) else y
            self.alive.follow([result, *_saved(op)])
            self.record_moment()
            return y

        def recording_chunks(items: int, item_bytes: int, budget: int = threads.CACHE,
                             worth: float = 0) -> list[slice]:
            """Return chunks as large as possible: two sizes show how the work grows with them."""
            if not items:
                return []
            self.last = chunking = Chunking(items, item_bytes, budget, worth)
            size = chunking.most_items
            return [slice(i, min(i + size, items)) for i in range(0, items, size)]

        def recording_workspace(name: str, shape: Any, dtype: Any) -> Any:
            return self.record_workspace(name, workspaces(name, shape, dtype))

        def recording_zeros(size: int, dtype: np.dtype) -> np.ndarray:
            array = held(size, dtype)
            self.record_workspace(f"{SHARED}{dtype}", array[:size])
            return array

        def recording_each(f: Any, chunks: Any) -> list[Any]:
            if self.current is not self.outside:  # nested: in a chunk
                return [f(chunk) for chunk in chunks]
            before, peak = tracemalloc.get_traced_memory()
            self.outside.held = max(self.outside.held, peak)
            self.current = span = Span(self.last, before, len(chunks))
            self.spans.append(span)

            def work(chunk: Any) -> Any:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                result = f(chunk)
                now, peak = tracemalloc.get_traced_memory()
                span.temporary = max(span.temporary, peak - now)
                span.results = max(span.results, now - before)
                return result

            try:
                return [work(chunk) for chunk in chunks]
            finally:
                self.current = self.outside
                tracemalloc.reset_peak()

        with _one_at_a_time:
            try:
                Op.__call__ = this_thread_only(recording_call, call)  # type: ignore[method-assign]
                threads.chunks = this_thread_only(recording_chunks, chunks)
                threads.each = this_thread_only(recording_each, each)
                threads.workspace = this_thread_only(recording_workspace, workspaces)
                zeros.buffer = this_thread_only(recording_zeros, held)
                with self.meter.noting() if self.meter else contextlib.nullcontext():
                    yield
            finally:
                Op.__call__ = call  # type: ignore[method-assign]
                threads.chunks, threads.each = chunks, each
                threads.workspace, zeros.buffer = workspaces, held


_one_at_a_time = threading.Lock()


class _Alive:
    """Bytes of the memory of all followed arrays, each counted until it is freed."""

    def __init__(self, ignored: set[Any]):
        self.ignored = ignored
        self.bytes = {True: 0, False: 0}  # results and saved arrays; gradients of parameters
        self.owners: dict[Any, list[Any]] = {}  # address: [bytes, which of the two, arrays in it]
        self.followed: dict[int, weakref.ref] = {}

    def follow(self, arrays: Iterable[Array], kind: bool = True) -> None:
        for a in arrays:
            where, size = _memory_of(a)
            if where in self.ignored or id(a) in self.followed:
                continue
            self.followed[id(a)] = weakref.ref(a, functools.partial(self.gone, id(a), where))
            owner = self.owners.setdefault(where, [size, kind, 0])
            if not owner[2]:
                self.bytes[owner[1]] += size
            owner[2] += 1

    def gone(self, array: int, where: Any, _: Any) -> None:
        del self.followed[array]
        size, kind, _ = self.owners[where]
        self.owners[where][2] -= 1
        if not self.owners[where][2]:
            self.bytes[kind] -= size
            del self.owners[where]


def _saved(op: Op) -> list[Array]:
    """Return the arrays that an op and its inner ops have saved."""
    values: list[Any] = []
    for value in vars(op).values():
        for inside in value if isinstance(value, (list, tuple)) else [value]:
            values += _saved(inside) if isinstance(inside, Op) else [inside]
    return [v for v in values if isinstance(v, np.ndarray) or is_gpu(v)]


def _memory_of(array: Array) -> tuple[Any, int]:
    """Return (address, bytes) of the memory that an array is a view of."""
    if is_gpu(array):
        return array.data.mem.ptr, array.data.mem.size
    owner = array
    while (array := getattr(array, "base", None)) is not None:
        owner = array if isinstance(array, np.ndarray) else owner
    return id(owner), owner.nbytes


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Run the block with tracemalloc, and with each array in memory of its own."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        with fresh():
            yield
    finally:
        if not running:
            tracemalloc.stop()
