"""Clipping of the norm of all gradients together.

    norm   = sqrt(sum of g^2)        over all gradients of an optimiser
    factor = min(1, max_norm / (norm + 1e-6))
    g      = factor * g              0 stays 0, whatever the factor

As in PyTorch an infinite norm makes finite gradients 0 and infinite ones NaN, and a NaN norm makes
all gradients NaN. Gradients that are exactly 0, and the gaps of flat buffers, stay 0. Squares are
summed in float64, in chunks that depend on the shape alone, in a fixed order. Norm and factor stay
on the GPU; the host does not wait for them.

If a LossScale has scaled the gradients, the norm is that of the unscaled ones: g times the
multiplier of ``optimizer.control``. In a step that is skipped the gradients keep their bits.

Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML
2013, section 3.2.
"""

import math
from collections.abc import Callable

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import Array, accumulator, array_device, cupy, device_name, is_gpu
from gpuconv.checks import check_kind, check_number
from gpuconv.optim.flat import cpu_chunks, reduction_blocks
from gpuconv.optim.optimizer import MULTIPLIER, SKIP, Optimizer

SMALL = 1e-6   # added to the norm


def clip_grad_norm(optimizer: Optimizer, max_norm: float) -> Array:
    """Scale all gradients in place by one factor so that their norm is at most max_norm.

    Args:
        optimizer: of the parameters, in all groups; gradients of frozen ones are ignored.
        max_norm: 0 or more. ``float("inf")`` only measures.

    Returns:
        The norm before clipping, shape (), on the parameters' device, in the accumulator dtype of
        the widest parameter. ``float()`` of it waits for the GPU.

    Raises:
        ValueError: max_norm is negative or NaN, or the parameters are on several devices.
        RuntimeError: a ``grad`` was replaced by hand, or the parameters have been released.

    >>> from gpuconv.autograd import Parameter
    >>> from gpuconv.optim import SGD
    >>> p = Parameter(np.zeros(2)); sgd = SGD([p], lr=0.1)
    >>> p.grad[...] = 3, 4
    >>> float(clip_grad_norm(sgd, 1.0)), p.grad.round(5)
    (5.0, array([0.6, 0.8]))
    """
    hint = ": optimizer, not the parameters, which lie in its buffers"
    check_kind("clip_grad_norm", "optimizer", optimizer, Optimizer, hint)
    limit = check_number("clip_grad_norm", "max_norm", max_norm, least=0, infinite=True)
    optimizer.check_holds("clip_grad_norm")
    flats = optimizer.all_flats()
    places = sorted({device_name(flat.grad) for flat in flats})
    if len(places) > 1:
        raise ValueError(f"clip_grad_norm: parameters are on {' and '.join(places)}, "
                         "wanted one device")
    parts = [flat.grad[part] for flat in flats for part in flat.active()]
    control = optimizer.control
    dtype = np.result_type(*(accumulator(flat.grad.dtype) for flat in flats))
    with array_device(flats[0].grad):
        clip = clip_gpu if is_gpu(flats[0].grad) else clip_cpu
        return clip(parts, control, limit, dtype)


def clip_cpu(parts: list[np.ndarray], control: np.ndarray, max_norm: float,
             dtype: np.dtype) -> np.ndarray:
    """Clip gradients (n,) in place, chunk by chunk; return the norm before, ()."""
    with np.errstate(all="ignore"):
        norm = abs(float(control[MULTIPLIER])) * math.sqrt(sum(_square(g) for g in parts))
        share = max_norm / (norm + SMALL)
        factor = 1.0 if control[SKIP] or share > 1 else share  # NaN stays
        if factor != 1:
            for g in parts:
                _scale(g, factor)
        return np.array(norm).astype(dtype)


def _square(g: np.ndarray) -> float:
    """Return the sum of the squares of g."""

    def sum_of_squares(chunk: slice) -> float:
        wide = memory.empty(chunk.stop - chunk.start, np.float64)
        wide[...] = g[chunk]
        with np.errstate(all="ignore"):
            return float(np.dot(wide, wide))

    return sum(threads.each(sum_of_squares, cpu_chunks(g.size)))


def _scale(g: np.ndarray, factor: float) -> None:
    wide = accumulator(g.dtype)

    def scale_chunk(chunk: slice) -> None:
        w = memory.widened(g[chunk], wide)
        with np.errstate(all="ignore"):
            if math.isnan(factor):
                np.copyto(w, factor, where=w != 0)
            else:
                w *= factor
        if g.dtype != wide:
            g[chunk] = w

    threads.each(scale_chunk, cpu_chunks(g.size))


def clip_gpu(parts: list[Array], control: Array, max_norm: float, dtype: np.dtype) -> Array:
    """Do what ``clip_cpu`` does with kernels/optim/clip.cu: two launches per part, and one."""
    cp = cupy()
    packs = [g.size * g.dtype.itemsize // 16 for g in parts]  # of 16 bytes
    slices = list(map(reduction_blocks, parts))
    sums, factor = cp.empty(sum(slices), np.float64), cp.empty((), np.float64)
    norm = cp.empty((), dtype)

    def kernel(function: str, T: np.dtype) -> Callable[..., None]:
        return kernels.kernel("optim/clip.cu", function, T=T, BLOCK=kernels.BLOCK)

    start = 0
    for g, S in zip(parts, slices, strict=True):
        kernel("clip_squares", g.dtype)(S * kernels.BLOCK, g, sums[start : start + S], g.size, S)
        start += S
    kernel("clip_norm", dtype)(kernels.BLOCK, sums, control, norm, factor, start, max_norm,
                                 SMALL)
    for g, n in zip(parts, packs, strict=True):
        kernel("clip_scale", g.dtype)(n, g, factor, g.size)
    return norm
