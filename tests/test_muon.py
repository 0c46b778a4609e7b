"""Muon: what Newton-Schulz does to singular values, steps against a plain transcript, CUDA."""

import numpy as np
import pytest

from check import close, host, make
from gpuconv import kernels
from gpuconv.autograd import Parameter
from gpuconv.backend import accumulator, float_dtype
from gpuconv.optim import SGD, Muon, muon
from gpuconv.optim.muon import orthogonalized

QUINTIC = 3.4445, -4.7750, 2.0315  # of the paper
SHAPES = [(4, 3, 3, 2), (5, 7), (24, 6), (3, 3)]


def by_singular_values(d, iterations):
    """The polynomial, applied where it acts: on each singular value."""
    u, s, v = np.linalg.svd(d.astype(np.float64), full_matrices=False)
    s = s / (np.linalg.norm(d.astype(np.float64)) + 1e-7)
    for _ in range(iterations):
        s = QUINTIC[0] * s + QUINTIC[1] * s**3 + QUINTIC[2] * s**5
    return (u * s) @ v


def transcript(p, g, m, lr, momentum, nesterov, weight_decay, iterations, normalize):
    """One step in float64."""
    m = momentum * m + g
    d = g + momentum * m if nesterov else m
    u = by_singular_values(d.reshape(len(p), -1), iterations).reshape(p.shape)
    if normalize:
        p = p * np.sqrt(len(p)) / np.linalg.norm(p)
    return (1 - lr * weight_decay) * p - lr * u, m


def parameters(xp, rng, dtype, shapes=SHAPES):
    return [Parameter(xp.asarray(rng.standard_normal(s).astype(float_dtype(dtype))))
            for s in shapes]


@pytest.mark.parametrize("iterations", [1, 3, 5])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 7), (16, 16)])
def test_newton_schulz_acts_on_the_singular_values(xp, rng, shape, iterations):
    d = rng.standard_normal(shape)
    for dtype in ("float32", "float64"):
        got = orthogonalized(xp.asarray(d.astype(dtype)), iterations)
        close(got, by_singular_values(d, iterations).astype(dtype), terms=4**iterations * 100)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_newton_schulz_of_16_bits_stays_near(xp, rng, dtype):
    d = rng.standard_normal((12, 40)).astype(float_dtype(dtype))
    got = host(orthogonalized(xp.asarray(d), 3)).astype(np.float64)
    s = np.linalg.svd(got, compute_uv=False)
    want = np.linalg.svd(by_singular_values(d.astype(np.float64), 3), compute_uv=False)
    assert abs(s - want).max() < 0.1  # seven bits, twelve products: the polynomial is forgiving


@pytest.mark.parametrize("size", [1e-6, 1e7])
def test_16_bits_need_not_hold_the_gradient(xp, rng, size):
    d = rng.standard_normal((12, 40)).astype("float32")
    want, got = (host(orthogonalized(xp.asarray(d * np.float32(by)), 5, "float16"))
                 for by in (1, size))
    assert got.dtype == "float16" and np.isfinite(got).all()
    assert abs(got.astype("float64") - want).max() < 0.02 * abs(want).max()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_what_stands_between_the_products_is_numpy(cp, rng, dtype):
    p, q = rng.standard_normal((2, 43, 43)).astype(dtype)
    mix, (wide, other) = cp.asarray(q), (a.astype("float64") for a in (p, q))
    kernels.kernel("optim/newton_schulz.cu", "newton_schulz_mix", T=p.dtype)(
        p.size, cp.asarray(p), mix, 1.5, 2.5, -3.0, 43, p.size)
    close(mix, (1.5 * np.eye(43) + 2.5 * wide - 3.0 * other).astype(dtype), terms=2)
    for size in (1.0, 3e-8, 0.0):  # TINY counts in the second
        d = (size * p).astype(accumulator(dtype))
        close(muon._unit_gpu(cp.asarray(d), np.dtype(dtype)), muon._unit_cpu(d, np.dtype(dtype)),
              terms=d.size)


def test_a_gradient_of_zeros_gives_no_update(xp):
    assert (host(orthogonalized(xp.zeros((3, 4), "float32"), 5)) == 0).all()


