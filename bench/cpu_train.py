"""A training step of whole nets: forward, loss, backward, SGD with Nesterov's momentum."""

from collections.abc import Callable, Sequence
from typing import Any

import harness
import numpy as np
from bench_train_step import our_step, torch_twin, twin_step
from cpu_rounds import OURS, TORCH, Run, Size, best, in_turns
from cpu_table import Found, Target, ratio
from harness import Library
from report import written

from gpuconv import models, nn, random

CLASSES = 10
STEPS = 3        # whose losses are compared
FAR = 2.0**-10   # from ours, for each of them: rounding grows from step to step


def speed_run() -> nn.Sequential:
    """A net of the CIFAR-10 speed runs: 3x3 convolutions without bias, the widest with 256 filters.

    3-64-pool-BN-GELU-64-BN-GELU, then twice 256-pool-BN-GELU-256-BN-GELU, the largest pixel of each
    channel, Linear.
    """
    modules: list[nn.Module] = []
    C = 3
    for K in (64, 256, 256):
        for channels, pool in ((C, [nn.MaxPool2d(2)]), (K, [])):
            modules += [nn.Conv2d(channels, K, 3, padding=1, bias=False), *pool,
                        nn.BatchNorm2d(K), nn.GELU()]
        C = K
    return nn.Sequential(*modules, nn.GlobalMaxPool2d(), nn.Linear(C, CLASSES))


NETS: dict[str, Callable[[], nn.Sequential]] = {
    "cifar_convnet": models.cifar_convnet, "simple_convnet": models.simple_convnet,
    "speed-run net": speed_run}


def net(name: str) -> nn.Sequential:
    """With the weights it always has."""
    random.seed(0)
    return NETS[name]()


def batch(library: Library, N: int, side: int = 32) -> tuple[Any, Any]:
    """Images and labels, where the library wants them. Nobody asks for the images' gradient."""
    rng = np.random.default_rng(0)
    x = harness.common(rng.standard_normal((N, side, side, 3), "float32"))
    return library.array(x), library.array(rng.integers(0, CLASSES, N).astype(np.int32))


def stepper(model: nn.Sequential, library: Library, x: Any, labels: Any) -> Run:
    """What takes one step and gives the loss before it."""
    if library.torch:
        return twin_step(torch_twin(model), library, x, labels)
    return our_step(model, library, x, labels)


def train(size: Size, rivals: Sequence[str], say: Callable[[str], None]) -> Found:
    """Images per second of each net."""
    found, rows = Found(), []
    for name in size.nets:
        say(name)
        steps, losses = {}, {}
        for rival in rivals:
            library = Library(rival)
            steps[rival] = stepper(net(name), library, *batch(library, size.batch))
            losses[rival] = np.array([np.float32(steps[rival]()) for _ in range(STEPS)])
        for rival in rivals:
            if not np.all(np.abs(losses[rival] / losses[OURS] - 1) < FAR):
                found.wrong.append(f"{name}, losses of {STEPS} steps, {rival}: {losses[rival]}, "
                                   f"gpuconv's: {losses[OURS]}")
                del steps[rival]
        times = in_turns(steps, size, least=size.rounds)
        rates = {rival: size.batch / timed.seconds for rival, timed in times.items()}
        over = ratio(best(times), times[OURS].seconds)
        found.rows.append(dict(net=name, times=times, over=over))
        rows.append([name, *(written(rates.get(rival), ",.0f") for rival in (OURS, *TORCH)),
                     written(over, ".2f"), spreads(times)])
        found.targets.append(Target(f"training images/s over PyTorch's, {name}", over, 0.85,
                                    note="the goal is 1.0"))
    found.table(f"Images per second, batch {size.batch}, float32; both sides see the same weights, "
                "images and labels, and neither computes the gradient of the images.",
                ["net", "gpuconv", "PyTorch", "PyTorch channels_last", "over the better",
                 "spread"], rows, 1)
    return found


def spreads(times: dict[str, Any]) -> str:
    """Of gpuconv and PyTorch's layouts: how far apart the middle half of the times lies."""
    return " / ".join(f"{times[name].spread:.0%}" for name in (OURS, *TORCH) if name in times)
