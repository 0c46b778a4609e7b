"""Add arrays to others in place: gradients to those of the leaves.

A network has dozens of small ones, and on a GPU a launch for each takes longer than the additions:
kernels/common/accumulate.cu does eight in one.
"""

from collections.abc import Iterable
from typing import Any

from gpuconv import kernels
from gpuconv.backend import Array, is_gpu

PAIRS = 8  # of a launch


def accumulate(pairs: Iterable[tuple[Array, Array]]) -> None:
    """Add x to y in place for each pair (y, x).

    Args:
        pairs: x and y of one shape, dtype and device; a float dtype. No y comes twice.

    >>> import numpy as np
    >>> y = np.ones(2); accumulate([(y, np.array([1.0, 2.0]))]); y
    array([2., 3.])
    """
    alike: dict[Any, list[tuple[Array, Array]]] = {}  # on a GPU, those that share launches
    for y, x in pairs:
        if is_gpu(y) and y.flags.c_contiguous and x.flags.c_contiguous:
            alike.setdefault((y.device.id, y.dtype), []).append((y, x))
        else:
            y += x
    for (_, dtype), those in alike.items():
        add = kernels.kernel("common/accumulate.cu", "accumulate", T=dtype)
        V = 16 // dtype.itemsize
        for some in (those[at:at + PAIRS] for at in range(0, len(those), PAIRS)):
            threads = sum(-(-y.size // V) for y, _ in some)
            nothing = [None, None, 0] * (PAIRS - len(some))
            add(threads, *[a for y, x in some for a in (y, x, y.size)], *nothing, threads)
