"""Checks of what ``fit`` is told."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpuconv.checks import check_choice, check_count, check_kind, check_number, short, type_name
from gpuconv.data import Augment, Dataset
from gpuconv.nn import Module
from gpuconv.optim import EMA, Optimizer
from gpuconv.train.batches import Floats
from gpuconv.train.callback import Callback

LARGEST = 2**31 - 1  # of epochs and batch_size


def check_fit(model: Any, optimizer: Any, augment: Any, ema: Any, **numbers: Any) -> None:
    """Refuse arguments of ``fit`` that make no sense.

    Raises:
        TypeError, ValueError: names the argument.
        RuntimeError: another optimiser has taken over the parameters of this one.
    """
    check_kind("fit", "model", model, Module)
    check_kind("fit", "optimizer", optimizer, Optimizer)
    for name, thing, wanted in (("augment", augment, Augment), ("ema", ema, EMA)):
        if thing is not None:
            check_kind("fit", name, thing, wanted)
    for name in ("epochs", "batch_size"):
        check_count("fit", name, numbers[name], most=LARGEST)
    check_choice("fit", "reduction", numbers["reduction"], ("mean", "sum"))
    check_number("fit", "label_smoothing", numbers["label_smoothing"], least=0, most=1)
    if numbers["clip_norm"] is not None:
        check_number("fit", "clip_norm", numbers["clip_norm"], above=0, infinite=True)
    optimizer.check_holds("fit")
    mine = {id(p) for p in model.parameters()}
    if not any(id(p) in mine for group in optimizer.groups for p in group["params"]):
        raise ValueError("fit: optimizer holds no parameter of the model")


def check_alike(train: Dataset | Floats, test: Dataset | Floats | None,
                augment: Augment | None) -> None:
    """Refuse a test set that is no set of images like those of the training set.

    Raises:
        TypeError, ValueError: one holds floats and the other bytes, or images of another shape.
    """
    if augment is not None and isinstance(train, Floats):
        raise ValueError(f"fit: augment wants uint8 images, train is {train.images.dtype}")
    if test is None:
        return
    if type(test) is not type(train):
        raise TypeError(f"fit: train is {train.images.dtype}, test {test.images.dtype}: "
                        "they would not be normalised alike")
    if test.images.shape[1:] != train.images.shape[1:]:
        raise ValueError(f"fit: images of train are {train.images.shape[1:]}, "
                         f"of test {test.images.shape[1:]}")


def scaling(loss_scale: str | float | None, dtype: np.dtype) -> str | float | None:
    """Return "dynamic", a number, or None for no loss scale.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if loss_scale is None:
        return "dynamic" if dtype.name == "float16" else None
    if isinstance(loss_scale, str):
        if loss_scale == "dynamic":
            return "dynamic"
        raise ValueError(f"fit: loss_scale {short(loss_scale)}, wanted 'dynamic' or a number")
    scale = check_number("fit", "loss_scale", loss_scale)
    if math.frexp(scale)[0] != 0.5:
        raise ValueError(f"fit: loss_scale is {scale}, wanted 'dynamic' or a power of two")
    return None if scale == 1 else scale


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Return the callbacks as a tuple.

    Raises:
        TypeError: they are no sequence of callbacks.
    """
    if isinstance(callbacks, (Callback, str)) or not isinstance(callbacks, Iterable):
        raise TypeError(f"fit: callbacks is {type_name(callbacks)}, wanted a list of Callbacks")
    listed = tuple(callbacks)
    for number, callback in enumerate(listed):
        check_kind("fit", f"callback {number}", callback, Callback)
    return listed
