"""``gpuconv train``: train a ConvNet and show its progress."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpuconv import backend, random
from gpuconv.cli.introduction import introduce
from gpuconv.cli.options import add_data, add_device, add_model, choose_device, number
from gpuconv.cli.options import source as data_source
from gpuconv.cli.output import complain, say, several
from gpuconv.messages import program, quoted, wanted_one_of

if TYPE_CHECKING:
    from gpuconv.data import Dataset, Source
    from gpuconv.ops.conv import Table
    from gpuconv.runs import Config, RunFolder, Timing
    from gpuconv.train import History, Settings

SAYS = "Train a ConvNet and show how it does."
EXAMPLES = (
    "gpuconv train",
    "gpuconv train --data path/to/my-photos",
    "gpuconv train --data-dir ~/cifar-10-batches-bin --device cuda --seed 1",
    'gpuconv train --model "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10"',
    "gpuconv train --recipe speedrun94 --device cuda --dtype float16 --runs 10",
    "gpuconv train --resume runs/20261121-093000-cifar10")


def loss_scale(text: str) -> str | float:
    """Return "dynamic" or a number."""
    return text if text == "dynamic" else number(float, 0)(text)


CHANGES: dict[str, tuple[Callable[[str], Any], str]] = {  # of a recipe's settings: type, help
    "epochs": (number(int, 1), "passes over the data"),
    "batch_size": (number(int, 1), "images of a step"),
    "optimizer": (str, "sgd, adam, adamw or muon; if it is not the recipe's, at its usual rates"),
    "lr": (number(float, 0), "learning rate where the schedule is highest; groups with a rate of "
                             "their own keep it"),
    "momentum": (number(float, 0, 1), "Nesterov's, of sgd and muon; first beta of Adam"),
    "weight_decay": (number(float, 0), "pull of the weights towards 0"),
    "schedule": (str, "constant, step, linear, cosine or one-cycle"),
    "crop": (number(int, 0), "pixels that training images may move by"),
    "label_smoothing": (number(float, 0, 1), "share of the target that all classes get"),
    "clip_norm": (number(float, 0), "largest norm of all gradients"),
    "ema": (number(float, 0, 1), "decay of the average of weights that is tested and kept"),
    "patience": (number(int, 1), "epochs without a better test before the run ends"),
    "loss_scale": (loss_scale, "what keeps gradients in the range of 16 bits: dynamic, or a power "
                               "of two (default: dynamic in float16)"),
    "views": (str, "of each test image after the last epoch, averaged: none, mirror or six"),
}
MAY_CHANGE = ("resume", "data", "skip_broken", "device", "threads", "minutes", "keep",
              "tensorboard", "nvtx", "eager")  # when a run goes on
MEANINGLESS = ("patience", "minutes", "keep", "tensorboard", "nvtx")  # against the clock


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv train``."""
    to.add_argument("--recipe", metavar="NAME", help="what to start from (default: by the data)")
    add_model(to, default=None)
    add_data(to)
    settings = to.add_argument_group("settings, instead of the recipe's")
    for name, (kind, says) in CHANGES.items():
        settings.add_argument(f"--{name.replace('_', '-')}", type=kind, help=says,
                              metavar="NAME" if kind is str else "X")
    settings.add_argument("--master-weights", action=argparse.BooleanOptionalAction,
                          help="keep float32 copies of 16-bit weights, so that small updates are "
                               "not lost (default: yes)")
    settings.add_argument("--no-flip", action="store_true",
                          help="do not mirror training images left-right: for digits, text and "
                               "whatever else has mirror images of another class, or of none")
    settings.add_argument("--no-augment", action="store_true",
                          help="neither mirror nor crop training images")
    run = to.add_argument_group("the run")
    add_device(run)
    run.add_argument("--dtype", choices=backend.FLOATS,
                     help="of weights, activations and gradients; sums are float32 at least "
                          "(default: float32)")
    run.add_argument("--seed", type=number(int, 0, random.LOW), metavar="N",
                     help="the same seed gives the same bits (default: 0)")
    run.add_argument("--run", type=pathlib.Path, metavar="DIR",
                     help="folder of the run (default: a new one in ./runs); with --runs a file")
    run.add_argument("--runs", type=number(int, 1), metavar="N",
                     help="do N runs with seeds from --seed on against the clock, and keep nothing "
                          "but, if --run names a file, seconds and accuracy as JSON")
    run.add_argument("--resume", type=pathlib.Path, metavar="RUN",
                     help="go on with a run that was stopped, to the same bits; --data says where "
                          "its images are, if they have moved")
    run.add_argument("--minutes", type=number(float, 1e-9), metavar="X",
                     help="at most so long between checkpoints (default: 5)")
    run.add_argument("--keep", type=number(int, 1), metavar="N",
                     help="checkpoints to keep besides the best (default: 2)")
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    run.add_argument("--eager", action="store_true",
                     help="on a GPU, launch each kernel of a step by itself: for debugging; the "
                          "numbers are the same (default: a step is one CUDA graph)")
    run.add_argument("--tuned", type=pathlib.Path, metavar="FILE",
                     help="on a GPU, use what gpuconv tune has measured: other last bits")
    run.add_argument("--nvtx", action="store_true",
                     help="mark each layer's forward pass for NVIDIA's profilers; eager")


