"""What is run over the device that computes nothing: PARTS, each a function of the driver."""

import contextlib
import gc
import io
import itertools
import logging
import sys

import numpy as np

from gpuconv import backend, kernels, nn, optim, random
from gpuconv.cli import bench, main
from gpuconv.data import Augment, Dataset
from gpuconv.train import fit
from gpuconv.train.memory import explain, predict
from gpuconv.train.predictions import predictions

DTYPES = "float16", "bfloat16", "float32"
SIDE, CLASSES = 16, 10
FEW = dict(n=2, batch_size=2)  # images, for the stand-in's sake
STEPS = [("nesterov", "float32"), ("adamw", "float16"), ("muon", "bfloat16")]


# -- training ----------------------------------------------------------------------------


def network(dtype):
    """A layer of each kind."""
    random.seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.GELU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(32 * 6 * 6, CLASSES)).to("cuda", dtype)


def dataset(n):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)
    return Dataset(images, np.arange(n, dtype=np.int32) % CLASSES, tuple("abcdefghij"), "noise")


def muon(parameters, master):
    listed = list(parameters)
    groups = [dict(params=[p for p in listed if p.ndim > 1], normalize=True),
              dict(params=[p for p in listed if p.ndim == 1], orthogonal=False, stop=0.5)]
    return optim.Muon(groups, 0.1, master=master)


OPTIMIZERS = {
    "nesterov": lambda ps, master: optim.SGD(ps, 0.1, momentum=0.9, nesterov=True, master=master),
    "adamw": lambda ps, master: optim.AdamW(ps, 1e-3, master=master), "muon": muon}


def train(kind, dtype, n=40, batch_size=16, **more):
    """A run with a bit of everything; its last batch is smaller. Returns the model, the data."""
    model, data = network(dtype), dataset(n).to("cuda")
    optimizer = OPTIMIZERS[kind](model.parameters(), dtype != "float32")
    fit(model, data, test=data, epochs=3, batch_size=batch_size, optimizer=optimizer,
        augment=Augment(pad=2, flip=True), clip_norm=1.0, ema=optim.EMA(model, 0.99), seed=1,
        loss_scale="dynamic" if dtype == "float16" else None, label_smoothing=0.1, eager=False,
        schedule=optim.OneCycle(), **more)
    return model, data


def clean(driver):
    """Bytes that are still in use when all that can be freed is."""
    gc.collect()
    backend.cupy().get_default_memory_pool().free_all_blocks()
    return driver.live()


def training(driver):
    """Each optimiser in each dtype: bytes in use before and after, number of graphs."""
    for dtype in DTYPES:  # what stays: an error word, constants of the augmentation
        train("nesterov", dtype)
    found = {}
    for kind, dtype in itertools.product(OPTIMIZERS, DTYPES):
        before, graphs = clean(driver), len(driver.graphs())
        predictions(*train(kind, dtype), views="six")
        found[f"{kind}, {dtype}"] = before, clean(driver), len(driver.graphs()) - graphs
    return found


def launches(driver):
    """Names of what the graph of a step of few images holds, for each optimiser and dtype."""
    found = {}
    for kind, dtype in STEPS:
        train(kind, dtype, **FEW)
        found[f"{kind}, {dtype}"] = driver.graphs()[-1]
    return found


def start(driver):
    """Return what a first run costs beside its kernels.

    ours: for each set of compiler options, whether kernels.OPTIONS are in it; scipy: whether CuPy
    imported its SciPy half.
    """
    train("nesterov", "float16")
    sets = backend.cupy().cuda.compiler._empty_file_preprocess_cache
    ours = [set(kernels.OPTIONS) <= set(options) for _, options, *_ in sets]
    return dict(ours=sorted(ours), scipy="scipy.sparse" in sys.modules)


# -- memory ------------------------------------------------------------------------------


def memory(driver):
    """What the forecasts of a step leave behind: bytes in use, time after time."""
    model, found = network("float16"), {}
    for name, forecast in (
            ("predict", lambda: predict(model, (SIDE, SIDE, 3), 8)),
            ("explain", lambda: explain(MemoryError("none"), model, (SIDE, SIDE, 3), 8))):
        forecast()
        found[name] = []
        for _ in range(3):
            forecast()
            found[name].append(clean(driver))
    return found


# -- commands ----------------------------------------------------------------------------


