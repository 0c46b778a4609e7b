"""Levelling of one axis of a window: see ``levelled`` in window.py."""

import math
from typing import Literal, NamedTuple

Taps = Literal["met", "pooled", "all"]


class Axis(NamedTuple):
    """Numbers of a levelled window along one axis."""

    kept: range    # taps that remain
    stride: int
    dilation: int
    near: int      # padding before the image
    met: bool      # does a tap meet a pixel at some position?


def level_axis(size: int, stride: int, dilation: int, near: int, count: int, n: int,
               taps: Taps) -> Axis:
    """Return an equivalent of one axis of a window over n pixels, its numbers in proportion to n.

    Args:
        size: taps of the window along this axis.
        stride: pixels between positions.
        dilation: pixels between taps.
        near: padding before the image, pixels.
        count: positions.
        n: pixels of the image along this axis.
        taps: which taps remain, see ``levelled`` in window.py.
    """
    met = _met(n, count, size, stride, dilation, near)
    if taps == "all":
        kept = range(size)
    elif taps == "met":
        kept = met or range(1)
    else:
        before, after = near // dilation, -(-near // dilation)
        kept = range(min(before, *met[:1]), max(after, *met[-1:]) + 1) if met else range(
            before, after + 1)
    if not met:  # one place before the image, and all others beyond it
        return Axis(kept, n + 1, n + 1 if len(kept) > 1 else 1, 1, False)
    near -= kept.start * dilation
    dilation *= kept.step
    common = math.gcd(stride, dilation) if count > 1 and len(kept) > 1 else 0
    if common > n + 1:  # pixels that are met lie that far apart, so at most one is in the image
        first = -near % common
        near = (near + first) // common * (n + 1) - first
        stride, dilation = stride // common * (n + 1), dilation // common * (n + 1)
    dilation, near = _shorten(n, near, dilation, len(kept), (count - 1) * stride)
    stride, near = _shorten(n, near, stride, count, (len(kept) - 1) * dilation)
    return Axis(kept, stride, dilation if len(kept) > 1 else 1, near, True)


def _met(n: int, count: int, size: int, stride: int, dilation: int, near: int) -> range:
    """Return the smallest range with every tap that meets one of n pixels; may be empty."""
    low = max(0, -((near - (count - 1) * stride) // -dilation))
    high = min(size - 1, (near + n - 1) // dilation)
    if stride <= n or count == 1:  # no tap can jump over the image from one position to the next
        return range(low, high + 1)

    def meets(tap: int) -> bool:
        first = max(0, -((near - tap * dilation) // -stride))  # position at or after pixel 0
        return first < count and first * stride + tap * dilation - near < n

    found = [tap for tap in range(low, high + 1) if meets(tap)]
    if len(found) < 2:
        return range(found[0], found[0] + 1) if found else range(0)
    regular = range(found[0], found[-1] + 1, found[1] - found[0])
    return regular if list(regular) == found else range(found[0], found[-1] + 1)


def _shorten(n: int, near: int, step: int, count: int, span: int) -> tuple[int, int]:
    """Return the smallest step, and its near padding, that meet the same pixels.

    The step is a stride or a dilation. For k < count, the pixels k*step - near ... k*step - near +
    span are met if they are among the n of the image. With a step beyond span + n that is so for
    one k at most, which keeps its place.
    """
    most = span + n + 1
    if step <= most:
        return step, near
    k = min(max(0, -((near - span) // -step)), count)  # the first that is not before the image
    at = k * step - near
    return most, k * most - (at if -span <= at <= n else n)
