"""The small engines under gpuconv/ops/cpu, by their definition: rows, rectify, zeros."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from check import DTYPES, close, make
from gpuconv.ops.cpu import rows
from gpuconv.ops.cpu.rectify import masked, nonzero, rectify
from gpuconv.ops.cpu.zeros import zeros

few = hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.nan, -np.nan, np.inf, -np.inf, 6e-8, -6e-8]


@few
@hypothesis.given(st.integers(0, 300), st.one_of(st.integers(1, 70), st.integers(4000, 4200)))
def test_with_row_and_column_sums(M, C):
    rng = np.random.default_rng(M * C)
    x, row = rng.integers(-9, 9, (M, C)).astype("float32"), rng.integers(-9, 9, C).astype("float32")
    out = np.full((M, C), np.nan, "float32")
    rows.with_row(np.subtract, x, row, out)
    np.testing.assert_array_equal(out, x - row)
    np.testing.assert_array_equal(rows.column_sums(x), x.sum(axis=0))  # small integers: exact


def test_column_sums_of_what_does_not_sum(rng):
    x = rng.standard_normal((300, 3)).astype("float32")
    x[7, 0], x[200, 1], x[201, 1] = np.nan, np.inf, 1
    close(rows.column_sums(x), x.astype(float).sum(axis=0).astype("float32"), terms=300)


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
