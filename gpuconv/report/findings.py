"""Measurements of a trained model for its report: accuracy, mistakes, filters.

The interval of an accuracy a, measured on n images, is Wilson's: all p with |a - p| <= 1.96 *
sqrt(p (1 - p) / n). In 95 of 100 cases it holds what endless many such images would give.
"""

import base64
import dataclasses
import io
import math
import os
from typing import Any

import numpy as np

from gpuconv.backend import Array, to_cpu
from gpuconv.data import Dataset
from gpuconv.nn import Conv2d, Module
from gpuconv.runs import RunFolder, Trained, TtaResult, load
from gpuconv.train import History
from gpuconv.train.predictions import Predictions

CONFUSIONS = 10    # pairs of classes that are listed
FILTERS = 256      # of the first layer, shown at most
LARGEST = 192      # pixels: a side of an image in the page; more is scaled down
NORMAL = 1.959964  # 97.5 % of a normal distribution lie below


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image that was answered wrongly."""

    image: np.ndarray   # (H, W, C) uint8
    truth: str
    answer: str
    probability: float  # of the answer
    of_truth: float     # of what would have been right


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A class that is taken for another."""

    truth: str
    answer: str
    images: int
    share: float  # of the images of ``truth``


@dataclasses.dataclass(frozen=True)
class Findings:
    """Contents of a report."""

    name: str                       # of the run
    status: str
    config: dict[str, Any]          # dataclasses.asdict of it
    environment: dict[str, str]
    history: History
    trained: Trained | None         # None: there is no checkpoint yet
    tta_result: TtaResult | None           # the run's own test in several views, if it did one
    predictions: Predictions | None  # on the test set; None: it could not be measured
    mistakes: list[Mistake]
    data: str                       # name of the test set
    notes: list[str]                # what is missing, and why; without a full stop, as warnings


def collect(folder: RunFolder, *, checkpoint: str | os.PathLike | None = None,
            device: str = "cpu", count: int = 24,
            data: str | os.PathLike | None = None) -> Findings:
    """Read a run, and measure its model on its test set.

    Args:
        folder: of the run.
        checkpoint: the model to measure. Default: the run's best, without one its newest.
        device: where it computes.
        count: of mistakes to show.
        data: where the images of the run are, if they have moved.

    Raises:
        OSError, ValueError: it is no run, or damaged. Images that are not where they were, or that
            have changed, or a run without a checkpoint, are no error but a note.
    """
    config, history, notes = folder.config(), folder.history(), []
    trained = found = None
    wrong, name = [], ""
    if checkpoint or folder.best() or folder.checkpoints():
        trained = load(checkpoint or folder.path, device)
        try:
            sets = folder.sets(data, identity=trained.metadata.get("identity"))
            test, name = sets.test, sets.test.name
            notes += sets.warnings()
            if "test" in sets.unproven:
                raise ValueError("its test set cannot be told from its training images")
            if test.classes != trained.classes:
                raise ValueError(f"{name} has the classes {', '.join(test.classes[:9])}, the model "
                                 f"knows {', '.join(trained.classes[:9])}")
            found = trained.predictions(test)
            wrong = mistakes(found, test, count)
        except (OSError, ValueError, FloatingPointError) as error:
            notes.append(f"the model could not be measured on its data: {error}")
    else:
        notes.append("this run has no checkpoint yet, so there is no model to look at")
    tta_result, environment = None, {}
    try:  # without these two a report still has its worth
        environment = folder.environment()
        tta_result = folder.tta_result()
    except (OSError, ValueError) as error:
        notes.append(f"a part is left out: {error}")
    return Findings(folder.path.absolute().name, folder.status(), dataclasses.asdict(config),
                    environment, history, trained, tta_result, found, wrong, name, notes)


def mistakes(found: Predictions, data: Dataset, count: int) -> list[Mistake]:
    """Return the most confident mistakes, the most confident first."""
    shown = []
    for n in found.mistakes(count).tolist():
        label, answer, p = int(found.labels[n]), int(found.answers[n]), found.probabilities[n]
        shown.append(Mistake(to_cpu(data.images[n]), found.classes[label], found.classes[answer],
                             float(p[answer]), float(p[label])))
    return shown


def confusions(found: Predictions, count: int = CONFUSIONS) -> list[Confusion]:
    """Return the pairs of classes that are confused most often, the most frequent first."""
    wrong = found.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    images = found.confusion.sum(axis=1)
    pairs = [(*divmod(cell, len(wrong)), int(wrong.flat[cell])) for cell in order.tolist()]
    return [Confusion(found.classes[a], found.classes[b], n, n / int(images[a]))
            for a, b, n in pairs if n]


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy.

    >>> low, high = interval(0.8, 100)
    >>> round(low, 3), round(high, 3)
    (0.711, 0.867)
    """
    z = NORMAL**2 / count
    middle = accuracy + z / 2
    reach = math.sqrt(z * accuracy * (1 - accuracy) + z * z / 4)
    low, high = (middle - reach) / (1 + z), (middle + reach) / (1 + z)
    return max(0.0, min(low, accuracy)), min(1.0, max(high, accuracy))  # rounding apart


def first_filters(model: Module) -> np.ndarray | None:
    """Return the filters of the first convolution as (K, R, S, 1 or 3) uint8, from black to white.

    Each is scaled on its own, its smallest weight to 0 and its largest to 255; one whose weights
    are all equal is grey. At most FILTERS of them. None: there is no convolution, or it sees
    neither one channel nor three, and so no colours.
    """
    first = next((m for m in model.modules() if isinstance(m, Conv2d)), None)
    if first is None or first.weight.shape[3] not in (1, 3):
        return None
    w = np.nan_to_num(to_cpu(first.weight.data)[:FILTERS].astype(np.float64))  # (K, R, S, C)
    low, high = (f(axis=(1, 2, 3), keepdims=True) for f in (w.min, w.max))
    span = np.where(high > low, high - low, 1)
    return np.rint(np.where(high > low, (w - low) / span, 0.5) * 255).astype(np.uint8)


def png(image: Array) -> str:
    """Return an image (H, W, C) uint8 as a data URI: grey, colour, or the first channel of others.

    >>> png(np.zeros((1, 1, 3), "uint8"))[:32]
    'data:image/png;base64,iVBORw0KGg'
    """
    from PIL import Image
    image = to_cpu(image)
    pixels = image if image.shape[2] in (3, 4) else image[..., 0]
    drawn = Image.fromarray(np.ascontiguousarray(pixels))
    drawn.thumbnail((LARGEST, LARGEST))  # never larger than it was
    written = io.BytesIO()
    drawn.save(written, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
