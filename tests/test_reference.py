"""gpuconv.reference: each definition against loops that follow the formula, and its gradient.

The loops stand in this file alone. They see one output at a time, in float64.
"""

import functools
import inspect
import math
import operator

import numpy as np
import pytest

from check import close, elementwise_of_torch, host
from gpuconv import ops, random, reference

NO_OPS = {"load_table", "recompute", "tuned"}  # what gpuconv.ops exports besides ops
CONVOLUTIONS = {  # id: x, w, options
    "same": ((2, 6, 6, 3), (4, 3, 3, 3), dict(padding=1)),
    "every axis different": ((2, 7, 9, 2), (3, 2, 3, 2),
                             dict(stride=(2, 1), padding=((1, 0), (0, 2)))),
    "dilated and grouped": ((1, 9, 8, 4), (6, 3, 3, 2), dict(dilation=(2, 3), padding=2, groups=2)),
    "depthwise": ((2, 6, 7, 4), (8, 3, 2, 1), dict(groups=4, stride=(1, 2), padding=1)),
    "1x1": ((2, 4, 5, 3), (5, 1, 1, 3), {}),
    "covers the image": ((2, 5, 6, 2), (7, 5, 6, 2), {}),
    "gaps between windows": ((2, 5, 5, 2), (2, 2, 2, 2), dict(stride=3)),
    "padding beyond the filter": ((2, 4, 4, 2), (2, 2, 2, 2), dict(padding=3)),
    "taps beyond the image": ((1, 2, 3, 2), (2, 3, 3, 2), dict(padding=(3, 5), dilation=(3, 4))),
}
MAXIMA = {  # id: (H, W), options
    "halving": ((8, 8), (2,)),
    "overlapping": ((9, 7), ((3, 2), (1, 2), ((0, 1), (1, 0)))),
    "every axis different": ((7, 9), ((2, 3), (3, 1), (1, 0))),
    "dilated": ((9, 15), (6, (1, 2), ((3, 1), (3, 2)), (2, 3))),
    "ceil drops what starts in the padding": ((7, 6), (2, 2, 1, 1, True)),
    "ceil hangs over": ((6, 8), (3, 2, 0, 1, True)),
}
NO_PIXEL = {"no pixel in a window": ((1, 3), (2, 1, 1, 2))}
MEANS = {  # id: (H, W), options
    "halving": ((8, 8), (2,)),
    "overlapping": ((9, 7), (3, 2, 1)),
    "padding does not count": ((9, 7), (3, 2, 1, False, False)),
    "every axis different": ((7, 9), ((2, 3), (3, 1), (1, 0))),
    "one side, ceil": ((7, 9), (3, (2, 3), ((0, 1), (1, 0)), True)),
    "ceil, padding does not count": ((6, 6), (3, 2, 1, True, False)),
    "ceil beyond the image": ((1, 1), (2, 2, 0, True)),
}


MODES = dict(zeros="constant", reflect="reflect", replicate="edge", circular="wrap")  # NumPy's
ACTIVATIONS = {None: lambda v: v, "relu": lambda v: max(v, 0.0),
               "gelu": lambda v: v * math.erfc(-v / math.sqrt(2)) / 2,
               "sigmoid": lambda v: 1 / (1 + math.exp(-v))}


def of_torch(name):
    """PyTorch's activation of this name, of a number; the test is skipped without PyTorch."""
    return lambda v: float(elementwise_of_torch(name)(pytest.importorskip("torch").tensor(
        v, dtype=pytest.importorskip("torch").float64)))


# -- the loops -----------------------------------------------------------------------------


def four(padding):
    """(top, bottom, left, right)."""
    if np.ndim(padding) == 2:
        return *padding[0], *padding[1]
    height, width = np.broadcast_to(padding, 2).tolist()
    return height, height, width, width


