"""Receptive field of an op's output: the part of the image that one output pixel depends on.

Receptive fields are rectangles. Those of neighbouring output pixels lie ``step`` pixels apart.
Along each axis, an op with a window turns the field and step of its input into

    field' = field + (extent - 1) step         extent: pixels from a window's first to its last
    step'  = step stride

An op says with a word for each input what its output depends on (``Op.depends_on``). An op with
several inputs, such as the sum at the end of a residual block, sees what any of them sees. An op
that mixes all pixels (a global pool, a Linear over a flattened volume) sees the whole image, and
nothing sees more than that.

Source: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill
2019.
"""

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpuconv.autograd import Op
from gpuconv.checks import check_choice, check_count, short
from gpuconv.ops.window import Pair, Window, levelled


class Field(NamedTuple):
    """Size of the receptive field and distance between neighbours, (height, width) in pixels."""

    size: Pair = (1, 1)
    step: Pair = (1, 1)


def field(op: Op, seen: list[Field | None], image: Pair) -> Field | None:
    """Return the receptive field of an op's output, None if it does not depend on the image.

    Args:
        op: after forward.
        seen: the field of each input; None for an input that does not depend on the image.
        image: (height, width).
    """
    words = _words(op, len(seen))[:len(seen)]  # the last inputs may be absent
    fields = [_through(op, word, before, image)
              for word, before in zip(words, seen, strict=True) if before]
    if not fields:
        return None
    sizes, steps = zip(*fields, strict=True)
    return Field(_larger(sizes), _larger(steps))


def windowed(op: Op) -> list[Any]:
    """Return the ops with a window: ``op`` itself, or those that are fused in it."""
    return [part for part in getattr(op, "fused_ops", (op,)) if "window" in _words(part)]


def positions(op: Any) -> Pair:
    """Return (P, Q), the window positions of an op with a window."""
    return op.window.out_shape(*op.x_shape[1:3])


def cropped(op: Any, padding: tuple[Pair, Pair]) -> str:
    """Return what the last windows leave over: "1 row, 2 columns cropped"; "" if they fit evenly.

    Args:
        op: an op with a window.
        padding: of the images, by the op or before it. Where only some of that is left over, the
            text says "of padding".
    """
    window: Window = op.window
    left = []
    for axis, count in enumerate(positions(op)):
        n = op.x_shape[1 + axis] + sum(window.pad[axis])
        left.append(max(0, n - (count - 1) * window.stride[axis] - window.extent[axis]))
    image = [max(0, n - far) for n, (_, far) in zip(left, padding, strict=True)]
    what, lost = ("", image) if any(image) else (" of padding", left)
    words = [f"{n} {name}{'s' if n > 1 else ''}" for n, name in
             zip(lost, ("row", "column"), strict=True) if n]
    return f"{', '.join(words)}{what} cropped" if words else ""


def _words(op: Op, inputs: int = 1) -> tuple[str, ...]:
    """Return ``op.depends_on`` as a word for each input."""
    words, name = op.depends_on, type(op).__name__
    words = (words,) * inputs if isinstance(words, str) else words
    if not isinstance(words, tuple) or len(words) < inputs:
        raise TypeError(f"{name}: depends_on is {short(words)}, wanted 'pixel', 'window' or 'all', "
                        f"or a tuple with such a word for each of {inputs} inputs")
    for word in words:
        check_choice(name, "depends_on", word, ("pixel", "window", "all"))
    fused = hasattr(op, "fused_ops")
    if "window" in words and not fused and not (hasattr(op, "window") and hasattr(op, "x_shape")):
        raise TypeError(f"{name}: depends_on is 'window', but the op has no attributes window (a "
                        "Window) and x_shape")
    return words


def products(op: Op) -> int:
    """Return ``op.multiply_adds``, checked to be a number of products."""
    return check_count(type(op).__name__, "multiply_adds", op.multiply_adds, 0)


def _through(op: Any, word: str, before: Field, image: Pair) -> Field:
    """Return the field of the output through an input whose field is ``before``."""
    if word == "all":
        return Field(image, before.step)
    if word == "pixel":
        return before
    if hasattr(op, "fused_ops"):  # the ops that the first input goes through, in order
        for part in op.fused_ops:
            before = _through(part, _words(part)[0], before, image)
        return before
    window = levelled(op.window, *op.x_shape[1:3], "met")
    pairs = zip(before.size, window.extent, before.step, image, strict=True)
    size = _pair(min(n + (extent - 1) * step, whole) for n, extent, step, whole in pairs)
    return Field(size, _pair(map(operator.mul, before.step, window.stride)))


def _larger(pairs: Iterable[Pair]) -> Pair:
    return _pair(map(max, zip(*pairs, strict=True)))


def _pair(numbers: Iterable[int]) -> Pair:
    height, width = numbers
    return height, width
