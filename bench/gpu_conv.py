"""Every convolution of a network, forward and both gradients, against cuDNN's best, in one run.

The peer is PyTorch in channels_last with cudnn.benchmark, which tries cuDNN's algorithms on the
problem at hand. Both get the same float16 numbers, in the same memory layout, and must agree before
they are timed: device time between two events, the L2 cache flushed before each round, the median.
Ratios are the peer's time over ours: above 1 gpuconv is faster. The mean is geometric, each layer
of the net counted as often as it stands there.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gpu_sizes as sizes
import harness
import numpy as np
import roofline
from gpu_findings import Findings, failing
from gpu_nets import NETS, Layer
from gpu_packages import there
from gpu_table import geometric

from gpuconv import backend
from gpuconv.ops.conv import gpu_dispatch
from gpuconv.ops.conv.autotune import RUN
from gpuconv.ops.window import ConvShape

DIRECTIONS = {"forward": "forward", "input_gradient": "dgrad", "weight_gradient": "wgrad"}
WANTED = 0.6   # geometric mean of all ratios, at least
BLOCK = 1_000_003  # random numbers, which are repeated


def layers(findings: Findings, args: argparse.Namespace) -> None:
    """One network; each ratio goes into the table, then their means."""
    batch, its = NETS[args.part]
    ours, peer = libraries(args.stand_in)
    found: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
    for layer in its[:sizes.LAYERS]:
        layer = shrunk(layer)
        for direction in DIRECTIONS:
            if direction == "input_gradient" and layer.C == 3:
                continue  # nobody asks for the gradient of images
            with failing(findings, f"{layer} {direction}"):
                ratio = compare(findings, layer, max(1, batch // sizes.SHRINK), direction, ours,
                                peer)
                found[direction] += [ratio] * layer.count if ratio else []
    for direction, ratios in found.items():
        mean(findings, f"{args.part}, {direction}", ratios)
    mean(findings, f"{args.part}, all", sum(found.values(), []), args.stand_in)


def mean(findings: Findings, what: str, ratios: list[float], stand_in: bool | None = None) -> None:
    """A geometric mean; ``stand_in`` is None where nothing is wanted of it."""
    if ratios:
        value = geometric(ratios)
        good = None if stand_in is None else bool(stand_in or value >= WANTED)
        findings.figure(what, round(value, 3), "x cuDNN's speed", good,
                        f"geometric mean of {len(ratios)}, at worst {min(ratios):.2f}" + (
                            "" if good is None else f"; wanted {WANTED}"))


def shrunk(layer: Layer) -> Layer:
    """Smaller, for the stand-in."""
    n = sizes.SHRINK
    return layer if n == 1 else layer._replace(side=min(layer.side, 6), C=min(layer.C, 8),
                                               K=max(8, layer.K // n))


def libraries(stand_in: bool) -> tuple[harness.Library, harness.Library | None]:
    """Ours; and PyTorch on the GPU, on the CPU beside the stand-in, or None."""
    ours = harness.Library("cupy fp16")
    if not there("torch"):
        return ours, None
    if stand_in:
        return ours, harness.Library("torch fp16 channels_last")
    import torch
    return ours, harness.Library("torch cuda fp16 channels_last") if (
        torch.cuda.is_available()) else None


def compare(findings: Findings, layer: Layer, N: int, direction: str, ours: harness.Library,
            peer: harness.Library | None) -> float | None:
    """One layer, one direction: the ratio; None without a peer."""
    p = layer.sizes(N)
    x, w, gy = (noise(shape, seed) for seed, shape in enumerate(
        [(N, p.H, p.W, p.C), (p.K, p.R, p.S, p.C), (N, p.P, p.Q, p.K)]))
    a, b, out = {"forward": (x, w, gy), "input_gradient": (gy, w, x),
                 "weight_gradient": (x, gy, w)}[direction]
    result = backend.cupy().empty(out.shape, out.dtype)
    chosen = gpu_dispatch.dispatch(DIRECTIONS[direction], p, x.dtype, "ieee")
    work = f"{layer} {direction}, {N} images"

    def run() -> Any:
        return RUN[DIRECTIONS[direction]](p, a, b, out=result, algorithm=chosen)

    keep(findings, work, ours, p, milliseconds(ours, run), x.nbytes + w.nbytes + gy.nbytes)
    if peer is None:
        return None
    theirs = torch_run(p, direction, *(as_torch(t, peer) for t in (x, w, gy)))
    got, want = as_torch(run(), peer).float(), theirs().float()
    far = float((got - want).norm() / want.norm())
    del got, want
    if not far < harness.FAR["float16"]:
        raise ValueError(f"{far:.3g} of its norm away from PyTorch's, by {chosen}")
    keep(findings, work, peer, p, milliseconds(peer, theirs), x.nbytes + w.nbytes + gy.nbytes)
    mine, other = (m["ms"] for m in findings.data["measurements"][-2:])
    print(f"{work}: {mine:.4f} ms, cuDNN {other:.4f} ms, ratio {other / mine:.2f}", flush=True)
    return other / mine


def keep(findings: Findings, work: str, library: harness.Library, p: ConvShape, ms: float,
         traffic: int) -> None:
    """A measurement, as the table of the day knows them."""
    flops = 2 * p.pixels * p.K * p.depth
    findings.data["measurements"].append(dict(
        work=work, library=library.name, device="cuda", precision="float16", ms=ms,
        images_per_second=p.N / ms * 1e3, gb_per_second=traffic / ms / 1e6,
        gflop_per_second=flops / ms / 1e6,
        roof_share=roofline.roof("cuda", "float16").seconds(flops, traffic) / ms * 1e3))
    findings.save()


def noise(shape: tuple[int, ...], seed: int) -> Any:
    """Random float16 numbers on the GPU, of about one over the root of a few thousand terms."""
    cp, n = backend.cupy(), int(np.prod(shape))
    some = np.random.default_rng(seed).standard_normal(min(n, BLOCK), "float32") / 8
    block, out = backend.to_gpu(some.astype(np.float16)), cp.empty(n, np.float16)
    for start in range(0, n, BLOCK):
        out[start:start + BLOCK] = block[:n - start]
    return out.reshape(shape)


def as_torch(a: Any, library: harness.Library) -> Any:
    """The same memory where both are on the GPU; axes (N, C, H, W), channels last."""
    import torch
    t = torch.from_dlpack(a) if library.device == "cuda" else torch.from_numpy(backend.to_cpu(a))
    return t.permute(0, 3, 1, 2)


def torch_run(p: ConvShape, direction: str, x: Any, w: Any, gy: Any) -> Callable[[], Any]:
    """What PyTorch does: a convolution, or one gradient of it."""
    import torch
    stride, pad = p.window.stride, tuple(near for near, _ in p.window.pad)
    if direction == "forward":
        return lambda: torch.nn.functional.conv2d(x, w, stride=stride, padding=pad)
    mask = [direction == "input_gradient", direction == "weight_gradient", False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(gy, x, w, None, stride, pad, (1, 1), False, (0, 0), 1,
                            mask)[mask.index(True)]


def milliseconds(library: harness.Library, run: Callable[[], Any]) -> float:
    """Median of some rounds after a warm-up: the device's own time, on a CPU the clock's."""
    events, taken = library.events(), []
    for number in range(sizes.WARMUP + sizes.ROUNDS):
        library.flush()
        if events is None:
            began = time.perf_counter()
            run()
            ms = 1e3 * (time.perf_counter() - began)
        else:
            events[0].record()
            run()
            events[1].record()
            events[1].synchronize()
            ms = library.milliseconds(*events)
        taken += [ms] * (number >= sizes.WARMUP)
    return max(statistics.median(taken), 1e-9)
