"""Observers: functions that are called around the forward of each layer of a model, for a while.

``nn.summary``, ``nn.nvtx_ranges`` and timing by layer are made of these. Observing does not change
what runs: layers that run as one op (see fusion.py) are observed as one.
"""

import contextlib
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpuconv import random
from gpuconv.backend import array_device
from gpuconv.nn.module import Module

Around = Callable[..., Any]

_contexts = itertools.count()


class Fused(Module):
    """Layers that run as one op: the ``module`` that an observer of several layers gets."""

    def __init__(self, layers: Sequence[Module], paths: Sequence[str] = ()):
        self.layers = tuple(layers)  # a tuple: they are no children of this module
        self.paths = tuple(paths)


def kind(module: Module) -> str:
    """Return the name of a module's class; of layers that run as one op, all names.

    >>> from gpuconv.nn import BatchNorm2d, ReLU
    >>> kind(ReLU()), kind(Fused([BatchNorm2d(2), ReLU()]))
    ('ReLU', 'BatchNorm2d+ReLU')
    """
    layers = module.layers if isinstance(module, Fused) else [module]
    return "+".join(type(layer).__name__ for layer in layers)


@contextlib.contextmanager
def observed(model: Module, around: Around) -> Iterator[None]:
    """For as long as it is entered, call ``around`` in place of the ``forward`` of each module.

    Args:
        model: it and all modules below it are observed; its own path is "".
        around: ``around(path, module, forward, *inputs)`` is called in place of
            ``module.forward(*inputs)``; what it returns is what the module gives. It is called once
            for layers that run as one op: ``path`` is then their paths joined by "+", and
            ``module`` a ``Fused`` of these layers. The sum at the end of a Residual counts as a
            layer, with the path of the Residual; a Residual whose body is planned with the layers
            behind it is not called itself.

    Contexts nest: the one entered last is called first. Afterwards, also after an error, the model
    is what it was.

    >>> import numpy as np
    >>> from gpuconv.nn import BatchNorm2d, Flatten, ReLU, Sequential
    >>> def around(path, module, forward, *inputs):
    ...     print(repr(path), kind(module))
    ...     return forward(*inputs)
    >>> model = Sequential(BatchNorm2d(3), ReLU(), Flatten())
    >>> with observed(model, around):
    ...     y = model(np.ones((1, 2, 2, 3), "float32"))
    '' Sequential
    '0+1' BatchNorm2d+ReLU
    '2' Flatten
    """
    modules, context = [], next(_contexts)
    try:
        for path, module in model.named_modules():
            modules.append(module)
            own = vars(module).get("forward")
            vars(module)["forward"] = _Observer(around, path, module, own, context)
        yield
    finally:
        for module in modules:
            own = _without(vars(module).pop("forward"), context)
            if own is not None:  # of another context, or set by hand
                vars(module)["forward"] = own


def calls(model: Module, x: Any) -> list[tuple[str, ...]]:
    """Return the paths of the layers of each call of an observer of ``model(x)``, in order."""
    paths: list[tuple[str, ...]] = []

    def around(path: str, module: Module, forward: Any, *inputs: Any) -> Any:
        paths.append(module.paths if isinstance(module, Fused) else (path,))
        return forward(*inputs)

    with observed(model, around):
        model(x)
    return paths


@dataclasses.dataclass(frozen=True, eq=False)
class _Observer:
    """The ``forward`` of an observed module."""

    around: Around
    path: str
    module: Module
    own: Any      # the attribute that it replaced; None: there was none
    context: int  # number of the ``observed`` that it belongs to

    def __call__(self, *inputs: Any) -> Any:
        forward = self.own or types.MethodType(type(self.module).forward, self.module)
        return self.around(self.path, self.module, forward, *inputs)


def _without(forward: Any, context: int) -> Any:
    """Return a ``forward`` without the observer of this context, which need not be the last."""
    if not isinstance(forward, _Observer):
        return forward
    own = _without(forward.own, context)
    return own if forward.context == context else dataclasses.replace(forward, own=own)


def _observers(module: Module) -> Iterator[_Observer]:
    """Yield the observers of a module, the one entered last first."""
    forward = vars(module).get("forward")
    while isinstance(forward, _Observer):
        yield forward
        forward = forward.own


def hand_set(layer: Any) -> bool:
    """Return True if the ``forward`` of this object was set by hand, not by an observer."""
    forward = layer.__dict__.get("forward")
    while isinstance(forward, _Observer):
        forward = forward.own
    return forward is not None


def call_observed(layers: Sequence[Module], forward: Callable[..., Any], *inputs: Any) -> Any:
    """Return ``forward(*inputs)``, which runs all layers, called through their observers."""
    contexts: dict[int, list[_Observer]] = {}
    for layer in layers:
        for observer in _observers(layer):
            contexts.setdefault(observer.context, []).append(observer)
    for _, found in sorted(contexts.items()):
        paths, module = [o.path for o in found], found[0].module
        if len(found) > 1:
            module = Fused([o.module for o in found], paths)
        forward = functools.partial(found[0].around, "+".join(paths), module, forward)
    return forward(*inputs)


@contextlib.contextmanager
def untouched(model: Module) -> Iterator[None]:
    """Restore the model when the block ends, whatever ran in it.

    Restored are the attributes of its modules (``training``, ``volume`` of a Flatten, the step of a
    Dropout), what its buffers hold, and the draws of ``gpuconv.random``. Parameters are not copied:
    forward does not write to them.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = []
    for buffer in model.buffers():
        with array_device(buffer):
            buffers.append((buffer, buffer.copy()))
    seed, draws = random._default.seed, next(random._default.draws)
    random._default.draws = itertools.count(draws)
    try:
        yield
    finally:
        random._default.seed, random._default.draws = seed, itertools.count(draws)
        for module, own in attributes:
            vars(module).clear()
            vars(module).update(own)
        for buffer, values in buffers:
            with array_device(buffer):
                buffer[...] = values
