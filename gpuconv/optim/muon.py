"""Muon: momentum SGD whose updates of matrices are made orthogonal.

    m = momentum * m + g                      m = 0 before the first step
    d = g + momentum * m                      with Nesterov's, else m
    u = the orthogonal matrix nearest d, nearly: all its singular values about 1
    p = p * sqrt(K) / |p|                     with ``normalize``
    p = (1 - lr * weight_decay) * p - lr * u

A filter bank (K, R, S, C) is a matrix of K rows. Newton-Schulz iterations bring the singular values
s of X = d / |d| towards 1 without a decomposition, by products of matrices alone:

    X = a X + (b A + c A A) X,  A = X X^T     s = a s + b s^3 + c s^5
    a, b, c = 3.4445, -4.7750, 2.0315         steep at 0, and 0.7 .. 1.2 after a few steps

Groups with ``orthogonal=False`` (biases, the last layer) are updated as SGD does. A 16-bit matrix
is multiplied in its own dtype, with sums in float32.

Source: Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; Bernstein,
Newhouse, "Old optimizer, new norm: an anthology", 2024.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpuconv import kernels, memory
from gpuconv.autograd import Parameter
from gpuconv.backend import Array, accumulator, cupy, get_array_module, is_gpu
from gpuconv.checks import check_flag, check_number, listed
from gpuconv.ops.matmul.gemm import gemm
from gpuconv.optim.flat import Flat, behind
from gpuconv.optim.sgd import SGD

QUINTIC = 3.4445, -4.7750, 2.0315  # a, b, c
LARGEST = 10**6                    # iterations
TINY = 1e-7                        # added to |d|


class Muon(SGD):
    """Momentum SGD with orthogonal updates for matrices and filters.

    Args:
        params: Parameters, or groups of them: dicts with "params" and their own settings.
        lr: learning rate; at each step it is multiplied by ``factor``, which a schedule sets.
        momentum: share of m that is kept.
        nesterov: look ahead along m?
        weight_decay: pull towards 0: apart from the update where that is orthogonal, else as in
            SGD.
        orthogonal: make the updates of this group orthogonal? Its parameters have two axes or more.
        iterations: of Newton-Schulz, 1 or more.
        normalize: bring each of this group's parameters to the norm sqrt(K) before its update,
            where that is orthogonal?
        master: keep float32 copies of 16-bit parameters, which the updates act on?

    Raises:
        ValueError: as SGD; a parameter to make orthogonal that is no matrix, iterations < 1.
        TypeError: something is no Parameter, or a flag no bool.

    >>> p = Parameter(np.eye(2))
    >>> muon = Muon([p], lr=0.5, momentum=0.9, iterations=5)
    >>> p.grad[...] = [[3, 0], [0, 3]]; muon.step()
    >>> bool(abs(np.diag(p.data) - 0.5).max() < 0.2)
    True
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95,
                 nesterov: bool = True, weight_decay: float = 0.0, orthogonal: bool = True,
                 iterations: int = 5, normalize: bool = False, master: bool = False):
        self.defaults = dict(orthogonal=orthogonal, iterations=iterations, normalize=normalize)
        super().__init__(params, lr, momentum, nesterov, weight_decay, master)

    def _group(self, number: int, group: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super()._group(number, group, {**settings, **self.defaults})

    def check(self, group: Mapping[str, Any]) -> None:
        """Check the settings as SGD does; refuse parameters that are no matrices."""
        super().check(group)
        check_flag(self.name, "normalize", group["normalize"])
        if not check_flag(self.name, "orthogonal", group["orthogonal"]):
            return
        iterations = check_number("Muon", "iterations", group["iterations"], least=1, most=LARGEST)
        if iterations != int(iterations):
            raise ValueError(f"Muon: iterations is {iterations}, wanted a whole number")
        flat = [p.shape for p in group["params"] if isinstance(p, Parameter) and p.ndim < 2]
        if flat:
            raise ValueError(f"Muon: parameters of shapes {listed(flat)} are no matrices: put "
                             "them into a group with orthogonal=False")

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any]) -> None:
        """Update matrices one by one, other parameters as SGD does."""
        if not group["orthogonal"]:
            super().update(flat, part, group)
            return
        m, master = flat.get_or_create_state("momentum"), self.master_of(flat)
        step = step_gpu if is_gpu(flat.data) else step_cpu
        for start, (_, p) in zip(flat.starts, flat.members, strict=True):
            if part.start <= start < part.stop:
                here = slice(start, start + p.size)
                step(flat.data[here], flat.grad[here], m[here],
                     None if master is None else master[here], flat.control, p.shape, group)


