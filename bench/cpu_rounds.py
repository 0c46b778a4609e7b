"""Rivals timed in turns, so that what disturbs the machine disturbs them all.

A round gives each its turn: one call that is not timed (the one before left its own data in the
caches, its own threads awake), then calls for a twentieth of a second, at least one. After OpenBLAS
has used several threads, they spin for a tenth of a second, and what others compute meanwhile takes
up to twice as long: products with all threads come last in a round, and a pause follows. After a
pause the system may run two threads on one core for a while: the next round begins with calls that
are not timed, of whoever comes first.

The result of a call is dropped while the clock runs: who asks the system for memory each time pays
for it, who keeps what has been freed does not, as in use.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness
from harness import Library, Work

OURS, TORCH = "numpy", ("torch", "torch channels_last")  # as harness calls them
PAUSE = 0.15   # seconds
AWAKE = 0.1    # seconds of work after a pause
LEAST = 3      # rounds

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured: the whole day, a quick look, or what a test takes."""

    rounds: int = 9               # at most
    seconds: float = 2.0          # of one piece of work, after which no round begins
    turn: float = 0.05            # seconds of each rival in a round, at least
    long_turn: float = 0.25       # of each batch and image size: a step of a small one is short
    batch: int = 128              # images of a training step, and of the passes
    nets: tuple[str, ...] = ("cifar_convnet", "simple_convnet", "speed-run net")
    apart: int = 3                # of them in processes of their own, for their memory
    every: int = 1                # of the layers, one in so many
    flops: float = 4e9            # of a layer
    passes: int = 100             # shapes of each kind, at most
    batches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    sides: tuple[int, ...] = (32, 64, 128, 256, 512)   # of images
    pixels: int = 512 * 512       # of a batch of each of these sides
    image: int = 4096             # side of a single large image


FULL = Size()
QUICK = Size(rounds=3, seconds=0.1, turn=0.01, long_turn=0.05, batch=32, apart=1, every=12,
             flops=5e8, passes=1, batches=(16, 32, 64), sides=(32, 64, 128), pixels=128 * 128,
             image=1024)


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of a call."""

    seconds: float  # median
    spread: float   # of the middle half of them, as a share of the median
    calls: int

    @classmethod
    def of(cls, taken: Sequence[float]) -> "Timed":
        middle = statistics.median(taken)
        low, _, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else 3 * [middle]
        return cls(middle, (high - low) / middle, len(taken))


def in_turns(runs: Mapping[str, Run], size: Size, untimed: int = 1, least: int = LEAST,
             pause: float = 0) -> dict[str, Timed]:
    """Time each, in so many rounds at least; with a pause, products with all threads come last."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    time.sleep(pause)
    end = time.perf_counter() + size.seconds
    for number in range(size.rounds):
        if number >= least and time.perf_counter() > end:
            break
        stop = time.perf_counter() + (AWAKE if pause else 0)
        while time.perf_counter() < stop:
            next(iter(runs.values()))()
        for name, run in runs.items():
            for _ in range(untimed):
                run()
            stop = time.perf_counter() + size.turn
            while True:
                began = time.perf_counter()
                run()
                now = time.perf_counter()
                taken[name].append(now - began)
                if now >= stop:
                    break
        time.sleep(pause)
    return {name: Timed.of(seconds) for name, seconds in taken.items()}


def race(work: Work, size: Size, rivals: Sequence[str], more: Mapping[str, Run] | None = None,
         wrong: list[str] | None = None) -> dict[str, Timed]:
    """Check the result of every rival, time them in turns, check again.

    Args:
        work: for ``rivals``, libraries of harness.
        size: of the day.
        rivals: PyTorch where it is installed, and gpuconv.
        more: pieces of work that need no library, the threaded products last.
        wrong: takes a sentence for each wrong result; who gives one is not timed.
    """
    libraries = {name: Library(name) for name in rivals}
    runs = {name: harness.runner(work, library) for name, library in libraries.items()}

    def check() -> None:
        for name in list(runs):
            try:
                harness.check_result(work, libraries[name], runs[name]())
            except AssertionError as error:
                (wrong if wrong is not None else []).append(f"{work.name}, {name}: {error}")
                del runs[name]

    check()
    found = in_turns({**runs, **(more or {})}, size, pause=PAUSE if more else 0)
    check()  # the runs in between have changed nothing
    return {name: timed for name, timed in found.items() if name in runs or name not in libraries}


def best(found: Mapping[str, Timed]) -> float | None:
    """Seconds of PyTorch's better layout."""
    return min((found[name].seconds for name in TORCH if name in found), default=None)
