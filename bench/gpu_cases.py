"""A short run of every kernel: what is held to the same bits, captured, and watched by sanitizers.

``python bench/gpu_cases.py`` runs each case once, on small arrays that all live in allocations of
their own, so that compute-sanitizer sees the end of each. tests/test_gpu_day.py demands that the
cases together launch every kernel of every source.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

if __name__ == "__main__":  # in a checkout, from anywhere
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

from gpuconv import Parameter, Tensor, backend, nn, ops, optim, undo
from gpuconv.accumulate import accumulate
from gpuconv.data import Augment, augment_batch
from gpuconv.data.loader import epoch_order, fetch_batch, gather_batch
from gpuconv.ops.elementwise import FUNCTIONS
from gpuconv.ops.loss import count_correct
from gpuconv.ops.norm import BatchNorm
from gpuconv.ops.norm.batch_norm import SLICES
from gpuconv.train.step_state import advance_step_state, halt_if_not_finite

Arrays = list[Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work on the GPU. ``run()`` starts from the same arrays each time."""

    name: str
    run: Callable[[], Arrays]  # every array that it computes


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the arrays: (N, H, W, C), K filters, classes."""

    N: int
    H: int
    W: int
    C: int
    K: int
    classes: int


TINY = Size(3, 7, 5, 3, 4, 40)             # more classes than a warp has threads
LARGE = Size(64, 32, 32, 32, 64, 1000)


def cases(size: Size, dtype: str) -> Iterator[Case]:
    """All cases, in one dtype."""
    yield from _ops(size, backend.float_dtype(dtype))
    yield from _updates(size, dtype)
    yield _accumulated(size, dtype)
    yield _augment(size, dtype)
    yield from _captured(size, backend.float_dtype(dtype))


# -- ops: value, then all gradients ----------------------------------------------------------


def _ops(size: Size, dtype: np.dtype) -> Iterator[Case]:
    N, H, W, C, K = size.N, size.H, size.W, size.C, size.K
    rng = np.random.default_rng(0)

    def gpu(*shape: int) -> Any:
        return backend.to_gpu(rng.standard_normal(shape, "float32").astype(dtype))

    def case(name: str, f: Callable[..., Any], *arrays: Any) -> Case:
        gradients: dict[tuple[int, ...], Any] = {}

        def run() -> Arrays:
            tensors = [Tensor(a, requires_grad=True) for a in arrays]
            y = f(*tensors)
            if y.shape not in gradients:
                gradients[y.shape] = backend.to_gpu(
                    np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype))
            y.backward(gradients[y.shape])
            return [y.data, *(t.grad for t in tensors)]

        return Case(name, run)

    x, vector, many = gpu(N, H, W, C), gpu(C), gpu(2 * SLICES + 2, C)
    for name in FUNCTIONS:
        yield case(name, getattr(ops, name), x)
    yield case("bias_relu", ops.bias_relu, x, vector)
    yield case("arithmetic, broadcast", lambda a, b: a * b + a / (b * b + 1) - b, x, vector)
    yield case("sum and mean", lambda a: ops.sum(a, axis=(1, 2)) + ops.mean(a, axis=(1, 2)), x)
    yield case("max", lambda a: ops.max(a, axis=(1, 2)), x)
    yield case("max_pool 2x2", lambda a: ops.max_pool2d(a, 2), x)
    yield case("max_pool 3x3 stride 2", lambda a: ops.max_pool2d(a, 3, 2, 1), x)
    yield case("avg_pool 2x2", lambda a: ops.avg_pool2d(a, 2), x)
    yield case("avg_pool 3x3 stride 2", lambda a: ops.avg_pool2d(a, 3, 2, 1), x)
    yield case("global_avg_pool", ops.global_avg_pool2d, x)
    yield case("global_max_pool", ops.global_max_pool2d, x)
    yield case("pad reflect", lambda a: ops.pad2d(a, 2, "reflect"), x)
    yield case("dropout", lambda a: ops.dropout(a, 0.5, key=(1, 2), step=3), x)
    for training in (True, False):
        yield case(f"batch_norm {'training' if training else 'in use'}",
                   lambda a, g, b, training=training: ops.batch_norm(
                       a, g, b, *_statistics(C, dtype), training=training),
                   x, vector, gpu(C))
    yield Case("batch_norm of moments", lambda: _of_moments(many))
    yield case("im2col", lambda a: ops.im2col(a, 3, padding=1), x)
    yield case("col2im", lambda a: ops.col2im(a, x.shape, 3, padding=1), gpu(N, H, W, 9 * C))
    yield case("conv 3x3", lambda a, w, b: ops.conv2d(a, w, b, padding=1),
               x, gpu(K, 3, 3, C), gpu(K))
    yield case("conv 5x5 stride 2", lambda a, w: ops.conv2d(a, w, stride=2, padding=2),
               x, gpu(K, 5, 5, C))
    yield case("conv 3x3 per channel", lambda a, w: ops.conv2d(a, w, padding=1, groups=C),
               x, gpu(C, 3, 3, 1))
    yield case("conv 1x1 in groups", lambda a, w: ops.conv2d(a, w, groups=2),
               gpu(N, H, W, 16), gpu(18, 1, 1, 8))
    yield case("conv 3x3 stride 2, residual, gelu", lambda a, w, b, more: ops.conv2d(
        a, w, b, stride=2, padding=1, activation="gelu", residual=more, precision="tf32"),
               x, gpu(K, 3, 3, C), gpu(K), gpu(N, (H + 1) // 2, (W + 1) // 2, K))
    yield case("conv_max_pool", lambda a, w, b: ops.conv_max_pool(
        a, w, b, padding=1, activation="relu", precision="tf32"), x, gpu(K, 3, 3, C), gpu(K))
    for pool in (False, True):
        yield case(f"conv_batch_norm{', pool' * pool}", lambda a, w, g, b, pool=pool:
                   ops.conv_batch_norm(a, w, g, b, *_statistics(K, dtype), padding=1, pool=pool,
                                       training=True, activation="relu", precision="tf32"),
                   x, gpu(K, 3, 3, C), gpu(K), gpu(K))
    yield case("linear", ops.linear, gpu(N, C * W), gpu(K, C * W), gpu(K))
    yield case("matmul", ops.matmul, gpu(N, K, C), gpu(N, C, W))
    yield case("matmul, long sums", ops.matmul, gpu(K, 5000), gpu(5000, C))
    yield case("log_softmax", ops.log_softmax, gpu(N, size.classes))
    for classes in (5, size.classes):  # a warp a row, a block a row
        labels = backend.to_gpu(rng.integers(0, classes, N * H).astype(np.int32))
        yield case(f"softmax_cross_entropy of {classes}",
                   lambda a, labels=labels: ops.softmax_cross_entropy(
                       a, labels, label_smoothing=0.1), gpu(N * H, classes))


def _of_moments(x: Any) -> Arrays:
    """Normalised by moments of its pairs of rows, as a convolution's epilogue leaves them."""
    wide = backend.accumulator(x.dtype)
    op = BatchNorm(*_statistics(x.shape[1], x.dtype), True, 0.1, 1e-5)
    op.needs, running = (False,) * 3, op.running
    rows = x.astype(wide)
    half = (rows[::2] - rows[1::2]) / 2
    moments = rows[1::2] + half, 2 * half * half
    return [op.forward_gpu(x, None, None, moments=moments, moment_rows=2), *running]


