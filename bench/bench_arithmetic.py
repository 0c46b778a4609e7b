"""Arithmetic with and without broadcasting: bound by memory."""

import operator

import pytest
from harness import Work, all_libraries, measure

SHAPE = 128, 32, 32, 32
OPERATORS = {"+": operator.add, "*": operator.mul, "/": operator.truediv}


@all_libraries
@pytest.mark.parametrize("gradient", ["", "ab"], ids=["forward", "ga-gb"])
@pytest.mark.parametrize("name", OPERATORS)
def test_same_shape(benchmark, library, name, gradient, rng):
    a, gy = rng.standard_normal((2, *SHAPE), "float32")
    b = rng.random(SHAPE, "float32") + 1
    work = Work(f"a {name} b {'ga gb' if gradient else 'forward'}", dict(a=a, b=b, gy=gy),
                ours=tensors(OPERATORS[name]), torch=lambda a, b: OPERATORS[name](a, b),
                gradient_of=tuple(gradient), traffic=3 * a.nbytes, images=SHAPE[0])
    measure(benchmark, work, library)


@all_libraries
@pytest.mark.parametrize("gradient", ["", "b"], ids=["forward", "gb"])
def test_broadcast(benchmark, library, gradient, rng):
    a, gy = rng.standard_normal((2, *SHAPE), "float32")
    b = rng.standard_normal((1, 1, 1, SHAPE[-1]), "float32")
    work = Work(f"a + b per channel {'gb' if gradient else 'forward'}", dict(a=a, b=b, gy=gy),
                ours=tensors(operator.add), torch=lambda a, b: a + b, gradient_of=tuple(gradient),
                traffic=(1 if gradient else 2) * a.nbytes, images=SHAPE[0], terms=gy[..., 0].size)
    measure(benchmark, work, library)


def tensors(f):
    """f on Tensors: between plain arrays an operator would be NumPy's own."""
    from gpuconv import Tensor

    def ours(a, b):
        if isinstance(a, Tensor):
            return f(a, b)
        return f(Tensor(a), Tensor(b)).data

    return ours
