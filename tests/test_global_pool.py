"""global_avg_pool2d and global_max_pool2d: reductions over the image, CPU and CUDA alike."""

import numpy as np
import pytest

from check import DTYPES, close, defined, grad_check, host, make, nchw, nhwc, shifted
from gpuconv import kernels
from gpuconv.autograd import Tensor
from gpuconv.ops.pool.global_pool import global_avg_pool2d, global_max_pool2d

BOTH = pytest.mark.parametrize("pool", [global_avg_pool2d, global_max_pool2d])
IMAGES = [pytest.param((4, 4), id="square"), pytest.param((3, 7), id="oblong"),
          pytest.param((1, 1), id="one-pixel")]


def run(xp, pool, x, gy=None):
    """y, gx and gy on the host; gy is all ones if not given."""
    x = Tensor(xp.asarray(x), requires_grad=True)
    y = pool(x)
    gy = np.ones(y.shape, y.dtype) if gy is None else gy(y.shape).astype(y.dtype)
    y.backward(xp.asarray(gy))
    return host(y.data), host(x.grad), gy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image", IMAGES)
def test_mean_is_the_definition(xp, rng, image, dtype):
    x = make(rng.standard_normal((2, *image, 5)), dtype)
    y, gx, gy = run(xp, global_avg_pool2d, x, rng.standard_normal)
    want_y, want_gx = defined("global_avg_pool2d", gy, x)
    close(y, want_y.astype(x.dtype), terms=image[0] * image[1])
    close(gx, want_gx.astype(x.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image", IMAGES)
def test_maximum_is_the_definition(xp, rng, image, dtype):
    x = make(rng.integers(-2, 3, (2, *image, 5)), dtype)  # many ties
    y, gx, gy = run(xp, global_max_pool2d, x, rng.standard_normal)
    want_y, want_gx = defined("global_max_pool2d", gy, x)
    close(y, want_y.astype(x.dtype))
    close(gx, want_gx.astype(x.dtype))


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 16), (2, 10, 13, 8), (1, 30, 20, 3), (3, 17, 16, 72)],
                         ids=str)
def test_cuda_as_numpy_in_packs_with_few_threads_and_many(cp, rng, pool, shape, dtype):
    values = rng.choice([-np.inf, np.nan, 0, 1, 2], shape, p=[.3, .01, .3, .3, .09])
    x = make(rng.standard_normal(shape) if pool is global_avg_pool2d else values, dtype)
    want_y, want_gx, gy = run(np, pool, x, rng.standard_normal)
    y, gx, _ = run(cp, pool, x, lambda _: gy)
    close(y, want_y, terms=shape[1] * shape[2])
    close(gx, want_gx)


@BOTH
def test_arrays_that_begin_anywhere(cp, rng, pool):
    x = rng.standard_normal((2, 6, 6, 8)).astype("float32")
    want_y, want_gx, gy = run(np, pool, x, rng.standard_normal)
    t = Tensor(shifted(cp, x), requires_grad=True)
    y = pool(t)
    y.backward(shifted(cp, gy))
    close(y.data, want_y, terms=36)
    close(t.grad, want_gx)


@BOTH
def test_gradient_is_the_slope(rng, pool):
    grad_check(pool, rng.permutation(2 * 5 * 4 * 3).reshape(2, 5, 4, 3) * 0.1, rng=rng)


@BOTH
def test_as_pytorch(rng, pool):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((3, 6, 5, 4))
    theirs = torch.from_numpy(nchw(x)).requires_grad_()
    reduce = torch.mean if pool is global_avg_pool2d else torch.nn.functional.adaptive_max_pool2d
    want = reduce(theirs, (2, 3)) if reduce is torch.mean else reduce(theirs, 1)[:, :, 0, 0]
    y, gx, gy = run(np, pool, x, rng.standard_normal)
    want.backward(torch.from_numpy(gy))
    close(y, want.detach().numpy(), terms=30)
    close(gx, nhwc(theirs.grad))


@pytest.mark.parametrize("pixels, first", [
    ([1, 3, 3, 2], 1), ([1, np.nan, np.inf, np.nan], 1), ([-np.inf] * 4, 0), ([np.nan] * 4, 0)])
