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

from gpuconv import memory, threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, accumulator, cupy, is_gpu
from gpuconv.checks import no_array, short
from gpuconv.ops.checks import check_arrays, is_real, weak
from gpuconv.ops.cpu.sums import sum_axes

OPERAND = "an array, a Tensor or a real number"
UFUNCS: dict[Any, Any] = {
    operator.add: np.add, operator.sub: np.subtract, operator.mul: np.multiply,
    operator.truediv: np.divide, operator.neg: np.negative}


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


def neg(x: Array) -> Array:
    """Opposite: ``y = -x``.

    >>> neg(np.array([1.0, -2.0]))
    array([-1.,  2.])
    """
    check_arrays("neg", x=x)
    return Neg()(x)


def exp(x: Array) -> Array:
    """Exponential: ``y = e^x``.

    >>> exp(np.array([0.0, -np.inf]))
    array([1., 0.])
    """
    check_arrays("exp", x=x)
    return Exp()(x)


def log(x: Array) -> Array:
    """Natural logarithm: ``y = ln(x)``.

    >>> log(np.array([1.0, 0.0]))
    array([  0., -inf])
    """
    check_arrays("log", x=x)
    return Log()(x)


# -- operands ----------------------------------------------------------------------------


def _operands(op: str, a: Any, b: Any) -> tuple[Any, Any]:
    """a and b, checked; a number among them as a float, which every library takes for weak."""
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


def wide(a: Any) -> Any:
    """The array in the dtype that arithmetic on it takes; itself if that is its own."""
    return a.astype(accumulator(a.dtype), copy=False) if hasattr(a, "dtype") else a


def calculate(f: Callable[..., Array], *operands: Any) -> Array:
    """``f(*operands)`` for an f that treats all elements alike, in the dtype of the arrays.

    Arrays of one shape on the CPU are cut into chunks for all processors. f sees 16-bit arrays as
    float32, and other operands as they are.
    """
    arrays = [a for a in operands if hasattr(a, "dtype")]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if is_gpu(arrays[0]):
        return f(*map(wide, operands)).astype(dtype, copy=False)
    if any(a.shape != shape for a in arrays):
        with np.errstate(all="ignore"):
            return f(*map(wide, operands)).astype(dtype, copy=False)

    f = UFUNCS.get(f, f)
    return write(f if isinstance(f, np.ufunc) else
                 lambda *parts, out: np.copyto(out, f(*parts)), *operands)


def write(f: Callable[..., Any], *operands: Any) -> Array:
    """What ``f(*operands, out=y)`` leaves in y, for CPU arrays of one shape, in chunks."""
    arrays = [a for a in operands if hasattr(a, "dtype")]
    y, flat = memory.empty(arrays[0].shape, arrays[0].dtype), [
        a.reshape(-1) if hasattr(a, "dtype") else a for a in operands]
    out, accumulated = y.reshape(-1), accumulator(y.dtype)

    def work(piece: slice) -> None:
        parts, here = (wide(a[piece]) if hasattr(a, "dtype") else a for a in flat), out[piece]
        into = here if y.dtype == accumulated else threads.scratch("y", here.size, accumulated)
        with np.errstate(all="ignore"):  # each thread has its own error state
            f(*parts, out=into)
            if into is not here:
                here[...] = into

    threads.each(work, threads.chunks(y.size, accumulated.itemsize))
    return y


def total(x: Array, axes: tuple[int, ...]) -> Array:
    """Return the sum over some axes, in float64; however long, it is off by less than 1e-6."""
    return wide(x).sum(axis=axes, dtype=np.float64) if is_gpu(x) else sum_axes(x, axes)


def sum_to(g: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """Return the gradient of an operand of ``shape`` that was broadcast to the shape of g.

    Its dtype is that of g, unless another is given.

    >>> sum_to(np.ones((2, 3)), (2, 1))
    array([[3.],
           [3.]])
    """
    dtype = dtype or g.dtype
    if g.shape != shape:
        lead = g.ndim - len(shape)
        axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n != g.shape[lead + i]))
        g = total(g, axes).reshape(shape)
    with np.errstate(all="ignore"):  # what is too large for the dtype
        return g.astype(dtype, copy=False)


def _gradient(shape: tuple[int, ...], f: Callable[..., Array], gy: Array, *saved: Any) -> Array:
    """``f(gy, *saved)``, summed to ``shape``; a sum of 16-bit gradients is rounded once, after."""
    if gy.shape == shape:
        return calculate(f, gy, *saved)
    with np.errstate(all="ignore"):
        return sum_to(f(wide(gy), *map(wide, saved)), shape, gy.dtype)


# -- ops ---------------------------------------------------------------------------------


class Add(Op):
    """Saves: the two shapes."""

    def forward_cpu(self, a, b):
        self.shapes = _shape(a), _shape(b)
        return calculate(operator.add, a, b)

    def backward_cpu(self, gy):
        return tuple(sum_to(gy, shape) if need else None
                     for need, shape in zip(self.needs, self.shapes, strict=True))

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Sub(Op):
    """Saves: the two shapes."""

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


class Neg(Op):
    """Saves: nothing."""

    def forward_cpu(self, x):
        return calculate(operator.neg, x)

    def backward_cpu(self, gy):
        return (calculate(operator.neg, gy),)

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


class Exp(Op):
    """Saves: y, which is its own derivative."""

    def forward_cpu(self, x):
        y = calculate(np.exp, x)
        self.y = y if self.needs[0] else None
        return y

    def backward_cpu(self, gy):
        return (calculate(operator.mul, gy, self.y),)

    def forward_gpu(self, x):
        y = calculate(cupy().exp, x)
        self.y = y if self.needs[0] else None
        return y

    backward_gpu = backward_cpu


class Log(Op):
    """Saves: x."""

    def forward_cpu(self, x):
        self.x = x if self.needs[0] else None
        return calculate(np.log, x)

    def backward_cpu(self, gy):
        return (calculate(operator.truediv, gy, self.x),)

    def forward_gpu(self, x):
        self.x = x if self.needs[0] else None
        return calculate(cupy().log, x)

    backward_gpu = backward_cpu


def install(name: str, f: Callable[[Any, Any], Any]) -> None:
    """Make f the operator ``__name__`` of Tensor, and with its operands exchanged ``__rname__``."""
    setattr(Tensor, f"__{name}__", f)
    setattr(Tensor, f"__r{name}__", lambda b, a: f(a, b))


for _name, _f in dict(add=add, sub=sub, mul=mul, truediv=div).items():
    install(_name, _f)
Tensor.__neg__ = neg  # type: ignore[method-assign]
