"""Averages of a module's weights over the steps of training.

    average = average + (1 - d) * (value - average)        after each step, where d > 1/2
            = value - d * (value - average)                otherwise; the same, and exact for d = 0
    d       = min(decay, (1 + t) / (10 + t))               t updates before this one

At first an average is the module's own value, which the warm-up d (1/10, 2/11, 3/12 ...) forgets
quickly: without it that value would still weigh decay^t. Parameters and float buffers (BatchNorm's
statistics) are averaged, integer buffers are copied. Averages are kept in accumulator(dtype): in
16 bits the small differences would be lost.

Of parameters in an optimiser's flat buffers, ``update(optimizer)`` makes averages that lie in the
same way, and follows each buffer in one pass; of 16-bit parameters with a wider copy (``master``)
it averages that. A step that the optimiser leaves out is none for the averages, either. On a GPU t
lies in device memory, so that a captured step counts on.

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
from gpuconv.optim.flat import PIECE, Flat, behind, not_captured, pieces, zeros
from gpuconv.optim.optimizer import SKIP, Optimizer
from gpuconv.state import matching
from gpuconv.undo import Undo, copied, uninterrupted

Work = tuple[Array, Array, Array | None]  # average, value, the value's master: (n,) each


class Averaged(Protocol):
    """What has averages: a Module."""

    def state_dict(self) -> dict[str, Array]:
        """{path: array} of all parameters and buffers, the live arrays."""


class EMA:
    """Exponential moving averages of a module's parameters and buffers, beside the module.

    Args:
        module: where it is now, and in its dtype: it cannot move afterwards. An optimiser may pack
            its parameters before or after.
        decay: share of the average that an update keeps, 0 <= decay < 1.
        warmup: keep less at first, min(decay, (1 + t) / (10 + t))?

    Attributes:
        averages: {path: array}, names and shapes of ``module.state_dict()``.
        undo: an Undo of the caller, which ``update`` adds to and the caller restores after an
            error. None: ``update`` uses one of its own.

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
        self._clocks: dict[str, tuple[Array, Array]] = {}  # device: t, weight; () each
        self._buffers: Any = weakref.WeakKeyDictionary()  # Flat: averages of its parameters
        self._like: dict[str, tuple] = {}  # what the module's arrays must stay like
        self._inside = False  # applied()?
        self.undo: Undo | None = None
        for name, value in module.state_dict().items():
            with array_device(value):
                self.averages[name] = value.astype(_kept(value.dtype), order="C")
                if device_name(value) not in self._clocks:
                    self._clocks[device_name(value)] = tuple(
                        get_array_module(value).zeros((), dtype) for dtype in ("int64", "float64"))
            self._like[name] = _description(value)
        if not self._clocks:
            self._clocks["cpu"] = np.zeros((), np.int64), np.zeros(())
        self._floats = [name for name, a in self.averages.items() if a.dtype.name in FLOATS]
        self._others = [name for name in self.averages if name not in self._floats]

    @property
    def updates(self) -> int:
        """t, how many there have been. Reading it waits for a GPU."""
        updates = next(iter(self._clocks.values()))[0]
        with array_device(updates):
            return int(updates)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Move the averages towards the module's values; after an error they are as before.

        Args:
            optimizer: whose step it was, on the module's parameters or some of them. Steps that it
                leaves out are left out here.

        Raises:
            RuntimeError: inside ``applied``, or the module is not what it was, or the first update
                with this optimiser is captured.
        """
        if self._inside:
            raise RuntimeError("EMA: update inside applied(): the module holds the averages")
        if optimizer is not None:
            check_kind("EMA: update", "optimizer", optimizer, Optimizer)
        with Undo.of(self.undo) as undo:
            self._update(optimizer, undo)

    def _update(self, optimizer: Optimizer | None, undo: Undo) -> None:
        values = self._values()
        work, done = self._packed(optimizer) if optimizer else ([], set())
        work += [(self.averages[name].reshape(-1), values[name].reshape(-1), None)
                 for name in self._floats if name not in done]
        others = [(self.averages[name], values[name]) for name in self._others]
        controls = optimizer.controls if optimizer else {}
        undo.keep(*self.averages.values(), *(updates for updates, _ in self._clocks.values()))
        for place, (updates, weight) in self._clocks.items():
            its = [part for part in work if device_name(part[0]) == place]
            whole = [pair for pair in others if device_name(pair[0]) == place]
            follow = update_gpu if is_gpu(updates) else update_cpu
            with array_device(updates):
                follow(its, whole, updates, weight, controls.get(place), self.decay, self.warmup)

    def _packed(self, optimizer: Optimizer) -> tuple[list[Work], set[str]]:
        """The flat buffers of these parameters, and the names of what is in them."""
        names = {id(p): name for name, p in self.module.named_parameters()}
        work, done = [], set()
        optimizer.check_holds("EMA: update")
        for flat in optimizer.all_flats():
            its = [names.get(id(p), "") for _, p in flat.members]
            if all(its):
                work.append((self._buffer(flat, its), flat.data, flat.state.get("master")))
                done |= set(its)
        return work, done

    def _buffer(self, flat: Flat, names: list[str]) -> Array:
        """Averages (n,) that lie as the parameters do; from now on ``averages`` are views of it."""
        if flat not in self._buffers:
            not_captured(flat.data, "EMA: averages move beside an optimiser's parameters")
            with array_device(flat.data):
                buffer = zeros(flat.data.size, accumulator(flat.data.dtype), flat.data)
                for name, view in zip(names, flat.views(buffer), strict=True):
                    view[...] = self.averages[name]
                    self.averages[name] = view
            self._buffers[flat] = buffer
        return self._buffers[flat]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the averages; afterwards its own values again, the same bits.

        They are written in place, so arrays keep their addresses, and what changes them inside is
        undone. An average is rounded to its parameter's dtype.

        Raises:
            RuntimeError: inside another ``applied``, or the module is not what it was.
        """
        if self._inside:
            raise RuntimeError("EMA: applied() inside applied()")
        values = self._values()
        own = {name: copy for name, (_, copy) in zip(values, copied(values.values()), strict=True)}
        try:
            self._inside = True
            _write(values, self.averages)
            yield
        finally:
            self._inside = False
            with uninterrupted():  # an optimiser may have let go of the arrays
                try:
                    _write(self.module.state_dict(), own)
                except BaseException:
                    _write(self.module.state_dict(), own)  # whatever it was, it must not stay half
                    raise

    def copy_to_module(self) -> None:
        """Write the averages into the module, for good."""
        values = self._values()
        with Undo() as undo:
            undo.keep(*values.values())
            _write(values, self.averages)

    def state_dict(self) -> dict[str, Array]:
        """"updates" (), and "average.<path>", the live arrays."""
        return {"updates": next(iter(self._clocks.values()))[0]} | {
            f"average.{name}": average for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in what ``state_dict`` gave, for a module like this one.

        Args:
            state: arrays of either library by name.

        Raises:
            ValueError: a name, shape or dtype does not fit; lists all of them, and has changed
                nothing.
        """
        found, *_ = matching("EMA: load_state_dict", self.state_dict(), state)
        if int(found["updates"]) < 0:
            raise ValueError(f"EMA: load_state_dict: updates is {int(found['updates'])}, wanted "
                             "at least 0")
        for updates, _ in self._clocks.values():
            with array_device(updates):
                updates.fill(int(found["updates"]))
        _write(self.averages, {name: asarray(found[f"average.{name}"], device_name(average))
                               for name, average in self.averages.items()})

    def _values(self) -> dict[str, Array]:
        """The module's live arrays, if they are like those of the beginning."""
        values = self.module.state_dict()
        now = {name: _description(value) for name, value in values.items()}
        if now != self._like:
            name = next(name for name in [*self._like, *now]
                        if now.get(name) != self._like.get(name))
            was, is_ = (_says(some.get(name)) for some in (self._like, now))
            raise RuntimeError(f"EMA: {name} of the module is {is_}, was {was}: "
                               "make a new EMA of a module that has changed")
        return values


def update_cpu(floats: list[Work], others: list[tuple[np.ndarray, np.ndarray]],
               updates: np.ndarray, weight: np.ndarray, control: np.ndarray | None, decay: float,
               warmup: bool) -> None:
    """Move all averages towards their values, in one threaded pass; copy the others; count."""
    if control is not None and control[SKIP]:
        return
    t = int(updates)
    share = 1 - (min(decay, (1 + t) / (10 + t)) if warmup else decay)
    work = [(average[piece], value[piece], None if master is None else master[piece])
            for average, value, master in floats if average.size > PIECE
            for piece in pieces(average.size)]
    work += [part for part in floats if part[0].size <= PIECE]
    sums = itertools.accumulate(average.size for average, *_ in work)
    load = [(n - 1) // PIECE for n in sums]  # of a thread: one large piece, or many small arrays
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
    """The same, in kernels/optim/ema.cu: a launch to count, and one for each pair."""
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
        else:  # whatever it is, it belongs to no layer of ours
            average[...] = value


def _kept(dtype: np.dtype) -> np.dtype:
    return accumulator(dtype) if dtype.name in FLOATS else dtype


def _description(array: Array) -> tuple:
    return array.dtype, array.shape, device_name(array)


def _says(description: tuple | None) -> str:
    return "missing" if description is None else "{} {} on {}".format(*description)


def _write(arrays: Mapping[str, Array], values: Mapping[str, Array]) -> None:
    """Copy by name, in place."""
    for name, array in arrays.items():
        with array_device(array):
            array[...] = values[name]
