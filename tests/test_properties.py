"""What holds for every input: CUDA is NumPy is PyTorch, and laws that need no second program.

Sizes, memory layouts, dtypes and data are drawn freely; what is a compile-time constant of a kernel
comes from a table. An ordinary run draws a few examples, always the same; ``-m slow`` many.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from check import DTYPES, close, elementwise_of_torch, eps, host, make
from gpuconv import ops
from gpuconv.backend import accumulator, get_array_module
from gpuconv.gradients import vjp
from gpuconv.ops.elementwise import ACTIVATIONS
from gpuconv.ops.window import sides

WINDOWS = [  # size, stride, padding, dilation: of conv2d, im2col and col2im
    ((1, 1), (1, 1), 0, (1, 1)),
    ((3, 3), (1, 1), 1, (1, 1)),
    ((3, 3), (2, 2), 1, (1, 1)),
    ((5, 5), (1, 1), 2, (1, 1)),
    ((2, 3), (3, 1), ((1, 0), (2, 1)), (1, 1)),
    ((3, 2), (1, 2), ((0, 2), (1, 0)), (2, 3)),
    ((3, 1), (2, 1), (1, 0), (1, 1)),
    ((1, 4), (1, 3), (0, 2), (1, 1)),
    ((2, 2), (3, 3), 0, (1, 1)),             # gaps between windows
    ((2, 2), (1, 1), 3, (1, 1)),             # windows that see nothing but padding
    ((1, 1), (2, 3), ((1, 0), (0, 1)), (1, 1)),
    ((2, 2), (2, 1), 0, (3, 2)),
]
POOLS = [  # size, stride, padding, dilation, ceil_mode, of max_pool2d; of avg_pool2d undilated
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 3), (2, 2), (0, 0), (1, 1), True),
    ((2, 2), (1, 1), (0, 0), (1, 1), False),
    ((3, 3), (1, 1), (1, 1), (1, 1), False),
    ((2, 3), (3, 1), (1, 0), (1, 1), False),
    ((3, 2), (1, 2), (1, 1), (2, 1), False),
    ((3, 4), (2, 3), (0, 2), (1, 1), True),
    ((1, 1), (1, 1), (0, 0), (1, 1), False),
    ((2, 2), (2, 2), (1, 1), (1, 1), True),  # ceil_mode drops what starts in the padding
    ((4, 1), (3, 1), (2, 0), (1, 1), True),
    ((2, 2), (3, 3), (0, 0), (2, 2), False),
]
FEW_AND_MANY = pytest.mark.parametrize("scale", [
    pytest.param(1, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)])


def for_all(*strategies: Any, examples: int) -> Callable:
    """Run a function on examples, the same ones each time."""
    def run(f: Callable) -> None:
        settings(max_examples=examples, derandomize=True, deadline=None, database=None,
                 suppress_health_check=list(HealthCheck))(given(*strategies)(f))()

    return run


# -- arrays ----------------------------------------------------------------------------------


class Array(NamedTuple):
    """Numbers in some memory layout: ``on(xp)`` is the view, on that side."""

    base: np.ndarray
    view: Callable

    def on(self, xp: Any) -> Any:
        return self.view(xp, xp.asarray(self.base))

    def absolute(self) -> np.ndarray:
        return np.abs(self.on(np))


def _plain(a, axis):
    return a, lambda xp, b: b


def _other_order(a, axis):
    """The axis that varies fastest in memory is another one."""
    there = a.swapaxes(axis, -1)
    return there.copy(), lambda xp, b: b.swapaxes(axis, -1)


def _backwards(a, axis):
    cut = (slice(None),) * axis + (slice(None, None, -1),)
    return a[cut].copy(), lambda xp, b: b[cut]


def _every_other(a, axis):
    cut = (slice(None),) * axis + (slice(1, None, 2),)
    wide = np.full([2 * n + 1 if i == axis else n for i, n in enumerate(a.shape)], 77, a.dtype)
    wide[cut] = a
    return wide, lambda xp, b: b[cut]


def _unaligned(a, axis):
    """Begins in the middle of 16 bytes."""
    return np.append(a.dtype.type(77), a.ravel()), lambda xp, b: b[1:].reshape(a.shape)


def _repeated(a, axis):
    """One plane in place of all along an axis: its stride is 0, its numbers are equal."""
    plane = a[(slice(None),) * axis + (slice(0, 1),)]
    return plane, lambda xp, b: xp.broadcast_to(b, a.shape)


LAYOUTS = [_plain, _other_order, _backwards, _every_other, _unaligned, _repeated]
KINDS = "normal", "ties", "zeros", "scaled"
ALL = *KINDS, "special"  # with NaN and infinities
EXPONENTS = dict(float16=3, bfloat16=20, float32=20, float64=200)  # nothing overflows, or is tiny


def numbers(seed: int, kind: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "ties":
        a = rng.integers(-2, 3, shape)
    elif kind == "zeros":
        a = rng.choice([0.0, -0.0, 1.0, -1.0], shape, p=[0.4, 0.4, 0.1, 0.1])
    elif kind == "special":
        a = rng.choice([0.0, -0.0, 1.0, -2.0, np.nan, np.inf, -np.inf], shape)
    else:
        a = rng.standard_normal(shape)
        if kind == "scaled":
            top = EXPONENTS[dtype]
            a *= 2.0 ** rng.integers(-top, top, endpoint=True)
    return make(a, dtype)


seeds = st.integers(0, 2**32 - 1)


@st.composite
def array(draw, shape, dtype, kinds=KINDS, layouts=LAYOUTS):
    a = numbers(draw(seeds), draw(st.sampled_from(kinds)), tuple(shape), dtype)
    layout = draw(st.sampled_from(layouts))
    if not a.ndim or not a.size:
        return Array(*_plain(a, 0))
    return Array(*layout(a, draw(st.integers(0, a.ndim - 1))))


# -- ops -------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One call of an op."""

    f: Callable                     # of tensors
    arrays: list[Array]
    gradient: Callable              # shape of y -> a strategy for gy
    torch: Callable | None = None   # (torch, *tensors in float64) -> y
    terms: int = 1                  # of the longest sum
    linear: bool = False            # in each array: what bounds its sums is f of absolute values
    sizes: Callable | None = None   # (arrays, gy) -> bounds of the sums behind y and each gradient
    window: tuple = ()              # as the op takes it
    rounded: tuple = ()             # which of y and the gradients is computed from stored numbers


