"""Zeros to compare with: NumPy's maximum of an array and a scalar takes five times as long."""

from typing import Any

import numpy as np

_held: dict[np.dtype, np.ndarray] = {}  # the largest so far


def zeros(size: int, dtype: Any) -> np.ndarray:
    """Read-only zeros (size,), always the same memory.

    >>> zeros(2, "float32")
    array([0., 0.], dtype=float32)
    """
    dtype = np.dtype(dtype)
    held = _held.get(dtype)
    if held is None or held.size < size:
        held = np.zeros(size, dtype)
        held.flags.writeable = False
        _held[dtype] = held
    return held[:size]
