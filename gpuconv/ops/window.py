"""Geometry of a sliding 2-d window, shared by convolution and pooling."""

import dataclasses
import functools
import math
import operator
import sys
from typing import Any, Literal, NamedTuple

from gpuconv.autograd import Tensor
from gpuconv.backend import Array, is_gpu
from gpuconv.checks import short

Pair = tuple[int, int]
IntOrPair = int | Pair
Padding = IntOrPair | tuple[Pair, Pair]
Taps = Literal["met", "pooled", "all"]

LARGEST = 1 << 60      # stride, dilation or padding, pixels: sums of them fit 64 bits
LARGEST_INT = 1 << 30  # pixels: sums of two such numbers fit an int of a CUDA kernel
POOL_WORKSPACE = 2 << 20  # bytes of images that a thread pools at a time; fewer cost more in calls


def pair(value: Any) -> Pair:
    """3 -> (3, 3); (3, 5) -> (3, 5): height and width, as plain ints.

    Raises:
        TypeError, ValueError: it is neither one int nor two.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{short(value)} has {len(value)} numbers, wanted (height, width)")
        height, width = value
    else:
        height = width = value
    try:
        if not isinstance(height, bool) and not isinstance(width, bool):
            return operator.index(height), operator.index(width)
    except TypeError:
        pass
    raise TypeError(f"{short(value)}: wanted a whole number, or (height, width)")


def sides(padding: Any) -> tuple[Pair, Pair]:
    """1 or (PH, PW) or ((top, bottom), (left, right)) -> ((top, bottom), (left, right)), pixels.

    >>> sides((1, 2)), sides(((0, 1), (2, 3)))
    (((1, 1), (2, 2)), ((0, 1), (2, 3)))
    """
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != 2 or not all(isinstance(p, (tuple, list)) for p in padding):
            raise ValueError(f"padding {short(padding)}: wanted ((top, bottom), (left, right))")
        return pair(padding[0]), pair(padding[1])
    height, width = pair(padding)
    return (height, height), (width, width)


def window_from(op: str, size: Any, stride: Any, padding: Any, dilation: Any,
                ceil_mode: bool = False) -> "Window":
    """Return the window of a user's arguments.

    Raises:
        TypeError, ValueError: they are no numbers, too small or too large; begins with ``op``.
    """
    try:
        return Window(pair(size), pair(stride), sides(padding), pair(dilation), ceil_mode)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Window:
    """Window size, stride and dilation, each (height, width) in pixels, and the padding.

    ``pad`` is ((top, bottom), (left, right)). With ``ceil_mode`` a last window may hang over the
    far edge by less than a stride, as long as it starts inside the image or the near padding.

    A window from ``levelled`` has ``positions`` (P, Q), which then do not follow from the padding.
    Its near padding may be negative: the first window then starts inside the image.
    """

    size: Pair
    stride: Pair = (1, 1)
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    positions: Pair | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are too small or too large."""
        sizes, pads = self.size + self.stride + self.dilation, self.pad[0] + self.pad[1]
        if min(sizes) < 1 or (min(pads) < 0 and self.positions is None):
            raise ValueError(f"window {short(self.size)}, stride {short(self.stride)}, dilation "
                             f"{short(self.dilation)}: at least 1; padding {short(self.pad)}: at "
                             "least 0")
        if max(sizes + pads) > LARGEST:
            raise ValueError(f"window {short(self.size)}, stride {short(self.stride)}, dilation "
                             f"{short(self.dilation)}, padding {short(self.pad)}: at most 2**60")

    @property
    def extent(self) -> Pair:
        """Pixels from the first to the last that a window touches, inclusive."""
        (R, S), (DH, DW) = self.size, self.dilation
        return DH * (R - 1) + 1, DW * (S - 1) + 1

    def out_shape(self, height: int, width: int) -> Pair:
        """Number of window positions (P, Q) over an image of (height, width) pixels.

        Raises:
            ValueError: the window does not fit the padded image.
        """
        if self.positions:
            return self.positions
        P, Q = (self._positions(axis, n) for axis, n in enumerate((height, width)))
        if P < 1 or Q < 1:
            dilated = "" if self.dilation == (1, 1) else f", dilation {self.dilation}"
            raise ValueError(f"window {self.size}{dilated}, padding {self.pad} "
                             f"does not fit ({height}, {width})")
        return P, Q

    def _positions(self, axis: int, n: int) -> int:
        (near, far), stride = self.pad[axis], self.stride[axis]
        room = n + near + far - self.extent[axis]
        if not self.ceil_mode:
            return room // stride + 1
        return min(-(-room // stride) + 1, -(-(n + near) // stride))  # start before the far padding

    @property
    def apart(self) -> bool:
        """True if no pixel can belong to two windows."""
        return all(step >= e for step, e in zip(self.stride, self.extent, strict=True))

    def tiles(self, height: int, width: int) -> bool:
        """True if every pixel of the image belongs to exactly one window."""
        if self.size != self.stride or self.dilation != (1, 1):
            return False
        return all(count * step >= n + near for count, step, n, (near, _) in zip(
            self.out_shape(height, width), self.stride, (height, width), self.pad, strict=True))

    def macros(self) -> dict[str, int]:
        """The compile-time constants the CUDA kernels know this window by."""
        (R, S), (SH, SW), (DH, DW) = self.size, self.stride, self.dilation
        (PT, _), (PL, _) = self.pad
        return dict(R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, PT=PT, PL=PL)


class Levelled(NamedTuple):
    """A window without the numbers that make no difference, for images of one height and width."""

    window: Window
    taps: tuple[slice, slice]  # rows and columns of the filter that remain
    meets: bool                # does any tap meet a pixel at any position?


@functools.lru_cache(4096)
def levelled(window: Window, height: int, width: int, taps: Taps) -> Levelled:
    """Return an equivalent window whose numbers are in proportion to the image.

    A tap (r, s) is a pixel of the window. It meets row p*SH - PT + r*DH of the image at position
    (p, q), unless that is outside of the image. The taps that remain meet the same pixels at the
    same positions as before; those outside of the image are still outside, but not as far.

    Args:
        window: as the user gave it.
        height: of the image, pixels.
        width: likewise.
        taps: which taps remain. "met": rows and columns that meet the image at some position; where
            a stride skips the image, every k-th of them. At least one. "pooled": from the first to
            the last of these, and those on either side of the first pixel of the image, which mark
            the maximum of a window in the padding. "all": every tap.

    >>> window, taps, _ = levelled(Window((3, 3), (9, 1), ((0, 0), (20, 20)), (1, 20)), 7, 7, "met")
    >>> window.size, window.stride, window.dilation, window.pad[1], taps[1]
    ((3, 1), (9, 1), (1, 1), (0, 0), slice(1, 2, 1))
    """
    P, Q = window.out_shape(height, width)
    r, SH, DH, top, rows = _level(window, 0, height, P, taps)
    s, SW, DW, left, columns = _level(window, 1, width, Q, taps)
    made = Window((len(r), len(s)), (SH, SW), ((top, 0), (left, 0)), (DH, DW), positions=(P, Q))
    return Levelled(made, (slice(r.start, r.stop, r.step), slice(s.start, s.stop, s.step)),
                    rows and columns)


def _level(window: Window, axis: int, n: int, count: int,
           taps: Taps) -> tuple[range, int, int, int, bool]:
    """Return the taps that remain, stride, dilation, near padding, and whether any tap is met.

    Args:
        window: as for ``levelled``.
        axis: 0 for rows, 1 for columns.
        n: pixels of the image along this axis.
        count: positions of the window.
        taps: as for ``levelled``.
    """
    size, step, apart = window.size[axis], window.stride[axis], window.dilation[axis]
    near = window.pad[axis][0]
    met = _met(n, count, size, step, apart, near)
    if taps == "all":
        kept = range(size)
    elif taps == "met":
        kept = met or range(1)
    else:
        before, after = near // apart, -(-near // apart)
        kept = range(min(before, *met[:1]), max(after, *met[-1:]) + 1) if met else range(
            before, after + 1)
    if not met:  # one place before the image, and all others beyond it
        return kept, n + 1, n + 1 if len(kept) > 1 else 1, 1, False
    near -= kept.start * apart
    apart *= kept.step
    common = math.gcd(step, apart) if count > 1 and len(kept) > 1 else 0
    if common > n + 1:  # pixels that are met lie that far apart, so at most one is in the image
        first = -near % common
        near = (near + first) // common * (n + 1) - first
        step, apart = step // common * (n + 1), apart // common * (n + 1)
    apart, near = _cut(n, near, apart, len(kept), (count - 1) * step)
    step, near = _cut(n, near, step, count, (len(kept) - 1) * apart)
    return kept, step, apart if len(kept) > 1 else 1, near, True


def _met(n: int, count: int, size: int, step: int, apart: int, near: int) -> range:
    """Return the smallest range with every tap that meets one of n pixels; may be empty."""
    low = max(0, -((near - (count - 1) * step) // -apart))
    high = min(size - 1, (near + n - 1) // apart)
    if step <= n or count == 1:  # no tap can jump over the image from one position to the next
        return range(low, high + 1)

    def meets(tap: int) -> bool:
        first = max(0, -((near - tap * apart) // -step))  # position at or after pixel 0
        return first < count and first * step + tap * apart - near < n

    found = [tap for tap in range(low, high + 1) if meets(tap)]
    if len(found) < 2:
        return range(found[0], found[0] + 1) if found else range(0)
    regular = range(found[0], found[-1] + 1, found[1] - found[0])
    return regular if list(regular) == found else range(found[0], found[-1] + 1)


def _cut(n: int, near: int, step: int, count: int, span: int) -> tuple[int, int]:
    """Return the smallest step, and its near padding, that meet the same pixels.

    For k < count, the pixels k*step - near ... k*step - near + span are met if they are among the n
    of the image. With a step beyond span + n that is so for one k at most: it keeps its place.
    """
    most = span + n + 1
    if step <= most:
        return step, near
    k = min(max(0, -((near - span) // -step)), count)  # the first that is not before the image
    at = k * step - near
    return most, k * most - (at if -span <= at <= n else n)


def check_result(op: str, x: Array, window: Window, channels: int, taps: Taps) -> None:
    """Refuse a result (N, P, Q, channels) that no memory holds; then as ``check_numbers``."""
    N, (P, Q) = x.shape[0], window.out_shape(*x.shape[1:3])
    if max(P, Q, max(N, 1) * P * Q * channels * x.dtype.itemsize) > sys.maxsize:
        raise ValueError(f"{op}: the result would have shape {(N, P, Q, channels)}, more than fits "
                         f"an address space: less padding or a larger stride makes it smaller")
    check_numbers(op, x, x.shape, window, taps)


def check_numbers(op: str, a: Array, x_shape: tuple[int, ...], window: Window, taps: Taps) -> None:
    """Refuse a window whose numbers do not fit the ints of a CUDA kernel, if ``a`` is on a GPU.

    Args:
        op: name of the op, for messages.
        a: one of its arrays.
        x_shape: of its images, (N, H, W, C).
        window: as the user gave it; it fits the images.
        taps: as for ``levelled``.

    Raises:
        ValueError: levelling leaves a number that is too large.
    """
    if not is_gpu(a.data if isinstance(a, Tensor) else a):
        return
    H, W = x_shape[1:3]
    made = levelled(window, H, W, taps).window
    reach = [count * step + extent + abs(near) + n for count, step, extent, (near, _), n in zip(
        made.out_shape(H, W), made.stride, made.extent, made.pad, (H, W), strict=True)]
    if max(reach) >= LARGEST_INT:
        raise ValueError(
            f"{op}: window {window.size}, stride {window.stride}, padding {window.pad}, dilation "
            f"{window.dilation} over images of {(H, W)} pixels: on a GPU stride, padding and "
            f"dilation may reach over 2**30 pixels together; on the CPU over any number")


def packs(a: Array, channels: int) -> int:
    """Threads for an array (..., C): one for 16 bytes of channels where C allows, else for each."""
    per = 16 // a.dtype.itemsize
    return a.size // per if channels % per == 0 else a.size


def tile_packs(a: Array, channels: int, window: Window) -> int:
    """Threads for a backward pass to a, each of which has a stride of pixels by a stride."""
    return -(-packs(a, channels) // (window.stride[0] * window.stride[1]))
