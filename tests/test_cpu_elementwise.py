"""The small engines of the CPU by their definition: sums, maxima, rectify, GELU."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from check import DTYPES, close, make
from gpuconv import random
from gpuconv.ops.elementwise import cpu_gelu
from gpuconv.ops.elementwise.cpu_philox import words_at_least
from gpuconv.ops.elementwise.cpu_relu import masked, nonzero, rectify
from gpuconv.ops.engine import row_broadcast
from gpuconv.ops.engine.maxima import max_middle, scatter_middle
from gpuconv.ops.engine.sums import sum_axes, sum_middle
from gpuconv.ops.engine.zeros import zeros
from gpuconv.ops.norm import cpu_batch

few = hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.nan, -np.nan, np.inf, -np.inf, 6e-8, -6e-8]


@few
@hypothesis.given(st.integers(0, 300), st.one_of(st.integers(1, 70), st.integers(4000, 4200)))
def test_with_row(M, C):
    rng = np.random.default_rng(M * C)
    x, row = rng.integers(-9, 9, (M, C)).astype("float32"), rng.integers(-9, 9, C).astype("float32")
    out = np.full((M, C), np.nan, "float32")
    row_broadcast.with_row(np.subtract, x, row, out)
    np.testing.assert_array_equal(out, x - row)


def test_sums_of_nan_and_infinity(rng):
    x = rng.standard_normal((300, 3))
    x[7, 0], x[200, 1], x[201, 1] = np.nan, np.inf, 1
    close(sum_axes(x.astype("float32"), (0,)).astype("float32"), x.sum(axis=0).astype("float32"),
          terms=300)


SHAPES = [  # A, B, C
    (3, 5, 7), (2, 300, 3), (1, 256, 640), (4, 16, 256), (5, 8192, 1), (2, 1000, 1),
    (700, 3, 1), (1, 1, 1), (0, 3, 4), (3, 4, 0)]


@pytest.mark.parametrize("budget", [1, None], ids=["tiny-pieces", "as-ever"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 0, 4), (3, 0, 1)])
def test_sum_middle(rng, monkeypatch, shape, dtype, budget):
    if budget:
        monkeypatch.setattr("gpuconv.threads.CACHE", budget)
    x = make(rng.integers(-9, 10, shape), dtype)  # exact
    y = sum_middle(x)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, x.sum(axis=1, dtype=float))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_max_middle_and_back(rng, shape, dtype):
    """Many ties, NaN and infinities; the first of equals, and of NaN, gets the gradient."""
    values = [0, 1, 2, np.nan, np.inf, -np.inf]
    x = make(rng.choice(values, shape, p=[.5, .2, .2, .02, .03, .05]), dtype)
    A, B, C = shape
    want = x.argmax(axis=1) if x.size else np.zeros((A, C), int)
    for mark in ("uint8", "int64") if B <= 256 else ("int32",):
        y, at = make(np.zeros((A, C)), dtype), np.full((A, C), 7, mark)
        max_middle(x, y, at)
        np.testing.assert_array_equal(at, want)
        np.testing.assert_array_equal(y, np.take_along_axis(x, want[:, None], axis=1)[:, 0])
        value = np.zeros_like(y)
        max_middle(x, value, None)
        np.testing.assert_array_equal(value, y)
        gy = make(rng.choice(SPECIAL, y.shape), dtype)
        gx, want_gx = np.ones_like(x), np.zeros_like(x)
        scatter_middle(gy, at, gx)
        np.put_along_axis(want_gx, want[:, None], gy[:, None], axis=1)
        np.testing.assert_array_equal(gx, want_gx)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 1000])
@pytest.mark.parametrize("nan", [True, False], ids=["with-nan", "finite"])
def test_rectify_is_its_definition(rng, dtype, size, nan):
    x = rng.choice([v for v in SPECIAL if nan or v == v], size)
    x, y = make(x, dtype), make(np.full(size, 9), dtype)
    rectify(x, y)
    v = x.astype(float)
    want = np.where(v > 0, v, np.where(np.isnan(v), np.nan, 0))
    np.testing.assert_array_equal(y.astype(float), want)
    bits = nonzero(y)
    assert bits.nbytes == -(-size // 8)
    g = make(rng.choice(SPECIAL, size), dtype)
    gx = make(np.full(size, 9), dtype)
    masked(g, bits, gx)
    np.testing.assert_array_equal(gx.astype(float), np.where(want != 0, g.astype(float), 0))


def test_zeros_are_shared_and_cannot_be_written():
    a, b = zeros(5, "float32"), zeros(3, "float32")
    assert np.shares_memory(a, b) and not zeros(10**5, "float32").any()
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1


def test_gelu_is_as_exact_as_it_says():
    """Against SciPy in float64, on every 997th float32 from 1e-8 to 14, and evenly to 9."""
    from scipy.special import log_ndtr, ndtr
    bits = np.arange(*np.array([1e-8, 14], "float32").view("int32"), 997, dtype="int32")
    t = np.concatenate([bits.view("float32"), np.linspace(0, 9, 100_000, dtype="float32")])
    x = np.concatenate([t, -t])
    y, slope = np.empty((2, x.size), "float32")
    cpu_gelu.gelu(x, y, slope)
    v = x.astype(float)
    want = v * np.exp(log_ndtr(v))
    off = np.abs(y - want) / np.where(v, np.abs(want), 1)
    assert off[v > -3].max() < 1e-6 and off[v > -9].max() < 1e-5
    want = ndtr(v) + v * np.exp(-v * v / 2) / np.sqrt(2 * np.pi)
    assert np.abs(slope - want).max() < 5e-7


def test_gelu_of_what_is_not_finite():
    x = np.array([np.inf, 1, -np.inf, np.nan, 0, -0.0, 3e38, -3e38, 1e-40, -1e-40], "float32")
    y, slope = np.empty((2, x.size), "float32")
    cpu_gelu.gelu(x, y, slope)
    np.testing.assert_array_equal(y[[0, 2, 3, 4, 5, 6, 7]], [np.inf, np.nan, np.nan, 0, 0, x[6], 0])
    np.testing.assert_allclose(y[8:], x[8:] / 2)
    np.testing.assert_array_equal(slope[[0, 2, 3, 6, 7]], [np.nan, np.nan, np.nan, 1, 0])
    np.testing.assert_allclose(slope[[4, 5, 8, 9]], 0.5, rtol=1e-6)
    cpu_gelu.gelu(x, x, None)
    np.testing.assert_array_equal(x, y)


@few
@hypothesis.given(st.integers(0, 2**34), st.integers(0, 9), st.integers(0, 2**64 - 1),
                  st.tuples(*[st.integers(0, 2**32 - 1)] * 2), st.integers(0, 2**32))
def test_words_are_philoxs(first, count, step, key, limit):
    counter = np.arange(first, first + count, dtype=np.uint64)
    halves = counter & np.uint64(random.LOW), counter >> np.uint64(32)
    want = np.stack(random.philox((*halves, step & random.LOW, step >> 32), key), axis=1)
    np.testing.assert_array_equal(words_at_least(limit, first, count, step, key),
                                  want.reshape(-1) >= limit)


@pytest.mark.parametrize("scale", [1e25, 1e38, np.inf], ids=str)
def test_what_overflows_in_a_norm_shows_and_gives_no_warning(rng, monkeypatch, scale):
    """Warnings are errors here; what is finite stays as it is."""
    monkeypatch.setattr("gpuconv.threads.CACHE", 1)  # pieces, on all threads
    x = rng.standard_normal((64, 8, 8, 3)).astype("float32")
    x[0, 0, 0, 1] = scale
    zero, one = np.zeros(3, "float32"), np.ones(3, "float32")
    mean, m2 = cpu_batch.moments(x)
    assert not np.isfinite(m2[1]) and np.isfinite(m2[[0, 2]]).all() and np.isfinite(mean[0])
    y, positive = cpu_batch.normalise(x, zero, np.float32([1, 1e20, 1]), zero, True, True)
    assert y[0, 0, 0, 1] == np.inf and np.isfinite(y[..., [0, 2]]).all()
    total, along = cpu_batch.sums(x, x, zero, positive, np.empty_like(x))
    assert along[1] == np.inf and np.isfinite(along[[0, 2]]).all() and np.isfinite(total[0])
    gx = np.empty_like(x)
    cpu_batch.pull(x, x, zero, np.float32([1, 1e20, 1]), -one, zero, None, gx)
    assert np.isnan(gx[0, 0, 0, 1]) or scale < np.inf
    assert np.isfinite(gx[..., [0, 2]]).all()
