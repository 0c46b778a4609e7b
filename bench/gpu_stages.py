"""The work of the GPU day: see gpu_day.py, and gpu_parts.py for its order.

``python bench/gpu_stages.py STAGE PART`` runs one part in this process and prints what it finds.
With ``--into FILE`` that is in the file at each moment: a part that is killed leaves what it had.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, also where another gpuconv is installed

import numpy as np  # noqa: E402
import roofline  # noqa: E402
from gpu_cases import LARGE, TINY, cases  # noqa: E402
from gpu_packages import absent, do_without, there  # noqa: E402
from gpu_parts import TOOLS  # noqa: E402

from gpuconv import backend  # noqa: E402
from gpuconv.files import atomic_write  # noqa: E402

SIZE, DTYPES = LARGE, ("float32", "float16", "bfloat16", "float64")
TRAIN = 512, 128, 64  # images, of the test, of a batch
NET = ("INPUT 32x32x3 | CONV3-16 BN RELU CONV3-16 RELU POOL2 DROPOUT0.3 | CONV3-32 RELU POOL2 | "
       "FC 64 RELU DROPOUT0.5 | FC 10")
STEPS = 10            # of the training that CPU and GPU both do
FIT: dict[str, Any] = dict(train=10_000, test=2_000, epochs=6, model="cifar_convnet")
COMPLAINT = re.compile("not supported|unsupported|unable|fail|error", re.I)


# -- what a part finds -----------------------------------------------------------------------


class Findings:
    """Figures and failures of a part, kept in a file as they come."""

    def __init__(self, path: pathlib.Path | None):
        self.path = path
        self.data: dict[str, Any] = dict(figures=[], failures=[], measurements=[], counts={},
                                         complete=False)

    def figure(self, what: str, value: Any, unit: str = "", good: bool | None = None,
               note: str = "") -> None:
        """Keep one; ``good`` says whether it is as it must be, None that it may be what it is."""
        row = dict(what=what, value=value, unit=unit, good=good, note=note)
        self.data["figures"].append(row)
        self.save()
        print(*(f"{word}" for word in row.values() if word not in (None, "")), flush=True)

    def failure(self, name: str, line: str) -> None:
        """Keep the name of what failed, and the first line of why."""
        self.data["failures"].append(dict(name=name, line=line[:400]))
        self.save()

    def end(self) -> None:
        """All has been tried."""
        self.data["complete"] = True
        self.save()

    def save(self) -> None:
        """The file is whole at each moment."""
        if self.path is None:  # they are printed
            return
        with atomic_write(self.path, "w") as file:
            json.dump(self.data, file)


def first_line(error: BaseException) -> str:
    """Of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def failing(findings: Findings, name: str) -> Iterator[None]:
    """What is raised inside is a failure of that name; the part goes on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        findings.failure(name, first_line(error))


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


def version(package: str) -> str:
    """Of an installed package; CuPy's has its CUDA in its name."""
    if package == "cupy":
        return backend.device_info().cupy
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "not installed"


# -- determinism -----------------------------------------------------------------------------


def same_bits(findings: Findings, args: argparse.Namespace) -> None:
    """Every case twice, its memory filled with other numbers in between."""
    for dtype in filter(known, DTYPES):
        differ, number = [], 0
        with failing(findings, f"cases in {dtype}"):
            for case in cases(SIZE, dtype):
                with failing(findings, f"{case.name}, {dtype}"):
                    number += 1
                    first = [a.get() for a in case.run()]
                    litter(sum(a.nbytes for a in first))
                    if [a.tobytes() for a in first] != [a.get().tobytes() for a in case.run()]:
                        differ.append(case.name)
        findings.figure(f"cases with the same bits twice, {dtype}", f"{number - len(differ)} of "
                        f"{number}", good=not differ, note=", ".join(differ))


def known(dtype: str) -> bool:
    """Has this machine such numbers?"""
    return dtype != "bfloat16" or there("ml_dtypes")


def litter(size: int) -> None:
    """Fill memory that is free now, and free it again."""
    cp = backend.cupy()
    held = [cp.full(max(1, size >> shift), 0xFF, np.uint8) for shift in range(8)]
    cp.cuda.get_current_stream().synchronize()
    del held


def train(device: str, dtype: str, epochs: int = 2) -> tuple[str, list[float], Any]:
    """(SHA-256 of all weights and statistics, losses of the epochs, images/s) of a training run."""
    import gpuconv as gpc
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(NET)).to(device, dtype)
    images, test, batch = TRAIN
    data = gpc.data.shapes(train=images, test=test)
    history = gpc.train.fit(
        model, data[0], test=data[1], epochs=epochs, batch_size=batch, seed=1,
        optimizer=gpc.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=gpc.optim.OneCycle(), augment=gpc.data.Augment(), label_smoothing=0.1,
        clip_norm=5.0, ema=gpc.optim.EMA(model, 0.9))
    weights = hashlib.sha256()
    for name, a in sorted(model.state_dict().items()):
        weights.update(name.encode() + gpc.to_cpu(a).tobytes())
    losses = [row.train.loss for row in history.rows] + [row.test.loss for row in history.rows]
    return weights.hexdigest()[:16], losses, history.last.images_per_second


