"""Measuring what computes a convolution fastest on this device: what fills a table.

Every candidate runs on the same random numbers and must agree with the default's result before it
is timed. A time is the median of ROUNDS between two events of the device, the L2 cache flushed
before each.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gpuconv.backend import Array, cupy, float_dtype, to_cpu
from gpuconv.ops.conv import gpu_dispatch
from gpuconv.ops.conv.shape import Problem
from gpuconv.ops.conv.tuning_table import Choice, Key, Table, here, used

ROUNDS, WARMUP = 20, 3
FLUSH = 256 << 20  # bytes: more than any L2
DRAWN = 1 << 20    # random numbers, again and again
FAR = {"float32": 2.0**-12, "float64": 2.0**-40}  # of the default's result, in norm
FAR_ROUNDED = 2.0**-7                             # where factors or results are rounded more

Timed = list[tuple[Choice, float]]


class _Noted(Table):
    """An empty table that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(here(), {})

    def find(self, key: Key) -> list[Choice]:
        """Nothing."""
        self.entries.setdefault(key, [])
        return []


def asked(step: Callable[[], Any]) -> list[Key]:
    """The convolutions that a step asks for, each once, in their order."""
    noted = _Noted()
    with used(noted):
        step()
    return list(noted.entries)


def measured(keys: Iterable[Key],
             failed: Callable[[Key, Choice, str], None] = lambda *_: None) -> Table:
    """What computes each fastest on the current device.

    Args:
        keys: (direction, problem, dtype's name, precision) of each.
        failed: called with what did not run, or gave another result than the default, and why.
    """
    return Table(here(), {key: list(times(key, failed)) for key in keys})


def times(key: Key, failed: Callable[[Key, Choice, str], None]) -> Iterator[tuple[Choice, float]]:
    """Milliseconds of each candidate that works."""
    direction, p, dtype, precision = key
    exact = float_dtype(dtype)
    a, b, out = operands(key)
    flush, want = cupy().empty(FLUSH, np.uint8), None
    architecture = gpu_dispatch.architecture()
    for candidate in gpu_dispatch.candidates(direction, p, exact, precision, architecture):
        def run(candidate: Choice = candidate) -> None:
            gpu_dispatch.compute(candidate, direction, p, a, b, out)

        out.fill(math.nan)
        try:
            run()
            got = to_cpu(out).astype(np.float64)
        except Exception as error:  # too much memory, a tile that does not compile: CuPy's own
            failed(key, candidate, str(error))
            continue
        want = got if want is None else want
        far = float(np.linalg.norm(got - want)) / (float(np.linalg.norm(want)) or 1.0)
        if not far <= (FAR[dtype] if dtype in FAR and precision == "ieee" else FAR_ROUNDED):
            failed(key, candidate, f"its result is {far:.1e} off")
            continue
        yield candidate, milliseconds(run, flush)


def operands(key: Key) -> tuple[Array, Array, Array]:
    """Random numbers in the shapes of a convolution, and the array for its result."""
    direction, p, dtype, _ = key
    drawn = np.random.default_rng(0).standard_normal(DRAWN, np.float32).astype(float_dtype(dtype))
    images, filters, results = shapes(p)

    def draw(shape: tuple[int, ...]) -> Array:
        return cupy().asarray(np.resize(drawn, shape))

    out = cupy().empty({"forward": results, "input_gradient": images,
                        "weight_gradient": filters}[direction], drawn.dtype)
    if direction == "forward":
        return draw(images), draw(filters), out
    if direction == "input_gradient":
        return draw(results), draw(filters), out
    return draw(images), draw(results), out


def shapes(p: Problem) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of x, w and y."""
    return (p.N, p.H, p.W, p.C), (p.K, p.R, p.S, p.C // p.groups), (p.N, p.P, p.Q, p.K)


def milliseconds(run: Callable[[], Any], flush: Array) -> float:
    """Median, on the device."""
    cuda, spans = cupy().cuda, []
    for _ in range(WARMUP):
        run()
    for _ in range(ROUNDS):
        flush.fill(0)
        began, ended = cuda.Event(), cuda.Event()
        began.record()
        run()
        ended.record()
        spans.append((began, ended))
    spans[-1][1].synchronize()
    return statistics.median(cuda.get_elapsed_time(*span) for span in spans)
