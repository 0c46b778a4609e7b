"""Fusion: which neighbouring layers of a chain run as one op.

``PATTERNS`` is all of it. ``nn.Sequential`` plans its layers at each forward: where a layer begins
a pattern, the layers of the first pattern that fits run as one op; all others run alone. A layer
takes part only if it is exactly of the class that the pattern names (not of a subclass), and nobody
has set its ``forward``.

On a GPU, what follows a convolution or a Linear layer is computed while its result is in registers,
and patterns reach across the sum at the end of a residual branch. A ReLU and the max pool behind it
change places on both devices: ReLU then has fewer pixels to work on, and the bits are the same.
A Sequential inside a Sequential is planned by itself.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpuconv.autograd import Tensor
from gpuconv.backend import is_gpu
from gpuconv.nn.layers import ACTIVATION_LAYERS, BatchNorm2d, Conv2d, Linear, MaxPool2d, ReLU
from gpuconv.nn.module import Module
from gpuconv.nn.observed import call_observed, hand_set
from gpuconv.ops.conv import HALVES, conv2d, conv_batch_norm, conv_max_pool
from gpuconv.ops.elementwise import add
from gpuconv.ops.matmul import linear
from gpuconv.ops.norm import batch_norm

__all__ = ["disabled"]


class Sum:
    """The end of a residual branch: y = body(x) + shortcut(x).

    Args:
        residual: the Residual; its ``shortcut`` is a module, or None for x itself.
    """

    def __init__(self, residual: Any):
        self.residual = residual
        self.x: Any = None      # the input of both branches, until the shortcut is computed
        self.value: Any = None  # the shortcut's value, until it is taken

    def begin(self, x: Tensor) -> Tensor:
        """Keep the input of the branches for the shortcut; return it."""
        self.x = x
        return x

    def compute_shortcut(self) -> None:
        """Compute the shortcut: after the body, or before the item that ends in the sum."""
        x, self.x = self.x, None
        self.value = x if self.residual.shortcut is None else self.residual.shortcut(x)

    def take(self) -> Any:
        """Return the shortcut's value, and forget it."""
        value, self.value = self.value, None
        return value

    def __call__(self, y: Tensor) -> Tensor:
        """Return y + the shortcut; nothing is broadcast."""
        shortcut = self.take()
        if y.shape != shortcut.shape:
            raise ValueError(f"Residual: body gives {y.shape}, shortcut {shortcut.shape}")
        return add(y, shortcut)


