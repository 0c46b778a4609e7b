"""dropout: the mask is Philox's, the same on both devices and in backward, and right in number."""

import numpy as np
import pytest

from check import DTYPES, close, grad_check, host, make
from gpuconv import kernels, nn, random, reference
from gpuconv.autograd import Tensor, no_grad
from gpuconv.backend import accumulator
from gpuconv.ops.elementwise.dropout import dropout

KEY, STEP = (7, 0xFFFFFFFF), 2**32 + 5  # every word of the counter and of the key counts
SIZES = [pytest.param(s, id=str(s)) for s in ((), (1,), (3,), (4,), (8, 3, 5), (1023,))]


def definition(x, p):
    wide = accumulator(x.dtype)
    return reference.dropout(x.astype(wide), p, key=KEY, step=STEP).astype(x.dtype)


def run(xp, x, gy, p, **options):
    x = Tensor(xp.asarray(x), requires_grad=True)
    y = dropout(x, p, **options)
    y.backward(xp.asarray(gy))
    return host(y), host(x.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("shape", SIZES)
def test_is_the_definition_bit_for_bit(xp, rng, shape, p, dtype):
    x, gy = (make(a, dtype) for a in rng.standard_normal((2, *shape)))
    y, gx = run(xp, x, gy, p, key=KEY, step=STEP)
    np.testing.assert_array_equal(y, definition(x, p))
    np.testing.assert_array_equal(gx, definition(gy, p))
    assert y.dtype == gx.dtype == x.dtype


def test_a_word_that_is_the_threshold_is_kept(xp):
    x = np.ones(8, "float32")
    p = int(random.words(8, KEY, STEP)[5]) / 2**32
    y = host(dropout(xp.asarray(x), p, key=KEY, step=STEP))
    np.testing.assert_array_equal(y, definition(x, p))
    assert y[5]


def test_both_devices_draw_one_mask(cp):
    x = np.ones(4099, "float32")
    y = dropout(x, 0.3, key=KEY, step=STEP)
    np.testing.assert_array_equal(host(dropout(cp.asarray(x), 0.3, key=KEY, step=STEP)), y)


def test_a_large_array_is_one_mask_on_all_threads():
    x = np.ones(100_003, "float32")  # several pieces
    np.testing.assert_array_equal(dropout(x, 0.5, key=KEY, step=STEP), definition(x, 0.5))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_rate_is_right_within_five_sigma(p):
    n = 200_000
    zeros = n - np.count_nonzero(dropout(np.ones(n, "float32"), p, key=(1, 2), step=3))
    assert abs(zeros - n * p) < 5 * np.sqrt(n * p * (1 - p))


def test_neighbours_and_steps_are_independent_within_five_sigma():
    n = 200_000
    a, b = (dropout(np.ones(n), 0.5, key=(1, 2), step=s) - 1 for s in (3, 4))  # 1 or -1 each
    for product in (a[1:] * a[:-1], a[4:] * a[:-4], a * b):
        assert abs(product.sum()) < 5 * np.sqrt(n)


def test_gradient_is_the_slope(rng):
    grad_check(lambda x: dropout(x, 0.4, key=KEY, step=STEP), rng.standard_normal((5, 7)), rng=rng)


def test_backward_uses_the_mask_of_its_forward(xp):
    ones = np.ones(257, "float32")
    first, second = (Tensor(xp.asarray(ones), requires_grad=True) for _ in range(2))
    y, z = dropout(first), dropout(second)  # each its own fresh mask
    assert (host(y) != host(z)).any()
    for leaf, result in ((first, y), (second, z)):
        result.backward(xp.asarray(ones))
        np.testing.assert_array_equal(host(leaf.grad), host(result))


def test_fresh_masks_repeat_after_seed(xp):
    x = xp.ones(257, "float32")
    random.seed(11)
    a, b = host(dropout(x)), host(dropout(x))
    random.seed(11)
    np.testing.assert_array_equal(host(dropout(x)), a)
    np.testing.assert_array_equal(host(dropout(x)), b)
    assert (a != b).any()


def test_identity_draws_nothing(xp):
    random.seed(0)
    x = xp.ones(8, "float32")
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.5, training=False) is x
    t = Tensor(x, requires_grad=True)
    assert dropout(t, 0.5, training=False) is t
    assert random.fresh()[1] == 0


def test_p_one_is_all_zeros_and_so_is_its_gradient(xp):
    y, gx = run(xp, np.ones(9, "float32"), np.ones(9, "float32"), 1.0)
    assert not y.any() and not gx.any()


def test_a_zeroed_element_is_zero_whatever_it_was(xp):
    x = np.array([np.inf, np.nan] * 50, "float32")
    keep = definition(np.ones(100, "float32"), 0.5) > 0
    y = host(dropout(xp.asarray(x), 0.5, key=KEY, step=STEP))
    np.testing.assert_array_equal(y, np.where(keep, x, 0))


def test_agrees_with_pytorch_in_mean_and_scale(rng):
    torch = pytest.importorskip("torch")
    theirs = np.unique(torch.nn.functional.dropout(torch.ones(1000), 0.2).numpy())
    ours = np.unique(dropout(np.ones(1000, "float32"), 0.2))
    close(ours, theirs)


