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

from gpuconv import random, threads
from gpuconv.autograd import Parameter
from gpuconv.backend import (
    Array,
    accumulator,
    array_device,
    check_arrays,
    get_array_module,
    to_cpu,
)
from gpuconv.checks import check_choice, check_count, check_kind, check_number, short
from gpuconv.ops.checks import channels_last
from gpuconv.ops.conv.im2col import im2col

PATCHES = 16 << 20  # bytes of patches at a time, to take second moments of


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight.

    Args:
        shape: (K, R, S, C), or (K, C). C counts the channels of one group.

    >>> fans((16, 3, 3, 4)), fans((10, 2048))
    ((36, 144), (2048, 10))
    """
    if len(shape) not in (2, 4) or 0 in shape:
        raise ValueError(f"init: weight {short(shape)}, wanted (K, R, S, C) or (K, C), "
                         "nothing empty")
    pixels = math.prod(shape[1:-1])
    return pixels * shape[-1], pixels * shape[0]


def normal_(p: Parameter, std: float) -> None:
    """Fill p with normal numbers of mean 0."""
    _check("normal_", p)
    check_number("normal_", "std", std, least=0)
    values = random.generator().standard_normal(p.shape, accumulator(p.dtype).type)
    values *= std
    _fill(p, values)


def uniform_(p: Parameter, bound: float) -> None:
    """Fill p with uniform numbers from -bound to bound."""
    _check("uniform_", p)
    check_number("uniform_", "bound", bound)
    values = random.generator().random(p.shape, accumulator(p.dtype).type)
    values *= 2 * bound
    values -= bound
    _fill(p, values)


def he_normal_(p: Parameter, mode: str = "fan_in") -> None:
    """Fill with normal numbers of variance 2/fan; ``mode`` is "fan_in" or "fan_out"."""
    normal_(p, math.sqrt(2 / _fan("he_normal_", p, mode)))


def he_uniform_(p: Parameter, mode: str = "fan_in") -> None:
    """Fill with uniform numbers of variance 2/fan; ``mode`` is "fan_in" or "fan_out"."""
    uniform_(p, math.sqrt(6 / _fan("he_uniform_", p, mode)))


def glorot_normal_(p: Parameter) -> None:
    """Fill with normal numbers of variance 2/(fan_in + fan_out)."""
    _check("glorot_normal_", p)
    normal_(p, math.sqrt(2 / sum(fans(p.shape))))


def glorot_uniform_(p: Parameter) -> None:
    """Fill with uniform numbers of variance 2/(fan_in + fan_out)."""
    _check("glorot_uniform_", p)
    uniform_(p, math.sqrt(6 / sum(fans(p.shape))))


def torch_default_(weight: Parameter, bias: Parameter | None = None) -> None:
    """Fill with uniform numbers from -1/sqrt(fan_in) to 1/sqrt(fan_in), PyTorch's default."""
    _check("torch_default_", weight)
    bound = 1 / math.sqrt(fans(weight.shape)[0])
    uniform_(weight, bound)
    if bias is not None:
        uniform_(bias, bound)


def dirac_(p: Parameter, groups: int = 1, keep: bool = False) -> None:
    """Fill with filters that copy their input: w[k, R//2, S//2, c] = 1 where k and c are equal.

    Args:
        p: (K, R, S, C/groups), R and S odd for an identity.
        groups: of the convolution, each counted from its own 0.
        keep: leave the filters of each group that are more than its channels as they are? Else they
            become zeros.

    >>> p = Parameter(np.empty((2, 1, 1, 2))); dirac_(p); p.data.reshape(2, 2)
    array([[1., 0.],
           [0., 1.]])
    """
    _check("dirac_", p)
    check_count("dirac_", "groups", groups)
    if len(p.shape) != 4 or p.shape[0] % groups:
        raise ValueError(f"dirac_: weight {p.shape}, groups {groups}: wanted (K, R, S, C/groups) "
                         f"with K a multiple of groups")
    K, R, S, C = p.shape
    values = to_cpu(p.data).astype(accumulator(p.dtype)) if keep else np.zeros(p.shape)
    for k in range(min(K // groups, C)):
        values[k :: K // groups] = 0  # filter k of each group
        values[k :: K // groups, R // 2, S // 2, k] = 1
    _fill(p, values)


def whitening_(p: Parameter, images: Array, eps: float = 5e-4) -> None:
    """Fill with filters whose responses to image patches are uncorrelated, with variance 1.

    The second moments of all R x S patches, E[v v^T], not centred, have eigenvectors e and
    eigenvalues l; the filters are e / sqrt(l + eps), from the largest l on, then the same negated:
    behind a ReLU or GELU nothing of either sign is lost.

    Args:
        p: (K, R, S, C), K at most 2*R*S*C.
        images: (N, H, W, C) floats, normalised as the network will see them; a few thousand do.
        eps: what a direction that hardly varies is divided by, squared.

    Raises:
        ValueError: the shapes do not fit, K is more than there are filters, or the images hold
            what is not finite.

    Source: Page, "How to train your ResNet 8: bag of tricks", 2019.
    """
    _check("whitening_", p)
    check_arrays("whitening_", images=images)
    check_number("whitening_", "eps", eps, least=0)
    K, R, S, C = p.shape if len(p.shape) == 4 else (0, 0, 0, 0)
    if not 0 < K <= 2 * R * S * C or images.ndim != 4 or images.shape[3] != C or not len(images):
        raise ValueError(f"whitening_: weight {p.shape}, images {images.shape}, wanted "
                         "(K, R, S, C) with K at most 2*R*S*C, and (N, H, W, C)"
                         + channels_last("images", images.shape, C))
    moments, count = np.zeros((R * S * C, R * S * C)), 0
    for some in threads.chunks(len(images), R * S * images[:1].nbytes, PATCHES):
        patches = im2col(images[some], (R, S)).reshape(-1, R * S * C)
        wide = patches.astype(accumulator(images.dtype), copy=False)
        moments, count = moments + to_cpu(wide.T @ wide), count + len(patches)
    if not np.isfinite(moments).all():
        raise ValueError("whitening_: the images hold NaN or infinity, or are too large")
    value, vector = np.linalg.eigh(moments / count)  # smallest first
    filters = (vector / np.sqrt(value + eps)).T[::-1]
    _fill(p, np.concatenate([filters, -filters])[:K].reshape(p.shape))


def constant_(p: Parameter, value: float) -> None:
    """Fill p with one number."""
    _check("constant_", p)
    check_number("constant_", "value", value, infinite=True)
    with array_device(p.data):
        p.data.fill(value)


def zeros_(p: Parameter) -> None:
    """Fill p with 0."""
    constant_(p, 0)


def ones_(p: Parameter) -> None:
    """Fill p with 1."""
    constant_(p, 1)


def _check(caller: str, p: Parameter) -> None:
    check_kind(caller, "p", p, Parameter)


def _fan(caller: str, p: Parameter, mode: str) -> int:
    _check(caller, p)
    check_choice(caller, "mode", mode, ("fan_in", "fan_out"))
    return fans(p.shape)[mode == "fan_out"]


def _fill(p: Parameter, values: np.ndarray) -> None:
    values = values.astype(p.dtype, copy=False)
    with array_device(p.data):
        p.data = get_array_module(p.data).asarray(values)
