"""What may follow a convolution or a Linear layer in the same op: an activation.

    y = relu(z), gelu(z) or z       z = conv(x, w) + b + residual

The GPU computes y while z is in registers. ReLU's gradient is read from y; GELU's needs z, which
nobody has then: so GELU is in the same op only where no gradient will be asked for.
"""

from gpuconv import autograd
from gpuconv.autograd import Tensor
from gpuconv.backend import Array, is_gpu


def fits_epilogue(activation: str | None, x: Array, *others: Array | None) -> bool:
    """Is x on a GPU, and does the activation, or None, go into the op before it?"""
    if not is_gpu(x.data if isinstance(x, Tensor) else x):
        return False
    return activation != "gelu" or not wants_gradient(x, *others)


def wants_gradient(*operands: Array | None) -> bool:
    """Will the tape record what is computed from these?"""
    return autograd._mode.recording and any(
        isinstance(a, Tensor) and a.requires_grad for a in operands)
