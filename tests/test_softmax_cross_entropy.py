"""softmax_cross_entropy: definition, gradient, CPU and CUDA alike, bad labels, and the edges."""

import numpy as np
import pytest

from check import DTYPES, close, defined, grad_check, host, make
from gpuconv import backend, kernels
from gpuconv.autograd import Tensor, no_grad
from gpuconv.backend import accumulator
from gpuconv.ops.loss.softmax_cross_entropy import FEW, count_correct, softmax_cross_entropy

SIZES = [
    pytest.param((7, 10), id="ten-classes"),
    pytest.param((3, 1), id="one-class"),
    pytest.param((9, 33), id="one-over-a-warp"),
    pytest.param((2, 1500), id="a-block-per-row"),
]


def definition(z, labels, smoothing, reduction, gy=1):
    """loss and gz, in the longest float there is."""
    return defined("softmax_cross_entropy", gy, z, labels, label_smoothing=smoothing,
                   reduction=reduction, wide=np.longdouble)


def run(xp, z, labels, gy=None, **options):
    """loss and gz."""
    z = Tensor(xp.asarray(z), requires_grad=True)
    loss = softmax_cross_entropy(z, xp.asarray(labels), **options)
    loss.backward(None if gy is None else xp.asarray(np.asarray(gy)))
    return host(loss), host(z.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.125], ids=["plain", "smoothed"])
@pytest.mark.parametrize("shape", SIZES)
def test_is_the_definition(xp, rng, shape, smoothing, dtype):
    N, K = shape
    z, labels = make(3 * rng.standard_normal(shape), dtype), rng.integers(0, K, N)
    wide = accumulator(z.dtype)
    for reduction in ("mean", "sum", "none"):
        gy = rng.uniform(1, 2, N if reduction == "none" else ()).astype(wide)
        got = run(xp, z, labels, gy, label_smoothing=smoothing, reduction=reduction)
        loss, gz = definition(z, labels, smoothing, reduction, gy)
        close(got[0], np.asarray(loss).astype(wide), terms=K + N)
        close(got[1], gz.astype(z.dtype), terms=K)