def same_training(findings: Findings, args: argparse.Namespace) -> None:
    """Runs with dropout, augmentation, clipping and averages, twice to the same bits."""
    for dtype in ("float32", "float16"):
        with failing(findings, f"training in {dtype}"):
            first = train("cuda", dtype)[:2]
            litter(1 << 20)
            again = train("cuda", dtype)[:2]
            findings.figure(f"training in {dtype} twice", "the same bits" if first == again else
                            "OTHER BITS", good=first == again,
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
            findings.figure(f"loss of steps 2 to {STEPS} on the GPU, {dtype}",
                            float(far[1:].max()), "relative difference from the CPU",
                            bool(far[1:].max() < last_bound), f"at most {last_bound:g}")


def steps(where: str, dtype: str) -> list[float]:
    """Losses of STEPS steps, with dropout and augmentation."""
    import gpuconv as gpc
    gpc.seed(0)
    model = gpc.models.build(gpc.models.describe(NET)).to(where, dtype)
    data, _ = gpc.data.shapes(train=TRAIN[0], test=1)
    optimizer = gpc.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    images = gpc.asarray(data.images, where)
    labels = gpc.asarray(data.labels.astype(np.int32), where)
    found = []
    for step in range(STEPS):
        index = np.arange(step * TRAIN[2], (step + 1) * TRAIN[2], dtype=np.int32) % TRAIN[0]
        index = gpc.asarray(index, where)
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
    for case in cases(SIZE, "float32"):
        stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
        with (stream, cp.cuda.using_allocator(pool.malloc),
              failing(findings, f"{case.name}, captured")):
            want = [[a.get() for a in case.run()] for _ in range(2)][0]
            number += 1
            try:
                graph, outputs = record(stream, case.run)
            except Exception as error:
                refused.append(f"{case.name} ({first_line(error)[:80]})")
                continue
            for a in outputs:
                a.fill(123)
            graph.launch(stream)
            stream.synchronize()
            if [a.get().tobytes() for a in outputs] != [a.tobytes() for a in want]:
                differ.append(case.name)
    same = number - len(refused) - len(differ)
    findings.figure("cases whose graph gives the eager bits", f"{same} of {number}",
                    good=not differ, note=", ".join(differ))
    findings.figure("cases that cannot be captured", len(refused), note="; ".join(refused))


def record(stream: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """(graph, arrays that it writes)"""
    stream.begin_capture()
    try:
        outputs = run()
    except BaseException:
        with contextlib.suppress(Exception):
            stream.end_capture()
        raise
    return stream.end_capture(), outputs


# -- speed -----------------------------------------------------------------------------------


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
    cp, kernel = backend.cupy(), cases(dataclasses.replace(SIZE, N=1, H=1, W=1, C=1), "float32")
    tiny = next(kernel)
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
    model = gpc.models.build(gpc.models.describe(FIT["model"])).to("cuda", dtype)
    settings = RECIPES[recipe].settings.replace(epochs=FIT["epochs"])
    what = f"{FIT['model']} in {dtype} on {data[0].name}"
    history = gpc.train.fit(model, data[0], test=data[1], seed=0,
                            **settings.fit_arguments(model))
    findings.figure(f"{what}: test accuracy after {FIT['epochs']} epochs",
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
    return "shapes", gpc.data.shapes(train=FIT["train"], test=FIT["test"])


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


WORK: dict[tuple[str, str], Callable[[Findings, argparse.Namespace], None]] = {
    ("device", "report"): device, ("determinism", "ops"): same_bits,
    ("determinism", "training"): same_training, ("determinism", "CPU and GPU"): agreement,
    ("determinism", "captured"): captured, ("ceilings", "peaks"): ceilings,
    ("training", "run in float32"): training_run, ("training", "run in float16"): training_run,
    **{("sanitizer", tool): sanitizer for tool in TOOLS}}


def main() -> None:
    parser = argparse.ArgumentParser(description="One part of the GPU day, in this process.")
    parser.add_argument("stage")
    parser.add_argument("part")
    parser.add_argument("--into", type=pathlib.Path, metavar="FILE",
                        help="where its findings are kept, as JSON")
    parser.add_argument("--data-dir", help="where CIFAR-10 is")
    parser.add_argument("--stand-in", action="store_true", help="try the code without a GPU")
    args = parser.parse_args()
    if (args.stage, args.part) not in WORK:
        parser.error("wanted one of " + ", ".join(f"{a} {b!r}" for a, b in WORK))
    do_without()
    if args.stand_in:
        import gpu_stand_in
        gpu_stand_in.install()
        gpu_stand_in.shrink(sys.modules[__name__], TINY)
    findings = Findings(args.into)
    findings.save()
    with failing(findings, f"{args.stage}: {args.part}"):
        WORK[args.stage, args.part](findings, args)
    findings.end()


if __name__ == "__main__":
    main()
