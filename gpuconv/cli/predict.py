"""``gpuconv predict``: classes of images, predicted by a trained model."""

import argparse
import os
import pathlib
from typing import TYPE_CHECKING, Any

from gpuconv.cli.options import add_device, load_run, number
from gpuconv.cli.output import console, percent, say, sentence, table, write_json

if TYPE_CHECKING:
    import numpy as np

    from gpuconv.runs import Trained

SAYS = "Ask a trained model what images show."
EXAMPLES = ("gpuconv predict cat.jpg", "gpuconv predict runs/NAME *.png --top 1",
            "gpuconv predict net.safetensors cat.jpg --json")
NOTES = """\
The first argument is RUN if it is the folder of a run or ends in .safetensors; otherwise it is an
image like all others, and the model is that of the newest run in ./runs."""
BATCH = 256  # images that are read at a time
BAR = 20     # characters of a bar, at probability 1


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv predict``."""
    to.add_argument("run", nargs="?", metavar="RUN",
                    help="a run's folder: of its checkpoints the best; or a checkpoint file, "
                         "*.safetensors (default: the newest run in ./runs)")
    to.add_argument("images", nargs="+", metavar="IMAGE", help="image files of any size")
    to.add_argument("--top", type=number(int, 1), default=3, metavar="N",
                    help="most likely classes of each image (default: %(default)s)")
    add_device(to)
    to.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> None:
    """Write all answers, then what could not be read.

    Raises:
        ValueError: there is no image, or some could not be read; names these.
    """
    read_as = tell_run_from_images(args)
    try:
        trained, _ = load_run(args)
    except FileNotFoundError as error:
        raise FileNotFoundError("; ".join([sentence(error), *read_as])) from None
    top = min(args.top, len(trained.classes))
    answers: dict[str, list[tuple[str, float]]] = {}
    failures: dict[str, str] = {}
    for start in range(0, len(args.images), BATCH):
        images = read(args.images[start:start + BATCH], trained, failures)
        if images:
            answers |= ask(trained, images, top)
    out = console()
    if args.json:
        write_json(out, [
            {"image": path, "error": failures[path]} if path in failures else
            {"image": path, "classes": [{"class": name, "probability": p}
                                        for name, p in answers[path]]} for path in args.images])
    elif answers:
        if args.run is None:
            say(out, f"by {trained.path}, of the newest run")
        show_answers(out, answers)
    if failures:
        several = f"{len(failures)} images cannot be read: " if len(failures) > 1 else ""
        doubt = read_as if args.run is None and args.images[0] in failures else []
        raise ValueError(several + "; ".join([*failures.values(), *doubt]))


def tell_run_from_images(args: argparse.Namespace) -> list[str]:
    """Put the first argument where it belongs; return how it was read, if that is not obvious.

    Raises:
        ValueError: there is a run and no image.
    """
    from gpuconv.data.images import SUFFIXES
    first, *more = words = ([args.run] if args.run else []) + args.images
    is_file = first.lower().endswith(".safetensors")
    if is_file or os.path.lexists(os.path.join(first, "config.json")):
        if not more:
            raise ValueError(f"{first} was read as RUN: wanted an IMAGE, too")
        args.run, args.images = first, more
        return [f"{first} was read as RUN, because of its name"] if is_file else []
    args.run, args.images = None, words
    return [] if first.lower().endswith(SUFFIXES) else [
        f"{first} was read as an image, because it is neither the folder of a run nor a "
        ".safetensors file, so the model is that of the newest run"]


def read(paths: list[str], trained: "Trained",
         failures: dict[str, str]) -> "dict[str, np.ndarray]":
    """Return {path: (H, W, C) uint8} at the model's size; add what is wrong to ``failures``."""
    from gpuconv.data.images import read_image
    H, W, C = trained.input_shape
    images = {}
    for path in paths:
        try:
            if os.path.isdir(path):
                raise IsADirectoryError(f"{path} is a folder: name its files, {path}/*")
            images[path] = read_image(path, (H, W), C)
        except (OSError, ValueError) as error:
            failures[path] = sentence(error)
    return images


def ask(trained: "Trained", images: "dict[str, np.ndarray]",
        top: int) -> dict[str, list[tuple[str, float]]]:
    """Return {path: [(class, probability), ...]}, the most likely first."""
    import numpy as np
    pixels = np.stack(list(images.values()))
    probabilities = trained.probabilities(pixels, names=list(images))  # (N, K)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return {path: [(trained.classes[k], float(p[k])) for k in best]
            for path, p, best in zip(images, probabilities, order.tolist(), strict=True)}


def show_answers(out: Any, answers: dict[str, list[tuple[str, float]]]) -> None:
    """Write a group of rows per image."""
    from rich.text import Text
    rows: list[Any] = []
    for path, classes in answers.items():
        rows += [None] if rows and len(classes) > 1 else []
        for rank, (name, p) in enumerate(classes):
            first = rank == 0 or not out.is_terminal  # in a pipe each line stands for itself
            rows.append([pathlib.Path(path) if first else "", name, percent(p),
                         Text(bar(p, out.encoding), "green" if rank == 0 else "dim")])
    table(out, ["image", "class", "probability", ""], rows, right=(2,))


def bar(p: float, encoding: str) -> str:
    """Return a bar as long as p is large.

    >>> bar(0.5, "ascii")
    '##########'
    """
    return ("\u2588" if encoding.startswith("utf") else "#") * round(BAR * p)
