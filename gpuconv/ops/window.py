"""Geometry of a sliding 2-d window, shared by convolution and pooling."""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

from gpuconv.backend import Array

Pair = tuple[int, int]
IntOrPair = int | Pair


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
    return operator.index(height), operator.index(width)


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
    far edge, as long as it starts inside the image or the near padding.
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
        if room < 0:
            return 0
        if not self.ceil_mode:
            return room // stride + 1
        count = -(-room // stride) + 1
        return count - 1 if (count - 1) * stride >= n + near else count

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

    def macros(self) -> dict[str, int]:
        """The compile-time constants the CUDA kernels know this window by."""
        (R, S), (SH, SW), (DH, DW) = self.size, self.stride, self.dilation
        (PT, _), (PL, _) = self.pad
        return dict(R=R, S=S, SH=SH, SW=SW, DH=DH, DW=DW, PT=PT, PL=PL)
