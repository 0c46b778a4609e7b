"""Flat buffers: layout, views, freezing, release."""

import numpy as np
import pytest

from check import host
from gpuconv.autograd import Parameter
from gpuconv.backend import float_dtype
from gpuconv.optim.flat import pack

SHAPES = [(3, 5), (), (70,), (2, 2, 2, 2), (0, 3)]


def parameters(xp, dtype="float32", shapes=SHAPES):
    return [Parameter(xp.full(shape, i + 1, float_dtype(dtype))) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_layout(xp, dtype):
    ps = parameters(xp, dtype)
    (flat,), = pack([ps])
    step = 256 // flat.data.dtype.itemsize
    assert flat.data.dtype == flat.grad.dtype == float_dtype(dtype)
    assert all(start % step == 0 for start in flat.starts) and flat.data.size % step == 0
    assert flat.data.size == sum(-(-p.size // step) * step for p in ps)
    values, covered = host(flat.data).astype("float64"), np.zeros(flat.data.size, bool)
    for i, (start, p) in enumerate(zip(flat.starts, ps, strict=True)):
        assert (values[start : start + p.size] == i + 1).all()
        covered[start : start + p.size] = True
    assert not values[~covered].any()  # the gaps
    if xp is np:
        assert all(a.ctypes.data % 256 == 0 for p in ps for a in (p.data, p.grad) if a.size)


def test_parameters_become_views(xp):
    ps = parameters(xp)
    ps[0].grad = xp.full((3, 5), 4, "float32")
    (flat,), = pack([ps])
    assert all(p.holder for p in ps)
    assert (host(ps[0].grad) == 4).all() and not host(ps[2].grad).any()
    flat.data[...] = 9
    flat.grad[...] = 8
    for p, shape in zip(ps, SHAPES, strict=True):
        assert p.shape == p.grad.shape == shape
        assert (host(p.data) == 9).all() and (host(p.grad) == 8).all()


def test_gradients_arrive_in_the_flat_buffer():
    ps = parameters(np, shapes=[(2,)])
    (flat,), = pack([ps])
    for _ in range(2):
        ps[0].backward(np.ones(2, "float32"))
    assert flat.grad[:3].tolist() == [2, 2, 0]


def test_one_buffer_per_group_and_dtype():
    a, b, c = (parameters(np, dtype, [(2,), (3,)]) for dtype in ("float32", "float64", "float32"))
    flats = pack([[a[0], b[0], a[1], b[1]], c])
    assert [[f.data.dtype.name for f in group] for group in flats] == [
        ["float32", "float64"], ["float32"]]
    assert [[position for position, _ in f.members] for group in flats for f in group] == [
        [0, 2], [1, 3], [4, 5]]


def test_a_device_has_its_own_buffer(cp):
    (a,), (b,) = parameters(np, shapes=[(2,)]), parameters(cp, shapes=[(2,)])
    (host_flat, gpu_flat), = pack([[a, b]])
    assert isinstance(host_flat.data, np.ndarray) and isinstance(gpu_flat.data, cp.ndarray)


@pytest.mark.parametrize("frozen, want", [
    ((), [(0, 256)]), ((0,), [(64, 256)]), ((3,), [(0, 192)]), ((1,), [(0, 64), (128, 256)]),
    ((1, 2), [(0, 64), (192, 256)]), ((0, 2), [(64, 128), (192, 256)]), ((0, 1, 2, 3), []),
])
def test_active_leaves_out_what_is_frozen(frozen, want):
    ps = parameters(np, shapes=[(2,)] * 4)
    (flat,), = pack([ps])
    for i in frozen:
        ps[i].requires_grad = False
    assert [(part.start, part.stop) for part in flat.active()] == want


def test_a_replaced_gradient_is_noticed():
    ps = parameters(np)
    (flat,), = pack([ps])
    ps[2].grad = None
    with pytest.raises(RuntimeError, match=r"step: grad of parameter 2 \(70,\) was replaced"):
        list(flat.active())


def test_state_lies_beside_the_parameters(xp):
    (flat,), = pack([parameters(xp, "float16")])
    m = flat.new_state("momentum", np.dtype("float32"))
    assert m is flat.state["momentum"] and m.shape == flat.data.shape and m.dtype == "float32"
    assert [v.shape for v in flat.views(m)] == SHAPES and not host(m).any()


def test_release(xp):
    ps = parameters(xp)
    (flat,), = pack([ps])
    flat.grad[...] = 3
    flat.release()
    flat.data[...] = flat.grad[...] = 7
    for i, p in enumerate(ps):
        assert p.holder is None
        assert (host(p.data) == i + 1).all() and (host(p.grad) == 3).all()
    pack([ps])


def test_refuses_and_packs_nothing():
    a, b = parameters(np, shapes=[(2,), (3,)])
    with pytest.raises(ValueError, match=r"parameter 2 \(2,\) is parameter 0 again"):
        pack([[a, b], [a]])
    with pytest.raises(TypeError, match="parameter 1 is ndarray, wanted a Parameter"):
        pack([[a, np.zeros(2)]])
    assert a.holder is None and a.grad is None


def test_a_buffer_that_is_gone_holds_nothing():
    p, = parameters(np, shapes=[(3,)])
    flats = pack([[p]])
    p.data[...] = 7
    del flats
    assert p.holder is None and p.data.tolist() == [7, 7, 7]
    assert pack([[p]]) and p.data.tolist() == [7, 7, 7]
