"""DLPack both ways: one memory, seen by gpuconv and by PyTorch, or a sentence that says why not."""

import numpy as np
import pytest

import gpuconv as gpc
from check import close
from gpuconv import nn, ops
from gpuconv.backend import is_gpu, to_gpu
from hostcuda import fake_cupy

X = np.arange(2 * 4 * 4 * 3, dtype="float32").reshape(2, 4, 4, 3)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def shared(torch, ours):
    """PyTorch's view of it, after one has seen what the other wrote, both ways."""
    array = ours.data if isinstance(ours, gpc.Tensor) else ours
    theirs = torch.from_dlpack(ours)
    np.testing.assert_array_equal(theirs.numpy(), array)
    assert theirs.data_ptr() == array.ctypes.data
    last = (-1,) * array.ndim
    theirs[last] = 123
    assert array[last] == 123
    array[last] = 45
    assert theirs[last] == 45
    return theirs


# -- there -------------------------------------------------------------------------------

OPS = {
    "conv": lambda x: ops.conv2d(x, gpc.Tensor(np.ones((5, 3, 3, 3), "float32"))),
    "pool": lambda x: ops.max_pool2d(x, 2),
    "relu": ops.relu,
    "flatten": lambda x: x.flatten(),
    "sum": lambda x: x.sum(),
    "softmax": ops.softmax,
}


@pytest.mark.parametrize("name", OPS)
def test_the_result_of_an_op(torch, name):
    y = OPS[name](gpc.Tensor(X.copy()))
    assert isinstance(y, gpc.Tensor)
    shared(torch, y)


