"""gemm: float64 NumPy and PyTorch, in every layout, dtype and size; what a stream captures."""

import importlib

import numpy as np
import pytest
from test_capture import Captured

from check import DTYPES, close, elementwise_by_reference, host, make
from gpuconv import backend, ops
from gpuconv.ops.elementwise import ACTIVATIONS
from gpuconv.ops.matmul import gemm
from hostcuda import fake_cupy

module = importlib.import_module("gpuconv.ops.matmul.gemm")
SHAPES = [  # a, b
    pytest.param((1, 1), (1, 1), id="one-number"),
    pytest.param((7, 13), (13, 5), id="primes"),
    pytest.param((67, 3), (3, 2), id="tall"),
    pytest.param((2, 5), (5, 71), id="flat"),
    pytest.param((2, 3, 5), (5, 4), id="rows-of-a-batch"),
    pytest.param((1, 1, 1), (2, 1, 1), id="numbers"),
    pytest.param((3, 5), (2, 5, 4), id="one-left-matrix"),
    pytest.param((2, 7, 3), (2, 3, 5), id="batch"),
    pytest.param((2, 1, 3, 4), (5, 4, 2), id="broadcast-batches"),
    pytest.param((9,), (9,), id="vectors"),
    pytest.param((9,), (9, 4), id="vector-matrix"),
    pytest.param((4, 9), (9,), id="matrix-vector"),
    pytest.param((9,), (2, 9, 4), id="vector-batch"),
    pytest.param((2, 4, 9), (9,), id="batch-vector"),
    pytest.param((0, 3), (3, 4), id="no-rows"),
    pytest.param((3, 4), (4, 0), id="no-columns"),
    pytest.param((0, 3, 4), (0, 4, 5), id="no-matrices"),
    pytest.param((2, 3, 0), (2, 0, 4), id="no-terms"),
    pytest.param((0,), (0,), id="empty-vectors"),
]
SOME = ["float32", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]
LAYOUTS = [pytest.param(False, False, id="ab"), pytest.param(False, True, id="abT"),
           pytest.param(True, False, id="aTb"), pytest.param(True, True, id="aTbT")]


def wanted(a, b, bias=None, activation=None):
    """The definition in float64, rounded to the dtype of a."""
    y = np.matmul(a.astype(np.float64), b.astype(np.float64))
    y = y if bias is None else y + bias.astype(np.float64)
    return np.asarray(ops.relu(y) if activation == "relu" else y).astype(a.dtype)


def numbers(rng, shape, dtype):
    return make(rng.standard_normal(shape), dtype)


def lying(xp, a, transposed):
    """The array on xp, its last two axes exchanged in memory if transposed."""
    if not transposed:
        return xp.asarray(a)
    return xp.asarray(np.ascontiguousarray(a.swapaxes(-1, -2))).swapaxes(-1, -2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_shape, b_shape", SHAPES)
def test_is_the_definition(xp, rng, a_shape, b_shape, dtype):
    a, b = numbers(rng, a_shape, dtype), numbers(rng, b_shape, dtype)
    close(gemm(xp.asarray(a), xp.asarray(b)), wanted(a, b), terms=16)


@pytest.mark.parametrize("dtype", SOME)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["matrix", "batch"])
@pytest.mark.parametrize("a_transposed, b_transposed", LAYOUTS)
def test_is_pytorchs_in_every_layout(xp, rng, a_transposed, b_transposed, batch, dtype):
    torch = pytest.importorskip("torch")
    a, b = numbers(rng, (*batch, 35, 23), dtype), numbers(rng, (*batch, 23, 9), dtype)
    want = torch.matmul(*(torch.tensor(v.astype("float64")) for v in (a, b))).numpy()
    close(gemm(lying(xp, a, a_transposed), lying(xp, b, b_transposed)), make(want, dtype), terms=23)


@pytest.mark.parametrize("view", [
    pytest.param(lambda a: a[::-1], id="negative"), pytest.param(lambda a: a[:, ::2], id="gaps"),
    pytest.param(lambda a: a[:, ::-1].swapaxes(1, 2)[:, ::2], id="transposed-gaps"),
    pytest.param(lambda a: a[1:, 1:, 1:], id="inner"),
    pytest.param(lambda a: a.reshape(2, 3, 8, 8).swapaxes(0, 1), id="batch-transposed")])
def test_views_are_their_copies(xp, rng, view):
    a = numbers(rng, (6, 8, 8), "float32")
    v, w = view(a), view(xp.asarray(a))
    terms = v.shape[-1]
    b = numbers(rng, (*v.shape[:-2], terms, 3), "float32")
    close(gemm(w, xp.asarray(b)), wanted(v, b), terms=terms)
    close(gemm(xp.asarray(b).swapaxes(-1, -2), w.swapaxes(-1, -2)),
          wanted(v, b).swapaxes(-1, -2), terms=terms)
    one = xp.broadcast_to(xp.asarray(a[:1, :1]), (6, 5, 8))
    close(gemm(one, xp.asarray(a)), wanted(np.broadcast_to(a[:1, :1], (6, 5, 8)), a), terms=8)