dtypes = st.sampled_from(DTYPES)
batches = st.integers(0, 3)


@st.composite
def images(draw, extent, pad, groups=1):
    """(N, H, W, C) under a window; H and W are enough for it."""
    (top, bottom), (left, right) = sides(pad)
    H = draw(st.integers(max(1, extent[0] - top - bottom), max(1, extent[0] - top - bottom) + 7))
    W = draw(st.integers(max(1, extent[1] - left - right), max(1, extent[1] - left - right) + 7))
    return draw(batches), H, W, groups * draw(st.integers(1, 9))


def extent(size, dilation):
    return [d * (n - 1) + 1 for n, d in zip(size, dilation, strict=True)]


def gradient(dtype, **options):
    return lambda shape: array(shape, dtype, **options)


def padded(torch, x, padding, value=0.0):
    """(N, H, W, C) -> (N, C, H, W) with a border."""
    (top, bottom), (left, right) = sides(padding)
    return torch.nn.functional.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom), value=value)


@st.composite
def conv2d(draw, table=WINDOWS, dtypes=dtypes, kinds=KINDS):
    size, stride, padding, dilation = draw(st.sampled_from(table))
    dtype, groups = draw(dtypes), draw(st.integers(1, 3))
    x_shape = draw(images(extent(size, dilation), padding, groups))
    K, with_bias = groups * draw(st.integers(1, 3)), draw(st.booleans())
    shapes = [x_shape, (K, *size, x_shape[3] // groups), (K,)][: 2 + with_bias]

    def f(x, w, b=None):
        return ops.conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation,
                          groups=groups)

    def torch(torch, x, w, b=None):
        return torch.nn.functional.conv2d(padded(torch, x, padding), w.permute(0, 3, 1, 2), b,
                                          stride, 0, dilation, groups).permute(0, 2, 3, 1)

    # On the GPU 16 bits hold the products, before b is added, and rows, before col2im adds them.
    terms = max(np.prod(size) * max(x_shape[3], K), np.prod(x_shape[:3]) * 4)
    return Case(f, [draw(array(s, dtype, kinds)) for s in shapes], gradient(dtype, kinds=kinds),
                torch, int(terms), linear=True, window=(size, stride, padding, dilation),
                rounded=(0, 1))


@st.composite
def im2col(draw, kinds=ALL, table=WINDOWS, dtypes=dtypes):
    window = draw(st.sampled_from(table))
    dtype = draw(dtypes)
    shape = draw(images(extent(window[0], window[3]), window[2]))
    return Case(lambda x: ops.im2col(x, *window), [draw(array(shape, dtype, kinds))],
                gradient(dtype), lambda torch, x: unfold(torch, x, *window), 25, linear=True)


def unfold(torch, x, size, stride, padding, dilation):
    N, H, W, C = x.shape
    x = padded(torch, x, padding)
    columns = torch.nn.functional.unfold(x, size, dilation, 0, stride)  # (N, C*R*S, P*Q)
    P, Q = ((n - e) // s + 1 for n, e, s in
            zip(x.shape[2:], extent(size, dilation), stride, strict=True))
    columns = columns.reshape(N, C, size[0] * size[1], P, Q)
    return columns.permute(0, 3, 4, 2, 1).reshape(N, P, Q, size[0] * size[1] * C)


@st.composite
def col2im(draw, kinds=KINDS, table=WINDOWS, dtypes=dtypes):
    window = draw(st.sampled_from(table))
    dtype = draw(dtypes)
    shape = draw(images(extent(window[0], window[3]), window[2]))
    rows = ops.im2col(np.zeros(shape, "float32"), *window).shape

    def torch(torch, col):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(unfold(torch, x, *window), x, col, create_graph=True)[0]

    return Case(lambda col: ops.col2im(col, shape, *window), [draw(array(rows, dtype, kinds))],
                gradient(dtype), torch, 25, linear=True)


@st.composite
def max_pool2d(draw, kinds=ALL):
    size, stride, padding, dilation, ceil_mode = draw(st.sampled_from(POOLS))
    dtype = draw(dtypes)
    shape = draw(images(extent(size, dilation), padding))

    def torch(torch, x):
        return torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), size, stride, padding,
                                              dilation, ceil_mode).permute(0, 2, 3, 1)

    return Case(lambda x: ops.max_pool2d(x, size, stride, padding, dilation, ceil_mode),
                [draw(array(shape, dtype, kinds))], gradient(dtype), torch, 9)


