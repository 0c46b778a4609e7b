"""Metrics of a run per epoch, and their form as a dict and as a table."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.jsontext import is_count, is_number


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Loss and accuracy of a model on a data set."""

    loss: float      # mean cross-entropy per image, nats
    accuracy: float  # share of images classified correctly, 0..1
    count: int       # images


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Metrics of one pass over the training set."""

    epoch: int       # 1, 2, ...
    train: Metrics   # running: of each batch before its update, in training mode
    test: Metrics | None     # after the epoch, in eval mode
    images_per_second: float  # of training alone, augmentation included
    seconds: float   # of training and test
    lr: float        # learning rate of the last step, of the largest group
    skipped: int = 0  # skipped updates: in float16 a gradient was not finite


def row_to_dict(row: Epoch) -> dict[str, float | int | None]:
    """Return a row as numbers by name, for JSON and CSV; None for what was not measured.

    >>> row = Epoch(1, Metrics(1.5, 0.25, 100), None, 2048.0, 3.21, 0.05)
    >>> numbers = row_to_dict(row)
    >>> numbers["accuracy"], numbers["test_accuracy"], row_from_dict(numbers) == row
    (0.25, None, True)
    """
    none = dict.fromkeys(field.name for field in dataclasses.fields(Metrics))
    test = dataclasses.asdict(row.test) if row.test else none
    return {"epoch": row.epoch, **dataclasses.asdict(row.train),
            **{f"test_{name}": value for name, value in test.items()},
            "images_per_second": row.images_per_second, "seconds": row.seconds, "lr": row.lr,
            "skipped": row.skipped}


def row_from_dict(numbers: Any, epoch: int | None = None) -> Epoch:
    """Return the row of a dict that ``row_to_dict`` made.

    Args:
        numbers: the dict; it may come from a file and is checked.
        epoch: number that the row must have; None: any.

    Raises:
        ValueError: a number is missing or out of range.
    """
    if not isinstance(numbers, Mapping):
        raise ValueError(f"it is {numbers!r:.40}, wanted numbers by name")
    tested = numbers.get("test_count") is not None
    for name, (wanted, fits) in FIELDS.items():
        if tested or not name.startswith("test_"):
            value = numbers.get(name, 0 if name == "skipped" else None)  # older runs had no skipped
            if not fits(value):
                raise ValueError(f"{name} is {value!r:.40}, wanted {wanted}")
    if epoch not in (None, numbers["epoch"]):
        raise ValueError(f"epoch is {numbers['epoch']}, wanted {epoch}")

    def metrics(prefix: str) -> Metrics:
        return Metrics(*(numbers[prefix + field.name] for field in dataclasses.fields(Metrics)))

    return Epoch(numbers["epoch"], metrics(""), metrics("test_") if tested else None,
                 numbers["images_per_second"], numbers["seconds"], numbers["lr"],
                 numbers.get("skipped", 0))


def _is_share(value: Any) -> bool:
    return is_number(value, 0, 1) or value != value


def _is_float(value: Any) -> bool:
    return is_number(value) or isinstance(value, float)  # NaN, say


COUNT, FLOAT, SHARE = (("a whole number, at least 0", is_count), ("a number", _is_float),
                       ("a number of 0..1", _is_share))
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # of a row: expected value, check
    "epoch": COUNT, "loss": FLOAT, "accuracy": SHARE, "count": COUNT, "test_loss": FLOAT,
    "test_accuracy": SHARE, "test_count": COUNT, "images_per_second": FLOAT, "lr": FLOAT,
    "seconds": ("a number, at least 0", lambda value: is_number(value, 0, 1e12)),
    "skipped": COUNT}


def _test(field: str) -> Callable[[Epoch], Any]:
    return lambda row: getattr(row.test, field) if row.test else None


# heading, value of a row, format
COLUMNS: list[tuple[str, Callable[[Epoch], Any], str]] = [
    ("epoch", lambda row: row.epoch, "d"),
    ("loss", lambda row: row.train.loss, ".4f"),
    ("accuracy", lambda row: row.train.accuracy, ".2%"),
    ("test loss", _test("loss"), ".4f"),
    ("test accuracy", _test("accuracy"), ".2%"),
    ("images/s", lambda row: row.images_per_second, ",.0f"),
    ("seconds", lambda row: row.seconds, ".1f"),
    ("last lr", lambda row: row.lr, ".2g"),
]
HEADINGS = [heading for heading, _, _ in COLUMNS]


def row_cells(row: Epoch) -> list[str]:
    """Return the formatted cells of a row, one per column; "-" for what was not measured.

    >>> row_cells(Epoch(1, Metrics(1.5, 0.25, 100), None, 2048.0, 3.21, 0.05))
    ['1', '1.5000', '25.00%', '-', '-', '2,048', '3.2', '0.05']
    """
    values = [(value(row), form) for _, value, form in COLUMNS]
    return ["-" if value is None else format(value, form) for value, form in values]


def format_line(words: list[str]) -> str:
    """Return the cells of a row, or the headings, as a line of columns of fixed width."""
    widths = [max(len(heading), 7) for heading in HEADINGS]
    return "  ".join(word.rjust(width) for word, width in zip(words, widths, strict=True))


@dataclasses.dataclass(repr=False)
class History:
    """Metrics of the epochs of a run, in order. ``print(history)`` shows them as a table."""

    rows: list[Epoch] = dataclasses.field(default_factory=list)

    @property
    def last(self) -> Epoch:
        """Metrics of the newest epoch.

        Raises:
            ValueError: there is none yet.
        """
        if not self.rows:
            raise ValueError("History.last: no epoch has ended yet")
        return self.rows[-1]

    @property
    def best(self) -> Epoch:
        """Metrics of the epoch with the highest test (without a test set: training) accuracy.

        Of equal epochs the one with the lowest loss, then the first.

        Raises:
            ValueError: there is none yet.
        """
        _ = self.last

        def rank(row: Epoch) -> tuple[float, float]:
            result = row.test or row.train
            return result.accuracy, -result.loss if math.isfinite(result.loss) else -math.inf

        return max(self.rows, key=rank)

    def __repr__(self) -> str:
        last = f", last {self.rows[-1]}" if self.rows else ""
        return f"History({len(self.rows)} epochs{last})"

    def __str__(self) -> str:
        return "\n".join(format_line(words) for words in [HEADINGS, *map(row_cells, self.rows)])
