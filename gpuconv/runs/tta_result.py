"""Result of a run's last test with test-time augmentation: views.json."""

import dataclasses
import json
import pathlib

from gpuconv import files, reading
from gpuconv.jsontext import is_count, is_number


@dataclasses.dataclass(frozen=True)
class TtaResult:
    """Result of the test after the last epoch, with test-time augmentation."""

    views: str       # a name in train.VIEWS
    epoch: int
    images: int
    accuracy: float  # 0..1
    loss: float      # nats per image

    def write(self, path: pathlib.Path) -> None:
        """Write the result as JSON."""
        with files.atomic_write(path, "w") as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: pathlib.Path) -> "TtaResult":
        """Read what ``write`` wrote.

        Raises:
            OSError: the file cannot be read, or is no file.
            ValueError: it is damaged.
        """
        values = reading.read_json(path)
        wanted = {"views": lambda value: isinstance(value, str), "epoch": is_count,
                  "images": is_count, "accuracy": lambda value: is_number(value, 0, 1),
                  "loss": lambda value: isinstance(value, float)}
        if not isinstance(values, dict) or values.keys() != wanted.keys():
            raise ValueError(f"{path}: damaged: it is {values!r:.80}, wanted {', '.join(wanted)}")
        for name, fits in wanted.items():
            if not fits(values[name]):
                raise ValueError(f"{path}: damaged: {name} is {values[name]!r:.80}")
        return cls(**values)
