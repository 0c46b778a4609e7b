"""``gpuconv evaluate``: accuracy of a trained model, class by class."""

import argparse
import contextlib
import warnings
from typing import TYPE_CHECKING, Any

from gpuconv.cli.options import (
    TEST_SHARE,
    add_data,
    add_device,
    load_run,
    number,
    run_argument,
    source,
)
from gpuconv.cli.output import console, percent, say, show, table, write_json
from gpuconv.messages import printable

if TYPE_CHECKING:
    from gpuconv.data import Dataset, Source
    from gpuconv.data.manifest import Manifest
    from gpuconv.runs import Sets, Trained
    from gpuconv.train import Predictions

SAYS = "Measure a trained model, class by class."
EXAMPLES = ("gpuconv evaluate", "gpuconv evaluate runs/NAME --data my-pictures",
            "gpuconv evaluate net.safetensors --data cifar10 --json")
WHICH = {"train": "training images", "test": "test images", "all": "images"}
MOST = 20  # classes in a table; of more, those that fare worst
# (share of the images of a class from which on, number in the palette of 256 colours)
GREENS = (0.02, 22), (0.5, 28), (0.8, 34)
REDS = (0.02, 52), (0.1, 88), (0.2, 124), (0.3, 160)


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv evaluate``."""
    run_argument(to)
    to.add_argument("--batch-size", type=number(int, 1), default=256, metavar="N",
                    help="images at a time (default: %(default)s)")
    to.add_argument("--views", metavar="none|mirror|six",
                    help="average the answers to an image in so many views, moved a little "
                         "(default: what the run was told)")
    add_device(to)
    to.add_argument("--json", action="store_true", help="write JSON, the whole matrix included")
    data = add_data(to, default="what the run was trained on")
    data.add_argument("--split", choices=("test", "train", "all"),
                      help="which part of the data (default: test, of the run's own images "
                           "wherever --data finds them; all of another folder or .npz file)")


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv evaluate``."""
    from gpuconv.cli.data import loading
    out = console()
    trained, where = load_run(args)
    with contextlib.nullcontext() if args.json else loading(out) as progress:
        data, description, notes, sets = choose_data(args, trained, progress)
    for text in notes:
        warnings.warn(text, stacklevel=1)
    views = args.views or (trained.folder.config().settings.views if trained.folder else "none")
    predictions = trained.predictions(data, batch_size=args.batch_size, views=views)
    images = len(predictions.labels)
    if args.json:
        write_json(out, {
            "checkpoint": str(trained.path), "data": description, "images": images,
            "views": views, "accuracy": predictions.accuracy, "loss": predictions.loss,
            "warnings": notes,
            "differences": sets.differences.as_dict() if sets and sets.differences else None,
            "classes": [row._asdict() for row in predictions.per_class()],
            "confusion": predictions.confusion.tolist()})
        return
    correct = int(predictions.confusion.trace())
    suffix = "" if views == "none" else f", views {views}"
    show(out, {"checkpoint": str(trained.path), "data": description, "device": where,
               "accuracy": f"{predictions.accuracy:.2%}, {correct:,} of {images:,} images{suffix}",
               "loss": f"{predictions.loss:.4f}"})
    say(out, "")
    show_classes(out, predictions)
    say(out, "")
    if fits(predictions, out.width if out.is_terminal else 10**6):
        show_matrix(out, predictions)
    else:
        show_pairs(out, predictions)


