"""Every kernel on small arrays, through the op that owns it: what test_races runs in every order.

A case is f(xp, make): it draws data with make(*shape), computes with xp, numpy or cupy, and gives
the list of arrays that come out: results, gradients, what was updated in place. Shapes leave
remainders everywhere: more than one block, channels that fill no warp, sizes that fill no pack.
"""

import functools
import importlib.util
import os
import pathlib
import re

import numpy as np
import simt_cases
import weight_cases

import gpuconv as gpc
from gpuconv import backend, ops, optim, undo
from gpuconv.accumulate import accumulate
from gpuconv.data import Augment, augment_batch, loader
from gpuconv.nn import Module
from gpuconv.ops.conv import gpu_mma as engine
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.conv.im2col import im2col
from gpuconv.ops.elementwise import ACTIVATIONS, FUNCTIONS
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.loss.softmax_cross_entropy import count_correct as count_right
from gpuconv.ops.norm.batch_norm import SLICES, BatchNorm
from gpuconv.ops.window import ConvShape, Window
from gpuconv.train.step_state import advance_step_state, halt_if_not_finite

IMAGES = 2, 9, 7, 5  # N, H, W, C
PACKS = 2, 5, 7, 8   # channels that fill packs of 16 bytes


def files_of_kernels():
    """The test files of all kernels: of the same name, or that of the Python file beside them."""
    here = pathlib.Path(__file__).parent
    names = set()
    for path in (here.parent / "kernels").rglob("*.cu"):
        python = re.search(r"(\w+)\.py$", path.read_text(encoding="utf-8").split("\n", 1)[0])
        names |= {path.stem, python[1]}
    return [file for file in (here / f"test_{name}.py" for name in sorted(names)) if file.is_file()]


def parallel():
    """Options of pytest that put both cores to work, where they can."""
    return ["-n", "2"] if importlib.util.find_spec("xdist") and (os.cpu_count() or 1) > 1 else []


def both(f, *arrays):
    """f's value, and the gradients of its arguments for a gradient that varies."""
    y, pull = gpc.vjp(f, *arrays)
    gy = np.resize(np.linspace(-1, 1, 101) ** 3, y.shape).astype(y.dtype)
    return [y, *pull(gpc.get_array_module(y).asarray(gy))]


def elementwise(f, n=1031):
    return lambda xp, make: both(f, make(n)) + both(f, make(n)[1:])  # at no multiple of 16 bytes


def pool(f, images=IMAGES, **how):
    return lambda xp, make: both(lambda x: f(x, **how), make(*images))


def batch_norm(training, C=37, rows=130):
    def run(xp, make):
        running = [xp.zeros(C, np.float32), xp.ones(C, np.float32)]
        return both(lambda x, gamma, beta: ops.batch_norm(
            x, gamma, beta, *running, training=training),
                    make(rows, 1, 1, C), make(C), make(C)) + running

    return run


def batch_norm_and_more(activation, C=40, rows=150):
    def run(xp, make):
        return both(lambda x, gamma, beta, residual: ops.batch_norm(
            x, gamma, beta, None, None, training=True, activation=activation, residual=residual),
                    make(rows, C), make(C), make(C), make(rows, C))

    return run


def batch_norm_of_moments(xp, make, C=5, rows=2 * SLICES + 1):
    """Slices of two rows, the last of one; NumPy takes the pass over x."""
    x = make(rows, C)
    wide = backend.accumulator(x.dtype)
    op = BatchNorm(xp.zeros(C, wide), xp.ones(C, wide), True, 0.1, 1e-5)
    running, op.needs = op.running, (False,) * 3
    if xp is np:
        return [op.forward_cpu(x, None, None), *running]
    v = x.astype(wide)
    half, odd = (v[:-1:2] - v[1::2]) / 2, v[-1:]
    means = xp.concatenate([v[1::2] + half, odd])
    return [op.forward_gpu(x, None, None, moments=(
        means, xp.concatenate([half * half, 0 * odd])), moment_rows=2), *running]


