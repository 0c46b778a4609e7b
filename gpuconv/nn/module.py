"""Module: parameters, buffers and submodules found by their attribute names.

Registration is assignment. A Parameter or a Module among the attributes is part of the module,
under the attribute's name; a buffer is an array that ``register_buffer`` has named. Nested names
are joined by dots, as in PyTorch: ``body.0.weight``. An object that is reachable by two names
(tied weights) counts once, under the first.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from gpuconv import random
from gpuconv.autograd import Parameter, Tensor, no_grad
from gpuconv.backend import (
    FLOATS,
    Array,
    accumulator,
    array_device,
    asarray,
    check_arrays,
    device_name,
    float_dtype,
    get_array_module,
    gpu_number,
    is_gpu,
)
from gpuconv.checks import check_count, no_array, type_name
from gpuconv.state import matching


class Module:
    """Base class of layers and networks; subclasses set attributes and define ``forward``.

    ``training`` selects the training or the eval mode; ``train`` and ``eval`` set it for all
    submodules.

    >>> class Scale(Module):
    ...     def __init__(self):
    ...         self.weight = Parameter(np.full(1, 3.0))
    ...     def forward(self, x):
    ...         return x * self.weight
    >>> Scale()(np.array([2.0])).numpy(), [name for name, _ in Scale().named_parameters()]
    (array([6.]), ['weight'])
    """

    training = True
    _buffer_names: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        old = vars(self).get(name)
        for kind in (Parameter, Module):
            if isinstance(old, kind) and not isinstance(value, kind):
                raise TypeError(f"{type(self).__name__}.{name} is a {kind.__name__}, not to be "
                                f"replaced by {type(value).__name__}")
        if name in self._buffer_names and not _is_array(value):
            raise TypeError(f"{type(self).__name__}.{name} is a buffer, wanted an array, "
                            f"got {type(value).__name__}")
        super().__setattr__(name, value)

    def __call__(self, *inputs: Any) -> Tensor:
        """Run forward; plain arrays among the inputs become Tensors, and the result is a Tensor."""
        return self.forward(*(Tensor(x) if _is_array(x) else x for x in inputs))

    def forward(self, *inputs: Any) -> Any:
        """Compute the output of the module."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def register_buffer(self, name: str, array: Array) -> None:
        """Register an array that is state, no parameter; it is saved and moved with the module."""
        if not isinstance(name, str):
            raise TypeError(f"register_buffer: name is {type_name(name)}, wanted a str")
        check_arrays("register_buffer", **{name: array})
        if array is None:
            raise TypeError(f"register_buffer: {name} is {no_array(array, name)}")
        if name not in self._buffer_names:
            if hasattr(self, name):
                raise ValueError(f"register_buffer: {type(self).__name__} has a {name} already")
            self._buffer_names = (*self._buffer_names, name)
        setattr(self, name, array)

    # -- the tree -------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield (name, module) of each child, in order of assignment."""
        return ((name, m) for name, m in vars(self).items() if isinstance(m, Module))

    def named_modules(self) -> Iterator[tuple[str, "Module"]]:
        """Yield (path, module) of this module (its path is "") and all below it, parents first."""
        seen: set[int] = set()

        def below(path: str, module: Module) -> Iterator[tuple[str, Module]]:
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module
                for name, child in module.named_children():
                    yield from below(_join(path, name), child)

        return below("", self)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (path, parameter); a tied parameter once, under its first name."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, p in vars(module).items():
                if isinstance(p, Parameter) and id(p) not in seen:
                    seen.add(id(p))
                    yield _join(path, name), p

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Yield (path, array) of all buffers."""
        for path, module in self.named_modules():
            for name in module._buffer_names:
                yield _join(path, name), getattr(module, name)

    def modules(self) -> Iterator["Module"]:
        """Yield this module and all below it."""
        return (module for _, module in self.named_modules())

    def parameters(self) -> Iterator[Parameter]:
        """Yield all parameters, which an optimiser updates."""
        return (p for _, p in self.named_parameters())

    def buffers(self) -> Iterator[Array]:
        """Yield all buffers: state that an optimiser does not update."""
        return (array for _, array in self.named_buffers())

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Return {path: array} of all parameters and buffers: the live arrays, not copies."""
        return {path: p.data for path, p in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, state: Mapping[str, Any],
                        strict: bool = True) -> tuple[list[str], list[str]]:
        """Copy arrays into the parameters and buffers of the same names.

        Args:
            state: {path: array}, as of ``state_dict``; also arrays of other libraries.
            strict: whether the names must be exactly this module's.

        Returns:
            (missing, unexpected) names, both empty when strict.

        Raises:
            TypeError: state is no dict of arrays.
            ValueError: names, shapes or dtypes do not fit; lists them, and changes nothing.
        """
        mine = self.state_dict()
        found, missing, unexpected = matching(f"load_state_dict: {type(self).__name__}", mine,
                                              state, strict)
        for name, array in found.items():
            with array_device(mine[name]):
                mine[name][...] = asarray(array, device_name(mine[name]))
        return missing, unexpected

    def train(self, mode: bool = True) -> Self:
        """Set training mode (batch statistics, dropout), or eval mode if ``mode`` is False."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Set eval mode (running statistics, no dropout)."""
        return self.train(False)

    def requires_grad_(self, flag: bool = True) -> Self:
        """Enable gradients of all parameters, or freeze them: an optimiser skips frozen ones."""
        for p in self.parameters():
            p.requires_grad = bool(flag)
        return self

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        for p in self.parameters():
            p.zero_grad()

    def reseed(self, seed: int | None, step: int = 0, counter: Array | None = None) -> None:
        """Set the random keys of all layers (dropout) from seed, the layer's path, and step.

        Args:
            seed: 0 .. 2**32 - 1. None: new numbers at each call, as before the first ``reseed``.
            step: number of the training step; each step draws different numbers.
            counter: (1,) int64 on the GPU that kernels add to ``step``: a captured step draws the
                numbers of step + counter[0] at each launch. Keep it until backward has ended.
        """
        more = () if counter is None else (counter,)
        for path, module in self.named_modules():
            key = None if seed is None else (random.check_seed(seed, "reseed"),
                                             random.stream(path))
            module.reseed_layer(key, step, *more)

    def reseed_layer(self, key: tuple[int, int] | None, step: int,
                     counter: Array | None = None) -> None:
        """Set the key and step, or a counter of steps, of a layer that draws random numbers."""

    # -- device and dtype -----------------------------------------------------------------

    @property
    def device(self) -> str:
        """Device of the first parameter (or buffer), "cpu" or "cuda:0"; without any, "cpu"."""
        return next((device_name(a) for a in self.state_dict().values()), "cpu")

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the first parameter; float32 without any."""
        return next((p.dtype for p in self.parameters()), np.dtype("float32"))

    def to(self, *targets: Any) -> Self:
        """Move and convert all parameters, gradients and buffers.

        Args:
            targets: a device ("cpu", "cuda", "cuda:1"), a float dtype or its name, or both.
                Float buffers are statistics: they get accumulator(dtype), float32 for 16-bit
                floats. Integer buffers keep their dtype.

        Raises:
            RuntimeError: an optimiser has packed a parameter that would change; move before that.
            ValueError, TypeError: unknown device or dtype.

        >>> Module().to("cpu", "float16").device
        'cpu'
        """
        device, dtype = "auto", None
        for target in targets:
            if isinstance(target, str) and target not in FLOATS:
                gpu_number(target)  # raises where it is no device
                device = target
            else:
                dtype = float_dtype(target)

        def moved(a: Array, dtype: np.dtype | None) -> Array:
            return _dense_as(asarray(a, device), a.dtype if dtype is None else dtype)

        parameters = [(path, p, moved(p.data, dtype)) for path, p in self.named_parameters()]
        for path, p, data in parameters:
            if p.holder is not None and data is not p.data:
                raise RuntimeError(f"to: an optimiser holds {path} {p.shape}, {p.dtype} on "
                                   f"{device_name(p.data)}: move the module before making it, "
                                   f"or release() it")
        for _, p, data in parameters:
            if data is not p.data:
                p.rebind(data, None if p.grad is None else moved(p.grad, dtype))
        for module in self.modules():
            for name in module._buffer_names:
                old = getattr(module, name)
                sums = accumulator(dtype) if dtype and old.dtype.name in FLOATS else None
                setattr(module, name, moved(old, sums))
        return self

    def predict(self, array: Array, batch_size: int = 256) -> Array:
        """Return the output for an array, in batches, in eval mode, without gradients.

        Args:
            array: (N, ...), on the module's device and in its dtype.
            batch_size: rows of a batch.

        Returns:
            (N, ...), an array. Each module is in its former mode afterwards.

        >>> from gpuconv.nn import Identity
        >>> Identity().predict(np.ones(3), batch_size=2)
        array([1., 1., 1.])
        """
        check_count("predict", "batch_size", batch_size)
        if not _is_array(array) or not array.shape:
            raise TypeError(f"predict: array is {no_array(array, 'array')} (N, ...)")
        xp, y = get_array_module(array), None
        before = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            with no_grad(), array_device(array):
                for start in range(0, max(1, len(array)), batch_size):
                    part = self(array[start : start + batch_size]).data
                    if y is None:
                        y = xp.empty((len(array), *part.shape[1:]), part.dtype)
                    y[start : start + len(part)] = part
        finally:
            for module, training in before:
                module.training = training
        return y

    # -- copies and text ------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy with arrays of its own, which no optimiser holds."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        for name, value in vars(self).items():
            vars(twin)[name] = copy.deepcopy(value, memo)
        return twin

    def arguments(self) -> str:
        """Return the text between the parentheses of a layer's repr."""
        return ""

    def __repr__(self) -> str:
        rows = [f"{name}: {child!r}" for name, child in self.named_children()]
        if not rows:
            return f"{type(self).__name__}({self.arguments()})"
        inside = "\n".join(rows).replace("\n", "\n  ")
        return f"{type(self).__name__}({self.arguments()}\n  {inside}\n)"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_array(x: Any) -> bool:
    """Return whether this is an array, also one that Tensor refuses."""
    return isinstance(x, np.ndarray) or is_gpu(x)


def _dense_as(array: Array, dtype: np.dtype) -> Array:
    """Return the array itself if it is C-contiguous and of that dtype, else a copy."""
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    with array_device(array):
        return array.astype(dtype, order="C")
