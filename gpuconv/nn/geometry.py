"""What an op on the tape looks at, and what it costs: receptive field, multiply-adds, cropping.

An output pixel of a layer depends on a rectangle of the image, its receptive field. Neighbouring
output pixels look at rectangles that lie ``step`` pixels apart. From op to op, along each axis

    field' = field + (extent - 1) step         extent: pixels from a window's first to its last
    step'  = step stride

An op with several inputs, such as the sum at the end of a residual block, sees what any of them
sees. What mixes all pixels (a global pool, a Linear over a flattened volume) sees the whole image,
and nothing sees more than that.

Source: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill
2019.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from gpuconv.autograd import Op
from gpuconv.ops.conv import Col2im, Conv2d
from gpuconv.ops.matmul import Linear, MatMul
from gpuconv.ops.reduce import Reduction
from gpuconv.ops.window import Pair, Window, levelled


class Field(NamedTuple):
    """(height, width) in pixels of the image: what is seen, and how far apart neighbours look."""

    size: Pair = (1, 1)
    step: Pair = (1, 1)


def field(op: Op, seen: list[Field], image: Pair) -> Field:
    """What the result of an op sees.

    Args:
        op: after forward.
        seen: by each of its inputs that depends on the image; at least one.
        image: (height, width).
    """
    before = Field(_larger([f.size for f in seen]), _larger([f.step for f in seen]))
    window = window_of(op)
    if window:
        window = levelled(window, *op.x_shape[1:3], "met").window  # type: ignore[attr-defined]
        pairs = zip(before.size, window.extent, before.step, image, strict=True)
        return Field(_pair(min(size + (extent - 1) * step, whole) for size, extent, step, whole
                           in pairs),
                     _pair(a * b for a, b in zip(before.step, window.stride, strict=True)))
    return Field(image, before.step) if _mixes(op, len(seen)) else before


def window_of(op: Op) -> Window | None:
    """The window that slides over the images of an op, if one does."""
    return None if isinstance(op, Col2im) else getattr(op, "window", None)


def multiply_adds(op: Op) -> int:
    """Products that are added up: of convolutions, Linear and products of matrices; 0 for others.

    A bias is no product. Divisions, maxima and element-wise arithmetic do not count.
    """
    if isinstance(op, Conv2d):
        return op.x_shape[0] * math.prod(positions(op)) * math.prod(op.w_shape)
    if isinstance(op, Linear):
        return math.prod(op.x_shape) * op.w_shape[0]
    if isinstance(op, MatMul):
        a, b = op.shapes
        rows = 1 if len(a) == 1 else a[-2]
        columns = 1 if len(b) == 1 else b[-1]
        batch = math.prod(max(pair) for pair in _aligned(a[:-2], b[:-2]))
        return batch * rows * a[-1] * columns
    return 0


def positions(op: Op) -> Pair:
    """(P, Q) of an op that has a window."""
    H, W = op.x_shape[1:3]  # type: ignore[attr-defined]
    return op.window.out_shape(H, W)  # type: ignore[attr-defined]


def cropped(op: Op, padding: tuple[Pair, Pair]) -> str:
    """What the last windows leave over where they do not fit evenly: "1 row, 2 columns cropped".

    Args:
        op: one that has a window.
        padding: that the images got, in the op or before. Where only some of that is left over,
            the text says "of padding".
    """
    window: Window = op.window  # type: ignore[attr-defined]
    left = []
    for axis, count in enumerate(positions(op)):
        n = op.x_shape[1 + axis] + sum(window.pad[axis])  # type: ignore[attr-defined]
        left.append(max(0, n - (count - 1) * window.stride[axis] - window.extent[axis]))
    image = [max(0, n - far) for n, (_, far) in zip(left, padding, strict=True)]
    what, lost = ("", image) if any(image) else (" of padding", left)
    words = [f"{n} {name}{'s' if n > 1 else ''}" for n, name in
             zip(lost, ("row", "column"), strict=True) if n]
    return f"{', '.join(words)}{what} cropped" if words else ""


def _mixes(op: Op, inputs: int) -> bool:
    """Does each number of the result depend on all pixels?"""
    if isinstance(op, Linear):
        return len(op.x_shape) != 4
    if isinstance(op, MatMul):
        return inputs > 1 or len(op.shapes[0]) != 4
    if isinstance(op, Reduction):
        return len(op.x_shape) != 4 or bool({1, 2} & set(op.axes))
    return isinstance(op, Col2im)


def _larger(pairs: list[Pair]) -> Pair:
    return _pair(map(max, zip(*pairs, strict=True)))


def _pair(numbers: Iterable[int]) -> Pair:
    height, width = numbers
    return height, width


def _aligned(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[int, int]]:
    n = max(len(a), len(b))
    return list(zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True))
