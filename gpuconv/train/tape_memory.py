"""What lives in memory during a training step, followed on the tape with a handful of images.

A step runs for real, forward and backward, with a few images. Its *moments* are the calls of layers
on the way forward and the ops on the way back; at each one all arrays that are alive are known:

    the tape        what every op has saved and not yet freed
    in flight       inputs and outputs of a layer; gradients handed from op to op
    parameters'     gradients, which wait until the walk is over

Arrays that share memory count once. Two runs with different numbers of images give a straight line
for each moment, and the lines give any batch size. Workspaces are no straight lines: what an op
needs for a piece of the batch stops growing where ``threads.chunks`` begins to cut. So that is
noted, too: into which pieces each op would cut the batch, what it asks ``threads.scratch`` for, and
on the CPU, by ``tracemalloc``, what else it allocates and frees again.
"""

import contextlib
import dataclasses
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from gpuconv import threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, array_device, asarray, get_array_module, is_gpu
from gpuconv.nn import Module
from gpuconv.nn.observe import observed, untouched
from gpuconv.ops import softmax_cross_entropy


class Cut(NamedTuple):
    """A call of ``threads.chunks``: what was to be cut, bytes of an item, bytes of a piece."""

    items: int
    item_bytes: int
    budget: int

    def grown(self, factor: float) -> "Cut":
        """For so many times the images."""
        return Cut(max(1, round(self.items * factor)), self.item_bytes, self.budget)

    @property
    def pieces(self) -> int:
        """How many."""
        fit = max(1, min(self.items, self.budget // max(1, self.item_bytes)))
        return -(-self.items // fit)

    @property
    def longest(self) -> int:
        """Items of the longest piece."""
        return -(-self.items // self.pieces)

    @property
    def bytes(self) -> int:
        """Of the longest piece."""
        return self.longest * self.item_bytes


@dataclasses.dataclass
class Moment:
    """A point in time during a step; all in bytes."""

    activations: int  # saved for backward, or in flight
    gradients: int    # of parameters, waiting
    output: int       # of the layer, forward
    cuts: list[Cut]
    scratch: dict[str, tuple[int, Cut]]  # name: most bytes, and what was cut then
    passing: tuple[int, Cut]  # what else was allocated and is free again


def trace(model: Module, input_shape: tuple[int, int, int], images: int) -> list[Moment]:
    """The moments of a training step, in order.

    Args:
        model: on its device, in its dtype; it is left as it was, and so are its gradients.
        input_shape: (H, W, C).
        images: N of the step.
    """
    with untouched(model), _notes() as notes, _traced(), np.errstate(all="ignore"):
        model.train()
        model.reseed(0)
        x = asarray(np.zeros((images, *input_shape), model.dtype), model.device)
        return _Step(model, notes).run(x)


class _Step:
    """One step, and who is alive in it."""

    def __init__(self, model: Module, notes: "_Notes"):
        self.model, self.notes = model, notes
        self.moments: list[Moment] = []
        self.seen: set[Op] = set()
        own = [*(p.data for p in model.parameters()), *model.buffers(),
               *(p.grad for p in model.parameters() if p.grad is not None)]
        self.ignored = {_memory_of(a)[0] for a in own}

    def run(self, x: Array) -> list[Moment]:
        self.ignored.add(_memory_of(x)[0])
        self.alive, self.waiting = _Alive(self.ignored), _Alive(self.ignored)
        with observed(self.model, self.around):
            y = self.model(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"the model gave {type(y).__name__}, wanted a Tensor")
        self.alive.add([y.data])
        with array_device(x):
            if y.ndim == 2:
                labels = get_array_module(x).zeros(len(x), np.int32)
                y = softmax_cross_entropy(y, labels)
            gy = get_array_module(x).zeros(y.shape, y.dtype)
        self.alive.add([y.data, gy])
        self.grow(y)
        self.note()
        if y.requires_grad:
            self.back(y, gy)
        return self.moments

    def note(self, output: int = 0) -> None:
        self.moments.append(Moment(self.alive.bytes, self.waiting.bytes, output,
                                   *self.notes.take()))

    # -- forward -------------------------------------------------------------------------

    def around(self, path: str, module: Module, forward: Any, *inputs: Any) -> Any:
        self.notes.begin()
        y = forward(*inputs)
        self.notes.end()
        held = [t.data for t in (*inputs, y) if isinstance(t, Tensor)]
        if isinstance(y, Tensor):
            self.grow(y)
        self.alive.add(held)
        self.note(y.data.nbytes if isinstance(y, Tensor) else 0)
        self.alive.drop(held)
        return y

    def grow(self, y: Tensor) -> None:
        """Take in the part of the tape that has been written since."""
        new = [y.creator]
        while new:
            op = new.pop()
            if isinstance(op, Op) and op not in self.seen:
                self.seen.add(op)
                self.alive.add(_saved(op))
                new.extend(op.parents)

    # -- backward: as Tensor.backward walks ----------------------------------------------

    def back(self, y: Tensor, gy: Array) -> None:
        pending: dict[Any, Array] = {y.creator: gy}
        queue = [(-y.creator.serial, y.creator)] if y.creator else []
        while queue:
            _, op = heappop(queue)
            g, saved = pending.pop(op), _saved(op)
            self.notes.begin()
            returned = op.backward(g)
            self.notes.end()
            given = [(p, r) for p, r in zip(op.parents, returned, strict=True) if p is not None]
            results = [r for p, r in given if isinstance(p, Op)]
            self.alive.add(results)
            self.waiting.add(r for p, r in given if not isinstance(p, Op))
            self.note()
            for parent, r in given:
                kind = self.alive if isinstance(parent, Op) else self.waiting
                if parent not in pending:
                    if isinstance(parent, Op):
                        heappush(queue, (-parent.serial, parent))
                    pending[parent] = r
                    kind.add([r])
                    continue
                total = pending[parent] + r
                kind.add([total])
                self.note()
                kind.drop([pending[parent]])
                pending[parent] = total
            self.alive.drop([*results, *saved, g])
            self.waiting.drop(r for p, r in given if not isinstance(p, Op))
            op.free()


class _Alive:
    """Bytes of the memory that a collection of arrays lives in."""

    def __init__(self, ignored: set[Any]):
        self.ignored = ignored
        self.owners: dict[Any, list[int]] = {}  # where: bytes, arrays there
        self.bytes = 0

    def add(self, arrays: Iterable[Array]) -> None:
        for where, size in map(_memory_of, arrays):
            if where not in self.ignored:
                entry = self.owners.setdefault(where, [size, 0])
                self.bytes += size if not entry[1] else 0
                entry[1] += 1

    def drop(self, arrays: Iterable[Array]) -> None:
        for where, size in map(_memory_of, arrays):
            if where not in self.ignored:
                entry = self.owners[where]
                entry[1] -= 1
                if not entry[1]:
                    self.bytes -= size
                    del self.owners[where]


def _saved(op: Op) -> list[Array]:
    """The arrays that an op keeps."""
    values: list[Any] = []
    for value in vars(op).values():
        values += value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, np.ndarray) or is_gpu(v)]


def _memory_of(array: Array) -> tuple[Any, int]:
    """(where, bytes) of the memory that an array is a view into."""
    if is_gpu(array):
        return array.data.mem.ptr, array.data.mem.size
    owner = array
    while (array := getattr(array, "base", None)) is not None:
        owner = array if isinstance(array, np.ndarray) else owner
    return id(owner), owner.nbytes


# -- what ops ask of threads ---------------------------------------------------------------


class _Notes:
    """The calls of ``chunks`` and ``scratch`` since the last ``take``."""

    def __init__(self) -> None:
        self.last = Cut(1, 1, 1)
        self.cuts: list[Cut] = []
        self.scratch: dict[str, tuple[int, Cut]] = {}
        self.passing = 0, self.last

    def take(self) -> tuple[list[Cut], dict[str, tuple[int, Cut]], tuple[int, Cut]]:
        """The last three fields of a Moment."""
        taken = self.cuts, self.scratch, self.passing
        self.cuts, self.scratch, self.passing = [], {}, (0, self.last)
        return taken

    def begin(self) -> None:
        """An op, or a layer, is about to run."""
        tracemalloc.reset_peak()

    def end(self) -> None:
        """It is done."""
        now, peak = tracemalloc.get_traced_memory()
        self.passing = peak - now, self.last


_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def _notes() -> Iterator[_Notes]:
    """Write down what is asked of ``threads``; it is answered as ever, by one thread."""
    notes = _Notes()
    chunks, scratch, count = threads.chunks, threads.scratch, threads.count

    def noting_chunks(items: int, item_bytes: int, budget: int = threads.CACHE) -> list[slice]:
        if items:
            notes.last = Cut(items, item_bytes, budget)
            notes.cuts.append(notes.last)
        return chunks(items, item_bytes, budget)

    def noting_scratch(name: str, size: int, dtype: Any) -> Any:
        array = scratch(name, size, dtype)
        if array.nbytes > notes.scratch.get(name, (0, None))[0]:
            notes.scratch[name] = array.nbytes, notes.last
        return array

    with _one_at_a_time:
        threads.chunks, threads.scratch, threads.count = noting_chunks, noting_scratch, lambda: 1
        try:
            yield notes
        finally:
            threads.chunks, threads.scratch, threads.count = chunks, scratch, count


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """With tracemalloc running; as before afterwards."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        yield
    finally:
        if not running:
            tracemalloc.stop()