@st.composite
def avg_pool2d(draw):
    size, stride, padding, _, ceil_mode = draw(st.sampled_from(POOLS))
    dtype, include = draw(dtypes), draw(st.booleans())
    shape = draw(images(size, padding))

    def torch(torch, x):
        return torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), size, stride, padding,
                                              ceil_mode, include).permute(0, 2, 3, 1)

    return Case(lambda x: ops.avg_pool2d(x, size, stride, padding, ceil_mode, include),
                [draw(array(shape, dtype))], gradient(dtype), torch, 12, linear=True,
                window=(size, stride, padding, ceil_mode))


@st.composite
def global_pool(draw, kinds=ALL):
    name, (H, W) = draw(st.sampled_from(["avg", "max"])), draw(st.sampled_from([(1, 5), (4, 3)]))
    dtype, shape = draw(dtypes), (draw(batches), H, W, draw(st.integers(1, 6)))
    f = getattr(ops, f"global_{name}_pool2d")

    def torch(torch, x):
        x = x.reshape(len(x), H * W, x.shape[3])
        return x.mean(1) if name == "avg" else x.max(1).values

    kinds = KINDS if name == "avg" else kinds
    return Case(f, [draw(array(shape, dtype, kinds))], gradient(dtype), torch, H * W,
                linear=name == "avg")


