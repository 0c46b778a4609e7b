"""What the GPU day times by itself: ceilings, training steps and their memory, a run, a start."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import gpu_sizes as sizes
import numpy as np
import roofline
from gpu_cases import cases
from gpu_findings import Findings, failing, known
from gpu_packages import there

from gpuconv import backend

FASTER = 1.5               # than PyTorch eager, at least
COLD, WARM = 20.0, 2.0     # seconds from import to the first trained step, at most


def ceilings(findings: Findings, args: argparse.Namespace) -> None:
    """Copies and products of random numbers; the best of a few."""
    mib = roofline.COPIED["cuda"] / 2**20
    findings.figure("copy, device to device", roofline.copy("cuda") / 1e9,
                    "GB/s read and written", note=f"{mib:,.0f} MiB")
    side = roofline.SIDE["cuda"]
    for precision in filter(known, roofline.PRECISIONS["cuda"]):
        with failing(findings, f"product in {precision}"):
            findings.figure(f"matrix product, {precision}",
                            roofline.product("cuda", precision) / 1e12, "TFLOP/s",
                            note=f"{side} x {side} x {side}")
    cp, one = backend.cupy(), dataclasses.replace(sizes.SIZE, N=1, H=1, W=1, C=1)
    tiny = next(cases(one, "float32"))
    tiny.run()
    events = [cp.cuda.Event() for _ in range(2)]
    events[0].record()
    for _ in range(100):
        tiny.run()
    events[1].record()
    events[1].synchronize()
    findings.figure("relu of one number and its gradient, eager",
                    10 * cp.cuda.get_elapsed_time(*events), "us", note="what launching costs")


def training_run(findings: Findings, args: argparse.Namespace) -> None:
    """The usual recipe, a few epochs."""
    import gpuconv as gpc
    from gpuconv.recipes import RECIPES
    dtype = args.part.split()[-1]
    recipe, data = _data(args.data_dir)
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(sizes.FIT["model"])).to("cuda", dtype)
    settings = RECIPES[recipe].settings.replace(epochs=sizes.FIT["epochs"])
    what = f"{sizes.FIT['model']} in {dtype} on {data[0].name}"
    history = gpc.train.fit(model, data[0], test=data[1], seed=0,
                            **settings.fit_arguments(model))
    findings.figure(f"{what}: test accuracy after {sizes.FIT['epochs']} epochs",
                    100 * history.last.test.accuracy, "%", note=str(settings))
    findings.figure(f"{what}: training", history.last.images_per_second, "images/s",
                    note=f"last epoch, batches of {settings.batch_size}, with augmentation")
    findings.figure(f"{what}: all epochs, with tests", sum(row.seconds for row in history.rows),
                    "s")


def _data(data_dir: str | None) -> tuple[str, Any]:
    import gpuconv as gpc
    from gpuconv.data.cifar10 import cifar10_path
    found = None
    with contextlib.suppress(ImportError):  # platformdirs, for the usual places
        found = cifar10_path(data_dir)
    if found:
        return "cifar10", gpc.data.cifar10(found)
    return "shapes", gpc.data.shapes(train=sizes.FIT["train"], test=sizes.FIT["test"])


# -- a step beside PyTorch's -----------------------------------------------------------------


class Watch:
    """A callback that notes when a step has been asked for, and the least memory that was free."""

    def __new__(cls) -> Any:
        """Of gpuconv's class, which is imported late."""
        from gpuconv.train import Callback

        class Watching(Callback):
            passive = True  # a captured step need not look for changes

            def __init__(self) -> None:
                self.free = float("inf")

            def on_step(self, run: Any) -> None:
                self.free = min(self.free, backend.cupy().cuda.runtime.memGetInfo()[0])

        return Watching()


def random_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-like noise, and labels."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n))


