"""Arithmetic with NumPy's broadcasting, and the operators + - * / of Tensor.

    y = a + b    ga = gy            gb = gy
    y = a - b    ga = gy            gb = -gy
    y = a * b    ga = gy * b        gb = gy * a
    y = a / b    ga = gy / b        gb = -gy / b * a / b

A gradient is summed over the axes along which its operand was broadcast. Numbers of Python and of
NumPy are weak: they take the arrays' dtype. 16-bit arrays are computed in float32 and rounded once.
Element by element, a division by zero or an overflow gives inf or NaN without a warning, as on the
GPU.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array
from gpuconv.checks import no_array, short
from gpuconv.ops.checks import check_arrays, is_real, weak
from gpuconv.ops.elementwise.activation import neg
from gpuconv.ops.engine.elements import calculate, sum_to, wide

OPERAND = "an array, a Tensor or a real number"


def add(a: Array, b: Array) -> Array:
    """Sum: ``y = a + b``.

    >>> add(np.array([1.0, 2.0]), 0.5)
    array([1.5, 2.5])
    """
    return Add()(*_operands("add", a, b))


def sub(a: Array, b: Array) -> Array:
    """Difference: ``y = a - b``.

    >>> sub(1, np.array([1.0, 2.0]))
    array([ 0., -1.])
    """
    return Sub()(*_operands("sub", a, b))


def mul(a: Array, b: Array) -> Array:
    """Product of elements: ``y = a * b``.

    >>> mul(np.array([[1.0], [2.0]]), np.array([3.0, 4.0]))
    array([[3., 4.],
           [6., 8.]])
    """
    return Mul()(*_operands("mul", a, b))


def div(a: Array, b: Array) -> Array:
    """Quotient of elements: ``y = a / b``.

    >>> div(np.array([1.0, 0.0]), 4)
    array([0.25, 0.  ])
    """
    return Div()(*_operands("div", a, b))


# -- operands ----------------------------------------------------------------------------


def _operands(op: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Check the operands; turn a number into a Python float, which takes the array's dtype."""
    numbers = [is_real(v) for v in (a, b)]
    for name, v, number in zip("ab", (a, b), numbers, strict=True):
        if not (number or hasattr(v, "dtype")):
            raise TypeError(f"{op}: {name} is {no_array(v, name, OPERAND)}")
    if all(numbers):
        raise TypeError(f"{op}: {short(a)} and {short(b)} are numbers, wanted an array or Tensor")
    check_arrays(op, ("a", "b"), a=None if numbers[0] else a, b=None if numbers[1] else b)
    try:
        np.broadcast_shapes(_shape(a), _shape(b))
    except ValueError:
        raise ValueError(f"{op}: shapes {a.shape} and {b.shape} do not broadcast") from None
    return weak(op, a) if numbers[0] else a, weak(op, b) if numbers[1] else b


def _shape(a: Any) -> tuple[int, ...]:
    return getattr(a, "shape", ())


def _gradient(shape: tuple[int, ...], f: Callable[..., Array], gy: Array, *saved: Any) -> Array:
    """``f(gy, *saved)``, summed to ``shape``; a sum of 16-bit gradients is rounded once, after."""
    if gy.shape == shape:
        return calculate(f, gy, *saved)
    with np.errstate(all="ignore"):
        return sum_to(f(wide(gy), *map(wide, saved)), shape, gy.dtype)


# -- ops ---------------------------------------------------------------------------------


class Add(Op):
    """Saves: the two shapes."""

    depends_on, multiply_adds = "pixel", 0

    def forward_cpu(self, a, b):
        self.shapes = _shape(a), _shape(b)
        return calculate(operator.add, a, b)

    def backward_cpu(self, gy):
        return tuple(sum_to(gy, shape) if need else None
                     for need, shape in zip(self.needs, self.shapes, strict=True))

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Sub(Op):
    """Saves: the two shapes."""

    depends_on, multiply_adds = "pixel", 0

    def forward_cpu(self, a, b):
        self.shapes = _shape(a), _shape(b)
        return calculate(operator.sub, a, b)

    def backward_cpu(self, gy):
        ga = sum_to(gy, self.shapes[0]) if self.needs[0] else None
        gb = _gradient(self.shapes[1], operator.neg, gy) if self.needs[1] else None
        return ga, gb

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Mul(Op):
    """Saves: the shapes, and each operand if the other one needs a gradient."""

    depends_on, multiply_adds = "pixel", 0

    def forward_cpu(self, a, b):
        self.shapes = _shape(a), _shape(b)
        self.a = a if self.needs[1] else None
        self.b = b if self.needs[0] else None
        return calculate(operator.mul, a, b)

    def backward_cpu(self, gy):
        ga = _gradient(self.shapes[0], operator.mul, gy, self.b) if self.needs[0] else None
        gb = _gradient(self.shapes[1], operator.mul, gy, self.a) if self.needs[1] else None
        return ga, gb

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Div(Op):
    """Saves: the shapes, b if anything needs a gradient, a if b does."""

    depends_on, multiply_adds = "pixel", 0

    def forward_cpu(self, a, b):
        self.shapes = _shape(a), _shape(b)
        self.a = a if self.needs[1] else None
        self.b = b if any(self.needs) else None
        return calculate(operator.truediv, a, b)

    def backward_cpu(self, gy):
        ga = _gradient(self.shapes[0], operator.truediv, gy, self.b) if self.needs[0] else None
        gb = (_gradient(self.shapes[1], lambda g, a, b: -(g / b) * (a / b), gy, self.a, self.b)
              if self.needs[1] else None)
        return ga, gb

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


for _name, _f in dict(add=add, sub=sub, mul=mul, truediv=div).items():
    setattr(Tensor, f"__{_name}__", _f)
    setattr(Tensor, f"__r{_name}__", lambda b, a, f=_f: f(a, b))
Tensor.__neg__ = neg  # type: ignore[method-assign]
