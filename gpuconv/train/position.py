"""Checks of the position of a run in the metadata of a checkpoint, which is untrusted."""

from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.jsontext import is_count
from gpuconv.train.history import COUNT, FIELDS, FLOAT, Epoch, row_from_dict

TALLY = {"loss": FLOAT, "correct": COUNT, "count": COUNT, "skipped": COUNT}


def check_position(metadata: Mapping[str, Any], epochs: int, steps: int) -> list[Epoch]:
    """Check the position that a run resumes at.

    Args:
        metadata: of a checkpoint.
        epochs: of the run.
        steps: of an epoch.

    Returns:
        The complete epochs.

    Raises:
        ValueError: a value is missing or out of range; names it.
    """
    _check(metadata, {
        "epoch": (f"a whole number of 1..{epochs}", lambda value: is_count(value, 1, epochs)),
        "step": (f"a whole number of 0..{steps}", lambda value: is_count(value, 0, steps)),
        "lr": FLOAT, "seconds": FIELDS["seconds"],
        "tally": ("numbers by name", lambda value: isinstance(value, dict)),
        "history": ("a list of epochs", lambda value: isinstance(value, list))})
    tally = {"skipped": 0, **metadata["tally"]}  # older runs had no skipped
    _check(tally, {**TALLY, "skipped": (f"a whole number of 0..{steps}",
                                        lambda value: is_count(value, 0, steps))})
    if unknown := tally.keys() - TALLY:
        raise ValueError(f"the tally has {min(unknown)!r:.80}, wanted {', '.join(TALLY)}")
    rows = []
    for number, numbers in enumerate(metadata["history"], 1):
        try:
            rows.append(row_from_dict(numbers, number))
        except ValueError as error:
            raise ValueError(f"epoch {number} of the history: {error}") from None
    if not metadata["epoch"] - 1 <= len(rows) <= metadata["epoch"]:
        raise ValueError(f"the history has {len(rows):,} epochs, the run is in epoch "
                         f"{metadata['epoch']}")
    return rows


def _check(values: Mapping[str, Any], kinds: Mapping[str, tuple[str, Callable[[Any], bool]]]
           ) -> None:
    for name, (wanted, fits) in kinds.items():
        if not fits(values.get(name)):
            raise ValueError(f"{name} is {values.get(name)!r:.80}, wanted {wanted}")