def tensor_cores(unit, **flags):
    """A product of tensor cores with its epilogue, and the gradient of its images."""
    def run(xp, make):
        N, H, W, C, K = 2, 9, 6, unit, 4 * unit
        p = ConvShape(N, H, W, C, K, Window((3, 3), (2, 2), ((1, 1), (1, 1))))
        x, w, gy, b, residual = (  # tf32 has the bits of float16
            make(*shape).astype(np.float16) for shape in (
                (N, H, W, C), (K, 3, 3, C), (N, 5, 3, K), (K,), (N, 5, 3, K)))
        dtype = make().dtype
        x, w, gy, b, residual = (a.astype(dtype) for a in (x, w, gy, b, residual))
        if xp is np:
            f = functools.partial(ops.conv2d, stride=2, padding=1)
            y, (gx, *_) = f(x, w, b), gpc.vjp(f, x, w)[1](gy)
            if not flags:
                return [gx, ops.relu(y + residual)]
            best, where = ops.max_pool2d(y, 2, return_indices=True)
            marks = where // 3 % 2 * 2 + (where % 3) % 2
            rows = best.reshape(-1, K)
            return [gx, best, marks.astype(np.uint8), rows.mean(0)[None], rows.var(0)[None]]
        gx, tile = xp.empty(x.shape, dtype), Tile(64, 32, 64 // dtype.itemsize, 32, 16, 3)
        engine.dgrad(p, gy, w, gx, tile=tile)
        if not flags:
            y = xp.empty(gy.shape, dtype)
            engine.forward(p, x, w, y, Epilogue(b, residual, "relu"), tile=tile)
            return [gx, y]
        y, means, variances = xp.empty((N, 2, 1, K), dtype), *(
            xp.empty((1, K), np.float32) for _ in range(2))
        marks = xp.empty(y.shape, np.uint8)
        engine.forward(p, x, w, y, Epilogue(b, pool=marks, moments=(means, variances)),
                       tile=tile)
        return [gx, y, marks, means, variances]

    return run


def cross_entropy(N, K, reduction):
    def run(xp, make):
        labels = xp.asarray(np.arange(N) * 5 % K)
        return both(lambda z: ops.softmax_cross_entropy(
            z, labels, label_smoothing=0.1, reduction=reduction), make(N, K))

    return run


def count_correct(xp, make):
    found = []
    for N, K in ((1050, 3), (45, 33)):
        out, labels = xp.asarray(np.int64([-1])), xp.asarray(np.arange(N, dtype=np.int32) % K)
        count_right(make(N, K), labels, out)
        found.append(out)
    return found


def augment(**how):
    def run(xp, make):
        pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
        index = xp.asarray(np.int32([3, 0, 0, 2, 1]))
        return [augment_batch(xp.asarray(pixels), index, mean=(0.5, 0.4, 0.3), std=(0.2,) * 3,
                              key=(1, 2), epoch=1, augment=Augment(**how) if how else None)]

    return run


def accumulated(xp, make):
    """Of lengths that fill no pack, in two launches."""
    ys = [make(n) for n in (5, 300, 1, 2, 8, 40, 3, 9, 7)]
    accumulate((y, make(y.size)) for y in ys)
    return ys


def put_back(xp, make):
    """Of lengths that fill no pack, in two launches; those of one array stay."""
    ys = [make(n) for n in (*range(1, 25), 300)]
    stays = make(7)
    pairs = undo.copied([*ys, stays])
    for y in (*ys, stays):
        y[...] = y + 1
    undo.put_back(pairs[:-1], xp.ones(()))
    undo.put_back(pairs[-1:], xp.zeros(()))
    return [*ys, stays]


def step_state(scaled):
    """The last two steps of an epoch, the second one; then a loss that is infinite."""
    def run(xp, make):
        time, loss, right = xp.asarray(np.int64([1, 1, 4])), make(), xp.asarray(np.int64(3))
        scale = xp.asarray(np.float32([1024])) if scaled else None
        factors, control = xp.asarray(np.arange(9.0)), xp.asarray(np.array([1, 0.5, 1, 0]))
        results = xp.asarray(np.zeros((3, 4)))
        for _ in range(2):
            if xp is not np:
                loss = loss.astype(backend.accumulator(loss.dtype))
                advance_step_state(time, loss, right, scale, factors, control, results)
                continue
            results[time[1]] = loss, right, control[2], 1024 if scaled else 1
            control[0] = factors[time[2]]
            time[1:] += 1
        if xp is np:
            control[2] = 2
        else:
            halt_if_not_finite(xp.full((), np.inf, loss.dtype), control,
                               scaled and not control[2])
        return [time, control, results]

    return run


def fetch(xp, make):
    """The last batch of an epoch, which is smaller; of bytes, and of floats."""
    rng, results = np.random.default_rng(4), []
    pixels = rng.integers(0, 256, (7, 6, 5, 3)).astype(np.uint8)
    labels, order = np.arange(7, dtype=np.int32) * 3, rng.permutation(7).astype(np.int32)
    step_state, how = np.int64([2**33 + 1, 1, 9]), dict(batch_size=4)
    for images in (pixels, make(7, 6, 5, 3), make(7, 2, 4, 4)):
        dtype = make(1).dtype
        x, chosen = xp.empty((3, *images.shape[1:]), dtype), xp.empty(3, np.int32)
        arrays = *map(xp.asarray, (images, labels, order, step_state)), x, chosen
        if images is pixels:
            loader.fetch_batch(*arrays, mean=(0.5,) * 3, std=(0.2,) * 3, key=(1, 2),
                               augment=Augment(), **how)
        else:
            loader.gather_batch(*arrays, **how)
        results += [x, chosen]
    return results


class Weights(Module):
    """Parameters of sizes that fill no pack."""

    def __init__(self, make):
        super().__init__()
        self.w, self.b = gpc.Parameter(make(41, 13)), gpc.Parameter(make(7))


def training(build, scaled=False):
    """Two steps: gradients clipped, parameters updated, an average kept; losses scaled, or not."""
    def run(xp, make):
        weights = Weights(make)
        weights.register_buffer("count", xp.asarray(np.arange(3)))
        optimiser, average = build(list(weights.parameters())), optim.EMA(weights)
        scaler, norms = optim.LossScale(optimiser, 2.0, interval=1) if scaled else None, []
        for _ in range(2):
            optimiser.zero_grad()
            gpc.ops.sum((weights.w * make(41, 13)) + ops.mean(weights.b * make(7))).backward()
            if scaler:
                scaler.check()
            norms.append(optim.clip_grad_norm(optimiser, 0.5))
            optimiser.step()
            average.update(optimiser if scaler else None)
        norms += scaler.state_dict().values() if scaler else []
        return [*norms, *(p.data for p in weights.parameters()), *average.state_dict().values()]

    return run


CASES = {
    **{name: elementwise(getattr(ops, name)) for name in FUNCTIONS},
    "dropout": elementwise(lambda x: ops.dropout(x, 0.3, key=(1, 2), step=3)),
    "bias_relu": lambda xp, make: both(ops.bias_relu, make(150, 37), make(37)),
    "bias_relu in packs": lambda xp, make: both(ops.bias_relu, make(33, 8), make(8)),
    "im2col": lambda xp, make: both(
        lambda x: im2col(x, (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2)), make(*IMAGES)),
    "conv2d": lambda xp, make: both(lambda x, w, b: ops.conv2d(x, w, b, stride=2, padding=1),
                                    make(*IMAGES), make(4, 3, 3, 5), make(4)),
    "tensor cores": tensor_cores(8), "tensor cores pool": tensor_cores(8, pool=1),
    "tensor cores of few channels": tensor_cores(3),
    "simt": simt_cases.kernel_case("packs"), "simt stride 2": simt_cases.kernel_case("packs", 2),
    "simt of three channels": simt_cases.kernel_case("single"),
    "simt in groups": simt_cases.kernel_case("groups"),
    "simt depthwise": simt_cases.kernel_case("depthwise", 2),
    "weight gradient": weight_cases.kernel_case(16, 40, 1),
    "weight gradient in runs": weight_cases.kernel_case(8, 72, 3),
    "weight gradient of odd channels": weight_cases.kernel_case(3, 5, 2),
    "matmul": lambda xp, make: both(ops.matmul, make(2, 67, 21), make(2, 21, 35)),
    "matmul in packs": lambda xp, make: both(ops.matmul, make(68, 20), make(2, 20, 36)),
    "matmul in slices": lambda xp, make: both(ops.matmul, make(3, 1100), make(2, 1100, 5)),
    "column_sums": weight_cases.column_case(40, 37),
    "column_sums in slices": weight_cases.column_case(4100, 6),
    "max_pool2d": pool(ops.max_pool2d, kernel_size=3, stride=2, padding=1),
    "max_pool2d dilated": pool(ops.max_pool2d, kernel_size=2, stride=1, dilation=2, ceil_mode=True),
    "max_pool2d side by side": pool(ops.max_pool2d, kernel_size=2),
    "max_pool2d in packs": pool(ops.max_pool2d, PACKS, kernel_size=2, padding=((1, 0), (0, 1))),
    "global_avg_pool2d": pool(ops.global_avg_pool2d, (2, 11, 13, 5)),
    "global_max_pool2d": pool(ops.global_max_pool2d, (2, 11, 13, 8)),
    "pad2d": pool(ops.pad2d, padding=((2, 1), (0, 3)), mode="reflect"),
    "pad2d in packs": pool(ops.pad2d, PACKS, padding=2, mode="replicate"),
    "avg_pool2d in packs": pool(ops.avg_pool2d, PACKS, kernel_size=3, stride=1, padding=1),
    "avg_pool2d": pool(ops.avg_pool2d, kernel_size=3, stride=2, padding=1),
    "avg_pool2d ceil": pool(ops.avg_pool2d, kernel_size=(2, 3), padding=(0, 1), ceil_mode=True,
                            count_include_pad=False),
    "batch_norm": batch_norm(True), "batch_norm inference": batch_norm(False),
    "batch_norm of few channels": batch_norm(True, 3, 600),
    "batch_norm in packs": batch_norm(True, 80, 300),
    "batch_norm, residual, relu": batch_norm_and_more("relu"),
    **{f"batch_norm, {name}": lambda xp, make, name=name: both(lambda x: ops.batch_norm(
        x, None, None, None, None, training=True, activation=name), make(70, 24))
       for name in ACTIVATIONS},
    "batch_norm of moments": batch_norm_of_moments,
    "cross_entropy": cross_entropy(19, 10, "mean"),
    "cross_entropy in tiles": cross_entropy(600, 31, "mean"),
    "cross_entropy of some classes": cross_entropy(19, 40, "sum"),
    "count_correct": count_correct,
    "cross_entropy of many classes": cross_entropy(3, 1100, "none"),
    "augment": augment(), "augment reflect": augment(padding_mode="reflect"),
    "fetch": fetch,
    "shuffle": lambda xp, make: [
        loader.epoch_order(xp.zeros(n), 2**32 - 1, 2**33 + 5) for n in (1, 777)],
    "step_state": step_state(False), "step_state of a scaled loss": step_state(True),
    "accumulate": accumulated, "copy": put_back,
    "sgd": training(lambda ps: optim.SGD(ps, 0.1, weight_decay=1e-3)),
    "sgd nesterov": training(lambda ps: optim.SGD(ps, 0.1, momentum=0.9, nesterov=True)),
    "sgd master": training(lambda ps: optim.SGD(ps, 0.1, momentum=0.9, master=True), scaled=True),
    "muon": training(lambda ps: optim.Muon(
        [dict(params=ps[:1]), dict(params=ps[1:], orthogonal=False)], 0.02, iterations=1,
        normalize=True, master=True), scaled=True),
    "adamw": training(lambda ps: optim.AdamW(ps, 0.01)),
    "adam master": training(lambda ps: optim.Adam(ps, 0.01, master=True), scaled=True),
}


def run(case, xp, dtype="float32"):
    """The case's results as NumPy arrays, on xp; its data depend on its name alone."""
    rng = np.random.default_rng(list(case.encode()))

    def make(*shape):
        return xp.asarray(rng.standard_normal(shape).astype(gpc.backend.float_dtype(dtype)))

    return [a.get() if hasattr(a, "get") else np.asarray(a) for a in CASES[case](xp, make)]
