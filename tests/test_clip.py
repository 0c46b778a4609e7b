"""clip_grad_norm: PyTorch's numbers, CUDA against NumPy, infinities, fixed bits, refusals."""

import itertools

import numpy as np
import pytest
from optim_tools import SHAPES, draw, give, joined, parameters

from check import DTYPES, close, host, make
from gpuconv import kernels, threads
from gpuconv.autograd import Parameter
from gpuconv.backend import accumulator, float_dtype
from gpuconv.optim import SGD, clip_grad_norm

TOTAL = 15 + 1 + 70 + 72  # elements of SHAPES


def theirs(gradients, max_norm, frozen=()):
    """PyTorch's norm and gradients; frozen ones as they were."""
    torch = pytest.importorskip("torch")
    ps = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for p, g in zip(ps, gradients, strict=True):
        p.data, p.grad = p.data.to(torch.tensor(g).dtype), torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_(
        [p for i, p in enumerate(ps) if i not in frozen], max_norm)
    return norm.numpy(), [p.grad.numpy() for p in ps]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 5.0, 1e4, float("inf")])
def test_is_pytorchs(xp, rng, dtype, max_norm):
    ps, gradients = parameters(xp, rng, dtype), [make(g, dtype) for g in draw(rng)]
    want_norm, want = theirs(gradients, max_norm)
    sgd = SGD([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.2}], 0.1)
    give(ps, gradients, xp)
    norm = clip_grad_norm(sgd, max_norm)
    assert isinstance(norm, xp.ndarray) and norm.shape == ()
    close(norm, want_norm, terms=TOTAL)
    close(joined([p.grad for p in ps]), joined(want), terms=TOTAL)


@pytest.mark.parametrize("dtype", DTYPES)
def test_definition(xp, rng, dtype):
    """In float64, of what 16 bits hold; rounded once."""
    ps = parameters(xp, rng, dtype)
    sgd = SGD(ps, 0.1)
    give(ps, [100 * g for g in draw(rng)], xp)  # the sum of squares overflows float16
    before = joined([p.grad for p in ps]).astype("float64")
    length = np.linalg.norm(before)
    norm = clip_grad_norm(sgd, 2.0)
    close(norm, np.array(length).astype(accumulator(float_dtype(dtype))))
    close(joined([p.grad for p in ps]), (before * (2 / (length + 1e-6))).astype(float_dtype(dtype)))


def test_short_gradients_keep_their_bits(xp, rng):
    ps, gradients = parameters(xp, rng), draw(rng)
    sgd = SGD(ps, 0.1)
    give(ps, gradients, xp)
    before = joined([p.grad for p in ps])
    assert float(clip_grad_norm(sgd, 1e6)) > 1
    np.testing.assert_array_equal(joined([p.grad for p in ps]), before)


def test_frozen_parameters_do_not_count(xp, rng):
    ps, gradients = parameters(xp, rng), [make(g, "float32") for g in draw(rng)]
    want_norm, want = theirs(gradients, 0.5, frozen=(1, 2))
    sgd = SGD(ps, 0.1)
    give(ps, gradients, xp)
    ps[1].requires_grad = ps[2].requires_grad = False
    close(clip_grad_norm(sgd, 0.5), want_norm, terms=TOTAL)
    close(joined([p.grad for p in ps]), joined(want), terms=TOTAL)
    for p in ps:
        p.requires_grad = False
    assert float(clip_grad_norm(sgd, 0.5)) == 0


def test_dtypes_may_differ(xp, rng):
    narrow, wide = (parameters(xp, rng, dtype) for dtype in ("float16", "float64"))
    sgd = SGD([*narrow, *wide], 0.1)
    give([*narrow, *wide], [*draw(rng), *draw(rng)], xp)
    before = [joined([p.grad for p in ps]).astype("float64") for ps in (narrow, wide)]
    length = np.linalg.norm(np.concatenate(before))
    close(clip_grad_norm(sgd, 1.0), np.array(length))
    for ps, was in zip((narrow, wide), before, strict=True):
        close(joined([p.grad for p in ps]), (was / (length + 1e-6)).astype(ps[0].dtype))


@pytest.mark.parametrize("bad, max_norm", [
    *itertools.product([np.inf, -np.inf, np.nan], [1.0, 1e9]), (np.inf, np.inf)])
def test_what_is_not_finite_is_pytorchs(xp, rng, bad, max_norm):
    ps, gradients = parameters(xp, rng), [make(g, "float32") for g in draw(rng)]
    gradients[2][7] = bad
    want_norm, want = theirs(gradients, max_norm)
    sgd = SGD(ps, 0.1)
    give(ps, gradients, xp)
    close(clip_grad_norm(sgd, max_norm), want_norm)
    close(joined([p.grad for p in ps]), joined(want))
    for p in ps:
        p.zero_grad()  # and the gaps between them are as they were
    assert float(clip_grad_norm(sgd, max_norm)) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_zeros_stay_zeros_when_the_norm_is_nan(xp, dtype):
    p = Parameter(xp.zeros(4, float_dtype(dtype)))
    sgd = SGD([p], 0.1)
    p.grad[...] = xp.asarray(make([0.0, 1.0, np.nan, -0.0], dtype))
    assert np.isnan(float(clip_grad_norm(sgd, 1.0)))
    assert np.isnan(host(p.grad).astype("float64")).tolist() == [False, True, True, False]


