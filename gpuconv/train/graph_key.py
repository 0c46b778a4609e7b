"""What a captured step has baked in, to be compared; and who asked for what it cannot hold."""

from typing import Any

from gpuconv.autograd import Op, Tensor
from gpuconv.backend import is_gpu
from gpuconv.nn import Module
from gpuconv.optim import Optimizer
from gpuconv.train.callback import Run


def baked(run: Run) -> list[Any]:
    """What a graph has baked in: addresses, settings, modes, what is frozen; equal or changed."""
    others = [part for part in (run.ema, run.scale) if part is not None]
    return _plain([*(vars(part) for part in (*run.model.modules(), *others)),
                   run.optimizer.groups])


def _plain(value: Any) -> Any:
    """A value, by what a graph knows of it: of an array the address."""
    if isinstance(value, Tensor):
        return _plain([value.data, value.grad, value.requires_grad])
    if is_gpu(value):
        return value.data.ptr, value.shape
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) else id(value)


def culprit(error: BaseException) -> str:
    """The op (or layer, or optimiser) that raised it, by its name."""
    found, frame = "the step", error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if isinstance(owner, (Op, Module, Optimizer)):
            found = type(owner).__name__
        frame = frame.tb_next
    return found
