"""Every launch of a kernel in kernels/: recorded, and held against what devices can run.

``recording`` notes what passes through CuPy's RawModule, or the stand-in's. ``drive`` goes through
all that gpuconv launches without running it. As a plugin of pytest, this file records a whole run:

    PYTHONPATH=tests python -m pytest -p launches --launches FILE     as JSON
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
from unittest import mock

import numpy as np
import nvrtc
import simt_cases
import weight_cases

import gpuconv as gpc
from check import DTYPES
from gpuconv import backend, kernels, models, nn, ops, optim
from gpuconv.data import Augment, augment, augment_batch
from gpuconv.data.loader import epoch_order, fetch_batch, gather_batch
from gpuconv.ops.conv import gpu_mma
from gpuconv.ops.elementwise import ACTIVATIONS, FUNCTIONS
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.loss.softmax_cross_entropy import count_correct
from gpuconv.ops.matmul import gemm
from gpuconv.ops.norm.batch_norm import SLICES, BatchNorm
from gpuconv.ops.shape import pad
from gpuconv.ops.window import ConvShape, Window
from gpuconv.train.step_state import advance_step_state, halt_if_not_finite
from hostcuda import parted

# -- what a device can run ---------------------------------------------------------------
#
# CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute
# Capability". Registers go to a warp in units: CUDA Occupancy Calculator, "GPU Data".

GRID = 2**31 - 1, 65535, 65535  # blocks along x, y, z
BLOCK = 1024, 1024, 64          # threads along x, y, z
THREADS = 1024                  # of a block
STATIC = 48 << 10               # bytes of shared memory, unless a kernel asks for more dynamic
WARP = 32
UNIT = 256                      # registers that a warp gets at once


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one architecture: of a block, and of the multiprocessor that must take it."""

    shared: int                  # bytes of a block, with opt-in
    registers: int = 64 << 10    # of a multiprocessor
    partitions: int = 4          # that share them, each with its own warps


LIMITS = {75: Limits(64 << 10), 80: Limits(163 << 10), 86: Limits(99 << 10),
          89: Limits(99 << 10), 90: Limits(227 << 10), 100: Limits(227 << 10),
          120: Limits(99 << 10)}


@dataclasses.dataclass(frozen=True, order=True)
class Launch:
    """One way to launch a kernel."""

    file: str
    function: str
    options: tuple[str, ...]     # the compile-time constants, sorted
    grid: tuple[int, ...]
    block: tuple[int, ...]
    dynamic: int = 0             # bytes of dynamic shared memory
    opt_in: int = 0              # bytes that it asked to be allowed; 0: did not ask

    def __str__(self):
        return " ".join([self.function, "of", pathlib.Path(self.file).name, *self.options])


