"""What every public op asks of its operands, in one place."""

from typing import Any

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.backend import FLOATS, get_array_module, is_array
from gpuconv.checks import check_plain, no_array, short


def check_arrays(op: str, optional: tuple[str, ...] = (), **operands: Any) -> None:
    """Operands must be arrays (or Tensors) of one library and one floating-point dtype.

    Those named in ``optional`` may be None.

    Raises:
        TypeError: no array, CPU meets GPU, an unsupported dtype, or two dtypes.

    >>> import numpy as np
    >>> check_arrays("conv2d", x=np.ones(2), w=np.ones(2, "float32"))
    Traceback (most recent call last):
    TypeError: conv2d: x is float64, w is float32: one dtype, nothing is converted silently
    """
    arrays = {name: a.data if isinstance(a, Tensor) else a
              for name, a in operands.items() if a is not None or name not in optional}
    dtypes = set()
    for name, a in arrays.items():
        if not is_array(a) and not isinstance(a, np.generic):
            raise TypeError(f"{op}: {name} is {no_array(a, name, 'an array or a Tensor')}")
        if a.dtype.name not in FLOATS:
            raise TypeError(f"{op}: {name} is {str(a.dtype):.60}, "
                            f"wanted {', '.join(FLOATS[:-1])} or {FLOATS[-1]}")
        if not a.dtype.isnative:
            check_plain(op, name, a)
        dtypes.add(a.dtype)
    if len(dtypes) > 1:
        listed = ", ".join(f"{name} is {a.dtype}" for name, a in arrays.items())
        raise TypeError(f"{op}: {listed}: one dtype, nothing is converted silently")
    try:
        get_array_module(*arrays.values())
    except TypeError as error:  # CPU meets GPU
        raise TypeError(f"{op}: {error}") from None


def is_real(value: Any) -> bool:
    """True for a real number of Python or NumPy."""
    return isinstance(value, (int, float, np.number, np.bool_)) and not isinstance(
        value, np.complexfloating)


def weak(op: str, value: Any) -> float:
    """Return a real number as a Python float, which takes the dtype of an array it meets.

    Raises:
        ValueError: it is too large.
    """
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {short(value)} is too large for a float") from None


def channels_last(name: str, x: Any, channels: int) -> str:
    """Return a hint for an error message if x looks like (N, C, H, W) with so many channels.

    >>> import numpy as np
    >>> channels_last("x", np.zeros((8, 3, 32, 32)), 3)
    '; channels come last: x.transpose(0, 2, 3, 1)'
    """
    looks = len(x.shape) == 4 and x.shape[1] == channels != x.shape[3]
    return f"; channels come last: {name}.transpose(0, 2, 3, 1)" if looks else ""


def check_images(op: str, x: Any) -> None:
    """X must be a floating-point array (N, H, W, C), with at least one pixel and one channel."""
    check_arrays(op, x=x)
    if len(x.shape) != 4:
        raise ValueError(f"{op}: x has shape {x.shape}, wanted (N, H, W, C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x has shape {x.shape}: only N may be 0")