def choose_data(args: argparse.Namespace, trained: "Trained", progress: Any = None
                ) -> tuple["Dataset", str, list[str], "Sets | None"]:
    """Load the images to measure the model on.

    Returns:
        (images, a line about them, notes, the sets of the run if the images are from these).

    Raises:
        ValueError: there are none, or they are not what the model knows.
    """
    from gpuconv import runs
    from gpuconv.data.source import MANIFEST_KINDS
    identity, folder = trained.metadata.get("identity"), trained.folder
    sets = whole = manifest = None
    if args.data or args.data_dir:
        H, W, _ = trained.input_shape
        chosen = source(args, H if H == W else None)  # of others only what fits as it is
        if folder is not None:
            manifest = folder.manifest()
            sets, whole = runs.sets_in(chosen, folder.config(), manifest, identity, progress)
    elif args.image_size or args.test_share != TEST_SHARE:
        raise ValueError("--image-size and --test-share go with --data: without it the data are "
                         "what the run was trained on")
    elif folder is None:
        raise ValueError(f"{trained.path} is in no run folder, so it has no data of its own: "
                         "say --data")
    else:
        sets = folder.sets(identity=identity, download=args.download, progress=progress,
                           skip_broken=args.skip_broken)
    if sets:
        data, description = part_of_run(sets, args.split or "test", args.limit)
        notes = sets.warnings()
    else:
        data, description, notes = part_of_other(args, chosen, whole, manifest, progress)
        if folder is not None and manifest is None and chosen.kind in MANIFEST_KINDS and (
                chosen.kind == folder.config().source.kind):
            notes.append("the run kept no list of its images: it may have been trained on these")
    if not len(data):
        raise ValueError(f"no image to measure the model on: {'; '.join([description, *notes])}")
    if data.images.shape[1:] != trained.input_shape:
        raise ValueError(f"{data.name}: images are {data.images.shape[1:]}, the model takes "
                         f"{trained.input_shape}")
    return as_trained(data, trained.classes), description, notes, sets


def part_of_run(sets: "Sets", split: str, limit: int | None) -> tuple["Dataset", str]:
    """Return a part of a run's own images, and a line about it."""
    parts = sets.train[:limit], sets.test[:limit]
    data = joined(*parts) if split == "all" else parts[split == "test"]
    which = WHICH[split]
    if split in sets.unproven:
        which = f"images, perhaps not the {which} of the run,"
    return data, f"{len(data):,} {which} of {sets.source.describe(*parts)}"


def part_of_other(args: argparse.Namespace, chosen: "Source", whole: "Dataset | None",
                  manifest: "Manifest | None", progress: Any
                  ) -> tuple["Dataset", str, list[str]]:
    """Return a part of images that are not the run's own, a line about it, and warnings.

    ``whole``: all of the images, if they were read.
    """
    fixed = chosen.kind in ("auto", "cifar10", "shapes")
    split = args.split or ("test" if fixed else "all")
    if whole is not None and split == "all" and args.limit is None:
        data, description = whole, chosen.describe(whole)
    else:
        parts = chosen.load(args.download, progress)
        data = joined(*parts) if split == "all" else parts[split == "test"]
        description = chosen.describe(*parts)
    which = WHICH[split] if fixed or split == "all" else f"images of the {split} part"
    notes = []
    if manifest and (known := manifest.trained(data)).any():
        notes.append(f"the model was trained on {known.sum():,} of these {len(data):,} images"
                     + ("; they are left out" if split == "test" else ""))
        data = data[~known] if split == "test" else data
    return data, f"{len(data):,} {which} of {description}", notes


def joined(train: "Dataset", test: "Dataset") -> "Dataset":
    """Return the images of two sets as one."""
    import numpy as np

    from gpuconv.data import Dataset
    images, labels = (np.concatenate([getattr(part, field) for part in (train, test)])
                      for field in ("images", "labels"))
    return Dataset(images, labels, train.classes, train.name.removesuffix(" train"))


def as_trained(data: "Dataset", classes: tuple[str, ...]) -> "Dataset":
    """Return the data with the model's classes and label numbers: a folder may lack some classes.

    Raises:
        ValueError: there are images of a class that the model does not know.
    """
    import numpy as np

    from gpuconv.data import Dataset
    if data.classes == classes:
        return data
    here = [data.classes[k] for k in np.unique(data.labels)]
    unknown = [name for name in here if name not in classes]
    if unknown:
        raise ValueError(f"{data.name} has images of {some(unknown)}; the model knows "
                         f"{some(classes)}")
    number = np.array([classes.index(name) if name in classes else -1 for name in data.classes])
    return Dataset(data.images, number[data.labels].astype(np.int32), classes, data.name)


