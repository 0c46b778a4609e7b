"""Trained model, loaded from a run's folder or a checkpoint."""

import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuconv import files, models
from gpuconv.backend import check_arrays
from gpuconv.checks import check_path, short
from gpuconv.data import Dataset
from gpuconv.jsontext import is_count, is_number
from gpuconv.models.notation import Net
from gpuconv.nn import Module
from gpuconv.runs.folder import RunFolder
from gpuconv.runs.model_file import model_file
from gpuconv.train import Predictions, predictions, weights


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """Trained model in eval mode, with the data needed to apply it.

    ``mean`` and ``std``: (C,) that images are normalised to, pixels scaled to 0 .. 1.
    """

    model: Module                    # eval mode
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    input_shape: tuple[int, int, int]  # (H, W, C)
    description: dict[str, Any]      # models.build makes the model of it
    path: pathlib.Path               # the checkpoint
    metadata: dict[str, Any]
    folder: RunFolder | None         # of the run, if the checkpoint lies in one

    def __repr__(self) -> str:
        return f"Trained({short(str(self.path))}, {len(self.classes)} classes)"

    def probabilities(self, images: np.ndarray, batch_size: int = 256,
                      names: Sequence[str] | None = None) -> np.ndarray:
        """Return the probability of each class for each image.

        Args:
            images: (N, H, W, C) uint8, of ``input_shape``, at least one.
            batch_size: of them at a time.
            names: of the images, for messages.

        Returns:
            (N, classes) float32 on the CPU; each row sums to 1.

        Raises:
            ValueError, TypeError: images of another shape or dtype.
            FloatingPointError: an answer of the model is not finite.
        """
        check_arrays("probabilities", images=images)
        if images.shape[1:] != self.input_shape:
            raise ValueError(f"images are {images.shape}, the model takes (N, "
                             f"{', '.join(map(str, self.input_shape))})")
        unknown = Dataset(images, np.zeros(len(images), np.int32), self.classes, "images",
                          None if names is None else np.array(names, object))
        return self.predictions(unknown, batch_size=batch_size).probabilities

    def predictions(self, data: Dataset, **more: Any) -> Predictions:
        """Return the model's answers on a data set.

        Args:
            data: of images of ``input_shape``.
            more: batch_size, views: as of ``train.predictions``.

        Raises:
            TypeError, ValueError: as of ``train.predictions``.
            FloatingPointError: an answer of the model is not finite; names its file.
        """
        try:
            return predictions(self.model, data, mean=self.mean, std=self.std, **more)
        except FloatingPointError as error:
            raise FloatingPointError(f"{self.path}: {error}") from None


def load(path: str | os.PathLike, device: str = "cpu") -> Trained:
    """Return the model of a run, or of a checkpoint.

    Args:
        path: a run's folder (its best checkpoint, without a whole one its newest), or a checkpoint.
        device: where to.

    Raises:
        FileNotFoundError: nothing there, or no checkpoint in the folder.
        OSError: it is no regular file, or cannot be read.
        MemoryError: it does not fit into the memory that is free.
        TypeError: it holds bfloat16, and the package ml_dtypes is missing.
        ValueError: damaged, no checkpoint of gpuconv, or of a model that it does not know.
    """
    path = pathlib.Path(check_path("load", "path", path))
    if path.is_dir():
        folder = RunFolder(path)
        folder.config()
        path = model_file(folder)
    state, metadata = files.load(path)
    missing = [name for name in ("model", "classes", "mean", "std", "input_shape")
               if metadata.get(name) is None]
    if missing:
        raise ValueError(f"{path}: holds named arrays, but not what a model needs to be used: "
                         f"there is no {', '.join(missing)}")
    try:
        kept = weights(state)
        _check(metadata, check_size(metadata["model"], kept))
        model = models.build(metadata["model"])
        dtype = next((a.dtype.name for name, a in kept.items() if name.endswith("weight")),
                     "float32")
        model.to(dtype).load_state_dict(kept)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    except MemoryError as error:
        raise MemoryError(f"{path}: {error}") from None
    inside = path.absolute().parent.parent
    mean, std = (np.array(metadata[name], float) for name in ("mean", "std"))
    return Trained(model.eval().to(device), tuple(metadata["classes"]), mean, std,
                   tuple(metadata["input_shape"]), metadata["model"], path, metadata,
                   RunFolder(inside) if (inside / "config.json").is_file() else None)


def check_size(description: Any, state: Mapping[str, Any]) -> Net:
    """Check that a network is not larger than its arrays, before any memory is allocated.

    Args:
        description: of the network, out of a file.
        state: arrays by name, to be loaded into it.

    Returns:
        The plan of the network.

    Raises:
        ValueError: it is no description, or the network has more weights than there are.
    """
    net = models.plan(description)
    there = sum(a.size for name, a in state.items() if name.endswith("weight"))
    if net.weights > there:
        raise ValueError(f"the model {description!r:.80} has {net.weights:,} weights, the arrays "
                         f"hold {there:,}")
    return net


def _check(metadata: dict[str, Any], net: Net) -> None:
    """Check the metadata of a checkpoint, which is untrusted."""
    shape, classes = metadata["input_shape"], metadata["classes"]
    if not (isinstance(shape, list) and len(shape) == 3
            and all(is_count(size, 1) for size in shape)):
        raise ValueError(f"input_shape is {shape!r:.80}, wanted [H, W, C]")
    if tuple(shape) != net.input:
        raise ValueError(f"input_shape is {shape!r:.80}, the model takes {list(net.input)}")
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"classes are {classes!r:.80}, wanted a list of names")
    if (len(classes),) != net.output:
        raise ValueError(f"there are {len(classes):,} classes, the model gives {net.output}")
    for name, least in (("mean", -math.inf), ("std", sys.float_info.min)):
        values = metadata[name]
        if not (isinstance(values, list) and len(values) == shape[2]
                and all(is_number(x, least) for x in values)):
            raise ValueError(f"{name} is {values!r:.80}, wanted {shape[2]} numbers"
                             f"{' above 0' * (name == 'std')}")