def test_the_result_of_a_module_and_of_predict(torch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(BufferError, match=r"requires_grad.* pass its \.detach\(\)"):
        torch.from_dlpack(model(X))  # its parameters want gradients
    y = model(X)
    shared(torch, y.detach())
    with gpc.no_grad():
        shared(torch, model(X))
    shared(torch, model.predict(X))


def test_a_parameter_and_its_gradient(torch):
    p = gpc.Parameter(np.ones(3, "float32"))
    (p * p).sum().backward()
    with pytest.raises(BufferError, match="detach"):
        torch.from_dlpack(p)
    shared(torch, p.detach())
    shared(torch, p.grad)
    p.requires_grad = False
    shared(torch, p)


def test_numpy_takes_it_too():
    y = gpc.Tensor(X.copy())
    assert np.shares_memory(np.from_dlpack(y), y.data)


@pytest.mark.parametrize("dtype", "float16 float32 float64 uint8 int64".split())
def test_dtypes(torch, dtype):
    theirs = shared(torch, gpc.Tensor(X.astype(dtype)))
    assert str(theirs.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("make", [lambda a: a[:, ::2], lambda a: a.T, lambda a: a[1:, 1:3, :, 1:2],
                                  lambda a: a[0, 0, 0], lambda a: a[:1, :0]],
                         ids=["strides", "transposed", "slice", "vector", "empty"])
def test_views(torch, make):
    a = make(X.copy())
    theirs = torch.from_dlpack(gpc.Tensor(a)) if not a.size else shared(torch, gpc.Tensor(a))
    assert theirs.shape == a.shape


def test_a_number_and_a_broadcast(torch):
    assert torch.from_dlpack(gpc.Tensor(np.array(2.5))).item() == 2.5
    wide = np.broadcast_to(np.float32(3), (2, 3))
    assert torch.from_dlpack(gpc.Tensor(wide)).stride() == (0, 0)


def test_negative_strides_are_refused_before_they_end_the_process(torch):
    with pytest.raises(BufferError, match=r"negative strides \(192, -48, 12, 4\).* pass a copy"):
        torch.from_dlpack(gpc.Tensor(X[:, ::-1]))


def test_what_is_read_only_stays_so_where_the_other_side_knows_it(torch):
    a = X.copy()
    a.flags.writeable = False
    y = gpc.Tensor(a)
    assert not np.from_dlpack(y).flags.writeable
    assert torch.from_dlpack(y).data_ptr() == a.ctypes.data  # PyTorch knows no such thing
    with pytest.raises(BufferError, match="readonly"):
        y.__dlpack__()  # a reader from before DLPack 1.0, who could not know


def test_a_copy_when_one_is_asked_for(torch):
    y = gpc.Tensor(X.copy())
    theirs = torch.from_dlpack(y, copy=True)
    theirs[0, 0, 0, 0] = 9
    assert y.data[0, 0, 0, 0] == 0


def test_bfloat16_goes_as_its_bits(torch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = X.astype(ml_dtypes.bfloat16)
    with pytest.raises(BufferError, match=r"bfloat16.* pass \.data\.view\('uint16'\)"):
        torch.from_dlpack(gpc.Tensor(a))
    theirs = torch.from_dlpack(a.view("uint16")).view(torch.bfloat16)
    theirs[1, 1, 1, 1] = -2
    assert a[1, 1, 1, 1] == -2
    np.testing.assert_array_equal(theirs.float().numpy(), a.astype("float32"))


# -- and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", "float16 float32 float64 uint8 int64".split())
def test_back_without_a_copy(torch, dtype):
    theirs = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    ours = gpc.asarray(theirs)
    assert type(ours) is np.ndarray and ours.dtype == dtype and ours.shape == (2, 3, 4)
    assert ours.ctypes.data == theirs.data_ptr()
    ours[1, 2, 3] = 77
    theirs[0, 0, 0] = 66
    assert theirs[1, 2, 3] == 77 and ours[0, 0, 0] == 66


def test_back_from_a_view(torch):
    theirs = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[::2]
    ours = gpc.asarray(theirs)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert ours.ctypes.data == theirs.data_ptr()
    close(ops.relu(ours), theirs.relu().numpy().copy())


def test_there_and_back_is_the_same_memory(torch):
    y = ops.max_pool2d(gpc.Tensor(X), 2)
    assert np.shares_memory(gpc.asarray(torch.from_dlpack(y)), y.data)
    assert gpc.asarray(y) is not y.data and np.shares_memory(gpc.asarray(y), y.data)


def test_the_memory_outlives_whoever_made_it(torch):
    theirs = torch.from_dlpack(ops.relu(gpc.Tensor(X)))
    ours = gpc.asarray(torch.arange(1000.0))
    for _ in range(10):
        np.full(X.size, 7, "float32"), torch.full((1000,), 7.0)  # would reuse what is free
    np.testing.assert_array_equal(theirs.numpy(), X)
    np.testing.assert_array_equal(ours, np.arange(1000, dtype="float32"))


def test_what_wants_a_gradient_there_is_refused(torch):
    with pytest.raises(BufferError, match=r"detach\(\)"):
        gpc.asarray(torch.ones(2, requires_grad=True))


def test_weights_of_pytorch_load_by_name(torch):
    theirs = torch.nn.Linear(6, 4)
    ours = nn.Linear(6, 4)
    ours.load_state_dict(theirs.state_dict())
    x = np.ones((2, 6), "float32")
    close(ours.predict(x), theirs(torch.from_dlpack(x)).detach().numpy(), terms=6)


def test_bfloat16_comes_back_as_its_bits(torch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = torch.arange(6).to(torch.bfloat16)
    with pytest.raises((RuntimeError, BufferError, TypeError), match="dtype|bfloat16"):
        gpc.asarray(theirs)  # NumPy reads no bfloat16
    ours = gpc.asarray(theirs.view(torch.uint16)).view(ml_dtypes.bfloat16)
    ours[5] = -3
    assert theirs[5] == -3 and ours.tolist() == [0, 1, 2, 3, 4, -3]


# -- on a GPU ----------------------------------------------------------------------------


def test_a_tensor_says_where_it_lives(xp):
    a = xp.ones((2, 3), "float32")
    y = gpc.Tensor(a)
    assert y.__dlpack_device__() == ((2, 0) if is_gpu(a) else (1, 0))
    back = gpc.asarray(y)
    assert type(back) is type(a)
    back[0, 0] = 5
    assert float(a[0, 0]) == 5  # the same memory


def test_on_the_gpu_the_rules_are_the_same(cp):
    a = cp.ones((2, 3), "float32")
    with pytest.raises(BufferError, match="detach"):
        gpc.asarray(gpc.Tensor(a, requires_grad=True))
    with pytest.raises(BufferError, match="negative strides"):
        gpc.asarray(gpc.Tensor(a[::-1]))


def test_options_of_the_reader_reach_the_array(cp, monkeypatch):
    asked = {}
    if cp is not fake_cupy:
        pytest.skip("looks at what the stand-in is asked")
    monkeypatch.setattr(fake_cupy.ndarray, "__dlpack__", lambda a, **options: asked.update(options))
    gpc.Tensor(to_gpu(X)).__dlpack__(stream=7, max_version=(1, 0))
    assert asked == {"stream": 7, "max_version": (1, 0)}