def outputs(image, size, stride, padding, dilation=1, ceil_mode=False):
    """Number of positions (P, Q) whose window is inside the padded image, counted."""
    pads, found = four(padding), []
    for axis, n in enumerate(image):
        step, apart, taps = (np.broadcast_to(v, 2)[axis] for v in (stride, dilation, size))
        near, far = pads[2 * axis:2 * axis + 2]
        room, last = n + near + far, apart * (taps - 1)
        count = sum(p * step + last < room for p in range(room))
        if ceil_mode and (count - 1) * step + last < room - 1 and count * step < n + near:
            count += 1  # something is left over, and the window begins before the far padding
        found.append(count)
    return tuple(found)


def pixel(p, q, r, s, stride, padding, dilation):
    """(h, w) that tap (r, s) meets at position (p, q)."""
    (SH, SW), (DH, DW) = (np.broadcast_to(v, 2) for v in (stride, dilation))
    top, _, left, _ = four(padding)
    return int(p * SH - top + r * DH), int(q * SW - left + s * DW)


def conv2d(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1):
    (N, H, W, _), (K, R, S, CG) = x.shape, w.shape
    y = np.zeros((N, *outputs((H, W), (R, S), stride, padding, dilation), K))
    for n, p, q, k in np.ndindex(y.shape):
        y[n, p, q, k] = 0 if b is None else b[k]
        for r, s, c in np.ndindex(R, S, CG):
            i, j = pixel(p, q, r, s, stride, padding, dilation)
            if 0 <= i < H and 0 <= j < W:
                y[n, p, q, k] += x[n, i, j, k // (K // groups) * CG + c] * w[k, r, s, c]
    return y


def conv2d_backward(gy, x, w, b, *, stride=1, padding=0, dilation=1, groups=1):
    (_, H, W, _), (K, R, S, CG) = x.shape, w.shape
    gx, gw = np.zeros(x.shape), np.zeros(w.shape)
    for n, p, q, k in np.ndindex(gy.shape):
        for r, s, c in np.ndindex(R, S, CG):
            i, j = pixel(p, q, r, s, stride, padding, dilation)
            if 0 <= i < H and 0 <= j < W:
                at = n, i, j, k // (K // groups) * CG + c
                gx[at] += gy[n, p, q, k] * w[k, r, s, c]
                gw[k, r, s, c] += gy[n, p, q, k] * x[at]
    return gx, gw, np.array([gy[..., k].sum() for k in range(K)])


def im2col(x, size, stride=1, padding=0, dilation=1):
    (N, H, W, C), (R, S) = x.shape, np.broadcast_to(size, 2)
    col = np.zeros((N, *outputs((H, W), size, stride, padding, dilation), R * S * C))
    for n, p, q, r, s, c in np.ndindex(*col.shape[:3], R, S, C):
        i, j = pixel(p, q, r, s, stride, padding, dilation)
        if 0 <= i < H and 0 <= j < W:
            col[n, p, q, (r * S + s) * C + c] = x[n, i, j, c]
    return col


def col2im(col, shape, size, stride=1, padding=0, dilation=1):
    (_, H, W, C), (R, S), x = shape, np.broadcast_to(size, 2), np.zeros(shape)
    for n, p, q, r, s, c in np.ndindex(*col.shape[:3], R, S, C):
        i, j = pixel(p, q, r, s, stride, padding, dilation)
        if 0 <= i < H and 0 <= j < W:
            x[n, i, j, c] += col[n, p, q, (r * S + s) * C + c]
    return x


def pad2d(x, padding, mode):
    return np.pad(x, ((0, 0), *padding, (0, 0)), MODES[mode])


def windows(x, size, stride, padding, dilation, ceil_mode):
    """((n, p, q, c), the pixels of x in that window) of each output; in scan order."""
    (N, H, W, C), (R, S) = x.shape, np.broadcast_to(size, 2)
    stride = size if stride is None else stride
    P, Q = outputs((H, W), size, stride, padding, dilation, ceil_mode)
    for n, p, q, c in np.ndindex(N, P, Q, C):
        pixels = [pixel(p, q, r, s, stride, padding, dilation) for r, s in np.ndindex(R, S)]
        yield (n, p, q, c), [(n, i, j, c) for i, j in pixels if 0 <= i < H and 0 <= j < W], pixels


def max_pool2d(x, size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """y, and where each maximum sits."""
    found = {}
    for at, inside, _ in windows(x, size, stride, padding, dilation, ceil_mode):
        found[at] = max(inside, key=lambda at: (np.isnan(x[at]), x[at]), default=None)
    shape = np.add([*found][-1], 1)
    y, indices = np.full(shape, -np.inf), np.full(shape, -1, np.int64)
    for at, first in found.items():
        if first is not None:
            y[at], indices[at] = x[first], first[1] * x.shape[2] + first[2]
    return y, indices


def avg_pool2d(x, size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    found, (_, H, W, _) = {}, x.shape
    _, bottom, _, right = four(padding)
    for at, inside, pixels in windows(x, size, stride, padding, 1, ceil_mode):
        counted = sum(i < H + bottom and j < W + right for i, j in pixels)
        found[at] = sum(x[i] for i in inside) / (counted if count_include_pad else len(inside))
    return np.array([*found.values()]).reshape(np.add([*found][-1], 1))


def first_maximum(values):
    """Index of the largest number of a list, NaN being the largest."""
    return max(range(len(values)), key=lambda i: (np.isnan(values[i]), values[i], -i))


def channel_by_channel(f, x, *vectors):
    """Columns f(x[..., c], a number of each vector), put together."""
    return np.stack([f(x[..., c], *(v[c] for v in vectors)) for c in range(x.shape[-1])], -1)


def batch_norm(x, gamma, beta, mean, var, *, training, eps=1e-5):
    def normalise(v, g, b, m, s):
        if training:
            m = math.fsum(v.ravel()) / v.size
            s = math.fsum((v.ravel() - m) ** 2) / v.size
        return g * (v - m) / math.sqrt(s + eps) + b
    return channel_by_channel(normalise, x, gamma, beta, mean, var)


def softmax(row):
    e = [math.exp(v) for v in row]
    return np.array([v / math.fsum(e) for v in e])


def cross_entropy(z, labels, *, label_smoothing=0.0, reduction="mean"):
    K, losses = z.shape[1], []
    for row, label in zip(z, labels, strict=True):
        wanted = [label_smoothing / K + (1 - label_smoothing) * (k == label) for k in range(K)]
        losses.append(-math.fsum(t * math.log(p) for t, p in zip(wanted, softmax(row),
                                                                 strict=True) if t))
    return np.array(losses) if reduction == "none" else np.float64(
        sum(losses) / (len(losses) if reduction == "mean" else 1))


def linear(x, w, b=None):
    y = np.zeros((*x.shape[:-1], len(w)))
    for at in np.ndindex(y.shape):
        y[at] = math.fsum(x[*at[:-1], c] * w[at[-1], c] for c in range(w.shape[1]))
    return y if b is None else y + b


def matmul(a, b):
    left, right = np.atleast_2d(a), b if b.ndim > 1 else b[:, None]
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left, right = (np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (left, right))
    y = np.zeros((*batch, left.shape[-2], right.shape[-1]))
    for *at, n, k in np.ndindex(y.shape):
        y[*at, n, k] = sum(left[*at, n, c] * right[*at, c, k] for c in range(a.shape[-1]))
    gone = [axis for axis, v in ((-2, a), (-1, b)) if v.ndim == 1]
    return y.squeeze(tuple(gone))


def dropout(x, p, key, step):
    words = random.words(x.size, key, step).reshape(x.shape)
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        y[at] = x[at] / (1 - p) if words[at] >= p * 2**32 else 0
    return y


def reduced(f, x, axis, keepdims):
    """F of the numbers along some axes."""
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in np.atleast_1d(axis)]
    y = np.zeros([1 if a in axes else n for a, n in enumerate(x.shape)])
    for at in np.ndindex(y.shape):
        y[at] = f(x[tuple(slice(None) if a in axes else i for a, i in enumerate(at))].ravel())
    return y if keepdims else y.squeeze(tuple(axes))


def each(f):
    """F of each element, or of each pair of elements."""
    return lambda *arrays: np.vectorize(f, otypes=[float])(*arrays)


# -- calls ---------------------------------------------------------------------------------
# (name, arguments, options, loops): small calls with odd sizes; arrays are float64


def normal(*shape):
    """Random numbers that depend on the shape alone."""
    return np.random.default_rng(list(shape)).standard_normal(shape)


def window_of(w, options):
    """Size, stride, padding and dilation of a convolution, for im2col."""
    return w[1:3], *(options.get(n, default) for n, default in
                     (("stride", 1), ("padding", 0), ("dilation", 1)))


def conv_calls():
    for x, w, options in CONVOLUTIONS.values():
        yield "conv2d", (normal(*x), normal(*w), normal(w[0])), options, conv2d
        yield "im2col", (normal(*x), *window_of(w, options)), {}, im2col
        yield "col2im", (normal(*im2col(np.zeros(x), *window_of(w, options)).shape), x,
                         *window_of(w, options)), {}, col2im
    for mode in MODES:
        yield "conv2d", (normal(2, 5, 6, 2), normal(3, 3, 2, 2), normal(3)), dict(
            padding=((2, 1), (0, 2)), stride=(2, 1), padding_mode=mode), (
            lambda x, w, b, *, padding, stride, padding_mode: conv2d(
                pad2d(x, padding, padding_mode), w, b, stride=stride))
        yield "pad2d", (normal(2, 4, 5, 3), ((0, 3), (2, 1)), mode), {}, pad2d


def pool_calls():
    for image, options in MAXIMA.values():
        different = np.random.default_rng(5).permutation(np.arange(2.0 * math.prod(image) * 3))
        yield "max_pool2d", (different.reshape(2, *image, 3), *options), {}, (
            lambda *args: max_pool2d(*args)[0])
    for image, options in MEANS.values():
        yield "avg_pool2d", (normal(2, *image, 3), *options), {}, avg_pool2d
    yield "global_avg_pool2d", (normal(2, 3, 5, 4),), {}, lambda x: np.array(
        [[math.fsum(x[n, ..., c].ravel()) / 15 for c in range(4)] for n in range(2)])
    yield "global_max_pool2d", (normal(2, 3, 5, 4),), {}, lambda x: np.array(
        [[max(x[n, ..., c].ravel()) for c in range(4)] for n in range(2)])


def elementwise_calls():
    for a, b in (((2, 3, 4), (2, 3, 4)), ((3, 1), (2, 1, 4)), ((2, 3), ())):
        for name, f in dict(add=operator.add, sub=operator.sub, mul=operator.mul,
                            div=operator.truediv).items():
            yield name, (normal(*a), np.asarray(normal(*b) + 3)), {}, each(f)
    for name in ops.elementwise.ACTIVATIONS:
        scalar = ACTIVATIONS.get(name) or getattr(math, name, None) or of_torch(name)
        yield name, (2 * normal(5, 7),), {}, each(scalar)
    for name, f in dict(neg=operator.neg, exp=math.exp).items():
        yield name, (2 * normal(5, 7),), {}, each(f)
    yield "log", (np.exp(normal(5, 7)),), {}, each(math.log)
    yield "dropout", (normal(3, 7), 0.3), dict(key=(5, 6), step=9), dropout


def reduce_calls():
    for axis, keepdims in ((None, False), (1, True), ((0, -1), False)):
        for name, f in dict(sum=math.fsum, max=max, mean=lambda v: math.fsum(v) / len(v)).items():
            yield name, (normal(3, 4, 2), axis, keepdims), {}, functools.partial(reduced, f)
    for axis in (-1, 0):
        for name, f in dict(softmax=softmax, log_softmax=lambda v: np.log(softmax(v))).items():
            yield name, (normal(4, 5), axis), {}, lambda x, a, f=f: np.apply_along_axis(f, a, x)
    for smoothing, reduction in ((0.0, "mean"), (0.125, "sum"), (0.125, "none")):
        yield "softmax_cross_entropy", (3 * normal(4, 5), np.array([0, 4, 2, 2])), dict(
            label_smoothing=smoothing, reduction=reduction), cross_entropy


def matmul_calls():
    for a, b in (((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)),
                 ((2, 1, 3, 4), (5, 4, 2)), ((2, 3, 4), (4,))):
        yield "matmul", (normal(*a), normal(*b)), {}, matmul
    yield "linear", (normal(2, 3, 4), normal(5, 4), normal(5)), {}, linear


def norm_calls():
    for shape in ((6, 3), (3, 2, 5, 4)):
        C = shape[-1]
        vectors = normal(C), normal(1, C)[0], normal(C, 1)[:, 0], normal(C) ** 2 + 0.5
        for training in (True, False):
            yield "batch_norm", (normal(*shape), *vectors), dict(training=training, eps=1e-3), (
                batch_norm)


def shape_calls():
    yield "reshape", (normal(3, 4), 2, -1), {}, lambda x, *_: np.array(
        [[x[i // 4, i % 4] for i in range(6)], [x[i // 4, i % 4] for i in range(6, 12)]])
    yield "flatten", (normal(2, 3, 4),), {}, lambda x: np.array([x[n].ravel() for n in range(2)])
    for axes in ((), (1, -1, 0)):
        yield "transpose", (normal(2, 3, 4), *axes), {}, lambda x, *axes: np.moveaxis(
            x, axes or (2, 1, 0), (0, 1, 2))
    yield "getitem", (normal(5, 6), (slice(None, None, 2), -1)), {}, lambda x, _: np.array(
        [x[0, 5], x[2, 5], x[4, 5]])


def fused_calls():
    x, w = normal(2, 7, 6, 2), normal(3, 3, 2, 2)
    yield "bias_relu", (normal(4, 3), normal(3)), {}, each(lambda v, b: max(v + b, 0.0))
    for activation, f in ACTIVATIONS.items():
        yield "conv_max_pool", (x, w, normal(3)), dict(padding=1, activation=activation), (
            lambda *args, activation, f=f, **how: max_pool2d(each(f)(conv2d(*args, **how)), 2)[0])
        for pool, shape in ((True, (2, 3, 3, 3)), (False, (2, 7, 7, 3))):
            def by_loops(x, w, *vectors, padding, pool, training, residual, f=f, **_):
                z = conv2d(x, w, padding=padding)
                z = max_pool2d(z, 2)[0] if pool else z
                return each(f)(batch_norm(z, *vectors, training=training) + residual)

            yield "conv_batch_norm", (
                x, w, normal(3), normal(1, 3)[0], normal(3) / 2, np.ones(3)), dict(
                padding=1, activation=activation, pool=pool, training=pool,
                residual=normal(*shape)), by_loops


CALLS = [pytest.param(*call, id=f"{call[0]}-{n}") for family in (
    conv_calls, pool_calls, elementwise_calls, reduce_calls, matmul_calls, norm_calls, shape_calls,
    fused_calls) for n, call in enumerate(family())]


def moved(xp, value):
    return xp.asarray(value) if isinstance(value, np.ndarray) else value


def call(xp, name, args, options):
    """Results on the host, of arguments on the device."""
    result = getattr(reference, name)(*(moved(xp, a) for a in args),
                                      **{k: moved(xp, v) for k, v in options.items()})
    return tuple(map(host, result)) if isinstance(result, tuple) else host(result)


@pytest.mark.parametrize("name, args, options, loops", CALLS)
def test_is_what_the_loops_compute(xp, name, args, options, loops):
    got = call(xp, name, [a.copy() if isinstance(a, np.ndarray) else a for a in args], options)
    close(got, np.asarray(loops(*args, **options)), terms=60)


@pytest.mark.parametrize("name, args, options, loops", CALLS)
def test_backward_is_the_slope(xp, rng, name, args, options, loops):
    """Central differences along a random direction, for each array that has a gradient."""
    gy = rng.standard_normal(np.shape(call(np, name, args, options)))
    grads = call(xp, f"{name}_backward", (gy, *args), options)
    grads = grads if isinstance(grads, tuple) else (grads,)
    places = [n for n, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    if "training" in options:
        places = places[:-2]  # all but the running statistics
    places += ["residual"] * ("residual" in options)

    for place, g in zip(places, grads, strict=True):
        given = dict(enumerate(args)) | options

        def f(change, given=given, place=place):
            given = given | {place: given[place] + change}
            return call(np, name, [given[n] for n in range(len(args))],
                        {n: given[n] for n in options})

        assert g.shape == given[place].shape and g.dtype == np.float64
        v = rng.standard_normal(g.shape)
        slope = np.sum(gy * (f(1e-6 * v) - f(-1e-6 * v))) / 2e-6
        assert abs(np.sum(g * v) - slope) <= 1e-7 * (1 + abs(slope) + np.abs(gy).sum())


# -- what differences cannot see -------------------------------------------------------------


@pytest.mark.parametrize("x, w, options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_im2col"])
def test_both_convolutions_are_the_loops(xp, rng, name, x, w, options):
    x, w, b = (rng.standard_normal(shape) for shape in (x, w, w[:1]))
    y = conv2d(x, w, b, **options)
    close(call(xp, name, (x, w, b), options), y, terms=60)
    close(call(xp, name, (x, w), options), conv2d(x, w, **options), terms=60)
    gy = rng.standard_normal(y.shape)
    want = conv2d_backward(gy, x, w, b, **options)
    for got, g in zip(call(xp, f"{name}_backward", (gy, x, w, b), options), want, strict=True):
        close(got, g, terms=200)
    assert getattr(reference, f"{name}_backward")(gy, x, w, **options)[2] is None


@pytest.mark.parametrize("name", ["conv2d", "conv2d_im2col"])
@pytest.mark.parametrize("stride, padding", [(1, ((1, 1), (0, 1))), (2, ((1, 1), (0, 0))),
                                             (3, ((0, 1), (0, 0)))])
def test_same_and_valid(xp, rng, name, stride, padding):
    x, w = rng.standard_normal((1, 5, 6, 2)), rng.standard_normal((3, 3, 2, 2))
    y = call(xp, name, (x, w), dict(stride=stride, padding="same"))
    assert y.shape == (1, -(-5 // stride), -(-6 // stride), 3)
    close(y, conv2d(x, w, stride=stride, padding=padding), terms=12)
    close(call(xp, name, (x, w), dict(stride=stride, padding="valid")),
          conv2d(x, w, stride=stride), terms=12)


@pytest.mark.parametrize("image, options", (MAXIMA | NO_PIXEL).values(), ids=MAXIMA | NO_PIXEL)
@pytest.mark.parametrize("special", [False, True], ids=["ties", "nan-and-inf"])
def test_max_pool_of_ties_nan_and_inf(xp, rng, image, options, special):
    values = dict(a=[np.nan, -np.inf, 0, np.inf], p=[0.1, 0.7, 0.1, 0.1]) if special else dict(
        a=[-1.0, 0.0, 1.0])
    x = rng.choice(size=(2, *image, 3), **values)
    y, indices = max_pool2d(x, *options)
    got = call(xp, "max_pool2d", (x, *options), dict(return_indices=True))
    close(got[0], y)
    close(got[1], indices)
    gy, gx = rng.standard_normal(y.shape), np.zeros(x.shape)
    for n, p, q, c in np.ndindex(y.shape):
        if indices[n, p, q, c] >= 0:
            gx[n, *divmod(indices[n, p, q, c], image[1]), c] += gy[n, p, q, c]
    close(call(xp, "max_pool2d_backward", (gy, x, *options), {}), gx, terms=36)


@pytest.mark.parametrize("name, args", [("max", ((1, 2), False)), ("global_max_pool2d", ())])
def test_the_first_maximum_and_the_first_nan_take_the_gradient(xp, rng, name, args):
    x, gy = rng.choice([-1.0, 0.0, 1.0], (2, 3, 4, 5)), rng.standard_normal((2, 5))
    x[1, 1, :, 2:] = np.nan
    y, want = np.zeros(gy.shape), np.zeros(x.shape)
    for n, c in np.ndindex(2, 5):
        first = first_maximum(x[n, ..., c].ravel())
        y[n, c] = x[n, ..., c].ravel()[first]
        want[n, *divmod(first, 4), c] = gy[n, c]
    close(call(xp, name, (x, *args), {}), y)
    close(call(xp, f"{name}_backward", (gy, x, *args), {}), want)


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 5, 4)])
def test_training_moves_the_running_statistics(xp, rng, shape):
    x, mean, var = rng.standard_normal(shape), normal(shape[-1]), normal(shape[-1]) ** 2
    there = [xp.asarray(a) for a in (mean, var)]
    reference.batch_norm(xp.asarray(x), None, None, *there, training=True, momentum=0.25)
    for c in range(shape[-1]):
        v = x[..., c].ravel()
        m = math.fsum(v) / v.size
        mean[c] = 0.75 * mean[c] + 0.25 * m
        var[c] = 0.75 * var[c] + 0.25 * math.fsum((v - m) ** 2) / (v.size - 1)
    close(there[0], mean, terms=v.size)
    close(there[1], var, terms=v.size)
    fixed = [a.copy() for a in there]
    reference.batch_norm(xp.asarray(x), None, None, *there, training=False)
    assert all((host(a) == host(b)).all() for a, b in zip(there, fixed, strict=True))


def test_a_class_of_no_weight_adds_nothing(xp):
    z = np.array([[0.0, -np.inf]])
    assert call(xp, "softmax_cross_entropy", (z, np.array([0])), {}) == 0


def test_dropout_leaves_zeros(xp):
    close(call(xp, "dropout", (np.ones(5), 1.0), dict(key=(1, 2), step=3)), np.zeros(5))
    y = call(xp, "dropout", (np.full(9, np.inf), 0.5), dict(key=(1, 2), step=3))
    assert set(y) == {0, np.inf}


def test_relu_passes_the_gradient_of_nan(xp):
    got = call(xp, "relu_backward", (np.ones(3), np.array([np.nan, 0.0, 1.0])), {})
    close(got, np.array([1.0, 0.0, 1.0]))


# -- every op has a definition ----------------------------------------------------------------


OPS = sorted(set(ops.__all__) - NO_OPS)


def parameters(f):
    """{name: default} of the parameters, in order."""
    return {p.name: p.default for p in inspect.signature(f).parameters.values()}


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_a_definition_a_gradient_and_a_call_here(name):
    f, backward = (getattr(reference, n) for n in (name, f"{name}_backward"))
    assert {name, f"{name}_backward"} <= set(reference.__all__)
    theirs = parameters(getattr(ops, name))
    mine = parameters(f)
    shared = {n: default for n, default in theirs.items() if n in mine}
    if name == "dropout":  # key and step have no default here
        shared |= dict(key=inspect.Parameter.empty, step=inspect.Parameter.empty)
    assert list(mine.items()) == list(shared.items())
    state = {"momentum", "return_indices"}  # of no effect on the gradient
    assert list(parameters(backward).items()) == [
        ("gy", inspect.Parameter.empty), *((n, d) for n, d in mine.items() if n not in state)]
    assert name in {call.values[0] for call in CALLS}


def test_it_has_nothing_else():
    extra = {"conv2d_im2col" + end for end in ("", "_backward", "_dgrad", "_wgrad")}
    assert set(reference.__all__) == extra | {n + end for n in OPS for end in ("", "_backward")}


@pytest.mark.parametrize("name", sorted(ops.elementwise.ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_activation_keeps_the_dtype_and_warns_of_nothing(xp, name, dtype):
    x = xp.asarray(np.array([-200.0, 0.0, 200.0], dtype))
    f, backward = getattr(reference, name), getattr(reference, f"{name}_backward")
    assert f(x).dtype == backward(x, x).dtype == dtype
