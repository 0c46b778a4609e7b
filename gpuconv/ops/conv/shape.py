"""The sizes of a convolution."""

import math
from typing import NamedTuple

from gpuconv.ops.window import Pair, Window


class Problem(NamedTuple):
    """x (N, H, W, C) under filters (K, R, S, C/groups) gives y (N, P, Q, K)."""

    N: int
    H: int
    W: int
    C: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride: Pair    # (SH, SW), pixels
    pad: Pair       # (top, left), pixels; what lies at the other ends follows from P and Q
    dilation: Pair  # (DH, DW), pixels
    groups: int

    @property
    def classes(self) -> int:
        """Number of classes (h % SH, w % SW) of pixels of x that filters meet.

        All pixels of a class meet the same taps; where the stride is larger than the filter, there
        are fewer classes than SH*SW.
        """
        rows, columns = (min(size, step // math.gcd(step, apart)) for size, step, apart in zip(
            (self.R, self.S), self.stride, self.dilation, strict=True))
        return rows * columns

    @property
    def depth(self) -> int:
        """Terms of a sum of y."""
        return self.R * self.S * self.C // self.groups

    @property
    def pixels(self) -> int:
        """Of y, in all images."""
        return self.N * self.P * self.Q


def problem(x_shape: tuple[int, ...], w_shape: tuple[int, ...], window: Window,
            groups: int = 1) -> Problem:
    """The problem of images and filters of these shapes.

    >>> from gpuconv.ops.window import Window
    >>> problem((2, 8, 8, 3), (4, 3, 3, 3), Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))).pixels
    128
    """
    N, H, W, C = x_shape
    K, R, S, _ = w_shape
    (top, _), (left, _) = window.pad
    return Problem(N, H, W, C, K, R, S, *window.out_shape(H, W), window.stride, (top, left),
                   window.dilation, groups)
