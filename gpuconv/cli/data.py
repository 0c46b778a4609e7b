"""``gpuconv data``: what a data set holds, where it is, how it is fetched."""

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from gpuconv.cli.options import add_skip_broken, number

SAYS = "Show what a data set holds, or fetch CIFAR-10."
EXAMPLES = ("gpuconv data", "gpuconv data cifar10 --download", "gpuconv data ~/pets",
            "gpuconv data digits.npz --picture digits.png")
NOTES = """\
DIR holds a folder of images per class, or train/ and test/ (or val/) that do.
FILE.npz holds images and labels (and classes, test_images, test_labels), or
x_train, y_train, x_test, y_test."""


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the argument and options of ``gpuconv data``."""
    to.add_argument("data", nargs="?", metavar="cifar10|shapes|DIR|FILE.npz",
                    help="default: cifar10 where it is found, else shapes, drawn on the spot")
    to.add_argument("--download", action="store_true",
                    help="fetch CIFAR-10 (170 MB) if it is not there; a broken transfer goes on")
    to.add_argument("--data-dir", metavar="DIR",
                    help="where CIFAR-10 is: folder or archive (default: see gpuconv info)")
    to.add_argument("--picture", type=pathlib.Path, metavar="FILE.png",
                    help="write a picture of some images of each class")
    to.add_argument("--image-size", type=number(int, 1), metavar="N",
                    help="make images N x N pixels")
    to.add_argument("--test-share", type=number(float, 0, 1), default=0.2, metavar="X",
                    help="share of the images to test on, where no test set is given "
                         "(default: %(default)s)")
    to.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N",
                    help="of the choice of test images, where --test-share makes one "
                         "(default: 0)")
    add_skip_broken(to)


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv data``."""
    from gpuconv import files
    from gpuconv.cli.output import console, say, show, table
    from gpuconv.data import Source
    source = Source.from_options(args.data, data_dir=args.data_dir, image_size=args.image_size,
                       test_share=args.test_share, seed=args.seed,
                       skip_broken=args.skip_broken)
    if args.download and source.kind not in ("auto", "cifar10"):
        raise ValueError(f"--download fetches CIFAR-10 and nothing else, not {args.data}")
    if args.picture:
        files.check_writable(args.picture)

    out = console()
    with loading(out) as progress:
        train, test = source.load(args.download, progress)
    N, H, W, C = train.images.shape
    show(out, {"data": source.describe(train, test),
               "images": f"{H}x{W} pixels, {C} channel{'s' if C > 1 else ''}, uint8",
               "mean": " ".join(f"{x:.4f}" for x in train.mean),
               "std": " ".join(f"{x:.4f}" for x in train.std)})
    counts = [[int((part.labels == label).sum()) for part in (train, test)]
              for label in range(len(train.classes))]
    rows = [[name, f"{a:,}", f"{b:,}"] for name, (a, b) in zip(train.classes, counts, strict=True)]
    say(out, "")
    table(out, ["class", "train", "test"], rows, right=(1, 2))
    if args.picture:
        write_picture(train, args.picture)
        say(out, f"picture written to {args.picture}")


def write_picture(dataset: Any, path: pathlib.Path) -> None:
    """Write the contact sheet of a data set as a PNG file."""
    from gpuconv import files
    from gpuconv.data.contact_sheet import contact_sheet
    from gpuconv.data.images import pillow
    picture = pillow().fromarray(contact_sheet(dataset))
    with files.atomic_write(path) as file:
        picture.save(file, "PNG")


@contextlib.contextmanager
def loading(out: Any) -> Iterator[Callable[[int, int, str], None]]:
    """Provide the ``progress`` of ``Source.load``: a bar in a terminal, else a line per 10 %."""
    if not out.is_terminal:
        yield _lines(out)
        return
    from rich import progress as rich
    bars: dict[str, tuple[Any, Any]] = {}

    def tell(done: int, total: int, unit: str) -> None:
        if unit not in bars:
            columns = ([rich.DownloadColumn(), rich.TransferSpeedColumn()] if unit == "bytes" else
                       [rich.MofNCompleteColumn(), rich.TextColumn("images")])
            bar = rich.Progress(rich.TextColumn("{task.description}"), rich.BarColumn(), *columns,
                                rich.TimeRemainingColumn(), console=out, transient=True)
            bar.start()
            bars[unit] = bar, bar.add_task("fetching CIFAR-10" if unit == "bytes" else "reading",
                                           total=total, completed=done)
        bar, task = bars[unit]
        bar.update(task, completed=done)

    try:
        yield tell
    finally:
        for bar, _ in bars.values():
            bar.stop()


def _lines(out: Any) -> Callable[[int, int, str], None]:
    from gpuconv.cli.output import say
    said = -1

    def tell(done: int, total: int, unit: str) -> None:
        nonlocal said
        if unit == "bytes" and 10 * done // total > said:
            said = 10 * done // total
            say(out, f"fetching CIFAR-10: {done / 1e6:.1f} of {total / 1e6:.1f} MB")

    return tell
