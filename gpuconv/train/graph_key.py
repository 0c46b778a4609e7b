"""Graph key of a captured step; name of the op that cannot be captured."""

from typing import Any

from gpuconv.autograd import Op, Tensor
from gpuconv.backend import is_gpu
from gpuconv.nn import Module
from gpuconv.optim import Optimizer
from gpuconv.train.callback import Run


def graph_key(run: Run) -> list[Any]:
    """Return what a graph is captured with: addresses, settings, modes, frozen parameters."""
    others = [part for part in (run.ema, run.scale) if part is not None]
    return _comparable([*(vars(part) for part in (*run.model.modules(), *others)),
                        run.optimizer.groups])


def _comparable(value: Any) -> Any:
    """Return a value that compares as a graph sees it: arrays by address, objects by identity."""
    if isinstance(value, Tensor):
        return _comparable([value.data, value.grad, value.requires_grad])
    if is_gpu(value):
        return value.data.ptr, value.shape
    if isinstance(value, dict):
        return {key: _comparable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_comparable(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) else id(value)


def failing_op(error: BaseException) -> str:
    """Return the class name of the innermost op, layer or optimiser that raised an error."""
    name, frame = "the step", error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if isinstance(owner, (Op, Module, Optimizer)):
            name = type(owner).__name__
        frame = frame.tb_next
    return name
