"""Averages of a module's weights over the steps of training.

    average = average + (1 - d) * (value - average)        after each step
    d       = min(decay, (1 + t) / (10 + t))               t updates before this one

At first an average is the module's own value, which the warm-up d (1/10, 2/11, 3/12 ...) forgets
quickly: without it that value would still weigh decay^t. Parameters and float buffers (BatchNorm's
statistics) are averaged, integer buffers are copied. Averages are kept in accumulator(dtype): in
16 bits the small differences would be lost.

Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control
and Optimization 30, 1992; the warm-up is tf.train.ExponentialMovingAverage's.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import FLOATS, Array, accumulator, array_device, asarray, device_name, is_gpu
from gpuconv.optim.flat import PIECE, pieces


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
        updates: t, how many there have been.

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
        if not hasattr(module, "named_parameters"):
            raise TypeError(f"EMA: module is {type(module).__name__}, wanted a Module")
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}, wanted 0 <= decay < 1")
        self.module, self.decay, self.warmup = module, decay, warmup
        self.updates = 0
        self.averages: dict[str, Array] = {}
        self._like: dict[str, tuple] = {}  # what the module's arrays must stay like
        self._inside = False  # applied()?
        for name, value in module.state_dict().items():
            with array_device(value):
                self.averages[name] = value.astype(_kept(value.dtype), order="C")
            self._like[name] = _description(value)
        self._floats = [name for name, a in self.averages.items() if a.dtype.name in FLOATS]
        self._others = [name for name in self.averages if name not in self._floats]

    def update(self) -> None:
        """Let the averages follow the module's values of now: after each step of the optimiser.

        Raises:
            RuntimeError: inside ``applied``, or the module is not what it was.
        """
        if self._inside:
            raise RuntimeError("EMA: update inside applied(): the module holds the averages")
        values, t = self._values(), self.updates
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        pairs = [(self.averages[name].reshape(-1), values[name].reshape(-1))
                 for name in self._floats]
        if any(is_gpu(average) for average, _ in pairs):
            for average, value in pairs:
                update_gpu(average, value, 1 - decay)
        else:
            update_cpu(pairs, 1 - decay)
        _write({name: self.averages[name] for name in self._others}, values)
        self.updates += 1

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
        own = {}
        for name, value in values.items():
            with array_device(value):
                own[name] = value.copy()
        self._inside = True
        try:
            _write(values, self.averages)
            yield
        finally:
            _write(self.module.state_dict(), own)  # an optimiser may have let go of the arrays
            self._inside = False

    def copy_to_module(self) -> None:
        """Write the averages into the module, for good."""
        _write(self._values(), self.averages)

    def state_dict(self) -> dict[str, Array]:
        """"updates", an array of one number on the CPU, and "average.<path>", the live arrays."""
        return {"updates": np.array(self.updates)} | {
            f"average.{name}": average for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in what ``state_dict`` gave, for a module like this one.

        Args:
            state: arrays of either library by name.

        Raises:
            ValueError: a name, shape or dtype does not fit; lists all of them, and has changed
                nothing.
        """
        mine = self.state_dict()
        found = {name: asarray(state[name]) for name in mine if name in state}
        wrong = [f"missing {name}" for name in mine if name not in state]
        wrong += [f"unexpected {name}" for name in state if name not in mine]
        wrong += [f"{name} is {a.dtype} {a.shape}, wanted {mine[name].dtype} {mine[name].shape}"
                  for name, a in found.items()
                  if (a.dtype, a.shape) != (mine[name].dtype, mine[name].shape)]
        if not wrong and int(found["updates"]) < 0:
            wrong = [f"updates is {int(found['updates'])}, wanted at least 0"]
        if wrong:
            raise ValueError("EMA: load_state_dict: " + "; ".join(wrong))
        self.updates = int(found["updates"])
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


def update_cpu(pairs: list[tuple[np.ndarray, np.ndarray]], weight: float) -> None:
    """Move each average (n,) towards its value (n,) by a share, in one threaded pass over all."""
    work = [(average[piece], value[piece]) for average, value in pairs if average.size > PIECE
            for piece in pieces(average.size)]
    work += [pair for pair in pairs if pair[0].size <= PIECE]
    sums = itertools.accumulate(average.size for average, _ in work)
    load = [(n - 1) // PIECE for n in sums]  # of a thread: one large piece, or many small arrays
    cuts = [0, *(i for i in range(1, len(work)) if load[i] != load[i - 1]), len(work)]

    def move(some: slice) -> None:
        with np.errstate(all="ignore"):
            for average, value in work[some]:
                t = memory.empty(average.size, average.dtype)
                np.subtract(value, average, out=t, dtype=average.dtype)
                t *= weight
                average += t

    threads.each(move, [slice(a, b) for a, b in itertools.pairwise(cuts)])


def update_gpu(average: Array, value: Array, weight: float) -> None:
    """The same for one pair, in kernels/ema.cu."""
    kernels.kernel("ema.cu", "ema_update", T=value.dtype)(
        value.size, average, value, weight, value.size)


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
