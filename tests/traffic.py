"""What the kernels ask of memory, as a table; no GPU needed.

    python tests/traffic.py                                             every kernel
    python tests/traffic.py max_pool --shape 8x32x32x64 --kernel-size 2
    python tests/traffic.py softmax_cross_entropy --shape 256x10 --lines

The kernels run on the CPU, compiled by g++, through the op's own GPU branch; hostcuda/traffic.py
says what is counted and what is not.
"""

import argparse
import functools
import importlib
import unittest.mock
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import simt_cases
import weight_cases

import gpuconv as gpc
from gpuconv import accumulate as accumulate_module
from gpuconv import backend, ops, optim, undo
from gpuconv.data.loader import epoch_order, fetch_batch, gather_batch
from gpuconv.ops.conv import gpu_mma as engine
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.elementwise import FUNCTIONS
from gpuconv.ops.engine.epilogue import Epilogue
from gpuconv.ops.loss.softmax_cross_entropy import count_correct
from gpuconv.ops.norm.batch_norm import SLICES, BatchNorm
from gpuconv.ops.shape.pad import MODES
from gpuconv.ops.window import ConvShape, Window, sides
from gpuconv.optim.muon import orthogonalized
from gpuconv.train.step_state import advance_step_state, halt_if_not_finite
from hostcuda import fake_cupy
from hostcuda.traffic import Access, Launch, recording

SECTOR = 32  # bytes
LEGEND = """
touched   different bytes of the array; asked: how often, what lanes of a warp share counted once
request   one instruction of one warp; lanes: of its 32, how many took part
sectors   of 32 bytes, per request; least: as many as its bytes need. Equal: coalesced
passes    through the banks of shared memory, per request; least: without conflicts
memory    moves at least this (a perfect cache) and at most that (none): bounds, no counters"""


class Case(NamedTuple):
    """How to run the kernels of one file."""

    shape: str           # by default
    run: Callable        # (make, options): make(*shape) is an array of random numbers
    takes: str = ""      # which options it takes, beside --shape and --dtype


def both_ways(f: Callable, *arrays: Any) -> None:
    """f(*arrays), and its gradients."""
    y, pull = gpc.vjp(f, *arrays)
    pull(fake_cupy.ones_like(y))


def pool(function: Callable) -> Callable:
    return lambda make, o: both_ways(
        lambda x: function(x, o.kernel_size, o.stride, o.padding), make(*o.shape))


def activation(make: Callable, o: Any) -> None:
    for name in FUNCTIONS:
        both_ways(getattr(ops, name), make(*o.shape))


def im2col(make: Callable, o: Any) -> None:
    both_ways(lambda x: ops.im2col(x, o.kernel_size, o.stride or 1, o.padding, o.dilation),
              make(*o.shape))


def bias_relu(make: Callable, o: Any) -> None:
    both_ways(ops.bias_relu, make(*o.shape), make(o.shape[-1]))


def batch_norm(make: Callable, o: Any) -> None:
    C, wide = o.shape[-1], backend.accumulator(o.dtype)
    x, gamma, beta = make(*o.shape), make(C), make(C)
    mean, var = fake_cupy.zeros(C, wide), fake_cupy.ones(C, wide)
    for training in (True, False):
        f = functools.partial(ops.batch_norm, running_mean=mean, running_var=var,
                              training=training)
        both_ways(f, x, gamma, beta)
        both_ways(lambda *a, f=f: f(*a[:3], residual=a[3], activation="relu"), x, gamma, beta,
                  make(*o.shape))
        both_ways(functools.partial(f, activation="relu"), x, gamma, beta)
    given = BatchNorm(mean, var, True, 0.1, 1e-5)
    given.needs = False, False, False
    many = fake_cupy.zeros((2, SLICES + 1, C), wide)
    given.forward_gpu(make(SLICES + 1, C), gamma, beta, moments=many, moment_rows=1)


