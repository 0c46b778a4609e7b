"""Gradients against central differences: what a new op must pass."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.backend import Array, array_device, check_arrays
from gpuconv.checks import check_count, check_function, check_number
from gpuconv.functional import vjp


def gradcheck(f: Callable[..., Any], *arrays: np.ndarray, eps: float = 1e-6, tol: float = 1e-6,
              directions: int = 5, seed: int = 0) -> None:
    """Assert that f's backward agrees with central differences along random directions.

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
