"""Autotune: measure which algorithm computes a convolution fastest on this device.

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
from gpuconv.ops.conv.tuning_table import Algorithm, Key, Table, here, used

ROUNDS, WARMUP = 20, 3
FLUSH = 256 << 20  # bytes: more than any L2
DRAWN = 1 << 20    # random numbers, again and again
FAR = {"float32": 2.0**-12, "float64": 2.0**-40}  # of the default's result, in norm
FAR_ROUNDED = 2.0**-7                             # where factors or results are rounded more

RUN: dict[str, Callable[..., Any]] = {
    "forward": gpu_dispatch.forward, "dgrad": gpu_dispatch.dgrad, "wgrad": gpu_dispatch.wgrad}


class _Noted(Table):
    """An empty table that notes the convolutions that are looked up."""

    def __init__(self) -> None:
        super().__init__(here(), {})

    def find(self, key: Key) -> list[Algorithm]:
        """Return nothing, and note the key."""
        self.entries.setdefault(key, [])
        return []


def asked(step: Callable[[], Any]) -> list[Key]:
    """Return the convolutions that a step computes, each once, in their order."""
    noted = _Noted()
    with used(noted):
        step()
    return list(noted.entries)


def measured(keys: Iterable[Key],
             failed: Callable[[Key, Algorithm, str], None] = lambda *_: None) -> Table:
    """Return a table of the convolutions, measured on the current device.

    Args:
        keys: (direction, shape, dtype's name, precision) of each.
        failed: called with each algorithm that did not run, or gave another result than the
            default, and the reason.
    """
    return Table(here(), {key: list(times(key, failed)) for key in keys})


def times(key: Key, failed: Callable[[Key, Algorithm, str], None],
          ) -> Iterator[tuple[Algorithm, float]]:
    """Yield the milliseconds of each candidate that works."""
    direction, shape, dtype, precision = key
    exact = float_dtype(dtype)
    a, b, out = operands(key)
    flush, want = cupy().empty(FLUSH, np.uint8), None
    architecture = gpu_dispatch.architecture()
    for candidate in gpu_dispatch.candidates(direction, shape, exact, precision, architecture):
        def run(candidate: Algorithm = candidate) -> None:
            RUN[direction](shape, a, b, precision, out=out, algorithm=candidate)

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
    """Return random numbers in the shapes of a convolution, and the array for its result."""
    direction, shape, dtype, _ = key
    drawn = np.random.default_rng(0).standard_normal(DRAWN, np.float32).astype(float_dtype(dtype))

    def draw(shape: tuple[int, ...]) -> Array:
        return cupy().asarray(np.resize(drawn, shape))

    a, b, out = {"forward": (shape.x_shape, shape.w_shape, shape.y_shape),
                 "dgrad": (shape.y_shape, shape.w_shape, shape.x_shape),
                 "wgrad": (shape.x_shape, shape.y_shape, shape.w_shape)}[direction]
    return draw(a), draw(b), cupy().empty(out, drawn.dtype)


def milliseconds(run: Callable[[], Any], flush: Array) -> float:
    """Return the median time of ``run`` on the device, milliseconds."""
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