def commands(driver):
    """Commands as a user types them, in the current folder: exit status and output of each."""
    small = "--model", "INPUT 32x32x3 | CONV3-8 BN RELU POOL2 | FC 10", "--dtype", "float16"
    logging.getLogger("matplotlib").setLevel("ERROR")  # it says when it looks for fonts
    bench.SIDE, bench.COPIED = dict(cuda=64), 1 << 16
    found = {}
    for line, more in (
            ("info", ()),
            ("train --data shapes --limit 256 --epochs 3 --run run --device cuda", small),
            ("evaluate run --device cuda", ()),
            ("bench --batch-size 8 --seconds 0 --device cuda", small),
            ("tune --batch-size 8 --output tuned.json --device cuda", small),
            ("train --data shapes --limit 64 --batch-size 8 --epochs 3 --tuned tuned.json "
             "--device cuda", small)):
        told, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
            status = main([*line.split(), *more])
        found[line] = status, told.getvalue(), said.getvalue()
    return found


# -- cases of the GPU day ----------------------------------------------------------------


def cases(driver):
    """Every kernel: how many cases ran, what they were refused; then those that no graph holds."""
    import gpu_cases
    import gpu_checks
    import gpu_sizes
    from gpu_findings import Findings
    ran = {}
    for dtype in ("float32", "float16"):
        results = [case.run() for case in gpu_cases.cases(gpu_cases.TINY, dtype)]
        ran[dtype] = len([[a.get() for a in arrays] for arrays in results])
    refused = driver.refused()
    findings, gpu_sizes.SIZE = Findings(None), gpu_cases.TINY
    with contextlib.redirect_stdout(io.StringIO()):
        gpu_checks.captured(findings, None)
    notes = {row["what"]: row["note"] for row in findings.data["figures"]}
    return dict(ran=ran, refused=refused, failed=findings.data["failures"],
                uncaptured=notes["cases that cannot be captured"].split("; "))


# -- the driver itself -------------------------------------------------------------------


def refusals(driver):
    """What a device refuses, or only these tests do: {what was done: what was said}."""
    cp = backend.cupy()
    x, stream = cp.zeros(256, np.float32), cp.cuda.Stream(non_blocking=True)
    source = 'extern "C" __global__ void f(float* x, int n) { x[0] = n; }'
    kernel = cp.RawModule(code=source).get_function("f")
    runtime, n = cp.cuda.runtime, np.int32(1)
    tries = {
        "launch": lambda: kernel((1,), (1024,), (x, n), shared_mem=48 << 10),
        "long for int": lambda: kernel((1,), (32,), (x, 1)),
        "block": lambda: kernel((1,), (1025,), (x, n)),
        "grid": lambda: kernel((1, 1 << 16), (32,), (x, n)),
        "shared memory": lambda: kernel((1,), (32,), (x, n), shared_mem=(48 << 10) + 1),
        "opt-in": lambda: setattr(kernel, "max_dynamic_shared_size_bytes", 164 << 10),
        "copy": lambda: runtime.memcpy(x.data.ptr, x.data.ptr + 1, x.data.mem.size, 3),
        "fill": lambda: runtime.memset(x.data.ptr - 4, 0, 8),
        "free": lambda: runtime.free(x.data.ptr + 4),
        "unwritten": lambda: runtime.memcpy2D(0, 0, 0, 0, 0, 0, 0)}
    captured = {
        "captured launch": lambda: kernel((1,), (32,), (x, n)),
        "captured fill": lambda: x.fill(0),
        "wait": stream.synchronize, "wait for all": cp.cuda.Device().synchronize,
        "look": lambda: x[:1].get(), "from the host": lambda: cp.asarray(np.ones(3)),
        "module": lambda: cp.RawModule(code=source.replace("f(", "g(")).get_function("g"),
        "other stream": lambda: kernel.kernel((1,), (32,), (x, n), stream=cp.cuda.Stream.null)}
    found = {name: tried(f) for name, f in tries.items()}
    for name, f in captured.items():
        with stream:
            stream.begin_capture()
            found[name] = tried(f)
            stream.end_capture()
    return found


def tried(f):
    """What it says, or nothing."""
    try:
        f()
    except Exception as error:
        return str(error)
    return ""


PARTS = {f.__name__: f for f in (training, launches, start, memory, commands, cases, refusals)}