# -- kernels/matmul/gemm.cu ----------------------------------------------------------------
#
# Sizes that leave remainders in rows, columns and terms; packs of 16 bytes, or single numbers.

PACKS = [pytest.param((68, 20, 36), id="packs"), pytest.param((67, 19, 35), id="single")]


@pytest.mark.parametrize("size", [*PACKS, pytest.param((128, 16, 64), id="whole-tiles")])
@pytest.mark.parametrize("a_transposed, b_transposed", LAYOUTS)
@pytest.mark.parametrize("dtype", SOME)
def test_batches_are_their_matrices_bit_for_bit(cp, rng, size, a_transposed, b_transposed, dtype):
    """In each layout; and one matrix for all others, on either side."""
    N, C, K = size
    a, b = numbers(rng, (2, N, C), dtype), numbers(rng, (2, C, K), dtype)
    y = gemm(lying(cp, a, a_transposed), lying(cp, b, b_transposed))
    close(y, wanted(a, b), terms=C)
    one = gemm(lying(cp, a[0], a_transposed), lying(cp, b, b_transposed))
    np.testing.assert_array_equal(host(one)[0], host(y)[0])
    close(one, wanted(a[0], b), terms=C)


@pytest.mark.parametrize("tile", [*module.TILES], ids=str)
def test_tile_and_layout_change_no_bit(cp, rng, tile, monkeypatch):
    a, b = numbers(rng, (2, 131, 21), "float32"), numbers(rng, (2, 21, 133), "float32")
    want = gemm(cp.asarray(a), cp.asarray(b))
    monkeypatch.setattr(module, "TILES", (tile,))
    for a_transposed, b_transposed in ((False, False), (True, True)):
        got = gemm(lying(cp, a, a_transposed), lying(cp, b, b_transposed))
        np.testing.assert_array_equal(host(got), host(want))
    close(want, wanted(a, b), terms=21)


@pytest.mark.parametrize("dtype", SOME)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("size", PACKS)
def test_bias_and_activation_follow(xp, rng, size, activation, dtype):
    N, C, K = size
    a, b, bias = (numbers(rng, s, dtype) for s in ((2, N, C), (2, C, K), (K,)))
    want = wanted(a, b, bias)
    if activation:  # of what is not rounded yet
        wide = wanted(a.astype("float64"), b.astype("float64"), bias)
        want = elementwise_by_reference(activation, wide).astype(a.dtype)
    operands = [xp.asarray(v) for v in (a, b, bias)]
    close(gemm(*operands, activation=activation), want, terms=C)
    for transposed in (False, True):  # of one matrix by another
        got = gemm(operands[0][0], lying(xp, b[0], transposed), operands[2], activation=activation)
        close(got, want[0], terms=C)
    if activation:
        got = gemm(operands[0], operands[1], activation=activation)
        wide = wanted(a.astype("float64"), b.astype("float64"))
        close(got, elementwise_by_reference(activation, wide).astype(a.dtype), terms=C)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_summed_in_float32_and_rounded_once(xp, dtype):
    a, b = (xp.asarray(make(v, dtype)) for v in ([[[1, 2**-12, -1]]] * 2, [[[1], [1], [1]]] * 2))
    assert host(gemm(a, b)).ravel().tolist() == [2**-12] * 2  # 1 + 2**-12 rounds to 1
    ones = xp.asarray(make(np.ones(4096), dtype))
    assert host(gemm(ones, ones)).item() == 4096             # float16 sums stall at 2048


@pytest.mark.parametrize("dtype", SOME)
@pytest.mark.parametrize("a_transposed, b_transposed", LAYOUTS)
def test_long_sums(xp, rng, a_transposed, b_transposed, dtype):
    C = 5003
    a, b = numbers(rng, (3, C), dtype), numbers(rng, (C, 2), dtype)
    close(gemm(lying(xp, a, a_transposed), lying(xp, b, b_transposed)), wanted(a, b), terms=C)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_partial_sums_of_slices_are_added(cp, rng, dtype, bias, monkeypatch):
    """A slice each for blocks that would be idle; the bias counts once."""
    monkeypatch.setattr(module, "SLICE", 24)
    a, b, c = (numbers(rng, s, dtype) for s in ((2, 5, 107), (2, 107, 3), (3,)))
    operands = [cp.asarray(v) for v in (a, b, *[c][:bias])]
    close(gemm(*operands), wanted(a, b, *[c][:bias]), terms=107)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_grow_launch_by_launch(cp, rng, dtype, activation, monkeypatch):
    """Of 40 terms each, where tiles are many or an activation follows; bias and f count once."""
    monkeypatch.setattr(module, "LONGEST", 40)
    a, b, c = (numbers(rng, s, dtype) for s in ((2, 5, 107), (2, 107, 3), (3,)))
    operands = [cp.asarray(v) for v in (a, b, c)]
    close(gemm(*operands, activation=activation), wanted(a, b, c, activation), terms=107)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("N, C", [(1, 5003), (3, 1 << 20), (4000, 20001)])
