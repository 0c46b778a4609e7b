"""Dropout: each element is zeroed with probability p, the others grow by 1/(1-p).

    keep[i] = words(key, step)[i] >= p * 2**32
    y[i]    = x[i] / (1-p)  where keep[i], else 0
    gx[i]   = gy[i] / (1-p) where keep[i], else 0

The mask is a function of (key, step, index): backward draws it again instead of keeping it, the CPU
and the GPU draw the same bits, and a resumed run continues with the masks it would have drawn.

Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent
neural networks from overfitting", JMLR 15, 2014; CS231n, "Neural networks part 2", on the inverted
form.
"""

import math
import operator
from typing import Any

import numpy as np

from gpuconv import kernels, memory, random, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.checkpoint import once
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.cpu.philox import words_at_least


def dropout(x: Array, p: float = 0.5, *, training: bool = True,
            key: tuple[int, int] | None = None, step: int | None = None) -> Array:
    """Zero each element with probability p, and scale the others by 1/(1-p).

    Args:
        x: Tensor or array of any shape.
        p: probability of a zero, 0 to 1, as in PyTorch: with 0 the result is x, with 1 all zeros.
        training: if not, the result is x itself.
        key: (seed, stream), two words of 32 bits, for ``gpuconv.random``. Default: both key and
            step from ``random.fresh()``, other ones at each call, the same again after ``seed``.
        step: which of the masks of this key, 0 .. 2**64 - 1; it comes with a key.

    Returns:
        Shape and dtype of x; a Tensor if x is one. Elements are counted in C order, whatever the
        memory layout of x. A zeroed element is 0 even where x is inf or NaN.

    Raises:
        ValueError: p, key or step is out of range, or one of key and step came without the other.
        TypeError: x is not floating-point.

    >>> dropout(np.ones(8), 0.5, key=(0, 0), step=0)
    array([0., 2., 2., 2., 2., 0., 2., 0.])
    """
    check_arrays("dropout", x=x)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is {p}, wanted 0 to 1")
    if (key is None) != (step is None):
        raise ValueError(f"dropout: key is {key}, step is {step}: wanted both or neither")
    if not training or p == 0:
        return x
    if key is None or step is None:
        key, step = once(random.fresh)
    seed, stream = (operator.index(k) for k in key)
    step = operator.index(step)
    if not (0 <= seed <= random.LOW and 0 <= stream <= random.LOW and 0 <= step < 2**64):
        raise ValueError(f"dropout: key {key} is not two words of 32 bits, or step {step} "
                         "is outside 0..2**64 - 1")
    return Dropout(p, (seed, stream), step)(x)


class Dropout(Op):
    """Saves: no array; p, key and step."""

    def __init__(self, p: float, key: tuple[int, int], step: int):
        self.key, self.step = key, step
        self.threshold = math.ceil(p * 2**32)  # word >= threshold is word >= p * 2**32
        self.scale = 1 / (1 - p) if p < 1 else 0.0

    def forward_cpu(self, x: Any) -> Any:
        y, wide = memory.empty(x.shape, x.dtype), accumulator(x.dtype)
        flat, out = np.ascontiguousarray(x).reshape(-1), y.reshape(-1)
        bits = f"u{wide.itemsize}"

        def work(quarters: slice) -> None:
            piece = slice(4 * quarters.start, 4 * quarters.stop)
            here = out[piece]
            v = here if here.dtype == wide else threads.scratch("v", here.size, wide)
            keep = words_at_least(self.threshold, quarters.start, quarters.stop - quarters.start,
                                  self.step, self.key)
            with np.errstate(all="ignore"):
                np.multiply(flat[piece], wide.type(self.scale), out=v, dtype=wide)
                np.multiply(v.view(bits), keep[:v.size], out=v.view(bits))  # inf * 0 is not 0
                if v is not here:
                    here[...] = v

        threads.each(work, threads.chunks(-(-x.size // 4), 16))  # bytes of two words
        return y

    def backward_cpu(self, gy: Any) -> tuple:
        return (self.forward_cpu(gy),)  # the same mask, the same scale

    # -- GPU: kernels/dropout.cu -------------------------------------------------------

    def forward_gpu(self, x: Any) -> Any:
        y = cupy().empty(x.shape, x.dtype)
        launch = kernels.kernel("dropout.cu", "dropout", T=x.dtype)
        launch(-(-x.size // 4), x, y, x.size, *self.key, self.step, self.threshold, self.scale)
        return y

    def backward_gpu(self, gy: Any) -> tuple:
        return (self.forward_gpu(gy),)
