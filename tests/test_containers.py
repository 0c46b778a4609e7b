"""Sequential, ModuleList, Residual."""

import numpy as np
import pytest

from check import close, grad_check, host
from gpuconv import nn
from gpuconv.autograd import Parameter, Tensor
from gpuconv.ops.reduce.reduction import sum_


class Scale(nn.Module):
    """y = x * weight."""

    def __init__(self, value):
        self.weight = Parameter(np.full((), value, "float32"))

    def forward(self, x):
        return x * self.weight


class Sum(nn.Module):
    def forward(self, x):
        return sum_(x, axis=1)


def test_sequential_is_a_chain(xp):
    chain = nn.Sequential(Scale(2), Scale(3), nn.Identity())
    if xp is not np:
        chain.to("cuda")
    y = chain(xp.ones(3, "float32"))
    assert isinstance(y, Tensor)
    close(y.data, np.full(3, 6, "float32"))
    assert list(chain.state_dict()) == ["0.weight", "1.weight"]


def test_sequential_as_a_list():
    a, b, c = Scale(1), Scale(2), Scale(3)
    chain = nn.Sequential(a, b)
    assert chain.append(c) is chain
    assert len(chain) == 3 and list(chain) == [a, b, c]
    assert chain[0] is a and chain[-1] is c
    part = chain[1:]
    assert type(part) is nn.Sequential and list(part) == [b, c]
    assert list(part.state_dict()) == ["0.weight", "1.weight"]
    assert list(chain[::-1]) == [c, b, a]
    with pytest.raises(IndexError):
        chain[3]


def test_one_module_may_stand_at_two_places():
    a = Scale(2)
    chain = nn.Sequential(a, nn.Identity(), a)
    assert len(chain) == 3 and chain[2] is a
    assert chain(np.ones(1, "float32")).item() == 4
    assert list(chain.state_dict()) == ["0.weight"]


def test_an_empty_chain_is_the_identity():
    x = Tensor(np.ones(2))
    assert nn.Sequential()(x) is x and len(nn.Sequential()) == 0


def test_module_list():
    class Owner(nn.Module):
        def __init__(self):
            self.parts = nn.ModuleList(Scale(i) for i in range(3))

        def forward(self, x):
            return self.parts[0](x) + self.parts[2](x)

    owner = Owner()
    owner.parts.append(Scale(3))
    assert [n for n, _ in owner.named_parameters()] == [f"parts.{i}.weight" for i in range(4)]
    assert type(owner.parts[:2]) is nn.ModuleList and len(owner.parts[:2]) == 2
    assert owner(np.ones(1, "float32")).item() == 2
    with pytest.raises(NotImplementedError, match="ModuleList defines no forward"):
        owner.parts(np.ones(1))


def test_residual(xp):
    block = nn.Residual(Scale(2), Scale(3))
    other = nn.Residual(Scale(2), shortcut=Scale(10))
    if xp is not np:
        block.to("cuda"), other.to("cuda")
    x = xp.ones(2, "float32")
    assert host(block(x).data).tolist() == [7, 7]
    assert host(other(x).data).tolist() == [12, 12]
    assert list(block.state_dict()) == ["body.0.weight", "body.1.weight"]
    assert list(other.state_dict()) == ["body.0.weight", "shortcut.weight"]


def test_gradients_of_both_branches_add(rng):
    block = nn.Residual(Scale(2), Scale(3)).to("float64")
    grad_check(block, rng.standard_normal((2, 3)), rng=rng)
    x = Tensor(np.ones(2), requires_grad=True)
    block.zero_grad()
    block(x).backward(np.ones(2))
    assert x.grad.tolist() == [7, 7]
    assert block.body[0].weight.grad == 6 and block.body[1].weight.grad == 4


@pytest.mark.parametrize("make, error, message", [
    (lambda: nn.Sequential(Scale(1), 3), TypeError, "Sequential: item 1 is int, wanted a Module"),
    (lambda: nn.Sequential([Scale(1)]), TypeError, "Sequential: item 0 is list, wanted a Module"),
    (lambda: nn.ModuleList([None]), TypeError, "ModuleList: item 0 is NoneType"),
    (lambda: nn.Residual(Scale(1), shortcut=3), TypeError, "Residual: shortcut is int"),
    (lambda: nn.Residual(Sum())(np.ones((2, 1))), ValueError,
     r"Residual: body gives \(2,\), shortcut \(2, 1\)"),
])
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_repr():
    assert repr(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Identity()))) == (
        "Sequential(\n  0: ReLU()\n  1: Sequential(\n    0: Identity()\n  )\n)")