def our_epochs(batch: int, eager: bool, watch: Any = None) -> tuple[list[float], float, str]:
    """(seconds of a step in each epoch, loss at the end, hash of the weights), in float16."""
    import gpuconv as gpc
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(sizes.TIMED["model"])).to("cuda", "float16")
    steps = sizes.TIMED["steps"]
    history = gpc.train.fit(
        model, random_images(steps * batch), epochs=sizes.TIMED["epochs"], batch_size=batch,
        optimizer=gpc.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        eager=eager, callbacks=[watch] if watch else ())
    weights = hashlib.sha256()
    for name, a in sorted(model.state_dict().items()):
        weights.update(name.encode() + gpc.to_cpu(a).tobytes())
    return ([batch / row.images_per_second for row in history.rows], history.last.train.loss,
            weights.hexdigest()[:16])


def has_peer(stand_in: bool) -> bool:
    """Is there a PyTorch with a GPU, or any beside the stand-in?"""
    if not there("torch"):
        return False
    import torch
    return stand_in or torch.cuda.is_available()


def torch_epochs(batch: int, autocast: bool) -> Iterator[float]:
    """Seconds of a step in each epoch, as anybody would write it: channels_last, cudnn.benchmark.

    Images lie on the GPU, normalised. Without autocast weights and all else are float16.
    """
    import bench_train_step
    import torch

    import gpuconv as gpc
    on = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(sizes.TIMED["model"]))
    twin = bench_train_step.torch_twin(model).to(on).to(memory_format=torch.channels_last)
    pixels, labels = random_images(sizes.TIMED["steps"] * batch)
    images = torch.from_numpy(pixels).half().div_(64).to(on).permute(0, 3, 1, 2)
    twin = twin if autocast else twin.half()
    labels = torch.from_numpy(labels).to(on)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(sizes.TIMED["epochs"]):
        order = torch.randperm(len(labels), device=on)
        seen = torch.zeros((), device=on)
        began = time.perf_counter()
        for index in order.split(batch):
            with torch.autocast(on, torch.float16, autocast):
                loss = torch.nn.functional.cross_entropy(twin(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += loss.detach()
        seen.item()  # waits
        yield (time.perf_counter() - began) / sizes.TIMED["steps"]


def training_step(findings: Findings, args: argparse.Namespace) -> None:
    """Eager and captured, beside PyTorch eager: the best epoch of each, its data on the device."""
    batch = max(1, int(args.part.split()[-1]) // sizes.SHRINK)
    what = f"{sizes.TIMED['model']}, float16, batch {batch}"
    best, ends = {}, {}
    for name, eager in (("eager", True), ("captured", False)):
        with failing(findings, f"{what}, {name}"):
            seconds, loss, weights = our_epochs(batch, eager)
            best[name], ends[name] = min(seconds), weights
            findings.figure(f"{what}, {name}", round(1e3 * best[name], 4), "ms a step",
                            bool(np.isfinite(loss)), f"{batch / best[name]:,.0f} images/s")
    if len(ends) == 2:
        same = len(set(ends.values())) == 1
        findings.figure(f"{what}, captured and eager", "the same bits" if same else "OTHER BITS",
                        good=same, note=f"SHA-256 of the weights {ends['captured']}...")
    peers = {}
    for name, autocast in (("autocast", True), ("all float16", False)):
        with failing(findings, f"{what}, PyTorch, {name}"):
            if has_peer(args.stand_in):
                peers[name] = min(torch_epochs(batch, autocast))
                findings.figure(f"{what}, PyTorch eager, {name}", round(1e3 * peers[name], 4),
                                "ms a step", note="channels_last, cudnn.benchmark")
    if peers and "captured" in best:
        for name, seconds in best.items():
            ratio = min(peers.values()) / seconds
            good = bool(args.stand_in or ratio >= FASTER) if name == "captured" else None
            findings.figure(f"{what}, {name}, beside the faster PyTorch", round(ratio, 3),
                            "x its speed", good, f"wanted {FASTER}" if good is not None else "")


def memory(findings: Findings, args: argparse.Namespace) -> None:
    """Of a training step at its peak: what the device has given out, and what was predicted."""
    from gpuconv import models, optim
    from gpuconv.train.memory import predict, slots_of
    batch, cp, mib = max(1, int(args.part.split()[-1]) // sizes.SHRINK), backend.cupy(), 2**20
    what = f"{sizes.TIMED['model']}, float16, batch {batch}"
    peaks = {}
    for name, eager in (("eager", True), ("captured", False)):
        with failing(findings, f"{what}, {name}"):
            cp.get_default_memory_pool().free_all_blocks()
            free, watch = cp.cuda.runtime.memGetInfo()[0], Watch()
            our_epochs(batch, eager, watch)
            data = sizes.TIMED["steps"] * batch * 32 * 32 * 3
            peaks[name] = free - watch.free - data
            findings.figure(f"{what}, {name}: peak", round(peaks[name] / mib, 1), "MiB",
                            note="what the device gave out, less the data set")
    with failing(findings, "prediction"):
        model = models.build(models.describe(sizes.TIMED["model"])).to("cuda", "float16")
        optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        predicted = predict(model, (32, 32, 3), batch, slots_of(optimizer)).peak
        findings.figure(f"{what}: predicted", round(predicted / mib, 1), "MiB",
                        note="gpuconv.train.memory, without kernels and libraries")
    if not has_peer(args.stand_in):
        return
    import torch
    with failing(findings, f"{what}, PyTorch"):
        cp.get_default_memory_pool().free_all_blocks()
        theirs = []
        for autocast in (True, False):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            list(torch_epochs(batch, autocast))
            reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
            theirs.append(reserved - sizes.TIMED["steps"] * batch * 32 * 32 * 3 * 2)
        findings.figure(f"{what}, PyTorch eager: peak", round(min(theirs) / mib, 1), "MiB",
                        note="max_memory_reserved, less the data set; the lesser of autocast and "
                             "all float16")
        for name, peak in peaks.items():
            findings.figure(f"{what}, {name}: peak over PyTorch's",
                            round(peak / max(1, min(theirs)), 3), "",
                            bool(args.stand_in or peak <= min(theirs)), "wanted at most 1")


# -- a start ---------------------------------------------------------------------------------

START = """
import json, sys, time
began = time.perf_counter()
if {stand_in}:
    sys.path.insert(0, {bench!r})
    import gpu_stand_in
    gpu_stand_in.install()
import numpy as np
import gpuconv as gpc
imported = time.perf_counter()
model = gpc.models.build(gpc.models.describe({model!r})).to("cuda", "float16")
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (2 * {batch}, 32, 32, 3), np.uint8), np.arange(2 * {batch})
steps = []

class Note(gpc.train.Callback):
    def on_step(self, run):
        gpc.backend.cupy().cuda.get_current_stream().synchronize()
        steps.append(time.perf_counter())

sgd = gpc.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
gpc.train.fit(model, (images, labels % 10), epochs=1, batch_size={batch}, eager=False,
              optimizer=sgd, callbacks=[Note()])
print(json.dumps([imported - began, steps[0] - began, steps[1] - began]))
"""


def start(findings: Findings, args: argparse.Namespace) -> None:
    """From import to the first trained step, and to the first captured one, in a new process:
    with an empty cache of kernels, then with a full one."""
    bench = pathlib.Path(__file__).resolve().parent
    text = START.format(stand_in=args.stand_in, bench=str(bench), model=sizes.TIMED["model"],
                        batch=max(4, 128 // sizes.SHRINK))
    with tempfile.TemporaryDirectory() as cache:
        for name, most in (("cold", COLD), ("warm", WARM)):
            with failing(findings, f"{name} start"):
                began = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", text], capture_output=True, text=True, cwd=bench.parent,
                    env=os.environ | {"CUPY_CACHE_DIR": cache,
                                      "PYTHONPATH": os.pathsep.join([str(bench.parent),
                                                                     str(bench)])})
                whole = time.perf_counter() - began
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])
                imported, first, second = json.loads(done.stdout.splitlines()[-1])
                findings.figure(f"{name} start: import to the first trained step", round(first, 2),
                                "s", bool(args.stand_in or first <= most),
                                f"wanted at most {most:g}; {imported:.2f} s of it import")
                findings.figure(f"{name} start: to the second step, which is captured",
                                round(second, 2), "s",
                                note=f"{whole:.2f} s with Python's own start and end")