def test_squares_beyond_float32_do_not_overflow(xp):
    p = Parameter(xp.zeros(4, "float32"))
    sgd = SGD([p], 0.1)
    p.grad[...] = xp.asarray(np.float32([3e30, 4e30, 0, 0]))
    close(clip_grad_norm(sgd, 1.0), np.array(5e30, "float32"))
    close(p.grad, np.float32([0.6, 0.8, 0, 0]))


def large(xp, dtype):
    rng = np.random.default_rng(5)
    p = Parameter(xp.asarray(make(rng.standard_normal(300_000), dtype)))
    sgd = SGD([p], 0.1)
    p.grad[...] = p.data
    norm = clip_grad_norm(sgd, 3.0)
    return host(norm).tobytes() + host(p.grad).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_same_bits_whatever_the_number_of_threads(dtype, monkeypatch):
    found = set()
    for workers in (1, 2, 5):
        monkeypatch.setattr(threads, "count", lambda workers=workers: workers)
        found.add(large(np, dtype))
    assert len(found) == 1


def test_same_bits_whatever_the_grid(cp, monkeypatch):
    want = large(cp, "float32")
    for blocks in (1, 7):
        monkeypatch.setattr(kernels, "MAX_BLOCKS", blocks)
        assert large(cp, "float32") == want


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_is_numpy_on_many_slices(cp, dtype):
    raw = [large(xp, dtype) for xp in (np, cp)]
    size = accumulator(float_dtype(dtype)).itemsize
    norms = [np.frombuffer(a[:size], accumulator(float_dtype(dtype))) for a in raw]
    close(norms[1], norms[0])
    got, want = (np.frombuffer(a[size:], float_dtype(dtype)) for a in (raw[1], raw[0]))
    close(got, want)


def test_more_slices_than_a_block_has_threads(xp):
    ps = [Parameter(xp.asarray(np.float32([i]))) for i in range(300)]
    sgd = SGD([{"params": [p]} for p in ps], 0.1)  # a flat buffer each
    for p in ps:
        p.grad[...] = p.data
    close(clip_grad_norm(sgd, 1e9), np.array(np.linalg.norm(range(300)), "float32"))


def test_nothing_waits_for_the_gpu(cp, rng, monkeypatch):
    ps = parameters(cp, rng)
    sgd = SGD(ps, 0.1)
    give(ps, draw(rng), cp)

    def fetched(*_, **__):
        raise AssertionError("a copy to the CPU")

    with monkeypatch.context() as m:
        for name in ("get", "item", "tolist", "__float__", "__bool__"):
            if not hasattr(cp.ndarray, "host"):
                break  # the real one cannot be changed
            m.setattr(cp.ndarray, name, fetched)
        norm = clip_grad_norm(sgd, 0.5)
    assert float(norm) > 0.5


def test_addresses_stay(xp, rng):
    ps = parameters(xp, rng)
    sgd = SGD(ps, 0.1)
    give(ps, draw(rng), xp)
    held = [p.grad for p in ps]
    clip_grad_norm(sgd, 0.1)
    assert all(p.grad is g for p, g in zip(ps, held, strict=True))
    sgd.step()


def test_devices_do_not_mix(cp):
    ps = [Parameter(np.zeros(2)), Parameter(cp.zeros(2))]
    with pytest.raises(ValueError, match="clip_grad_norm: parameters are on cpu and cuda:0, "
                                         "wanted one device"):
        clip_grad_norm(SGD(ps, 0.1), 1.0)


@pytest.mark.parametrize("max_norm", [-1, float("nan")])
def test_refuses_a_bad_norm(rng, max_norm):
    sgd = SGD(parameters(np, rng), 0.1)
    with pytest.raises(ValueError, match=f"max_norm is {max_norm}, wanted .*at least 0"):
        clip_grad_norm(sgd, max_norm)


def test_a_norm_too_large_for_a_float_only_measures(rng):
    ps = parameters(np, rng)
    sgd = SGD(ps, 0.1)
    give(ps, draw(rng))
    before = joined([p.grad for p in ps])
    assert clip_grad_norm(sgd, 10**400) == np.float32(np.linalg.norm(before.astype("float64")))
    np.testing.assert_array_equal(joined([p.grad for p in ps]), before)


def test_refuses_what_is_no_optimiser_or_spent(rng):
    ps = parameters(np, rng)
    with pytest.raises(TypeError, match="optimizer is list, wanted an Optimizer"):
        clip_grad_norm(ps, 1.0)
    sgd = SGD(ps, 0.1)
    ps[2].grad = np.zeros(SHAPES[2], "float32")
    with pytest.raises(RuntimeError, match=r"grad of parameter 2 \(70,\) was replaced"):
        clip_grad_norm(sgd, 1.0)
    sgd.release()
    with pytest.raises(RuntimeError, match=r"clip_grad_norm after release\(\): the opt"):
        clip_grad_norm(sgd, 1.0)