def tensor_cores(make: Callable, o: Any) -> None:
    N, H, W, C = o.shape
    K, size, edge = o.filters, o.kernel_size, 2 if o.pool else 1
    p = ConvShape(*o.shape, K, Window((size, size), (o.stride or 1,) * 2, sides(o.padding)))
    y = fake_cupy.empty((N, p.P // edge, p.Q // edge, K), o.dtype)
    tile = Tile(64, 32, 64 // o.dtype.itemsize, 32, 16, 3)
    slices = -(-p.N * p.P * p.Q // tile.BM)
    moments = tuple(fake_cupy.empty((slices, K), np.float32) for _ in range(2))
    how = dict(pool=fake_cupy.empty(y.shape, np.uint8), moments=moments) if o.pool else dict(
        residual=make(*y.shape))
    engine.forward(p, make(*o.shape), make(K, size, size, C), y, Epilogue(make(K), **how),
                   tile=tile)


def conv_rotate_filters(make: Callable, o: Any) -> None:
    K, C, size = o.filters, o.shape[-1], o.kernel_size
    window = Window((size, size), (o.stride or 1,) * 2, sides(o.padding), (1, 1))
    engine.rotate_filters(ConvShape(*o.shape, K, window), make(K, size, size, C))


def softmax_cross_entropy(make: Callable, o: Any) -> None:
    """Of that shape; of 10 classes, too, where the table is to show every kernel."""
    for shape in [o.shape, (o.shape[0], 10)] if o.shape == (128, 1000) else [o.shape]:
        logits = make(*shape)
        labels = fake_cupy.arange(shape[0]) % shape[1]
        both_ways(lambda z, labels=labels: ops.softmax_cross_entropy(z, labels), logits)
        count_correct(logits, labels, fake_cupy.empty(1, np.int64))


def accumulate(make: Callable, o: Any) -> None:
    """Rows of another array, a pair each, in full launches."""
    y, x = make(*o.shape), make(*o.shape)
    accumulate_module.accumulate(zip(y, x, strict=True))


def augment(make: Callable, o: Any) -> None:
    N, *_, C = o.shape
    images = fake_cupy.asarray(np.random.default_rng(0).integers(0, 256, o.shape, np.uint8))
    numbers = dict(mean=[0.5] * C, std=[0.25] * C, key=(0, 0), augment=gpc.data.Augment(pad=4))
    order = fake_cupy.arange(N, dtype=np.int32)
    gpc.data.augment_batch(images, order, dtype=o.dtype, epoch=0, **numbers)
    B = N - N // 2  # the second batch
    x, step_state = make(*o.shape)[:B], fake_cupy.asarray(np.int64([0, 1]))
    arrays = order.copy(), order, step_state, x, fake_cupy.empty(B, np.int32)
    fetch_batch(images, *arrays, batch_size=N // 2, **numbers)
    gather_batch(make(*o.shape), *arrays, batch_size=N // 2)


def optimiser(*kinds: Callable, step: Callable = optim.Optimizer.step) -> Callable:
    """Runs one step of each kind, on one Parameter of the given shape."""
    def run(make, o):
        for kind in kinds:
            p = gpc.Parameter(make(*o.shape))
            its = kind([p])
            p.grad[...] = make(*o.shape)
            step(its)
    return run


def gemm(make: Callable, o: Any) -> None:
    """(Z, N, C) by (Z, C, K) in each layout; of 16 bits also in two launches."""
    Z, N, C, K = o.shape
    module = importlib.import_module("gpuconv.ops.matmul.gemm")
    with unittest.mock.patch.object(module, "column_sums", lambda sums, y: None):
        for a in (make(Z, N, C), make(Z, C, N).swapaxes(1, 2)):
            for b in (make(Z, C, K), make(Z, K, C).swapaxes(1, 2)):
                module.gemm(a, b, make(K))
    if o.dtype.itemsize == 2:  # of other dtypes the sums of the first launch are in y
        with unittest.mock.patch.object(module, "LONGEST", -(-C // 16) * 8):
            module.gemm(a, b, make(K), activation="relu")


def muon(make: Callable, o: Any) -> None:
    """Its own kernels, without the products of matrices between them."""
    kinds = (functools.partial(optim.Muon, lr=0.1, normalize=True),
             functools.partial(optim.Muon, lr=0.1, nesterov=False, master=True))
    with unittest.mock.patch("gpuconv.optim.muon.orthogonalized",
                             lambda d, _, dtype: d.astype(dtype)):
        optimiser(*kinds)(make, o)


def newton_schulz(make: Callable, o: Any) -> None:
    """Its own kernels, without the products of matrices between them."""
    with unittest.mock.patch("gpuconv.optim.muon.gemm",
                             lambda a, b: make(a.shape[0], b.shape[1])):
        orthogonalized(make(*o.shape), 1)


def ema(make: Callable, o: Any) -> None:
    layer = gpc.nn.Linear(o.shape[1], o.shape[0], bias=False)
    layer.register_buffer("counts", np.arange(o.shape[1]))
    layer.to("cuda:0").to(o.dtype)
    average, its = optim.EMA(layer), optim.SGD(layer.parameters(), 0.1, master=True)
    average.update()
    its.master_of(its.all_flats()[0])  # as after a step
    average.update(its)


def step_state(make: Callable, o: Any) -> None:
    """A step in the middle of an epoch of so many."""
    wide, (steps,) = backend.accumulator(o.dtype), o.shape
    time, zero = fake_cupy.asarray(np.int64([0, 1, 1])), fake_cupy.zeros((), np.int64)
    for scale in (None, fake_cupy.ones((), np.float32)):
        advance_step_state(time, fake_cupy.zeros((), wide), zero, scale, fake_cupy.ones(steps),
                           fake_cupy.zeros(4), fake_cupy.zeros((steps, 4)))
    halt_if_not_finite(fake_cupy.full((), np.inf, wide), fake_cupy.zeros(4), True)


def copy(make: Callable, o: Any) -> None:
    """Rows of another array, a pair each, in full launches."""
    undo.put_back(undo.copied(make(*o.shape)), fake_cupy.ones(()))


CASES = {
    "accumulate": Case("64x1024", accumulate),
    "activation": Case("8x32x32x64", activation),
    "adam": Case("64x1024", optimiser(optim.Adam, functools.partial(optim.Adam, master=True))),
    "augment": Case("32x32x32x3", augment),
    "avg_pool": Case("8x32x32x64", pool(ops.avg_pool2d), "kernel_size stride padding"),
    "batch_norm": Case("8x32x32x64", batch_norm),
    "bias_relu": Case("8x32x32x64", bias_relu),
    "clip": Case("64x1024", optimiser(
        functools.partial(optim.SGD, lr=0.1), step=lambda its: optim.clip_grad_norm(its, 1.0))),
    "step_state": Case("100", step_state),
    "copy": Case("48x1024", copy),
    "conv_rotate_filters": Case("2x32x32x64", conv_rotate_filters,
                                "kernel_size stride padding filters"),
    "conv_mma": Case("2x32x32x64", tensor_cores, "kernel_size stride padding filters pool"),
    "conv_depthwise": Case("2x32x32x64", simt_cases.traffic(
        "forward", "dgrad", "wgrad", groups=True),
        "kernel_size stride padding dilation"),
    "conv_simt": Case("2x32x32x64", simt_cases.traffic("forward", "dgrad"),
                      "kernel_size stride padding dilation filters"),
    "conv_simt_wgrad": Case("1x16x16x64", simt_cases.traffic("wgrad"),
                             "kernel_size stride padding dilation filters"),
    "column_sums": Case("4096x256", weight_cases.column_traffic),
    "conv_mma_wgrad": Case("2x32x32x64", weight_cases.traffic,
                                 "kernel_size stride padding filters"),
    "dropout": Case("8x32x32x64", lambda make, o: both_ways(
        lambda x: ops.dropout(x, key=(1, 2), step=0, counter=fake_cupy.ones(1, np.int64)),
        make(*o.shape))),
    "ema": Case("64x1024", ema),
    "gemm": Case("2x256x256x256", gemm),
    "global_pool": Case("8x16x16x64", lambda make, o: [
        both_ways(f, make(*o.shape)) for f in (ops.global_avg_pool2d, ops.global_max_pool2d)]),
    "im2col": Case("2x32x32x64", im2col, "kernel_size stride padding dilation"),
    "loss_scale": Case("64x1024", optimiser(functools.partial(optim.SGD, lr=0.1),
                                            step=lambda its: optim.LossScale(its).check())),
    "max_pool": Case("8x32x32x64", pool(ops.max_pool2d), "kernel_size stride padding"),
    "muon": Case("64x1024", muon),
    "newton_schulz": Case("64x1024", newton_schulz),
    "pad": Case("8x32x32x64", lambda make, o: [
        both_ways(lambda x, mode=mode: ops.pad2d(x, o.padding or 1, mode), make(*o.shape))
        for mode in MODES], "padding"),
    "sgd": Case("64x1024", optimiser(
        *(functools.partial(optim.SGD, lr=0.1, momentum=m, master=master)
          for m in (0, 0.9) for master in (False, True)))),
    "shuffle": Case("50000", lambda make, o: epoch_order(fake_cupy.zeros(*o.shape), 1, 2)),
    "softmax_cross_entropy": Case("128x1000", softmax_cross_entropy),
}
DEFAULTS = dict(dtype="float32", kernel_size=2, stride=None, padding=0, dilation=1,
                filters=64, pool=False)


def record(op: str, shape: tuple[int, ...], **options: Any) -> list[Launch]:
    """Run an op's kernels on arrays of this shape; what they asked of memory."""
    o = argparse.Namespace(**DEFAULTS | options | dict(shape=shape))
    o.dtype = backend.float_dtype(o.dtype)
    rng = np.random.default_rng(0)

    def make(*shape):
        return fake_cupy.asarray(rng.standard_normal(shape).astype(o.dtype))

    with recording() as launches:
        CASES[op].run(make, o)
    return launches


# -- the table -----------------------------------------------------------------------------


def size(n: float) -> str:
    """Bytes, in two or three digits.

    >>> size(96), size(2560), size(2 << 20)
    ('96 B', '2.50 KB', '2.00 MB')
    """
    scale = sum(n >= 1000 * 1024**i for i in range(3))
    n /= 1024**scale
    digits = 0 if n >= 100 or not scale else 1 if n >= 10 else 2
    return f"{n:.{digits}f} {('B', 'KB', 'MB', 'GB')[scale]}"


def row(launch: Launch, array: str, some: list[Access]) -> str:
    """One line of the table: accesses to one array, added up."""
    requests, lanes, distinct, sectors, least, passes, groups = (
        sum(getattr(a, field) for a in some) for field in (
            "requests", "lanes", "distinct", "sectors", "least", "passes", "groups"))
    kind, = {a.kind for a in some}
    start = f"  {array:<14.14} {kind:<6}"
    counts = f"{requests:>10,} {lanes / requests:>5.1f}"
    if array not in launch.arrays:
        return (f"{start} {'':>9} {'':>8} {counts} {passes / requests:>8.2f} "
                f"{groups / requests:>6.2f}  passes")
    its = launch.arrays[array]
    touched = its.written if kind == "write" else its.read
    low, high = size(SECTOR * touched.sectors), size(SECTOR * sectors)
    return (f"{start} {size(touched.bytes):>9} {distinct / touched.bytes:>6.4g} x {counts} "
            f"{sectors / requests:>8.2f} {least / requests:>6.2f}  "
            f"{low if low == high else f'{low} .. {high}'}")


def table(launches: Iterable[Launch], lines: bool = False) -> str:
    """All launches: a line per array and kind of access, or per access in the source."""
    head = (f"  {'':<14} {'':<6} {'touched':>9} {'asked':>8} {'requests':>10} {'lanes':>5} "
            f"{'sectors':>8} {'least':>6}  memory")
    parts = []
    for launch in launches:
        text = [f"{launch.kernel}   grid {launch.grid}, block {launch.block}", head]
        for array in [*launch.arrays, "shared"]:
            for kind in ("read", "write", "atomic"):
                some = launch.of(array, kind)
                if lines:
                    for a in some:
                        text += [row(launch, array, [a]), f"      {a.text[:90]}"]
                elif some:
                    text.append(row(launch, array, some))
        parts.append("\n".join(text))
    return "\n\n".join(dict.fromkeys(parts))  # what was launched twice, once


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="What the kernels ask of memory, counted on the CPU.", epilog=LEGEND,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?", choices=sorted(CASES), metavar="op",
                        help=", ".join(sorted(CASES)) + "; all of them if none is named")
    parser.add_argument("--shape", type=lambda s: tuple(map(int, s.split("x"))),
                        help="of the input, such as 8x32x32x64")
    parser.add_argument("--dtype", choices=backend.FLOATS)
    for name in ("kernel-size", "stride", "padding", "dilation"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--lines", action="store_true", help="every access with its line of source")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    lines, op, shape = given.pop("lines"), given.pop("op", None), given.pop("shape", None)
    if shape and not op:
        parser.error("--shape is for one op: name it")
    for name in [op] if op else CASES:
        case = CASES[name]
        unknown = set(given) - {"dtype", *case.takes.split()}
        if op and unknown:
            parser.error(f"{op} takes no --{' --'.join(sorted(unknown))}".replace("_", "-"))
        sizes = shape or tuple(map(int, case.shape.split("x")))
        options = {k: v for k, v in given.items() if k not in unknown}
        print(f"\n-- {name}: {'x'.join(map(str, sizes))}",
              *(f"{k.replace('_', ' ')} {v}" for k, v in (DEFAULTS | options).items()
                if v is not None and k in ("dtype", *case.takes.split())), sep=", ")
        print(table(record(name, sizes, **options), lines))
    print(LEGEND)


if __name__ == "__main__":
    backend._cupy = fake_cupy
    main()
