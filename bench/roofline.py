"""What this machine can do at most, measured: float32 matrix product and copy.

    roof: no work can be faster than  max(FLOPs / peak FLOP/s, bytes / peak bytes/s)

``python bench/roofline.py`` prints the peaks.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM
52(4), 2009.
"""

import dataclasses
import functools
import time

import numpy as np

from gpuconv import backend, threads

SIDE = {"cpu": 2048, "cuda": 8192}              # of the matrices
COPIED = {"cpu": 256 << 20, "cuda": 1 << 30}    # bytes: far more than any cache
ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Roof:
    """Peaks of a device."""

    flops: float  # per second, float32
    bytes: float  # per second, read and written

    def __str__(self) -> str:
        return f"{self.flops / 1e9:,.0f} GFLOP/s float32, {self.bytes / 1e9:,.1f} GB/s"

    def seconds(self, flops: float, traffic: float) -> float:
        """The least time for this work."""
        return max(flops / self.flops, traffic / self.bytes)


@functools.cache
def roof(device: str) -> Roof:
    """Peaks of "cpu" or "cuda"."""
    xp = np if device == "cpu" else backend.cupy()
    side, n = SIDE[device], COPIED[device] // 4
    a = xp.ones((side, side), np.float32)
    c = xp.empty_like(a)
    src, dst = xp.ones(n, np.float32), xp.zeros(n, np.float32)

    def copy():
        if xp is not np:
            xp.copyto(dst, src)
        else:
            threads.each(lambda piece: np.copyto(dst[piece], src[piece]),
                         threads.chunks(n, 4, COPIED[device] // (4 * threads.count())))

    return Roof(2 * side**3 / _seconds(lambda: xp.matmul(a, a, out=c), xp),
                2 * src.nbytes / _seconds(copy, xp))


def _seconds(f, xp) -> float:
    """Shortest of a few runs: a peak."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        f()
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    for name in ["cpu"] + ["cuda"] * backend.device_info().ready:
        print(f"{name}: {roof(name)}")
