"""Modules made of modules: lists, chains, residual branches."""

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from gpuconv.autograd import Tensor
from gpuconv.checks import check_kind, type_name
from gpuconv.nn import fusion
from gpuconv.nn.module import Module
from gpuconv.nn.observed import hand_set


class ModuleList(Module):
    """A list of modules, named "0", "1", ...; what to do with them is up to the owner.

    >>> len(ModuleList([Module(), Module()])[1:])
    1
    """

    def __init__(self, modules: Iterable[Module] = ()):
        if isinstance(modules, Module) or not isinstance(modules, Iterable):
            raise TypeError(f"{type(self).__name__}: modules is {type_name(modules)}, wanted "
                            "Modules in a list")
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> "ModuleList":
        """Put a module at the end."""
        check_kind(type(self).__name__, f"item {len(self)}", module, Module)
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        """Return the number of modules."""
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
        """Return the last module's value. Neighbours may run as one op, see fusion.py."""
        return fusion.run(list(_unfolded(self, x)), x)


class Residual(Module):
    """y = body(x) + shortcut(x).

    Args:
        body: modules in a chain.
        shortcut: a module, where x must change its shape to be added. Default: x as it is.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016,
    section 3.2.
    """

    def __init__(self, *body: Module, shortcut: Module | None = None):
        for number, module in enumerate(body):
            check_kind("Residual", f"item {number}", module, Module)
        self.body = Sequential(*body)
        if shortcut is not None:
            check_kind("Residual", "shortcut", shortcut, Module)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches; their shapes must agree: nothing is broadcast."""
        if self.unfolds(x):
            return fusion.run(list(self.branch(x)), x)
        y, end = self.body(x), fusion.Sum(self)
        end.begin(x)
        end.compute_shortcut()
        return end(y)

    def unfolds(self, x: Any) -> bool:
        """Return True if the body and the sum are planned as parts of one chain."""
        return fusion.spans_sums(x) and type(self.body) is Sequential and not hand_set(self.body)

    def branch(self, x: Any) -> Iterator[Any]:
        """Yield the steps of that chain: the beginning, the body's modules, the sum."""
        end = fusion.Sum(self)
        yield end.begin
        yield from _unfolded(self.body, x)
        yield end


def _unfolded(modules: Iterable[Module], x: Any) -> Iterator[Any]:
    """Yield the modules of a chain; of a Residual, those of its body, if plans span its sum."""
    for module in modules:
        if type(module) is Residual and not hand_set(module) and module.unfolds(x):
            yield from module.branch(x)
        else:
            yield module
