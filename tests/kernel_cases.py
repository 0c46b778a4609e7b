"""Every kernel on small arrays, through the op that owns it: what test_races runs in every order.

A case is f(xp, make): it draws data with make(*shape), computes with xp, numpy or cupy, and gives
the list of arrays that come out: results, gradients, what was updated in place. Shapes leave
remainders everywhere: more than one block, channels that fill no warp, sizes that fill no pack.
"""

import numpy as np

import gpuconv as gpc
from gpuconv import backend, ops, optim
from gpuconv.data import Augment, augment_batch
from gpuconv.nn import Module
from gpuconv.ops.im2col import im2col
from gpuconv.train import step

IMAGES = 2, 9, 7, 5  # N, H, W, C
PACKS = 2, 5, 7, 8   # channels that fill packs of 16 bytes


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


def cross_entropy(N, K, reduction):
    def run(xp, make):
        labels = xp.asarray(np.arange(N) * 5 % K)
        return both(lambda z: ops.softmax_cross_entropy(
            z, labels, label_smoothing=0.1, reduction=reduction), make(N, K))

    return run


def augment(**how):
    def run(xp, make):
        pixels = np.random.default_rng(3).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
        index = xp.asarray(np.int32([3, 0, 0, 2, 1]))
        return [augment_batch(xp.asarray(pixels), index, mean=(0.5, 0.4, 0.3), std=(0.2,) * 3,
                              key=(1, 2), epoch=1, augment=Augment(**how) if how else None)]

    return run


def clock(scaled):
    """Two steps of a clock, in the second epoch; its last batch is smaller."""
    def run(xp, make):
        time, order = xp.asarray(np.int64([1, 1, 4])), xp.asarray(np.arange(11, dtype=np.int32)[::-1])
        order, loss, right = order.copy(), make(), xp.asarray(np.int64(3))
        scale = xp.asarray(np.float32([1024])) if scaled else None
        factors, control = xp.asarray(np.arange(9.0)), xp.asarray(np.array([1, 0.5, 1, 0]))
        records, index = xp.asarray(np.zeros((3, 4))), []
        for n in (4, 3):
            if xp is not np:
                loss = loss.astype(backend.accumulator(loss.dtype))
                index.append(step.rows(time, order, n, 4))
                step.tick(time, loss, right, scale, factors, control, records)
                continue
            index.append(order[time[1] * 4 : time[1] * 4 + n])
            records[time[1]] = loss, right, control[2], 1024 if scaled else 1
            control[0] = factors[time[2]]
            time[1:] += 1
        return [*index, time, control, records]

    return run


class Weights(Module):
    """Parameters of sizes that fill no pack."""

    def __init__(self, make):
        super().__init__()
        self.w, self.b = gpc.Parameter(make(41, 13)), gpc.Parameter(make(7))


def training(build):
    """Two steps: gradients clipped, parameters updated, an average kept."""
    def run(xp, make):
        weights = Weights(make)
        optimiser, average = build(list(weights.parameters())), optim.EMA(weights)
        norms = []
        for _ in range(2):
            optimiser.zero_grad()
            gpc.ops.sum((weights.w * make(41, 13)) + ops.mean(weights.b * make(7))).backward()
            norms.append(optim.clip_grad_norm(optimiser, 0.5))
            optimiser.step()
            average.update()
        return [*norms, *(p.data for p in weights.parameters()), *average.state_dict().values()]

    return run


CASES = {
    "relu": elementwise(ops.relu), "gelu": elementwise(ops.gelu),
    "sigmoid": elementwise(ops.sigmoid), "tanh": elementwise(ops.tanh),
    "dropout": elementwise(lambda x: ops.dropout(x, 0.3, key=(1, 2), step=3)),
    "bias_relu": lambda xp, make: both(ops.bias_relu, make(150, 37), make(37)),
    "bias_relu in packs": lambda xp, make: both(ops.bias_relu, make(33, 8), make(8)),
    "im2col": lambda xp, make: both(
        lambda x: im2col(x, (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2)), make(*IMAGES)),
    "conv2d": lambda xp, make: both(lambda x, w, b: ops.conv2d(x, w, b, stride=2, padding=1),
                                    make(*IMAGES), make(4, 3, 3, 5), make(4)),
    "max_pool2d": pool(ops.max_pool2d, kernel_size=3, stride=2, padding=1),
    "max_pool2d dilated": pool(ops.max_pool2d, kernel_size=2, stride=1, dilation=2, ceil_mode=True),
    "max_pool2d side by side": pool(ops.max_pool2d, kernel_size=2),
    "max_pool2d in packs": pool(ops.max_pool2d, PACKS, kernel_size=2, padding=((1, 0), (0, 1))),
    "avg_pool2d in packs": pool(ops.avg_pool2d, PACKS, kernel_size=3, stride=1, padding=1),
    "avg_pool2d": pool(ops.avg_pool2d, kernel_size=3, stride=2, padding=1),
    "avg_pool2d ceil": pool(ops.avg_pool2d, kernel_size=(2, 3), padding=(0, 1), ceil_mode=True,
                            count_include_pad=False),
    "batch_norm": batch_norm(True), "batch_norm inference": batch_norm(False),
    "batch_norm of few channels": batch_norm(True, 3, 600),
    "cross_entropy": cross_entropy(19, 10, "mean"),
    "cross_entropy of many classes": cross_entropy(3, 1100, "none"),
    "augment": augment(), "augment reflect": augment(padding_mode="reflect"),
    "clock": clock(False), "clock of a scaled loss": clock(True),
    "sgd": training(lambda ps: optim.SGD(ps, 0.1, weight_decay=1e-3)),
    "sgd nesterov": training(lambda ps: optim.SGD(ps, 0.1, momentum=0.9, nesterov=True)),
    "adamw": training(lambda ps: optim.AdamW(ps, 0.01)),
}


def run(case, xp, dtype="float32"):
    """The case's results as NumPy arrays, on xp; its data depend on its name alone."""
    rng = np.random.default_rng(list(case.encode()))

    def make(*shape):
        return xp.asarray(rng.standard_normal(shape).astype(gpc.backend.float_dtype(dtype)))

    return [a.get() if hasattr(a, "get") else np.asarray(a) for a in CASES[case](xp, make)]