def recipes() -> str:
    """Return the text about the recipes: purpose, settings and results of each."""
    from gpuconv.recipes import RECIPES
    width = 2 + max(map(len, RECIPES))
    lines = ["recipes:"]
    for name, recipe in RECIPES.items():
        told = recipe.settings
        lines += [f"{name:{width}}{recipe.says}: {told.epochs} epochs, batches of "
                  f"{told.batch_size}, lr {told.lr:g}", " " * width + recipe.measured]
    return "\n  ".join(lines)


def __getattr__(name: str) -> Any:
    """Build NOTES of --help when it is shown, because it needs the recipes."""
    if name == "NOTES":
        return recipes()
    raise AttributeError(name)


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv train``."""
    from gpuconv import runs
    from gpuconv.cli.data import loading
    from gpuconv.train import Progress
    progress = Progress()
    console = progress.console
    if args.resume:
        folder = runs.RunFolder(args.resume)
        config, device = resumed(args, folder)
        with runs.locked(folder.path), loading(console) as told:  # refused before it reads
            own = folder.sets(args.data, progress=told, skip_broken=args.skip_broken)
        own.warn()
        folder.resume_with(own)
        sets, says = (own.train, own.test), own.source.describe(own.train, own.test)
    else:
        config, sets, says, device = chosen(args, console)
        if args.runs:
            against_the_clock(args, console, config, sets, {"data": says, "device": device})
            return
        folder = runs.RunFolder.create(config, args.run, tuned=tuned(args, device))
    introduce(console, config, sets,
              {"data": says, "device": device, "folder": str(folder.path)}, new=not args.resume)
    kept = {name: given for name in ("keep", "minutes") if (given := getattr(args, name))}
    try:
        outcome = runs.train(config, folder, data=sets, resume=bool(args.resume), **kept,
                             tensorboard=args.tensorboard, ranges=args.nvtx, eager=args.eager,
                             callbacks=[progress])
    except (KeyboardInterrupt, OSError) as error:
        if folder.checkpoints() or isinstance(error, KeyboardInterrupt):
            resume_hint(folder)
        raise
    if outcome.signal is not None:
        resume_hint(folder)
        sys.exit(128 + outcome.signal)
    finish(console, folder, outcome.history, sets[1])
    if (seen := outcome.tta_predictions) is not None:
        say(console, f"{seen.accuracy:.2%} of {len(seen.labels):,} test images right with "
                     f"--views {config.settings.views}: {folder.views}")


def against_the_clock(args: argparse.Namespace, console: Any, config: "Config",
                      sets: "tuple[Dataset, Dataset]", more: dict[str, str]) -> None:
    """Run ``--runs``: print seconds and accuracy of each run, then their means and deviations."""
    from gpuconv import runs
    introduce(console, config, sets, more | {"folder": "none: seconds and accuracy of "
                                                       f"{several(args.runs, 'run')}"})
    done: list[Timing] = []

    def keep(one: "Timing") -> None:
        done.append(one)
        say(console, f"seed {one.seed}: {one.seconds:.3f} s, "
                     f"{one.accuracy:.2%} of the test images right")
        if args.run:  # now: the next one may fail
            runs.write_timings(args.run, config, done)

    found = runs.timed(config, sets, args.runs, eager=args.eager,
                       tuned=tuned(args, more["device"]), on_run=keep)
    told = runs.summary(found)
    spread = ["" if of is None else f" +- {of:{form}}" for of, form in (
        (told["seconds_deviation"], ".3f"), (told["accuracy_deviation"], ".2%"))]
    say(console, f"{several(len(found), 'run')}: {told['seconds']:.3f}{spread[0]} s, "
                 f"{told['accuracy']:.2%}{spread[1]}")
    if args.run:
        say(console, str(args.run))


def chosen(args: argparse.Namespace,
           console: Any) -> "tuple[Config, tuple[Dataset, Dataset], str, str]":
    """Return (config, data, a line about them, a line about the device) of a new run."""
    from gpuconv import models
    from gpuconv.cli.data import loading
    from gpuconv.recipes import RECIPES, usual
    from gpuconv.runs import Config, check_data
    if args.recipe and args.recipe not in RECIPES:
        raise ValueError(f"--recipe {args.recipe}: {wanted_one_of(args.recipe, RECIPES)}")
    changes = {field: given for field in (*CHANGES, "master_weights")
               if (given := getattr(args, field)) is not None}
    if args.no_flip or args.no_augment:
        changes["flip"] = False
    if args.no_augment:
        changes.setdefault("crop", 0)
    # what is wrong is refused before minutes of reading
    with_changes(RECIPES[args.recipe or "folder"].settings, changes)
    wanted = models.describe(args.model or "cifar_convnet")
    where, device = choose_device(args.device)
    seed = args.seed or 0
    asked = data_source(args, seed=seed)
    if asked.kind == "folder" and not asked.image_size and "notation" in wanted:
        height, width, _ = models.input_shape(wanted)  # the size that the notation says
        asked = dataclasses.replace(asked, image_size=height if height == width else None)
    check_run(args, asked)
    with loading(console) as progress:
        sets = asked.load(args.download, progress)
    source = asked.resolved(args.download)
    name = args.recipe or usual(source.kind, args.model)
    recipe = RECIPES[name]
    N, H, W, C = sets[0].images.shape
    config = Config(
        model=models.describe(args.model or recipe.model, in_channels=C,
                              classes=len(sets[0].classes), image=H if H == W else (H, W)),
        source=source, recipe=name,
        settings=with_changes(recipe.settings_for(N, min(H, W)), changes),
        dtype=args.dtype or "float32", seed=seed, device=where,
        command=quoted("gpuconv", *sys.argv[1:]))
    check_data(config, *sets)
    return config, sets, asked.describe(*sets), device


def check_run(args: argparse.Namespace, source: "Source") -> None:
    """Refuse what cannot be done with these images or with ``--runs``, before they are read."""
    from gpuconv import files
    from gpuconv.runs.checks import check_free, check_place
    from gpuconv.runs.folder import PARENT
    from gpuconv.train import TensorBoard
    if args.runs:
        given = [f"--{name}" for name in MEANINGLESS if getattr(args, name)]
        if given:
            raise ValueError("--runs is against the clock, with no test between epochs and no "
                             f"folder: it goes without {', '.join(given)}")
        random.check_seed((args.seed or 0) + args.runs - 1)
        if args.run:
            files.check_writable(args.run)
        return
    check_place(args.run or PARENT, source)
    if args.run:
        check_free(args.run)
    if args.tensorboard:
        TensorBoard(args.run or PARENT)  # raises where its package is missing


def with_changes(settings: "Settings", changes: dict[str, Any]) -> "Settings":
    """Return a recipe's settings with the options; another optimiser brings its usual settings."""
    return settings.with_optimizer(changes.get("optimizer", settings.optimizer)).replace(**changes)


