"""Exponential moving averages of a module's weights over the steps of training.

    average = average + (1 - d) * (value - average)        after each step, where d > 1/2
            = value - d * (value - average)                otherwise; the same, and exact for d = 0
    d       = min(decay, (1 + t) / (10 + t))               t updates before this one

At first an average is the module's own value. The warm-up d (1/10, 2/11, 3/12 ...) forgets it
quickly; without warm-up it would still have weight decay^t. Parameters and float buffers
(BatchNorm's statistics) are averaged, integer buffers are copied. Averages have the dtype
accumulator(dtype): in 16 bits small differences would be lost.

For parameters in an optimiser's flat buffers, ``update(optimizer)`` keeps the averages in flat
buffers of the same layout and updates each in one pass; it averages the ``master`` of 16-bit
parameters if there is one. A step that the optimiser skips is skipped here, too. On a GPU t is in
device memory, so that captured steps count.

Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control
and Optimization 30, 1992; the warm-up is tf.train.ExponentialMovingAverage's.
"""

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import (
    FLOATS,
    Array,
    accumulator,
    array_device,
    asarray,
    device_name,
    get_array_module,
    is_gpu,
)
from gpuconv.checks import check_flag, check_kind, check_number, type_name
from gpuconv.optim.flat import CHUNK, Flat, behind, cpu_chunks, refuse_capture, zeros
from gpuconv.optim.optimizer import SKIP, Optimizer
from gpuconv.state import matching
from gpuconv.undo import Undo, copied, uninterrupted

Work = tuple[Array, Array, Array | None]  # average, value, master of the value: (n,) each


class Averaged(Protocol):
    """Module, or an object like one, whose state can be averaged."""

    def state_dict(self) -> dict[str, Array]:
        """Return {path: array} of all parameters and buffers, the live arrays."""