def _statistics(C: int, dtype: np.dtype) -> tuple[Any, Any]:
    cp, wide = backend.cupy(), backend.accumulator(dtype)
    return cp.zeros(C, wide), cp.ones(C, wide)


# -- what has no gradient --------------------------------------------------------------------


def _updates(size: Size, dtype: str) -> Iterator[Case]:
    """Each optimiser, with clipping and averages, three steps."""
    rng = np.random.default_rng(2)
    shapes = (size.C,), (size.K, 3, 3, size.C), (size.classes, size.K)
    start = [rng.standard_normal(shape, "float32") for shape in shapes]
    slopes = [backend.to_gpu(rng.standard_normal(shape, "float32").astype(
        backend.float_dtype(dtype))) for shape in shapes]

    class Weights(nn.Module):
        def __init__(self):
            for name, a in zip("abc", start, strict=True):
                setattr(self, name, Parameter(a))
            self.register_buffer("count", np.arange(3))

    def case(name: str, make: Callable[..., optim.Optimizer], scaled: bool = False) -> Case:
        def run() -> Arrays:
            model = Weights().to("cuda", dtype)
            optimizer, ema = make(model.parameters()), optim.EMA(model, 0.5)
            norms, scaler = [], optim.LossScale(optimizer, 2.0, interval=1)
            for _ in range(3):
                for p, g in zip(model.parameters(), slopes, strict=True):
                    p.grad[...] = g
                norms.append(optim.clip_grad_norm(optimizer, 1.0))
                if scaled:
                    scaler.check()
                optimizer.step()
                ema.update(optimizer if optimizer.master else None)
            return [*(p.data for p in model.parameters()), *ema.averages.values(), *norms]

        return Case(name, run)

    yield case("sgd", lambda p: optim.SGD(p, lr=0.1))
    yield case("sgd momentum", lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
    yield case("sgd nesterov", lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True))
    yield case("adam", lambda p: optim.Adam(p, lr=0.1, weight_decay=0.01))
    yield case("adamw", lambda p: optim.AdamW(p, lr=0.1))
    yield case("muon", lambda ps: optim.Muon([dict(params=[p], orthogonal=p.ndim > 1) for p in ps],
                                             lr=0.1))
    yield case("sgd, loss scale, master weights",
               lambda p: optim.SGD(p, lr=0.1, momentum=0.9, master=dtype == "float16"), True)


