"""Adam, and AdamW with its weight decay apart, as PyTorch defines them.

    t = t + 1                                         steps of this parameter, 0 at first
    d = g + weight_decay * p                          Adam: decay is part of the gradient
    p = (1 - lr * weight_decay) * p,  d = g           AdamW: decay acts on p alone
    m = beta1 * m + (1 - beta1) * d                   mean of d, 0 at first
    v = beta2 * v + (1 - beta2) * d * d               mean of its square, 0 at first
    p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
      = p - lr r / (1 - beta1^t) * m / (sqrt(v) + eps r)           r = sqrt(1 - beta2^t)

The two divisors with t correct for m and v being 0 at first. The last line is what runs: there they
are two numbers per step. A parameter does not count the steps in which it is frozen. On a GPU a
small kernel counts, and computes the two numbers.

The arithmetic, m and v are in accumulator(dtype of p): float32 for the 16-bit floats, whose p is
rounded once, at the end. Then an update below half a unit in the last place of p is lost, unless p
has a wider copy (``master``), which is updated in its place.

Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1;
Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019; for the wider copy
Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.backend import Array, accumulator, array_device, cupy, is_gpu
from gpuconv.checks import check_number, short
from gpuconv.optim.flat import Flat, behind, cpu_chunks
from gpuconv.optim.optimizer import Optimizer

SMALLEST = 1e-30  # eps: eps r must not be 0 in float32, else a gradient of 0 gives 0 / (0 + 0)


class Adam(Optimizer):
    """Adam: steps of about lr per parameter, independent of the size of its gradient.

    A group stores the pair ``betas`` as two settings, "beta1" and "beta2"; a group given to the
    constructor may have either form. ``state_dict`` holds m and v under PyTorch's names "exp_avg.3"
    and "exp_avg_sq.3", and under "step" the step counts of all parameters, by position.

    Args:
        params: Parameters, or groups of them: dicts with "params" and their own settings.
        lr: learning rate; at each step it is multiplied by ``factor``, which a schedule sets.
        betas: shares of m and of v that are kept, each 0 <= beta < 1.
        eps: added to the root of v.
        weight_decay: factor of p that is added to the gradient, so v divides it, too.
        master: whether to keep float32 copies of 16-bit parameters ("master.3" in ``state_dict``),
            which the updates act on.

    Raises:
        ValueError: lr or weight_decay is negative, a beta is outside 0 <= beta < 1, eps is not
            positive, no parameters, or one twice.
        TypeError: something is no Parameter, or betas is no pair.

    >>> from gpuconv.autograd import Parameter
    >>> p = Parameter(np.array([1.0, 2.0]))
    >>> adam = Adam([p], lr=0.25)
    >>> p.grad[...] = 3, -0.001; adam.step(); p.data.round(5)
    array([0.75, 2.25])
    """

    saved = "exp_avg", "exp_avg_sq"
    decoupled: ClassVar[bool] = False  # whether weight decay acts on p alone

    def __init__(self, params: Iterable[Any], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, master: bool = False):
        super().__init__(params, dict(lr=lr, **self._pair(betas), eps=eps,
                                      weight_decay=weight_decay), master)

    def _prepare(self, flats: list[list[Flat]]) -> None:
        """Allocate the step counts; on a GPU also the numbers computed from them."""
        super()._prepare(flats)
        self.new_counter("step")
        for flat in filter(lambda flat: is_gpu(flat.data), self.all_flats()):
            with array_device(flat.data):
                positions = np.array([position for position, _ in flat.members], np.int32)
                flat.work["positions"] = cupy().asarray(positions)
                flat.work["numbers"] = cupy().zeros((len(positions), 4),
                                                    accumulator(flat.data.dtype))

    def _pair(self, betas: Any) -> dict[str, Any]:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"{self.name}: betas is {short(betas)}, wanted two numbers")
        return dict(beta1=betas[0], beta2=betas[1])

    def _group(self, number: int, group: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(group, Mapping) and "betas" in group and not {"beta1", "beta2"} & set(group):
            rest = {name: value for name, value in group.items() if name != "betas"}
            group = rest | self._pair(group["betas"])
        return super()._group(number, group, settings)

    def check(self, group: Mapping[str, Any]) -> None:
        """Check that nothing is negative or NaN, that betas are below 1, and that eps is not 0."""
        super().check(group)
        for name in ("lr", "weight_decay"):
            check_number(self.name, name, group[name], least=0)
        for name in ("beta1", "beta2"):
            check_number(self.name, name, group[name], least=0, below=1)
        check_number(self.name, "eps", group["eps"], least=SMALLEST)

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any]) -> None:
        """Count the step, then update each run of parameters with equal step counts in one pass.

        On a GPU each pass is a launch.
        """
        m, v = map(flat.get_or_create_state, self.saved)
        master = self.master_of(flat)
        prepare, step = (prepare_gpu, step_gpu) if is_gpu(flat.data) else (prepare_cpu, step_cpu)
        members = slice(*(bisect.bisect_left(flat.starts, i) for i in (part.start, part.stop)))
        numbers = prepare(flat, members, group, self.decoupled)
        flat.cuts |= {part.start, part.stop}  # parameters beyond are frozen and do not count
        cuts = sorted(cut for cut in flat.cuts if part.start <= cut <= part.stop)
        for start, stop in itertools.pairwise(cuts):
            chunk, member = slice(start, stop), bisect.bisect_right(flat.starts, start) - 1
            step(flat.data[chunk], flat.grad[chunk], m[chunk], v[chunk],
                 None if master is None else master[chunk], numbers[member - members.start],
                 flat.control, float(group["beta1"]), float(group["beta2"]),
                 0.0 if self.decoupled else float(group["weight_decay"]))


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
                 weight_decay: float = 1e-2, master: bool = False):
        super().__init__(params, lr, betas, eps, weight_decay, master)


def prepare_cpu(flat: Flat, members: slice, group: Mapping[str, Any],
                decoupled: bool) -> list[tuple[float, float, float, float]]:
    """Count a step of some members of a flat buffer, and return the numbers of their updates.

    Returns:
        (step size, eps, keep, multiplier) of each: step size and eps are the factors of the last
        line in the module's docstring, keep is AdamW's factor of p.
    """
    factor, multiplier, *_ = flat.control.tolist()
    lr, eps, beta1, beta2 = float(group["lr"] * factor), *(
        float(group[name]) for name in ("eps", "beta1", "beta2"))
    keep = 1 - lr * float(group["weight_decay"]) if decoupled else 1.0
    positions, numbers = [position for position, _ in flat.members[members]], []
    flat.counters["step"][positions] += 1
    for t in flat.counters["step"][positions].tolist():
        r = math.sqrt(1 - beta2 ** t)
        numbers.append((lr * r / (1 - beta1 ** t), eps * r, keep, multiplier))
    return numbers


def step_cpu(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray,
             master: np.ndarray | None, numbers: tuple[float, float, float, float],
             control: np.ndarray, beta1: float, beta2: float, decay: float) -> None:
    """Update p, m, v and master in place from g, all (n,), chunk by chunk."""
    wide = accumulator(p.dtype)
    lr, eps, keep, multiplier = numbers

    def update_chunk(chunk: slice) -> None:
        old, mean, square = p[chunk], m[chunk], v[chunk]
        w = behind(old, None if master is None else master[chunk])
        d = memory.widened(g[chunk], wide)
        t = memory.empty(mean.shape, wide)
        with np.errstate(all="ignore"):  # a gradient that overflows shows in the loss
            if multiplier != 1:
                d = np.multiply(d, multiplier, out=memory.empty(mean.shape, wide))
            if keep != 1:
                w *= keep
            if decay:
                pull = np.multiply(w, decay, out=memory.empty(mean.shape, wide))
                d = np.add(d, pull, out=pull)
            np.multiply(d, 1 - beta1, out=t)
            mean *= beta1
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
            if master is not None:
                master[chunk] = w

    threads.each(update_chunk, cpu_chunks(p.size))


def prepare_gpu(flat: Flat, members: slice, group: Mapping[str, Any], decoupled: bool) -> Array:
    """Do what ``prepare_cpu`` does with kernels/optim/adam.cu; return (members, 4)."""
    positions, numbers = flat.work["positions"][members], flat.work["numbers"][members]
    _kernel("adam_prepare", flat.data, flat.state.get("master"))(
        len(positions), positions, flat.counters["step"], flat.control, numbers, group["lr"],
        group["beta1"], group["beta2"], group["eps"], group["weight_decay"] if decoupled else 0,
        len(positions), block=32)
    return numbers


def step_gpu(p: Array, g: Array, m: Array, v: Array, master: Array | None, numbers: Array,
             control: Array, beta1: float, beta2: float, decay: float) -> None:
    """Do what ``step_cpu`` does with kernels/optim/adam.cu."""
    items = 16 // p.dtype.itemsize  # that a thread updates at a time
    _kernel("adam_step", p, master)(-(-p.size // items), p, g, m, v, master, numbers, control,
                                    beta1, 1 - beta1, beta2, 1 - beta2, decay, p.size)


def _kernel(function: str, p: Array, master: Array | None) -> Callable[..., None]:
    return kernels.kernel("optim/adam.cu", function, T=p.dtype, I=kernels.index(p),
                          MASTER=master is not None)
