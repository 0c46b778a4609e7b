"""accumulate: NumPy's sums in any number of pairs, of any place and length; and who uses it."""

import pytest

from check import DTYPES, host, make, shifted
from gpuconv import kernels
from gpuconv.accumulate import PAIRS, accumulate
from gpuconv.autograd import Op, Parameter, Tensor
from gpuconv.backend import accumulator

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 31, 0, 256, 257, 300, 1000, 2, 16, 33]  # three launches


def sums(pairs):
    """y + x, rounded once."""
    return [(y.astype(accumulator(y.dtype)) + x.astype(accumulator(x.dtype))).astype(y.dtype)
            for y, x in pairs]


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and host(a).tobytes() == b.tobytes()


def counted(monkeypatch):
    """The launches from now on: numbers of threads."""
    noted, kernel = [], kernels.kernel

    def watched(*names, **constants):
        launch = kernel(*names, **constants)
        return lambda threads, *args: (noted.append(threads), launch(threads, *args))

    monkeypatch.setattr(kernels, "kernel", watched)
    return noted


@pytest.mark.parametrize("place", ["aligned", "y elsewhere", "x elsewhere", "both elsewhere"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_numpys_sum(xp, rng, dtype, place):
    pairs = [tuple(make(rng.standard_normal(n), dtype) for _ in "yx") for n in LENGTHS]
    want = sums(pairs)
    ys = [shifted(xp, y) if place[0] in "yb" else xp.asarray(y.copy()) for y, _ in pairs]
    xs = [shifted(xp, x) if place[0] in "xb" else xp.asarray(x) for _, x in pairs]
    accumulate(zip(ys, xs, strict=True))
    same(ys, want)
    same(xs, [x for _, x in pairs])


@pytest.mark.parametrize("count", [0, 1, PAIRS - 1, PAIRS, PAIRS + 1, 3 * PAIRS])
def test_any_number_of_pairs(cp, rng, monkeypatch, count):
    noted = counted(monkeypatch)
    pairs = [(make(rng.standard_normal((2, n)), "float32"), make(rng.standard_normal((2, n)),
                                                                 "float32"))
             for n in rng.integers(1, 50, count)]
    ys = [cp.asarray(y) for y, _ in pairs]
    accumulate((y, cp.asarray(x)) for y, (_, x) in zip(ys, pairs, strict=True))
    same(ys, sums(pairs))
    assert len(noted) == -(-count // PAIRS)
    assert sum(noted) == sum(-(-y.size // 4) for y, _ in pairs)


def test_each_dtype_has_launches_of_its_own(cp, monkeypatch):
    noted = counted(monkeypatch)
    ys = [cp.ones(5, dtype) for dtype in ("float16", "float32", "float64", "float16")]
    accumulate((y, y + 1) for y in ys)
    assert [host(y).tolist() for y in ys] == [[3.0] * 5] * 4 and noted == [2, 2, 3]


def test_no_order_in_memory_is_needed(xp, rng):
    y, x = rng.standard_normal((2, 6, 4)).astype("float32")
    turned, straight = xp.asarray(y.T.copy()).T, xp.asarray(y.copy())
    accumulate([(turned, xp.asarray(x)), (straight, xp.asarray(x.T.copy()).T)])
    same([turned.copy(order="C"), straight], [y + x] * 2)


def test_an_array_may_be_added_to_itself(xp):
    y = xp.arange(11, dtype="float32")
    accumulate([(y, y)])
    assert host(y).tolist() == [2 * i for i in range(11)]


# -- the leaves of a tape ------------------------------------------------------------------


class Spread(Op):
    """The sum of all inputs; backward of the last gives ``wrong``, if that is not None."""

    wrong = None

    def forward_cpu(self, *inputs):
        self.count = len(inputs)
        return sum(inputs[1:], inputs[0])

    def backward_cpu(self, gy):
        return *[gy] * (self.count - 1), gy if self.wrong is None else self.wrong

    forward_gpu, backward_gpu = forward_cpu, backward_cpu


def test_gradients_of_many_leaves_are_few_launches(cp, monkeypatch):
    leaves = [Parameter(cp.full(5, i, "float32")) for i in range(2 * PAIRS)]
    for p in leaves:
        p.grad = cp.ones(5, "float32")
    noted = counted(monkeypatch)
    Spread()(*leaves).backward(cp.full(5, 2, "float32"))
    assert [host(p.grad).tolist() for p in leaves] == [[3.0] * 5] * len(leaves)
    assert noted == [2 * PAIRS, 2 * PAIRS]


@pytest.mark.parametrize("wrong", [lambda xp: xp.ones(4), lambda xp: xp.ones(5, "float32")])
def test_an_error_leaves_every_gradient_as_it_was(xp, wrong):
    """The others were right, and met first."""
    leaves = [Tensor(xp.ones(5), requires_grad=True) for _ in range(4)]
    for p in leaves[1:]:
        p.grad = xp.ones(5)
    op = Spread()
    op.wrong = wrong(xp)
    y = op(*leaves)
    with pytest.raises(ValueError, match=r"gradient of a leaf is .*, wanted float64 \(5,\)"):
        y.backward(xp.ones(5))
    assert leaves[0].grad is None
    assert [host(p.grad).tolist() for p in leaves[1:]] == [[1.0] * 5] * 3

