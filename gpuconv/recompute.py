"""Recomputation: activations are computed again in the backward pass instead of being kept.

    y = f(x)         forward, without a tape: only x and y stay
    y = f(x)         again when backward comes by, with a tape, which it then runs down at once

A chain of n equal parts of which every one is recomputed keeps n inputs, and at its worst moment
the activations of a single part, for one more forward pass: a quarter to a third more time.

The second run does what the first did: it draws the same dropout masks, and it does not move
running statistics a second time. Whoever draws a number asks ``once``, and whoever changes state
asks ``again`` first.

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
    """f(*inputs), of whose inside backward keeps nothing: it runs f again.

    Args:
        f: a module, or any function of Tensors that gives one Tensor and is the same function each
            time. Parameters that it uses get their gradients, too.
        inputs: Tensors or arrays; f gets Tensors.

    Returns:
        The value of f.

    Raises:
        TypeError: f gave something else than a Tensor.
        RuntimeError: on the way back, f gave another shape or dtype than before; or there was
            nothing in it to differentiate.

    >>> import numpy as np
    >>> x = Tensor(np.array([1.0, 3.0]), requires_grad=True)
    >>> recompute(lambda x: (x * x).sum(), x).backward(); x.grad
    array([2., 6.])
    """
    check_function("recompute", "f", f)
    return Recompute(f).apply(*inputs)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Keep activations: inside, ``recompute(f, *inputs)`` is f(*inputs), in this thread."""
    before, _local.disabled = _local.disabled, True
    try:
        yield
    finally:
        _local.disabled = before


class Recompute(Op):
    """Saves: f, references to the inputs, and the numbers that f drew."""

    depends_on, multiply_adds = "all", 0  # as far as is known; nn.summary looks inside: disabled()

    def __init__(self, f: Callable[..., Any]):
        self.f = f

    def apply(self, *inputs: Any) -> Tensor:
        """Run f for its value alone, and leave one node on the tape."""
        self.needs = autograd.needs(inputs)
        self.arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        for number, a in enumerate(self.arrays):
            if not is_array(a) and not isinstance(a, np.generic):
                raise TypeError(f"recompute: input {number} is {no_array(a)}")
        check_arrays("recompute", **{f"input {i}": a for i, a in enumerate(self.arrays)})
        self.drawn: list[Any] = []
        if _local.disabled:
            frame = _Frame(self.drawn, again=False)
            return self.run(frame, [x if isinstance(x, Tensor) else Tensor(x) for x in inputs])
        with autograd.no_grad():
            y = self.run(_Frame(self.drawn, again=False), [Tensor(a) for a in self.arrays])
        # a parameter of f may want a gradient where no input does: the second run will tell
        return self.record(y.data, inputs, autograd.recording())

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        """Run f again, and its tape down; the parameters that f uses have their gradients then."""
        with array_device(gy):
            inputs = [Tensor(a, need) for a, need in zip(self.arrays, self.needs, strict=True)]
            with autograd.grad():
                y = self.run(_Frame(self.drawn, again=True), inputs)
            if (y.shape, y.dtype) != (gy.shape, gy.dtype):
                raise RuntimeError(f"recompute: the function gave {gy.dtype} {gy.shape}, and "
                                   f"{y.dtype} {y.shape} when it ran again")
            y.backward(gy)
            return tuple(_gradient(x) if x.requires_grad else None for x in inputs)

    def run(self, frame: "_Frame", inputs: list[Tensor]) -> Tensor:
        """f's value, in a frame of its own."""
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


# -- what must be the same the second time -------------------------------------------------


class _Frame:
    """One run of a recomputed function: it notes what is drawn, or gives what was noted."""

    def __init__(self, drawn: list[Any], again: bool):
        self.drawn, self.again, self.next = drawn, again, 0


class _Local(threading.local):
    frames: tuple[_Frame, ...] = ()  # of recomputed functions that are running, outermost first
    disabled = False


_local = _Local()


def is_recomputing() -> bool:
    """Is this the second run of a recomputed function? Then leave running statistics alone."""
    return any(frame.again for frame in _local.frames)


def replay(draw: Callable[[], Value]) -> Value:
    """draw(); or what it gave the first time, in the second run of a recomputed function.

    >>> replay(lambda: 4)
    4
    """
    for frame in _local.frames:
        if frame.again:
            value = frame.drawn[frame.next]
            frame.next += 1
            break
    else:
        value = draw()
    for frame in _local.frames:
        if not frame.again:
            frame.drawn.append(value)
    return value