def orthogonalized(d: Array, iterations: int, dtype: Any = None) -> Array:
    """The matrix nearest d (M, N) whose singular values are all about 1, the directions kept.

    It is computed in that dtype, by default the one of d; only d / |d|, in the accumulator's, so a
    d too large or too small for 16 bits does no harm.

    >>> u = orthogonalized(np.diag([4.0, 1.0, 2.0]), 5)
    >>> bool((0.6 < np.diag(u)).all() and (np.diag(u) < 1.3).all())
    True
    """
    xp, T = get_array_module(d), np.dtype(dtype or d.dtype)
    d = d.astype(accumulator(T), copy=False)
    unit, iterated = (_unit_gpu, _iterated_gpu) if is_gpu(d) else (_unit_cpu, _iterated_cpu)
    tall = len(d) > d.shape[1]
    x = unit(xp.ascontiguousarray(d.T if tall else d), T)
    for _ in range(iterations):
        x = iterated(x)
    return xp.ascontiguousarray(x.T) if tall else x


def _unit_cpu(d: np.ndarray, T: np.dtype) -> np.ndarray:
    """d / |d|, nearly (zeros stay zeros), rounded to T."""
    return (d / d.dtype.type(np.sqrt(_squares(d)) + TINY)).astype(T, copy=False)


def _unit_gpu(d: Array, T: np.dtype) -> Array:
    """Normalise d by kernels/optim/newton_schulz.cu."""
    x = cupy().empty(d.shape, T)
    kernels.kernel("optim/newton_schulz.cu", "newton_schulz_unit", T=T)(
        d.size, d, _squares(d), x, TINY, d.size)
    return x


def _iterated_cpu(x: np.ndarray) -> np.ndarray:
    """Return the next X."""
    a, b, c = QUINTIC
    gram = gemm(x, x.T)                                           # (M, M), symmetric
    mix = _blend_cpu(b, gram, c, gemm(gram, gram.T))
    return _blend_cpu(a, x, 1, gemm(mix, np.ascontiguousarray(x.T).T))  # this layout's bits


def _iterated_gpu(x: Array) -> Array:
    """Return the next X in four launches: (a I + b A + c A A) X, the bracket symmetric like A."""
    a, b, c = QUINTIC
    gram = gemm(x, x.T)
    mix = gemm(gram, gram.T)
    kernels.kernel("optim/newton_schulz.cu", "newton_schulz_mix", T=x.dtype)(
        mix.size, gram, mix, a, b, c, len(mix), mix.size)
    return gemm(mix.T, x)  # mix is symmetric; so laid out, no copy of x is transposed


def _blend_cpu(alpha: float, p: np.ndarray, beta: float, q: np.ndarray) -> np.ndarray:
    """alpha p + beta q, rounded once."""
    wide = accumulator(p.dtype)
    y = alpha * p.astype(wide, copy=False) + beta * q.astype(wide, copy=False)
    return y.astype(p.dtype, copy=False)


def step_cpu(p: np.ndarray, g: np.ndarray, m: np.ndarray, master: np.ndarray | None,
             control: np.ndarray, shape: tuple[int, ...], group: Mapping[str, Any]) -> None:
    """Update p, m and master (in place), all (n,), from g; keeps nothing else."""
    wide = accumulator(p.dtype)
    factor, multiplier, *_ = control.tolist()
    rate = float(group["lr"] * factor)
    with np.errstate(all="ignore"):  # a gradient that overflows shows in the loss
        d = memory.widened(g, wide) * wide.type(multiplier)
        m *= wide.type(group["momentum"])
        m += d
        d = d + wide.type(group["momentum"]) * m if group["nesterov"] else m
        u = orthogonalized(d.reshape(shape[0], -1), int(group["iterations"]),
                           p.dtype).reshape(-1)
        scale = 1 - rate * group["weight_decay"]
        w = behind(p, master)
        if group["normalize"]:
            scale *= math.sqrt(shape[0]) / max(math.sqrt(float(_squares(p))), TINY)
        w *= wide.type(scale)
        w -= wide.type(rate) * u.astype(wide, copy=False)
        if w is not p:
            p[...] = w
    if master is not None:
        master[...] = w


def step_gpu(p: Array, g: Array, m: Array, master: Array | None, control: Array,
             shape: tuple[int, ...], group: Mapping[str, Any]) -> None:
    """Run the update on the GPU: matrix products, and kernels/optim/muon.cu between them."""
    settings = dict(T=p.dtype, NESTEROV=bool(group["nesterov"]), MASTER=master is not None)
    d = cupy().empty(p.size, accumulator(p.dtype))
    kernels.kernel("optim/muon.cu", "muon_direction", **settings)(
        p.size, g, m, d, control, float(group["momentum"]), p.size)
    u = orthogonalized(d.reshape(shape[0], -1), int(group["iterations"]), p.dtype).reshape(-1)
    squares = _squares(p) if group["normalize"] else None
    kernels.kernel("optim/muon.cu", "muon_update", **settings)(
        p.size, p, u, master, squares, control, float(group["lr"]),
        float(group["weight_decay"]), math.sqrt(shape[0]), TINY, p.size)


def _squares(w: Array) -> Array:
    """Return the sum of the squares of w, (), in float64: those of float32 may overflow."""
    wide = w.astype(np.float64)
    return (wide * wide).sum()
