"""``gpuconv tune``: measure which engine computes a model's convolutions fastest on this GPU."""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from gpuconv import backend
from gpuconv.cli.options import add_device, add_model, choose_device, number
from gpuconv.cli.output import console, say, show, table
from gpuconv.messages import program, quoted

if TYPE_CHECKING:
    from gpuconv.nn import Module
    from gpuconv.ops.conv import Table
    from gpuconv.ops.conv.tuning_table import Algorithm, Key

SAYS = "Measure what computes a model's convolutions fastest on this GPU."
EXAMPLES = ("gpuconv tune --dtype float16",
            "gpuconv tune --model simple_convnet --batch-size 1000 --output simple.json")
NOTES = """The table holds for this GPU, these versions of CuPy and NVRTC, this batch size and
dtype. Using it changes the last bits of results, as every change of algorithm does; without
it they are the same on every GPU of an architecture.

to use it: gpuconv train --tuned FILE with the same --model, --batch-size and --dtype (what was
not measured runs as always), or in Python: with gpuconv.ops.tuned(table)"""
WORDS = {"forward": "forward", "dgrad": "input gradient", "wgrad": "weight gradient"}


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv tune``."""
    add_model(to)
    to.add_argument("--image-size", type=number(int, 1), metavar="N",
                    help="height and width of the images, pixels (default: 32, or what the "
                         "notation says)")
    to.add_argument("--batch-size", type=number(int, 2), default=128, metavar="N",
                    help="images of a training step (default: %(default)s)")
    to.add_argument("--dtype", choices=backend.FLOATS, default="float32",
                    help="default: %(default)s")
    to.add_argument("--precision", choices=("ieee", "tf32"), default="ieee",
                    help="of float32 products (default: %(default)s)")
    to.add_argument("--output", default="tuned.json", metavar="FILE",
                    help="where the table goes (default: %(default)s)")
    add_device(to)


def run(args: argparse.Namespace) -> None:
    """``gpuconv tune``."""
    import numpy as np

    from gpuconv import files, models
    from gpuconv.ops.conv import autotune
    if args.device == "cpu":
        raise ValueError("--device cpu: there is nothing to choose on the CPU")
    where, why_there = choose_device("cuda" if args.device == "auto" else args.device)
    files.check_writable(args.output)
    description = models.describe(args.model, image=args.image_size)
    model = models.build(description).to(where, args.dtype)
    for module in model.modules():
        if hasattr(module, "precision"):
            module.precision = args.precision
    out, failures = console(), []
    shape = args.batch_size, *models.input_shape(description)
    x = backend.asarray(np.zeros(shape, backend.float_dtype(args.dtype)), where)
    with backend.array_device(x):
        keys = autotune.asked(lambda: step(model, x))
        if not keys:
            raise ValueError("this model has neither convolutions nor Linear layers")
        found = autotune.measured(keys, lambda *failure: failures.append(failure))
    found.save(args.output)
    show(out, {"device": why_there, "model": f"{description.get('name') or args.model}, "
               f"{args.dtype}, {args.precision}, batches of {args.batch_size}"})
    say(out, "")
    show_table(out, found)
    for (direction, *_), chosen, why in failures:
        say(out, f"left out: {WORDS[direction]} by {spelt(chosen)}: {why.splitlines()[0]}")
    say(out, f"table     {pathlib.Path(args.output)}")
    say(out, f"use       {program()} train --tuned {quoted(args.output)}")


def step(model: "Module", x: backend.Array) -> None:
    """Run forward and backward as in training."""
    from gpuconv.autograd import Tensor
    y = model.train()(Tensor(x))
    if y.requires_grad:
        y.backward(backend.get_array_module(x).ones_like(y.data))


def show_table(out: Any, found: "Table") -> None:
    """Print a row per convolution: the default's time, the fastest, and its algorithm."""
    from gpuconv.ops.conv import default_algorithm
    rows = []
    for key, timed in found.entries.items():
        direction, shape, dtype, precision = key
        usual = default_algorithm(direction, shape, backend.float_dtype(dtype), precision,
                                  found.where["architecture"])
        before = dict(timed).get(usual)
        for best, least in timed[:1]:
            gain = ("-", "-") if before is None else (f"{before:.3f}", f"{before / least:.2f}x")
            rows.append([WORDS[direction], layer(key), gain[0], f"{least:.3f}", gain[1],
                         spelt(best)])
    table(out, ["direction", "layer", "default, ms", "best, ms", "gain", "by"], rows,
          right=(2, 3, 4))


def layer(key: "Key") -> str:
    """Return the sizes of a convolution, as in 32x32x64 -> 128, 3x3/2."""
    shape, stride = key[1], key[1].window.stride
    if (shape.H, shape.W, shape.R, shape.S) == (1, 1, 1, 1):
        return f"{shape.C} -> {shape.K}"
    steps = "" if stride == (1, 1) else f"/{'x'.join(map(str, dict.fromkeys(stride)))}"
    groups = "" if shape.groups == 1 else f", {shape.groups} groups"
    return f"{shape.H}x{shape.W}x{shape.C} -> {shape.K}, {shape.R}x{shape.S}{steps}{groups}"


def spelt(algorithm: "Algorithm") -> str:
    """Return an algorithm in words, as in tensor cores, 128x64x32 by 64x32, 3 stages, 4 splits."""
    engine, tile, splits = algorithm
    words = [engine.replace("_", " ")]
    if tile:
        words += [f"{tile.BM}x{tile.BN}x{tile.BK} by {tile.WM}x{tile.WN}", f"{tile.STAGES} stages"]
    return ", ".join([*words, *([f"{splits} splits"] if splits else [])])
