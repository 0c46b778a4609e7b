"""Test accuracy on small sets of images: ``python bench/small_sets.py --cifar DIR --mnist DIR``.

The recipe for folders and .npz files beside the one before it and beside changes of single
settings. The sets are written as folders of PNG files and .npz files, and read as
``gpuconv train --data`` reads them. With seed s, training images are those of draw s (photographs,
MNIST) or the split is that of seed s (digits), first weights and order are those of seed s.

CIFAR-10 (--cifar) and MNIST (--mnist: a folder of train-images-idx3-ubyte.gz and so on) are read
where they are; scikit-learn brings the 8x8 digits. A set whose source is missing is left out.
Nothing is downloaded.
"""

import argparse
import datetime
import gzip
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]  # this checkout

from cpu_day import cpu  # noqa: E402
from gpu_packages import there  # noqa: E402
from report import markdown  # noqa: E402

from gpuconv import data, models, random, threads, train  # noqa: E402
from gpuconv.files import atomic_write  # noqa: E402
from gpuconv.recipes import RECIPES  # noqa: E402
from gpuconv.train import Settings  # noqa: E402

RECIPE = RECIPES["folder"]
BEFORE = Settings(epochs=15, batch_size=32, lr=0.02, flip=True, crop=4)  # until 2026-12
VARIANTS: dict[str, Callable[[Settings], Settings]] = {
    "recipe": lambda settings: settings,
    "before": lambda settings: BEFORE,
    "no-flip": lambda settings: settings.replace(flip=False),
    "no-crop": lambda settings: settings.replace(crop=0),
    "crop-4": lambda settings: settings.replace(crop=4),
    "15-epochs": lambda settings: settings.replace(epochs=15),
    "batches-of-32": lambda settings: settings.replace(batch_size=32),
    "sgd": lambda settings: settings.with_optimizer("sgd"),
    "adamw": lambda settings: settings.with_optimizer("adamw"),
}
PHOTOS, OTHER_PHOTOS = (0, 3, 6, 8), (1, 2, 7, 9)  # classes of CIFAR-10
Part = tuple[str, np.ndarray, np.ndarray]  # train or test, images, labels


def write(place: pathlib.Path, *parts: Part) -> pathlib.Path:
    """Write a folder of PNG files for each class of each part; return its path."""
    for part, images, labels in parts:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = place / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    return place