def test_no_running_sum_is_long(cp, N, C, activation, dtype, monkeypatch):
    """Each launch adds LONGEST terms at most, from where the one before ended; some more."""
    launches = []

    def launch(tile, left, right, bias, activation, before, out, first, depth):
        launches.append((first, depth, len(out), bias, activation, before is not None))

    monkeypatch.setattr(module, "_launch", launch)
    monkeypatch.setattr(module, "column_sums", lambda sums, y: None)
    row = cp.zeros(2, dtype)
    left, right = (module.Operand(cp.broadcast_to(cp.zeros(1, dtype), (1, *shape)), transposed)
                   for shape, transposed in (((N, C), False), ((2, C), True)))
    module._products(left, right, row, activation, cp.empty((1, N, 2), dtype))
    assert all(depth <= module.LONGEST for _, depth, *_ in launches)
    if len(launches) == 1:
        (first, depth, splits, bias, act, before), = launches
        assert splits > 1 and not first and (splits - 1) * depth < C <= splits * depth
        assert bias is row and act is activation is None and not before
        return
    ends = [first for first, *_ in launches[1:]]
    assert [first for first, *_ in launches] == [0, *ends] and ends == [
        n * module.LONGEST for n in range(1, len(launches))] and C <= ends[-1] + module.LONGEST
    assert [before for *_, before in launches] == [False, *[True] * len(ends)]
    assert [bias for *_, bias, _, _ in launches] == [*[None] * len(ends), row]
    assert [act for *_, act, _ in launches] == [*[None] * len(ends), activation]


def test_small_results_of_long_sums_keep_a_gpu_busy():
    f4 = np.dtype("float32")
    tile, depth = module._plan(1, 32, 1 << 20, 32, f4)
    assert tile.BM * tile.BN == 2048 and (1 << 20) / depth >= 500
    assert module._plan(64, 512, 5000, 512, f4)[1] == 5000  # tiles enough
    assert {module._plan(8, 512, 64, n, np.dtype("float64"))[0] for n in (64, 512)} <= {
        *module.DOUBLE_TILES}


def test_what_computes_a_product_follows_from_sizes_dtype_and_layout(cp, monkeypatch):
    """Tensor cores, or the convolutions' kernel, take one matrix by one; gemm.cu the rest."""
    taken = []
    for name in ("_as_convolution", "_products"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: (
            taken.append(name), real(*a))[1])

    def ask(a, b, dtype="float32", **how):
        taken.clear()
        gemm(cp.zeros(a, dtype), cp.zeros(b, dtype), **how)
        return {"_as_convolution": "convolution", "_products": "gemm"}[taken[0]]

    long, row = module.LONGEST + 1, cp.zeros(4, "float32")
    assert ask((3, 5), (5, 4)) == ask((2, 3, 5), (5, 4)) == ask((5,), (5, 4)) == "convolution"
    assert ask((2, 3, 5), (2, 5, 4)) == ask((3, 5), (2, 5, 4)) == "gemm"
    assert ask((3, long), (long, 4)) == "gemm"
    assert ask((3, long), (long, 4), "float16") == "convolution"
    assert ask((3, long), (long, 4), precision="tf32") == "convolution"
    assert ask((3, long), (long, 4), "float64", precision="tf32") == "gemm"
    assert ask((3, 5), (5, 4), bias=row) == ask((3, 5), (5, 4), activation="relu") == "gemm"


# -- captured ------------------------------------------------------------------------------


@pytest.mark.skipif(backend._cupy is not fake_cupy, reason="wants the stand-in")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("a_shape, b_shape", [
    ((5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)), ((2, 1, 5, 7), (3, 7, 3)), ((7,), (7,)),
    ((3, 4100), (4100, 2))], ids=str)
def test_a_stream_captures_it_and_replays_the_eager_bits(cp, rng, a_shape, b_shape, dtype):
    a, b = (cp.asarray(numbers(rng, s, dtype)) for s in (a_shape, b_shape))
    captured = Captured(lambda: gemm(a, b))
    a[...] = cp.asarray(numbers(rng, a_shape, dtype))
    got = host(captured.replay())
    np.testing.assert_array_equal(got, host(gemm(a, b)))


def test_batches_that_do_not_broadcast(xp):
    with pytest.raises(ValueError, match=r"matmul: leading axes of \(2, 2, 3\) and \(3, 3, 2\) do"):
        ops.matmul(xp.ones((2, 2, 3)), xp.ones((3, 3, 2)))
