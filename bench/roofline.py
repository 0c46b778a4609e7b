"""What this machine can do at most, measured: a matrix product and a copy.

    roof: no work can be faster than  max(FLOPs / peak FLOP/s, bytes / peak bytes/s)

``python bench/roofline.py`` prints the peaks. The matrices hold random numbers: a GPU multiplies
zeros faster, for it runs cooler. Of several runs the shortest counts.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM
52(4), 2009.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Iterator

import numpy as np

if __name__ == "__main__":  # in a checkout, from anywhere
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

from gpuconv import backend, threads

SIDE = {"cpu": 2048, "cuda": 8192}              # of the matrices
COPIED = {"cpu": 256 << 20, "cuda": 1 << 30}    # bytes: far more than any cache
ROUNDS = 7
STORED = {"tf32": "float32"}  # precision of a product: dtype of its matrices, where names differ
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "float16", "bfloat16")}


@dataclasses.dataclass(frozen=True)
class Roof:
    """Peaks of a device."""

    flops: float  # per second
    bytes: float  # per second, read and written
    precision: str = "float32"

    def __str__(self) -> str:
        return f"{self.flops / 1e9:,.0f} GFLOP/s {self.precision}, {self.bytes / 1e9:,.1f} GB/s"

    def seconds(self, flops: float, traffic: float) -> float:
        """The least time for this work."""
        return max(flops / self.flops, traffic / self.bytes)


@functools.cache
def roof(device: str, precision: str = "float32") -> Roof:
    """Peaks of "cpu" or "cuda"; precision: float32, tf32, float16 or bfloat16."""
    return Roof(product(device, precision), copy(device), precision)


@functools.cache
def product(device: str, precision: str) -> float:
    """FLOP/s of a matrix product; sums of 16-bit numbers are taken in float32."""
    side = SIDE[device]
    rng, dtype = np.random.default_rng(0), backend.float_dtype(STORED.get(precision, precision))
    a, b = (backend.asarray(rng.standard_normal((side, side), "float32").astype(dtype), device)
            for _ in range(2))
    with float32_products(device, tf32=precision == "tf32"):
        return 2 * side**3 / _seconds(lambda: a @ b, device)


@functools.cache
def copy(device: str) -> float:
    """Bytes read and written per second, from one place of its memory to another."""
    n = COPIED[device] // 4
    source = backend.asarray(np.random.default_rng(0).integers(0, 2**31, n, np.int32), device)
    target = backend.get_array_module(source).empty_like(source)

    def run() -> None:
        if device == "cuda":
            backend.cupy().copyto(target, source)
        else:
            threads.each(lambda piece: np.copyto(target[piece], source[piece]),
                         threads.chunks(n, 4, COPIED[device] // (4 * threads.count())))

    return 2 * source.nbytes / _seconds(run, device)


@contextlib.contextmanager
def float32_products(device: str, tf32: bool) -> Iterator[None]:
    """Inside, CuPy's products of float32 matrices round their factors to TF32, or do not."""
    if device == "cpu":
        yield
        return
    core = backend.cupy()._core
    numbers, before = core._routines_linalg, core.get_compute_type(np.float32)
    core.set_compute_type(np.float32,
                          numbers.COMPUTE_TYPE_TF32 if tf32 else numbers.COMPUTE_TYPE_DEFAULT)
    try:
        yield
    finally:
        core.set_compute_type(np.float32, before)


def _seconds(f, device: str) -> float:
    """Shortest of a few runs: a peak. Of a GPU its own time, between two events."""
    taken = []
    for _ in range(1 + ROUNDS):
        if device == "cuda":
            events = begin, end = [backend.cupy().cuda.Event() for _ in range(2)]
            begin.record()
            f()
            end.record()
            end.synchronize()
            taken.append(backend.cupy().cuda.get_elapsed_time(*events) / 1e3)
        else:
            began = time.perf_counter()
            f()
            taken.append(time.perf_counter() - began)
    return min(taken[1:])


if __name__ == "__main__":
    for name in ["cpu"] + ["cuda"] * backend.device_info().ready:
        for each in PRECISIONS[name]:
            print(f"{name}: {roof(name, each)}")
