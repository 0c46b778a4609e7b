"""Modules made of modules: lists, chains, residual branches."""

import collections
import operator
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard, TypeVar

from gpuconv.autograd import Tensor
from gpuconv.backend import is_gpu
from gpuconv.checks import check_kind, type_name
from gpuconv.nn.layers import ACTIVATION_LAYERS, BatchNorm2d, Conv2d, Linear, MaxPool2d, ReLU
from gpuconv.nn.module import Module
from gpuconv.ops.conv import HALVES
from gpuconv.ops.elementwise import add

Kind = TypeVar("Kind", bound=Module)
Chain = collections.deque[Any]  # modules, and a _Sum at the end of a residual branch


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

        Neighbours run as one op where that is faster: a BatchNorm2d and the ReLU behind it; a ReLU
        and the MaxPool2d behind it in the other order, which gives the same bits; and on a GPU what
        follows a convolution or a Linear layer. Not where somebody looks on (see observed.py), nor
        where one of them is a class of its own.
        """
        return _run(collections.deque(self), x)


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
        """The sum of both branches; their shapes must agree: nothing is broadcast."""
        if _on_gpu(x) and _plain(self.body, Sequential):
            return _run(self.chain(x), x)
        y = self.body(x)
        return _Sum(x if self.shortcut is None else self.shortcut(x))(y)

    def chain(self, x: Tensor) -> Chain:
        """The body's modules, and the sum with the shortcut of x."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return collections.deque([*self.body, _Sum(shortcut)])


# -- neighbours as one op ------------------------------------------------------------------


class _Sum:
    """Ends a residual branch: y + shortcut."""

    def __init__(self, shortcut: Tensor):
        self.shortcut = shortcut

    def __call__(self, y: Tensor) -> Tensor:
        """The sum; nothing is broadcast."""
        if y.shape != self.shortcut.shape:
            raise ValueError(f"Residual: body gives {y.shape}, shortcut {self.shortcut.shape}")
        return add(y, self.shortcut)


def _run(modules: Chain, x: Tensor) -> Tensor:
    while modules:
        x = _step(modules.popleft(), modules, x)
    return x


def _step(module: Any, behind: Chain, x: Tensor) -> Tensor:
    """The value of a module, or of the op that it and some behind it make: they are taken off."""
    if _on_gpu(x):
        if _plain(module, Residual) and _plain(module.body, Sequential):
            behind.extendleft(reversed(module.chain(x)))
            return x
        if _plain(module, Conv2d):
            return _convolution(module, behind, x)
        if _plain(module, Linear):
            return module.forward(x, activation=_activation(behind))
        if _plain(module, BatchNorm2d):
            return module.forward(x, residual=_residual(behind), activation=_activation(behind))
    after = behind[0] if behind else None
    if _plain(module, BatchNorm2d) and _plain(after, ReLU):
        return module.forward(x, activation=_activation(behind))
    if _plain(module, ReLU) and _plain(after, MaxPool2d) and not after.may_be_empty:
        behind.popleft()
        return module(after(x))
    return module(x)


def _convolution(conv: Conv2d, behind: Chain, x: Tensor) -> Tensor:
    """A convolution, with the 2x2 pool, BatchNorm2d, sum and activation behind it."""
    first, second = (*behind, None, None)[:2]
    if conv.padding_mode == "zeros" and conv.groups == 1:
        pool = _halves(first)
        norm = second if pool else first
        if conv.bias is None and _plain(norm, BatchNorm2d):
            _take(behind, 1 + pool)
            return conv.normed(x, norm, pool, residual=_residual(behind),
                               activation=_activation(behind))
        if pool:
            _take(behind, 1)
            relu = _plain(second, ReLU) and _activation(behind)
            return conv.pooled(x, activation=relu or None)
        if _plain(first, ReLU) and _halves(second):
            _take(behind, 2)
            return conv.pooled(x, activation="relu")
    if _plain(first, ReLU) and _plain(second, MaxPool2d):
        return conv.forward(x)  # they change places
    return conv.forward(x, residual=_residual(behind), activation=_activation(behind))


def _take(behind: Chain, count: int) -> None:
    for _ in range(count):
        behind.popleft()


def _residual(behind: Chain) -> Tensor | None:
    """What is added next, taken off; None if something else is next."""
    return behind.popleft().shortcut if behind and type(behind[0]) is _Sum else None


def _activation(behind: Chain) -> str | None:
    """Remove the next layer if it is an activation, and return its name; else return None."""
    name = ACTIVATION_LAYERS.get(type(behind[0])) if behind else None
    if name is None or "forward" in vars(behind[0]):
        return None
    behind.popleft()
    return name


def _halves(module: Any) -> bool:
    return _plain(module, MaxPool2d) and module.window == HALVES


def _plain(module: Any, kind: type[Kind]) -> TypeGuard[Kind]:
    """Exactly of this class, and unobserved?"""
    return type(module) is kind and "forward" not in vars(module)


def _on_gpu(x: Any) -> bool:
    return is_gpu(getattr(x, "data", None))
