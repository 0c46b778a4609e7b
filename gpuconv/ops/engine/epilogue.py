"""Epilogue: what a GPU kernel does with a tile of z = conv(x, w) or x w^T before it stores y.

    y = activation(z + bias + residual)       or the largest of each 2x2 pixels of it

The input of the activation is never stored. So an activation is fused if its gradient is computed
from y, as ReLU's is, or if no gradient is needed.
"""

import dataclasses

from gpuconv import autograd
from gpuconv.autograd import Tensor
from gpuconv.backend import Array, is_gpu
from gpuconv.recompute import replay, will_recompute


@dataclasses.dataclass(frozen=True, eq=False)
class Epilogue:
    """Work of a GPU kernel on y (N, P, Q, K) before it is stored.

    ``pool`` and ``moments`` are results: memory that the kernel writes.
    """

    bias: Array | None = None                      # (K,)
    residual: Array | None = None                  # like y
    activation: str | None = None                  # its name, or None
    pool: Array | None = None                      # uint8, like the pooled y (N, P//2, Q//2, K):
    #                                                2*r + s of the first NaN, or first maximum
    moments: tuple[Array, Array] | None = None     # means and variances, (slices, K) each, of y
    rows: int = 0                                  # of y.reshape(-1, K) in a slice of ``moments``


NO_EPILOGUE = Epilogue()


def fits_epilogue(saves_result: bool, x: Array, *others: Array | None) -> bool:
    """Return True if x is on a GPU and an activation can be fused with the op of these operands.

    Args:
        saves_result: whether the gradient of the activation is computed from its result alone.
        x, others: the operands.
    """
    if not is_gpu(x.data if isinstance(x, Tensor) else x):
        return False
    # both runs of a recomputed function decide alike: their bits must be the same
    return saves_result or replay(lambda: not (will_recompute() or wants_gradient(x, *others)))


def wants_gradient(*operands: Array | None) -> bool:
    """Return True if the tape will record what is computed from these operands."""
    return autograd._mode.recording and any(
        isinstance(a, Tensor) and a.requires_grad for a in operands)
