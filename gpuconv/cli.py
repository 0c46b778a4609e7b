"""The command line: ``gpuconv train``, ``gpuconv info``.

In a terminal there are a live bar and tables; in a pipe, a file or a notebook plain lines without
escape codes. Whoever uses it wrongly gets one line on stderr, never a traceback: exit status 2 for
wrong usage, 1 for a failure, 130 after Ctrl-C.
"""

import argparse
import dataclasses
import math
import os
import pathlib
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

import gpuconv
from gpuconv import backend, data, files, models, optim, random, threads, train
from gpuconv.data import Dataset


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

FAILURES = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError)


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        """Write it and exit with status 2."""
        print(f"gpuconv: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    args = parser().parse_args(arguments)
    warnings.simplefilter("ignore", RuntimeWarning)  # an overflow: the loss will tell
    try:
        args.command(args)
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gpuconv: interrupted", file=sys.stderr)
        return 130
    except FAILURES as error:
        if args.traceback:
            traceback.print_exc()
        print(f"gpuconv: error: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = Parser(prog="gpuconv", allow_abbrev=False, description="Convolutional networks for CuPy "
                 "and NumPy.", epilog="example: gpuconv train")
    top.add_argument("--version", action="version", version=f"gpuconv {gpuconv.__version__}")
    commands = top.add_subparsers(metavar="command", required=True, parser_class=Parser)

    def command(name: str, run: Callable, says: str, **more: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=says[0].lower() + says[1:].rstrip("."), description=says,
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        made.set_defaults(command=run)
        made.add_argument("--traceback", action="store_true",
                          help="when something fails, also show where")
        return made

    add_train_options(command("train", train_command, "Train a ConvNet and show how it does.",
                              epilog=train_epilog()))
    command("info", info_command, "Show what this machine offers.", epilog="example: gpuconv info")
    return top


# -- train -------------------------------------------------------------------------------------


def add_train_options(to: argparse.ArgumentParser) -> None:
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
    to.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda|cuda:N",
                    help="default: auto, a GPU if there is one")
    to.add_argument("--dtype", choices=backend.FLOATS, default="float32",
                    help="default: %(default)s")
    to.add_argument("--seed", type=number(int, 0, random.LOW), default=0, metavar="N",
                    help="the same seed gives the same bits (default: 0)")
    to.add_argument("--save", type=pathlib.Path, metavar="FILE",
                    help="write the weights here, as safetensors")


def train_epilog() -> str:
    """The defaults that depend on the model, and examples."""
    rows = [["model", *(f.name.replace("_", "-") for f in dataclasses.fields(Settings))]]
    rows += [[name, *map(str, dataclasses.astuple(chosen))] for name, chosen in SETTINGS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return "\n  ".join(["defaults:", *lines]) + f"""
  on shapes: {SHAPES_EPOCHS} epochs

examples:
  gpuconv train
  gpuconv train --data shapes --seed 1
  gpuconv train --data-dir ~/cifar-10-batches-bin --device cuda --save net.safetensors"""


def number(kind: Callable[[str], Any], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """What turns an option's text into a number of low .. high."""
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
    """The device, if it is spelt like one."""
    try:
        backend.gpu_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def train_command(args: argparse.Namespace) -> None:
    """``gpuconv train``."""
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


def choose_settings(args: argparse.Namespace, images: Dataset) -> Settings:
    """What the command line says; for the rest, what suits the model and the data."""
    settings = SETTINGS[args.model]
    if images.name.startswith("shapes"):
        settings = dataclasses.replace(settings, epochs=SHAPES_EPOCHS)
    return dataclasses.replace(settings, **{
        field.name: given for field in dataclasses.fields(Settings)
        if (given := getattr(args, field.name)) is not None})


def choose_device(asked: str) -> tuple[str, str]:
    """(device, a line about it)."""
    processors = f"cpu, {threads.count()} threads"
    if asked == "cpu":
        return asked, processors
    info = backend.device_info()
    if asked == "auto" and not info.ready:
        return "cpu", f"{processors} (no GPU; gpuconv info says why)"
    backend.to_gpu(np.zeros(0), backend.gpu_number(asked))  # raises what is missing
    where = "cuda" if asked == "auto" else asked
    return where, f"{where}, {info.message}"


def choose_data(args: argparse.Namespace) -> tuple[Dataset, Dataset, str]:
    """(train, test, a line about them)."""
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


# -- info --------------------------------------------------------------------------------------


def info_command(args: argparse.Namespace) -> None:
    """``gpuconv info``."""
    from rich.console import Console
    gpu = backend.device_info()
    found = data.cifar10_path()
    looked = " and ".join(str(place.absolute()) for place in data.cifar10_places())
    show(Console(), {
        "gpuconv": f"{gpuconv.__version__}, {pathlib.Path(gpuconv.__file__).parent}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "NumPy": f"{np.__version__}, {blas()}",
        "SciPy": version("scipy"),
        "bfloat16": version("ml_dtypes", "not on this machine: pip install ml_dtypes"),
        "CPU": f"{threads.count()} threads",
        "CuPy": gpu.cupy or "not installed",
        "GPU": f"{gpu.state}: {gpu.message}",
        "CIFAR-10": str(found) if found else f"not found in {looked}; gpuconv train --download "
                                             "fetches it"})


def blas() -> str:
    """Which BLAS NumPy calls, and with how many threads."""
    from threadpoolctl import threadpool_info
    return " and ".join(f"{lib['internal_api']} {lib['version'] or ''} ({lib['num_threads']} "
                        "threads)" for lib in threadpool_info() if lib["user_api"] == "blas")


def version(package: str, without: str = "not installed") -> str:
    """The version of an installed package."""
    import importlib.metadata
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return without


# -- output ------------------------------------------------------------------------------------


def show(console: Any, rows: dict[str, str]) -> None:
    """Names and values: a table in a terminal, else lines."""
    if not console.is_terminal:
        width = max(map(len, rows)) + 2
        for name, value in rows.items():
            say(console, f"{name:{width}}{value}")
        return
    from rich.table import Table
    from rich.text import Text
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, "bold cyan"), Text(value))
    console.print(table)


def say(console: Any, text: str) -> None:
    """A line, as it is: brackets in it are no markup."""
    print(text, file=console.file, flush=True)
