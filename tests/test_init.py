"""Initial values: fans and formulas, moments of the distributions, dirac as identity."""

import math

import numpy as np
import pytest

from check import close, host
from gpuconv import random
from gpuconv.autograd import Parameter
from gpuconv.backend import float_dtype
from gpuconv.nn import init

SHAPE = (64, 3, 3, 50)  # fan_in 450, fan_out 576
DTYPES = ["float32", "float64", "float16", "bfloat16"]
DRAWS = [  # function, its variance, largest magnitude (uniform) or None (normal)
    pytest.param(init.he_normal_, 2 / 450, None, id="he-normal"),
    pytest.param(lambda p: init.he_normal_(p, "fan_out"), 2 / 576, None, id="he-normal-out"),
    pytest.param(init.he_uniform_, 2 / 450, math.sqrt(6 / 450), id="he-uniform"),
    pytest.param(lambda p: init.he_uniform_(p, "fan_out"), 2 / 576, math.sqrt(6 / 576),
                 id="he-uniform-out"),
    pytest.param(init.glorot_normal_, 2 / 1026, None, id="glorot-normal"),
    pytest.param(init.glorot_uniform_, 2 / 1026, math.sqrt(6 / 1026), id="glorot-uniform"),
    pytest.param(init.torch_default_, 1 / 3 / 450, math.sqrt(1 / 450), id="torch-default"),
]


@pytest.mark.parametrize("shape, want", [
    ((16, 3, 5, 4), (60, 240)),
    ((10, 2048), (2048, 10)),
    ((8, 3, 3, 1), (9, 72)),  # depthwise
])
def test_fans(shape, want):
    assert init.fans(shape) == want
    torch = pytest.importorskip("torch")
    there = torch.empty(shape).permute(0, -1, *range(1, len(shape) - 1))  # (K, C, R, S)
    assert torch.nn.init._calculate_fan_in_and_fan_out(there) == want


@pytest.mark.parametrize("fill, variance, bound", DRAWS)
def test_has_the_moments_of_its_distribution(fill, variance, bound):
    random.seed(1)
    p = Parameter(np.empty(SHAPE, "float64"))
    fill(p)
    x = p.data / math.sqrt(variance)
    kurtosis = 9 / 5 if bound else 3
    n = x.size  # four standard errors of each moment
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt((kurtosis - 1) / n)
    assert abs((x**4).mean() - kurtosis) < 4 * math.sqrt((11.7 if bound else 96) / n)
    if bound:
        assert 0.999 * bound < np.abs(p.data).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_fills_in_place_where_the_parameter_lives(xp, dtype):
    p = Parameter(xp.empty(SHAPE, float_dtype(dtype)))
    array = p.data
    random.seed(3)
    init.he_normal_(p)
    assert p.data is array
    random.seed(3)
    there = Parameter(np.empty(SHAPE, float_dtype(dtype)))
    init.he_normal_(there)
    np.testing.assert_array_equal(host(p.data), there.data)  # the same bits on either device
    init.constant_(p, 0.5)
    assert (host(p.data) == 0.5).all()
    init.ones_(p)
    assert (host(p.data) == 1).all()
    init.zeros_(p)
    assert not host(p.data).any()


def test_seed_decides_and_draws_differ():
    def draw():
        p = Parameter(np.empty(SHAPE, "float32"))
        init.he_uniform_(p)
        return p.data

    random.seed(5)
    a, b = draw(), draw()
    random.seed(5)
    np.testing.assert_array_equal(a, draw())
    assert (a != b).any()