def test_ties_and_nan_go_to_the_first(xp, pixels, first):
    x = np.array(pixels, "float32").reshape(1, 2, 2, 1)
    y, gx, _ = run(xp, global_max_pool2d, x)
    close(y, x.reshape(4)[first].reshape(1, 1))
    close(gx.ravel(), np.eye(4, dtype="float32")[first])


def test_a_mean_of_many_half_precision_ones_is_one(xp):
    y, gx, _ = run(xp, global_avg_pool2d, np.ones((1, 64, 64, 1), "float16"))
    assert y.item() == 1 and (gx == np.float16(1 / 4096)).all()


def test_a_large_image_has_a_wider_argmax(xp, rng):
    x = rng.permutation(20 * 20 * 2).reshape(1, 20, 20, 2).astype("float32")
    x[0, 19, 19] = 1000
    y, gx, _ = run(xp, global_max_pool2d, x)
    assert y.tolist() == [[1000, 1000]] and gx[0, 19, 19].tolist() == [1, 1] and gx.sum() == 2
    saved = global_max_pool2d(Tensor(xp.asarray(x), requires_grad=True)).creator.argmax
    assert saved.dtype == np.int32


@BOTH
@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, pool, limit, value):
    x = rng.standard_normal((2, 4, 4, 300)).astype("float32")
    want_y, want_gx, gy = run(np, pool, x, rng.standard_normal)
    monkeypatch.setattr(kernels, limit, value)
    y, gx, _ = run(cp, pool, x, lambda _: gy)
    close(y, want_y, terms=16)
    close(gx, want_gx)


@BOTH
def test_many_chunks_are_as_one(rng, monkeypatch, pool):
    x = rng.standard_normal((9, 5, 4, 3)).astype("float32")
    y, gx, gy = run(np, pool, x, rng.standard_normal)
    for place in ("pool.global_pool", "engine.maxima"):
        monkeypatch.setattr(f"gpuconv.ops.{place}.POOL_WORKSPACE", 1)
    for one, many in zip((y, gx), run(np, pool, x, lambda _: gy)[:2], strict=True):
        assert one.tobytes() == many.tobytes()


@BOTH
@pytest.mark.parametrize("view", [
    pytest.param(lambda x: x.transpose(0, 2, 1, 3), id="transposed"),
    pytest.param(lambda x: x[:, ::-1, ::2], id="strided"),
])
def test_views_and_broadcast_gradients(xp, rng, pool, view):
    a = rng.standard_normal((2, 4, 4, 5)).astype("float32")
    want_y, want_gx, _ = run(np, pool, np.ascontiguousarray(view(a)))
    x = Tensor(view(xp.asarray(a)), requires_grad=True)
    y = pool(x)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    close(y.data, want_y, terms=16)
    close(x.grad, want_gx)


def test_saves_little(xp):
    x = Tensor(xp.zeros((4, 8, 8, 3), "float32"), requires_grad=True)
    mean, largest = global_avg_pool2d(x).creator, global_max_pool2d(x).creator
    assert not any(hasattr(v, "nbytes") for v in vars(mean).values())
    assert largest.argmax.nbytes == 4 * 3
    assert type(global_max_pool2d(x.data)) is type(x.data)


@BOTH
def test_empty_batch(xp, pool):
    y, gx, _ = run(xp, pool, np.ones((0, 4, 4, 3), "float32"))
    assert y.shape == (0, 3) and gx.shape == (0, 4, 4, 3)


@BOTH
@pytest.mark.parametrize("shape, dtype, error, message", [
    ((4, 4, 1), float, ValueError, r"_pool2d: x has shape \(4, 4, 1\), wanted \(N, H, W, C\)"),
    ((1, 0, 4, 1), float, ValueError, "only N may be 0"),
    ((1, 4, 4, 1), int, TypeError, "x is int64, wanted float32"),
])
def test_refuses(pool, shape, dtype, error, message):
    with pytest.raises(error, match=message):
        pool(Tensor(np.zeros(shape, dtype)))
