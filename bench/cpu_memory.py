"""The most memory that a piece of work takes, each in a process of its own.

``python bench/cpu_memory.py step NET LIBRARY N`` takes training steps, and
``python bench/cpu_memory.py image SIDE 0`` (or 1, with gradients) convolves one large image; both
print JSON.

Counted is what is in memory at the worst moment (on Linux VmHWM, set back before the work begins)
above what was there before it: the libraries, the net, images and labels; of the large image what
goes in. A step of a tiny net comes first, for what a library imports at its first step, and pages
of the libraries' own files do not count. So the optimiser, gradients, activations, workspaces and
what a library keeps for the next step are counted, on both sides alike.
"""

import contextlib
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # in a checkout, from anywhere
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cpu_train  # noqa: E402
import numpy as np  # noqa: E402
from bench_train_step import our_step, torch_twin, twin_step  # noqa: E402
from cpu_rounds import OURS, TORCH, Size  # noqa: E402
from cpu_table import Found, Target, ratio  # noqa: E402
from harness import Library  # noqa: E402
from report import written  # noqa: E402

from gpuconv import nn  # noqa: E402
from gpuconv.autograd import Tensor  # noqa: E402
from gpuconv.ops import conv2d  # noqa: E402

STEPS = 3
CHANNELS = 16       # and filters, of the large image
HOW = {True: "the peak of the resident memory (VmHWM, set back before; without pages of files, the "
             "libraries' code) above what was there before",
       False: "what the peak of the resident memory (ru_maxrss) has grown by"}


class Peak:
    """Of this process's memory, from here on."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # what is free, the C library may keep
            import ctypes
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.exact = False
        with contextlib.suppress(OSError):  # not Linux
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            self.exact = True
        self.before = self.now("VmRSS")

    def bytes(self) -> int:
        """More than at the beginning."""
        return max(0, self.now("VmHWM") - self.before)

    def now(self, of: str) -> int:
        """Resident, or the most that was; pages of files, of which none leaves, taken off."""
        return self.resident(of) - self.resident("RssFile") if self.exact else self.highest()

    @staticmethod
    def resident(of: str) -> int:
        text = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{of}:\s+(\d+) kB", text)[1])

    @staticmethod
    def highest() -> int:
        import resource
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step(net: str, rival: str, N: int) -> dict[str, Any]:
    """Training steps of a net."""
    library = Library(rival)
    tiny = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(2),
                         nn.GELU(), nn.ReLU(), nn.GlobalMaxPool2d(), nn.Linear(2, 10))
    cpu_train.stepper(tiny, library, *cpu_train.batch(library, 2, 8))()
    model, data = cpu_train.net(net), cpu_train.batch(library, N)
    if library.torch:
        model = torch_twin(model)
    peak = Peak()
    run = (twin_step if library.torch else our_step)(model, library, *data)
    for _ in range(STEPS):
        run()
    return dict(bytes=peak.bytes(), exact=peak.exact)


def image(side: int, gradients: bool) -> dict[str, Any]:
    """A 3x3 convolution of one image (1, side, side, 16), 16 filters.

    With gradients the result is gone before they are taken, as y of a layer whose next op does not
    keep it: y and gx, of one size, are not there together.
    """
    def filled(*shape: int) -> np.ndarray:
        a = np.empty(shape, "float32")
        a[...] = np.random.default_rng(0).standard_normal(shape[2:], "float32")
        return a

    x, w, gy = (filled(1, side, side, CHANNELS), filled(CHANNELS, 3, 3, CHANNELS),
                filled(1, side, side, CHANNELS))
    leaves = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)

    def run() -> None:
        if gradients:
            conv2d(*leaves, padding=1).creator.backward(gy)
        else:
            conv2d(x, w, padding=1)

    peak, taken = Peak(), []
    for _ in range(STEPS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return dict(bytes=max(0, peak.bytes() - x.nbytes), exact=peak.exact, result=x.nbytes,
                seconds=statistics.median(taken), matrix=9 * x.nbytes,
                flops=(3 if gradients else 1) * 18 * gy.size * CHANNELS)


def apart(*words: Any) -> dict[str, Any]:
    """What this file says, called with these words in a process of its own."""
    said = subprocess.run([sys.executable, str(ROOT / "bench" / "cpu_memory.py"), *map(str, words)],
                          capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(f"cpu_memory.py {' '.join(map(str, words))}: "
                           f"{(said.stderr.splitlines() or ['no word'])[-1]}")
    return json.loads(said.stdout)


def memory(size: Size, rivals: Sequence[str], say: Callable[[str], None]) -> Found:
    """Of a training step of each net."""
    found, rows, exact = Found(), [], True
    for net in size.nets[:size.apart]:
        taken = {}
        for rival in rivals:
            say(f"{net}, {rival}")
            got = apart("step", net, rival, size.batch)
            taken[rival], exact = got["bytes"], got["exact"]
        peer = min((taken[rival] for rival in TORCH if rival in taken), default=None)
        over = ratio(taken[OURS], peer)
        found.rows.append(dict(net=net, bytes=taken, over=over))
        rows.append([net, *(written(taken[rival] / 2**20 if rival in taken else None, ",.0f")
                            for rival in (OURS, *TORCH)), written(over, ".2f")])
        found.targets.append(Target(f"memory of a training step over PyTorch's, {net}", over, 1,
                                    at_least=False))
    found.table(f"MiB at the worst moment of {STEPS} training steps, batch {size.batch}, float32, "
                f"each in a process of its own: {HOW[exact]}: the libraries, the net, images "
                "and labels. Over the layout of PyTorch that takes less.",
                ["net", "gpuconv", "PyTorch", "PyTorch channels_last", "over the lesser"], rows, 1)
    return found


if __name__ == "__main__":
    what, first, second, *more = sys.argv[1:]
    print(json.dumps(step(first, second, int(more[0])) if what == "step"
                     else image(int(first), bool(int(second)))))
