"""Checks of the sizes that layers are made with."""

from typing import Any

from gpuconv.checks import check_count


def positive(layer: str, **sizes: Any) -> tuple[int, ...]:
    """Return the sizes, checked to be ints of at least 1.

    Raises:
        TypeError, ValueError: one is not; names it.
    """
    return tuple(check_count(layer, name, size) for name, size in sizes.items())