@st.composite
def activation(draw, kinds=ALL):
    name, dtype = draw(st.sampled_from([*ACTIVATIONS])), draw(dtypes)
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    kinds = kinds if name == "relu" else KINDS

    def torch(torch, x):
        return elementwise_of_torch(name)(x)

    def sizes(x, gy):  # gelu: F(x) + x f(x) may cancel; the others saturate at 1
        return np.abs(x).max(initial=1), np.abs(gy).max(initial=1)

    return Case(getattr(ops, name), [draw(array(shape, dtype, kinds))], gradient(dtype), torch,
                sizes=None if name == "relu" else sizes, rounded=(1,))  # from y, where that is kept


@st.composite
def bias_relu(draw, kinds=KINDS):
    dtype, C = draw(dtypes), draw(st.integers(1, 40))
    shape = *draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)), C
    arrays = [draw(array(s, dtype, kinds)) for s in (shape, (C,))]

    def sizes(x, b, gy):
        return (np.abs(x).max(initial=0) + np.abs(b).max(), np.abs(gy).max(initial=0),
                np.abs(gy).reshape(-1, C).sum(0).max())

    return Case(ops.bias_relu, arrays, gradient(dtype),
                lambda torch, x, b: torch.relu(x + b), int(np.prod(shape)) // C + 1, sizes=sizes)


@st.composite
def batch_norm(draw):
    dtype, C, training = draw(dtypes), draw(st.integers(1, 40)), draw(st.booleans())
    shape = draw(st.integers(8, 20)), *draw(st.sampled_from([(), (1, 3), (4, 2)])), C
    wide, rows = accumulator(make(0, dtype).dtype).name, int(np.prod(shape[:-1]))
    x = draw(array(shape, dtype, ["normal"], [v for v in LAYOUTS if v is not _repeated]))
    gamma, beta = (draw(array((C,), dtype, ["normal"])) for _ in range(2))
    mean, var = numbers(draw(seeds), "normal", (2, C), wide)
    var = var * var + 0.5

    def f(x, gamma, beta):
        here = (get_array_module(x.data).array(a) for a in (mean, var))
        return ops.batch_norm(x, gamma, beta, *here, training=training)

    def torch(torch, x, gamma, beta):
        stats = (torch.tensor(a.astype("float64")) for a in (mean, var))
        flat = x.reshape(-1, C)
        return torch.nn.functional.batch_norm(flat, *stats, gamma, beta, training).reshape(x.shape)

    def sizes(x, gamma, beta, gy):
        flat, g = (a.astype("float64").reshape(-1, C) for a in (x, gy))
        m, v = (flat.mean(0), flat.var(0)) if training else (mean, var)
        std = np.sqrt(v + 1e-5)
        xhat, g = np.abs(flat - m) / std, np.abs(g)
        gx = np.abs(gamma.astype("float64")) / std * (g.max(0) + (g * xhat).mean(0) * xhat.max(0))
        return (xhat.max() * np.abs(gamma).max() + np.abs(beta).max(), gx.max(),
                (g * (xhat + np.abs(m) / std)).sum(0).max(), g.sum(0).max())

    return Case(f, [x, gamma, beta], gradient(dtype, kinds=["normal", "ties"]), torch, rows,
                sizes=sizes)


@st.composite
def dropout(draw):
    dtype, shape = draw(dtypes), draw(st.lists(st.integers(0, 9), max_size=4))
    p, key = draw(st.floats(0.01, 1)), draw(st.tuples(seeds, seeds))
    step = draw(st.integers(0, 2**64 - 1))
    return Case(lambda x: ops.dropout(x, p, key=key, step=step),
                [draw(array(shape, dtype, ALL))], gradient(dtype))


@st.composite
def softmax_cross_entropy(draw):
    dtype, N = draw(dtypes), draw(st.integers(1, 9))
    K = draw(st.sampled_from([1, 2, 10, 33]) | st.integers(1, 40))
    labels = np.random.default_rng(draw(seeds)).integers(0, K, N)
    smoothing, reduction = draw(st.sampled_from([0.0, 0.1])), draw(
        st.sampled_from(["mean", "sum", "none"]))
    wide = accumulator(make(0, dtype).dtype).name

    def f(z):
        here = get_array_module(z.data).asarray(labels)
        return ops.softmax_cross_entropy(z, here, label_smoothing=smoothing, reduction=reduction)

    def torch(torch, z):
        return torch.nn.functional.cross_entropy(z, torch.tensor(labels), reduction=reduction,
                                                 label_smoothing=smoothing)

    def sizes(z, gy):
        top = 2 * np.abs(z.astype("float64")).max() + np.log(K)
        return top * (N if reduction == "sum" else 1), np.abs(gy).max() / (
            N if reduction == "mean" else 1)

    return Case(f, [draw(array((N, K), dtype, ["normal", "ties", "zeros"]))],
                gradient(wide), torch, N + K, sizes=sizes)


OPS = dict(activation=(activation, 20), avg_pool2d=(avg_pool2d, 14), batch_norm=(batch_norm, 10),
           bias_relu=(bias_relu, 14), col2im=(col2im, 14), conv2d=(conv2d, 14),
           dropout=(dropout, 10), global_pool=(global_pool, 10), im2col=(im2col, 14),
           max_pool2d=(max_pool2d, 14), softmax_cross_entropy=(softmax_cross_entropy, 12))


def sums(case, arrays, gy):
    """How large the sums behind y and each gradient get, without regard to signs."""
    if case.sizes:
        return case.sizes(*arrays, gy)
    if case.linear:
        arrays = [np.abs(a) for a in arrays]
    y, pull = vjp(case.f, *arrays)
    return [np.abs(a.astype("float64")).max(initial=0, where=np.isfinite(a))
            for a in (y, *pull(np.abs(gy)))]


def same(got, want, terms, size):
    """Close, where rounding is judged by the size of the sums: it may all have cancelled."""
    got, want = host(got), host(want)
    with np.errstate(over="ignore"):  # then only what is finite says how large they are
        size = np.asarray(size).astype(want.dtype).reshape(1)
    assert got.shape == want.shape
    close(np.append(got, size), np.append(want, size), terms=terms)


def agree(case, got, want, sizes):
    """y and each gradient."""
    for i, (g, w, size) in enumerate(zip(got, want, sizes, strict=True)):
        narrow = eps(w.dtype) / eps(accumulator(w.dtype)) if i in case.rounded else 1
        same(g, w, case.terms * narrow**2, size)


@FEW_AND_MANY
@pytest.mark.parametrize("op", OPS)
def test_cuda_is_numpy(cp, op, scale):
    strategy, examples = OPS[op]

    @for_all(st.data(), examples=examples * scale)
    def check(data):
        case = data.draw(strategy())
        here, there = ([a.on(xp) for a in case.arrays] for xp in (np, cp))
        y, pull = vjp(case.f, *here)
        gy = data.draw(case.gradient(y.shape))
        z, push = vjp(case.f, *there)
        agree(case, (z, *push(gy.on(cp))), (y, *pull(gy.on(np))), sums(case, here, gy.on(np)))


@FEW_AND_MANY
@pytest.mark.parametrize("op", [name for name in OPS if name != "dropout"])
def test_numpy_is_pytorch(op, scale):
    torch = pytest.importorskip("torch")
    strategy, examples = OPS[op]
    options = {"kinds": KINDS} if op in ("max_pool2d", "global_pool") else {}  # NaN: ours is first

    @for_all(st.data(), examples=examples * scale)
    def check(data):
        case = data.draw(strategy(**options))
        arrays = [a.on(np) for a in case.arrays]
        y, pull = vjp(case.f, *arrays)
        gy = data.draw(case.gradient(y.shape)).on(np)
        theirs = [torch.tensor(np.array(a, "float64", order="C"), requires_grad=True)
                  for a in arrays]
        want = case.torch(torch, *theirs)
        gradients = torch.autograd.grad(want, theirs, torch.tensor(gy.astype("float64").copy("C")))
        agree(case, (y, *pull(gy)),
              [a.detach().numpy().astype(y.dtype if i == 0 else arrays[0].dtype)
               for i, a in enumerate((want, *gradients))], sums(case, arrays, gy))


# -- laws ------------------------------------------------------------------------------------
#
# On small whole numbers, so that every sum is exact: what must be equal is equal to the last bit.

EXACT = dict(dtypes=st.sampled_from(["float32", "float64"]), kinds=["ties"])


def whole(data, shape, dtype):
    return data.draw(array(shape, dtype, ["ties"]))


def dot(a, b):
    return np.array(np.vdot(host(a).astype("float64"), host(b).astype("float64")))


@FEW_AND_MANY
def test_im2col_and_col2im_are_adjoint(xp, scale):
    @for_all(st.data(), examples=12 * scale)
    def check(data):
        window = data.draw(st.sampled_from(WINDOWS))
        shape, dtype = data.draw(images(extent(window[0], window[3]), window[2])), data.draw(dtypes)
        x = whole(data, shape, dtype).on(xp)
        col = ops.im2col(x, *window)
        c = whole(data, col.shape, dtype).on(xp)
        close(dot(col, c), dot(x, ops.col2im(c, shape, *window)))


@FEW_AND_MANY
def test_the_gradients_of_conv2d_are_adjoint_to_it(xp, scale):
    @for_all(conv2d(**EXACT), st.data(), examples=12 * scale)
    def check(case, data):
        arrays = [a.on(xp) for a in case.arrays[:2]]
        y, pull = vjp(case.f, *arrays)
        gy = data.draw(case.gradient(y.shape)).on(xp)
        for a, g in zip(arrays, pull(gy), strict=True):
            close(dot(a, g), dot(y, gy))


@FEW_AND_MANY
def test_a_shifted_image_gives_a_shifted_convolution(xp, scale):
    """By whole strides; where both windows see the same pixels."""
    @for_all(conv2d(**EXACT), st.integers(1, 3), st.integers(1, 3), examples=12 * scale)
    def check(case, down, right):
        x, *rest = (a.on(xp) for a in case.arrays)
        stride, ((top, _), (left, _)) = case.window[1], sides(case.window[2])
        h, w = down * stride[0], right * stride[1]
        x = ops.pad2d(x, ((h, 0), (w, 0)), "replicate")
        y, shifted = (host(case.f(a, *rest)) for a in (x, x[:, h:, w:]))
        p, q = -(-top // stride[0]), -(-left // stride[1])  # the first that see no border
        close(shifted[:, p:, q:], y[:, p + down :, q + right :])


@FEW_AND_MANY
def test_a_rolled_image_gives_a_rolled_circular_convolution(xp, scale):
    sizes = st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 3)])

    @for_all(sizes, st.tuples(st.integers(4, 9), st.integers(4, 9)), st.integers(-9, 9),
             st.integers(-9, 9), st.data(), examples=8 * scale)
    def check(size, image, down, right, data):
        x, w = (whole(data, s, "float32").on(xp) for s in ((2, *image, 3), (4, *size, 3)))
        pad = tuple(((n - 1) // 2, n // 2) for n in size)
        y = host(ops.conv2d(x, w, padding=pad, padding_mode="circular"))
        rolled = xp.asarray(np.roll(host(x), (down, right), (1, 2)))
        close(ops.conv2d(rolled, w, padding=pad, padding_mode="circular"),
              np.roll(y, (down, right), (1, 2)))


@FEW_AND_MANY
@pytest.mark.parametrize("op", [conv2d, im2col, col2im])
def test_is_linear(xp, op, scale):
    options = EXACT if op is conv2d else EXACT | {"dtypes": dtypes}

    @for_all(op(**options), st.data(), examples=8 * scale)
    def check(case, data):
        *others, a = (a.on(xp) for a in case.arrays[:2])  # conv2d: its filters
        b = whole(data, a.shape, a.dtype.name).on(xp)
        close(case.f(*others, 2 * a - 3 * b), 2 * case.f(*others, a) - 3 * case.f(*others, b))
        if others:
            c = whole(data, others[0].shape, a.dtype.name).on(xp)
            close(case.f(others[0] - c, a), case.f(others[0], a) - case.f(c, a))


@FEW_AND_MANY
def test_conv2d_is_made_of_simpler_ones(xp, scale):
    @for_all(conv2d(**EXACT), examples=6 * scale)
    def check(case):
        x, w = (a.on(xp) for a in case.arrays[:2])
        size, (SH, SW), padding, (DH, DW) = case.window
        (K, R, S, C), groups = w.shape, x.shape[3] // w.shape[3]
        y = host(case.f(x, w))
        wide = np.zeros((K, DH * (R - 1) + 1, DW * (S - 1) + 1, C), w.dtype)
        wide[:, ::DH, ::DW] = host(w)                          # dilation: zeros between the weights
        border, wide = ops.pad2d(x, padding), xp.asarray(wide)  # padding: a border
        parts = [ops.conv2d(border[..., g * C : (g + 1) * C],  # groups: side by side
                            wide[g * K // groups : (g + 1) * K // groups]) for g in range(groups)]
        close(np.concatenate([host(part)[:, ::SH, ::SW] for part in parts], axis=3), y)  # stride
        if size == (1, 1) and groups == 1:
            close(ops.linear(border[:, ::SH, ::SW], w.reshape(K, C)), y)


@FEW_AND_MANY
@pytest.mark.parametrize("op", [conv2d, im2col, max_pool2d, avg_pool2d])
def test_images_do_not_see_each_other(xp, op, scale):
    @for_all(op(**EXACT) if op is conv2d else op(), examples=8 * scale)
    def check(case):
        x, *rest = (a.on(xp) for a in case.arrays)
        y = host(case.f(x, *rest))
        for n in range(len(y)):
            close(case.f(x[n : n + 1], *rest), y[n : n + 1])


@FEW_AND_MANY
def test_max_pooling_commutes_with_what_never_falls(xp, scale):
    maps = {"line": lambda a: 2 * a + 1, "step": lambda a: a // 2, "relu": lambda a: a * (a > 0)}

    @for_all(max_pool2d(KINDS), st.sampled_from(sorted(maps)), examples=12 * scale)
    def check(case, name):
        x, f = case.arrays[0].on(np), maps[name]
        there = f(x.astype("float64")).astype(x.dtype)
        want = f(host(case.f(case.arrays[0].on(xp))).astype("float64")).astype(x.dtype)
        close(case.f(xp.asarray(there)), np.where(np.isnan(want), -np.inf, want).astype(x.dtype))


@FEW_AND_MANY
def test_two_poolings_are_one(xp, scale):
    sizes = st.integers(4, 13)

    @for_all(sizes, sizes, st.data(), dtypes, examples=8 * scale)
    def check(H, W, data, dtype):
        x = data.draw(array((2, H, W, 3), dtype, ALL)).on(xp)
        close(ops.max_pool2d(ops.max_pool2d(x, 2), 2), ops.max_pool2d(x, 4))
        x = whole(data, (2, H, W, 3), "float32").on(xp)  # a sum of 16, then of 4: all exact
        close(ops.avg_pool2d(ops.avg_pool2d(x, 2), 2), ops.avg_pool2d(x, 4))


@FEW_AND_MANY
def test_the_mean_of_equal_pixels_is_the_pixel(xp, scale):
    @for_all(avg_pool2d(), st.data(), examples=10 * scale)
    def check(case, data):
        x, window = case.arrays[0].on(np), case.window
        pixel = data.draw(array((1, 1, 1, x.shape[3]), x.dtype.name)).on(np)
        y = ops.avg_pool2d(xp.asarray(np.broadcast_to(pixel, x.shape)), *window,
                           count_include_pad=False)
        close(y, np.broadcast_to(pixel, y.shape), terms=12)


@FEW_AND_MANY
def test_activations_are_symmetric(xp, scale):
    @for_all(st.lists(st.integers(1, 9), max_size=3), dtypes, st.data(), examples=8 * scale)
    def check(shape, dtype, data):
        x = data.draw(array(shape, dtype)).on(xp)
        y = ops.relu(x)
        close(ops.relu(y), y)
        close(ops.tanh(-x), -ops.tanh(x))
        size = np.abs(host(x).astype("float64")).max(initial=1)
        one = make(np.ones(shape), dtype)
        same(ops.sigmoid(x) + ops.sigmoid(-x), one, 1, size=1)
        same(ops.gelu(x) - ops.gelu(-x), host(x), 1, size)


@FEW_AND_MANY
def test_bias_relu_is_relu_of_a_sum(xp, scale):
    @for_all(bias_relu(), st.data(), examples=8 * scale)
    def check(case, data):
        arrays = [a.on(xp) for a in case.arrays]
        y, pull = vjp(case.f, *arrays)
        z, push = vjp(lambda x, b: ops.relu(x + b), *arrays)
        gy = data.draw(case.gradient(y.shape))
        sizes = case.sizes(*map(host, arrays), gy.on(np))
        agree(case, (y, *pull(gy.on(xp))), (z, *push(gy.on(xp))), sizes)


@FEW_AND_MANY
def test_batch_norm_forgets_scale_and_level(xp, scale):
    @for_all(st.integers(8, 40), st.integers(1, 40), st.integers(-9, 9), st.data(),
             examples=8 * scale)
    def check(rows, C, exponent, data):
        x = data.draw(array((rows, C), "float32", ["normal"])).on(np) // 0.125
        x[:2] = [[1], [-1]]  # no channel is constant

        def normal(a):
            return ops.batch_norm(xp.asarray(a), None, None, None, None, training=True, eps=0.0)

        y = host(normal(x))
        close(normal(x * np.float32(2.0**exponent)), y)
        close(normal(-x), -y, terms=rows)
        same(normal(x + np.float32(64)), y, rows, size=64)


@FEW_AND_MANY
def test_cross_entropy_knows_differences_alone(xp, scale):
    @for_all(st.integers(1, 9), st.integers(1, 40), st.integers(-99, 99), seeds, st.data(),
             examples=10 * scale)
    def check(N, K, level, seed, data):
        rng = np.random.default_rng(seed)
        z, labels = whole(data, (N, K), "float32").on(np), rng.integers(0, K, N)

        def loss(z, labels):
            def f(z):
                return ops.softmax_cross_entropy(z, xp.asarray(labels), reduction="none")

            y, pull = vjp(f, xp.asarray(z))
            return host(y), host(*pull(xp.asarray(np.ones(N, "float32"))))

        y, gz = loss(z, labels)
        for one, other in zip(loss(z + np.float32(level), labels), (y, gz), strict=True):
            close(one, other)
        order = rng.permutation(K)  # classes in another order, so sums in another
        there, swapped = loss(z[:, order], np.argsort(order)[labels])
        same(there, y, K, size=5 + np.log(K))
        same(swapped, gz[:, order], K, size=1)
        same(gz.sum(1), np.zeros(N, "float32"), K, size=1)


@FEW_AND_MANY
def test_dropout_looks_at_no_number(xp, scale):
    @for_all(dropout(), examples=8 * scale)
    def check(case):
        x = case.arrays[0].on(np)
        kept = host(case.f(xp.asarray(np.ones(x.shape, x.dtype))))
        y, pull = vjp(case.f, case.arrays[0].on(xp))
        want = np.where(kept != 0, host(case.f(xp.asarray(x.copy()))), x.dtype.type(0))
        close(y, want)
        close(*pull(case.arrays[0].on(xp)), want)
