"""Modules made of modules: lists, chains, residual branches."""

import collections
import operator
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard, TypeVar

from gpuconv.autograd import Tensor
from gpuconv.nn.layers import BatchNorm2d, ReLU
from gpuconv.nn.module import Module
from gpuconv.nn.pooling import MaxPool2d
from gpuconv.ops.arithmetic import add

Kind = TypeVar("Kind", bound=Module)


class ModuleList(Module):
    """A list of modules, named "0", "1", ...; what to do with them is up to the owner.

    >>> len(ModuleList([Module(), Module()])[1:])
    1
    """

    def __init__(self, modules: Iterable[Module] = ()):
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> "ModuleList":
        """Put a module at the end."""
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: item {len(self)} is "
                            f"{type(module).__name__}, wanted a Module")
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        """How many modules."""
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __getitem__(self, where: int | slice) -> Any:
        """One module; or, for a slice, a list (or chain) of the same modules."""
        modules = list(self)
        if not isinstance(where, slice):
            return modules[operator.index(where)]
        part = type(self).__new__(type(self))
        ModuleList.__init__(part, modules[where])
        return part


class Sequential(ModuleList):
    """A chain: y = f_n(...f_2(f_1(x))).

    >>> import numpy as np
    >>> Sequential()(np.ones(2)).numpy()
    array([1., 1.])
    """

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Tensor) -> Tensor:
        """The last module's value.

        A BatchNorm2d and the ReLU behind it run as one op, and a ReLU and the MaxPool2d behind it
        in the other order, which is faster and gives the same bits; not where somebody looks on
        (see observe.py), nor where either is a class of its own.
        """
        modules = collections.deque(self)
        while modules:
            module, behind = modules.popleft(), modules[0] if modules else None
            if _plain(module, BatchNorm2d) and _plain(behind, ReLU):
                modules.popleft()
                x = module.forward(x, relu=True)
            elif _plain(module, ReLU) and _plain(behind, MaxPool2d) and not behind.may_be_empty:
                modules.popleft()
                x = module(behind(x))
            else:
                x = module(x)
        return x


class Residual(Module):
    """y = body(x) + shortcut(x).

    Args:
        body: modules in a chain.
        shortcut: a module, where x must change its shape to be added. Default: x as it is.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016,
    section 3.2.
    """

    def __init__(self, *body: Module, shortcut: Module | None = None):
        self.body = Sequential(*body)
        if shortcut is not None and not isinstance(shortcut, Module):
            raise TypeError(f"Residual: shortcut is {type(shortcut).__name__}, wanted a Module")
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches; their shapes must agree: nothing is broadcast."""
        y, x = self.body(x), x if self.shortcut is None else self.shortcut(x)
        if y.shape != x.shape:
            raise ValueError(f"Residual: body gives {y.shape}, shortcut {x.shape}")
        return add(y, x)


def _plain(module: Module | None, kind: type[Kind]) -> TypeGuard[Kind]:
    """Exactly of this class, and unobserved?"""
    return type(module) is kind and "forward" not in vars(module)
