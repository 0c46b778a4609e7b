"""What a larger batch and a larger image cost, and one image that is very large."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cpu_memory
import numpy as np
from bench_train_step import products
from cpu_rounds import OURS, Size, Timed, in_turns
from cpu_table import Found, Target
from cpu_train import batch, stepper
from harness import Library
from report import written

from gpuconv import models, random
from gpuconv.autograd import Tensor
from gpuconv.ops import conv2d

CHANNELS = 32  # and filters, of the layer
UNTIMED = 2    # calls before one is timed: another size has just had the memory
PRODUCTS = "forward", "forward, gx, gw"  # of the large image


def scaling(size: Size, rivals: Sequence[str], say: Callable[[str], None]) -> Found:
    """All three."""
    found, size = Found(), dataclasses.replace(size, turn=size.long_turn)
    batches(size, found, say)
    sides(size, found, say)
    large_image(size, found, say)
    return found


def model(side: int) -> Any:
    random.seed(0)
    return models.cifar_convnet(image=side)


def batches(size: Size, found: Found, say: Callable[[str], None]) -> None:
    """Time per image of a training step."""
    say(f"cifar_convnet, batch {size.batches[0]} to {size.batches[-1]}")
    library = Library(OURS)
    times = in_turns({str(N): stepper(model(32), library, *batch(library, N))
                      for N in size.batches}, size, UNTIMED)
    each = {N: times[str(N)].seconds / N for N in size.batches}
    least = min(each.values())
    found.rows += [dict(what="batch", batch=N, seconds=each[N], over=each[N] / least)
                   for N in size.batches]
    found.table("A training step of `cifar_convnet`, 32x32, by batch.",
                ["batch", "microseconds per image", "over the least", "spread"],
                ([str(N), f"{1e6 * each[N]:,.0f}", f"{each[N] / least:.2f}",
                  f"{times[str(N)].spread:.0%}"] for N in size.batches), 1)
    worst = max(each, key=lambda N: each[N])
    found.targets.append(Target(
        f"time per image, batch {size.batches[0]} to {size.batches[-1]}, most over least",
        each[worst] / least, 1.2, at_least=False, note=f"batch {worst}"))


def sides(size: Size, found: Found, say: Callable[[str], None]) -> None:
    """Time per operation, the same number of pixels in all."""
    works = {"3x3 layer, 32-32, all three products": layer_of, "training step, cifar_convnet": step}
    rows = []
    for what, make in works.items():
        say(f"{what}, {size.sides[0]} to {size.sides[-1]} pixels")
        runs, flops = {}, {}
        for side in size.sides:
            N = max(1, size.pixels // side**2)
            runs[str(side)], flops[side] = make(side, N)
        times: dict[str, Timed] = in_turns(runs, size, UNTIMED)
        each = {side: times[str(side)].seconds / flops[side] for side in size.sides}
        first, last = each[size.sides[0]], max(size.sides, key=lambda side: each[side])
        for side in size.sides:
            found.rows.append(dict(what=what, side=side, seconds=each[side] * flops[side],
                                   flops=flops[side], over=each[side] / first))
            rows.append([what, f"{max(1, size.pixels // side**2)} x {side}x{side}",
                         f"{flops[side] / 1e9:,.1f}", f"{1e3 * times[str(side)].seconds:,.1f}",
                         f"{1e-9 / each[side]:,.0f}", f"{each[side] / first:.2f}",
                         f"{times[str(side)].spread:.0%}"])
        found.targets.append(Target(
            f"time per FLOP, images up to {size.sides[-1]}x{size.sides[-1]}, over that of "
            f"{size.sides[0]}x{size.sides[0]}, {what}", each[last] / first, 1.1, at_least=False,
            note=f"{last}x{last}; 1.0, and 10 % for the clock"))
    found.table("Larger images, the same number of pixels in a batch.",
                ["work", "images", "GFLOP", "ms", "GFLOP/s",
                 f"time per FLOP over {size.sides[0]}x{size.sides[0]}", "spread"], rows, 2)


def layer_of(side: int, N: int) -> tuple[Callable[[], Any], float]:
    """Forward and both gradients, and their operations."""
    rng = np.random.default_rng(0)
    x, gy = (rng.standard_normal((N, side, side, CHANNELS), "float32") for _ in range(2))
    tx = Tensor(x, requires_grad=True)
    tw = Tensor(rng.standard_normal((CHANNELS, 3, 3, CHANNELS), "float32"), requires_grad=True)
    return (lambda: conv2d(tx, tw, padding=1).creator.backward(gy),
            3 * 2 * gy.size * 9 * CHANNELS)


def step(side: int, N: int) -> tuple[Callable[[], Any], float]:
    """A training step, and three times the operations of the forward pass's products."""
    net, library = model(side), Library(OURS)
    flops = 3 * 2 * N * sum(products(net, side))
    return stepper(net, library, *batch(library, N, side)), flops


def large_image(size: Size, found: Found, say: Callable[[str], None]) -> None:
    """One image that is cut by rows."""
    rows = []
    for gradients, product in enumerate(PRODUCTS):
        say(f"1x{size.image}x{size.image}x16, {product}")
        got = cpu_memory.apart("image", size.image, gradients)
        share = got["bytes"] / got["matrix"]
        found.rows.append(dict(what="image", product=product, share=share, **got))
        rows.append([product, f"{got['flops'] / got['seconds'] / 1e9:,.0f}",
                     *(f"{got[name] / 2**20:,.0f}" for name in ("bytes", "result", "matrix")),
                     written(share, ".2f")])
    found.table(f"One image 1x{size.image}x{size.image}x16, 3x3, 16 filters, in a process of its "
                f"own; memory in MiB: {cpu_memory.HOW[got['exact']]}: the image, the filters, the "
                "gradient; the result is taken off.",
                ["products", "GFLOP/s", "more memory", "result", "all patches would take",
                 "share of that"], rows, 1)
    worst = max(found.rows[-len(PRODUCTS):], key=lambda row: row["share"])
    found.targets.append(Target(
        f"memory for 1x{size.image}x{size.image}x16 over its matrix of patches", worst["share"],
        0.1, at_least=False, note=worst["product"]))
