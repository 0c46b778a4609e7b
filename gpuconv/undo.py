"""Copies of state, to restore it after a change that fails or is skipped.

A training step changes state before it is known whether the step counts: running statistics in the
forward pass, a part of the weights before an error. ``Undo`` keeps copies until the step is whole;
``copied`` and ``put_back`` are for many small arrays: on a GPU each is one launch for up to 24.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gpuconv import kernels, memory
from gpuconv.backend import Array, array_device, cupy, get_array_module, is_gpu

PAIRS = 24  # arrays of a launch
SIGNALS = signal.SIGINT, signal.SIGTERM


def copied(arrays: Iterable[Array]) -> list[tuple[Array, Array]]:
    """Return (array, a copy of it) for each array; the copies are C-contiguous."""
    pairs = [(a, _new(a)) for a in arrays]
    _copy((copy, a) for a, copy in pairs)
    return pairs


def put_back(pairs: Iterable[tuple[Array, Array]], flag: Array | None = None) -> None:
    """Write the copies of ``copied`` back into their arrays.

    Args:
        pairs: (array, copy) of one shape and dtype, each pair on one device.
        flag: (), float64, on that device: nothing is written where it is 0. A GPU reads it itself,
            so it may be the result of a kernel. A number will do, too.

    >>> a = np.ones(2); pairs = copied([a]); a += 1
    >>> put_back(pairs, np.zeros(())); a
    array([2., 2.])
    >>> put_back(pairs); a
    array([1., 1.])
    """
    _copy(pairs, flag)


def _copy(pairs: Iterable[tuple[Array, Array]], flag: Array | None = None) -> None:
    """Copy x to y for each pair (y, x), unless flag is 0."""
    if flag is not None and not is_gpu(flag):
        if not flag:
            return
        flag = None
    alike: dict[int, list[tuple[Array, Array]]] = {}  # device: pairs that share launches
    for y, x in pairs:
        if is_gpu(y) and y.flags.c_contiguous and x.flags.c_contiguous:
            if y.size:
                alike.setdefault(y.device.id, []).append((y, x))
        elif is_gpu(y) and flag is not None:
            with array_device(y):
                y[...] = get_array_module(y).where(flag != 0, x, y)
        else:
            with array_device(y):
                y[...] = x
    for those in alike.values():
        copy = kernels.kernel("common/copy.cu", "copy_arrays")
        for some in (those[at:at + PAIRS] for at in range(0, len(those), PAIRS)):
            threads = sum(-(-y.nbytes // 16) for y, _ in some)
            nothing = [None, None, 0] * (PAIRS - len(some))
            copy(threads, *[a for y, x in some for a in (_bytes(y), _bytes(x), y.nbytes)],
                 *nothing, flag, threads)


def _new(a: Array) -> Array:
    """Return an undefined array like a, C-contiguous."""
    with array_device(a):
        return (cupy().empty if is_gpu(a) else memory.empty)(a.shape, a.dtype)


def _bytes(a: Array) -> Array:
    return a.reshape(-1).view(np.uint8)


class Undo:
    """Copies of state that is about to change, to be put back unless ``forget`` is called.

    As a context manager it puts everything back when its block ends with an error, and forgets it
    otherwise. ``forget`` is a single assignment: a signal finds either all or nothing kept.

    >>> a = np.ones(2)
    >>> with contextlib.suppress(ZeroDivisionError), Undo() as undo:
    ...     undo.keep(a)
    ...     a += 1
    ...     a /= 0 // 0
    >>> a
    array([1., 1.])
    """

    def __init__(self) -> None:
        self._kept: list[Callable[[], None]] = []

    def keep(self, *arrays: Array) -> None:
        """Copy arrays; not while a GPU's stream captures, since then nothing is computed."""
        arrays = tuple({id(a): a for a in arrays}.values())
        if any(map(is_gpu, arrays)) and cupy().cuda.get_current_stream().is_capturing():
            return
        pairs = [(a, _new(a)) for a in arrays]
        for a, copy in pairs:
            with array_device(a):
                copy[...] = a
        self.call(lambda: put_back(pairs))

    def keep_attributes(self, thing: Any, *names: str) -> None:
        """Note attributes of an object, all if no names are given; of lists the items."""
        was = {name: value.copy() if isinstance(value, list) else value
               for name, value in vars(thing).items() if not names or name in names}
        self.call(lambda: vars(thing).update(was))

    def keep_items(self, *tables: dict[str, Any]) -> None:
        """Note the items of dicts: which names they have, and what these are bound to."""
        was = [(table, dict(table)) for table in tables]

        def restore() -> None:
            for table, items in was:
                for name in [name for name in table if name not in items]:
                    del table[name]
                table.update(items)

        self.call(restore)

    def call(self, put_back: Callable[[], None]) -> None:
        """Note a function that puts something back; calling it twice does what calling it does."""
        self._kept.append(put_back)

    def forget(self) -> None:
        """Drop the copies: the change is complete."""
        self._kept = []

    def restore(self) -> None:
        """Put everything back, the newest first. Signals wait until that is done."""
        with uninterrupted():
            for function in reversed(self._kept):
                function()
            self._kept = []

    @staticmethod
    def of(undo: "Undo | None") -> contextlib.AbstractContextManager["Undo"]:
        """Return a context manager: a new Undo, or the caller's, which the caller ends."""
        return Undo() if undo is None else contextlib.nullcontext(undo)

    def __enter__(self) -> "Undo":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.forget()
        else:
            self.restore()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block has ended, where they have Python handlers.

    Outside the main thread, where Python runs no handlers, it does nothing.
    """
    waiting: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in waiting:
            signal.raise_signal(caught)
