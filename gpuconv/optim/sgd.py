"""Stochastic gradient descent with momentum, as PyTorch defines it.

    d = g + weight_decay * p
    m = momentum * m + d                      m = 0 before the first step
    p = p - lr * d                            without momentum
    p = p - lr * m                            with
    p = p - lr * (d + momentum * m)           with Nesterov's

Weight decay is coupled: it goes through the momentum, like the gradient. The arithmetic and m are
in accumulator(dtype of p): float32 for the 16-bit floats, whose p is rounded once, at the end. Then
an update below half a unit in the last place of p is lost, unless p has a wider copy (``master``),
which is updated in its place.

Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
learning", ICML 2013, section 2 (here with the learning rate outside m); for the wider copy
Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import Array, accumulator, is_gpu
from gpuconv.checks import check_flag, check_number
from gpuconv.optim.flat import Flat, behind, cpu_chunks
from gpuconv.optim.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent.

    Args:
        params: Parameters, or groups of them: dicts with "params" and their own settings.
        lr: learning rate; at each step it is multiplied by ``factor``, which a schedule sets.
        momentum: share of m that is kept, 0 <= momentum.
        nesterov: whether to use Nesterov's momentum.
        weight_decay: factor of p in d.
        master: whether to keep float32 copies of 16-bit parameters ("master.3" in ``state_dict``),
            which the updates act on.

    Raises:
        ValueError: lr, momentum or weight_decay is negative, nesterov without momentum, no
            parameters, or one twice.
        TypeError: something is no Parameter, or nesterov or master no bool.

    >>> from gpuconv.autograd import Parameter
    >>> p = Parameter(np.array([1.0]))
    >>> sgd = SGD([p], lr=0.5)
    >>> p.grad[...] = 1; sgd.step(); p.data
    array([0.5])
    """

    saved = "momentum",

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0,
                 nesterov: bool = False, weight_decay: float = 0.0, master: bool = False):
        super().__init__(params, dict(lr=lr, momentum=momentum, nesterov=nesterov,
                                      weight_decay=weight_decay), master)

    def check(self, group: Mapping[str, Any]) -> None:
        """Check that nothing is negative or NaN, and that nesterov has momentum."""
        super().check(group)
        for name in ("lr", "momentum", "weight_decay"):
            check_number(self.name, name, group[name], least=0)
        if check_flag(self.name, "nesterov", group["nesterov"]) and not group["momentum"]:
            raise ValueError(f"{self.name}: nesterov wants momentum, which is {group['momentum']}")

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any]) -> None:
        """Update in one pass; on a GPU in one launch."""
        m = flat.get_or_create_state("momentum")[part] if group["momentum"] else None
        master = self.master_of(flat)
        step = step_gpu if is_gpu(flat.data) else step_cpu
        step(flat.data[part], flat.grad[part], m, None if master is None else master[part],
             flat.control, float(group["lr"]), float(group["momentum"]),
             float(group["weight_decay"]), bool(group["nesterov"]))


def step_cpu(p: np.ndarray, g: np.ndarray, m: np.ndarray | None, master: np.ndarray | None,
             control: np.ndarray, lr: float, momentum: float, weight_decay: float,
             nesterov: bool) -> None:
    """Update p, m and master in place from g, all (n,), chunk by chunk."""
    wide = accumulator(p.dtype)
    factor, multiplier, *_ = control.tolist()
    scaled_lr = lr * factor

    def update_chunk(chunk: slice) -> None:
        old, n = p[chunk], chunk.stop - chunk.start
        w = behind(old, None if master is None else master[chunk])
        d = memory.widened(g[chunk], wide)
        t = memory.empty(n, wide)
        with np.errstate(all="ignore"):  # a gradient that overflows shows in the loss
            if multiplier != 1:
                d = np.multiply(d, multiplier, out=memory.empty(n, wide))
            if weight_decay:
                np.multiply(w, weight_decay, out=t)
                t += d
                d = t
            if m is not None:
                v = m[chunk]
                v *= momentum
                v += d
                if nesterov:
                    ahead = np.multiply(v, momentum, out=memory.empty(n, wide))
                    d = np.add(d, ahead, out=t)
                else:
                    d = v
            w -= np.multiply(d, scaled_lr, out=t)
            if w is not old:
                old[...] = w
        if master is not None:
            master[chunk] = w

    threads.each(update_chunk, cpu_chunks(p.size))


def step_gpu(p: Array, g: Array, m: Array | None, master: Array | None, control: Array, lr: float,
             momentum: float, weight_decay: float, nesterov: bool) -> None:
    """Do what ``step_cpu`` does with kernels/optim/sgd.cu."""
    items = 16 // p.dtype.itemsize  # that a thread updates at a time
    kernels.kernel("optim/sgd.cu", "sgd_step", T=p.dtype, I=kernels.index(p),
                   MOMENTUM=m is not None, NESTEROV=nesterov, MASTER=master is not None)(
        -(-p.size // items), p, g, m, master, control, lr, momentum, weight_decay, p.size)
