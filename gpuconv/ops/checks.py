"""What every public op asks of its operands, in one place."""

from typing import Any

from gpuconv.autograd import Tensor
from gpuconv.backend import FLOATS, get_array_module


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
    for name, a in arrays.items():
        if a is None or isinstance(a, (list, tuple)):
            raise TypeError(f"{op}: {name} is {type(a).__name__}, wanted an array or a Tensor")
    get_array_module(*arrays.values())
    for name, a in arrays.items():
        if not hasattr(a, "dtype") or a.dtype.name not in FLOATS:
            raise TypeError(f"{op}: {name} is {getattr(a, 'dtype', type(a).__name__)}, "
                            f"wanted {', '.join(FLOATS[:-1])} or {FLOATS[-1]}")
        if not a.dtype.isnative:
            raise TypeError(f"{op}: {name} has swapped bytes ({a.dtype.str}): "
                            f"{name}.astype({a.dtype.name!r}) puts them in order")
    if len({a.dtype for a in arrays.values()}) > 1:
        listed = ", ".join(f"{name} is {a.dtype}" for name, a in arrays.items())
        raise TypeError(f"{op}: {listed}: one dtype, nothing is converted silently")


def check_images(op: str, x: Any) -> None:
    """X must be a floating-point array (N, H, W, C), with at least one pixel and one channel."""
    check_arrays(op, x=x)
    if len(x.shape) != 4:
        raise ValueError(f"{op}: x has shape {x.shape}, wanted (N, H, W, C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x has shape {x.shape}: only N may be 0")
