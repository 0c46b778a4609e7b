"""Adam, and AdamW with its weight decay apart, as PyTorch defines them.

    t = t + 1                                         steps of this parameter, 0 at first
    d = g + weight_decay * p                          Adam: decay is part of the gradient
    p = (1 - lr * weight_decay) * p,  d = g           AdamW: decay acts on p alone
    m = m + (1 - beta1) * (d - m)                     mean of d, 0 at first
    v = beta2 * v + (1 - beta2) * d * d               mean of its square, 0 at first
    p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
      = p - lr r / (1 - beta1^t) * m / (sqrt(v) + eps r)           r = sqrt(1 - beta2^t)

The two divisors with t in them undo that m and v began at 0; the last line, which is what runs, has
them in two numbers per step. A parameter that is frozen for a while does not count those steps.

The arithmetic, m and v are in accumulator(dtype of p): float32 for the 16-bit floats, whose p is
rounded once, at the end. There is no wider copy of a 16-bit p: an update below half a unit in its
last place is lost.

Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1;
Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import Array, accumulator, is_gpu
from gpuconv.optim.flat import Flat, pieces
from gpuconv.optim.optimizer import Optimizer

SMALLEST = 1e-30  # eps: eps r must not be 0 in float32, else a gradient of 0 gives 0 / (0 + 0)


class Adam(Optimizer):
    """Steps of about lr per parameter, whatever the size of its gradient.

    A group keeps the pair ``betas`` as two settings, "beta1" and "beta2"; a group given to the
    constructor may have either form. ``state_dict`` holds m and v under PyTorch's names "exp_avg.3"
    and "exp_avg_sq.3", and under "step" the steps of all parameters, by position.

    Args:
        params: Parameters, or groups of them: dicts with "params" and their own settings.
        lr: learning rate; at each step it is multiplied by ``factor``, which a schedule sets.
        betas: shares of m and of v that are kept, each 0 <= beta < 1.
        eps: added to the root of v.
        weight_decay: pull towards 0; part of the gradient, so v divides it too.

    Raises:
        ValueError: lr or weight_decay is negative, a beta is outside 0 <= beta < 1, eps is not
            positive, no parameters, one twice, or one that another optimiser holds.
        TypeError: something is no Parameter, or betas is no pair.

    >>> from gpuconv.autograd import Parameter
    >>> p = Parameter(np.array([1.0, 2.0]))
    >>> adam = Adam([p], lr=0.25)
    >>> p.grad[...] = 3, -0.001; adam.step(); p.data.round(5)
    array([0.75, 2.25])
    """

    saved = "exp_avg", "exp_avg_sq"
    decoupled: ClassVar[bool] = False  # does weight decay act on p alone?

    def __init__(self, params: Iterable[Any], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, **self._pair(betas), eps=eps,
                                      weight_decay=weight_decay))
        self.counters["step"] = np.zeros(sum(len(g["params"]) for g in self.groups), np.int64)

    def _pair(self, betas: Any) -> dict[str, Any]:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"{self.name}: betas is {betas!r}, wanted two numbers")
        return dict(beta1=betas[0], beta2=betas[1])

    def _group(self, number: int, group: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(group, Mapping) and "betas" in group and not {"beta1", "beta2"} & set(group):
            rest = {name: value for name, value in group.items() if name != "betas"}
            group = rest | self._pair(group["betas"])
        return super()._group(number, group, settings)

    def check(self, group: Mapping[str, Any]) -> None:
        """Nothing negative (nor NaN), means that forget, an eps that keeps 0/0 away."""
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{self.name}: {name} is {group[name]}, wanted at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= group[name] < 1:
                raise ValueError(f"{self.name}: {name} is {group[name]}, wanted 0 <= {name} < 1")
        if not group["eps"] >= SMALLEST:
            raise ValueError(f"{self.name}: eps is {group['eps']}, wanted at least {SMALLEST}")

    def state_dtype(self, flat: Flat) -> np.dtype:
        """Wide: both moments are long sums."""
        return accumulator(flat.data.dtype)

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any], lr: float) -> None:
        """One launch, or on the CPU one pass; one for each number of steps that occurs."""
        m, v = (flat.state[name] if name in flat.state else
                flat.new_state(name, self.state_dtype(flat)) for name in self.saved)
        beta1, beta2, decay = (float(group[name]) for name in ("beta1", "beta2", "weight_decay"))
        step = step_gpu if is_gpu(flat.data) else step_cpu
        for piece, t in self._counted(flat, part):
            r = math.sqrt(1 - beta2 ** t)
            step(flat.data[piece], flat.grad[piece], m[piece], v[piece],
                 lr=lr * r / (1 - beta1 ** t), eps=float(group["eps"]) * r, beta1=beta1,
                 beta2=beta2, decay=0.0 if self.decoupled else decay,
                 keep=1 - lr * decay if self.decoupled else 1.0)

    def _counted(self, flat: Flat, part: slice) -> list[tuple[slice, int]]:
        """Count this step; the pieces of the part whose parameters have made equally many."""
        inside = [(start, position) for start, (position, p) in
                  zip(flat.starts, flat.members, strict=True)
                  if part.start <= start < part.stop and p.requires_grad]
        steps, positions = self.counters["step"], [position for _, position in inside]
        steps[positions] += 1
        pieces: list[tuple[int, int]] = []  # where each begins, steps
        for (start, _), t in zip(inside, steps[positions].tolist(), strict=True):
            if not pieces or pieces[-1][1] != t:
                pieces.append((start, t))
        ends = [*(start for start, _ in pieces[1:]), part.stop]
        return [(slice(start, end), t) for (start, t), end in zip(pieces, ends, strict=True)]


class AdamW(Adam):
    """Adam with decoupled weight decay: each step shrinks p by lr * weight_decay, whatever v is.

    Args, settings, state and errors are Adam's; the default decay is 0.01.

    >>> from gpuconv.autograd import Parameter
    >>> p = Parameter(np.array([1.0]))
    >>> AdamW([p], lr=0.5, weight_decay=0.5).step(); p.data  # a gradient of 0
    array([0.75])
    """

    decoupled = True

    def __init__(self, params: Iterable[Any], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)


def step_cpu(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, *, lr: float, eps: float,
             beta1: float, beta2: float, decay: float, keep: float) -> None:
    """Update p, m and v (in place) from g, all (n,), piece by piece; keeps nothing else.

    lr and eps are those of the last line of the module's docstring; decay is Adam's, keep AdamW's.
    """
    wide = accumulator(p.dtype)

    def chunk(piece: slice) -> None:
        old, mean, square = p[piece], m[piece], v[piece]
        w, d = memory.widened(old, wide), memory.widened(g[piece], wide)
        t = memory.empty(mean.shape, wide)
        with np.errstate(all="ignore"):  # a gradient that overflows shows in the loss
            if keep != 1:
                w *= keep
            if decay:
                pull = np.multiply(w, decay, out=memory.empty(mean.shape, wide))
                d = np.add(d, pull, out=pull)
            np.subtract(d, mean, out=t)
            t *= 1 - beta1
            mean += t
            np.multiply(d, d, out=t)
            t *= 1 - beta2
            square *= beta2
            square += t
            np.sqrt(square, out=t)
            t += eps
            np.divide(mean, t, out=t)
            t *= lr
            w -= t
            if w is not old:
                old[...] = w

    threads.each(chunk, pieces(p.size))


def step_gpu(p: Array, g: Array, m: Array, v: Array, *, lr: float, eps: float, beta1: float,
             beta2: float, decay: float, keep: float) -> None:
    """The same, in kernels/adam.cu."""
    items = 16 // p.dtype.itemsize  # that a thread updates at a time
    kernels.kernel("adam.cu", "adam_step", T=p.dtype, I=kernels.index(p))(
        -(-p.size // items), p, g, m, v, lr, eps, 1 - beta1, beta2, 1 - beta2, decay, keep, p.size)