@pytest.mark.parametrize("settings", [
    dict(), dict(nesterov=False), dict(normalize=True), dict(weight_decay=0.1),
    dict(normalize=True, weight_decay=0.1, momentum=0.6, iterations=3)],
    ids=["plain", "not ahead", "normalized", "decay", "all"])
def test_steps_are_those_of_the_transcript(xp, rng, settings):
    full = dict(momentum=0.95, nesterov=True, weight_decay=0.0, iterations=5,
                normalize=False) | settings
    ps = parameters(xp, rng, "float64")
    muon = Muon(ps, 0.1, **settings)
    want = [host(p.data).copy() for p in ps]
    ms = [np.zeros(p.shape) for p in ps]
    for factor in (1.0, 0.5):
        muon.factor = factor
        for i, p in enumerate(ps):
            g = rng.standard_normal(p.shape)
            p.grad[...] = xp.asarray(g)
            want[i], ms[i] = transcript(want[i], g, ms[i], lr=0.1 * factor, **full)
        muon.step()
    for i, p in enumerate(ps):
        close(p.data, want[i], terms=10**6)
        close(muon.state_dict()[f"momentum.{i}"], ms[i], terms=10)


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_is_numpy(cp, rng, dtype, master):
    there = parameters(np, rng, dtype)
    here = [Parameter(cp.asarray(p.data)) for p in there]
    settings = dict(lr=0.1, normalize=True, weight_decay=0.01, iterations=2, master=master)
    gpu, cpu = Muon(here, **settings), Muon(there, **settings)
    for p, q in zip(here, there, strict=True):
        q.grad[...] = rng.standard_normal(q.shape)
        p.grad[...] = cp.asarray(q.grad)
    gpu.step()
    cpu.step()
    got, want = gpu.state_dict(), cpu.state_dict()
    assert got.keys() == want.keys() and any(n.startswith("master") for n in got) == (
        master and dtype == "float16")
    for i, (p, q) in enumerate(zip(here, there, strict=True)):
        close(got[f"momentum.{i}"], want[f"momentum.{i}"], terms=4)
        if dtype == "float16":  # what is rounded between the products differs
            far = abs(host(p.data).astype(float) - q.data)
            assert 0 < far.max() < 2**-10 * abs(q.data).max()
        else:
            close(p.data, host(q.data), terms=1000)


@pytest.mark.parametrize("dtype, how", [
    ("float32", dict(normalize=True)), ("float16", dict(normalize=True, master=True)),
    ("float64", dict(nesterov=False))])
def test_what_stands_around_the_products_is_numpy(cp, rng, monkeypatch, dtype, how):
    monkeypatch.setattr(muon, "orthogonalized", lambda d, _, T: d.astype(T))
    there = parameters(np, rng, dtype)
    here = [Parameter(cp.asarray(p.data)) for p in there]
    pair = [Muon(ps, 0.1, weight_decay=0.3, **how) for ps in (here, there)]
    for factor, multiplier, skip in ((0.7, 0.5, 0), (1.0, 2.0, 1), (0.3, 1.0, 0)):
        for p, q in zip(here, there, strict=True):
            q.grad[...] = rng.standard_normal(q.shape)
            p.grad[...] = cp.asarray(q.grad)
        for its in pair:
            its.factor = factor
            its.control[1:2].fill(multiplier)
            its.control[2:3].fill(skip)
            its.step()
        got, want = (its.state_dict() for its in pair)
        for name in want:
            close(got[name], want[name], terms=10)
        for p, q in zip(here, there, strict=True):
            close(p.data, q.data, terms=10)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masters_are_what_float32_weights_become_bit_for_bit(xp, rng, monkeypatch, dtype, nesterov):
    """From the same gradients and the same update, whose products are in the weights' dtype."""
    monkeypatch.setattr(muon, "orthogonalized",
                        lambda d, _, T: d.astype(float_dtype(dtype)).astype(T))
    ps = parameters(xp, rng, dtype)
    wide = [Parameter(p.data.astype("float32")) for p in ps]
    pair = [Muon(its, 0.1, weight_decay=0.3, nesterov=nesterov, master=True) for its in (ps, wide)]
    for factor in (1.0, 0.3, 0.7):
        for p, w in zip(ps, wide, strict=True):
            w.grad[...] = xp.asarray(make(rng.standard_normal(p.shape), dtype).astype("float32"))
            p.grad[...] = w.grad.astype(p.dtype)
        for its in pair:
            its.factor = factor
            its.step()
    state = pair[0].state_dict()
    for i, w in enumerate(wide):
        np.testing.assert_array_equal(host(state[f"master.{i}"]), host(w.data))


