"""``gpuconv bench``: how fast this machine trains, and how near each layer is to its peak.

    peaks:  2 n^3 / seconds of an n x n matrix product;  bytes read and written / seconds of a copy
    a layer cannot take less than  max(2 multiply-adds / peak product, bytes / peak copy)  seconds;
    its share of the peak is that, over the seconds it takes

Bytes of a layer: what goes in, what comes out and its parameters, each once. Layers that run as one
op count as one: what passes between them is left out. Peaks are the shortest of some repetitions,
before and after all else, of which the median counts. On a GPU several steps are queued between two
moments at which one waits for it, and the time of a layer is the device's own, between two events:
that of a layer with little to do is the time of its launch.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM
52(4), 2009.
"""

import argparse
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuconv import backend
from gpuconv.cli.options import add_device, add_model, choose_device, number
from gpuconv.cli.output import console, percent, say, show, table, write_json

if TYPE_CHECKING:
    from gpuconv.nn import Module
    from gpuconv.nn.summary import Row

SAYS = "Measure how fast this machine trains and evaluates a model."
EXAMPLES = ("gpuconv bench", "gpuconv bench --device cuda --dtype float16 --batch-size 512",
            'gpuconv bench --model "INPUT 64x64x3 | [CONV3-32 RELU]*2 POOL2 | FC 10" --json')
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
COPIED = 256 << 20                  # bytes: more than any cache holds
QUEUED = {"cpu": 1, "cuda": 10}     # repetitions between two looks at the clock
LEAST = 3                           # repetitions of a measurement
BUSY = 0.5                          # load from which on others take a noticeable part


class Peaks(NamedTuple):
    """Measured peaks of the machine, per second."""

    flops: float  # operations of a matrix product in the model's dtype
    bytes: float  # read and written by a copy


