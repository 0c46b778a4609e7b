"""Dropout: each element is zeroed with probability p, the others grow by 1/(1-p).

    keep[i] = words(key, step)[i] >= p * 2**32
    y[i]    = x[i] / (1-p)  where keep[i], else 0
    gx[i]   = gy[i] / (1-p) where keep[i], else 0

The mask is a function of (key, step, index): backward draws it again instead of keeping it, the CPU
and the GPU draw the same bits, and a resumed run continues with the masks it would have drawn. A
captured training step keeps the step in device memory: there ``step + counter[0]`` counts.

Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent
neural networks from overfitting", JMLR 15, 2014; CS231n, "Neural networks part 2", on the inverted
form.
"""

import math
from typing import Any

import numpy as np

from gpuconv import kernels, memory, random, threads
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, accumulator, cupy, get_array_module, is_array, is_gpu
from gpuconv.checks import check_count, check_number, no_array, short
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.elementwise.cpu_philox import words_at_least
from gpuconv.recompute import replay


def dropout(x: Array, p: float = 0.5, *, training: bool = True,
            key: tuple[int, int] | None = None, step: int | None = None,
            counter: Array | None = None) -> Array:
    """Zero each element with probability p, and scale the others by 1/(1-p).

    Args:
        x: Tensor or array of any shape.
        p: probability of a zero, 0 to 1, as in PyTorch: with 0 the result is x, with 1 all zeros.
        training: if not, the result is x itself.
        key: (seed, stream), two words of 32 bits, for ``gpuconv.random``. Default: both key and
            step from ``random.fresh()``, other ones at each call, the same again after ``seed``.
        step: which of the masks of this key, 0 .. 2**64 - 1; it comes with a key.
        counter: (1,) int64 on the GPU, beside x: added to step by the kernels, so that a captured
            graph draws other masks at each replay. Backward reads it again: until then it stays.

    Returns:
        Shape and dtype of x; a Tensor if x is one. Elements are counted in C order, whatever the
        memory layout of x. A zeroed element is 0 even where x is inf or NaN.

    Raises:
        ValueError: p, key or step is out of range, or one of key and step came without the other,
            or a counter without them.
        TypeError: x is not floating-point, or the counter not as above.

    >>> dropout(np.ones(8), 0.5, key=(0, 0), step=0)
    array([0., 2., 2., 2., 2., 0., 2., 0.])
    """
    check_arrays("dropout", x=x)
    check_number("dropout", "p", p, least=0, most=1)
    if (key is None) != (step is None):
        raise ValueError(f"dropout: key is {short(key)}, step is {short(step)}: wanted both or "
                         "neither")
    if counter is not None:
        _check_counter(counter, x, key)
    if not training or p == 0:
        return x
    if key is None or step is None:
        key, step = replay(random.fresh)
    if not isinstance(key, (tuple, list)) or len(key) != 2:
        raise TypeError(f"dropout: key is {short(key)}, wanted (seed, stream)")
    seed, stream = (check_count("dropout", "a word of the key", k, 0, random.LOW) for k in key)
    step = check_count("dropout", "step", step, 0, 2**64 - 1)
    return Dropout(p, (seed, stream), step, counter)(x)


def _check_counter(counter: Array, x: Array, key: tuple[int, int] | None) -> None:
    if not is_array(counter):
        raise TypeError(f"dropout: counter is {no_array(counter, 'counter')}")
    if not is_gpu(counter) or counter.dtype != np.int64 or counter.shape != (1,):
        raise TypeError(f"dropout: counter is {type(counter).__name__} "
                        f"{getattr(counter, 'dtype', '')} {getattr(counter, 'shape', '')}, "
                        "wanted a GPU array of int64, shape (1,)")
    if key is None:
        raise ValueError("dropout: a counter without key and step")
    get_array_module(x.data if isinstance(x, Tensor) else x, counter)


class Dropout(Op):
    """Saves: no array; p, key, step, and the counter it was given."""

    depends_on, multiply_adds = "pixel", 0

    def __init__(self, p: float, key: tuple[int, int], step: int, counter: Array | None = None):
        self.key, self.step, self.counter = key, step, counter
        self.threshold = math.ceil(p * 2**32)  # word >= threshold is word >= p * 2**32
        self.scale = 1 / (1 - p) if p < 1 else 0.0

    def forward_cpu(self, x: Any) -> Any:
        y, wide = memory.empty(x.shape, x.dtype), accumulator(x.dtype)
        flat, out = np.ascontiguousarray(x).reshape(-1), y.reshape(-1)
        bits = f"u{wide.itemsize}"

        def work(quarters: slice) -> None:
            piece = slice(4 * quarters.start, 4 * quarters.stop)
            here = out[piece]
            v = here if here.dtype == wide else threads.workspace("v", here.size, wide)
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

    # -- GPU: kernels/elementwise/dropout.cu -------------------------------------------------------

    def forward_gpu(self, x: Any) -> Any:
        y = cupy().empty(x.shape, x.dtype)
        launch = kernels.kernel("elementwise/dropout.cu", "dropout", T=x.dtype)
        launch(-(-x.size // max(4, 16 // x.dtype.itemsize)), x, y, self.counter, x.size, *self.key,
               self.step, self.threshold, self.scale)
        return y

    def backward_gpu(self, gy: Any) -> tuple:
        return (self.forward_gpu(gy),)