def some(names: Any) -> str:
    """Return a few names as text.

    >>> some("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def show_classes(out: Any, predictions: "Predictions") -> None:
    """Print a row per class."""
    rows = predictions.per_class()
    if len(rows) > MOST:
        rows = sorted((row for row in rows if row.images),
                      key=lambda row: row.correct / row.images)[:MOST]
        say(out, f"the {len(rows)} of {len(predictions.classes)} classes with the lowest recall; "
                 "--json has all")
    table(out, ["class", "images", "correct", "recall", "precision"],
          [(row.name, f"{row.images:,}", f"{row.correct:,}", percent(row.recall),
            percent(row.precision)) for row in rows], right=range(1, 5))


# -- what is taken for what ------------------------------------------------------------------


def names(classes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the headings of rows and columns: classes and their first letters, or numbers.

    >>> names(("automobile", "bird")), names(("red bus", "red car"))
    ((['automobile', 'bird'], ['auto', 'bird']), (['1 red bus', '2 red car'], ['1', '2']))
    """
    classes = tuple(map(printable, classes))
    short = [name[:4].strip() for name in classes]
    if len(set(short)) == len(short) and all(short):
        return list(classes), short
    numbers = [str(k) for k in range(1, len(classes) + 1)]
    return [f"{k} {name}" for k, name in zip(numbers, classes, strict=True)], numbers


def cell_width(predictions: "Predictions") -> int:
    """Return the width of a cell of the matrix, characters."""
    from rich.cells import cell_len
    cells = str(predictions.confusion.max()), *names(predictions.classes)[1]
    return 2 + max(map(cell_len, cells))


def fits(predictions: "Predictions", columns: int) -> bool:
    """Return whether the matrix fits a terminal of ``columns`` characters."""
    from rich.cells import cell_len
    rows, K = names(predictions.classes)[0], len(predictions.classes)
    return K <= MOST and max(map(cell_len, rows)) + 1 + cell_width(predictions) * K <= columns


def show_matrix(out: Any, predictions: "Predictions") -> None:
    """Print the confusion matrix; in a terminal larger counts are brighter."""
    rows, columns = names(predictions.classes)
    counts = predictions.confusion.tolist()
    say(out, "images of a class (row), by answer (column)")
    if not out.is_terminal:
        table(out, ["", *columns],
              [[row, *(str(n or ".") for n in cells)] for row, cells in
               zip(rows, counts, strict=True)], right=range(1, len(columns) + 1))
        return
    from rich.table import Table
    from rich.text import Text
    w, made = cell_width(predictions), Table.grid()
    made.add_row("", *(Text(f"{name} ".rjust(w), "bold") for name in columns))
    for k, (row, cells) in enumerate(zip(rows, counts, strict=True)):
        total = max(1, sum(cells))
        made.add_row(Text(f"{row} "), *(
            Text(f"{n or '.'} ".rjust(w), shade(n / total, j == k)) for j, n in enumerate(cells)))
    out.print(made)


def shade(share: float, correct: bool) -> str:
    """Return the style of a cell that holds this share of its row.

    >>> shade(0.9, correct=True), shade(0.05, correct=False), shade(0.01, correct=False)
    ('white on color(34)', 'white on color(52)', 'dim')
    """
    steps = GREENS if correct else REDS
    colour = max((step for step in steps if step[0] <= share), default=None)
    return f"white on color({colour[1]})" if colour else "dim"


def show_pairs(out: Any, predictions: "Predictions") -> None:
    """Print the most frequent mistakes."""
    import numpy as np
    wrong = predictions.confusion * (1 - np.eye(len(predictions.classes), dtype=int))
    images = predictions.confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST]
    rows = [(predictions.classes[a], predictions.classes[b], f"{wrong[a, b]:,}",
             percent(wrong[a, b] / images[a]))
            for a, b in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[a, b]]
    if not rows:
        say(out, "no mistakes")
        return
    say(out, f"the {len(rows)} most frequent mistakes")
    table(out, ["class", "answer", "images", "share"], rows, right=(2, 3))
