"""Checks of the arguments of ``fit``."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpuconv.backend import is_array
from gpuconv.checks import check_choice, check_count, check_kind, check_number, short, type_name
from gpuconv.data import Augment, Dataset
from gpuconv.data.batches import FloatDataset
from gpuconv.data.dataset import check_per_channel
from gpuconv.nn import Module
from gpuconv.optim import EMA, Optimizer
from gpuconv.train.callback import Callback

LARGEST = 2**31 - 1  # epochs, batch_size


def check_fit(model: Any, optimizer: Any, augment: Any, ema: Any, **numbers: Any) -> None:
    """Raise TypeError or ValueError for arguments of ``fit`` that cannot be used.

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


def check_alike(train: Dataset | FloatDataset, test: Dataset | FloatDataset | None,
                augment: Augment | None) -> None:
    """Check that the images of the test set have the type and shape of the training set's.

    Raises:
        TypeError, ValueError: one set holds floats and the other bytes, or the shapes differ.
    """
    if augment is not None and isinstance(train, FloatDataset):
        raise ValueError(f"fit: augment wants uint8 images, train is {train.images.dtype}")
    if test is None:
        return
    if type(test) is not type(train):
        raise TypeError(f"fit: train is {train.images.dtype}, test {test.images.dtype}: "
                        "they would not be normalised alike")
    if test.images.shape[1:] != train.images.shape[1:]:
        raise ValueError(f"fit: images of train are {train.images.shape[1:]}, "
                         f"of test {test.images.shape[1:]}")


def check_loss_scale(loss_scale: str | float | None, dtype: np.dtype) -> str | float | None:
    """Check ``loss_scale`` and return "dynamic", a number, or None for no loss scale.

    Raises:
        TypeError, ValueError: it is neither "dynamic" nor a power of two.
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
    """Check the callbacks and return them as a tuple.

    Raises:
        TypeError: not a sequence of callbacks.
    """
    if isinstance(callbacks, (Callback, str)) or not isinstance(callbacks, Iterable):
        raise TypeError(f"fit: callbacks is {type_name(callbacks)}, wanted a list of Callbacks")
    listed = tuple(callbacks)
    for number, callback in enumerate(listed):
        check_kind("fit", f"callback {number}", callback, Callback)
    return listed


def check_normalize(data: Dataset | FloatDataset, normalize: Any) -> list[list[float]] | None:
    """Check the ``normalize`` of ``fit`` and return mean and std as lists of numbers.

    Raises:
        ValueError: not C finite numbers each, or a std that is not positive; or images are floats.
    """
    if normalize is None:
        return None
    if isinstance(data, FloatDataset):
        raise ValueError(f"fit: normalize wants uint8 images, train is {data.images.dtype}")
    if not (isinstance(normalize, (tuple, list)) or is_array(normalize)) or len(normalize) != 2:
        raise TypeError(f"fit: normalize is {short(normalize)}, wanted (mean, std)")
    C = data.images.shape[3]
    mean, std = (check_per_channel("fit: normalize", name, part, C).tolist() for name, part in zip(
        ("mean", "std"), normalize, strict=True))
    return [mean, std]
