"""What the GPU day finds out without a clock: the device, the same bits, sanitizers."""

import argparse
import contextlib
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gpu_sizes as sizes
import numpy as np
from gpu_cases import cases
from gpu_findings import Findings, failing, first_line, known, litter, version
from gpu_packages import absent

from gpuconv import backend

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMPLAINT = re.compile("not supported|unsupported|unable|fail|error", re.I)


# -- device ----------------------------------------------------------------------------------


def device(findings: Findings, args: argparse.Namespace) -> None:
    """What there is: GPU, CPU, versions, and who else is at work."""
    cp, info = backend.cupy(), backend.device_info()
    findings.figure("GPU", info.name)
    findings.figure("compute capability", f"{info.compute_capability[:-1]}."
                    f"{info.compute_capability[-1]}")
    findings.figure("memory", round(info.memory / 2**30, 1), "GiB")
    properties = cp.cuda.runtime.getDeviceProperties(0)
    for name, what, unit, scale in (
            ("multiProcessorCount", "multiprocessors", "", 1), ("l2CacheSize", "L2", "MiB", 2**20),
            ("sharedMemPerBlockOptin", "shared memory of a block", "KiB", 2**10)):
        if name in properties:
            findings.figure(what, properties[name] / scale if scale > 1 else properties[name], unit)
    findings.figure("CUDA of the driver", f"{info.driver // 1000}.{info.driver % 1000 // 10}")
    findings.figure("NVRTC", ".".join(map(str, cp.cuda.nvrtc.getVersion())))
    for package in ("cupy", "numpy", "torch", "nvidia-cudnn-frontend", "pytest",
                    "pytest-benchmark"):
        findings.figure(package, version(package))
    findings.figure("Python", f"{platform.python_version()}, {platform.platform()}")
    if version("torch") != "not installed":
        with failing(findings, "import torch"):
            import torch
            findings.figure("PyTorch's CUDA and cuDNN", f"{torch.version.cuda}, "
                            f"{torch.backends.cudnn.version()}")
    findings.figure("CPU", f"{os.cpu_count()} threads, load "
                    f"{os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0:.1f} before")
    missing = absent()
    findings.figure("packages that are missing", ", ".join(missing) or "none",
                    note="done without" if missing else "")
    smi = shutil.which("nvidia-smi")
    asked = "clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,driver_version"
    told = smi and subprocess.run([smi, f"--query-gpu={asked}", "--format=csv"], timeout=30,
                                  capture_output=True, text=True).stdout
    findings.figure("nvidia-smi", "; ".join((told or "not there").splitlines()))


# -- determinism -----------------------------------------------------------------------------


def same_bits(findings: Findings, args: argparse.Namespace) -> None:
    """Every case twice, its memory filled with other numbers in between."""
    for dtype in filter(known, sizes.DTYPES):
        differ, number = [], 0
        with failing(findings, f"cases in {dtype}"):
            for case in cases(sizes.SIZE, dtype):
                with failing(findings, f"{case.name}, {dtype}"):
                    number += 1
                    first = [a.get() for a in case.run()]
                    litter(sum(a.nbytes for a in first))
                    if [a.tobytes() for a in first] != [a.get().tobytes() for a in case.run()]:
                        differ.append(case.name)
        findings.figure(f"cases with the same bits twice, {dtype}", f"{number - len(differ)} of "
                        f"{number}", good=not differ, note=", ".join(differ))


def train(device: str, dtype: str, epochs: int = 2, eager: bool = True
          ) -> tuple[str, list[float], Any]:
    """(SHA-256 of all weights and statistics, losses of the epochs, images/s) of a training run."""
    import gpuconv as gpc
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(sizes.NET)).to(device, dtype)
    images, test, batch = sizes.TRAIN
    data = gpc.data.shapes(train=images, test=test)
    history = gpc.train.fit(
        model, data[0], test=data[1], epochs=epochs, batch_size=batch, seed=1,
        optimizer=gpc.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=gpc.optim.OneCycle(), augment=gpc.data.Augment(), label_smoothing=0.1,
        clip_norm=5.0, ema=gpc.optim.EMA(model, 0.9), eager=eager)
    weights = hashlib.sha256()
    for name, a in sorted(model.state_dict().items()):
        weights.update(name.encode() + gpc.to_cpu(a).tobytes())
    losses = [row.train.loss for row in history.rows] + [row.test.loss for row in history.rows]
    return weights.hexdigest()[:16], losses, history.last.images_per_second


def same_training(findings: Findings, args: argparse.Namespace) -> None:
    """Runs with dropout, augmentation, clipping and averages, to the same bits: launch by launch
    twice, and captured.
    """
    for dtype in ("float32", "float16"):
        with failing(findings, f"training in {dtype}"):
            first = train("cuda", dtype)[:2]
            for what, eager in (("twice", True), ("captured", False)):
                litter(1 << 20)
                same = train("cuda", dtype, eager=eager)[:2] == first
                findings.figure(f"training in {dtype} {what}",
                                "the same bits" if same else "OTHER BITS", good=same,
                                note=f"SHA-256 of the weights {first[0]}...")


