"""What lives in memory during a training step, followed on the tape with a handful of images.

A step runs for real, forward and backward, with a few images. After each op, on the way forward and
on the way back, all arrays that are alive are known: those that ops gave or saved, and gradients on
their way, each followed by a weak reference from the op that made it until nobody holds it any
more. Arrays that share memory count once.

Two runs with different numbers of images give a straight line for each op, and the lines give any
batch size. Workspaces are no straight lines: what an op needs for a piece of the batch stops
growing where ``threads.chunks`` begins to cut. So that is noted, too: into which pieces each op
cuts the batch, what it asks ``threads.workspace`` for, and by ``tracemalloc`` what else it
allocates, for itself and for each piece. On a GPU the allocator tells, see gpu_memory.py.
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

SHARED = "zeros "  # begins the name of memory that all threads read


class Cut(NamedTuple):
    """A call of ``threads.chunks``, and the pieces it gives."""

    items: int
    item_bytes: int
    budget: int
    worth: float

    def grown(self, factor: float) -> "Cut":
        """For so many times the images."""
        return self._replace(items=max(1, round(self.items * factor)), worth=self.worth * factor)

    @property
    def fit(self) -> int:
        """Items that fit the budget."""
        return max(1, min(self.items, self.budget // max(1, self.item_bytes)))

    @property
    def pieces(self) -> int:
        """How many."""
        return max(-(-self.items // self.fit), min(int(self.worth), threads.SHARES, self.items))

    @property
    def longest(self) -> int:
        """Items of the longest piece."""
        return -(-self.items // self.pieces)


ONE = Cut(1, 1, 1, 0)  # nothing is cut


@dataclasses.dataclass
class Span:
    """A call of ``threads.each``, or all that an op does beside; in bytes."""

    cut: Cut
    held: int         # allocated when it begins (beside: at most), less what is after the op
    pieces: int = 0
    passing: int = 0  # what the work on a piece allocates and frees again
    left: int = 0     # what it gives: a sum of its own, say
    workspaces: dict[str, int] = dataclasses.field(default_factory=dict)  # bytes, by name


@dataclasses.dataclass
class Moment:
    """After an op, forward or backward; all in bytes."""

    activations: int  # saved for backward, or on their way
    gradients: int    # of parameters, waiting
    spans: list[Span]
    peak: int = 0     # on a GPU: most that was in use, but for partial sums of weight gradients
    works: list[Work] = dataclasses.field(default_factory=list)  # and these


def trace(model: Module, input_shape: tuple[int, int, int], images: int) -> list[Moment]:
    """The moments of a training step, in order.

    Args:
        model: on its device, in its dtype; it is left as it was, and so are its gradients.
        input_shape: (H, W, C).
        images: N of the step.
    """
    x = asarray(np.zeros((images, *input_shape), model.dtype), model.device)
    step = _Step(model, x)
    with untouched(model), _traced(), step.noting(), np.errstate(all="ignore"):
        model.train()
        model.reseed(0)
        step.run(model, x)
    return step.moments


class _Step:
    """One step, and who is alive in it."""

    def __init__(self, model: Module, x: Array):
        own = [x, *(p.data for p in model.parameters()), *model.buffers()]
        self.alive = _Alive({_memory_of(a)[0] for a in own})
        self.moments: list[Moment] = []
        self.meter = Meter() if is_gpu(x) else None
        self.last = ONE
        self.spans: list[Span] = []
        self.beside = self.here = Span(ONE, 0, 1)

    def run(self, model: Module, x: Array) -> None:
        """Forward, loss, backward."""
        logits = model(x)
        y = logits
        with array_device(x):
            if y.ndim == 2:
                y = softmax_cross_entropy(y, get_array_module(x).zeros(len(x), np.int32))
            gy = get_array_module(x).zeros(y.shape, y.dtype)
        self.alive.follow([gy])
        if y.creator is not None:
            self.back(y.creator, gy)

    def back(self, last: Op, gy: Array) -> None:
        """As Tensor.backward walks, but what would go to the leaves waits for ever."""
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
            self.note()
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

    def note(self) -> None:
        """A moment, here and now."""
        now, peak = tracemalloc.get_traced_memory()
        self.beside.held = max(self.beside.held, peak)
        self.spans.append(self.beside)
        for span in self.spans:
            span.held -= now
        self.moments.append(Moment(self.alive.bytes[True], self.alive.bytes[False], self.spans,
                                   *(self.meter.take() if self.meter else ())))
        self.spans = []
        self.beside = self.here = Span(ONE, 0, 1)

    def asked(self, name: str, array: np.ndarray) -> np.ndarray:
        """Memory that stays, under that name."""
        self.here.workspaces[name] = max(array.nbytes, self.here.workspaces.get(name, 0))
        return array

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note what ops give, and what they ask of ``threads``; it is answered by one thread."""
        call, chunks, each = Op.__call__, threads.chunks, threads.each
        workspaces, held = threads.workspace, zeros.buffer
        here = threading.get_ident()

        def only_here(noting: Any, real: Any) -> Any:
            """Other threads know nothing of this step."""
            def f(*args: Any, **settings: Any) -> Any:
                return (noting if threading.get_ident() == here else real)(*args, **settings)
            return f

        def noting_call(op: Op, *inputs: Any) -> Any:
            tracemalloc.reset_peak()
            y = call(op, *inputs)
            given = y.data if isinstance(y, Tensor) else y
            self.alive.follow([given, *_saved(op)])
            self.note()
            return y

        def noting_chunks(items: int, item_bytes: int, budget: int = threads.CACHE,
                          worth: float = 0) -> list[slice]:
            """Pieces as large as they may be: two sizes tell how the work grows with them."""
            if not items:
                return []
            self.last = cut = Cut(items, item_bytes, budget, worth)
            return [slice(i, min(i + cut.fit, items)) for i in range(0, items, cut.fit)]

        def noting_workspace(name: str, shape: Any, dtype: Any) -> Any:
            return self.asked(name, workspaces(name, shape, dtype))

        def noting_held(size: int, dtype: np.dtype) -> np.ndarray:
            array = held(size, dtype)
            self.asked(f"{SHARED}{dtype}", array[:size])
            return array

        def noting_each(f: Any, pieces: Any) -> list[Any]:
            if self.here is not self.beside:  # in a piece
                return [f(piece) for piece in pieces]
            before, peak = tracemalloc.get_traced_memory()
            self.beside.held = max(self.beside.held, peak)
            self.here = span = Span(self.last, before, len(pieces))
            self.spans.append(span)

            def work(piece: Any) -> Any:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                result = f(piece)
                now, peak = tracemalloc.get_traced_memory()
                span.passing = max(span.passing, peak - now)
                span.left = max(span.left, now - before)
                return result

            try:
                return [work(piece) for piece in pieces]
            finally:
                self.here = self.beside
                tracemalloc.reset_peak()

        with _one_at_a_time:
            try:
                Op.__call__ = only_here(noting_call, call)  # type: ignore[method-assign]
                threads.chunks = only_here(noting_chunks, chunks)
                threads.each = only_here(noting_each, each)
                threads.workspace = only_here(noting_workspace, workspaces)
                zeros.buffer = only_here(noting_held, held)
                with self.meter.noting() if self.meter else contextlib.nullcontext():
                    yield
            finally:
                Op.__call__ = call  # type: ignore[method-assign]
                threads.chunks, threads.each = chunks, each
                threads.workspace, zeros.buffer = workspaces, held


_one_at_a_time = threading.Lock()


class _Alive:
    """Bytes of the memory that arrays live in, from when they are followed until they are gone."""

    def __init__(self, ignored: set[Any]):
        self.ignored = ignored
        self.bytes = {True: 0, False: 0}  # on their way or saved; waiting gradients of parameters
        self.owners: dict[Any, list[Any]] = {}  # where: bytes, which of the two, arrays there
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
    """The arrays that an op keeps; the ops that it is made of keep theirs."""
    values: list[Any] = []
    for value in vars(op).values():
        values += value if isinstance(value, (list, tuple)) else [value]
        values += _saved(value) if isinstance(value, Op) else []
    return [v for v in values if isinstance(v, np.ndarray) or is_gpu(v)]


def _memory_of(array: Array) -> tuple[Any, int]:
    """(where, bytes) of the memory that an array is a view into."""
    if is_gpu(array):
        return array.data.mem.ptr, array.data.mem.size
    owner = array
    while (array := getattr(array, "base", None)) is not None:
        owner = array if isinstance(array, np.ndarray) else owner
    return id(owner), owner.nbytes


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """With tracemalloc running, and each array in memory of its own; as before afterwards."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        with fresh():
            yield
    finally:
        if not running:
            tracemalloc.stop()
