"""One piece of work, done by gpuconv on NumPy and CuPy and by PyTorch, and how it is timed.

Every library gets the same arrays and must give the same result before it is timed. Results are
medians over ROUNDS after WARMUP. On a GPU the L2 cache is flushed before each round, and the time
is the device's own, between two events; the wall clock of the JSON then includes the launches.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import roofline

from check import close, host, nchw, nhwc
from gpuconv import backend, threads
from gpuconv.autograd import Tensor

ROUNDS, WARMUP = 30, 5
FLUSH = 256 << 20  # bytes: more than any L2
LIBRARIES = ["numpy", "cupy", "torch", "torch channels_last", "torch cuda",
             "torch cuda channels_last"]

all_libraries = pytest.mark.parametrize("library", LIBRARIES, indirect=True)  # fastest: outermost
one_layout = pytest.mark.parametrize(  # where there are no images, or only bytes
    "library", [name for name in LIBRARIES if "channels_last" not in name], indirect=True)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed.

    ``ours`` gets the arrays by name as Tensors or arrays, ``torch`` as torch tensors, images and
    filters with channels first; both return one result.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    ours: Callable[..., Any]
    torch: Callable[..., Any]
    gradient_of: tuple[str, ...] = ()  # () for the value, else time the backward pass for these
    flops: float = 0
    traffic: float = 0  # bytes, each array read or written once
    images: int = 0     # in it
    terms: int = 1      # longest sum, for the comparison


class Library:
    """Whose code is timed, and on what device."""

    def __init__(self, name: str):
        self.name, words = name, name.split()
        self.torch = words[0] == "torch"
        self.device = "cuda" if words[0] == "cupy" or "cuda" in words else "cpu"
        self.channels_last = "channels_last" in words
        if self.torch:
            torch = pytest.importorskip("torch")
            torch.set_num_threads(threads.count())
            if self.device == "cuda" and not torch.cuda.is_available():
                pytest.skip("PyTorch has no GPU")
        if self.device == "cuda" and not backend.device_info().ready:
            pytest.skip(backend.device_info().message)

    def array(self, a: np.ndarray) -> Any:
        """a, where this library wants it and in its layout."""
        if not self.torch:
            return backend.asarray(a, self.device)
        import torch
        if a.ndim != 4 or a.dtype != np.float32:
            return torch.from_numpy(np.array(a)).to(self.device)
        moved = torch.from_numpy(nchw(a)).to(self.device)
        return moved.to(memory_format=torch.channels_last) if self.channels_last else moved

    def host(self, a: Any) -> np.ndarray:
        """The way back."""
        if not self.torch:
            return host(a)
        a = a.detach().cpu()
        return nhwc(a) if a.ndim == 4 else a.numpy()

    def events(self) -> Any:
        """Two events on the device, or None on the CPU."""
        if self.device == "cpu":
            return None
        if self.torch:
            import torch
            return [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        return [backend.cupy().cuda.Event() for _ in range(2)]

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Between two events that have passed."""
        if self.torch:
            return begin.elapsed_time(end)
        return backend.cupy().cuda.get_elapsed_time(begin, end)

    @functools.cached_property
    def junk(self) -> Any:
        """Something to fill the L2 cache with."""
        return self.array(np.zeros(FLUSH, np.uint8))

    def flush(self) -> None:
        """Leave nothing of the arrays in the cache of a GPU."""
        if self.device == "cuda":
            self.junk.zero_() if self.torch else self.junk.fill(0)


def runner(work: Work, library: Library) -> Callable[[], Any]:
    """What to time: gives the value, or a tuple of gradients."""
    arrays = {name: library.array(a) for name, a in work.arrays.items() if name != "gy"}
    if not work.gradient_of:
        if not library.torch:
            return lambda: work.ours(**arrays)
        import torch

        def value():
            with torch.no_grad():
                return work.torch(**arrays)

        return value
    gy = library.array(work.arrays["gy"]) if "gy" in work.arrays else None
    if library.torch:
        import torch
        leaves = [arrays[name].requires_grad_() for name in work.gradient_of]
        y = work.torch(**arrays)
        return lambda: torch.autograd.grad(y, leaves, gy, retain_graph=True)
    tensors = {name: Tensor(a, requires_grad=name in work.gradient_of) if a.dtype.kind == "f" else a
               for name, a in arrays.items()}
    y = work.ours(**tensors)
    if gy is None:
        gy = library.array(np.ones(y.shape, y.dtype))
    node = y.creator  # its backward may run again: only the tape's walk frees it
    return lambda: tuple(g for g in node.backward(gy) if g is not None)


_expected: dict[str, list[np.ndarray]] = {}  # name of the newest work: its results


def check_result(work: Work, library: Library, got: Any) -> None:
    """All libraries agree with the first that did this work."""
    results = got if isinstance(got, tuple) else (got,)
    mine = [library.host(a) for a in results]
    if work.name not in _expected:
        _expected.clear()
        _expected[work.name] = mine
    for a, want in zip(mine, _expected[work.name], strict=True):
        close(a, want, terms=work.terms)


def measure(benchmark: Any, work: Work, library: Library, rounds: int = ROUNDS) -> None:
    """Check, then time, then say what the time means."""
    run = runner(work, library)
    check_result(work, library, run())
    time(benchmark, run, library, work.name, flops=work.flops, traffic=work.traffic,
         images=work.images, rounds=rounds)
    check_result(work, library, run())  # and the runs in between have changed nothing


def time(benchmark: Any, run: Callable[[], Any], library: Library, name: str, *, flops: float,
         traffic: float, images: int, rounds: int = ROUNDS) -> None:
    """Time a function, and put into the JSON what report.py reads."""
    events, device_ms = library.events(), []

    def once():
        if events is None:
            run()
            return
        begin, end = events
        begin.record()
        run()
        end.record()
        end.synchronize()
        device_ms.append(library.milliseconds(begin, end))

    benchmark.group = name
    benchmark.extra_info.update(work=name, library=library.name, device=library.device)
    benchmark.pedantic(once, setup=library.flush, rounds=rounds, warmup_rounds=WARMUP)
    if benchmark.disabled:
        return
    seconds = statistics.median(device_ms[-rounds:]) / 1e3 if device_ms else (
        benchmark.stats.stats.median)
    info = dict(ms=seconds * 1e3, images_per_second=images / seconds if images else None,
                gb_per_second=traffic / seconds / 1e9 if traffic else None,
                gflop_per_second=flops / seconds / 1e9 if flops else None)
    if flops or traffic:
        info["roof_share"] = roofline.roof(library.device).seconds(flops, traffic) / seconds
    benchmark.extra_info.update(info)
