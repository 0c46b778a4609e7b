"""Geometry of a sliding window: the pixel that each tap of the window meets at each position.

    h = p*SH - PT + r*DH        w = q*SW - PL + s*DW

A window has R x S taps. At position (p, q) its tap (r, s) meets pixel (h, w) of the image, or the
padding if there is no such pixel. For one tap, all positions together are slices of two arrays:

    for r, s, at, met in window.taps():
        y[at] += w[r, s] * x[met]

``met`` selects the pixels of x (N, H, W, C) that tap (r, s) meets, and ``at`` selects the positions
of y (N, P, Q, C) where it meets them. Positions where the tap meets the padding are in neither, so
that no padded copy of x is needed. Exchange x and y in the loop, and it is the gradient.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

Pair = tuple[int, int]
Index = tuple[slice, slice, slice]


class Window(NamedTuple):
    """A window that slides over images; each pair is (height, width), in pixels."""

    size: Pair
    stride: Pair
    dilation: Pair
    pad: tuple[Pair, Pair]  # ((top, bottom), (left, right))
    image: Pair             # (H, W)
    out: Pair               # (P, Q), number of positions

    def taps(self) -> Iterator[tuple[int, int, Index, Index]]:
        """Yield (r, s, at, met) for each tap, in scan order; see the module's docstring.

        >>> [(r, s, at[2], met[2]) for r, s, at, met in window((1, 5), (1, 2), 2, (0, 1)).taps()]
        [(0, 0, slice(1, 3, None), slice(1, 4, 2)), (0, 1, slice(0, 3, None), slice(0, 5, 2))]
        """
        for r in range(self.size[0]):
            p, h = self._slices(0, r)
            for s in range(self.size[1]):
                q, w = self._slices(1, s)
                yield r, s, (slice(None), p, q), (slice(None), h, w)

    def _slices(self, axis: int, tap: int) -> tuple[slice, slice]:
        """Return the positions where a tap meets the image along an axis, and the pixels it meets.

        Position p meets pixel p*step + first, which must be one of 0 .. n-1.
        """
        n, step = self.image[axis], self.stride[axis]
        first = tap * self.dilation[axis] - self.pad[axis][0]
        low = max(0, -(first // step))                           # smallest p with a pixel >= 0
        high = min(self.out[axis], (n - 1 - first) // step + 1)  # largest p with a pixel < n, + 1
        if low >= high:
            return slice(0, 0), slice(0, 0)
        return slice(low, high), slice(low * step + first, (high - 1) * step + first + 1, step)


def window(image: Pair, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           ceil_mode: bool = False) -> Window:
    """Return the window over images of (H, W) pixels.

        P = floor((H + top + bottom - DH*(R-1) - 1) / SH) + 1

    With ``ceil_mode`` P is rounded up, but a last window never starts in the far padding.

    Args:
        image: (H, W).
        kernel_size, stride, dilation: a number, or (height, width).
        padding: a number, (PH, PW), ((top, bottom), (left, right)), "valid" for none, or "same"
            for P = ceil(H / SH), an odd pixel going to the bottom or right.
        ceil_mode: see above.

    >>> window((5, 5), 3, stride=2, padding="same").pad, window((6, 6), 3, 2, ceil_mode=True).out
    (((1, 1), (1, 1)), (3, 3))
    """
    size, strides, apart = pair(kernel_size), pair(stride), pair(dilation)
    pads, out = [], []
    for n, taps, step, d, pad in zip(image, size, strides, apart, sides(padding), strict=True):
        extent = d * (taps - 1) + 1  # pixels from the first tap to the last
        if pad == "same":
            total = max(0, (-(-n // step) - 1) * step + extent - n)
            pad = total // 2, total - total // 2
        room = n + sum(pad) - extent
        positions = room // step + 1
        if ceil_mode:
            positions = min(-(-room // step) + 1, -(-(n + pad[0]) // step))
        pads.append(pad)
        out.append(positions)
    return Window(size, strides, apart, (pads[0], pads[1]), image, (out[0], out[1]))


def pair(value: Any) -> Pair:
    """Return (height, width) of a number or a pair.

    >>> pair(3), pair((3, 5))
    ((3, 3), (3, 5))
    """
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def sides(padding: Any) -> tuple[Any, Any]:
    """Return ((top, bottom), (left, right)) of a padding; "same" depends on the image and stays.

    >>> sides((1, 2)), sides("valid")
    (((1, 1), (2, 2)), ((0, 0), (0, 0)))
    """
    if padding == "same":
        return "same", "same"
    height, width = pair(0 if padding == "valid" else padding)
    return pair(height), pair(width)
