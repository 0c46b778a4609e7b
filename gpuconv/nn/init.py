"""Initial values of parameters, written in place.

    fan_in = R*S*C, fan_out = R*S*K        of filters (K, R, S, C); for Linear (K, C), R = S = 1
    he      variance 2 / fan_in            keeps the size of activations through ReLU
    glorot  variance 2 / (fan_in + fan_out)
    a normal of that variance, or a uniform -b .. b with b = sqrt(3 * variance)

Numbers come from ``random.generator()``: the same after ``random.seed``, on either device.

Sources: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2; Glorot,
Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
"""

import math

import numpy as np

from gpuconv import random
from gpuconv.autograd import Parameter
from gpuconv.backend import accumulator, array_device, get_array_module


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight.

    Args:
        shape: (K, R, S, C), or (K, C). C counts the channels of one group.

    >>> fans((16, 3, 3, 4)), fans((10, 2048))
    ((36, 144), (2048, 10))
    """
    if len(shape) not in (2, 4) or 0 in shape:
        raise ValueError(f"init: weight {shape}, wanted (K, R, S, C) or (K, C), nothing empty")
    pixels = math.prod(shape[1:-1])
    return pixels * shape[-1], pixels * shape[0]


def normal_(p: Parameter, std: float) -> None:
    """Fill p with normal numbers of mean 0."""
    values = random.generator().standard_normal(p.shape, accumulator(p.dtype).type)
    values *= std
    _fill(p, values)


def uniform_(p: Parameter, bound: float) -> None:
    """Fill p with uniform numbers from -bound to bound."""
    values = random.generator().random(p.shape, accumulator(p.dtype).type)
    values *= 2 * bound
    values -= bound
    _fill(p, values)


def he_normal_(p: Parameter, mode: str = "fan_in") -> None:
    """Normal of variance 2/fan; ``mode`` says which: "fan_in" or "fan_out"."""
    normal_(p, math.sqrt(2 / _fan(p, mode)))


def he_uniform_(p: Parameter, mode: str = "fan_in") -> None:
    """Uniform of variance 2/fan; ``mode`` says which: "fan_in" or "fan_out"."""
    uniform_(p, math.sqrt(6 / _fan(p, mode)))


def glorot_normal_(p: Parameter) -> None:
    """Normal of variance 2/(fan_in + fan_out)."""
    normal_(p, math.sqrt(2 / sum(fans(p.shape))))


def glorot_uniform_(p: Parameter) -> None:
    """Uniform of variance 2/(fan_in + fan_out)."""
    uniform_(p, math.sqrt(6 / sum(fans(p.shape))))


def torch_default_(weight: Parameter, bias: Parameter | None = None) -> None:
    """Uniform from -1/sqrt(fan_in) to 1/sqrt(fan_in): what PyTorch's layers start from."""
    bound = 1 / math.sqrt(fans(weight.shape)[0])
    uniform_(weight, bound)
    if bias is not None:
        uniform_(bias, bound)


def dirac_(p: Parameter, groups: int = 1) -> None:
    """Filters that pass their input on: w[k, R//2, S//2, c] = 1 where k and c count alike.

    Args:
        p: (K, R, S, C/groups), R and S odd for an identity.
        groups: of the convolution, each counted from its own 0.

    >>> p = Parameter(np.empty((2, 1, 1, 2))); dirac_(p); p.data.reshape(2, 2)
    array([[1., 0.],
           [0., 1.]])
    """
    if len(p.shape) != 4 or groups < 1 or p.shape[0] % groups:
        raise ValueError(f"dirac_: weight {p.shape}, groups {groups}: wanted (K, R, S, C/groups) "
                         f"with K a multiple of groups")
    K, R, S, C = p.shape
    values = np.zeros(p.shape, accumulator(p.dtype))
    for k in range(min(K // groups, C)):
        values[k :: K // groups, R // 2, S // 2, k] = 1  # filter k of each group
    _fill(p, values)


def constant_(p: Parameter, value: float) -> None:
    """Fill p with one number."""
    with array_device(p.data):
        p.data.fill(value)


def zeros_(p: Parameter) -> None:
    """Fill p with 0."""
    constant_(p, 0)


def ones_(p: Parameter) -> None:
    """Fill p with 1."""
    constant_(p, 1)


def _fan(p: Parameter, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: mode {mode!r}, wanted 'fan_in' or 'fan_out'")
    return fans(p.shape)[mode == "fan_out"]


def _fill(p: Parameter, values: np.ndarray) -> None:
    values = values.astype(p.dtype, copy=False)
    with array_device(p.data):
        p.data = get_array_module(p.data).asarray(values)
