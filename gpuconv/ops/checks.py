"""Checks of operands and arguments that public ops share."""

import sys
from typing import Any

import numpy as np

from gpuconv.autograd import Tensor
from gpuconv.backend import FLOATS, get_array_module, is_array
from gpuconv.checks import check_choice, check_plain, no_array, short
from gpuconv.ops.engine.levelling import Taps
from gpuconv.ops.window import Window, levelled

PRECISIONS = "ieee", "tf32"
LARGEST_INT = 1 << 30  # pixels: sums of two such numbers fit an int of a CUDA kernel


def check_arrays(op: str, optional: tuple[str, ...] = (), **operands: Any) -> None:
    """Refuse operands that are not arrays or Tensors of one library and one floating-point dtype.

    Operands named in ``optional`` may be None.

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


def check_precision(op: str, precision: str) -> None:
    """Refuse a precision that is not one of PRECISIONS.

    >>> check_precision("conv2d", "fp8")
    Traceback (most recent call last):
    ValueError: conv2d: precision is 'fp8', wanted 'ieee' or 'tf32'
    """
    if type(precision) is not str or precision not in PRECISIONS:
        check_choice(op, "precision", precision, PRECISIONS)


def channels_last(name: str, shape: tuple[int, ...], channels: int) -> str:
    """Return a hint for an error message if an array looks like (N, C, H, W), C channels.

    >>> channels_last("x", (8, 3, 32, 32), 3)
    '; channels come last: x.transpose(0, 2, 3, 1)'
    """
    looks = len(shape) == 4 and shape[1] == channels != shape[3]
    return f"; channels come last: {name}.transpose(0, 2, 3, 1)" if looks else ""


def check_images(op: str, x: Any) -> None:
    """Refuse an x that is no floating-point array (N, H, W, C), H, W and C at least 1."""
    check_arrays(op, x=x)
    if len(x.shape) != 4:
        raise ValueError(f"{op}: x has shape {x.shape}, wanted (N, H, W, C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x has shape {x.shape}: only N may be 0")


def check_size(op: str, x_shape: tuple[int, ...], itemsize: int, window: Window,
               channels: int) -> None:
    """Refuse a result (N, P, Q, channels) that no memory holds.

    Raises:
        ValueError: the result has more bytes than fit an address space.
    """
    N, (P, Q) = x_shape[0], window.out_shape(*x_shape[1:3])
    if max(P, Q, max(N, 1) * P * Q * channels * itemsize) > sys.maxsize:
        raise ValueError(f"{op}: the result would have shape {(N, P, Q, channels)}, more than fits "
                         f"an address space: less padding or a larger stride makes it smaller")


def check_numbers(op: str, x_shape: tuple[int, ...], window: Window, taps: Taps) -> None:
    """Refuse a window whose numbers do not fit the ints of a CUDA kernel.

    Args:
        op: name of the op, for messages.
        x_shape: of its images, (N, H, W, C).
        window: as the user gave it; it fits the images.
        taps: as for ``levelled``.

    Raises:
        ValueError: levelling leaves a number that is too large.
    """
    H, W = x_shape[1:3]
    made = levelled(window, H, W, taps)
    reach = [count * stride + extent + abs(near) + n for count, stride, extent, (near, _), n in zip(
        made.out_shape(H, W), made.stride, made.extent, made.pad, (H, W), strict=True)]
    if max(reach) >= LARGEST_INT:
        raise ValueError(
            f"{op}: window {window.size}, stride {window.stride}, padding {window.pad}, dilation "
            f"{window.dilation} over images of {(H, W)} pixels: on a GPU stride, padding and "
            f"dilation may reach over 2**30 pixels together; on the CPU over any number")