def problems(launch, needs, arch):
    """Why an architecture refuses a launch, in words, one each; none where it runs.

    Args:
        needs: nvrtc.Needs of that kernel on that architecture.
    """
    limits, threads = LIMITS[arch], math.prod(launch.block)
    warps = -(-threads // WARP)
    in_partition = limits.registers // limits.partitions
    fit = in_partition // (-(-needs.registers * WARP // UNIT) * UNIT) * limits.partitions
    free = max(launch.opt_in, STATIC - needs.shared)
    asked = needs.shared + max(launch.opt_in, launch.dynamic)

    for axis, n, most in zip("xyz", launch.grid, GRID, strict=False):
        if not 1 <= n <= most:
            yield f"a grid of {n} blocks along {axis}, wanted 1 .. {most}"
    for axis, n, most in zip("xyz", launch.block, BLOCK, strict=False):
        if not 1 <= n <= most:
            yield f"a block of {n} threads along {axis}, wanted 1 .. {most}"
    if threads > THREADS:
        yield f"a block of {threads} threads, at most {THREADS}"
    if threads > needs.threads:
        yield f"a block of {threads} threads, its launch bounds are {needs.threads}"
    if warps > fit:
        yield (f"{needs.registers} registers for {threads} threads: the register file has room "
               f"for {fit * WARP}")
    if needs.shared > STATIC:
        yield f"{needs.shared} bytes of static shared memory, at most {STATIC}"
    if launch.dynamic > free:
        yield f"{launch.dynamic} bytes of dynamic shared memory, {max(free, 0)} allowed"
    if asked > limits.shared:
        yield f"{asked} bytes of shared memory, sm_{arch} has {limits.shared} for a block"


def all_problems(launches, found):
    """{problem, with its launch and architecture} of all launches of what was compiled.

    Args:
        found: {nvrtc.Job: its needs}.
    """
    compiled = collections.defaultdict(list)
    for job in found:
        compiled[job.file, job.options].append(job)
    return {f"{launch} on sm_{job.arch}: {problem}"
            for launch in launches for job in compiled[launch.file, launch.options]
            for problem in problems(launch, found[job][launch.function], job.arch)}


def jobs(launches):
    """What must be compiled for them, for each architecture of their files."""
    configurations = sorted({(launch.file, launch.options) for launch in launches})
    return [nvrtc.Job(file, options, arch) for file, options in configurations
            for arch in nvrtc.archs(file)]


def in_turns(configurations):
    """For each (file, options) one architecture of its file, all of them alike often."""
    return [nvrtc.Job(file, options, nvrtc.archs(file)[i % len(nvrtc.archs(file))])
            for i, (file, options) in enumerate(sorted(set(configurations)))]


def sample(launches):
    """One job for each file and architecture, of configurations far from each other."""
    listed = jobs(launches)
    for file in sorted({job.file for job in listed}):
        mine = [job for job in listed if job.file == file]
        archs = nvrtc.archs(file)
        for i, arch in enumerate(archs):
            of_arch = [job for job in mine if job.arch == arch]
            yield of_arch[i * len(of_arch) // len(archs)]


# -- recording ---------------------------------------------------------------------------


class Kernel:
    """A kernel that notes how it is launched, and passes it on where there is one to run."""

    def __init__(self, noted, file, function, options, real):
        self.noted, self.key, self.real, self.opt_in = noted, (file, function, options), real, 0

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.opt_in or STATIC

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self.opt_in = size
        if self.real:
            self.real.max_dynamic_shared_size_bytes = size

    def __call__(self, grid, block, args, *, shared_mem=0, **options):
        self.noted.add(Launch(*self.key, tuple(grid), tuple(block), shared_mem, self.opt_in))
        if self.real:
            self.real(grid, block, args, shared_mem=shared_mem, **options)


@contextlib.contextmanager
def recording(cupy, run=True):
    """The set of all launches of our own sources until the end; other sources just run.

    Args:
        cupy: the module whose RawModule is watched.
        run: or only note them: then outputs hold what the memory held.
    """
    noted = set()
    files = {kernels.source(file): file for file in nvrtc.FILES}

    class Watched(cupy.RawModule):  # tests set attributes of the class
        def __init__(self, *, code, options=(), **more):
            text, constants = parted(code, options)
            self.key = files.get(text), tuple(sorted(constants))
            if run:
                super().__init__(code=code, options=options, **more)

        def get_function(self, name):
            real = super().get_function(name) if run else None
            file, options = self.key
            return Kernel(noted, file, name, options, real) if file else real

    with mock.patch.object(cupy, "RawModule", Watched):
        kernels.kernel.cache_clear()
        try:
            yield noted
        finally:
            kernels.kernel.cache_clear()


# -- a drive through everything ----------------------------------------------------------

CONVOLUTIONS = {  # filter, and how it moves; images of 12 x 13 pixels, 4 channels
    "3x3": (3, dict(padding=1)), "5x5": (5, dict(padding=2)), "7x7 stride 2": (
        7, dict(stride=2, padding=3)),
    "3x3 stride 2": (3, dict(stride=2, padding=1)), "3x3 dilation 2": (
        3, dict(dilation=2, padding=2)),
    "depthwise": (3, dict(padding=1, groups=4)), "same": ((4, 3), dict(padding="same", stride=2)),
    "reflect": (3, dict(padding=1, padding_mode="reflect")), "1x1": (1, dict(stride=2)),
}
POOLS = {
    "2x2": dict(kernel_size=2), "3x3 stride 2": dict(kernel_size=3, stride=2, padding=1),
    "3x3 stride 1": dict(kernel_size=3, stride=1, padding=1),
    "ceil": dict(kernel_size=3, stride=2, ceil_mode=True), "2x3": dict(kernel_size=(2, 3)),
}
HUGE_POOL = dict(kernel_size=17, padding=8)  # more than 256 elements: marks are int32
ROWS = {"small": (6, 10), "few classes": (6, 40), "many classes": (2, 1025)}


def drive():
    """{Launch}: all layers, ops, optimisers and models, in all dtypes and both index types.

    The arrays are the stand-in's, no kernel runs, and no number that comes out means anything.
    """
    from hostcuda import fake_cupy
    with (mock.patch.object(backend, "_cupy", fake_cupy),
          mock.patch.dict(backend._words, clear=True),
          recording(fake_cupy, run=False) as noted):
        augment._pixel_table.cache_clear()
        for dtype in map(backend.float_dtype, DTYPES):
            for huge in (False, True):
                items = 0 if huge else kernels.INT_ITEMS
                with mock.patch.object(kernels, "INT_ITEMS", items):
                    drive_ops(fake_cupy, dtype, 2 if huge else None)
                    simt_cases.drive(fake_cupy, dtype, 2 if huge else None)
                    weight_cases.drive(fake_cupy, dtype)
                    drive_training(fake_cupy, dtype)
            if dtype.name != "float64":
                drive_tensor_cores(fake_cupy, dtype)
        augment._pixel_table.cache_clear()
    return noted


def drive_ops(cp, dtype, geometries=None):
    """Forward and backward of each op, in each way that compiles something else.

    Args:
        geometries: how many of each table below; None: all of them.
    """

    def both(f, *shapes):
        y, pull = gpc.vjp(f, *(cp.zeros(shape, dtype) for shape in shapes))
        pull(cp.zeros(y.shape, y.dtype))

    images, row = (2, 12, 13, 4), (4,)
    for f in (*(getattr(ops, name) for name in FUNCTIONS), ops.softmax, ops.log_softmax,
              ops.global_avg_pool2d, ops.global_max_pool2d, ops.sum, ops.mean):
        both(f, images)
    for f in (ops.add, ops.sub, ops.mul, ops.div, ops.matmul):
        both(f, (5, 5), (5, 5))
    both(ops.linear, (6, 7), (10, 7), (10,))
    for size in (8, 600, 601):
        both(ops.matmul, (2, size, size), (2, size, size))
    long = cp.zeros((6, 5000), dtype)
    for activation in (None, *ACTIVATIONS):
        gemm(long, long.swapaxes(0, 1), cp.zeros(6, dtype), activation=activation)
    both(ops.bias_relu, images, row)
    both(lambda x: ops.dropout(x, 0.5, key=(1, 2), step=3), images)
    both(lambda x: ops.im2col(x, (3, 2), 2, 1, 2), images)
    for mode in pad.MODES:
        both(lambda x, mode=mode: ops.pad2d(x, 1, mode), images)
    for filter_size, how in list(CONVOLUTIONS.values())[:geometries]:
        size = (filter_size, filter_size) if isinstance(filter_size, int) else filter_size
        both(lambda x, w, b, how=how: ops.conv2d(x, w, b, **how), images,
             (8, *size, 4 // how.get("groups", 1)), (8,))
    for how in list(POOLS.values())[:geometries]:
        both(lambda x, how=how: ops.max_pool2d(x, **how), images)
        ops.max_pool2d(cp.zeros(images, dtype), **how)  # no gradient is asked for
        for include in (True, False):
            both(lambda x, how=how, include=include: ops.avg_pool2d(
                x, **how, count_include_pad=include), images)
    both(lambda x: ops.max_pool2d(x, **HUGE_POOL), images)
    ops.max_pool2d(cp.zeros(images, dtype), **HUGE_POOL, return_indices=True)

    wide = backend.accumulator(dtype)
    for training in (True, False):
        both(lambda x, gamma, beta, training=training: ops.batch_norm(
            x, gamma, beta, cp.zeros(row, wide), cp.ones(row, wide), training=training,
            num_batches_tracked=cp.zeros((), np.int64)), images, row, row)
    for activation in (None, *ACTIVATIONS):
        both(lambda x, gamma, beta, more, activation=activation: ops.batch_norm(
            x, gamma, beta, None, None, training=True, activation=activation, residual=more),
             (6, 16), (16,), (16,), (6, 16))
    given = BatchNorm(None, None, True, 0.1, 1e-5)
    given.needs = False, False, False
    given.forward_gpu(cp.zeros((2 * SLICES + 1, 16), dtype), None, None, moments=cp.zeros(
        (2, SLICES + 1, 16), wide), moment_rows=2)
    for label in (np.int32, np.int64):
        count_correct(cp.zeros((4, 5), dtype), cp.zeros(4, label), cp.zeros(1, np.int64))
    for shape in ROWS.values():
        for reduction in ("mean", "none"):
            both(lambda z, shape=shape, reduction=reduction: ops.softmax_cross_entropy(
                z, cp.zeros(shape[:1], np.int64), label_smoothing=0.1, reduction=reduction), shape)


def drive_tensor_cores(cp, dtype):
    """Both directions, and every way to end; other tiles: test_tensor_core_kernels."""
    N, H, W, C, K = 2, 12, 13, 16, 32
    x, w, row = cp.zeros((N, H, W, C), dtype), cp.zeros((K, 3, 3, C), dtype), cp.zeros(K, dtype)
    y, best = cp.zeros((N, H, W, K), dtype), cp.zeros((N, 6, 6, K), dtype)
    marks, part = cp.zeros(best.shape, np.uint8), cp.zeros((9, K), np.float32)
    p = ConvShape(*x.shape, K, Window((3, 3), (1, 1), ((1, 1), (1, 1))))
    strided = ConvShape(*x.shape, K, Window((3, 3), (2, 2), ((1, 1), (1, 1))))
    tile = gpu_mma.tiles(dtype)[0]
    gpu_mma.forward(p, x, w, y, tile=tile)
    gpu_mma.dgrad(p, y, w, x, tile=tile)
    for how in (*(dict(activation=name) for name in ACTIVATIONS),
                dict(residual=y, activation="relu"), dict(moments=(part, part))):
        gpu_mma.forward(p, x, w, y, Epilogue(row, **how))
    gpu_mma.forward(p, x, w, best, Epilogue(row, pool=marks, moments=(part, part)))
    gy = cp.zeros((N, strided.P, strided.Q, K), dtype)
    gpu_mma.forward(strided, x, w, gy)
    gpu_mma.dgrad(strided, gy, w, x)


def drive_training(cp, dtype):
    """Two steps with every optimiser, and with the models that have a name."""
    rows, labels = cp.zeros((2, 4), dtype), cp.zeros(2, np.int64)
    for make in (lambda ps: optim.SGD(ps, 0.1), lambda ps: optim.SGD(ps, 0.1, momentum=0.9),
                 lambda ps: optim.SGD(ps, 0.1, momentum=0.9, nesterov=True),
                 lambda ps: optim.SGD(ps, 0.1, master=True),
                 lambda ps: optim.SGD(ps, 0.1, momentum=0.9, master=True),
                 lambda ps: optim.SGD(ps, 0.1, momentum=0.9, nesterov=True, master=True),
                 lambda ps: optim.Muon([dict(params=[p], orthogonal=p.ndim > 1) for p in ps], 0.1),
                 lambda ps: optim.Adam(ps), lambda ps: optim.AdamW(ps, master=True)):
        drive_steps(nn.Linear(4, 4), make, rows, labels, dtype)
    advance_step_state(cp.zeros(3, np.int64), cp.zeros((), backend.accumulator(dtype)),
                       cp.zeros((), np.int64), None, cp.zeros(9), cp.zeros(4), cp.zeros((3, 4)))
    halt_if_not_finite(cp.zeros((), backend.accumulator(dtype)), cp.zeros(4), False)
    nn.SavedBuffers(nn.BatchNorm2d(5).to("cuda")).put_back(cp.ones(()))
    pixels, index = cp.zeros((10, 8, 8, 3), np.uint8), cp.zeros(4, np.int32)
    floats, order = cp.zeros(pixels.shape, dtype), cp.zeros(10, np.int32)
    epoch_order(cp.zeros(9), 1, 2)
    chosen, step_state = cp.zeros(4, np.int32), cp.zeros(2, np.int64)
    fetch_batch(pixels, order, order, step_state, floats[:4], chosen, batch_size=4,
                mean=(0.5,) * 3, std=(0.2,) * 3)
    gather_batch(floats, order, order, step_state, floats[:4], chosen, batch_size=4)
    for build in (models.simple_convnet, models.cifar_convnet):
        for how in (None, Augment(), Augment(padding_mode="reflect")):
            x = augment_batch(pixels, index, mean=(0.5,) * 3, std=(0.2,) * 3, dtype=dtype.name,
                              augment=how)
        drive_steps(build(image=8), lambda ps: optim.SGD(ps, 0.1, momentum=0.9), x,
                    cp.zeros(4, np.int64), dtype)


def drive_steps(model, make, x, labels, dtype):
    """Two steps of training, and a prediction."""
    model = model.to("cuda", dtype)
    optimiser, average = make(model.parameters()), optim.EMA(model)
    scaler = optim.LossScale(optimiser)
    for _ in range(2):
        optimiser.zero_grad()
        scaler.multiply(ops.softmax_cross_entropy(model(x), labels)).backward()
        scaler.check()
        optim.clip_grad_norm(optimiser, 1.0)
        optimiser.step()
        average.update(optimiser)
    model.eval().predict(x)


# -- the plugin of pytest ----------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--launches", metavar="FILE", help="write every launch into it, as JSON")


def pytest_configure(config):
    if config.getoption("--launches"):
        config.recording = recording(backend.cupy())
        config.launches = config.recording.__enter__()


def pytest_collection_modifyitems(config, items):
    """Only the tests that may launch: those that ask for the GPU's arrays."""
    if config.getoption("--launches"):
        def on_gpu(item):
            given = item.callspec.params if hasattr(item, "callspec") else {}
            return given["xp"] != "cpu" if "xp" in given else "cp" in item.fixturenames

        items[:] = filter(on_gpu, items)


def pytest_unconfigure(config):
    if hasattr(config, "recording"):
        config.recording.__exit__(None, None, None)
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        write(config.launches, pathlib.Path(f"{config.getoption('--launches')}.{worker}"))


def write(launches, path):
    path.write_text(json.dumps([dataclasses.astuple(launch) for launch in sorted(launches)]))


def read(path):
    """What ``write`` wrote in all processes."""
    return {Launch(*(tuple(v) if isinstance(v, list) else v for v in launch))
            for part in path.parent.glob(f"{path.name}.*")
            for launch in json.loads(part.read_text())}