@dataclasses.dataclass(frozen=True)
class Layer:
    """The forward pass of a layer, or of layers that run as one op."""

    name: str       # its path: "0", or "0+1+2"
    kind: str       # its class: "Conv2d", or "Conv2d+BatchNorm2d+ReLU"
    output: tuple[int, ...]
    seconds: float
    flops: float    # operations
    bytes: float    # read and written

    def share(self, peaks: Peaks) -> float:
        """Return the share of the limiting peak, 0..1; 0 for a layer without work."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bytes) / self.seconds

    def rate(self, peaks: Peaks) -> str:
        """Return the limiting rate as text."""
        if self.flops / peaks.flops > self.bytes / peaks.bytes:
            return f"{self.flops / self.seconds / 1e9:,.0f} GFLOP/s"
        return f"{self.bytes / self.seconds / 1e9:,.1f} GB/s"


def add_options(to: argparse.ArgumentParser) -> None:
    """Add the options of ``gpuconv bench``."""
    add_model(to)
    to.add_argument("--batch-size", type=number(int, 1), default=128, metavar="N",
                    help="images of a step (default: %(default)s)")
    to.add_argument("--dtype", choices=backend.FLOATS, default="float32",
                    help="default: %(default)s")
    add_device(to)
    to.add_argument("--seconds", type=number(float, 0), default=0.6, metavar="X",
                    help="of each of the seven measurements, at least (default: %(default)s)")
    to.add_argument("--json", action="store_true", help="write JSON")


class Bench:
    """A model and a batch, on a device.

    Args:
        model: to measure.
        shape: (N, H, W, C) of a batch.
        seconds: of each measurement.
    """

    def __init__(self, model: "Module", shape: tuple[int, ...], seconds: float):
        import numpy as np
        self.model, self.shape, self.seconds = model, shape, seconds
        self.kind = "cpu" if model.device == "cpu" else "cuda"
        rng = np.random.default_rng(0)
        images = rng.standard_normal(shape, "float32").astype(model.dtype)
        self.x = backend.asarray(images, model.device)
        classes = model.predict(self.x[:1]).shape[-1]
        labels = rng.integers(0, classes, shape[0]).astype(np.int32)
        self.labels = backend.asarray(labels, model.device)

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.kind == "cuda":
            backend.cupy().cuda.get_current_stream().synchronize()

    def times(self, f: Callable[[], Any]) -> list[float]:
        """Return the seconds of several calls of f."""
        taken: list[float] = []
        f()  # compiles kernels, fills caches
        self.wait()
        end = time.perf_counter() + self.seconds
        while len(taken) < LEAST or time.perf_counter() < end:
            began = time.perf_counter()
            for _ in range(QUEUED[self.kind]):
                f()
            self.wait()
            taken.append((time.perf_counter() - began) / QUEUED[self.kind])
        return taken

    def peaks(self) -> Peaks:
        """Return the measured peaks of the device, for the model's dtype."""
        import numpy as np

        from gpuconv import ops, threads
        xp, n, device = backend.get_array_module(self.x), SIDE[self.kind], self.model.device
        a = backend.asarray(np.ones((n, n), self.model.dtype), device)
        product = min(self.times(lambda: ops.matmul(a, a)))
        here = backend.asarray(np.ones(COPIED, np.uint8), device)
        there = xp.empty_like(here)
        pieces = threads.chunks(COPIED, 1, COPIED // threads.count())

        def copy() -> None:
            if self.kind == "cuda":
                there[...] = here
            else:
                threads.each(lambda piece: np.copyto(there[piece], here[piece]), pieces)

        return Peaks(2 * n**3 / product, 2 * COPIED / min(self.times(copy)))

    def training(self) -> float:
        """Return the seconds of a training step: forward, loss, backward, update."""
        from gpuconv import ops, optim
        optimizer = optim.SGD(self.model.train().parameters(), lr=1e-6, momentum=0.9)

        def step() -> None:
            loss = ops.softmax_cross_entropy(self.model(self.x), self.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return statistics.median(self.times(step))

    def evaluation(self) -> float:
        """Return the seconds of a forward pass in eval mode."""
        N = self.shape[0]
        return statistics.median(self.times(lambda: self.model.predict(self.x, N)))

    def layers(self) -> list[Layer]:
        """Time the forward pass layer by layer; layers that run as one op are timed as one."""
        from gpuconv.autograd import no_grad
        from gpuconv.nn.observed import kind, observed
        from gpuconv.nn.summary import summary
        spans: dict[str, list[tuple[Any, Any]]] = {}
        kinds: dict[str, str] = {}

        def around(path: str, module: "Module", forward: Callable[..., Any], *inputs: Any) -> Any:
            if any(module.named_children()):
                return forward(*inputs)
            began = self.mark()
            y = forward(*inputs)
            spans.setdefault(path, []).append((began, self.mark()))
            kinds[path] = kind(module)
            return y

        def forward() -> None:
            with no_grad(), observed(self.model, around):
                self.model(self.x)

        self.model.eval()
        runs = 1 + len(self.times(forward)) * QUEUED[self.kind]
        calls: dict[str, list[list[Row]]] = {}  # of each op: the layers of each call
        for row in summary(self.model, self.shape[1:]).rows:
            if row.joined:
                calls[row.op][-1].append(row)
            else:
                calls.setdefault(row.op, []).append([row])
        found = []
        for op in (op for op in calls if op in spans):
            taken = [self.between(*span) for span in spans[op]]
            each = len(taken) // runs  # calls in a pass, of which the first is left out
            seconds = [sum(taken[i:i + each]) for i in range(each, len(taken), each)]
            found.append(self.layer(kinds[op], calls[op], statistics.median(seconds)))
        return found

    def layer(self, kind: str, calls: "list[list[Row]]", seconds: float) -> Layer:
        """Return what an op does in its calls, and the seconds that they take together."""
        N, size, last = self.shape[0], self.model.dtype.itemsize, calls[-1][-1]
        flops = sum(2 * N * row.multiply_adds for rows in calls for row in rows)
        sums = last.op.count("+") + 1 - len(calls[-1])  # of residual branches: they have no row
        moved = sum(size * (N * (math.prod(rows[0].input) + (1 + sums) * math.prod(rows[-1].output))
                            + sum(row.parameters for row in rows))
                    for rows in calls if rows[-1].activation_bytes)  # none: it hands on its input
        return Layer(last.op, kind, (N, *last.output), seconds, flops, moved)

    def mark(self) -> Any:
        """Return a time stamp: of the clock, or an event in the GPU's queue."""
        if self.kind == "cpu":
            return time.perf_counter()
        event = backend.cupy().cuda.Event()
        event.record()
        return event

    def between(self, began: Any, ended: Any) -> float:
        """Seconds between two moments, after ``wait``."""
        if self.kind == "cpu":
            return ended - began
        return backend.cupy().cuda.get_elapsed_time(began, ended) / 1e3


def run(args: argparse.Namespace) -> None:
    """``gpuconv bench``."""
    from gpuconv import models, threads
    where, why_there = choose_device(args.device)
    description = models.describe(args.model)
    model = models.build(description).to(where, args.dtype)
    bench = Bench(model, (args.batch_size, *models.input_shape(description)), args.seconds)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before we add to it
    with backend.array_device(bench.x):
        before = bench.peaks()
        step, forward, layers = bench.training(), bench.evaluation(), bench.layers()
        peaks = Peaks(*map(max, zip(before, bench.peaks(), strict=True)))
    out, N = console(), args.batch_size
    name = description.get("name") or description["notation"]
    if args.json:
        write_json(out, {
            "device": why_there, "threads": threads.count(), "load_before": load, "model": name,
            "dtype": args.dtype, "batch_size": N, "peak_flops_per_second": peaks.flops,
            "peak_bytes_per_second": peaks.bytes, "training_images_per_second": N / step,
            "evaluation_images_per_second": N / forward,
            "layers": [{**dataclasses.asdict(layer), "share": layer.share(peaks)}
                       for layer in layers]})
        return
    size = sum(p.size for p in model.parameters())
    side = SIDE[bench.kind]
    show(out, {"device": why_there, "model": f"{name}, {size:,} parameters, {args.dtype}",
               "peaks": f"{peaks.flops / 1e9:,.0f} GFLOP/s, product of two {side} x {side} "
                        f"matrices; {peaks.bytes / 1e9:,.1f} GB/s, copy",
               "training": f"{N / step:,.0f} images/s, {1e3 * step:,.1f} ms for a step of {N}",
               "evaluation": f"{N / forward:,.0f} images/s, {1e3 * forward:,.1f} ms for {N}"})
    say(out, "")
    show_layers(out, layers, peaks)
    if load > BUSY:
        say(out, f"other programs are at work here (load {load:.1f}): this machine can do more")


def show_layers(out: Any, layers: list[Layer], peaks: Peaks) -> None:
    """A row per layer, with the rate that bounds it."""
    total, rows = sum(layer.seconds for layer in layers), []
    for layer in layers:
        share = layer.share(peaks)
        rows.append([layer.name, layer.kind, " x ".join(map(str, layer.output[1:])),
                     f"{1e3 * layer.seconds:.2f}", percent(layer.seconds / total, 0),
                     *([layer.rate(peaks), percent(share, 0)] if share else "--")])
    table(out, ["layer", "kind", "output", "ms", "of time", "rate", "of peak"], rows,
          right=(3, 4, 5, 6))
    if any(layer.share(peaks) > 1 for layer in layers):
        say(out, "more than 100%: the data stayed in a cache, or others worked while the peak was "
                 "measured")
