"""Sums over rows: every dtype, narrow and wide, few and many rows, always in the same order."""

import numpy as np
import pytest
from test_gpu_mma import on_the_cpu

from check import DTYPES, close, make
from gpuconv.backend import accumulator
from gpuconv.ops.engine import column_sums as engine
from hostcuda import changed, fake_cupy
from hostcuda.hostcuda import HostKernel

SHAPES = {  # rows, columns
    "none": (0, 5), "one number": (1, 1), "a batch": (128, 10), "one column": (5000, 1),
    "ten columns": (9001, 10), "64 columns": (2500, 64), "130 columns": (3000, 130),
    "wide": (9, 2048), "wide and odd": (70, 2051), "a tile of one pack": (700, 264),
    "one row": (1, 300),
}


def summed(cp, a, out=None):
    """As a NumPy array."""
    out = cp.empty(a.shape[1], out or a.dtype)
    engine.column_sums(cp.asarray(a), out)
    return out.get()


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_is_the_sum(cp, rng, name, T):
    a = make(rng.standard_normal(SHAPES[name]), T)
    wide = accumulator(a.dtype)
    want = a.astype(np.longdouble).sum(0)
    for out in {a.dtype, wide}:
        close(summed(cp, a, out), want.astype(out), terms=len(a))


def test_no_columns(cp):
    assert summed(cp, np.zeros((7, 0), np.float32)).shape == (0,)


def test_rounds_once(cp):
    """4096 + 1 in float16 is 4096, and 65504 + 65504 infinite; their float32 sums are not."""
    a = np.ones((4096 + 9, 8), np.float16)
    assert (summed(cp, a, np.float32) == 4105).all() and (summed(cp, a) == 4104).all()
    a = np.full((3, 3), 65504, np.float16)
    a[1] *= -1
    assert (summed(cp, a) == 65504).all()


def test_infinity_and_nan_stay_in_their_column(cp, rng):
    a = rng.standard_normal((900, 30)).astype(np.float32)
    a[500, 7], a[800, 29] = np.nan, np.inf
    got = summed(cp, a)
    assert np.isnan(got[7]) and np.isposinf(got[29]) and np.isfinite(np.delete(got, [7, 29])).all()


@pytest.mark.parametrize("name", ["64 columns", "ten columns", "a batch"])
@pytest.mark.parametrize("T", ["float16", "float32"])
def test_a_view_that_starts_anywhere_has_the_same_bits(cp, rng, name, T):
    a = make(rng.standard_normal(SHAPES[name]), T)
    room = cp.asarray(np.concatenate([a.ravel()[:1], a.ravel()]))
    out = cp.empty(a.shape[1] + 1, a.dtype)[1:]
    engine.column_sums(room[1:].reshape(a.shape), out)
    np.testing.assert_array_equal(out.get(), summed(cp, a))


@on_the_cpu
@pytest.mark.parametrize("name", ["130 columns", "ten columns"])
def test_the_same_bits_in_every_order_of_threads(cp, rng, monkeypatch, name):
    a, results = make(rng.standard_normal(SHAPES[name]), "float32"), set()
    for seed in (0, 1, 2, 2):
        monkeypatch.setattr(HostKernel, "seed", seed)
        results.add(summed(cp, a).tobytes())
    assert len(results) == 1


@on_the_cpu
def test_can_be_captured(rng):
    from test_capture import Captured
    (a, b) = rng.standard_normal((2, *SHAPES["64 columns"])).astype(np.float32)
    rows, out = fake_cupy.asarray(a), fake_cupy.empty(64, np.float32)
    first, second = (Captured(lambda: engine.column_sums(rows, out)) for _ in range(2))
    assert changed(first.graph, second.graph) == []
    rows[...] = fake_cupy.asarray(b)
    first.replay()
    np.testing.assert_array_equal(out.get(), summed(fake_cupy, b))


# -- how it is cut ---------------------------------------------------------------------------


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("K", [1, 3, 10, 32, 64, 100, 130, 512, 1000, 2048, 2051, 10**6])
def test_a_pass_over_much_fills_the_device_and_the_next_has_little_to_do(K, itemsize):
    for n in (10**4, 10**6, 10**8):
        how = engine.first_pass(n, K, itemsize)
        tiles = -(-how.line // how.V // how.lanes)
        assert how.line % K == 0 and how.line % how.V == 0 and 1 <= how.lanes <= 32
        if how.slices > 1:
            assert how.V * itemsize == 16 and how.slices * tiles <= engine.BLOCKS
            assert how.slices * how.line <= n * K / 4
        if n * K * itemsize > 64 << 20 and tiles <= engine.BLOCKS // 2:
            assert how.slices * tiles > engine.BLOCKS / 2
        assert 2 * (tiles * how.lanes - how.line // how.V) < max(2, tiles * how.lanes)


def test_a_pass_depends_on_nothing_but_the_shape():
    assert engine.first_pass(128 * 1024, 64, 2) == engine.Pass(V=8, line=64, lanes=8, slices=512)
    assert engine.first_pass(16, 64, 2) == engine.last_pass(16, 64, 2)
