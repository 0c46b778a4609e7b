"""ops.recompute: the same gradients, without what backward would keep."""

import gc
import threading
import weakref

import numpy as np
import pytest

import gpuconv as gpc
from check import host
from gpuconv import nn, ops
from gpuconv.autograd import Parameter, Tensor, no_grad
from gpuconv.recompute import recompute, replay


def block(C=6):
    """A part of a net with everything that changes state or draws."""
    return nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU(),
                         nn.Dropout(0.3), nn.Conv2d(C, C, 3, padding=1), nn.GELU(), nn.Dropout(0.5))


def gradients(model, run, x, xp, dtype="float32"):
    """Value, gradients and buffers after one backward pass of run(model, x)."""
    model.reseed(3, step=2)
    model.zero_grad()
    x = Tensor(xp.asarray(x.astype(dtype)), requires_grad=True)
    y = run(model, x)
    y.backward(xp.asarray(np.linspace(-1, 1, y.size).astype(dtype).reshape(y.shape)))
    return [host(a) for a in (y.data, x.grad, *(p.grad for p in model.parameters()),
                              *(b for b in model.buffers()))]


def both(xp, run, build=block):
    """What gradients gives for the plain model, and for ``run`` of an equal one."""
    found = []
    for how in (lambda model, x: model(x), run):
        gpc.seed(1)
        model = build()
        model.to("cpu" if xp is np else "cuda")
        x = np.random.default_rng(5).standard_normal((2, 5, 4, 6))
        found.append(gradients(model, how, x, xp))
    return found


@pytest.mark.parametrize("how", [
    lambda m, x: recompute(m, x),
    lambda m, x: recompute(m[3:], recompute(m[:3], x)),
    lambda m, x: recompute(lambda x: m[4:](recompute(m[:4], x)), x),
    lambda m, x: recompute(lambda x: recompute(lambda x: recompute(m, x), x), x),
], ids=["whole", "in two", "one in another", "three deep"])
def test_the_same_bits_as_without(xp, how):
    for got, want in zip(*both(xp, how), strict=True):
        np.testing.assert_array_equal(got, want)


def test_draws_without_a_key_are_the_same_twice_and_no_more_than_without(xp):
    def run(recomputed):
        gpc.seed(7)
        x = Tensor(xp.ones(64, "float32"), requires_grad=True)
        y = recompute(ops.dropout, x) if recomputed else ops.dropout(x)
        y.backward(xp.ones(64, "float32"))
        return host(y.data), host(x.grad), host(ops.dropout(xp.ones(64, "float32")))

    for got, want in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(got, want)


def test_parameters_get_gradients_where_no_input_wants_one():
    w = Parameter(np.array([2.0, 3.0]))
    recompute(lambda x: (w * x).sum(), np.array([5.0, 7.0])).backward()
    assert w.grad.tolist() == [5, 7]


def test_a_parameter_inside_and_outside_gets_both_gradients():
    w = Parameter(np.array([2.0]))
    (recompute(lambda: w * w) + w * 3.0).sum().backward()
    assert w.grad.tolist() == [7]


def test_an_input_that_is_not_used_gets_zeros():
    x, z = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    recompute(lambda x, z: x.sum(), x, z).backward()
    assert z.grad.tolist() == [0, 0]


def test_nothing_inside_is_kept():
    alive = []

    def f(x):
        y = x * 2.0
        alive.append(weakref.ref(y.data))
        return y * y

    x = Tensor(np.ones(1000), requires_grad=True)
    gc.disable()
    try:
        y = recompute(f, x)
        assert alive[0]() is None
        y.backward(np.ones(1000))
        assert alive[1]() is None
    finally:
        gc.enable()
    assert (x.grad == 8).all()


def test_without_recording_it_is_the_function():
    x = Tensor(np.ones(2), requires_grad=True)
    with no_grad():
        assert not recompute(lambda x: x * 2.0, x).requires_grad


def test_backward_inside_no_grad_records_its_second_run():
    x = Tensor(np.ones(2), requires_grad=True)
    y = recompute(lambda x: (x * x).sum(), x)
    with no_grad():
        y.backward()
    assert x.grad.tolist() == [2, 2]


def test_threads_do_not_see_each_others_runs():
    seen = []
    x = Tensor(np.ones(1), requires_grad=True)

    def f(x):
        thread = threading.Thread(target=lambda: seen.append(replay(lambda: len(seen))))
        thread.start()
        thread.join()
        return x * 2.0

    recompute(f, x).sum().backward()
    assert seen == [0, 1]


def test_refusals():
    x = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(TypeError, match="gave float, wanted a Tensor"):
        recompute(lambda x: 1.0, x)
    sizes = iter([2, 1])
    y = recompute(lambda x: x[:next(sizes)], x)
    with pytest.raises(RuntimeError, match=r"gave float64 \(2,\), and float64 \(1,\) when it ran"):
        y.backward(np.ones(2))
    with pytest.raises(RuntimeError, match="no input required a gradient"):
        recompute(lambda x: x * 2.0, Tensor(np.ones(2))).sum().backward()
    y = recompute(lambda x: x * 2.0, x)
    y.backward(np.ones(2))
    with pytest.raises(RuntimeError, match="freed"):
        y.backward(np.ones(2))


@pytest.mark.parametrize("layer", [nn.GELU, nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("run", [
    lambda m, x: recompute(m, x), lambda m, x: recompute(lambda x: recompute(m, x), x)],
    ids=["once", "nested"])
def test_both_runs_fuse_the_same_layers(cp, run, layer):
    """In 16 bits a fused activation rounds once, one of its own twice."""
    found = []
    for how in (lambda m, x: m(x), run):
        gpc.seed(1)
        model = nn.Sequential(nn.Conv2d(6, 8, 3), layer(), nn.Flatten(), nn.Linear(48, 3), layer())
        x = np.random.default_rng(5).standard_normal((2, 5, 4, 6))
        found.append(gradients(model.to("cuda", "float16"), how, x, cp, "float16"))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
