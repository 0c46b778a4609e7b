"""Module: registration, the tree, state, moving, predict."""

import copy

import numpy as np
import pytest

from check import host
from gpuconv import random
from gpuconv.autograd import Parameter, Tensor
from gpuconv.backend import float_dtype
from gpuconv.nn.module import Module


class Leaf(Module):
    """y = x + weight; counts its calls."""

    def __init__(self, size=2, value=0.0):
        self.weight = Parameter(np.full(size, value, "float32"))
        self.register_buffer("mean", np.full(size, value + 1, "float32"))
        self.register_buffer("calls", np.zeros((), "int64"))

    def forward(self, x):
        self.calls[...] += 1
        return Tensor(x.data + self.weight.data)


class Tree(Module):
    def __init__(self):
        self.left = Leaf(2, 1.0)
        self.scale = Parameter(np.zeros(3, "float32"))
        self.right = Leaf(4, 2.0)

    def forward(self, x):
        return self.left(x)


NAMES = ["scale", "left.weight", "right.weight", "left.mean", "left.calls", "right.mean",
         "right.calls"]


def test_assignment_registers():
    tree = Tree()
    assert [n for n, _ in tree.named_parameters()] == NAMES[:3]
    assert [n for n, _ in tree.named_buffers()] == NAMES[3:]
    assert [n for n, _ in tree.named_modules()] == ["", "left", "right"]
    assert list(tree.modules()) == [tree, tree.left, tree.right]
    assert [p is q for p, q in zip(tree.parameters(), [
        tree.scale, tree.left.weight, tree.right.weight], strict=True)] == [True] * 3
    assert next(tree.buffers()) is tree.left.mean
    assert list(tree.state_dict()) == NAMES


def test_a_parameter_may_take_the_place_of_none():
    leaf = Leaf()
    leaf.bias = None
    assert "bias" not in leaf.state_dict()
    leaf.bias = Parameter(np.zeros(2, "float32"))
    assert "bias" in leaf.state_dict()


@pytest.mark.parametrize("name, value, message", [
    ("scale", np.zeros(3), "Tree.scale is a Parameter, not to be replaced by ndarray"),
    ("scale", None, "Tree.scale is a Parameter, not to be replaced by NoneType"),
    ("scale", Tensor(np.zeros(3)), "not to be replaced by Tensor"),
    ("left", None, "Tree.left is a Module, not to be replaced by NoneType"),
])
def test_a_registered_name_stays_what_it_is(name, value, message):
    with pytest.raises(TypeError, match=message):
        setattr(Tree(), name, value)


def test_buffers_are_arrays_of_a_free_name():
    leaf = Leaf()
    leaf.mean = np.ones(2, "float32")
    with pytest.raises(TypeError, match=r"Leaf.mean is a buffer, wanted an array, got float"):
        leaf.mean = 1.0
    with pytest.raises(TypeError, match="register_buffer: var is list, wanted an array"):
        leaf.register_buffer("var", [1.0])
    with pytest.raises(ValueError, match="register_buffer: Leaf has a weight already"):
        leaf.register_buffer("weight", np.zeros(2))


def test_tied_parameters_and_shared_modules_count_once():
    tree = Tree()
    tree.right.weight = tree.left.weight
    tree.again = tree.left
    assert [n for n, _ in tree.named_parameters()] == ["scale", "left.weight"]
    assert list(tree.state_dict()) == [n for n in NAMES if n != "right.weight"]
    tree.load_state_dict({n: a + 5 for n, a in tree.state_dict().items()})
    assert tree.right.weight.data.tolist() == [6, 6]


def test_state_is_copied_in_place(xp):
    tree, other = Tree(), Tree()
    if xp is not np:
        tree.to("cuda")
    before = tree.state_dict()
    state = {n: a + 7 for n, a in other.state_dict().items()}
    assert tree.load_state_dict(state) == ([], [])
    assert all(a is before[n] for n, a in tree.state_dict().items())
    for name, array in tree.state_dict().items():
        np.testing.assert_array_equal(host(array), state[name])
        assert isinstance(array, xp.ndarray)


def test_a_bad_state_is_described_whole_and_changes_nothing():
    tree = Tree()
    before = {n: a.copy() for n, a in tree.state_dict().items()}
    state = {n: a + 1 for n, a in before.items()}
    del state["scale"]
    state |= {"left.weight": np.zeros(3, "float32"), "right.mean": np.zeros(4), "new": np.zeros(1)}
    with pytest.raises(ValueError) as caught:
        tree.load_state_dict(state)
    assert str(caught.value) == (
        "load_state_dict: Tree: missing scale; unexpected new; left.weight is float32 (3,), wanted "
        "float32 (2,); right.mean is float64 (4,), wanted float32 (4,)")
    with pytest.raises(ValueError, match=r"Tree: left.weight is float32 \(3,\)"):
        tree.load_state_dict(state, strict=False)
    for name, array in tree.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_partial_state():
    tree = Tree()
    state = {"scale": np.ones(3, "float32"), "new": np.ones(1)}
    missing, unexpected = tree.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (NAMES[1:], ["new"])
    assert tree.scale.data.tolist() == [1, 1, 1]


def test_state_of_pytorch_loads():
    torch = pytest.importorskip("torch")
    tree = Tree()
    tree.load_state_dict({n: torch.from_numpy(np.asarray(a + 3))
                          for n, a in tree.state_dict().items()})
    assert tree.scale.data.tolist() == [3, 3, 3] and tree.left.calls == 3


def test_train_and_eval_reach_everything():
    tree = Tree()
    assert tree.eval() is tree
    assert not any(m.training for m in tree.modules())
    tree.train()
    assert all(m.training for m in tree.modules())
    assert not tree.train(False).right.training