@pytest.mark.parametrize("N, K", [(600, 31), (1100, 2), (FEW // 10, 10), (FEW // 10 + 1, 10)],
                         ids=["tiles", "more-rows-than-threads", "the-largest", "one-too-many"])
def test_small_batches_in_one_launch(cp, rng, monkeypatch, N, K):
    launched, real = [], kernels.kernel
    monkeypatch.setattr(kernels, "kernel",
                        lambda file, name, **c: launched.append(name) or real(file, name, **c))
    z, labels = 3 * rng.standard_normal((N, K)).astype("float32"), rng.integers(0, K, N)
    got = run(cp, z, labels, np.float32(1.5), label_smoothing=0.1)
    loss, gz = definition(z, labels, 0.1, "mean", 1.5)
    close(got[0], np.asarray(loss).astype("float32"), terms=K + N)
    close(got[1], gz.astype("float32"), terms=K)
    assert len(launched) == (3 if N * K > FEW else 2)


@pytest.mark.parametrize("K", [10, 40])
def test_a_captured_loss_and_its_count_are_those_of_what_is_there_at_replay(cp, rng, K):
    z, labels, right = cp.zeros((9, K), "float16"), cp.zeros(9, "int32"), cp.zeros((), "int64")

    def step():
        t = Tensor(z, requires_grad=True)
        loss = softmax_cross_entropy(t, labels)
        loss.backward()
        count_correct(z, labels, right)
        return loss.data, t.grad

    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.get_current_stream().synchronize()
    with stream:
        step()  # compiles, and makes the error word
        with cp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            results = *step(), right
            graph = stream.end_capture()
        for _ in range(2):
            z[...] = cp.asarray(make(rng.standard_normal(z.shape), "float16"))
            labels[...] = cp.asarray(rng.integers(0, K, 9).astype("int32"))
            graph.launch(stream)
            got = [host(a).tobytes() for a in results]
            assert got == [host(a).tobytes() for a in (*step(), right)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N, K", [(1100, 3), (50, 33), (3, 1), (4, 1500)])
def test_counts_right_answers(xp, rng, N, K, dtype):
    logits = make(rng.integers(-3, 4, (N, K)), dtype)  # many ties
    logits[:2] = np.nan
    logits[2, -1] = np.nan
    labels = logits.astype(float).argmax(axis=1)
    labels[N // 2 :] = rng.integers(-1, K + 1, N - N // 2)
    want = sum(0 <= k < K and not np.isnan(row.astype(float)).any() and row.argmax() == k
               for row, k in zip(logits, labels, strict=True))
    for kind in ("int32", "int64", "int16"):
        for out in (xp.asarray(np.int64(-7)), xp.asarray(np.int64([-7]))):
            count_correct(xp.asarray(logits), xp.asarray(labels.astype(kind)), out)
            assert host(out) == want


def test_counts_of_views_and_of_nothing(xp, rng):
    logits, labels, out = rng.standard_normal((5, 8)), np.arange(8), xp.asarray(np.int64([9]))
    count_correct(xp.asarray(logits).T, xp.asarray(labels % 5)[::-1], out)
    assert host(out) == (logits.T.argmax(axis=1) == (labels % 5)[::-1]).sum()
    count_correct(xp.zeros((0, 3)), xp.zeros(0, "int32"), out)
    assert host(out) == 0


@pytest.mark.parametrize("change, error, message", [
    (dict(labels=np.zeros(2)), TypeError, "labels are float64, out is int64, wanted integers"),
    (dict(out=np.zeros(1, "int32")), TypeError, "out is int32"),
    (dict(labels=np.zeros(3, "int64")), ValueError, r"labels \(3,\), out \(1,\), wanted"),
    (dict(out=np.zeros(2, "int64")), ValueError, r"out \(2,\)"),
])
def test_count_correct_refuses(change, error, message):
    good = dict(logits=np.zeros((2, 3)), labels=np.zeros(2, "int32"), out=np.zeros(1, "int64"))
    with pytest.raises(error, match=message):
        count_correct(**good | change)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_agrees_with_pytorch(xp, rng, smoothing, reduction):
    torch = pytest.importorskip("torch")
    z, labels = rng.standard_normal((6, 11)), rng.integers(0, 11, 6)
    gy = rng.standard_normal(6 if reduction == "none" else ())
    got = run(xp, z, labels, gy, label_smoothing=smoothing, reduction=reduction)
    tz = torch.from_numpy(z).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        tz, torch.from_numpy(labels), label_smoothing=smoothing, reduction=reduction)
    tgz, = torch.autograd.grad(loss, tz, torch.from_numpy(np.asarray(gy)))
    close(got[0], loss.detach().numpy(), terms=17)
    close(got[1], tgz.numpy(), terms=11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradient_is_the_slope(rng, smoothing, reduction):
    labels = rng.integers(0, 5, 4)
    grad_check(lambda z: softmax_cross_entropy(
        z, labels, label_smoothing=smoothing, reduction=reduction),
        rng.standard_normal((4, 5)), rng=rng)


def test_large_batch_is_cut_into_pieces(xp, rng):
    z, labels = rng.standard_normal((20_000, 10)).astype("float32"), rng.integers(0, 10, 20_000)
    if xp is not np:
        z, labels = z[:3000], labels[:3000]  # the stand-in is slow
    got = run(xp, z, labels)
    want = definition(z, labels, 0, "mean")
    close(got[0], want[0].astype("float32"), terms=len(z))
    close(got[1], want[1].astype("float32"), terms=10)


def test_large_scores_do_not_overflow(xp):
    loss, gz = run(xp, np.float32([[1e4, 0.0], [-1e4, 0.0], [3e38, -3e38]]), [0, 0, 0],
                   np.ones(3, "float32"), reduction="none")
    assert loss.tolist() == [0, 1e4, 0]
    assert gz.tolist() == [[0, 0], [-1, 1], [0, 0]]


@pytest.mark.parametrize("row, label, want", [
    pytest.param([0, 0, -np.inf], 0, np.log(2), id="minus-inf-elsewhere"),
    pytest.param([0, 0, -np.inf], 2, np.inf, id="minus-inf-at-the-label"),
    pytest.param([0, np.inf, 0], 1, np.nan, id="inf"),
    pytest.param([0, np.inf, 0], 0, np.nan, id="inf-elsewhere"),
    pytest.param([0, np.nan, 0], 0, np.nan, id="nan"),
    pytest.param([np.nan, 0, 0], 1, np.nan, id="nan-first"),
    pytest.param([-np.inf] * 3, 0, np.nan, id="all-minus-inf"),
])
def test_infinite_scores_as_in_pytorch(xp, row, label, want):
    torch = pytest.importorskip("torch")
    z = np.float32([row])
    loss, gz = run(xp, z, [label])
    tz = torch.from_numpy(z).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(tz, torch.tensor([label]))
    close(loss, theirs.detach().numpy())
    close(loss, np.float32(want))
    if np.isfinite(want):
        close(gz, torch.autograd.grad(theirs, tz)[0].numpy())


def test_half_precision_keeps_small_probabilities_for_a_loss_scale(xp):
    z = np.array([[0, -17]], "float16")  # p = 4e-8: less than any float16 but zero
    _, gz = run(xp, z, [0], np.float32(2**15))
    assert gz[0, 1] == np.float16(np.exp(-17.0) * 2**15)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_dtype(xp, rng, dtype):
    z = rng.standard_normal((4, 300)).astype("float32")
    labels = np.array([0, 5, 100, 127])
    want = softmax_cross_entropy(z, labels)
    close(softmax_cross_entropy(xp.asarray(z), xp.asarray(labels.astype(dtype))), want, terms=300)


@pytest.mark.parametrize("label", [10, 11, -1, 2**31 - 1, 2**32 + 3])
def test_label_out_of_range_raises_at_once_on_the_cpu(label):
    with pytest.raises(ValueError, match=rf"^softmax_cross_entropy: label {label} is outside 0..9 "
                                         r"\(at index 3\)$"):
        softmax_cross_entropy(np.zeros((5, 10)), np.array([0, 9, 4, label, label]))


@pytest.mark.parametrize("label, shown", [(10, 10), (-1, -1), (-(2**40), -(2**31)),
                                          (2**32 + 3, 2**31 - 1)])  # would be 3 in 32 bits
def test_label_out_of_range_on_the_gpu_raises_where_the_loss_is_read(cp, label, shown):
    z = Tensor(cp.asarray(np.zeros((5, 10), "float32")), requires_grad=True)
    labels = cp.asarray(np.array([0, 9, 4, label, 2]))
    loss = softmax_cross_entropy(z, labels)
    with pytest.raises(ValueError, match=f"label {shown} is outside 0..9"):
        loss.item()
    assert np.isnan(host(loss))
    loss.backward()
    assert np.isnan(host(z.grad)).all(axis=1).tolist() == [False, False, False, True, False]

    softmax_cross_entropy(z, cp.asarray(np.arange(5))).item()  # reported once, and forgotten
    assert not host(backend.error_word()).any()


def test_rows_of_bad_labels_alone_are_nan(cp):
    with pytest.raises(ValueError, match="label 7 is outside 0..2"):
        loss = softmax_cross_entropy(cp.zeros((3, 3), "float32"), cp.asarray(np.array([0, 7, 2])),
                                     reduction="none", label_smoothing=0.1)
        assert np.isnan(host(loss)).tolist() == [False, True, False]
        backend.raise_reported()


@pytest.mark.parametrize("K", [40, 1500], ids=["warps", "blocks"])
def test_as_on_huge_arrays(cp, rng, monkeypatch, K):
    z, labels = rng.standard_normal((20, K)).astype("float32"), rng.integers(0, K, 20)
    free = run(cp, z, labels)
    monkeypatch.setattr(kernels, "MAX_BLOCKS", 1)
    bound = run(cp, z, labels)
    for a, b in zip(free, bound, strict=True):
        np.testing.assert_array_equal(a, b)  # same order of sums


@pytest.mark.parametrize("view", [
    pytest.param(lambda a: a.T, id="transposed"),
    pytest.param(lambda a: a[::-1, ::-2], id="negative-strides"),
])
def test_views_and_broadcast_gradients(xp, rng, view):
    a = rng.standard_normal((6, 12)).astype("float32")
    z = Tensor(view(xp.asarray(a)), requires_grad=True)
    N, K = z.shape
    labels = rng.integers(0, K, 2 * N)
    loss = softmax_cross_entropy(z, xp.asarray(labels)[::-2], reduction="none")
    loss.backward(xp.broadcast_to(xp.asarray(np.float32(2)), (N,)))
    want = definition(view(a), labels[::-2], 0, "none", np.full(N, 2))
    close(loss, want[0].astype("float32"), terms=K)
    close(z.grad, want[1].astype("float32"), terms=K)


def test_saves_one_number_per_score_if_a_gradient_is_wanted(xp):
    z = Tensor(xp.zeros((8, 10), "float16"), requires_grad=True)
    labels = xp.asarray(np.arange(8))
    op = softmax_cross_entropy(z, labels).creator
    held = [v for v in vars(op).values() if hasattr(v, "nbytes")]
    assert [v.nbytes for v in held] == [8 * 10 * 4]
    with no_grad():
        assert softmax_cross_entropy(z, labels).creator is None
    assert type(softmax_cross_entropy(z.data, labels)) in (type(z.data), np.float32)


def test_labels_may_be_a_tensor(xp):
    labels = xp.asarray(np.array([0, 1]))
    z = xp.zeros((2, 4))
    close(softmax_cross_entropy(Tensor(z), Tensor(labels)), softmax_cross_entropy(z, labels))


def test_empty_batch(xp):
    z, labels = np.zeros((0, 4), "float32"), np.zeros(0, int)
    for reduction, want in (("mean", np.nan), ("sum", 0)):
        loss, gz = run(xp, z, labels, reduction=reduction)
        np.testing.assert_array_equal(loss, want)
        assert gz.shape == (0, 4)
    assert softmax_cross_entropy(z, labels, reduction="none").shape == (0,)


@pytest.mark.parametrize("z, labels, options, error, message", [
    (np.zeros((2, 3)), np.zeros(2), {}, TypeError, "labels are float64, wanted integers"),
    (np.zeros((2, 3)), np.zeros(2, bool), {}, TypeError, "labels are bool, wanted integers"),
    (np.zeros((2, 3)), [0, 1], {}, TypeError, "labels is list, wanted an array: np.array"),
    (np.zeros((2, 3), int), np.zeros(2, int), {}, TypeError, "logits is int64, wanted float32"),
    (np.zeros(3), np.zeros(3, int), {}, ValueError,
     r"logits have shape \(3,\), wanted \(N, K\)"),
    (np.zeros((2, 0)), np.zeros(2, int), {}, ValueError, r"logits have shape \(2, 0\)"),
    (np.zeros((2, 3)), np.zeros(3, int), {}, ValueError,
     r"labels have shape \(3,\), wanted \(2,\) for logits \(2, 3\)"),
    (np.zeros((2, 3)), np.zeros((2, 1), int), {}, ValueError, r"labels have shape \(2, 1\)"),
    (np.zeros((2, 3)), np.zeros(2, int), dict(label_smoothing=1.5), ValueError,
     "label_smoothing is 1.5, wanted 0..1"),
    (np.zeros((2, 3)), np.zeros(2, int), dict(label_smoothing=-0.1), ValueError,
     "label_smoothing is -0.1"),
    (np.zeros((2, 3)), np.zeros(2, int), dict(reduction="avg"), ValueError,
     "reduction is 'avg', wanted 'mean', 'sum' or 'none'"),
])
def test_refuses(z, labels, options, error, message):
    with pytest.raises(error, match=message):
        softmax_cross_entropy(z, labels, **options)


def test_refuses_labels_on_the_other_device(cp):
    with pytest.raises(TypeError, match="do not mix: CPU, GPU"):
        softmax_cross_entropy(cp.zeros((2, 3)), np.zeros(2, int))
