"""Convolution, an activation and a 2x2 max pool, as one op.

    y[n,p,q,k] = max over r,s < 2 of  activation(conv(x, w) + b)[n, 2p+r, 2q+s, k]

On the GPU only a quarter of the convolution's result ever reaches memory, with one byte that says
where each maximum sat. Backward goes through the activation, whose gradient is computed from y,
then through the pool's marks: see conv2d.py, max_pool.py. Engines that have no such epilogue run
the pool as an op of its own; the CPU runs all three one after the other.
"""

from typing import Any

from gpuconv.backend import Array
from gpuconv.ops.checks import check_precision
from gpuconv.ops.conv import gpu_dispatch
from gpuconv.ops.conv.conv2d import Conv2d, conv2d, conv_window
from gpuconv.ops.elementwise import (
    ACTIVATIONS,
    activated,
    check_activation,
    fused_activation,
    saves_result,
)
from gpuconv.ops.engine.composite import Composite
from gpuconv.ops.engine.epilogue import Epilogue, fits_epilogue
from gpuconv.ops.pool import MaxPool2d, max_pool2d
from gpuconv.ops.window import IntOrPair, Padding, Window

HALVES = Window((2, 2), (2, 2))


def conv_max_pool(x: Array, w: Array, b: Array | None = None, *, stride: IntOrPair = 1,
                  padding: Padding | str = 0, dilation: IntOrPair = 1, precision: str = "ieee",
                  activation: str | None = None) -> Array:
    """``conv2d``, the activation, then ``max_pool2d(., 2)``.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        w: filters (K, R, S, C), dtype of x.
        b: bias (K,), or None.
        stride, padding, dilation, precision, activation: as in ``conv2d``.

    Returns:
        (N, P // 2, Q // 2, K), dtype of x; what is left over at an odd edge goes.

    Raises:
        ValueError, TypeError: where ``conv2d`` or ``max_pool2d`` does.

    >>> import numpy as np
    >>> conv_max_pool(np.arange(4.0).reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1))).item()
    3.0
    """
    window = conv_window("conv_max_pool", x, w, b, stride, padding, dilation)
    check_precision("conv_max_pool", precision)
    check_activation("conv_max_pool", activation)
    try:
        HALVES.out_shape(*window.out_shape(*x.shape[1:3]))
    except ValueError as error:
        raise ValueError(f"conv_max_pool: {error}") from None
    if not fits_epilogue(saves_result(activation), x, w, b):
        y = conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation, precision=precision)
        if activation == "relu":  # of fewer pixels, with the same bits
            return activated(max_pool2d(y, 2), activation)
        return max_pool2d(activated(y, activation), 2)
    return ConvMaxPool(Conv2d(window, 1, precision), activation)(x, w, b)


class ConvMaxPool(Composite):
    """Saves: what ``Conv2d`` and ``MaxPool2d`` save, and y if there is an activation."""

    depends_on = "window", "all", "all"  # x, w, b

    def __init__(self, conv: Conv2d, activation: str | None):
        self.conv, self.pool, self.activation = conv, MaxPool2d(HALVES), activation
        # backward begins with the activation, whose gradient is computed from the pooled y
        last = [] if activation is None else [(ACTIVATIONS[activation](), 0)]
        super().__init__((conv, 3), (self.pool, 0), *last)

    def fused_gpu(self, x: Any, w: Any, b: Any) -> Any:
        conv = self.conv
        taps = conv.save(x, w, b)
        epilogue = gpu_dispatch.fused_epilogue(conv.shape, x.dtype, conv.precision, bias=b,
                                               activation=self.activation, pool=True)
        y = gpu_dispatch.forward(conv.shape, x, taps, conv.precision,
                                 epilogue or Epilogue(b, activation=self.activation))
        if epilogue:
            self.pool.save(conv.shape.y_shape, epilogue.pool)
        else:
            y = self.pool.forward_gpu(y)
        if op := fused_activation(self.activation, y, self.needs):
            self.fused_ops[-1] = op
        return y