def tuned(args: argparse.Namespace, device: str) -> "Table | None":
    """Return the tuning table of ``--tuned``, checked for this device."""
    from gpuconv import ops
    if args.tuned is None:
        return None
    if device.startswith("cpu"):
        raise ValueError("--tuned: there is nothing to choose on the CPU")
    table = ops.load_table(args.tuned)
    table.check()
    return table


def resumed(args: argparse.Namespace, folder: "RunFolder") -> "tuple[Config, str]":
    """Return (config, a line about the device) of a run to resume."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    usual = vars(parser.parse_args([]))
    changed = [f"--{name.replace('_', '-')}" for name, value in usual.items()
               if name not in MAY_CHANGE and getattr(args, name) != value]
    if changed:
        raise ValueError(f"--resume goes on with what the run was told: {', '.join(changed)} "
                         "cannot be changed")
    config = folder.config()
    where, says = choose_device(config.device if args.device == "auto" else args.device)
    return dataclasses.replace(config, device=where), says


def finish(console: Any, folder: "RunFolder", history: "History", test: "Dataset") -> None:
    """Print how a run went, tested on ``test``, and what can be done next."""
    from gpuconv import report
    from gpuconv.train.progress import overflow
    last, best = history.last, history.best
    if last.test is None or best.test is None:  # a checkpoint may come from anywhere
        raise ValueError(f"{folder.path}: its history has epochs without a test, wanted one each")
    better = "" if best is last else (
        f"; {best.test.accuracy:.2%} after epoch {best.epoch}, which is kept as the best")
    say(console, f"{last.test.accuracy:.2%} of {last.test.count:,} test images right after "
                 f"{sum(row.seconds for row in history.rows):.1f} s{better}")
    if skipped := sum(row.skipped for row in history.rows):
        say(console, f"{overflow(skipped)} in all")
    curves = folder.plots / "curves.png"
    say(console, f"curves    {curves}" if report.plot_curves(history, curves) else report.hint())
    for what in ("evaluate", "report"):
        say(console, f"{what:10}{program()} {what} {quoted(folder.path)}")
    if test.names is not None and (where := folder.config().source.path):
        image = pathlib.Path(where, test.names[0])
        say(console, f"predict   {program()} predict {quoted(folder.path, image)}")


def resume_hint(folder: "RunFolder") -> None:
    """Print the command that goes on with a run, or starts it again."""
    complain(f"to {'go on' if folder.checkpoints() else 'start again'}",
             f"{program()} train --resume {quoted(folder.path)}")