@pytest.mark.parametrize("view", [
    pytest.param(lambda a: a.transpose(1, 0), id="transposed"),
    pytest.param(lambda a: a[::-1, ::2], id="negative-stride"),
])
def test_views_and_broadcast_gradients(xp, rng, view):
    a = rng.standard_normal((6, 10)).astype("float32")
    x = Tensor(view(xp.asarray(a)), requires_grad=True)
    y = dropout(x, 0.5, key=KEY, step=STEP)
    y.backward(xp.broadcast_to(xp.ones(1, "float32"), y.shape))
    np.testing.assert_array_equal(host(y), definition(view(a), 0.5))
    np.testing.assert_array_equal(host(x.grad), definition(np.ones(y.shape, "float32"), 0.5))


@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_an_array_that_starts_anywhere_in_memory(xp, start):
    a = np.arange(40, dtype="float32")
    y = dropout(xp.asarray(a)[start:], 0.5, key=KEY, step=STEP)
    np.testing.assert_array_equal(host(y), definition(a[start:], 0.5))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_counter_on_the_device_is_part_of_the_step(cp, rng, dtype):
    x, gy = (make(a, dtype) for a in rng.standard_normal((2, 1027)))
    counter = cp.asarray(np.int64([2**32 + 3]))
    got = run(cp, x, gy, 0.3, key=KEY, step=2, counter=counter)
    want = run(cp, x, gy, 0.3, key=KEY, step=2**32 + 5)
    for a, b in zip(got, want, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_captured_layer_draws_other_masks_as_its_counter_goes_on(cp):
    model = nn.Sequential(nn.Dropout(0.4), nn.Dropout(0.2))
    x, counter = cp.ones((5, 33), "float16"), cp.zeros(1, "int64")

    def step(number, counter=None):
        t = Tensor(x, requires_grad=True)
        model.reseed(3, number, counter)
        y = model(t)
        y.backward(cp.ones(y.shape, y.dtype))
        return y.data, t.grad

    eager = [[host(a).tobytes() for a in step(number)] for number in range(2, 6)]
    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.get_current_stream().synchronize()
    with stream:
        step(0, counter)  # compiles
        with cp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            results = step(1, counter)
            graph = stream.end_capture()
        for want in eager:
            counter += 1
            graph.launch(stream)
            assert [host(a).tobytes() for a in results] == want
    assert len(set(map(tuple, eager))) == 4
    model.reseed(None)
    assert all(layer.counter is None for layer in model)


def test_as_on_huge_arrays(cp, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_BLOCKS", 1)
    x = np.ones(5001, "float32")
    y = host(dropout(cp.asarray(x), 0.5, key=KEY, step=STEP))
    np.testing.assert_array_equal(y, definition(x, 0.5))


def test_saves_no_array(xp):
    x = Tensor(xp.ones((64, 64), "float32"), requires_grad=True)
    op = dropout(x).creator
    assert not [v for v in vars(op).values() if hasattr(v, "nbytes")]
    with no_grad():
        assert dropout(x).creator is None
    assert type(dropout(x.data)) is type(x.data)


def test_empty_batch(xp):
    y, gx = run(xp, np.ones((0, 3), "float32"), np.ones((0, 3), "float32"), 0.5)
    assert y.shape == gx.shape == (0, 3)


@pytest.mark.parametrize("options, error, message", [
    (dict(counter=np.zeros(1, "int64")), TypeError, r"counter is ndarray int64 \(1,\), wanted"),
    (dict(counter=[0]), TypeError, "counter is list"),
])
def test_refuses_a_counter_elsewhere(cp, options, error, message):
    with pytest.raises(error, match=message):
        dropout(cp.ones(3), key=(1, 2), step=0, **options)
    with pytest.raises(TypeError, match="wanted a GPU array of int64"):
        dropout(cp.ones(3), key=(1, 2), step=0, counter=cp.zeros(1, "int32"))
    with pytest.raises(ValueError, match="a counter without key and step"):
        dropout(cp.ones(3), counter=cp.zeros(1, "int64"))
    with pytest.raises(TypeError, match="do not mix"):
        dropout(np.ones(3), key=(1, 2), step=0, counter=cp.zeros(1, "int64"))


@pytest.mark.parametrize("x, options, error, message", [
    (np.ones(3), dict(p=1.5), ValueError, "p is 1.5, wanted 0..1"),
    (np.ones(3), dict(p=-0.1), ValueError, "p is -0.1"),
    (np.ones(3), dict(p=float("nan")), ValueError, "p is nan"),
    (np.ones(3), dict(key=(1, 2)), ValueError, r"key is \(1, 2\), step is None: wanted both"),
    (np.ones(3), dict(step=1), ValueError, "key is None, step is 1: wanted both or neither"),
    (np.ones(3), dict(key=(1, 2**32), step=0), ValueError, "key is 4294967296, wanted at"),
    (np.ones(3), dict(key=(1, 2), step=-1), ValueError, "step is -1, wanted at least 0"),
    (np.ones(3, int), dict(), TypeError, "x is int64, wanted float32"),
])
def test_refuses(x, options, error, message):
    with pytest.raises(error, match=message):
        dropout(x, **options)
