"""``gpuconv predict``: what a trained model sees in images."""

import argparse
import os
import pathlib
from typing import TYPE_CHECKING, Any

from gpuconv.cli.options import add_device, load_run, number, run_argument
from gpuconv.cli.output import console, percent, sentence, table, write_json

if TYPE_CHECKING:
    import numpy as np

    from gpuconv.runs import Trained

SAYS = "Ask a trained model what images show."
EXAMPLES = ("gpuconv predict runs/NAME cat.jpg", "gpuconv predict runs/NAME *.png --top 1",
            "gpuconv predict net.safetensors cat.jpg --json")
BATCH = 256  # images that are read at a time
BAR = 20     # characters of a bar, at probability 1


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv predict``."""
    run_argument(to, required=True)
    to.add_argument("images", nargs="+", metavar="IMAGE", help="image files of any size")
    to.add_argument("--top", type=number(int, 1), default=3, metavar="N",
                    help="most likely classes of each image (default: %(default)s)")
    add_device(to)
    to.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> None:
    """``gpuconv predict``: first all answers, then what could not be read.

    Raises:
        ValueError: an image could not be read; names it.
    """
    trained, _ = load_run(args)
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
        show_answers(out, answers)
    if failures:
        several = f"{len(failures)} images cannot be read:\n  " if len(failures) > 1 else ""
        raise ValueError(several + "\n  ".join(failures.values()))


def read(paths: list[str], trained: "Trained",
         failures: dict[str, str]) -> "dict[str, np.ndarray]":
    """{path: (H, W, C) uint8} of what can be read, at the size of the model; failures: the rest."""
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
    """{path: [(class, probability), ...]}, the most likely first."""
    import numpy as np
    probabilities = trained.probabilities(np.stack(list(images.values())))  # (N, K)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return {path: [(trained.classes[k], float(p[k])) for k in best]
            for path, p, best in zip(images, probabilities, order.tolist(), strict=True)}


def show_answers(out: Any, answers: dict[str, list[tuple[str, float]]]) -> None:
    """A group of rows per image."""
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
    """As long as p is large.

    >>> bar(0.5, "ascii")
    '##########'
    """
    return ("\u2588" if encoding.startswith("utf") else "#") * round(BAR * p)