def _accumulated(size: Size, dtype: str) -> Case:
    """What is added to the gradients of leaves: of lengths that fill no pack, in two launches."""
    rng = np.random.default_rng(4)
    ys, xs = ([backend.to_gpu(rng.standard_normal(size.C * n + 1).astype(
        backend.float_dtype(dtype))) for n in range(9)] for _ in "yx")

    def run() -> Arrays:
        sums = [y.copy() for y in ys]
        accumulate(zip(sums, xs, strict=True))
        return sums

    return Case("accumulate", run)


def _augment(size: Size, dtype: str) -> Case:
    rng = np.random.default_rng(3)
    images = backend.to_gpu(rng.integers(0, 256, (size.N, size.H, size.W, size.C), np.uint8))
    index = backend.to_gpu(rng.permutation(size.N).astype(np.int32))
    half = np.full(size.C, 0.5)

    def run() -> Arrays:
        return [augment_batch(images, index, mean=half, std=half, dtype=dtype, key=(4, 5), epoch=6,
                              augment=Augment(pad=2, padding_mode=mode))
                for mode in ("zeros", "reflect")]

    return Case("augment", run)


# -- what a captured step is made of, besides ------------------------------------------------


def _captured(size: Size, dtype: np.dtype) -> Iterator[Case]:
    """Batches fetched by the step state, correct answers counted, the step state advanced."""
    cp, rng, N = backend.cupy(), np.random.default_rng(5), size.N
    pixels = backend.to_gpu(rng.integers(0, 256, (N, size.H, size.W, size.C), np.uint8))
    floats = backend.to_gpu(rng.standard_normal(pixels.shape, "float32").astype(dtype))
    labels = backend.to_gpu(rng.integers(0, size.classes, N).astype(np.int32))
    order = backend.to_gpu(rng.permutation(N).astype(np.int32))
    begin, half = backend.to_gpu(np.int64([1, 1, 3])), np.full(size.C, 0.5)
    logits = backend.to_gpu(rng.standard_normal((N, size.classes), "float32").astype(dtype))

    def fetched(images: Any, function: Callable[..., None], **how: Any) -> Callable[[], Arrays]:
        def run() -> Arrays:
            x, chosen = cp.empty((N - N // 2, *images.shape[1:]), dtype), cp.empty(N - N // 2,
                                                                                   np.int32)
            function(images, labels, order, begin, x, chosen, batch_size=N // 2, **how)
            return [x, chosen]

        return run

    def advanced() -> Arrays:
        wide = backend.accumulator(dtype)
        step_state, loss, correct = begin.copy(), cp.ones((), wide), cp.zeros((), np.int64)
        count_correct(logits, labels, correct)
        control, results = cp.ones(4, np.float64), cp.zeros((4, 4), np.float64)
        for scale in (None, cp.ones(1, np.float32)):
            advance_step_state(step_state, loss, correct, scale, cp.ones(9, np.float64), control,
                               results)
        return [step_state, control, results, correct]

    def halted() -> Arrays:
        control = cp.ones(8, np.float64)
        halt_if_not_finite(cp.full((), np.nan, backend.accumulator(dtype)), control, False)
        return [control]

    def put_back() -> Arrays:
        pairs = [(cp.zeros_like(a), copy) for a, copy in undo.copied([floats, pixels])]
        undo.put_back(pairs, cp.ones((), np.float64))
        return [a for a, _ in pairs]

    yield Case("fetch", fetched(pixels, fetch_batch, mean=half, std=half, key=(4, 5),
                                augment=Augment(pad=2)))
    yield Case("gather", fetched(floats, gather_batch))
    yield Case("shuffle", lambda: [epoch_order(cp.zeros(size.N * 100), 6, 7)])
    yield Case("step state", advanced)
    yield Case("halt", halted)
    yield Case("copy", put_back)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every kernel once, on small arrays.")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, as the tests do")
    if parser.parse_args().stand_in:
        import gpu_stand_in
        gpu_stand_in.install()
    cp = backend.cupy()
    if hasattr(cp.cuda, "set_allocator"):
        cp.cuda.set_allocator(None)  # no pool: the next array is not behind the end of this one
    done = [[a.get() for a in case.run()] for dtype in ("float32", "float16")
            for case in cases(TINY, dtype)]
    print(f"{len(done)} cases", flush=True)


if __name__ == "__main__":
    main()
