"""``gpuconv train``: train a ConvNet and show how it does."""

import argparse
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from gpuconv import backend, models, random
from gpuconv.cli.options import add_device, choose_device, number
from gpuconv.cli.output import say, show

if TYPE_CHECKING:
    from gpuconv.data import Dataset

SAYS = "Train a ConvNet and show how it does."
EXAMPLES = (
    "gpuconv train",
    "gpuconv train --data shapes --seed 1",
    "gpuconv train --data-dir ~/cifar-10-batches-bin --device cuda --save net.safetensors")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is trained unless the command line says otherwise."""

    epochs: int
    batch_size: int
    lr: float            # at the peak of one cycle
    momentum: float      # Nesterov's
    weight_decay: float


SETTINGS = {
    "cifar_convnet": Settings(epochs=6, batch_size=128, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "simple_convnet": Settings(epochs=6, batch_size=128, lr=0.02, momentum=0.9, weight_decay=5e-4),
}
SHAPES_EPOCHS = 4  # of the 10,000 drawn images: they are easier than photographs


def add_options(to: argparse.ArgumentParser) -> None:
    """What ``gpuconv train`` understands."""
    to.add_argument("--data", choices=("cifar10", "shapes"),
                    help="default: cifar10 where it is found, else shapes, drawn on the spot")
    to.add_argument("--data-dir", type=pathlib.Path, metavar="DIR",
                    help="where CIFAR-10 is: folder or archive (default: see gpuconv info)")
    to.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is not there")
    to.add_argument("--limit", type=number(int, 1), metavar="N",
                    help="use only the first N images of each set")
    to.add_argument("--model", choices=sorted(models.MODELS), default="cifar_convnet",
                    help="default: %(default)s")
    to.add_argument("--epochs", type=number(int, 1), metavar="N", help="passes over the data")
    to.add_argument("--batch-size", type=number(int, 1), metavar="N", help="images of a step")
    to.add_argument("--lr", type=number(float, 0), metavar="X",
                    help="learning rate at the peak of one cycle")
    to.add_argument("--momentum", type=number(float, 0), metavar="X", help="Nesterov's; 0 for none")
    to.add_argument("--weight-decay", type=number(float, 0), metavar="X")
    to.add_argument("--no-augment", dest="augment", action="store_false",
                    help="neither mirror nor crop training images")
    add_device(to)
    to.add_argument("--dtype", choices=backend.FLOATS, default="float32",
                    help="default: %(default)s")
    to.add_argument("--seed", type=number(int, 0, random.LOW), default=0, metavar="N",
                    help="the same seed gives the same bits (default: 0)")
    to.add_argument("--save", type=pathlib.Path, metavar="FILE",
                    help="write the weights here, as safetensors")


def defaults() -> str:
    """The defaults that depend on the model, as a table."""
    rows = [["model", *(f.name.replace("_", "-") for f in dataclasses.fields(Settings))]]
    rows += [[name, *map(str, dataclasses.astuple(chosen))] for name, chosen in SETTINGS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return "\n  ".join(["defaults:", *lines, f"on shapes: {SHAPES_EPOCHS} epochs"])


NOTES = defaults()


def run(args: argparse.Namespace) -> None:
    """``gpuconv train``."""
    from gpuconv import data, files, optim, train
    if args.save:
        files.check_writable(args.save)
    where, why_there = choose_device(args.device)
    random.seed(args.seed)
    model = models.MODELS[args.model]().to(where, args.dtype)
    images, test, why_these = choose_data(args)
    settings = choose_settings(args, images)

    progress = train.Progress()
    show(progress.console, {
        "data": why_these,
        "model": f"{args.model}, {sum(p.size for p in model.parameters()):,} parameters, "
                 f"{args.dtype}",
        "device": why_there,
        "run": f"{settings.epochs} epochs of {len(images):,} images in batches of "
               f"{settings.batch_size}, seed {args.seed}",
        "update": f"SGD, one cycle up to lr {settings.lr:g}, momentum {settings.momentum:g}, "
                  f"weight decay {settings.weight_decay:g}"
                  + (", images mirrored and cropped" if args.augment else "")})
    optimizer = optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum,
                          nesterov=settings.momentum > 0, weight_decay=settings.weight_decay)
    history = train.fit(model, images, test=test, epochs=settings.epochs,
                        batch_size=settings.batch_size, optimizer=optimizer,
                        schedule=optim.OneCycle(), augment=data.Augment() if args.augment else None,
                        seed=args.seed, callbacks=[progress])

    last = history.last
    assert last.test is not None  # there always is a test set here
    say(progress.console, f"{last.test.accuracy:.2%} of {last.test.count:,} test images right "
        f"after {sum(row.seconds for row in history.rows):.1f} s")
    if args.save:
        files.save(args.save, model.state_dict(), {
            "model": {"name": args.model, "arguments": {}}, "classes": images.classes,
            "mean": images.mean.tolist(), "std": images.std.tolist(), "data": images.name,
            "test_accuracy": last.test.accuracy, "seed": args.seed,
            "settings": dataclasses.asdict(settings)})
        say(progress.console, f"weights written to {args.save}")


def choose_settings(args: argparse.Namespace, images: "Dataset") -> Settings:
    """What the command line says; for the rest, what suits the model and the data."""
    settings = SETTINGS[args.model]
    if images.name.startswith("shapes"):
        settings = dataclasses.replace(settings, epochs=SHAPES_EPOCHS)
    return dataclasses.replace(settings, **{
        field.name: given for field in dataclasses.fields(Settings)
        if (given := getattr(args, field.name)) is not None})


def choose_data(args: argparse.Namespace) -> tuple["Dataset", "Dataset", str]:
    """(train, test, a line about them)."""
    from gpuconv import data
    limit = args.limit
    if args.data == "shapes" and args.data_dir:
        raise ValueError(f"--data-dir {args.data_dir} is where CIFAR-10 is; shapes are drawn")
    if args.data_dir and not args.data_dir.exists():
        raise FileNotFoundError(f"--data-dir {args.data_dir}: no such file or folder")
    if args.data == "shapes" or (args.data is None and not args.data_dir and not args.download
                                 and not data.cifar10_path()):
        why = "" if args.data else "; found no CIFAR-10 (--download fetches it)"
        images, test = data.shapes(min(limit or 10_000, 10_000), min(limit or 2_000, 2_000))
        return images, test, f"shapes, {len(images):,} + {len(test):,} images, drawn{why}"
    images, test = (part[:limit] for part in data.cifar10(
        args.data_dir, args.download, progress=show_download))
    place = data.cifar10_path(args.data_dir)
    return images, test, f"CIFAR-10, {len(images):,} + {len(test):,} images, from {place}"


def show_download(done: int, size: int) -> None:
    """A line that counts, in a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done == size else ""
        print(f"\rCIFAR-10: {done >> 20} of {size >> 20} MiB", end=end, file=sys.stderr, flush=True)
