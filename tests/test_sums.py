"""Long sums, wherever there are some: off by less than 1e-6 of the sum of magnitudes, however long.

All terms are one number, 1.1, whose partial sums are all rounded the same way: in a running float32
sum the errors add up, to 2^-26 for each term. (Sums of random numbers are 100 times as good.)
"""

import numpy as np
import pytest

from check import host
from gpuconv import ops, threads
from gpuconv.autograd import Tensor
from gpuconv.ops.conv import gpu_mma_wgrad, gpu_simt
from gpuconv.ops.engine.column_sums import column_sums
from gpuconv.ops.engine.elements import total
from gpuconv.ops.engine.sums import block_sums, multiply
from gpuconv.ops.window import ConvShape, Window

MOST = 1e-6
TERM = np.float32(1.1)
N = 120_000  # terms: a running sum of them is off by 1e-3


def full(xp, *shape, dtype="float32"):
    return xp.asarray(np.full(shape, TERM, dtype))


def grad(xp, f, shape, gy, start=0.0):
    """The gradient of f at an array of one number."""
    p = Tensor(xp.asarray(np.full(shape, start, "float32")), requires_grad=True)
    f(p).backward(gy)
    return p.grad


def ones(xp, *shape):
    return xp.ones(shape, "float32")


CASES = {  # what is summed: a function of xp, and how many terms each result has
    "conv2d, bias": (lambda xp: grad(xp, lambda b: ops.conv2d(
        ones(xp, 1, 300, 400, 1), ones(xp, 2, 1, 1, 1), b), 2, full(xp, 1, 300, 400, 2)), N),
    "linear, bias": (lambda xp: grad(xp, lambda b: ops.linear(
        ones(xp, N, 1), ones(xp, 3, 1), b), 3, full(xp, N, 3)), N),
    "add": (lambda xp: grad(xp, lambda b: ops.add(ones(xp, N, 3), b), 3, full(xp, N, 3)), N),
    "sub": (lambda xp: grad(xp, lambda b: ops.sub(b, ones(xp, N, 3)), 3, full(xp, N, 3)), N),
    "mul": (lambda xp: grad(xp, lambda b: ops.mul(ones(xp, N, 3), b), 3, full(xp, N, 3)), N),
    "div": (lambda xp: grad(xp, lambda b: ops.div(b, ones(xp, N, 3)), 3, full(xp, N, 3)), N),
    "add, to one number": (lambda xp: grad(
        xp, lambda b: ops.add(ones(xp, N, 1), b), (), full(xp, N, 1)), N),
    "add, to a middle axis": (lambda xp: grad(xp, lambda b: ops.add(
        ones(xp, 200, 5, 600), b), (5, 1), full(xp, 200, 5, 600)), N),
    "bias_relu": (lambda xp: grad(xp, lambda b: ops.bias_relu(
        ones(xp, N, 1), b), 1, full(xp, N, 1)), N),
    "batch_norm, beta": (lambda xp: grad(xp, lambda b: ops.batch_norm(
        xp.asarray(np.float32(np.arange(3 * N).reshape(N, 3) % 7)), None, b, None, None,
        training=True), 3, full(xp, N, 3)), N),
    "sum": (lambda xp: ops.sum(full(xp, 300, 400)), N),
    "sum, axis 0": (lambda xp: ops.sum(full(xp, N, 3), axis=0), N),
    "sum, columns of transposed memory": (lambda xp: ops.sum(
        xp.asarray(np.full((5000, 300), TERM, "float32").T), axis=1), 5000),
    "sum, last axis": (lambda xp: ops.sum(full(xp, 3, N), axis=-1), N),
    "sum, a middle axis": (lambda xp: ops.sum(full(xp, 2, N // 2, 3), axis=1), N // 2),
    "sum, two axes apart": (lambda xp: ops.sum(full(xp, 300, 3, 400), axis=(0, 2)), N),
    "sum, transposed": (lambda xp: ops.sum(full(xp, 3, N).T, axis=0), N),
    "mean": (lambda xp: ops.mean(full(xp, N, 2), axis=0), 1),
    "global_avg_pool2d": (lambda xp: ops.global_avg_pool2d(full(xp, 1, 300, 400, 1)), 1),
    "avg_pool2d": (lambda xp: ops.avg_pool2d(full(xp, 1, 300, 400, 1), (300, 200)), 1),
    "softmax, axis 0": (lambda xp: ops.softmax(ones(xp, N, 2), axis=0) * N * TERM, 1),
    "softmax_cross_entropy": (lambda xp: ops.softmax_cross_entropy(
        ones(xp, N, 3), xp.zeros(N, np.int64)) * float(TERM / np.log(3)), 1),
}


BEHIND = ["conv2d, bias", "linear, bias", "softmax_cross_entropy"]  # kernels slow to compile


@pytest.mark.parametrize("case", CASES)
def test_of_many_terms(case):
    many_terms(np, case)


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=[pytest.mark.slow] * (case in BEHIND)) for case in CASES])
def test_of_many_terms_on_a_gpu(cp, case):
    many_terms(cp, case)


def test_columns_of_many_terms(cp):
    """The gradients of the bias of a convolution and of a linear layer."""
    sums = cp.empty(3, "float32")
    column_sums(full(cp, N, 3), sums)
    assert np.abs(host(sums).astype(float) / (N * float(TERM)) - 1).max() < MOST


def many_terms(xp, case):
    """Assert that one of CASES is as exact as it should be."""
    f, terms = CASES[case]
    got = host(f(xp)).astype(float)
    assert np.abs(got / (terms * float(TERM)) - 1).max() < MOST


