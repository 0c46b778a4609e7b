"""The one geometry of convolution and pooling: ``Window`` and ``ConvShape``.

``levelled`` reduces what a user asked for to the numbers that make a difference for images of one
size (a stride beyond the image, the dilation of a single tap, taps that never meet the image). All
engines, on both devices, compute with levelled windows.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

from gpuconv.checks import short
from gpuconv.ops.engine.levelling import Axis, Taps, level_axis

Pair = tuple[int, int]
IntOrPair = int | Pair
Padding = IntOrPair | tuple[Pair, Pair]

LARGEST = 1 << 60      # stride, dilation or padding, pixels: sums of them fit 64 bits


def pair(value: Any) -> Pair:
    """Return height and width as plain ints: 3 -> (3, 3); (3, 5) -> (3, 5).

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
    """Return ((top, bottom), (left, right)), pixels, of a user's padding.

    The padding is one int, (PH, PW), or ((top, bottom), (left, right)).

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
        return check_window(Window(pair(size), pair(stride), sides(padding), pair(dilation),
                                   ceil_mode))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Window:
    """Window size, stride and dilation, each (height, width) in pixels, and the padding.

    ``pad`` is ((top, bottom), (left, right)). Position (p, q) of the window begins at pixel
    (p*SH - top, q*SW - left) of the image, and there are zeros outside of the image. With
    ``ceil_mode`` a last window may hang over the far edge by less than a stride, as long as it
    starts inside the image or the near padding.

    Users give paddings of 0 and more. A window that ``levelled`` or ``spanning`` makes may have
    negative ones: it begins inside the image, or its last position ends before the image does.
    """

    size: Pair
    stride: Pair = (1, 1)
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def extent(self) -> Pair:
        """Height and width from the first to the last pixel of one position, inclusive."""
        return self.reach(1, 1)

    def reach(self, rows: int, columns: int) -> Pair:
        """Return height and width of the pixels under so many rows and columns of positions."""
        (R, S), (SH, SW), (DH, DW) = self.size, self.stride, self.dilation
        return (rows - 1) * SH + (R - 1) * DH + 1, (columns - 1) * SW + (S - 1) * DW + 1

    def first(self, row: int) -> Pair:
        """Return the pixel (h, w) at which the first position of a row of positions begins."""
        return row * self.stride[0] - self.pad[0][0], -self.pad[1][0]

    def out_shape(self, height: int, width: int) -> Pair:
        """Return the number of positions (P, Q) over an image of (height, width) pixels.

        Raises:
            ValueError: the window does not fit the padded image.
        """
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
    def inside(self) -> bool:
        """True if no position of this levelled window reaches outside of the image."""
        return max(self.pad[0] + self.pad[1]) <= 0

    @property
    def disjoint(self) -> bool:
        """True if no pixel can belong to two positions."""
        return all(step >= e for step, e in zip(self.stride, self.extent, strict=True))

    def tiles(self, height: int, width: int) -> bool:
        """Return True if every pixel of the image belongs to exactly one position."""
        if self.size != self.stride or self.dilation != (1, 1):
            return False
        return all(count * step >= n + near for count, step, n, (near, _) in zip(
            self.out_shape(height, width), self.stride, (height, width), self.pad, strict=True))

    def macros(self) -> dict[str, int]:
        """Return the compile-time constants of this window in the CUDA kernels."""
        (R, S), (SH, SW), (DH, DW) = self.size, self.stride, self.dilation
        (PT, _), (PL, _) = self.pad
        return dict(R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, PT=PT, PL=PL)


def check_window(window: Window) -> Window:
    """Return a window whose numbers a user may give.

    Raises:
        ValueError: a number is too small or too large.
    """
    sizes, pads = window.size + window.stride + window.dilation, window.pad[0] + window.pad[1]
    if min(sizes) < 1 or min(pads) < 0 or max(sizes + pads) > LARGEST:
        raise ValueError(f"window {short(window.size)}, stride {short(window.stride)}, dilation "
                         f"{short(window.dilation)}: at least 1; padding {short(window.pad)}: at "
                         "least 0; all at most 2**60")
    return window


def spanning(size: Pair, stride: Pair, near: Pair, dilation: Pair, image: Pair,
             positions: Pair) -> Window:
    """Return the window that has ``positions`` (P, Q) over an image of (height, width) pixels.

    ``near`` is its padding (top, left); the far padding ends at the last pixel of the last
    position, so it is negative where the image goes on.

    >>> spanning((3, 3), (2, 2), (1, 0), (1, 1), (8, 8), (4, 3)).pad
    ((1, 0), (0, -1))
    """
    window = Window(size, stride, dilation=dilation)
    top, left = ((before, reach - before - n) for before, reach, n in zip(
        near, window.reach(*positions), image, strict=True))
    return dataclasses.replace(window, pad=(top, left))


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """Sizes of a convolution: x (N, H, W, C), filters (K, R, S, C/groups), y (N, P, Q, K).

    ``conv_shape`` makes it with a levelled window. The input gradient is a convolution as well, of
    gy (N, P, Q, K) with C filters for each of some windows: ``dgrad_parts`` in cpu_dispatch.py.
    """

    N: int
    H: int
    W: int
    C: int
    K: int
    window: Window
    groups: int = 1
    R: int = dataclasses.field(init=False, compare=False)
    S: int = dataclasses.field(init=False, compare=False)
    P: int = dataclasses.field(init=False, compare=False)
    Q: int = dataclasses.field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Set the sizes that follow from the window."""
        for name, size in zip("RSPQ", (*self.window.size, *self.window.out_shape(self.H, self.W)),
                              strict=True):
            object.__setattr__(self, name, size)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """Shape (N, H, W, C) of the images."""
        return self.N, self.H, self.W, self.C

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        """Shape (K, R, S, C/groups) of the filters."""
        return self.K, self.R, self.S, self.C // self.groups

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """Shape (N, P, Q, K) of the result."""
        return self.N, self.P, self.Q, self.K

    @property
    def group(self) -> "ConvShape":
        """Sizes of the convolution of one group."""
        return self if self.groups == 1 else dataclasses.replace(
            self, C=self.C // self.groups, K=self.K // self.groups, groups=1)

    @property
    def classes(self) -> int:
        """Number of classes (h % SH, w % SW) of pixels of x that filters meet.

        All pixels of a class meet the same taps. Where the stride is larger than the filter, there
        are fewer classes than SH*SW.
        """
        rows, columns = (min(size, step // math.gcd(step, gap)) for size, step, gap in zip(
            self.window.size, self.window.stride, self.window.dilation, strict=True))
        return rows * columns

    @property
    def depth(self) -> int:
        """Number of terms in a sum of y: R*S*C/groups."""
        return self.R * self.S * self.C // self.groups

    @property
    def pixels(self) -> int:
        """Number of pixels of y in all images: N*P*Q."""
        return self.N * self.P * self.Q


@functools.lru_cache(4096)
def conv_shape(x_shape: tuple[int, ...], filters: int, window: Window,
               groups: int = 1) -> ConvShape:
    """Return the sizes to compute a convolution with: its window levelled for images x_shape.

    Args:
        x_shape: (N, H, W, C).
        filters: K.
        window: as the user gave it; it fits the images.
        groups: of the channels and filters.

    >>> conv_shape((2, 8, 8, 3), 4, Window((3, 3), (1, 1), ((1, 1), (1, 1)))).pixels
    128
    """
    N, H, W, C = x_shape
    return ConvShape(N, H, W, C, filters, levelled(window, H, W, "met"), groups)


@functools.lru_cache(4096)
def levelled(window: Window, height: int, width: int, taps: Taps) -> Window:
    """Return an equivalent window whose numbers are in proportion to the image.

    A tap (r, s) is a pixel of the window. It meets row p*SH - PT + r*DH of the image at position
    (p, q), unless that is outside of the image. The taps that remain (``kept_taps``) meet the same
    pixels at the same positions as before; those outside of the image are still outside, but not
    as far.

    Args:
        window: as the user gave it.
        height: of the image, pixels.
        width: of the image, pixels.
        taps: which taps remain. "met": rows and columns that meet the image at some position; where
            a stride skips the image, every k-th of them. At least one. "pooled": from the first to
            the last of these, and those on either side of the first pixel of the image, which mark
            the maximum of a window in the padding. "all": every tap.

    >>> window = levelled(Window((3, 3), (9, 1), ((0, 0), (20, 20)), (1, 20)), 7, 7, "met")
    >>> window.size, window.stride, window.dilation, window.pad[1]
    ((3, 1), (9, 1), (1, 1), (0, 0))
    """
    rows, columns = _axes(window, height, width, taps)
    return spanning((len(rows.kept), len(columns.kept)), (rows.stride, columns.stride),
                    (rows.near, columns.near), (rows.dilation, columns.dilation),
                    (height, width), window.out_shape(height, width))


@functools.lru_cache(4096)
def kept_taps(window: Window, height: int, width: int, taps: Taps) -> tuple[slice, slice]:
    """Return the rows and the columns of a filter that remain in the levelled window.

    The arguments are those of ``levelled``. With "met" an axis on which no tap meets the image
    gives an empty slice: the levelled window has one tap there, which reads zeros.

    >>> kept_taps(Window((3, 3), (9, 1), ((0, 0), (20, 20)), (1, 20)), 7, 7, "met")
    (slice(0, 3, 1), slice(1, 2, 1))
    """
    rows, columns = (slice(0, 0) if taps == "met" and not axis.met else
                     slice(axis.kept.start, axis.kept.stop, axis.kept.step)
                     for axis in _axes(window, height, width, taps))
    return rows, columns


def _axes(window: Window, height: int, width: int, taps: Taps) -> tuple[Axis, Axis]:
    """Return the numbers of the levelled window along both axes."""
    rows, columns = (level_axis(size, stride, dilation, near, count, n, taps)
                     for size, stride, dilation, (near, _), count, n in zip(
                         window.size, window.stride, window.dilation, window.pad,
                         window.out_shape(height, width), (height, width), strict=True))
    return rows, columns