def test_a_step_that_is_skipped_changes_nothing(xp, rng):
    ps = parameters(xp, rng, "float32")
    muon = Muon(ps, 0.1)
    for p in ps:
        p.grad[...] = 1
    muon.step()
    before = [host(a).copy() for a in (*(p.data for p in ps), *muon.state_dict().values())]
    muon.control[2:3].fill(1)
    muon.step()
    after = [host(a) for a in (*(p.data for p in ps), *muon.state_dict().values())]
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_are_multiplied_first(xp, rng):
    ps, qs = (parameters(xp, np.random.default_rng(1), "float64") for _ in range(2))
    scaled, plain = Muon(ps, 0.1), Muon(qs, 0.1)
    scaled.control[1:2].fill(0.25)
    for p, q in zip(ps, qs, strict=True):
        g = rng.standard_normal(p.shape)
        p.grad[...], q.grad[...] = xp.asarray(4 * g), xp.asarray(g)
    scaled.step()
    plain.step()
    for p, q in zip(ps, qs, strict=True):
        np.testing.assert_array_equal(host(p.data), host(q.data))


def test_groups_that_are_not_orthogonal_are_sgd(xp, rng):
    ps, qs = (parameters(xp, np.random.default_rng(2), "float32", [(3, 4), (5,)])
              for _ in range(2))
    how = dict(momentum=0.85, nesterov=True, weight_decay=0.01)
    muon = Muon([dict(params=ps, orthogonal=False)], 0.1, **how)
    sgd = SGD(qs, 0.1, **how)
    for _ in range(2):
        for p, q in zip(ps, qs, strict=True):
            g = xp.asarray(rng.standard_normal(p.shape).astype("float32"))
            p.grad[...], q.grad[...] = g, g
        muon.step()
        sgd.step()
    for p, q in zip(ps, qs, strict=True):
        np.testing.assert_array_equal(host(p.data), host(q.data))


def test_goes_on_from_its_state(rng):
    ps, qs = (parameters(np, np.random.default_rng(3), "float32") for _ in range(2))
    first, second = Muon(ps, 0.1, normalize=True), Muon(qs, 0.5)
    gs = [rng.standard_normal(p.shape) for p in ps]
    for p, g in zip(ps, gs, strict=True):
        p.grad[...] = g
    first.step()
    second.load_state_dict(first.state_dict())
    for p, q, g in zip(ps, qs, gs, strict=True):
        q.data = p.data
        p.grad[...], q.grad[...] = -g, -g
    first.step()
    second.step()
    for p, q in zip(ps, qs, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize("shapes, settings, message", [
    ([(3,)], {}, r"shapes \(3,\) are no matrices"),
    ([(3, 3)], dict(iterations=0), "iterations is 0, wanted 1..1e\\+06"),
    ([(3, 3)], dict(iterations=1.5), "iterations is 1.5"),
    ([(3, 3)], dict(momentum=0.0), "nesterov wants momentum"),
    ([(3, 3)], dict(lr=-1), "lr is -1"),
])
def test_refuses(rng, shapes, settings, message):
    with pytest.raises(ValueError, match=message):
        Muon(parameters(np, rng, "float32", shapes), **(dict(lr=0.1) | settings))


@pytest.mark.parametrize("size", [1e20, 1e25, 1e37])
def test_squares_beyond_float32_do_no_harm(xp, rng, size):
    d = rng.standard_normal((6, 9)).astype("float32")
    got = host(orthogonalized(xp.asarray(d * np.float32(size)), 5))
    close(got, by_singular_values(d, 5).astype("float32"), terms=100)