class EMA:
    """Exponential moving averages of a module's parameters and buffers, beside the module.

    Args:
        module: on its device, in its dtype; it cannot move afterwards. An optimiser may pack its
            parameters before or after.
        decay: share of the average that an update keeps, 0 <= decay < 1.
        warmup: whether to keep less at first, min(decay, (1 + t) / (10 + t)).

    Attributes:
        averages: {path: array}, names and shapes of ``module.state_dict()``.
        undo: Undo of the caller that ``update`` records its changes in; None: one of its own.

    Raises:
        ValueError: decay is outside 0 <= decay < 1.
        TypeError: module is no Module.

    >>> from gpuconv.nn import Linear
    >>> layer = Linear(1, 1, bias=False)
    >>> layer.weight.data = np.float32([[0]])
    >>> ema = EMA(layer, decay=0.5)
    >>> layer.weight.data = np.float32([[10]]); ema.update()
    >>> with ema.applied():
    ...     layer.weight.data
    array([[9.]], dtype=float32)
    >>> layer.weight.data
    array([[10.]], dtype=float32)
    """

    def __init__(self, module: Averaged, decay: float = 0.999, warmup: bool = True):
        if isinstance(module, type) or not hasattr(module, "named_parameters"):
            raise TypeError(f"EMA: module is {type_name(module)}, wanted a Module")
        check_number("EMA", "decay", decay, least=0, below=1)
        self.module, self.decay = module, decay
        self.warmup = check_flag("EMA", "warmup", warmup)
        self.averages: dict[str, Array] = {}
        self._counters: dict[str, tuple[Array, Array]] = {}  # device: t, weight; () each
        self._buffers: Any = weakref.WeakKeyDictionary()  # Flat: averages of its parameters
        self._expected: dict[str, tuple] = {}  # layout of the module's arrays
        self._is_applied = False  # inside ``applied``
        self.undo: Undo | None = None
        for name, value in module.state_dict().items():
            with array_device(value):
                self.averages[name] = value.astype(_average_dtype(value.dtype), order="C")
                if device_name(value) not in self._counters:
                    self._counters[device_name(value)] = tuple(
                        get_array_module(value).zeros((), dtype) for dtype in ("int64", "float64"))
            self._expected[name] = _layout(value)
        if not self._counters:
            self._counters["cpu"] = np.zeros((), np.int64), np.zeros(())
        self._floats = [name for name, a in self.averages.items() if a.dtype.name in FLOATS]
        self._integers = [name for name in self.averages if name not in self._floats]

    @property
    def updates(self) -> int:
        """Number of updates, t. Reading it waits for the GPU."""
        updates = next(iter(self._counters.values()))[0]
        with array_device(updates):
            return int(updates)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Update the averages from the module's values; after an error they are as before.

        Args:
            optimizer: that has made the step, of all or some of the module's parameters. Steps that
                it skips are skipped here.

        Raises:
            RuntimeError: inside ``applied``, the module has changed, or the first update with this
                optimiser is captured.
        """
        if self._is_applied:
            raise RuntimeError("EMA: update inside applied(): the module holds the averages")
        if optimizer is not None:
            check_kind("EMA: update", "optimizer", optimizer, Optimizer)
        with Undo.of(self.undo) as undo:
            self._update(optimizer, undo)

    def _update(self, optimizer: Optimizer | None, undo: Undo) -> None:
        values = self._values()
        work, done = self._flat_work(optimizer) if optimizer else ([], set())
        work += [(self.averages[name].reshape(-1), values[name].reshape(-1), None)
                 for name in self._floats if name not in done]
        others = [(self.averages[name], values[name]) for name in self._integers]
        tables = optimizer.tables if optimizer else {}
        undo.keep(*self.averages.values(), *(updates for updates, _ in self._counters.values()))
        for place, (updates, weight) in self._counters.items():
            floats_here = [part for part in work if device_name(part[0]) == place]
            others_here = [pair for pair in others if device_name(pair[0]) == place]
            update = update_gpu if is_gpu(updates) else update_cpu
            with array_device(updates):
                control = tables[place][0] if place in tables else None
                update(floats_here, others_here, updates, weight, control, self.decay, self.warmup)

    def _flat_work(self, optimizer: Optimizer) -> tuple[list[Work], set[str]]:
        """Return the updates of whole flat buffers, and the names of the parameters in them."""
        names = {id(p): name for name, p in self.module.named_parameters()}
        work, done = [], set()
        optimizer.check_holds("EMA: update")
        for flat in optimizer.all_flats():
            members = [names.get(id(p), "") for _, p in flat.members]
            if all(members):
                work.append((self._buffer(flat, members), flat.data, flat.state.get("master")))
                done |= set(members)
        return work, done

    def _buffer(self, flat: Flat, names: list[str]) -> Array:
        """Return averages (n,) with the layout of a Flat; ``averages`` become views of it."""
        if flat not in self._buffers:
            refuse_capture(flat.data, "EMA: averages move beside an optimiser's parameters")
            with array_device(flat.data):
                buffer = zeros(flat.data.size, accumulator(flat.data.dtype), flat.data)
                for name, view in zip(names, flat.views(buffer), strict=True):
                    view[...] = self.averages[name]
                    self.averages[name] = view
            self._buffers[flat] = buffer
        return self._buffers[flat]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Write the averages into the module for the block; restore its own values afterwards.

        Both are written in place, so arrays keep their addresses; changes inside the block are
        lost. An average is rounded to its parameter's dtype.

        Raises:
            RuntimeError: inside another ``applied``, or the module has changed.
        """
        if self._is_applied:
            raise RuntimeError("EMA: applied() inside applied()")
        values = self._values()
        own = {name: copy for name, (_, copy) in zip(values, copied(values.values()), strict=True)}
        try:
            self._is_applied = True
            _write(values, self.averages)
            yield
        finally:
            self._is_applied = False
            with uninterrupted():  # read anew: an optimiser may have released the arrays
                try:
                    _write(self.module.state_dict(), own)
                except BaseException:
                    _write(self.module.state_dict(), own)  # never leave the values half restored
                    raise

    def copy_to_module(self) -> None:
        """Write the averages into the module permanently."""
        values = self._values()
        with Undo() as undo:
            undo.keep(*values.values())
            _write(values, self.averages)

    def state_dict(self) -> dict[str, Array]:
        """Return "updates" (), and "average.<path>", the live arrays."""
        return {"updates": next(iter(self._counters.values()))[0]} | {
            f"average.{name}": average for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in a ``state_dict`` of the averages of an equal module.

        Args:
            state: NumPy or CuPy arrays by name.

        Raises:
            ValueError: names, shapes or dtypes do not fit; lists them, and changes nothing.
        """
        found, *_ = matching("EMA: load_state_dict", self.state_dict(), state)
        if int(found["updates"]) < 0:
            raise ValueError(f"EMA: load_state_dict: updates is {int(found['updates'])}, wanted "
                             "at least 0")
        for updates, _ in self._counters.values():
            with array_device(updates):
                updates.fill(int(found["updates"]))
        _write(self.averages, {name: asarray(found[f"average.{name}"], device_name(average))
                               for name, average in self.averages.items()})

    def _values(self) -> dict[str, Array]:
        """Return the module's live arrays; raise if their layout has changed."""
        values = self.module.state_dict()
        now = {name: _layout(value) for name, value in values.items()}
        if now != self._expected:
            name = next(name for name in [*self._expected, *now]
                        if now.get(name) != self._expected.get(name))
            was, is_ = (_describe(some.get(name)) for some in (self._expected, now))
            raise RuntimeError(f"EMA: {name} of the module is {is_}, was {was}: "
                               "make a new EMA of a module that has changed")
        return values


def update_cpu(floats: list[Work], others: list[tuple[np.ndarray, np.ndarray]],
               updates: np.ndarray, weight: np.ndarray, control: np.ndarray | None, decay: float,
               warmup: bool) -> None:
    """Update all averages in one threaded pass, copy the other arrays, and count the update."""
    if control is not None and control[SKIP]:
        return
    t = int(updates)
    share = 1 - (min(decay, (1 + t) / (10 + t)) if warmup else decay)
    work = [(average[chunk], value[chunk], None if master is None else master[chunk])
            for average, value, master in floats if average.size > CHUNK
            for chunk in cpu_chunks(average.size)]
    work += [part for part in floats if part[0].size <= CHUNK]
    sums = itertools.accumulate(average.size for average, *_ in work)
    load = [(n - 1) // CHUNK for n in sums]  # number of the task: a chunk, or small arrays
    cuts = [0, *(i for i in range(1, len(work)) if load[i] != load[i - 1]), len(work)]

    def move(some: slice) -> None:
        with np.errstate(all="ignore"):
            for average, value, master in work[some]:
                t = memory.empty(average.size, average.dtype)
                now = value if master is None else behind(value, master)
                np.subtract(now, average, out=t, dtype=average.dtype)
                if share < 0.5:
                    t *= share
                    average += t
                else:
                    t *= 1 - share
                    np.subtract(now, t, out=average, dtype=average.dtype)

    threads.each(move, [slice(a, b) for a, b in itertools.pairwise(cuts)])
    for average, value in others:
        average[...] = value
    updates += 1


def update_gpu(floats: list[Work], others: list[tuple[Array, Array]], updates: Array,
               weight: Array, control: Array | None, decay: float, warmup: bool) -> None:
    """Do what ``update_cpu`` does with kernels/optim/ema.cu: one launch, and one per array."""
    def kernel(name: str, T: Any = np.float32, W: Any = updates.dtype, master: Any = None) -> Any:
        return kernels.kernel("optim/ema.cu", name, T=T, W=W, MASTER=master is not None)

    kernel("ema_prepare", floats[0][1].dtype if floats else np.float32)(
        1, updates, weight, control, decay, warmup, block=32)
    for average, value, master in floats:
        items = 16 // average.dtype.itemsize  # that a thread moves at a time
        kernel("ema_update", value.dtype, master=master)(
            -(-value.size // items), average, value, master, weight, value.size)
    for average, value in others:
        if value.dtype.name in kernels.C_TYPES:
            kernel("ema_copy", W=value.dtype)(value.size, average, value.reshape(-1), weight,
                                              value.size)
        else:  # a dtype that no layer of gpuconv has
            average[...] = value


def _average_dtype(dtype: np.dtype) -> np.dtype:
    return accumulator(dtype) if dtype.name in FLOATS else dtype


def _layout(array: Array) -> tuple:
    return array.dtype, array.shape, device_name(array)


def _describe(description: tuple | None) -> str:
    return "missing" if description is None else "{} {} on {}".format(*description)


def _write(arrays: Mapping[str, Array], values: Mapping[str, Array]) -> None:
    """Copy values into arrays of the same names, in place."""
    for name, array in arrays.items():
        with array_device(array):
            array[...] = values[name]
