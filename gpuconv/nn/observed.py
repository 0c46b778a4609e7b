"""Standing around the calls of a model's layers for a while, and leaving no trace in it.

``nn.summary``, ``nn.nvtx_ranges``, the prediction of memory and timing by layer are made of these.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from gpuconv import random
from gpuconv.backend import array_device
from gpuconv.nn.module import Module

Around = Callable[..., Any]


@contextlib.contextmanager
def observed(model: Module, around: Around) -> Iterator[None]:
    """For as long as it is entered, ``around`` stands between each module and its ``forward``.

    Args:
        model: it and all modules below it are observed; its own path is "".
        around: ``around(path, module, forward, *inputs)`` is called in place of each
            ``module.forward(*inputs)``; what it returns is what the module gives.

    Contexts nest: the one entered last is called first. Afterwards, also after an error, the model
    is what it was.

    >>> import numpy as np
    >>> from gpuconv.nn import Flatten, Sequential
    >>> def around(path, module, forward, *inputs):
    ...     print(repr(path), type(module).__name__)
    ...     return forward(*inputs)
    >>> model = Sequential(Flatten())
    >>> with observed(model, around):
    ...     y = model(np.ones((1, 2, 2, 3)))
    '' Sequential
    '0' Flatten
    """
    before = []
    try:
        for path, module in model.named_modules():
            forward = module.forward
            before.append((module, vars(module).get("forward")))
            vars(module)["forward"] = functools.partial(around, path, module, forward)
        yield
    finally:
        for module, own in before:
            if own is None:
                del vars(module)["forward"]
            else:  # of an outer context
                vars(module)["forward"] = own


@contextlib.contextmanager
def untouched(model: Module) -> Iterator[None]:
    """Afterwards the model is what it was before, whatever ran in it: to try it out.

    That is: the attributes of its modules (``training``, ``volume`` of a Flatten, the step of a
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
