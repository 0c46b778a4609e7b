"""Options that several commands share, and the parsing of their values."""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpuconv import backend
from gpuconv.messages import program

if TYPE_CHECKING:
    from gpuconv.data import Source
    from gpuconv.runs import Trained

TEST_SHARE = 0.2  # of the images, where a data set has no part to test on


def number(kind: Callable[[str], Any], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return a function that converts an option's text to a number of low .. high.

    >>> number(int, 1, 9)("7")
    7
    """
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value <= high or math.isinf(value):
            wanted = f"at least {low}" if high == math.inf else f"{low}..{high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range, wanted {wanted}")
        return value

    return parse


def device(text: str) -> str:
    """Return the text if it names a device; raise argparse's error if not."""
    try:
        backend.gpu_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_device(to: argparse._ActionsContainer) -> None:
    """Add ``--device``, and ``--threads``, which ``main`` handles."""
    to.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda|cuda:N",
                    help="default: auto, a GPU if there is one")
    to.add_argument("--threads", type=number(int, 1), metavar="N",
                    help="of the CPU; results do not depend on it (default: all processors that "
                         "the process may run on)")


def choose_device(choice: str) -> tuple[str, str]:
    """Return (device, a line about it) for the value of ``--device``.

    Raises:
        RuntimeError: a GPU that is not there; says what is missing.
    """
    import numpy as np

    from gpuconv import threads
    processors = f"cpu, {threads.count()} threads"
    if choice == "cpu":
        return choice, processors
    info = backend.device_info()
    if choice == "auto" and not info.ready:
        return "cpu", f"{processors} (no GPU; {program()} info says why)"
    backend.to_gpu(np.zeros(0), backend.gpu_number(choice))  # raises what is missing
    where = "cuda" if choice == "auto" else choice
    return where, f"{where}, {info.message}"


def add_model(to: argparse.ArgumentParser, default: str | None = "cifar_convnet") -> None:
    """Add ``--model``; ``models.describe`` turns its text into a description."""
    to.add_argument("--model", default=default, metavar="NAME|NOTATION",
                    help="cifar_convnet, simple_convnet, speedrun, or layers: 'INPUT 32x32x3 | "
                         "[CONV3-32 RELU]*2 POOL2 | FC 10' (default: "
                         f"{default or 'that of the recipe'})")


def add_data(to: argparse.ArgumentParser, default: str = "cifar10 where it is found, else shapes, "
             "drawn on the spot") -> Any:
    """Add ``--data`` and related options, which ``source`` reads; return their group."""
    group = to.add_argument_group("data")
    group.add_argument("--data", metavar="cifar10|shapes|DIR|FILE.npz",
                       help=f"DIR has a folder of images per class (default: {default})")
    group.add_argument("--data-dir", metavar="DIR",
                       help="where CIFAR-10 is: folder or archive (default: see gpuconv info)")
    group.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is not there")
    group.add_argument("--limit", type=number(int, 1), metavar="N",
                       help="use only the first N images of each set")
    group.add_argument("--image-size", type=number(int, 1), metavar="N",
                       help="make images N x N pixels")
    group.add_argument("--test-share", type=number(float, 0, 1), default=TEST_SHARE, metavar="X",
                       help="share of the images to test on, where no test set is given "
                            "(default: %(default)s)")
    add_skip_broken(group)
    return group


def add_skip_broken(to: argparse._ActionsContainer) -> None:
    """Add ``--skip-broken``."""
    to.add_argument("--skip-broken", action="store_true",
                    help="go on without the images of a folder that cannot be read")


def source(args: argparse.Namespace, image_size: int | None = None, seed: int = 0) -> "Source":
    """Return what the options of ``add_data`` say.

    Args:
        args: of the command.
        image_size: pixels, unless the options say another.
        seed: of the split.
    """
    from gpuconv.data import Source
    return Source.from_options(args.data, data_dir=args.data_dir, limit=args.limit, seed=seed,
                     image_size=args.image_size or image_size, test_share=args.test_share,
                     skip_broken=args.skip_broken)


def run_argument(to: argparse.ArgumentParser) -> None:
    """Add ``RUN``; ``load_run`` turns it into a model."""
    to.add_argument("run", nargs="?", metavar="RUN",
                    help="a run's folder: of its checkpoints the best; or a checkpoint file "
                         "(default: the newest in ./runs)")


def load_run(args: argparse.Namespace) -> tuple["Trained", str]:
    """Return (the model of RUN, on ``--device``; a line about the device).

    Raises:
        FileNotFoundError, ValueError: there is none, or it is damaged.
        RuntimeError: a GPU that is not there.
    """
    from gpuconv import runs
    path = args.run or runs.newest().path
    where, why_there = choose_device(args.device)
    return runs.load(path, device=where), why_there
