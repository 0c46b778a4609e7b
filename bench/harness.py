"""One piece of work, done by gpuconv on NumPy and CuPy and by PyTorch, and how it is timed.

Every library gets the same arrays and must give NumPy's result before it is timed: float32 numbers
that float16 and TF32 hold too, so that all precisions work on the same problem. Results are medians
over ROUNDS after WARMUP. On a GPU the L2 cache is flushed before each round, and the time is the
device's own, between two events; the wall clock of the JSON then includes the launches.

PyTorch's cuDNN may choose its algorithms by trial (in the warm-up), and uses TF32 only where the
library's name says so. Under "fp16" the arrays are float16; a training step keeps gpuconv's
parameters in float16, PyTorch's in float32 under autocast.
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
LIBRARIES = ["numpy", "cupy", "cupy fp16", "torch", "torch channels_last"] + [
    f"torch cuda{precision}{layout}" for precision in ("", " tf32", " fp16")
    for layout in ("", " channels_last")] + ["cudnn tf32", "cudnn fp16"]
FAR = {"float32": 2.0**-12, "tf32": 2.0**-8, "float16": 2.0**-8}  # of another's result, in norm


def libraries(channels_last: bool = True, fp16: bool = True, tf32: bool = False,
              cudnn: bool = False) -> Any:
    """Parametrize a benchmark: with channels_last if there are images, tf32 if there are products.

    cudnn: the work has a function of that name.
    """
    wanted = dict(channels_last=channels_last, fp16=fp16, tf32=tf32, cudnn=cudnn)
    names = [name for name in LIBRARIES
             if all(wanted.get(word, True) for word in name.split()) or (
                 cudnn and name.startswith("cudnn"))]
    return pytest.mark.parametrize("library", names, indirect=True)


all_libraries = libraries()  # fastest: outermost
one_layout = libraries(channels_last=False)
one_layout_float32 = libraries(channels_last=False, fp16=False)


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
    whole: bool = False                # and the forward pass before it
    flops: float = 0
    traffic: float = 0  # bytes in float32, each array read or written once
    marks: float = 0    # bytes beside these that have one size in all precisions
    images: int = 0     # in it
    terms: int = 1      # longest sum, for the comparison
    cudnn: Callable[..., Callable[[], Any]] | None = None  # gets CuPy arrays, gives what to time
    definition: Callable[[], np.ndarray] | None = None  # of float32, else gpuconv on NumPy says it


class Library:
    """Whose code is timed, on what device, in what precision: float32, tf32 or float16."""

    def __init__(self, name: str):
        self.name, words = name, name.split()
        self.torch, self.cudnn = words[0] == "torch", words[0] == "cudnn"
        self.device = "cuda" if words[0] in ("cupy", "cudnn") or "cuda" in words else "cpu"
        self.channels_last = "channels_last" in words
        self.precision = "float16" if "fp16" in words else "tf32" if "tf32" in words else "float32"
        if self.torch:
            torch = pytest.importorskip("torch")
            torch.set_num_threads(threads.count())
            if self.device == "cuda" and not torch.cuda.is_available():
                pytest.skip("PyTorch has no GPU")
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        if self.cudnn:
            pytest.importorskip("cudnn", reason="cudnn-frontend is not installed")
        if self.device == "cuda" and not backend.device_info().ready:
            pytest.skip(backend.device_info().message)

    @property
    def dtype(self) -> str:
        """Of its arrays."""
        return roofline.STORED.get(self.precision, self.precision)

    def array(self, a: np.ndarray) -> Any:
        """a, where this library wants it, in its layout and precision: float32 is narrowed."""
        if a.dtype == np.float32:
            a = a.astype(self.dtype, copy=False)
        if not self.torch:
            return backend.asarray(a, self.device)
        import torch
        if a.ndim != 4 or a.dtype.kind != "f":
            return torch.from_numpy(np.array(a)).to(self.device)
        moved = torch.from_numpy(nchw(a)).to(self.device)
        return moved.to(memory_format=torch.channels_last) if self.channels_last else moved

    def host(self, a: Any) -> np.ndarray:
        """The way back."""
        if not self.torch:
            return host(a)
        a = a.detach().cpu().contiguous()
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


def common(a: np.ndarray) -> np.ndarray:
    """Float32 numbers that float16 holds as well."""
    return a.astype(np.float16).astype(np.float32) if a.dtype == np.float32 else a


def runner(work: Work, library: Library) -> Callable[[], Any]:
    """What to time: gives the value, or a tuple of gradients."""
    arrays = {name: library.array(common(a)) for name, a in work.arrays.items()
              if name != "gy" or library.cudnn}
    if library.cudnn:
        if work.cudnn is None:
            pytest.skip("not by cuDNN")
        return work.cudnn(**arrays)
    if not work.gradient_of:
        if not library.torch:
            return lambda: work.ours(**arrays)
        import torch

        def value():
            with torch.no_grad():
                return work.torch(**arrays)

        return value
    gy = library.array(common(work.arrays["gy"])) if "gy" in work.arrays else None
    if library.torch:
        import torch
        leaves = [arrays[name].requires_grad_() for name in work.gradient_of]
        if work.whole:
            return lambda: torch.autograd.grad(work.torch(**arrays), leaves, gy)
        y = work.torch(**arrays)
        return lambda: torch.autograd.grad(y, leaves, gy, retain_graph=True)
    tensors = {name: Tensor(a, requires_grad=name in work.gradient_of) if a.dtype.kind == "f" else a
               for name, a in arrays.items()}
    if work.whole:
        return lambda: gradients(work.ours(**tensors).creator, gy)
    y = work.ours(**tensors)
    if gy is None:
        gy = backend.asarray(np.ones(y.shape, y.dtype), library.device)
    node = y.creator  # its backward may run again: only the tape's walk frees it
    return lambda: gradients(node, gy)


def gradients(node: Any, gy: Any) -> tuple[Any, ...]:
    """Those that were asked for."""
    return tuple(g for g in node.backward(gy) if g is not None)


_expected: dict[str, list[np.ndarray]] = {}  # name of the newest work: NumPy's results


def check_result(work: Work, library: Library, got: Any) -> None:
    """It is NumPy's: gpuconv's float32 up to rounding, that of others and of fewer bits in norm."""
    if work.name not in _expected:
        _expected.clear()
        define = work.definition or runner(work, Library("numpy"))
        _expected[work.name] = _results(Library("numpy"), define())
    for a, want in zip(_results(library, got), _expected[work.name], strict=True):
        if library.precision == "float32" and (library.device == "cpu" or not library.torch):
            if not near(a, want, work.terms):
                close(a, want, terms=work.terms)
            continue
        assert a.shape == want.shape, f"shape {a.shape}, NumPy's is {want.shape}"
        far = np.linalg.norm((a.astype(float) - want).ravel()) / np.linalg.norm(want.ravel())
        assert far < FAR[library.precision], f"{far:.3g} of its norm away from NumPy's"


def near(got: np.ndarray, want: np.ndarray, terms: int) -> bool:
    """Surely ``close``, which is slow: within the part of its allowance that is one for all."""
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return False
    scale = np.abs(want).max(initial=0)
    return bool(np.abs(got - want).max(initial=0)
                <= 8 * np.finfo(got.dtype).eps * np.sqrt(terms) * scale < np.inf)


def _results(library: Library, got: Any) -> list[np.ndarray]:
    return [library.host(a) for a in (got if isinstance(got, tuple) else (got,))]


def measure(benchmark: Any, work: Work, library: Library, rounds: int | None = None) -> None:
    """Check, then time, then say what the time means."""
    run = runner(work, library)
    check_result(work, library, run())
    time(benchmark, run, library, work.name, flops=work.flops, traffic=work.traffic,
         marks=work.marks, images=work.images, rounds=rounds)
    check_result(work, library, run())  # and the runs in between have changed nothing


def time(benchmark: Any, run: Callable[[], Any], library: Library, name: str, *, flops: float,
         traffic: float, images: int, marks: float = 0, rounds: int | None = None) -> None:
    """Time a function, and put into the JSON what report.py reads."""
    events, device_ms, rounds = library.events(), [], rounds or ROUNDS
    traffic = traffic * np.dtype(library.dtype).itemsize / 4 + marks

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
    benchmark.extra_info.update(work=name, library=library.name, device=library.device,
                                precision=library.precision)
    benchmark.pedantic(once, setup=library.flush, rounds=rounds, warmup_rounds=WARMUP)
    if benchmark.disabled:
        return
    seconds = statistics.median(device_ms[-rounds:]) / 1e3 if device_ms else (
        benchmark.stats.stats.median)
    info = dict(ms=seconds * 1e3, images_per_second=images / seconds if images else None,
                gb_per_second=traffic / seconds / 1e9 if traffic else None,
                gflop_per_second=flops / seconds / 1e9 if flops else None)
    if flops or traffic:
        info["roof_share"] = roofline.roof(library.device, library.precision).seconds(
            flops, traffic) / seconds
    benchmark.extra_info.update(info)
