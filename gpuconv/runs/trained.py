"""A trained model, out of a run's folder or a checkpoint."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from gpuconv import files, models
from gpuconv.backend import check_arrays
from gpuconv.checks import short
from gpuconv.data import Dataset
from gpuconv.nn import Module
from gpuconv.runs.folder import RunFolder
from gpuconv.train import predictions, weights
from gpuconv.train.checkpoint import best


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A model in use, and what it takes to ask it.

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

    def probabilities(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """What the model makes of images.

        Args:
            images: (N, H, W, C) uint8, of ``input_shape``, at least one.
            batch_size: of them at a time.

        Returns:
            (N, classes) float32 on the CPU; each row sums to 1.

        Raises:
            ValueError, TypeError: images of another shape or dtype.
        """
        check_arrays("probabilities", images=images)
        if images.shape[1:] != self.input_shape:
            raise ValueError(f"images are {images.shape}, the model takes (N, "
                             f"{', '.join(map(str, self.input_shape))})")
        unknown = Dataset(images, np.zeros(len(images), np.int32), self.classes, "images")
        return predictions(self.model, unknown, mean=self.mean, std=self.std,
                           batch_size=batch_size).probabilities


def load(path: str | os.PathLike, device: str = "cpu") -> Trained:
    """The model of a run, or of a checkpoint.

    Args:
        path: a run's folder (its best checkpoint, without a whole one its newest), or a checkpoint.
        device: where to.

    Raises:
        FileNotFoundError: nothing there, or no checkpoint in the folder.
        ValueError: damaged, no checkpoint of gpuconv, or of a model that it does not know.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        folder = RunFolder(path)
        folder.config()
        path = best(folder.checkpoints_folder)
    state, metadata = files.load(path)
    missing = [name for name in ("model", "classes", "mean", "std", "input_shape")
               if metadata.get(name) is None]
    if missing:
        raise ValueError(f"{path}: holds named arrays, but not what a model needs to be used: "
                         f"there is no {', '.join(missing)}")
    try:
        _check(metadata)
        model = models.build(metadata["model"])
        kept = weights(state)
        dtype = next((a.dtype.name for name, a in kept.items() if name.endswith("weight")),
                     "float32")
        model.to(dtype).load_state_dict(kept)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    inside = path.absolute().parent.parent
    return Trained(model.eval().to(device), tuple(metadata["classes"]),
                   np.array(metadata["mean"]), np.array(metadata["std"]),
                   tuple(metadata["input_shape"]), metadata["model"], path, metadata,
                   RunFolder(inside) if (inside / "config.json").is_file() else None)


def _check(metadata: dict[str, Any]) -> None:
    """Raise ValueError of what no checkpoint of a run can have: a file may come from anywhere."""
    shape, classes = metadata["input_shape"], metadata["classes"]
    if not (isinstance(shape, list) and len(shape) == 3
            and all(isinstance(size, int) and size > 0 for size in shape)):
        raise ValueError(f"input_shape is {shape!r}, wanted [H, W, C]")
    if tuple(shape) != (wanted := models.input_shape(metadata["model"])):
        raise ValueError(f"input_shape is {shape}, the model takes {list(wanted)}")
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"classes are {classes!r}, wanted a list of names")
    for name in ("mean", "std"):
        values = metadata[name]
        if not (isinstance(values, list) and len(values) == shape[2]
                and all(isinstance(x, int | float) for x in values)):
            raise ValueError(f"{name} is {values!r}, wanted {shape[2]} numbers")
