"""What may follow a convolution or a Linear layer in the same op: an activation.

    y = f(z)        z = conv(x, w) + b + residual

The GPU computes y while z is in registers, and never stores z. So f is fused if its gradient is
computed from y, or if no gradient is needed.
"""

from gpuconv import autograd
from gpuconv.autograd import Tensor
from gpuconv.backend import Array, is_gpu


def fits_epilogue(saves_result: bool, x: Array, *others: Array | None) -> bool:
    """Return whether an activation is computed by the op before it, whose operands are given.

    Args:
        saves_result: whether the gradient of the activation is computed from its result alone.
        x, others: the operands; x must be on a GPU.
    """
    if not is_gpu(x.data if isinstance(x, Tensor) else x):
        return False
    return saves_result or not wants_gradient(x, *others)


def wants_gradient(*operands: Array | None) -> bool:
    """Will the tape record what is computed from these?"""
    return autograd._mode.recording and any(
        isinstance(a, Tensor) and a.requires_grad for a in operands)
