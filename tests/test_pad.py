"""pad2d: every mode against NumPy's own padding and PyTorch, its gradient, refusals."""

import numpy as np
import pytest

from check import DTYPES, close, grad_check, host, make, shifted
from gpuconv import kernels, vjp
from gpuconv.autograd import Tensor
from gpuconv.backend import float_dtype
from gpuconv.ops.shape.pad import MODES, pad2d

NUMPY = dict(zeros="constant", reflect="reflect", replicate="edge", circular="wrap")
TORCH = dict(zeros="constant", reflect="reflect", replicate="replicate", circular="circular")
PADS = [pytest.param(1, id="one"), pytest.param((0, 2), id="width"),
        pytest.param(((0, 3), (2, 1)), id="every-side-different"), pytest.param(0, id="none")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADS)
def test_is_numpys_padding(xp, rng, mode, padding):
    x = rng.standard_normal((2, 4, 5, 3)).astype("float32")
    (top, bottom), (left, right) = np.broadcast_to(
        np.array(padding).reshape(-1, 1) if np.ndim(padding) == 1 else padding, (2, 2)).tolist()
    y = pad2d(xp.asarray(x), padding, mode)
    close(y, np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), NUMPY[mode]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADS)
def test_gradient_is_the_slope(rng, mode, padding):
    grad_check(lambda t: pad2d(t, padding, mode), rng.standard_normal((2, 4, 5, 3)), rng=rng)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_pytorchs(xp, rng, mode):
    torch = pytest.importorskip("torch")
    a, pads = rng.standard_normal((2, 4, 5, 3)), ((3, 1), (2, 3))
    x = Tensor(xp.asarray(a), requires_grad=True)
    y = pad2d(x, pads, mode)
    gy = rng.standard_normal(y.shape)
    y.backward(xp.asarray(gy))
    t = torch.from_numpy(a).permute(0, 3, 1, 2).requires_grad_()
    u = torch.nn.functional.pad(t, (2, 3, 3, 1), TORCH[mode])
    u.backward(torch.from_numpy(gy).permute(0, 3, 1, 2))
    close(y.data, u.detach().permute(0, 2, 3, 1).numpy())
    close(x.grad, t.grad.permute(0, 2, 3, 1).numpy(), terms=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_cuda_as_numpy_in_packs_and_from_any_address(cp, rng, mode, dtype):
    pads = ((3, 1), (0, 4))
    x = make(rng.standard_normal((2, 4, 5, 8)), dtype)
    gy = make(rng.standard_normal((2, 8, 9, 8)), dtype)
    want_y, pull = vjp(lambda t: pad2d(t, pads, mode), x)
    want_gx, = pull(gy)
    for move in (lambda a: cp.asarray(a), lambda a: shifted(cp, a)):
        t = Tensor(move(x), requires_grad=True)
        y = pad2d(t, pads, mode)
        y.backward(move(gy))
        assert host(y).tobytes() == want_y.tobytes()
        close(t.grad, want_gx, terms=25)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, mode, limit, value):
    monkeypatch.setattr(kernels, limit, value)
    x = rng.standard_normal((3, 7, 5, 11)).astype("float32")
    want, pull = vjp(lambda t: pad2d(t, 2, mode), x)
    gx, = pull(want)
    got, pull = vjp(lambda t: pad2d(t, 2, mode), cp.asarray(x))
    close(got, want)
    close(pull(got)[0], gx, terms=25)


@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
def test_one_pixel_and_no_image(xp, mode):
    y, pull = vjp(lambda t: pad2d(t, 1, mode), xp.full((1, 1, 1, 2), 3.0))
    assert host(y)[0, 0, 0, 0] == (0 if mode == "zeros" else 3)
    assert (host(pull(xp.ones(y.shape))[0]) == (1 if mode == "zeros" else 9)).all()
    assert pad2d(xp.zeros((0, 2, 2, 3)), 1, mode).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_forward_and_back(xp, dtype):
    x = Tensor(xp.ones((1, 2, 2, 1), float_dtype(dtype)), requires_grad=True)
    y = pad2d(x, 1, "replicate")
    y.backward(xp.ones(y.shape, float_dtype(dtype)))
    assert y.dtype == x.grad.dtype == float_dtype(dtype)
    assert host(x.grad).astype(float).tolist() == [[[[4.0], [4.0]], [[4.0], [4.0]]]]


def test_views_and_broadcast_gradients(xp, rng):
    a = rng.standard_normal((2, 5, 4, 3))
    x = Tensor(xp.asarray(a).transpose(0, 2, 1, 3)[:, ::-1], requires_grad=True)
    y = pad2d(x, 1, "reflect")
    y.backward(xp.broadcast_to(xp.ones(1), y.shape))
    want = np.pad(a.transpose(0, 2, 1, 3)[:, ::-1], ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    close(y.data, want)
    assert float(host(x.grad).sum()) == y.size


@pytest.mark.parametrize("call, error, message", [
    (lambda x: pad2d(x, 1, "mirror"), ValueError, "mode is 'mirror', wanted .*'reflect'"),
    (lambda x: pad2d(x, 3, "reflect"), ValueError, r"padding \(\(3, 3\), \(3, 3\)\).* 0 to 2 here"),
    (lambda x: pad2d(x, 4, "circular"), ValueError, "'circular' takes 0 to 3 here"),
    (lambda x: pad2d(x, -1), ValueError, "takes at least 0"),
    (lambda x: pad2d(x[0], 1), ValueError, "wanted \\(N, H, W, C\\)"),
])
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((1, 3, 3, 1)))
