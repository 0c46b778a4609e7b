"""Configuration of a run: everything needed to repeat it."""

import dataclasses
import json
import os
from typing import Any

from gpuconv import backend, files, models, random, reading
from gpuconv.data import Source
from gpuconv.data.source import BY_POSITION
from gpuconv.train import Settings

REPAIR = "put back a copy of the file, as gpuconv train wrote it"


@dataclasses.dataclass(frozen=True)
class Config:
    """Model, data, settings and seed of a run."""

    model: dict[str, Any]   # what models.build makes it from
    source: Source          # of the data
    settings: Settings
    recipe: str = ""
    dtype: str = "float32"
    seed: int = 0
    device: str = "cpu"     # where it ran
    command: str = ""       # what was typed

    def write(self, path: str | os.PathLike) -> None:
        """Write it as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        with files.atomic_write(path, "w") as file:
            file.write(text)

    def check(self) -> None:
        """Raise ValueError or TypeError for what no run can have: a file may have been edited."""
        for name in ("recipe", "dtype", "device", "command"):
            if not isinstance(value := getattr(self, name), str):
                raise ValueError(f"{name} {value!r:.80}, wanted text")
        height, width, _ = models.input_shape(self.model)
        random.check_seed(self.seed)
        backend.gpu_number(self.device)
        if self.dtype not in backend.FLOATS:
            raise ValueError(f"dtype {self.dtype!r:.80}, wanted one of {', '.join(backend.FLOATS)}")
        if self.source.image_size not in (None, height, width):
            raise ValueError(f"source: image_size {self.source.image_size}, the model takes images "
                             f"of {height}x{width} pixels")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Config":
        """Read what ``write`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read, or is no file.
            MemoryError: it is larger than the memory that is free.
            ValueError: it is damaged, or of another kind; says why.
        """
        try:
            values = reading.read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {REPAIR}") from None
        try:
            made = cls(**_mapping(values, "it") | {
                "source": Source(**{"split": BY_POSITION, **_part(values, "source")}),  # as of old
                "settings": Settings.from_dict(_part(values, "settings"))})
            made.check()
            return made
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not the settings of a run: {error!s:.500}; {REPAIR}"
                             ) from None


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in values:
        raise ValueError(f"no {name!r}")
    return _mapping(values[name], name)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.80}, wanted names and values")
    return value
