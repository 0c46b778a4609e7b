"""``gpuconv summary``: a model layer by layer, and the memory that training it takes."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from gpuconv.backend import FLOATS
from gpuconv.cli.options import add_device, add_model, choose_device, number
from gpuconv.cli.output import console, say, show, write_json

if TYPE_CHECKING:
    from gpuconv.nn import Module

SAYS = "Show a model layer by layer."
EXAMPLES = ("gpuconv summary", "gpuconv summary --model simple_convnet --image-size 64",
            "gpuconv summary --model 'INPUT 32x32x3 | CONV5-16 RELU POOL2 | FC 10'",
            "gpuconv summary --memory --batch-size 512 --dtype float16")
NOTES = """columns:
  kind           the layer's class; after a +, it runs together with the layer above it
  unshared       parameters, if each position of a filter had weights of its own
  multiply-adds  products that are added up, per image
  activations    memory of the layer's output, per image
  field          height x width of the part of the image that an output pixel depends on"""
BATCH_SIZE = 128


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv summary``."""
    add_model(to)
    to.add_argument("--image-size", type=number(int, 1), metavar="N",
                    help="height and width of the images, pixels (default: 32, or what the "
                         "notation says)")
    to.add_argument("--memory", action="store_true",
                    help="also predict the memory of a training step, with SGD and momentum")
    to.add_argument("--batch-size", type=number(int, 1, 1 << 24), metavar="N",
                    help=f"images of that step (default: {BATCH_SIZE})")
    to.add_argument("--dtype", choices=FLOATS, default="float32",
                    help="of weights and activations (default: %(default)s)")
    add_device(to)
    to.add_argument("--json", action="store_true", help="write JSON; memory in bytes")


def run(args: argparse.Namespace) -> None:
    """Run ``gpuconv summary``."""
    from gpuconv import models, nn
    if args.batch_size and not args.memory:
        raise ValueError("--batch-size goes with --memory")
    description = models.describe(args.model, image=args.image_size)
    kind = args.device.split(":")[0]  # only memory is measured there
    device, where = choose_device(args.device if args.memory or kind == "auto" else "cpu")
    model = models.build(description).to(device, args.dtype)
    shape = models.input_shape(description)
    found, out = nn.summary(model, shape, None if kind == "auto" else kind), console()
    memory = step_memory(model, shape, args.batch_size or BATCH_SIZE) if args.memory else {}
    if args.json:
        write_json(out, dataclasses.asdict(found) | ({"memory": memory} if memory else {}))
        return
    if out.is_terminal:
        out.print(found.table(out.width))
    else:
        for line in str(found).split("\n"):
            say(out, line)
    if memory:
        say(out, "")
        show(out, {"device": where} | in_words(memory))


def step_memory(model: "Module", shape: tuple[int, int, int], batch_size: int) -> dict[str, Any]:
    """Return the memory of a training step, the free memory, and the largest batch that fits."""
    from gpuconv.backend import free_memory
    from gpuconv.train.memory import largest_batch, predict
    memory = predict(model, shape, batch_size)
    free = free_memory(model.device)
    return {**dataclasses.asdict(memory), "peak": memory.peak, "free": free,
            "largest_batch": None if free is None else largest_batch(model, shape, free)}


def in_words(memory: dict[str, Any]) -> dict[str, str]:
    """Return ``step_memory``'s numbers as text."""
    from gpuconv.nn.summary import human
    largest, free = memory["largest_batch"], memory["free"]
    rows = {"batch size": f"{memory['batch_size']:,} images"}
    rows |= {name: human(memory[name]) for name in (
        "parameters", "gradients", "optimizer", "data", "activations", "workspace")}
    rows["peak"] = f"{human(memory['peak'])} in a training step"
    if free is not None:
        fits = f"batches of up to {largest:,} images fit" if largest else "no batch fits"
        rows["free"] = f"{human(free)}: {fits}"
    return rows
