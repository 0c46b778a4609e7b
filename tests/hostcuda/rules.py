"""What CuPy takes, and how it adds, where NumPy does otherwise."""

import numpy as np


def supported(dtype):
    """The NumPy dtype, if CuPy has it."""
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype.kind not in "biufc" and dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def no_out(*given):
    if any(g is not None for g in given):
        raise NotImplementedError("the stand-in has no out=, nor a dtype of indices")


def no_bfloat16(name, *arrays):
    if any(getattr(getattr(a, "dtype", None), "name", "") == "bfloat16" for a in arrays):
        raise TypeError(f"Wrong type (bfloat16) of arguments for cupy_{name}")


def wide(a):
    return a.astype(np.float32) if a.dtype.name in ("float16", "bfloat16") else a


def added(a, axis, dtype, keepdims):
    """16-bit numbers are added in float32."""
    total = wide(a).sum(axis, dtype, keepdims=keepdims)
    return total.astype(a.dtype) if dtype is None and a.dtype.itemsize == 2 and (
        a.dtype.kind not in "iu") else total


def averaged(a, axis, dtype, keepdims):
    """NaN where there is nothing."""
    if dtype is None and a.dtype.kind in "biu":
        dtype = np.float64
    total = wide(a).sum(axis, dtype, keepdims=keepdims)
    count = a.size // total.size if total.size and a.size else 0
    return (total / total.dtype.type(count)).astype(dtype or a.dtype)
