"""Convolutions by im2col and cuBLAS: the definition's results, whatever fits the workspace."""

import numpy as np
import pytest
from test_conv import GEOMETRIES, by_loops, numbers

import gpuconv as gpc
from check import close, host
from gpuconv import ops
from gpuconv.ops.conv import conv_window
from gpuconv.ops.gpu import explicit
from gpuconv.ops.gpu.problem import problem
from gpuconv.ops.window import Window, levelled


def run(cp, rng, x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """y, gx, gw and gy on the host."""
    window = conv_window("conv2d", x, w, b, stride, padding, dilation, groups)
    p = problem(x.shape, w.shape, window, groups)
    gy = rng.standard_normal((p.N, p.P, p.Q, p.K)).astype(x.dtype)
    on_gpu = [None if a is None else cp.asarray(a) for a in (x, w, gy, b)]
    y, gx, gw = (cp.empty(a.shape, x.dtype) for a in (gy, x, w))
    explicit.forward(p, *on_gpu[:2], y, bias=on_gpu[3])
    explicit.input_gradient(p, on_gpu[2], on_gpu[1], gx)
    explicit.weight_gradient(p, on_gpu[0], on_gpu[2], gw)
    return host(y), host(gx), host(gw), gy


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("image, channels, size, options", GEOMETRIES)
def test_is_the_definition(cp, rng, image, channels, size, options, dtype):
    (C, K), groups = channels, options.get("groups", 1)
    x, w, b = numbers(rng, dtype, (2, *image, C), (K, *size, C // groups), (K,))
    *got, gy = run(cp, rng, x, w, b, **options)
    for a, want in zip(got, by_loops(x, w, b, gy, **options), strict=False):
        close(a, want.astype(dtype), terms=gy[..., 0].size + 9 * max(C, K))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_rows_are_rounded_before_they_are_added(cp, rng, dtype):
    x, w = numbers(rng, dtype, (2, 6, 6, 3), (4, 3, 3, 3))
    y, gx, gw, gy = run(cp, rng, x, w, padding=1)
    want_y, want_gx, want_gw, _ = by_loops(x, w, None, gy, padding=1)
    close(y, want_y.astype(y.dtype), terms=27)
    close(gw, want_gw.astype(y.dtype), terms=72)
    rounded = 9 * 2.0**(-11 if dtype == "float16" else -8)  # nine rows, half an ulp each
    rows = np.abs(gy.astype(float)).max() * np.abs(w.astype(float)).max() * 4
    assert np.abs(gx.astype(float) - want_gx).max() <= rounded * rows


def test_a_small_workspace_changes_no_value(cp, monkeypatch):
    rng = np.random.default_rng(0)
    x, w = numbers(rng, "float32", (5, 6, 6, 4), (6, 3, 3, 2))
    want = run(cp, np.random.default_rng(1), x, w, padding=1, groups=2)
    monkeypatch.setattr(explicit, "WORKSPACE", 1)
    for a, b in zip(run(cp, np.random.default_rng(1), x, w, padding=1, groups=2), want,
                    strict=True):
        close(a, b, terms=180)


@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 2), (0, 3)), ((2, 0), (1, 1))])
@pytest.mark.parametrize("stride, dilation", [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((2, 1), (2, 3))])
def test_the_window_of_a_problem_gives_it_again(pads, stride, dilation):
    window = Window((3, 2), stride, pads, dilation)
    p = problem((1, 9, 8, 2), (4, 3, 2, 2), window)
    assert problem((1, 9, 8, 2), (4, 3, 2, 2), explicit.window(p)) == p


def test_windows_that_begin_inside_the_image(cp, rng):
    """A levelled window has a negative padding where its first tap is beyond the first pixel."""
    x, w = numbers(rng, "float32", (2, 7, 7, 3), (4, 3, 3, 3))
    how = dict(padding=((17, 17), (0, 0)), dilation=(20, 1))
    window = levelled(conv_window("conv2d", x, w, None, 1, **how), 7, 7, "met").window
    assert window.pad[0][0] < 0
    taps = w[:, 1:2]
    p = problem(x.shape, taps.shape, window)
    gy, = numbers(rng, "float32", (2, p.P, p.Q, 4))
    x_gpu, w_gpu, gy_gpu = map(cp.asarray, (x, taps, gy))
    y, gx, gw = (cp.empty(a.shape, "float32") for a in (gy, x, taps))
    explicit.forward(p, x_gpu, w_gpu, y)
    explicit.input_gradient(p, gy_gpu, w_gpu, gx)
    explicit.weight_gradient(p, x_gpu, gy_gpu, gw)
    want_y, want_gx, want_gw, _ = by_loops(x, w, None, gy, **how)
    for got, want in ((y, want_y), (gx, want_gx), (gw, want_gw[:, 1:2])):
        close(host(got), want.astype("float32"), terms=40)


def test_a_depthwise_layer_agrees_with_the_default(cp, rng):
    x, w = numbers(rng, "float32", (2, 7, 6, 4), (8, 3, 3, 1))
    *got, gy = run(cp, rng, x, w, padding=1, groups=4)
    y, pull = gpc.vjp(lambda x, w: ops.conv2d(x, w, padding=1, groups=4),
                           cp.asarray(x), cp.asarray(w))
    for a, want in zip(got, (y, *pull(cp.asarray(gy))), strict=True):
        close(a, host(want), terms=100)
