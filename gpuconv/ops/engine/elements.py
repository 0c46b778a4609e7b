"""Element-by-element loops on the CPU, in chunks, and the sums that undo broadcasting.

16-bit arrays are computed in float32 and rounded once. A division by zero or an overflow gives inf
or NaN without a warning, as on a GPU.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import memory, threads
from gpuconv.backend import Array, accumulator, is_gpu
from gpuconv.ops.engine.sums import sum_axes

UFUNCS: dict[Any, Any] = {
    operator.add: np.add, operator.sub: np.subtract, operator.mul: np.multiply,
    operator.truediv: np.divide, operator.neg: np.negative}


def wide(a: Any) -> Any:
    """Return the array in its accumulator's dtype, or itself if that is its own."""
    return a.astype(accumulator(a.dtype), copy=False) if hasattr(a, "dtype") else a


def calculate(f: Callable[..., Array], *operands: Any) -> Array:
    """Return ``f(*operands)`` for an elementwise f, in the dtype of the arrays.

    Arrays of one shape on the CPU are computed in chunks on all processors. f sees 16-bit arrays as
    float32, and other operands as they are.
    """
    arrays = [a for a in operands if hasattr(a, "dtype")]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if is_gpu(arrays[0]):
        return f(*map(wide, operands)).astype(dtype, copy=False)
    if any(a.shape != shape for a in arrays):
        with np.errstate(all="ignore"):
            return f(*map(wide, operands)).astype(dtype, copy=False)

    f = UFUNCS.get(f, f)
    return write(f if isinstance(f, np.ufunc) else
                 lambda *parts, out: np.copyto(out, f(*parts)), *operands)


def write(f: Callable[..., Any], *operands: Any) -> Array:
    """Return the result of ``f(*operands, out=y)`` for CPU arrays of one shape, in chunks."""
    arrays = [a for a in operands if hasattr(a, "dtype")]
    y, flat = memory.empty(arrays[0].shape, arrays[0].dtype), [
        a.reshape(-1) if hasattr(a, "dtype") else a for a in operands]
    out, accumulated = y.reshape(-1), accumulator(y.dtype)

    def work(chunk: slice) -> None:
        parts, here = (wide(a[chunk]) if hasattr(a, "dtype") else a for a in flat), out[chunk]
        into = here if y.dtype == accumulated else threads.workspace("y", here.size, accumulated)
        with np.errstate(all="ignore"):  # each thread has its own error state
            f(*parts, out=into)
            if into is not here:
                here[...] = into

    threads.each(work, threads.chunks(y.size, accumulated.itemsize))
    return y


def total(x: Array, axes: tuple[int, ...]) -> Array:
    """Return the sum over some axes, in float64; however long, it is off by less than 1e-6."""
    return wide(x).sum(axis=axes, dtype=np.float64) if is_gpu(x) else sum_axes(x, axes)


def sum_to(g: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """Return the gradient of an operand of ``shape`` that was broadcast to the shape of g.

    Its dtype is that of g, unless another is given.

    >>> sum_to(np.ones((2, 3)), (2, 1))
    array([[3.],
           [3.]])
    """
    dtype = dtype or g.dtype
    if g.shape != shape:
        lead = g.ndim - len(shape)
        axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n != g.shape[lead + i]))
        g = total(g, axes).reshape(shape)
    with np.errstate(all="ignore"):  # what is too large for the dtype
        return g.astype(dtype, copy=False)
