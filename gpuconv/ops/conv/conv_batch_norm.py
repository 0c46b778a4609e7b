"""Convolution, perhaps a 2x2 max pool, batch normalisation and what follows it, as one op.

    z = conv(x, w)                            or the largest of each 2x2 pixels of it
    y = activation(gamma (z - mean) / sqrt(var + eps) + beta + residual)

The GPU takes mean and variance of z, in pieces, while z is in registers, so that normalising reads
z once instead of twice; and with the pool only a quarter of the convolution's result ever reaches
memory, with one byte that says where each maximum sat. Then the sums of the pieces merge, and one
pass over z gives y. Backward is that of the three ops, one after the other: see conv2d.py,
max_pool.py, batch_norm.py. Engines that have no such epilogue run the ops one after the other in
forward, too.

On the CPU it is the ops, one after the other, with their own bits.
"""

from typing import Any

from gpuconv.backend import Array
from gpuconv.ops.checks import check_precision
from gpuconv.ops.conv import gpu_dispatch
from gpuconv.ops.conv.conv2d import Conv2d, conv2d, conv_window
from gpuconv.ops.conv.conv_max_pool import HALVES
from gpuconv.ops.engine.composite import Composite
from gpuconv.ops.engine.epilogue import fits_epilogue
from gpuconv.ops.norm import BatchNorm, batch_norm, normaliser
from gpuconv.ops.pool import MaxPool2d, max_pool2d
from gpuconv.ops.window import IntOrPair, Padding


def conv_batch_norm(x: Array, w: Array, gamma: Array | None, beta: Array | None,
                    running_mean: Array | None, running_var: Array | None, *,
                    stride: IntOrPair = 1, padding: Padding | str = 0, dilation: IntOrPair = 1,
                    pool: bool = False, training: bool, momentum: float = 0.1, eps: float = 1e-5,
                    activation: str | None = None, residual: Array | None = None,
                    num_batches_tracked: Array | None = None, precision: str = "ieee") -> Array:
    """``conv2d`` without bias, ``max_pool2d(., 2)`` if wanted, then ``batch_norm``.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        w: filters (K, R, S, C), dtype of x.
        gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked: as in
            ``batch_norm``.
        stride, padding, dilation, precision: as in ``conv2d``.
        pool: keep the largest of each 2x2 pixels; what is left over at an odd edge goes.
        activation: name of an activation, such as "relu", applied to the result; or None.
        residual: shape of the result, dtype of x, added before the activation; or None.

    Returns:
        (N, P, Q, K), or (N, P // 2, Q // 2, K) with ``pool``; dtype of x.

    Raises:
        ValueError, TypeError: where one of the three ops does.

    >>> import numpy as np
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 8.0]).reshape(2, 2, 2, 1)
    >>> conv_batch_norm(x, np.ones((1, 1, 1, 1)), None, None, None, None, pool=True,
    ...                 training=True).ravel().round(3)
    array([-1.,  1.])

    Source: see ``batch_norm``; Chan, Golub, LeVeque 1979 for the merging of sums.
    """
    window = conv_window("conv_batch_norm", x, w, None, stride, padding, dilation)
    check_precision("conv_batch_norm", precision)
    P, Q = window.out_shape(*x.shape[1:3])
    if pool:
        try:
            P, Q = HALVES.out_shape(P, Q)
        except ValueError as error:
            raise ValueError(f"conv_batch_norm: pool: {error}") from None
    norm = normaliser("conv_batch_norm", (x.shape[0], P, Q, w.shape[0]), x, gamma, beta,
                      running_mean, running_var, num_batches_tracked, training, momentum, eps,
                      activation, residual)
    if not fits_epilogue(True, x):
        y = conv2d(x, w, stride=stride, padding=padding, dilation=dilation, precision=precision)
        return batch_norm(max_pool2d(y, 2) if pool else y, gamma, beta, running_mean, running_var,
                          training=training, momentum=momentum, eps=eps, activation=activation,
                          residual=residual, num_batches_tracked=num_batches_tracked)
    operands = [gamma, beta] if residual is None else [gamma, beta, residual]
    return ConvBatchNorm(Conv2d(window, 1, precision), MaxPool2d(HALVES) if pool else None, norm,
                         len(operands))(x, w, *operands)


class ConvBatchNorm(Composite):
    """Saves: what ``Conv2d``, ``MaxPool2d`` and ``BatchNorm`` save.

    That is x, w, the marks of the pool, and z, from which BatchNorm computes xhat again.
    """

    depends_on = "window", "all", "all", "all", "pixel"  # x, w, gamma, beta, residual

    def __init__(self, conv: Conv2d, pool: MaxPool2d | None, norm: BatchNorm, inputs: int):
        self.conv, self.pool, self.norm = conv, pool, norm
        super().__init__((conv, 2), *([(pool, 0)] if pool else []), (norm, inputs))

    def fused_gpu(self, x: Any, w: Any, gamma: Any, beta: Any, residual: Any = None) -> Any:
        conv, pool, norm = self.conv, self.pool, self.norm
        taps = conv.save(x, w)
        epilogue = gpu_dispatch.fused_epilogue(conv.shape, x.dtype, conv.precision,
                                               pool=pool is not None, moments=norm.training)
        if epilogue is None:
            return None
        z = gpu_dispatch.forward(conv.shape, x, taps, conv.precision, epilogue)
        if pool:
            pool.save(conv.shape.y_shape, epilogue.pool)
        return norm.forward_gpu(z, gamma, beta, residual, epilogue.moments, epilogue.rows)
