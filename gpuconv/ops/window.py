"""Geometry of a sliding 2-d window, shared by convolution and pooling."""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

from gpuconv.backend import Array

Pair = tuple[int, int]
IntOrPair = int | Pair
Padding = IntOrPair | tuple[Pair, Pair]
Slices = tuple[slice, ...]

POOL_WORKSPACE = 2 << 20  # bytes of images that a thread pools at a time; fewer cost more in calls


def pair(value: Any) -> Pair:
    """3 -> (3, 3); (3, 5) -> (3, 5): height and width, as plain ints.

    Raises:
        TypeError, ValueError: it is neither one int nor two.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{value!r} has {len(value)} numbers, wanted (height, width)")
        height, width = value
    else:
        height = width = value
    try:
        return operator.index(height), operator.index(width)
    except TypeError:
        raise TypeError(f"{value!r}: wanted a whole number, or (height, width)") from None


def sides(padding: Any) -> tuple[Pair, Pair]:
    """1 or (PH, PW) or ((top, bottom), (left, right)) -> ((top, bottom), (left, right)), pixels.

    >>> sides((1, 2)), sides(((0, 1), (2, 3)))
    (((1, 1), (2, 2)), ((0, 1), (2, 3)))
    """
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != 2 or not all(isinstance(p, (tuple, list)) for p in padding):
            raise ValueError(f"padding {padding!r}: wanted ((top, bottom), (left, right))")
        return pair(padding[0]), pair(padding[1])
    height, width = pair(padding)
    return (height, height), (width, width)


@dataclasses.dataclass(frozen=True)
class Window:
    """Window size, stride and dilation, each (height, width) in pixels, and the padding.

    ``pad`` is ((top, bottom), (left, right)). With ``ceil_mode`` a last window may hang over the
    far edge by less than a stride, as long as it starts inside the image or the near padding.
    """

    size: Pair
    stride: Pair = (1, 1)
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no window."""
        if min(self.size + self.stride + self.dilation) < 1 or min(self.pad[0] + self.pad[1]) < 0:
            raise ValueError(f"window {self.size}, stride {self.stride}, dilation {self.dilation}: "
                             f"at least 1; padding {self.pad}: at least 0")

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

    def overhang(self, height: int, width: int) -> Pair:
        """Rows below and columns right of the padded image that the last windows reach over."""
        P, Q = self.out_shape(height, width)
        return tuple(  # type: ignore[return-value]
            max(0, (count - 1) * stride + extent - (n + sum(pad))) for count, stride, extent, n, pad
            in zip((P, Q), self.stride, self.extent, (height, width), self.pad, strict=True))

    def pixels(self, padded: Array, out_shape: Pair) -> Iterator[tuple[int, Array]]:
        """Yield r*S + s and that pixel of every window, for each pixel in scan order.

        padded is (N, top + H + bottom + overhang, left + W + right + overhang, C) or larger;
        each view of it is (N, P, Q, C).
        """
        (R, S), (SH, SW), (DH, DW), (P, Q) = self.size, self.stride, self.dilation, out_shape
        for r in range(R):
            for s in range(S):
                h, w = r * DH, s * DW
                yield r * S + s, padded[:, h : h + (P - 1) * SH + 1 : SH,
                                        w : w + (Q - 1) * SW + 1 : SW]

    def inside(self, height: int, width: int) -> list[tuple[int, Slices, Slices]]:
        """Which pixel of which windows lies where in an image that is not padded.

        Returns:
            (r*S + s, windows, places) for each pixel of the window in scan order: ``y[windows]``,
            (N, P', Q', C), are the windows whose pixel (r, s) is inside the image, and
            ``x[places]``, the same shape, are these pixels. Both may be empty.

        >>> [(rs, y[2], x[2]) for rs, y, x in Window((1, 2), (1, 2), ((0, 0), (1, 0))).inside(1, 3)]
        [(0, slice(1, 2, None), slice(1, 2, 2)), (1, slice(0, 2, None), slice(0, 3, 2))]
        """
        out = self.out_shape(height, width)

        def along(axis: int, at: int, n: int) -> tuple[slice, slice]:
            step, first = self.stride[axis], at * self.dilation[axis] - self.pad[axis][0]
            start, stop = max(0, -(first // step)), min(out[axis], (n - 1 - first) // step + 1)
            if start >= stop:
                return slice(0, 0), slice(0, 0)
            return (slice(start, stop),
                    slice(start * step + first, (stop - 1) * step + first + 1, step))

        (R, S), everything = self.size, slice(None)
        rows, columns = ([along(axis, at, n) for at in range(self.size[axis])]
                         for axis, n in enumerate((height, width)))
        return [(r * S + s, (everything, rows[r][0], columns[s][0]),
                 (everything, rows[r][1], columns[s][1])) for r in range(R) for s in range(S)]

    def macros(self) -> dict[str, int]:
        """The compile-time constants the CUDA kernels know this window by."""
        (R, S), (SH, SW), (DH, DW) = self.size, self.stride, self.dilation
        (PT, _), (PL, _) = self.pad
        return dict(R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, PT=PT, PL=PL)


def packs(a: Array, channels: int) -> int:
    """Threads for an array (..., C): one for 16 bytes of channels where C allows, else for each."""
    per = 16 // a.dtype.itemsize
    return a.size // per if channels % per == 0 else a.size


def tile_packs(a: Array, channels: int, window: Window) -> int:
    """Threads for a backward pass to a, each of which has a stride of pixels by a stride."""
    return -(-packs(a, channels) // (window.stride[0] * window.stride[1]))


def pool_window(op: str, x_shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any,
                dilation: Any = 1, ceil_mode: bool = False) -> Window:
    """The window of a pooling op over images (N, H, W, C).

    Without a stride the windows lie side by side. Numbers that make no difference are levelled, so
    that they neither compile another kernel nor overflow an int in it: a stride beyond the padded
    image (and the window) is cut to that, the dilation of a single pixel is 1.

    Raises:
        ValueError: the window does not fit, or padding is more than half of kernel_size: as in
            PyTorch, the dilation notwithstanding.

    >>> pool_window("max_pool2d", (1, 4, 4, 1), 3, 1, 2)
    Traceback (most recent call last):
    ValueError: max_pool2d: padding ((2, 2), (2, 2)) is more than half of the window (3, 3)
    """
    size, pad, images = pair(kernel_size), sides(padding), x_shape[1:3]
    steps, apart = pair(kernel_size if stride is None else stride), pair(dilation)
    try:
        window = Window(size, steps, pad, apart, bool(ceil_mode))
        window.out_shape(*images)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
    if any(2 * p > k for k, both in zip(size, pad, strict=True) for p in both):
        raise ValueError(f"{op}: padding {pad} is more than half of the window {size}")
    (H, W), (EH, EW), (vertical, horizontal) = images, window.extent, pad
    steps = (min(steps[0], max(EH, H + sum(vertical))), min(steps[1], max(EW, W + sum(horizontal))))
    apart = (apart[0] if size[0] > 1 else 1, apart[1] if size[1] > 1 else 1)
    return Window(size, steps, pad, apart, bool(ceil_mode))