# -- the table -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in a pattern: classes of layers, and the settings that a layer must have."""

    kinds: tuple[type, ...]
    allows: Callable[[Any], bool] | None = None
    optional: bool = False

    def fits(self, layer: Any) -> bool:
        """Return True if this layer fits here."""
        return (type(layer) in self.kinds and not hand_set(layer)
                and (self.allows is None or self.allows(layer)))


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Layers that run as one op.

    Args:
        devices: where: "cpu", "cuda".
        slots: for the layers, in order.
        run: ``run(x, *layers)``, one layer for each slot: None where an optional one is missing,
            and for a Sum the value of the shortcut.
    """

    devices: tuple[str, ...]
    slots: tuple[Slot, ...]
    run: Callable[..., Tensor]

    def match(self, chain: Sequence[Any], start: int) -> list[Any] | None:
        """Return the layers for the slots, from chain[start] on; None where two or more do not fit.

        An optional slot that nothing fits holds None.
        """
        found: list[Any] = []
        at = start
        for slot in self.slots:
            if at < len(chain) and slot.fits(chain[at]):
                found.append(chain[at])
                at += 1
            elif slot.optional:
                found.append(None)
            else:
                return None
        return found if at > start + 1 else None


def activation_name(layer: Module | None) -> str | None:
    """Return the name of an activation layer in fused ops; None for no layer."""
    return None if layer is None else ACTIVATION_LAYERS[type(layer)]


def _zero_padded(conv: Conv2d) -> bool:
    """Return True if the epilogue of this convolution can hold a pool or batch statistics."""
    return conv.padding_mode == "zeros" and conv.groups == 1


def _conv_batch_norm(x: Tensor, conv: Conv2d, pool: MaxPool2d | None, norm: BatchNorm2d,
                     residual: Tensor | None, activation: Module | None) -> Tensor:
    return conv_batch_norm(x, conv.weight, **conv.options(), **norm.options(),
                           pool=pool is not None, residual=residual,
                           activation=activation_name(activation))


def _conv_max_pool(x: Tensor, conv: Conv2d, pool: MaxPool2d, relu: ReLU | None) -> Tensor:
    return conv_max_pool(x, conv.weight, conv.bias, **conv.options(),
                         activation=activation_name(relu))


def _conv_relu_max_pool(x: Tensor, conv: Conv2d, relu: ReLU, pool: MaxPool2d) -> Tensor:
    return _conv_max_pool(x, conv, pool, relu)


def _conv_then_max_pool_relu(x: Tensor, conv: Conv2d, relu: ReLU, pool: MaxPool2d) -> Tensor:
    return _max_pool_relu(Conv2d.forward(conv, x), relu, pool)


def _conv(x: Tensor, conv: Conv2d, residual: Tensor | None, activation: Module | None) -> Tensor:
    return conv2d(x, conv.weight, conv.bias, groups=conv.groups, padding_mode=conv.padding_mode,
                  **conv.options(), residual=residual, activation=activation_name(activation))


def _linear(x: Tensor, layer: Linear, activation: Module) -> Tensor:
    return linear(x, layer.weight, layer.bias, precision=layer.precision,
                  activation=activation_name(activation))


def _batch_norm(x: Tensor, norm: BatchNorm2d, residual: Tensor | None,
                activation: Module | None) -> Tensor:
    return batch_norm(x, **norm.options(), residual=residual,
                      activation=activation_name(activation))


def _batch_norm_relu(x: Tensor, norm: BatchNorm2d, relu: ReLU) -> Tensor:
    return _batch_norm(x, norm, None, relu)


def _max_pool_relu(x: Tensor, relu: ReLU, pool: MaxPool2d) -> Tensor:
    return ReLU.forward(relu, MaxPool2d.forward(pool, x))


_CONV = Slot((Conv2d,))
_ZERO_PADDED = Slot((Conv2d,), _zero_padded)
_WITHOUT_BIAS = Slot((Conv2d,), lambda conv: conv.bias is None and _zero_padded(conv))
_LINEAR = Slot((Linear,))
_NORM = Slot((BatchNorm2d,))
_RELU = Slot((ReLU,))
_ACTIVATION = Slot(tuple(ACTIVATION_LAYERS))
_SUM = Slot((Sum,))
_HALVES = Slot((MaxPool2d,), lambda pool: pool.window == HALVES)  # 2x2 pixels become one
_POOL = Slot((MaxPool2d,), lambda pool: not pool.may_be_empty)    # -inf must not meet a ReLU


def _maybe(slot: Slot) -> Slot:
    return dataclasses.replace(slot, optional=True)


PATTERNS = (  # the first that fits is taken
    Pattern(("cuda",), (_WITHOUT_BIAS, _maybe(_HALVES), _NORM, _maybe(_SUM), _maybe(_ACTIVATION)),
            _conv_batch_norm),
    Pattern(("cuda",), (_ZERO_PADDED, _HALVES, _maybe(_RELU)), _conv_max_pool),
    Pattern(("cuda",), (_ZERO_PADDED, _RELU, _HALVES), _conv_relu_max_pool),
    Pattern(("cuda",), (_CONV, _RELU, _POOL), _conv_then_max_pool_relu),
    Pattern(("cuda",), (_CONV, _maybe(_SUM), _maybe(_ACTIVATION)), _conv),
    Pattern(("cuda",), (_LINEAR, _ACTIVATION), _linear),
    Pattern(("cuda",), (_NORM, _maybe(_SUM), _maybe(_ACTIVATION)), _batch_norm),
    Pattern(("cpu",), (_NORM, _RELU), _batch_norm_relu),
    Pattern(("cpu", "cuda"), (_RELU, _POOL), _max_pool_relu),
)
_STARTING: dict[str, dict[type, list[Pattern]]] = {  # by device and class of the first layer
    device: {kind: [p for p in PATTERNS if device in p.devices and kind in p.slots[0].kinds]
             for kind in (Conv2d, Linear, BatchNorm2d, ReLU)} for device in ("cpu", "cuda")}


# -- planning and running ------------------------------------------------------------------


class _Mode(threading.local):
    device: str | None = None  # whose patterns are used; None: those of the data's device


_mode = _Mode()


def disabled() -> contextlib.AbstractContextManager[None]:
    """Run layer by layer, in this thread: ``with nn.fusion.disabled():``.

    The result is the same but for rounding.

    >>> import numpy as np
    >>> from gpuconv import nn
    >>> net = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU())
    >>> x = np.array([[-3.0], [1.0]], "float32")
    >>> with nn.fusion.disabled():
    ...     net(x).numpy().round(3).tolist()
    [[0.0], [1.0]]
    """
    return planned_for("none")


@contextlib.contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Use the patterns of "cpu", "cuda" or "none", in this thread, wherever the data are."""
    before, _mode.device = _mode.device, device
    try:
        yield
    finally:
        _mode.device = before


def device_of(x: Any) -> str:
    """Return whose patterns are used for x: "cpu", "cuda" or, where fusion is disabled, "none"."""
    return _mode.device or ("cuda" if is_gpu(getattr(x, "data", None)) else "cpu")


def spans_sums(x: Any) -> bool:
    """Return True if patterns for x reach across the sum at the end of a residual branch."""
    return device_of(x) == "cuda"


def plan(chain: Sequence[Any], device: str) -> Iterator[tuple[list[Any], Callable[..., Any]]]:
    """Yield (layers that run together, the function that runs them) of a chain, in order.

    Args:
        chain: modules; and a Sum, with its ``begin``, for each residual branch.
        device: "cpu", "cuda" or "none".
    """
    start, patterns = 0, _STARTING.get(device, {})
    while start < len(chain):
        layers, run = [chain[start]], chain[start]
        for pattern in patterns.get(type(run), ()):
            if found := pattern.match(chain, start):
                layers = [layer for layer in found if layer is not None]
                run = _Run(pattern, found)
                break
        yield layers, run
        start += len(layers)


class _Run:
    """A pattern, with the layers for its slots."""

    def __init__(self, pattern: Pattern, layers: list[Any]):
        self.pattern, self.layers = pattern, layers

    def __call__(self, x: Tensor) -> Tensor:
        """Run the layers on x."""
        return self.pattern.run(x, *(layer.take() if type(layer) is Sum else layer
                                     for layer in self.layers))


def run(chain: Sequence[Any], x: Tensor) -> Tensor:
    """Return the value of a chain for x; see ``plan``."""
    for layers, forward in plan(chain, device_of(x)):
        if isinstance(forward, _Run | Sum):
            for layer in layers:
                if type(layer) is Sum:
                    layer.compute_shortcut()
            x = call_observed([layer.residual if type(layer) is Sum else layer
                               for layer in layers], forward, x)
        else:  # a module, which calls its observers itself; or where a branch begins
            x = forward(x)
    return x
