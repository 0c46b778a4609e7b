"""Checks before a run begins: its settings against the images, and the place of its folder."""

import os
import pathlib
from collections.abc import Callable

import numpy as np

from gpuconv import files, models
from gpuconv.backend import float_dtype
from gpuconv.data import Dataset, Source
from gpuconv.messages import program, quoted
from gpuconv.runs.config import Config
from gpuconv.runs.lock import NAME as LOCK
from gpuconv.train import VIEWS


def check_data(config: Config, train: Dataset, test: Dataset) -> None:
    """Check that model, settings and images fit, before a run begins.

    Args:
        config: of the run.
        train, test: the images.

    Raises:
        ValueError: model, settings and images do not fit; says which, with the values.

    >>> from gpuconv.train import Settings
    >>> config = Config({"notation": "INPUT 32x32x3 FC 10"}, Source("shapes"), Settings(crop=40))
    >>> check_data(config, *Source("shapes", limit=2).load())
    Traceback (most recent call last):
    ValueError: crop 40 is too much for images of 32x32 pixels: wanted less than 32
    """
    for check in CHECKS:
        check(config, train, test)


def _shapes(config: Config, train: Dataset, test: Dataset) -> None:
    wanted = models.input_shape(config.model)
    for data in (train, test):
        if not len(data):
            raise ValueError(f"{data.name}: no images")
        if data.images.shape[1:] != wanted:
            raise ValueError(f"{data.name}: images are {data.images.shape[1:]}, the model takes "
                             f"{wanted}")


def _channels(config: Config, train: Dataset, test: Dataset) -> None:
    mean, std, C = config.settings.mean, config.settings.std, train.images.shape[3]
    if mean is None or std is None:
        if not (train.std > 0).all():
            raise ValueError(f"{train.name}: the standard deviation of the channels is "
                             f"{train.std.tolist()}: one does not vary, so it cannot be "
                             "normalised")
    elif (len(mean), len(std)) != (C, C):
        raise ValueError(f"{_whose(config)} normalises by mean {mean} and std {std}, and the "
                         f"images have {C} channel{'s' * (C > 1)}")


def _moves(config: Config, train: Dataset, test: Dataset) -> None:
    """Check that neither the crop nor the test-time augmentation moves images out of sight."""
    settings, (H, W) = config.settings, train.images.shape[1:3]
    of = f"images of {H}x{W} pixels"
    if settings.crop and settings.crop >= min(H, W):
        raise ValueError(f"crop {settings.crop} is too much for {of}: wanted less than "
                         f"{min(H, W)}")
    shift = max(one.move.pad for one in VIEWS[settings.views] if one.move) if (
        settings.views != "none") else 0
    if shift >= min(H, W):
        raise ValueError(f"views {settings.views} move images by {shift} pixel{'s' * (shift > 1)}: "
                         f"too much for {of}")


def _batches(config: Config, train: Dataset, test: Dataset) -> None:
    """Check the last batch: a single image is too little for some norms, so try one."""
    size, n = config.settings.batch_size, len(train)
    if config.settings.drop_last and n < size:
        raise ValueError(f"{_whose(config)} trains on whole batches of {size}, and there are {n} "
                         "images: --batch-size makes them smaller")
    if size > 1 and (config.settings.drop_last or n % size != 1):
        return
    model = models.build(config.model).train()
    try:
        model(np.zeros((1, *train.images.shape[1:]), np.float32))
    except ValueError as error:
        raise ValueError(f"{n} images in batches of {size} leave one image for the last batch: "
                         f"{error}") from None


def _optimizer(config: Config, train: Dataset, test: Dataset) -> None:
    """Check the optimiser's settings, and that the dtype is available."""
    float_dtype(config.dtype)
    config.settings.fit_arguments(models.build(config.model).to(config.dtype))


CHECKS: tuple[Callable[[Config, Dataset, Dataset], None], ...] = (
    _shapes, _channels, _moves, _batches, _optimizer)


def _whose(config: Config) -> str:
    return f"recipe {config.recipe}" if config.recipe else "the run"


def check_place(path: str | os.PathLike, source: Source) -> None:
    """Refuse a folder for runs that lies among the images: it would be read as a class.

    Raises:
        ValueError: it lies where the images are.

    >>> check_place("runs", Source("shapes"))
    """
    if source.kind != "folder" or source.path is None:
        return
    place, images = pathlib.Path(path).resolve(), pathlib.Path(source.path).resolve()
    if place.is_relative_to(images):
        raise ValueError(f"the run's folder {path} would lie in {source.path}, and its pictures be "
                         "taken for images of a class: --run names another place")


def check_free(path: str | os.PathLike) -> None:
    """Refuse to begin a run in a folder that is not empty.

    Raises:
        FileExistsError: a run or something else is in the folder; or a file has that name.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, wanted the name of a new folder")
    there = sorted(path.iterdir()) if path.exists() else []
    if any(one.name == "config.json" for one in there):
        raise FileExistsError(f"{path} is not empty: it holds a run; to go on with that, or to "
                              f"start it again: {program()} train --resume {quoted(path)}")
    if others := [one.name for one in there if not _is_leftover(one)]:
        raise FileExistsError(f"{path} is not empty: it has {', '.join(others[:3])}"
                              f"{', ...' if len(others) > 3 else ''}; a new run wants a folder of "
                              "its own")


def _is_leftover(path: pathlib.Path) -> bool:
    """Return whether this may be left from a run that ended before it had a config."""
    if path.name == "plots" and path.is_dir():
        return not any(path.iterdir())
    return path.name == LOCK or path.name.startswith(".") and path.name.endswith(files.UNFINISHED)
