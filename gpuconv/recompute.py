"""Recomputation: activations are computed again in the backward pass instead of being saved.

    y = f(x)         in forward, without a tape: only x and y stay
    y = f(x)         again in backward, with a tape, whose backward then runs at once

A chain of n equal parts that are all recomputed keeps n inputs and, at its peak, the activations of
a single part. It costs one more forward pass: a quarter to a third more time.

The second run repeats the first: it draws the same dropout masks, and it does not update running
statistics again. Layers draw random numbers through ``replay``, and check ``is_recomputing`` before
they change state.

Source: Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from gpuconv import autograd
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, array_device, check_arrays, get_array_module, is_array
from gpuconv.checks import check_function, no_array

Value = TypeVar("Value")


def recompute(f: Callable[..., Any], *inputs: Any) -> Tensor:
    """Return f(*inputs); backward saves nothing inside f, and runs it again.

    Args:
        f: a module, or a function of Tensors that returns one Tensor and gives the same result
            each time. Parameters that it uses get their gradients, too.
        inputs: Tensors or arrays; f is called with Tensors.

    Returns:
        The value of f.

    Raises:
        TypeError: f does not return a Tensor.
        RuntimeError: in backward, f returns another shape or dtype than before, or nothing that
            needs a gradient.

    >>> import numpy as np
    >>> x = Tensor(np.array([1.0, 3.0]), requires_grad=True)
    >>> recompute(lambda x: (x * x).sum(), x).backward(); x.grad
    array([2., 6.])
    """
    check_function("recompute", "f", f)
    return Recompute(f).apply(*inputs)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Save activations in the block: ``recompute(f, *inputs)`` is then f(*inputs), per thread."""
    before, _local.disabled = _local.disabled, True
    try:
        yield
    finally:
        _local.disabled = before


class Recompute(Op):
    """Saves: f, references to the inputs, and the random numbers that f drew."""

    depends_on, multiply_adds = "all", 0  # as far as is known; nn.summary looks inside: disabled()

    def __init__(self, f: Callable[..., Any]):
        self.f = f

    def apply(self, *inputs: Any) -> Tensor:
        """Run f without a tape, and record one node for it."""
        self.needs = autograd.needs(inputs)
        self.arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        for number, a in enumerate(self.arrays):
            if not is_array(a) and not isinstance(a, np.generic):
                raise TypeError(f"recompute: input {number} is {no_array(a)}")
        check_arrays("recompute", **{f"input {i}": a for i, a in enumerate(self.arrays)})
        self.drawn: list[Any] = []
        if _local.disabled:
            return self.run(_Frame(self.drawn, second=False),
                            [x if isinstance(x, Tensor) else Tensor(x) for x in inputs])
        frame = _Frame(self.drawn, second=False, returns=autograd.recording())
        with autograd.no_grad():
            y = self.run(frame, [Tensor(a) for a in self.arrays])
        # a parameter of f may need a gradient where no input does: known after the second run
        return self.record(y.data, inputs, autograd.recording())

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        """Run f again with a tape, and backward on it, which also adds to f's parameters' grads."""
        with array_device(gy):
            inputs = [Tensor(a, need) for a, need in zip(self.arrays, self.needs, strict=True)]
            with autograd.grad():
                y = self.run(_Frame(self.drawn, second=True), inputs)
            if (y.shape, y.dtype) != (gy.shape, gy.dtype):
                raise RuntimeError(f"recompute: the function gave {gy.dtype} {gy.shape}, and "
                                   f"{y.dtype} {y.shape} when it ran again")
            y.backward(gy)
            return tuple(_gradient(x) if x.requires_grad else None for x in inputs)

    def run(self, frame: "_Frame", inputs: list[Tensor]) -> Tensor:
        """Return f(*inputs), run in this frame."""
        _local.frames = (*_local.frames, frame)
        try:
            y = self.f(*inputs)
        finally:
            _local.frames = _local.frames[:-1]
        if not isinstance(y, Tensor):
            raise TypeError(f"recompute: the function gave {type(y).__name__}, wanted a Tensor")
        return y


def _gradient(x: Tensor) -> Array:
    return get_array_module(x.data).zeros_like(x.data) if x.grad is None else x.grad


# -- the same random numbers in the second run ---------------------------------------------


class _Frame:
    """One run of a recomputed function: the first records what is drawn, the second replays it."""

    def __init__(self, drawn: list[Any], second: bool, returns: bool = False):
        self.drawn, self.second, self.next = drawn, second, 0
        self.returns = returns  # will a second run follow?


class _Local(threading.local):
    frames: tuple[_Frame, ...] = ()  # of recomputed functions that are running, outermost first
    disabled = False


_local = _Local()


def is_recomputing() -> bool:
    """Return whether a recomputed function runs again: running statistics then stay unchanged."""
    return any(frame.second for frame in _local.frames)


def will_recompute() -> bool:
    """Return whether a recomputed function runs whose second run will record a tape."""
    return any(frame.returns for frame in _local.frames)


def replay(draw: Callable[[], Value]) -> Value:
    """Return draw(); in the second run of a recomputed function, what it gave the first time.

    >>> replay(lambda: 4)
    4
    """
    for frame in _local.frames:
        if frame.second:
            value = frame.drawn[frame.next]
            frame.next += 1
            break
    else:
        value = draw()
    for frame in _local.frames:
        if not frame.second:
            frame.drawn.append(value)
    return value
