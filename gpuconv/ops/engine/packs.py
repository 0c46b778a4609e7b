"""Threads of GPU kernels that read packs: 16 bytes of neighbouring channels."""

from gpuconv.backend import Array
from gpuconv.ops.window import Window


def packs(a: Array, channels: int) -> int:
    """Return the threads for an array (..., C): one per 16 bytes of channels, or per element.

    16 bytes where C is a multiple of that many elements.
    """
    per = 16 // a.dtype.itemsize
    return a.size // per if channels % per == 0 else a.size


def tile_packs(a: Array, channels: int, window: Window) -> int:
    """Return the threads for a backward pass to ``a``, each of which handles SH x SW pixels."""
    return -(-packs(a, channels) // (window.stride[0] * window.stride[1]))
