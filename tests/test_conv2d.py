"""conv2d: definition, gradients, PyTorch, CPU and CUDA alike, every option, and the edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check import DTYPES, FUSED, close, defined, grad_check, host
from gpuconv import kernels
from gpuconv.autograd import Tensor, no_grad
from gpuconv.backend import float_dtype
from gpuconv.ops.conv import cpu_im2col
from gpuconv.ops.conv.conv2d import conv2d
from gpuconv.ops.elementwise import activated, saves_result
from gpuconv.ops.shape.pad import MODES

GEOMETRIES = [  # (H, W), (C, K), size, options
    pytest.param((6, 6), (3, 4), (3, 3), dict(padding=1), id="same"),
    pytest.param((7, 9), (2, 3), (2, 3), dict(stride=(2, 1), padding=((1, 0), (0, 2))),
                 id="every-axis-different"),
    pytest.param((9, 8), (4, 6), (3, 3), dict(dilation=(2, 3), padding=2, groups=2),
                 id="dilated-grouped"),
    pytest.param((6, 7), (4, 8), (3, 2), dict(groups=4, stride=(1, 2), padding=1), id="depthwise"),
    pytest.param((4, 5), (3, 5), (1, 1), dict(), id="1x1"),
    pytest.param((5, 6), (2, 7), (5, 6), dict(), id="covers-the-image"),
    pytest.param((5, 5), (2, 2), (2, 2), dict(stride=3), id="gaps-between-windows"),
    pytest.param((4, 4), (2, 2), (2, 2), dict(padding=3), id="padding-beyond-the-filter"),
]


def run(xp, rng, x, w, b=None, **options):
    """y, gx, gw, gb and gy on the host."""
    x, w, b = (None if a is None else Tensor(xp.asarray(a), requires_grad=True) for a in (x, w, b))
    y = conv2d(x, w, b, **options)
    gy = rng.standard_normal(y.shape).astype(y.dtype)
    y.backward(xp.asarray(gy))
    return host(y.data), host(x.grad), host(w.grad), None if b is None else host(b.grad), gy


def numbers(rng, dtype, *shapes):
    return [rng.standard_normal(shape).astype(float_dtype(dtype)) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image, channels, size, options", GEOMETRIES)
def test_is_the_definition(xp, rng, image, channels, size, options, dtype):
    (C, K), groups = channels, options.get("groups", 1)
    x, w = numbers(rng, dtype, (2, *image, C), (K, *size, C // groups))
    y, gx, gw, _, gy = run(xp, rng, x, w, **options)
    want_y, want_gx, want_gw, _ = defined("conv2d", gy, x, w, **options)
    close(y, want_y.astype(y.dtype), terms=size[0] * size[1] * C)
    close(gx, want_gx.astype(y.dtype), terms=size[0] * size[1] * K)
    close(gw, want_gw.astype(y.dtype), terms=gy[..., 0].size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias(xp, rng, dtype):
    x, w, b = numbers(rng, dtype, (2, 5, 5, 3), (4, 3, 3, 3), (4,))
    y, gx, gw, gb, gy = run(xp, rng, x, w, b, padding=1)
    for got, want, terms in zip((y, gx, gw, gb), defined("conv2d", gy, x, w, b, padding=1),
                                (28, 36, 50, 50), strict=True):
        close(got, want.astype(dtype), terms)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bias_in_16_bit(xp, dtype):
    one = float_dtype(dtype).type(1)
    x, w, b = (xp.asarray(np.full(s, one)) for s in ((1, 3, 3, 1), (2, 3, 3, 1), (2,)))
    y = conv2d(x, w, b, padding=1)
    assert y.dtype == float_dtype(dtype)
    assert host(y)[0, :, :, 0].astype(float).tolist() == [[5, 7, 5], [7, 10, 7], [5, 7, 5]]


@pytest.mark.parametrize("image, channels, size, options", GEOMETRIES)
def test_gradient_is_the_slope(rng, image, channels, size, options):
    (C, K), groups = channels, options.get("groups", 1)
    x, w, b = numbers(rng, "float64", (2, *image, C), (K, *size, C // groups), (K,))
    grad_check(lambda *a: conv2d(*a, **options), x, w, b, rng=rng)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_is_pytorchs(data):
    torch = pytest.importorskip("torch")
    n = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, R, S, DH, DW = n(1, 3), n(1, 4), n(1, 4), n(1, 2), n(1, 2)
    C, K, N, pad, stride = groups * n(1, 3), groups * n(1, 3), n(1, 3), (n(0, 2), n(0, 2)), (
        n(1, 3), n(1, 3))
    H = n(max(1, DH * (R - 1) + 1 - 2 * pad[0]), 9)
    W = n(max(1, DW * (S - 1) + 1 - 2 * pad[1]), 9)
    mode = data.draw(st.sampled_from(MODES if min(H, W) > max(pad) else ("zeros",)))
    rng = np.random.default_rng(n(0, 2**32 - 1))
    x, w, b = numbers(rng, "float64", (N, H, W, C), (K, R, S, C // groups), (K,))
    y, gx, gw, gb, gy = run(np, rng, x, w, b, stride=stride, padding=pad, dilation=(DH, DW),
                            groups=groups, padding_mode=mode)

    conv = torch.nn.Conv2d(C, K, (R, S), stride, pad, (DH, DW), groups, True, mode,
                           dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(w).permute(0, 3, 1, 2))
        conv.bias.copy_(torch.from_numpy(b))
    t = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    u = conv(t)
    u.backward(torch.from_numpy(gy).permute(0, 3, 1, 2))
    for got, want in ((y, u.detach()), (gx, t.grad), (gw, conv.weight.grad)):
        close(got, want.permute(0, 2, 3, 1).contiguous().numpy(), terms=1000)
    close(gb, conv.bias.grad.numpy(), terms=1000)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch, of itself
@pytest.mark.parametrize("size, stride, dilation, image, want", [
    (3, 1, 1, (6, 7), (6, 7)), (2, 1, 1, (5, 5), (5, 5)), (3, 2, 1, (7, 8), (4, 4)),
    (5, 3, 2, (10, 9), (4, 3)), (1, 2, 1, (5, 6), (3, 3)),
])
def test_same_padding_has_ceil_of_h_over_stride(rng, size, stride, dilation, image, want):
    x, w = numbers(rng, "float64", (1, *image, 2), (3, size, size, 2))
    y = conv2d(x, w, stride=stride, padding="same", dilation=dilation)
    assert y.shape == (1, *want, 3)
    if stride == 1:
        torch = pytest.importorskip("torch")
        theirs = torch.nn.functional.conv2d(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w).permute(0, 3, 1, 2),
            padding="same", dilation=dilation)
        close(y, theirs.permute(0, 2, 3, 1).contiguous().numpy(), terms=50)


def test_same_padding_puts_the_odd_pixel_at_the_bottom_and_right():
    y = conv2d(np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), padding="same")
    assert y[0, :, :, 0].tolist() == [[4, 2], [2, 1]]


def test_valid_padding_is_none(rng):
    x, w = numbers(rng, "float32", (1, 5, 5, 2), (3, 3, 3, 2))
    np.testing.assert_array_equal(conv2d(x, w, padding="valid"), conv2d(x, w))


@pytest.mark.parametrize("mode", MODES[1:])
def test_padding_modes_on_either_device(xp, rng, mode):
    x, w = numbers(rng, "float64", (2, 5, 6, 2), (3, 3, 3, 2))
    pads = ((1, 2), (0, 2))
    y, gx, gw, _, gy = run(xp, rng, x, w, padding=pads, padding_mode=mode)
    want = defined("conv2d", gy, x, w, padding=pads, padding_mode=mode)
    for got, expected, terms in zip((y, gx, gw), want, (18, 36, 60), strict=False):
        close(got, expected, terms)


def test_what_does_not_fit_evenly_is_cropped():
    x = np.arange(36.0).reshape(1, 6, 6, 1)
    y = conv2d(x, np.ones((1, 1, 1, 1)), stride=4)
    assert y[0, :, :, 0].tolist() == [[0, 4], [24, 28]]
    assert conv2d(x, np.ones((1, 3, 3, 1)), stride=2).shape == (1, 2, 2, 1)  # the last is cropped


@pytest.mark.parametrize("view", [
    pytest.param(lambda a: a.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda a: a[:, ::-1, ::-1], id="negative-stride"),
    pytest.param(lambda a: a[..., ::-1], id="channels-reversed"),
])
@pytest.mark.parametrize("stride", [1, 2])
def test_views_and_broadcast_gradients(xp, rng, view, stride):
    a, f = numbers(rng, "float32", (2, 6, 6, 3), (4, 3, 3, 3))
    x, w = (Tensor(view(xp.asarray(v)), requires_grad=True) for v in (a, f))
    y = conv2d(x, w, stride=stride, padding=1)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    want = defined("conv2d", np.ones(y.shape), view(a), view(f), stride=stride, padding=1)
    for got, expected, terms in zip((y.data, x.grad, w.grad), want, (27, 36, 72), strict=False):
        close(got, expected.astype("float32"), terms)


def test_1x1_gives_an_array_of_its_own(rng):
    x, w = numbers(rng, "float32", (2, 4, 4, 3), (3, 1, 1, 3))
    y, before = conv2d(x, w), x.copy()
    y[...] = 0
    np.testing.assert_array_equal(x, before)


def test_empty_batch_has_zero_weight_gradients(xp, rng):
    x, w, b = np.ones((0, 5, 5, 2), "float32"), *numbers(rng, "float32", (3, 3, 3, 2), (3,))
    y, gx, gw, gb, _ = run(xp, rng, x, w, b)
    assert y.shape == (0, 3, 3, 3) and gx.shape == x.shape
    assert not gw.any() and not gb.any() and gw.shape == w.shape


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    monkeypatch.setattr(kernels, limit, value)
    x, w = numbers(rng, "float32", (2, 6, 6, 3), (4, 3, 3, 3))
    y, gx, gw, _, gy = run(cp, rng, x, w, padding=1)
    want = defined("conv2d", gy, x, w, padding=1)
    for got, expected, terms in zip((y, gx, gw), want, (27, 36, 72), strict=False):
        close(got, expected.astype("float32"), terms)


def test_a_small_workspace_changes_no_value(rng, monkeypatch):
    x, w = numbers(rng, "float32", (5, 6, 6, 4), (6, 3, 3, 2))
    want = run(np, np.random.default_rng(0), x, w, padding=1, groups=2)
    monkeypatch.setattr(cpu_im2col.Im2colConv, "workspace", 1)
    monkeypatch.setattr(cpu_im2col, "ROWS", 1)
    got = run(np, np.random.default_rng(0), x, w, padding=1, groups=2)
    for a, b, terms in zip(got[:3], want[:3], (18, 27, 180), strict=True):
        close(a, b, terms)


def test_bits_do_not_depend_on_the_number_of_threads(rng, monkeypatch):
    x, w = numbers(rng, "float32", (40, 16, 16, 16), (24, 3, 3, 16))
    results = []
    for workers in (1, 2, 3):
        monkeypatch.setattr("gpuconv.threads.count", lambda n=workers: n)
        results.append(run(np, np.random.default_rng(0), x, w, padding=1))
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0][:3], other[:3],
                                                              strict=True))


def test_saves_only_what_will_be_asked_for(xp):
    x, w = (xp.ones(s, "float32") for s in ((1, 4, 4, 2), (3, 3, 3, 2)))
    frozen = conv2d(Tensor(x, requires_grad=True), Tensor(w)).creator
    first = conv2d(Tensor(x), Tensor(w, requires_grad=True)).creator
    assert frozen.x is None and frozen.w is w and first.w is None and first.x is x
    gx, gw = first.backward(xp.ones((1, 2, 2, 3), "float32"))
    assert gx is None and gw.shape == w.shape
    with no_grad():
        assert conv2d(Tensor(x, requires_grad=True), Tensor(w)).creator is None
    assert type(conv2d(x, w)) is type(x)


# -- with more in the same op --------------------------------------------------------------


def one_after_another(x, w, b, residual, activation, apart=True, **options):
    y = conv2d(x, w, b, residual=None if apart else residual, **options)
    y = y + residual if apart and residual is not None else y
    return activated(y, activation)


@pytest.mark.parametrize("activation, dtype, added", [
    *((None, dtype, True) for dtype in DTYPES), *(("relu", dtype, False) for dtype in DTYPES),
    *((*pair, True) for pair in FUSED)])
def test_activation_and_residual_are_the_ops_one_after_another(xp, rng, dtype, activation, added):
    arrays = numbers(rng, dtype, (2, 5, 5, 4), (8, 3, 3, 4), (8,), *[(2, 5, 5, 8)] * added)
    gy = np.resize(np.linspace(-1, 1, 97), (2, 5, 5, 8)).astype(arrays[0].dtype)

    def run(f, xp, dtype, **options):
        held = [Tensor(xp.asarray(a.astype(dtype)), requires_grad=True) for a in arrays]
        x, w, b, residual = (*held, None)[:4]
        y = f(x, w, b, padding=1, residual=residual, activation=activation, **options)
        y.backward(xp.asarray(gy.astype(dtype)))
        return [y.data, *(t.grad for t in held)]

    one = run(conv2d, xp, gy.dtype)
    if xp is np or not saves_result(activation):  # then it is apart where a gradient is needed
        for a, b in zip(one, run(one_after_another, xp, gy.dtype, apart=xp is np),
                        strict=True):
            assert host(a).tobytes() == host(b).tobytes()
        if xp is np:
            return
    two = run(one_after_another, np, np.float64)  # rounded once
    for a, b in zip(one, two, strict=True):
        if saves_result(activation):
            close(a, b.astype(gy.dtype), terms=100)
    x, w, b, residual = (*(Tensor(xp.asarray(a)) for a in arrays), None)[:4]
    y = conv2d(x, w, b, padding=1, residual=residual, activation=activation)
    close(y.data, two[0].astype(gy.dtype), terms=36)  # fused: no gradient is needed


def test_relu_in_the_op_keeps_y_and_nothing_else(cp):
    x, w = cp.ones((1, 4, 4, 2), "float32"), cp.ones((3, 3, 3, 2), "float32")
    y = conv2d(x, Tensor(w, requires_grad=True), activation="relu")
    op = y.creator
    assert op.activation_op.saved is y.data and op.x is x and op.w is None
    assert type(op).__name__ == "Conv2d"
    gelu_of = conv2d(x, Tensor(w, requires_grad=True), activation="gelu").creator
    assert type(gelu_of).__name__ == "GELU"
    residual = Tensor(cp.ones(y.shape, "float32"), requires_grad=True)
    y = conv2d(x, w, activation="relu", residual=residual)
    y.backward(cp.ones(y.shape, "float32"))
    assert host(residual.grad).tolist() == np.ones(y.shape).tolist()


@pytest.mark.parametrize("options, message", [
    (dict(activation="step"), "activation is .step., wanted None, 'relu', "),
    (dict(residual=np.ones((1, 2, 2, 2))), r"residual has shape \(1, 2, 2, 2\), wanted \(1, 2, 2,"),
    (dict(residual=np.ones((1, 2, 2, 1), "float32")), "x is float64, residual is float32"),
])
def test_refuses_what_does_not_follow(options, message):
    with pytest.raises((ValueError, TypeError), match=f"conv2d: {message}"):
        conv2d(np.ones((1, 4, 4, 1)), np.ones((1, 3, 3, 1)), **options)


@pytest.mark.parametrize("shapes, options, error, message", [
    (((8, 32, 32, 4), (16, 3, 3, 3)), {}, ValueError,
     r"conv2d: x has 4 channels, w wants 3 \(x \(8, 32, 32, 4\), w \(16, 3, 3, 3\)\)"),
    (((4, 4, 1), (1, 3, 3, 1)), {}, ValueError, r"x has shape \(4, 4, 1\), wanted \(N, H, W, C\)"),
    (((1, 4, 4, 1), (3, 3, 1)), {}, ValueError, r"w has shape \(3, 3, 1\), wanted \(K, R, S, C/"),
    (((1, 4, 4, 1), (1, 5, 3, 1)), {}, ValueError,
     r"window \(5, 3\), padding .* does not fit \(4, 4\) \(x \(1, 4, 4, 1\), w \(1, 5, 3, 1\)\)"),
    (((1, 4, 4, 1), (1, 3, 3, 1)), dict(dilation=2), ValueError,
     r"dilation \(2, 2\), padding .* does not fit"),
    (((1, 4, 4, 1), (1, 3, 3, 1)), dict(stride=0), ValueError, r"stride \(0, 0\).*: at least 1"),
    (((1, 4, 4, 1), (1, 3, 3, 1)), dict(stride=-1), ValueError, r"stride \(-1, -1\)"),
    (((1, 4, 4, 1), (1, 3, 3, 1)), dict(padding=-1), ValueError, "padding .*: at least 0"),
    (((1, 4, 4, 1), (1, 3, 3, 1)), dict(padding="full"), ValueError, "padding 'full', wanted"),
    (((1, 4, 4, 1), (1, 3, 3, 1)), dict(padding_mode="mirror"), ValueError, "mode is 'mirror'"),
    (((1, 4, 4, 4), (3, 3, 3, 2)), dict(groups=2), ValueError,
     "groups 2 must divide 4 channels and 3 filters"),
    (((1, 4, 4, 4), (4, 3, 3, 4)), dict(groups=2), ValueError,
     "x has 2 channels in each of 2 groups, w wants 4"),
    (((1, 4, 4, 4), (4, 3, 3, 4)), dict(groups=0), ValueError, "groups is 0, wanted at least 1"),
])
def test_refuses(shapes, options, error, message):
    with pytest.raises(error, match=message):
        conv2d(*map(np.ones, shapes), **options)


def test_refuses_other_dtypes_and_shapes_of_the_bias(cp):
    x, w = np.ones((1, 4, 4, 1)), np.ones((2, 3, 3, 1))
    with pytest.raises(TypeError, match="x is float64, w is float32: one dtype"):
        conv2d(x, w.astype("float32"))
    with pytest.raises(TypeError, match="x is uint8, wanted float32, float64, float16 or bfloat16"):
        conv2d(x.astype("uint8"), w)
    with pytest.raises(ValueError, match=r"b has shape \(3,\), wanted \(2,\)"):
        conv2d(x, w, np.ones(3))
    with pytest.raises(TypeError, match="CPU and GPU do not mix: CPU, GPU"):
        conv2d(x, cp.ones((2, 3, 3, 1)))


def test_the_bias_alone_may_want_a_gradient(xp, rng):
    x, w = (xp.asarray(rng.standard_normal(s)) for s in ((2, 5, 5, 3), (4, 2, 2, 3)))
    b = Tensor(xp.zeros(4), requires_grad=True)
    conv2d(Tensor(x), Tensor(w), b).backward(xp.ones((2, 4, 4, 4)))
    close(b.grad, np.full(4, 32.0), terms=32)