PRODUCTS = {  # on the CPU; the GPU's are in tests of their own
    "linear, weights": lambda: grad(np, lambda w: ops.linear(
        full(np, N, 1), w), (3, 1), ones(np, N, 3)),
    "conv2d, weights": lambda: grad(np, lambda w: ops.conv2d(
        full(np, 1, 300, 400, 1), w), (2, 1, 1, 1), ones(np, 1, 300, 400, 2)),
    "a vector by a vector": lambda: ops.matmul(full(np, N), ones(np, N)),
    "a vector by a matrix": lambda: ops.matmul(full(np, N), ones(np, N, 3)),
    "a matrix by a vector": lambda: ops.matmul(full(np, 3, N), ones(np, N)),
    "matrices": lambda: ops.matmul(full(np, 2, N), ones(np, N, 3)),
    "larger matrices": lambda: ops.matmul(full(np, 30, N), ones(np, N, 40)),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_many_terms(case):
    got = np.asarray(host(PRODUCTS[case]()), float)
    assert np.abs(got / (N * float(TERM)) - 1).max() < MOST


def test_stacked_products_of_many_terms():
    """Runs of 4,096 terms, 32 at a time or fewer, are as exact as BLAS adds them."""
    got = ops.matmul(full(np, 2, 1, N), ones(np, 2, N, 1))
    assert np.abs(got.astype(float) / (N * float(TERM)) - 1).max() < 2e-5


@pytest.mark.parametrize("size", [(70, 70, 1), (64, 64, 2)], ids=["one window", "overlapping"])
def test_gradients_of_a_pool_with_many_windows_over_a_pixel(xp, size):
    H, W, C = size
    x = Tensor(ones(xp, 1, H, W, C), requires_grad=True)
    gy = full(xp, 1, H - 31, W - 31, C)
    ops.avg_pool2d(x, 32, 1).backward(gy)
    middle = host(x.grad)[0, H // 2, W // 2].astype(float)  # in 32 * 32 windows
    assert np.abs(middle / float(TERM) - 1).max() < MOST


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_16_bits_are_rounded_once(xp, dtype):
    x = np.full((40_000, 3), 1 / 1024).astype(full(np, 1, dtype=dtype).dtype)  # exact
    got = ops.sum(xp.asarray(x), axis=0)
    np.testing.assert_array_equal(host(got).astype(float),
                                  np.full(3, 40_000 / 1024).astype(x.dtype).astype(float))


def test_one_large_number_and_many_small_ones():
    """Each of the small ones alone would be lost."""
    x = np.full(1 << 20, 2.0**-25, "float32")
    x[0] = 1
    exact = 1 + (x.size - 1) / 2**25
    assert abs(float(ops.sum(x)) / exact - 1) < MOST
    assert abs(float(ops.sum(x[:, None], axis=0)[0]) / exact - 1) < MOST


@pytest.mark.parametrize("b", [63, 64, 65, 127, 128, 129, 1000])
@pytest.mark.parametrize("C", [1, 3])
def test_blocks_have_no_gaps(rng, b, C):
    x = rng.integers(-9, 10, (2, b, C)).astype("float32")
    with threads.single_threaded_blas():
        np.testing.assert_array_equal(block_sums(x), x.sum(axis=1, dtype=float))


@pytest.mark.parametrize("n", [4096, 4097, 40_003, 300_007])
@pytest.mark.parametrize("M, K", [(1, 1), (3, 2), (70, 80)])
def test_runs_of_a_product_have_no_gaps(rng, M, K, n):
    n = min(n, 40_003) if M > 3 else n
    a, b = (rng.integers(-2, 3, shape).astype("float32") for shape in ((n, M), (n, K)))
    out = np.empty((M, K), "float32")
    with threads.single_threaded_blas():
        multiply(a.T, b, out)
    np.testing.assert_array_equal(out, a.T.astype(float) @ b)


def test_bits_do_not_depend_on_the_number_of_threads(rng):
    x, b = rng.standard_normal((2, 70, 9_000)).astype("float32")
    y = rng.standard_normal((300_000, 3)).astype("float32")
    found = []
    for count in (1, 2):
        threads.set_count(count)
        try:
            found.append([total(y, (0,)), total(x, (1,)), ops.matmul(x, b.T), ops.sum(y)])
        finally:
            threads.set_count(None)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_no_run_of_pixels_is_long_on_a_gpu():
    """Partial sums of a weight gradient may take 64 MiB, which bounds their number."""
    p = ConvShape(10**4, 100, 100, 3, 64, Window((3, 3), (1, 1), ((1, 1), (1, 1))))
    *_, run, runs = gpu_simt._plan(p, np.dtype("float32"))
    assert run < 11_000 and 4 * runs * 64 * 27 <= 64 << 20
    for dtype in "float16", "float32":
        tile = gpu_mma_wgrad.default_tile(p, np.dtype(dtype), 90)
        runs = gpu_mma_wgrad.default_splits(p, np.dtype(dtype), tile, 90)
        assert p.pixels / runs < 2**16 and 4 * runs * 64 * 27 <= 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10**8,), (10**8, 1), (1, 10**8)], ids=str)
def test_a_hundred_million_terms(shape):
    x = np.broadcast_to(TERM, shape)
    axis = int(np.argmax(shape))
    got = np.asarray(ops.sum(x, axis=axis), float)
    assert np.abs(got / (1e8 * float(TERM)) - 1).max() < MOST
