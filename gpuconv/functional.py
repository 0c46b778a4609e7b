"""Gradients of functions of plain arrays, for whoever does not want to see the tape."""

from collections.abc import Callable
from typing import Any

from gpuconv.autograd import Tensor
from gpuconv.backend import Array, check_arrays
from gpuconv.checks import check_function


def vjp(f: Callable[..., Any], *arrays: Array) -> tuple[Array, Callable[..., tuple]]:
    """The value of f at arrays, and the function that pulls a gradient back through f.

    Args:
        f: maps one Tensor per array to one Tensor.
        arrays: of numpy or cupy.

    Returns:
        (y, pull): y is an array; ``pull(gy)``, to be called once, gives one gradient per array,
        None for an array that y does not depend on. Change neither y nor the arrays in place
        before: pull may read them.

    >>> import numpy as np
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
    """The function that gives f's value and its gradients with respect to all its arguments.

    Args:
        f: maps one Tensor per array to a Tensor of one element.

    Returns:
        g with ``g(*arrays) -> (value, gradients)``, one gradient per array.

    >>> import numpy as np
    >>> value, (gx,) = value_and_grad(lambda x: (x * x).sum())(np.array([1.0, 2.0]))
    >>> value.item(), gx
    (5.0, array([2., 4.]))
    """
    check_function("value_and_grad", "f", f)

    def both(*arrays: Array) -> tuple[Array, tuple]:
        y, pull = vjp(f, *arrays)
        return y, pull()

    return both
