"""Ops that are made of other ops: one node on the tape, one pass over memory where possible."""

from collections.abc import Iterator, Sequence
from typing import Any

from gpuconv.autograd import Op


class Composite(Op):
    """Ops in a chain as one op, on a GPU; each takes the value of the one before.

    A subclass defines ``fused_gpu``, which computes the chain's value at once and lets each part
    save what its backward reads. It never sets ``needs``: each part knows its own by then. Where
    ``fused_gpu`` cannot run, the parts run one after the other; and always in backward.

    Saves: what the parts save. In backward each part is freed as soon as it has run.

    Args:
        parts: (op, number of inputs) of each part, in order; the value of the part before does not
            count as an input. The inputs of the composite are those of all parts.
    """

    def __init__(self, *parts: tuple[Op, int]):
        self.fused_ops, self.counts = [op for op, _ in parts], [count for _, count in parts]

    depends_on: str | tuple[str, ...] = "window"  # on what all parts together make of the input

    @property
    def multiply_adds(self) -> int:
        """Number of products of all parts."""
        return sum(part.multiply_adds for part in self.fused_ops)

    def forward_gpu(self, *inputs: Any) -> Any:
        before: tuple[bool, ...] = ()
        for part, own in zip(self.fused_ops, self.shares(self.needs), strict=True):
            part.needs = *before, *own
            before = any(part.needs),
        y = self.fused_gpu(*inputs)
        if y is not None:
            return y
        value: tuple[Any, ...] = ()
        for part, own in zip(self.fused_ops, self.shares(inputs), strict=True):
            value = part.forward_gpu(*value, *own),
        return value[0]

    def fused_gpu(self, *inputs: Any) -> Any:
        """Return the value of the chain for C-contiguous CuPy arrays; None: it cannot run here."""
        raise NotImplementedError(f"{type(self).__name__} defines no fused_gpu")

    def backward_gpu(self, gy: Any) -> tuple[Any, ...]:
        gradients: list[Any] = []
        for index, part in reversed(list(enumerate(self.fused_ops))):
            if gy is None:  # no input of this part, or of one before it, wants a gradient
                gradients[:0] = [None] * self.counts[index]
                continue
            own = list(part.backward_gpu(gy))
            part.free()
            gy = own.pop(0) if index else None
            gradients[:0] = own
        return tuple(gradients)

    def shares(self, inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Yield the inputs of each part."""
        start = 0
        for count in self.counts:
            yield inputs[start : start + count]
            start += count
