"""What a run was told: everything that it takes to do it again."""

import dataclasses
import json
import os
from typing import Any

from gpuconv import backend, files, models, random
from gpuconv.data import Source
from gpuconv.data.source import BY_POSITION
from gpuconv.train import Settings


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
        models.input_shape(self.model)
        random.check_seed(self.seed)
        backend.gpu_number(self.device)
        if self.dtype not in backend.FLOATS:
            raise ValueError(f"dtype {self.dtype!r}, wanted one of {', '.join(backend.FLOATS)}")
        if not isinstance(self.source.path, str | None):
            raise ValueError(f"source: path {self.source.path!r}, wanted text")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Config":
        """Read what ``write`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read, or is no file.
            ValueError: it is damaged, or of another kind; says why.
        """
        try:
            values = json.loads(files.read_text(path))
            source = Source(**{"split": BY_POSITION, **values["source"]})  # as of older runs
            made = cls(**{**values, "source": source,
                          "settings": Settings.of(values["settings"])})
            made.check()
            return made
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError,
                RecursionError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: not the settings of a run: {what}") from None