def agreement(findings: Findings, args: argparse.Namespace) -> None:
    """The same few steps on CPU and GPU: in float64 their difference can only be rounding."""
    for dtype, first_bound, last_bound in (("float64", 1e-12, 1e-9), ("float32", 1e-5, 1e-2)):
        with failing(findings, f"steps in {dtype}"):
            cpu, gpu = (np.array(steps(where, dtype)) for where in ("cpu", "cuda"))
            far = np.abs(cpu - gpu) / np.abs(cpu)
            findings.figure(f"loss of step 1 on the GPU, {dtype}", float(far[0]),
                            "relative difference from the CPU", bool(far[0] < first_bound),
                            f"at most {first_bound:g}")
            findings.figure(f"loss of steps 2 to {sizes.STEPS} on the GPU, {dtype}",
                            float(far[1:].max()), "relative difference from the CPU",
                            bool(far[1:].max() < last_bound), f"at most {last_bound:g}")


def steps(where: str, dtype: str) -> list[float]:
    """Losses of sizes.STEPS steps, with dropout and augmentation."""
    import gpuconv as gpc
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(sizes.NET)).to(where, dtype)
    data, _ = gpc.data.shapes(train=sizes.TRAIN[0], test=1)
    optimizer = gpc.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    images = gpc.asarray(data.images, where)
    labels = gpc.asarray(data.labels.astype(np.int32), where)
    found = []
    for step in range(sizes.STEPS):
        whole, _, batch = sizes.TRAIN
        index = gpc.asarray(np.arange(step * batch, (step + 1) * batch, dtype=np.int32) % whole,
                            where)
        x = gpc.data.augment_batch(images, index, mean=data.mean, std=data.std, dtype=dtype,
                                   key=(1, 2), augment=gpc.data.Augment())
        model.reseed(3, step)
        loss = gpc.ops.softmax_cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def captured(findings: Findings, args: argparse.Namespace) -> None:
    """Each case recorded as a CUDA graph, in a stream and a pool of its own, and replayed: the bits
    of the eager run. CuPy records no cuBLAS product and no copy to the CPU: such a case says so.
    """
    cp, refused, differ, number = backend.cupy(), [], [], 0
    for case in cases(sizes.SIZE, "float32"):
        cp.cuda.get_current_stream().synchronize()  # the other stream does not wait for its arrays
        stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
        with (stream, cp.cuda.using_allocator(pool.malloc),
              failing(findings, f"{case.name}, captured")):
            want = [[a.get() for a in case.run()] for _ in range(2)][0]
            number += 1
            try:
                found = replayed(stream, case.run)
            except CaptureError as error:
                refused.append(f"{case.name} ({error})")
                continue
            finally:
                pool.free_all_blocks()  # a pool that goes would take them along
            if [a.tobytes() for a in found] != [a.tobytes() for a in want]:
                differ.append(case.name)
    same = number - len(refused) - len(differ)
    findings.figure("cases whose graph gives the eager bits", f"{same} of {number}",
                    good=not differ, note=", ".join(differ))
    findings.figure("cases that cannot be captured", len(refused), note="; ".join(refused))


class CaptureError(Exception):
    """It cannot be captured, and why."""


def replayed(stream: Any, run: Callable[[], Any]) -> list[Any]:
    """What a replay of its graph writes, on the CPU."""
    stream.begin_capture()
    try:
        outputs = run()
        graph = stream.end_capture()
    except Exception as error:
        with contextlib.suppress(Exception):
            stream.end_capture()
        raise CaptureError(first_line(error)[:80]) from None
    for a in outputs:
        a.fill(123)
    graph.launch(stream)
    stream.synchronize()
    return [a.get() for a in outputs]


# -- compute-sanitizer -----------------------------------------------------------------------


def sanitizer(findings: Findings, args: argparse.Namespace) -> None:
    """One of its tools over all cases."""
    tool = args.part
    program = find_sanitizer()
    if program is None:
        findings.figure(tool, "compute-sanitizer is not installed")
        return
    command = [program, "--tool", tool, "--print-limit", "20", sys.executable,
               str(ROOT / "bench" / "gpu_cases.py"), *["--stand-in"] * args.stand_in]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [line.lstrip("= ") for line in (done.stdout + done.stderr).splitlines()
             if line.startswith("=========")]
    summary = next((line for line in lines if "SUMMARY" in line), None)
    number = summary and re.search(r"(\d+) (errors?|hazards?)", summary)
    ran = re.search(r"^\d+ cases$", done.stdout, re.M)
    if not number or not ran:
        print(done.stdout, done.stderr)
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip("= ")]
        said += ["it said nothing"] * (not said)
        why = next((line for line in said if COMPLAINT.search(line)), said[-1])
        findings.figure(tool, "not supported here", note=why.strip("= ")[:200])
        return
    findings.figure(tool, int(number[1]), number[2], not int(number[1]), f"{ran[0]}; {summary}")
    if int(number[1]):
        for line in [line for line in lines if line.strip() and "SUMMARY" not in line][:40]:
            findings.failure(tool, line)


def find_sanitizer() -> str | None:
    """On the path, or in a toolkit."""
    places = [os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [os.path.join(p, *more) for p in places if p
               for more in (["bin"], ["compute-sanitizer"])]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(folders))
