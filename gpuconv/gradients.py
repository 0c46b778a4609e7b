"""Gradients of functions of plain arrays, and a check of gradients against differences."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.backend import Array, array_device, check_arrays
from gpuconv.checks import check_count, check_function, check_number


def vjp(f: Callable[..., Any], *arrays: Array) -> tuple[Array, Callable[..., tuple]]:
    """Return f's value at arrays, and the function that pulls a gradient back through f.

    Args:
        f: maps one Tensor per array to one Tensor.
        arrays: of numpy or cupy.

    Returns:
        (y, pull): y is an array; ``pull(gy)``, to be called once, gives one gradient per array,
        None for an array that y does not depend on. Change neither y nor the arrays in place
        before: pull may read them.

    >>> from gpuconv.ops import max_pool2d
    >>> y, pull = vjp(lambda x: max_pool2d(x, 2), np.array([[[[1.0], [4.0]], [[3.0], [2.0]]]]))
    >>> y.ravel(), pull(10 * y)[0].ravel()
    (array([4.]), array([ 0., 40.,  0.,  0.]))
    """
    check_function("vjp", "f", f)
    for number, a in enumerate(arrays):
        if a is None:
            raise TypeError(f"vjp: array {number} is NoneType, wanted an array")
    check_arrays("vjp", **{f"array {i}": a for i, a in enumerate(arrays)})
    inputs = [Tensor(a, requires_grad=True) for a in arrays]
    y = f(*inputs)
    if not isinstance(y, Tensor):
        raise TypeError(f"vjp: f gave {type(y).__name__}, wanted a Tensor")

    def pull(gy: Array | None = None) -> tuple:
        if y.requires_grad:
            y.backward(gy)
        return tuple(x.grad for x in inputs)

    return y.data, pull


def value_and_grad(f: Callable[..., Any]) -> Callable[..., tuple[Array, tuple]]:
    """Return the function that gives f's value and its gradients with respect to all arguments.

    Args:
        f: maps one Tensor per array to a Tensor of one element.

    Returns:
        g with ``g(*arrays) -> (value, gradients)``, one gradient per array.

    >>> value, (gx,) = value_and_grad(lambda x: (x * x).sum())(np.array([1.0, 2.0]))
    >>> value.item(), gx
    (5.0, array([2., 4.]))
    """
    check_function("value_and_grad", "f", f)

    def both(*arrays: Array) -> tuple[Array, tuple]:
        y, pull = vjp(f, *arrays)
        return y, pull()

    return both


def gradcheck(f: Callable[..., Any], *arrays: np.ndarray, eps: float = 1e-6, tol: float = 1e-6,
              directions: int = 5, seed: int = 0) -> None:
    """Check f's backward against central differences along random directions.

    One scalar per direction stands for every element: the slope of sum(gy * f(x + e*v)) at e = 0
    must equal sum(gx * v).

    Args:
        f: maps one Tensor per array to one Tensor.
        arrays: float64, on either device. Keep away from kinks: equal maxima, zeros of ReLU.
        eps: length of a step.
        tol: allowed difference, relative to 1 + the slope.
        directions: how many.
        seed: of the directions and of gy.

    Raises:
        AssertionError: a slope differs; shows both.
        TypeError: an array is not float64.

    >>> gradcheck(lambda x: (x * x).sum(), np.array([1.0, 2.0]))
    """
    check_function("gradcheck", "f", f)
    named = {f"array {i}": a for i, a in enumerate(arrays)}
    xp = check_arrays("gradcheck", **named)
    for name, a in named.items():
        if a is None or a.dtype != np.float64:
            raise TypeError(f"gradcheck: {name} is {getattr(a, 'dtype', a)}, wanted float64")
    check_number("gradcheck", "eps", eps, above=0)
    check_number("gradcheck", "tol", tol, least=0)
    check_count("gradcheck", "directions", directions)
    rng = np.random.default_rng(check_count("gradcheck", "seed", seed, 0))

    def normal(shape: tuple[int, ...]) -> Array:
        return xp.asarray(rng.standard_normal(shape))

    y, pull = vjp(f, *arrays)
    with array_device(y):
        gy = normal(y.shape)
        gradients = pull(gy)
        for _ in range(directions):
            vs = [normal(a.shape) for a in arrays]
            up, down = (vjp(f, *[a + e * v for a, v in zip(arrays, vs, strict=True)])[0]
                        for e in (eps, -eps))
            numeric = float((gy * (up - down)).sum()) / (2 * eps)
            exact = sum(float((g * v).sum()) for g, v in zip(gradients, vs, strict=True)
                        if g is not None)
            assert abs(numeric - exact) <= tol * (1 + abs(exact)), (
                f"gradcheck: slope {numeric:.9g} by differences, {exact:.9g} by backward")
