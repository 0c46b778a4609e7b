"""Pools, batch normalisation and activations at the shapes of the three nets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cpu_rounds import OURS, TORCH, Size, best, race
from cpu_table import Found, Target, ratio
from cpu_train import spreads
from harness import Work
from report import written

from gpuconv import ops

SHAPES = {  # side of the image, channels
    "max pool": [(32, 32), (16, 64), (8, 128), (32, 64), (16, 256), (8, 256)],
    "global max pool": [(4, 256)],
    "BatchNorm": [(32, 32), (16, 64), (8, 128), (8, 256), (4, 256)],
    "ReLU": [(32, 32), (16, 64), (8, 128)],
    "GELU": [(16, 64), (8, 256), (4, 256)],
}
WANTED = {"max pool": 1.0, "global max pool": 1.0, "BatchNorm": 0.7}  # both ways, over PyTorch


def work(kind: str, N: int, H: int, C: int, whole: bool) -> Work:
    """Forward, or forward and backward."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, H, H, C), "float32")
    name = f"{kind} {H}x{H}x{C} {'forward + backward' if whole else 'forward'}"
    if kind == "BatchNorm":
        gy = rng.standard_normal(x.shape, "float32")
        ours, by_torch = normalisers(C)
        arrays = dict(x=x, gamma=np.ones(C, "float32"), beta=np.zeros(C, "float32"))
        return Work(name, arrays | dict(gy=gy), ours, by_torch, whole=whole, images=N,
                    gradient_of=("x", "gamma", "beta") if whole else (), terms=N * H * H)
    ours, by_torch, P = {
        "max pool": (lambda x: ops.max_pool2d(x, 2), lambda F, x: F.max_pool2d(x, 2), H // 2),
        "global max pool": (ops.global_max_pool2d,
                            lambda F, x: F.adaptive_max_pool2d(x, 1).flatten(1), None),
        "ReLU": (ops.relu, lambda F, x: F.relu(x), H),
        "GELU": (ops.gelu, lambda F, x: F.gelu(x), H)}[kind]
    gy = rng.standard_normal((N, P, P, C) if P else (N, C), "float32")

    def functional(x: Any) -> Any:
        import torch
        return by_torch(torch.nn.functional, x)

    return Work(name, dict(x=x, gy=gy), ours, functional, gradient_of=("x",) * whole, whole=whole,
                images=N)


def normalisers(C: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """In training, with running statistics of their own."""
    state: dict[str, Any] = {}

    def ours(x, gamma, beta):
        if "ours" not in state:
            state["ours"] = np.zeros(C, "float32"), np.ones(C, "float32")
        return ops.batch_norm(x, gamma, beta, *state["ours"], training=True)

    def by_torch(x, gamma, beta):
        import torch
        if "torch" not in state:
            state["torch"] = torch.zeros(C), torch.ones(C)
        return torch.nn.functional.batch_norm(x, *state["torch"], gamma, beta, training=True)

    return ours, by_torch


def passes(size: Size, rivals: Sequence[str], say: Callable[[str], None]) -> Found:
    """Times of each, forward, and forward with backward."""
    found = Found()
    for kind, shapes in SHAPES.items():
        say(kind)
        for H, C in shapes[:size.passes]:
            for whole in (False, True):
                what = work(kind, size.batch, H, C, whole)
                times = race(what, size, rivals, wrong=found.wrong)
                ours = times[OURS].seconds if OURS in times else None
                found.rows.append(dict(kind=kind, name=what.name, whole=whole, times=times,
                                       over=ratio(best(times), ours)))
    found.table(f"Milliseconds, batch {size.batch}, float32, BatchNorm in training; over PyTorch's "
                "better layout, above 1 gpuconv is faster.",
                ["pass", "gpuconv", "PyTorch", "PyTorch channels_last", "over the better",
                 "spread"],
                ([row["name"], *(written(1e3 * row["times"][rival].seconds
                                         if rival in row["times"] else None, ".2f")
                                 for rival in (OURS, *TORCH)),
                  written(row["over"], ".2f"), spreads(row["times"])] for row in found.rows), 1)
    for kind, wanted in WANTED.items():
        mine = [row for row in found.rows if row["kind"] == kind and row["whole"] and row["over"]]
        worst = min(mine, key=lambda row: row["over"], default=None)
        found.targets.append(Target(
            f"{kind} forward + backward over PyTorch, the worst", worst and worst["over"], wanted,
            note=worst["name"].removesuffix(" forward + backward") if worst else ""))
    return found
