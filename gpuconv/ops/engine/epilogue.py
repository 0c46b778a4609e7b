"""Epilogue: what a GPU kernel does with a tile of z = conv(x, w) or x w^T before it stores y.

    y = activation(z + bias + residual)       or the largest of each 2x2 pixels of it

ReLU's gradient is read from y. GELU's needs its input, which is never stored: GELU is fused only
where no gradient will be asked for.
"""

import dataclasses

from gpuconv import autograd
from gpuconv.autograd import Tensor
from gpuconv.backend import Array, is_gpu


@dataclasses.dataclass(frozen=True, eq=False)
class Epilogue:
    """Work of a GPU kernel on y (N, P, Q, K) before it is stored.

    ``pool`` and ``moments`` are results: memory that the kernel writes.
    """

    bias: Array | None = None                      # (K,)
    residual: Array | None = None                  # like y
    activation: str | None = None                  # "relu", "gelu" or None
    pool: Array | None = None                      # uint8, like the pooled y (N, P//2, Q//2, K):
    #                                                2*r + s of the first NaN, or first maximum
    moments: tuple[Array, Array] | None = None     # means and variances, (slices, K) each, of y
    rows: int = 0                                  # of y.reshape(-1, K) in a slice of ``moments``


NO_EPILOGUE = Epilogue()


def fits_epilogue(activation: str | None, x: Array, *others: Array | None) -> bool:
    """Return True if x is on a GPU and the activation, or None, can be fused with the op."""
    if not is_gpu(x.data if isinstance(x, Tensor) else x):
        return False
    return activation != "gelu" or not wants_gradient(x, *others)


def wants_gradient(*operands: Array | None) -> bool:
    """Return True if the tape will record what is computed from these operands."""
    return autograd._mode.recording and any(
        isinstance(a, Tensor) and a.requires_grad for a in operands)