def photos(place: pathlib.Path, cifar: str, classes: Sequence[int], each: int,
           draw: int) -> pathlib.Path:
    """Write ``each`` training images of these classes, and 250 test images of each."""
    def some(part: data.Dataset, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.concatenate([np.flatnonzero(part.labels == label)[first:first + count]
                                for label in classes])
        return part.images[index], part.labels[index]

    learn, test = data.cifar10(cifar)
    return write(place, ("train", *some(learn, draw * each, each)), ("test", *some(test, 0, 250)))


def mnist(place: pathlib.Path, folder: str, draw: int) -> pathlib.Path:
    """Write 600 training digits and 2,000 test digits."""
    def some(part: str, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = (np.frombuffer(gzip.decompress((pathlib.Path(folder) / (
            f"{part}-{what}-ubyte.gz")).read_bytes()), np.uint8, offset=offset)
            for what, offset in (("images-idx3", 16), ("labels-idx1", 8)))
        index = slice(first, first + count)
        return images.reshape(-1, 28, 28)[index], labels[index]

    return write(place, ("train", *some("train", 600 * draw, 600)),
                 ("test", *some("t10k", 0, 2000)))


def digits(place: pathlib.Path, png: bool) -> pathlib.Path:
    """Write scikit-learn's 1,797 digits, as PNG files or as one .npz file."""
    from sklearn.datasets import load_digits
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    if png:
        return write(place, ("", images, found.target))
    place = place.with_suffix(".npz")
    np.savez(place, images=images, labels=found.target)
    return place


def shapes(place: pathlib.Path) -> pathlib.Path:
    """Write 1,000 training and 500 test images of gpuconv's shapes."""
    return write(place, *((name, part.images, part.labels) for name, part in zip(
        ("train", "test"), data.shapes(1000, 500), strict=True)))


def sets(args: argparse.Namespace) -> dict[str, Callable[[pathlib.Path, int], pathlib.Path]]:
    """Return what writes each set that can be had: called with a path to be, and the seed."""
    found: dict[str, Callable[[pathlib.Path, int], pathlib.Path]] = {}
    if args.cifar:
        found["photos-240"] = lambda place, seed: photos(place, args.cifar, PHOTOS, 60, seed)
    if there("sklearn"):
        found |= {"digits-npz": lambda place, seed: digits(place, png=False),
                  "digits-png": lambda place, seed: digits(place, png=True)}
    if args.mnist:
        found["mnist-600"] = lambda place, seed: mnist(place, args.mnist, seed)
    if args.cifar:  # these two were not used for the choice
        found["photos-1600"] = lambda place, seed: photos(place, args.cifar, OTHER_PHOTOS, 400,
                                                          seed)
    found["shapes-1000"] = lambda place, seed: shapes(place)
    return found


def run(learn: data.Dataset, test: data.Dataset, settings: Settings,
        seed: int) -> tuple[float, float, float]:
    """Train; return test accuracy, seconds and seconds of CPU time."""
    H, W, C = learn.images.shape[1:]
    random.seed(seed)
    model = models.build(models.describe(RECIPE.model, in_channels=C, image=H,
                                         classes=len(learn.classes)))
    began = time.perf_counter(), time.process_time()
    train.fit(model, learn, seed=seed, **settings.fit_arguments(model))
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    return (train.evaluate(model, test, mean=learn.mean, std=learn.std).accuracy, *seconds)


def measured(name: str, make: Callable[[pathlib.Path, int], pathlib.Path], variants: Sequence[str],
             seeds: int) -> Iterator[list[str]]:
    """Yield a row of the table for each variant."""
    with tempfile.TemporaryDirectory() as folder:
        places = [make(pathlib.Path(folder, str(seed)), seed) for seed in range(seeds)]
        loaded = [data.Source.from_options(place, seed=seed).load()
                  for seed, place in enumerate(places)]
    learn, test = loaded[0]
    N, H, W = learn.images.shape[:3]
    done: set[Settings] = set()
    for variant in variants:
        settings = VARIANTS[variant](RECIPE.settings_for(N, min(H, W)))
        if settings in done:  # the change makes no difference for this set
            continue
        done.add(settings)
        accuracy, seconds, work = zip(*(run(*both, settings, seed)
                                        for seed, both in enumerate(loaded)), strict=True)
        spread = statistics.stdev(accuracy) if seeds > 1 else 0.0
        yield [name, variant, f"{N:,} + {len(test):,}", f"{H}x{W}", str(settings.epochs),
               f"{statistics.mean(accuracy):.1%}", f"{spread:.1%}", f"{min(accuracy):.1%}",
               f"{statistics.mean(seconds):.0f}", f"{statistics.mean(work):.0f}"]


HEADINGS = ["set", "settings", "images", "size", "epochs", "test accuracy", "deviation", "worst",
            "s", "s of CPU time"]


def main() -> None:
    """Measure what is asked for; the page goes to the standard output and, row by row, a file."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10, as of gpuconv train --data-dir")
    parser.add_argument("--mnist", metavar="DIR", help="folder of MNIST's four files")
    parser.add_argument("--set", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--settings", action="append", choices=list(VARIANTS),
                        help="repeatable (default: recipe, before, no-flip)")
    parser.add_argument("--seeds", type=int, default=3, help="0 .. N - 1 (default: 3)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="Markdown")
    args = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before this adds to it
    lines = ["# The recipe for folders and .npz files on small sets", "",
             f"`python bench/small_sets.py`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. "
             f"{cpu()}, {os.cpu_count()} processors, gpuconv on {threads.count()} threads; NumPy "
             f"{np.__version__}. Load before the run: {load:.1f}. Recipe: {RECIPE.settings}, in "
             f"batches of {RECIPE.settings.batch_size}. Before: {BEFORE}, in batches of "
             f"{BEFORE.batch_size}. Mean, standard deviation and least of {args.seeds} seeds.", ""]
    rows: list[list[str]] = []
    print("\n".join(lines))
    for name, make in sets(args).items():
        if args.set and name not in args.set:
            continue
        for row in measured(name, make, args.settings or ["recipe", "before", "no-flip"],
                            args.seeds):
            rows.append(row)
            print(f"| {' | '.join(row)} |", flush=True)
            if args.output:
                with atomic_write(args.output, "w") as file:
                    file.write("\n".join([*lines, *markdown(rows, HEADINGS, 2)]) + "\n")


if __name__ == "__main__":
    main()