def test_freezing_and_zeroing():
    tree = Tree()
    assert tree.requires_grad_(False) is tree
    assert not any(p.requires_grad for p in tree.parameters())
    tree.requires_grad_()
    assert all(p.requires_grad for p in tree.parameters())
    tree.scale.grad = grad = np.ones(3, "float32")
    tree.zero_grad()
    assert tree.scale.grad is grad and not grad.any()


@pytest.mark.parametrize("dtype, statistics", [
    ("float64", "float64"), ("float16", "float32"), ("bfloat16", "float32")])
def test_to_a_dtype(xp, dtype, statistics):
    tree = Tree()
    tree.scale.grad = np.ones(3, "float32")
    assert tree.to(*(["cuda"] if xp is not np else []), dtype) is tree
    assert tree.dtype == tree.scale.dtype == tree.left.weight.dtype == float_dtype(dtype)
    assert tree.left.mean.dtype == statistics and tree.left.calls.dtype == "int64"
    assert tree.scale.grad.dtype == float_dtype(dtype) and host(tree.scale.grad).all()
    tree.to(np.float32)
    assert tree.dtype == "float32"


def test_to_a_device_and_back(cp):
    tree = Tree()
    twin = tree.scale
    tree.scale.grad = np.ones(3, "float32")
    assert tree.device == "cpu"
    tree.to("cuda")
    assert tree.device == "cuda:0" and tree.scale is twin
    arrays = [*tree.state_dict().values(), tree.scale.grad]
    assert all(isinstance(a, cp.ndarray) for a in arrays)
    tree.to("cpu")
    assert all(isinstance(a, np.ndarray) for a in [*tree.state_dict().values(), tree.scale.grad])


def test_to_keeps_what_is_there():
    tree = Tree()
    before = tree.state_dict()
    tree.to("cpu", "float32")
    assert all(a is before[n] for n, a in tree.state_dict().items())


def test_a_packed_parameter_does_not_move():
    tree = Tree()
    holder = Tree()  # stands for an optimiser's buffers
    tree.right.weight.rebind(tree.right.weight.data, holder=holder)
    tree.to("cpu")  # it is there
    with pytest.raises(RuntimeError, match=r"to: an optimiser holds right.weight \(4,\), float32 "
                                           r"on cpu: move the module before"):
        tree.to("float64")
    assert tree.dtype == "float32"


@pytest.mark.parametrize("target, error, message", [
    ("gpu", ValueError, "device 'gpu': wanted"), ("int32", ValueError, "device 'int32'"),
    (np.int32, TypeError, "unsupported dtype int32"),
])
def test_to_refuses(target, error, message):
    with pytest.raises(error, match=message):
        Tree().to(target)


def test_a_module_without_arrays():
    assert (Module().device, Module().dtype) == ("cpu", np.float32)
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        Module()(np.zeros(1))


def test_calls_wrap_arrays(xp):
    class Pair(Module):
        def forward(self, x, flag, y):
            assert isinstance(x, Tensor) and isinstance(y, Tensor) and flag is None
            return y

    tensor = Tensor(xp.ones(2))
    assert Pair()(xp.zeros(2), None, tensor) is tensor


@pytest.mark.parametrize("n, batch", [(10, 4), (8, 4), (3, 100), (0, 4)])
def test_predict(xp, rng, n, batch):
    tree = Tree()
    if xp is not np:
        tree.to("cuda")
    tree.right.eval()
    x = rng.standard_normal((n, 2)).astype("float32")
    y = tree.predict(xp.asarray(x), batch_size=batch)
    assert isinstance(y, xp.ndarray)
    np.testing.assert_array_equal(host(y), x + 1)
    assert [m.training for m in tree.modules()] == [True, True, False]
    assert int(tree.left.calls) == max(1, -(-n // batch))


def test_predict_restores_after_an_exception():
    class Breaks(Module):
        def forward(self, x):
            assert not self.training
            raise OSError

    module = Breaks()
    with pytest.raises(OSError):
        module.predict(np.zeros((3, 2)))
    assert module.training


def test_predict_refuses():
    with pytest.raises(ValueError, match="batch_size is 0, wanted at least 1"):
        Tree().predict(np.zeros((3, 2)), 0)
    with pytest.raises(TypeError, match=r"predict: array is Tensor, wanted an array: array.data"):
        Tree().predict(Tensor(np.zeros((3, 2))))


def test_reseed_gives_each_path_its_own_key():
    class Draws(Module):
        def reseed_layer(self, key, step):
            self.got = key, step

    tree = Tree()
    tree.a, tree.b = Draws(), Draws()
    tree.reseed(7, 3)
    assert tree.a.got == ((7, random.stream("a")), 3)
    assert tree.b.got == ((7, random.stream("b")), 3)
    with pytest.raises(ValueError, match="reseed: seed -1 is outside"):
        tree.reseed(-1, 0)


def test_a_deep_copy_is_its_own():
    tree = Tree()
    tree.right.weight = tree.left.weight
    holder = Tree()  # stands for an optimiser's buffers
    tree.left.weight.rebind(tree.left.weight.data, holder=holder)
    twin = copy.deepcopy(tree)
    assert twin.right.weight is twin.left.weight is not tree.left.weight
    assert twin.left.weight.holder is None and tree.left.weight.holder
    twin.left.weight.data[...] = 9
    assert tree.left.weight.data.tolist() == [1, 1]


def test_repr_is_a_tree():
    tree = Tree()
    tree.left.inner = Module()
    assert repr(tree) == "Tree(\n  left: Leaf(\n    inner: Module()\n  )\n  right: Leaf()\n)"