def test_torch_default_gives_the_bias_the_bound_of_the_weight():
    weight, bias = Parameter(np.empty((500, 100), "float32")), Parameter(np.empty(500, "float32"))
    init.torch_default_(weight, bias)
    for p in (weight, bias):
        assert 0.09 < np.abs(p.data).max() <= np.float32(0.1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_dirac_convolution_is_the_identity(rng, groups):
    from gpuconv.ops.conv.conv2d import conv2d
    x = rng.standard_normal((2, 5, 4, 8))
    p = Parameter(np.full((8, 3, 3, 8 // groups), np.nan))
    init.dirac_(p, groups)
    close(conv2d(x, p.data, padding=1, groups=groups), x)


@pytest.mark.parametrize("K, C, groups", [(6, 4, 1), (4, 6, 1), (8, 4, 2)])
def test_dirac_is_pytorchs(K, C, groups):
    torch = pytest.importorskip("torch")
    p = Parameter(np.empty((K, 3, 3, C)))
    init.dirac_(p, groups)
    want = torch.nn.init.dirac_(torch.empty(K, C, 3, 3, dtype=torch.float64), groups)
    np.testing.assert_array_equal(p.data.transpose(0, 3, 1, 2), want)


def test_dirac_may_keep_the_filters_that_are_left(rng):
    before = rng.standard_normal((6, 3, 3, 4))
    p = Parameter(before.copy())
    init.dirac_(p, keep=True)
    np.testing.assert_array_equal(p.data[4:], before[4:])
    init.dirac_(full := Parameter(np.empty((4, 3, 3, 4))))
    np.testing.assert_array_equal(p.data[:4], full.data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whitening_filters_whiten(xp, rng, dtype, monkeypatch):
    monkeypatch.setattr(init, "PATCHES", 5000)
    mixed = rng.standard_normal((40, 12, 11, 3)) @ rng.standard_normal((3, 3))
    x = (mixed + np.roll(mixed, 1, axis=1)).astype(dtype)
    p = Parameter(xp.empty((24, 2, 2, 3), dtype))
    init.whitening_(p, xp.asarray(x), eps=0)
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # (N, P, Q, C, R, S)
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12).astype(np.float64)
    w = host(p.data).reshape(24, 12)
    np.testing.assert_array_equal(w[12:], -w[:12])
    response = patches @ w[:12].T.astype(np.float64)
    second = response.T @ response / len(patches)
    close(second.astype(dtype), np.eye(12, dtype=dtype), terms=len(patches))
    length = np.linalg.norm(w[:12], axis=1)
    assert (np.diff(length) > 0).all()  # the first direction varies most


def test_whitening_divides_by_the_root_of_what_is_added(rng):
    x = rng.standard_normal((9, 6, 6, 2))
    p = Parameter(np.empty((3, 1, 1, 2)))
    init.whitening_(p, x, eps=7.0)
    value, vector = np.linalg.eigh(x.reshape(-1, 2).T @ x.reshape(-1, 2) / (9 * 36))
    want = vector[:, 1] / np.sqrt(value[1] + 7)
    close(p.data[0].ravel(), want, terms=9 * 36)
    np.testing.assert_array_equal(p.data[2], -p.data[0])


@pytest.mark.parametrize("shape, images", [
    ((25, 2, 2, 3), (5, 4, 4, 3)), ((24, 12), (5, 4, 4, 3)), ((24, 2, 2, 3), (0, 4, 4, 3)),
    ((8, 2, 2, 1), (5, 4, 4, 3))])
def test_whitening_refuses(shape, images):
    with pytest.raises(ValueError, match="whitening_: weight"):
        init.whitening_(Parameter(np.empty(shape)), np.zeros(images))


def test_whitening_refuses_what_is_not_finite():
    x = np.zeros((5, 4, 4, 3))
    x[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="whitening_: the images hold NaN or infinity"):
        init.whitening_(Parameter(np.empty((24, 2, 2, 3))), x)


@pytest.mark.parametrize("fill, shape, message", [
    (init.he_normal_, (3,), r"weight \(3,\), wanted \(K, R, S, C\) or \(K, C\)"),
    (init.he_normal_, (0, 3), r"weight \(0, 3\)"),
    (lambda p: init.he_uniform_(p, "fan"), (3, 3), "mode is 'fan', wanted 'fan_in' or 'fan_out'"),
    (lambda p: init.dirac_(p, 2), (3, 1, 1, 3), r"dirac_: weight \(3, 1, 1, 3\), groups 2"),
    (init.dirac_, (3, 3), r"dirac_: weight \(3, 3\)"),
])
def test_refuses(fill, shape, message):
    with pytest.raises(ValueError, match=message):
        fill(Parameter(np.empty(shape)))
