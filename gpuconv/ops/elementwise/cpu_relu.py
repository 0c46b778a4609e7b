"""max(x, 0), where it is not 0 in one bit an element, and the gradient that these bits let pass."""

import numpy as np

from gpuconv.backend import accumulator
from gpuconv.ops.engine.zeros import zeros


def positive_part(x: np.ndarray, out: np.ndarray) -> None:
    """``out = max(x, 0)`` for contiguous arrays of one shape, float32, float64 or integers.

    NaN wins.

    >>> a = np.array([-1.0, np.nan, 2.0]); positive_part(a, a); a
    array([ 0., nan,  2.])
    """
    np.maximum(x, zeros(x.size, x.dtype).reshape(x.shape), out=out)


def rectify(x: np.ndarray, out: np.ndarray) -> None:
    """``out = max(x, 0)`` for contiguous arrays of one shape and float dtype; NaN wins.

    16-bit floats are compared as integers: the sign bit makes an integer negative as well, but a
    NaN that has it must not become 0.
    """
    if x.itemsize > 2:
        positive_part(x, out)
        return
    infinity = np.array(-np.inf, x.dtype).view(np.uint16)
    if x.view(np.uint16).max(initial=0) <= infinity:
        positive_part(x.view(np.int16), out.view(np.int16))
    else:
        wide = x.astype(accumulator(x.dtype))
        positive_part(wide, wide)
        out[...] = wide + 0  # -0 + 0 is 0


def nonzero(y: np.ndarray) -> np.ndarray:
    """Return a bit mask (uint8, one bit per element) of the nonzero elements of a contiguous y."""
    return np.packbits(np.not_equal(y.view(np.int16) if y.itemsize == 2 else y, 0))


def masked(g: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    """``out = g`` where the bit is set, else 0, for contiguous 1-d arrays.

    Multiplies as integers: NumPy's own selection is ten times as slow, and inf * 0 is not 0.

    >>> g = np.array([3.0, np.inf]); masked(g, np.packbits([True, False]), g); g
    array([3., 0.])
    """
    unsigned = f"u{g.itemsize}"
    np.multiply(g.view(unsigned), np.unpackbits(bits, count=g.size), out=out.view(unsigned))
