"""Ops made of ops: the parts, one after the other, without anybody setting their needs."""

import numpy as np
import pytest

from check import close, host
from gpuconv import ops
from gpuconv.autograd import Op, Tensor
from gpuconv.ops.engine.composite import Composite


class Scaled(Op):
    """y = x w."""

    def forward_gpu(self, x, w):
        self.x, self.w = x if self.needs[1] else None, w if self.needs[0] else None
        return x * w

    def backward_gpu(self, gy):
        return (gy * self.w if self.needs[0] else None, gy * self.x if self.needs[1] else None)


class Squared(Op):
    """y = x**2."""

    def forward_gpu(self, x):
        self.x = x if self.needs[0] else None
        return x * x

    def backward_gpu(self, gy):
        return (gy * 2 * self.x,)


class Chain(Composite):
    """y = (x v)**2 w; at once, if asked for."""

    def __init__(self, at_once=False):
        self.at_once = at_once
        super().__init__((Scaled(), 2), (Squared(), 0), (Scaled(), 1))

    def fused_gpu(self, x, v, w):
        if not self.at_once:
            return None
        first, square, last = self.fused_ops
        return last.forward_gpu(square.forward_gpu(first.forward_gpu(x, v)), w)


def drawn(cp, rng):
    return [cp.asarray(rng.uniform(1, 2, (3, 4)).astype("float32")) for _ in range(3)]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("wanted", [(1, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)], ids=str)
def test_gradients_of_what_is_wanted(cp, rng, at_once, wanted):
    arrays = drawn(cp, rng)
    x, v, w = held = [Tensor(a, bool(want)) for a, want in zip(arrays, wanted, strict=True)]
    op = Chain(at_once)
    y = op(*held)
    want = [Tensor(a, bool(want)) for a, want in zip(arrays, wanted, strict=True)]
    z = want[0] * want[1]
    apart = z * z * want[2]
    close(y.data, host(apart.data))
    first, square, last = op.fused_ops
    assert first.needs == (bool(wanted[0]), bool(wanted[1]))
    assert square.needs == (any(wanted[:2]),) == last.needs[:1] and last.needs[1] == wanted[2]
    assert (square.x is None) == (not any(wanted[:2]))
    y.backward(cp.ones(y.shape, "float32"))
    apart.backward(cp.ones(y.shape, "float32"))
    for one, two in zip(held, want, strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            close(one.grad, host(two.grad), terms=4)
    assert first.freed == square.freed == bool(any(wanted[:2])) and last.freed


def test_without_a_gradient_nothing_is_saved(cp, rng):
    op = Chain()
    op(*map(Tensor, drawn(cp, rng)))
    assert not any(any(part.needs) for part in op.fused_ops)
    assert all(getattr(part, "x", None) is None for part in op.fused_ops)


def test_a_part_is_freed_before_the_one_before_it_runs(cp, rng):
    op, freed = Chain(), []
    y = op(*(Tensor(a, True) for a in drawn(cp, rng)))
    first, square, last = op.fused_ops
    backward = first.backward_gpu
    first.backward_gpu = lambda gy: freed.extend([square.freed, last.freed]) or backward(gy)
    y.backward(cp.ones(y.shape, "float32"))
    assert freed == [True, True]


def test_it_needs_a_fused_forward(cp, rng):
    op = Composite((Squared(), 0))
    with pytest.raises(NotImplementedError, match="Composite defines no fused_gpu"):
        op(Tensor(drawn(cp, rng)[0]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # one after the other, and at once
def test_the_gradient_of_a_convolution_alone(cp, rng, dtype):
    """The places of the others in the tuple of gradients stay empty."""
    x, w = (cp.asarray(rng.standard_normal(s).astype(dtype)) for s in ((2, 4, 4, 8), (8, 1, 1, 8)))
    residual = cp.asarray(rng.standard_normal((2, 4, 4, 8)).astype(dtype))
    w = Tensor(w, requires_grad=True)
    y = ops.conv_batch_norm(x, w, None, None, None, None, training=True, residual=residual)
    op, gy = y.creator, cp.asarray(rng.standard_normal(y.shape).astype(dtype))
    gx, gw, *others = op.backward(gy)
    assert gx is None and gw.shape == w.shape and others[:2] == [None, None]
    assert np.isfinite(host(gw).astype(float)).all()
