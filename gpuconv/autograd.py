"""Reverse-mode differentiation: a Tensor is an array plus the Op that made it.

Applying an Op to Tensors leaves a node on the tape; ``backward`` walks the nodes from the newest
to the oldest. Four rules keep it small:

    creation order is a topological order    a heap of serial numbers, no recursion
    a node holds its parents' nodes          never their arrays: only what forward put on
                                             ``self`` stays alive, and reference counts free it
    inside the graph sums are out of place   two branches may have been handed one array
    a leaf owns its gradient                 first write copies, later ones add in place, so
                                             ``grad`` keeps its address, perhaps in a flat buffer
"""

import contextlib
import heapq
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv import memory
from gpuconv.accumulate import accumulate
from gpuconv.backend import (
    Array,
    array_device,
    check_arrays,
    device_name,
    get_array_module,
    is_array,
    is_gpu,
    to_cpu,
)
from gpuconv.checks import no_array

SHOWN = 200  # most elements that a repr shows

_serial = itertools.count()


class _Mode(threading.local):
    recording = True


_mode = _Mode()


class Tensor:
    """An array, and (while recording) the Op application that produced it.

    Args:
        data: array of numpy or cupy.
        requires_grad: should ``backward`` leave a gradient here?

    Other libraries share its memory through DLPack: ``torch.from_dlpack(y.detach())``.
    """

    __slots__ = ("__weakref__", "_data", "creator", "grad", "requires_grad")

    if TYPE_CHECKING:  # gpuconv.ops puts these here: the tape itself knows no op
        def __add__(self, other: Any) -> "Tensor": ...
        __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
        def __matmul__(self, other: Any) -> "Tensor": ...
        def __rmatmul__(self, other: Any) -> "Tensor": ...
        def __neg__(self) -> "Tensor": ...
        def __getitem__(self, index: Any) -> "Tensor": ...

    reshape: Callable[..., "Tensor"]
    transpose: Callable[..., "Tensor"]
    flatten: Callable[..., "Tensor"]
    sum: Callable[..., "Tensor"]
    mean: Callable[..., "Tensor"]
    max: Callable[..., "Tensor"]

    __array_ufunc__ = None  # numpy_array + tensor asks the tensor

    def __init__(self, data: Array, requires_grad: bool = False):
        self._data: Array = np.asarray(data) if isinstance(data, np.generic) else data
        if data is None:
            raise TypeError(f"{type(self).__name__}: data is {no_array(data)}")
        check_arrays(type(self).__name__, data=self._data)
        self.requires_grad = bool(requires_grad)
        self.grad: Array | None = None
        self.creator: Op | None = None

    @property
    def data(self) -> Array:
        """The array. Assigning copies into it: the address stays.

        What ``backward`` will read is not copied: change nothing in place between forward and it.
        """
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        _check_like("data", value, self)
        with array_device(self._data):
            self._data[...] = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._data.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size

    @property
    def dtype(self) -> np.dtype:
        """dtype of the array."""
        return self._data.dtype

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refuse: NumPy would make an array of objects."""
        raise TypeError("a Tensor is no array: take its .data, or .numpy() for one on the CPU")

    def __dlpack__(self, **options: Any) -> Any:
        """Share the memory with another library: ``torch.from_dlpack(y.detach())``.

        Raises:
            BufferError: requires_grad is set, or the array is of a kind that DLPack cannot share.
        """
        if self.requires_grad:
            raise BufferError("a Tensor with requires_grad is not handed over, since its gradient "
                              "would be lost: pass its .detach()")
        if min(self._data.strides, default=0) < 0:  # PyTorch 2.13 ends the process
            raise BufferError(f"an array with negative strides {self._data.strides} is not handed "
                              f"over: pass a copy of its .data")
        if self.dtype.name == "bfloat16" and not is_gpu(self._data):
            raise BufferError("NumPy cannot hand bfloat16 over: pass .data.view('uint16'), and "
                              "view that as bfloat16 on the other side")
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return (1, 0) on the CPU, (2, number) on a GPU."""
        return self._data.__dlpack_device__()

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self._data)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        values = (repr(self._data) if self.size <= SHOWN else
                  f"{self.dtype} {self.shape} on {device_name(self._data)}")
        return f"{type(self).__name__}({values}{grad})"

    def detach(self) -> "Tensor":
        """Return a Tensor of the same array, without its history."""
        return Tensor(self._data)

    def item(self) -> float:
        """Return the only element, as a Python number.

        Raises:
            ValueError: there is more than one, or a GPU kernel reported a bad label.
        """
        if self.size != 1:
            raise ValueError(f"item: shape {self.shape} is not one element")
        return self.numpy().item()

    def numpy(self) -> np.ndarray:
        """Return the array on the CPU: itself, or a copy of an array on the GPU."""
        return to_cpu(self._data)

    def zero_grad(self) -> None:
        """Set the gradient to zero, in place."""
        if self.grad is not None:
            with array_device(self.grad):
                self.grad.fill(0)

    def backward(self, gy: Array | None = None) -> None:
        """Add d(self)/d(leaf), weighted by gy, to ``grad`` of every leaf that requires it.

        Args:
            gy: array, shape and dtype of self. Default: 1, if self has a single element.

        Raises:
            RuntimeError: nothing to differentiate, or an earlier backward freed part of the tape.
            ValueError: gy is missing, or differs from self in shape or dtype.
        """
        xp = get_array_module(self._data)
        if not self.requires_grad:
            raise RuntimeError("backward: no input required a gradient, or no_grad was on")
        with array_device(self._data):
            if gy is None:
                if self.size != 1:
                    raise ValueError(f"backward: shape {self.shape} is not one element: pass gy")
                gy = xp.ones_like(self._data)
            _check_like("backward: gy", gy, self)
            with _storing((self._data,)):
                _walk(self, gy)


class Parameter(Tensor):
    """A leaf that training updates in place.

    An optimiser makes ``data`` and ``grad`` views into flat buffers. A copy has arrays of its own.
    """

    __slots__ = ("_holder",)

    def __init__(self, data: Array, requires_grad: bool = True):
        super().__init__(data, requires_grad)
        self._holder: weakref.ref | None = None

    @property
    def holder(self) -> Any:
        """The object whose buffers hold ``data`` and ``grad``, an optimiser's ``Flat``; or None."""
        return None if self._holder is None else self._holder()

    def rebind(self, data: Array, grad: Array | None = None, holder: Any = None) -> None:
        """Use these arrays from now on; ``holder`` is the object that packs them, if any."""
        self._data, self.grad = data, grad
        self._holder = None if holder is None else weakref.ref(holder)

    def __reduce__(self) -> tuple:
        return type(self), (self._data, self.requires_grad), (None, {"grad": self.grad})


class Op:
    """One application of a differentiable operation, and the tape node for it.

    A subclass defines ``forward_cpu``, ``backward_cpu``, ``forward_gpu`` and ``backward_gpu`` on
    plain arrays. The fields that forward sets on ``self`` are exactly what backward keeps alive;
    ``self.needs[i]`` says, before forward runs, whether input i will want a gradient.
    The GPU methods see C-contiguous arrays only.
    """

    freed = False
    needs: tuple[bool, ...]
    parents: tuple[Any, ...]
    serial: int

    @property
    def depends_on(self) -> str | tuple[str, ...]:
        """Pixels of an input that an output pixel depends on; a tuple has a word for each input.

        "pixel": the same pixel; "window": those under ``self.window``; "all": all of the image.
        """
        return "pixel"

    @property
    def multiply_adds(self) -> int:
        """Number of products that the forward pass adds up."""
        return 0

    def __call__(self, *inputs: Any) -> Any:
        """Apply to arrays (gives an array), or with any Tensor among them (gives a Tensor)."""
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        self.needs = needs(inputs)
        try:
            xp = get_array_module(*arrays)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        if xp is np:
            with _storing(arrays):
                y: Any = np.asarray(self.forward_cpu(*arrays))  # a reduction may leave the arrays
        else:
            with next(a for a in arrays if is_gpu(a)).device:
                y = self.forward_gpu(*map(_dense, arrays))
        if not any(isinstance(x, Tensor) for x in inputs):
            return y
        return self.record(y, inputs, any(self.needs))

    def record(self, y: Array, inputs: tuple, wanted: bool) -> Tensor:
        """Return the value as a Tensor, with this node on the tape if a gradient is needed."""
        tensor = Tensor(y, requires_grad=wanted)
        if wanted:
            self.parents = tuple((x.creator or x) if need else None
                                 for x, need in zip(inputs, self.needs, strict=True))
            self.serial = next(_serial)
            tensor.creator = self
        return tensor

    def forward_cpu(self, *inputs: Any) -> Any:
        """Compute the value from NumPy arrays."""
        raise TypeError(f"{type(self).__name__} does not run on the CPU")

    def backward_cpu(self, gy: Any) -> Any:
        """Compute ``backward`` for a NumPy array."""
        raise TypeError(f"{type(self).__name__} does not run backwards on the CPU")

    def forward_gpu(self, *inputs: Any) -> Any:
        """Compute the value from C-contiguous CuPy arrays."""
        raise TypeError(f"{type(self).__name__} does not run on the GPU")

    def backward_gpu(self, gy: Any) -> Any:
        """Compute ``backward`` for a C-contiguous CuPy array."""
        raise TypeError(f"{type(self).__name__} does not run backwards on the GPU")

    def backward(self, gy: Array) -> tuple[Array | None, ...]:
        """Return the gradient of each input; None where ``self.needs`` is False."""
        if not is_gpu(gy):
            return self.backward_cpu(gy)
        with gy.device:
            return self.backward_gpu(_dense(gy))

    def free(self) -> None:
        """Forget what forward saved: this application is spent."""
        vars(self).clear()
        self.freed = True


def needs(inputs: tuple) -> tuple[bool, ...]:
    """Return, for each input, whether this thread records and the input needs a gradient."""
    return tuple(_mode.recording and isinstance(x, Tensor) and x.requires_grad for x in inputs)


def recording() -> bool:
    """Return whether this thread records, i.e. is not inside ``no_grad``."""
    return _mode.recording


@contextlib.contextmanager
def _recording(flag: bool) -> Iterator[None]:
    before, _mode.recording = _mode.recording, flag
    try:
        yield
    finally:
        _mode.recording = before


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Record nothing, in this thread: ``with no_grad():``, or ``@no_grad()`` above a function."""
    return _recording(False)


def grad() -> contextlib.AbstractContextManager[None]:
    """Record, in this thread, even inside ``no_grad``."""
    return _recording(True)


def _walk(y: Tensor, gy: Array) -> None:
    """Run the tape backwards from y. Leaves are written last: an error leaves them as they were."""
    pending: dict[Any, Array] = {}  # node: its gradient so far
    queue: list[tuple[int, Op]] = []  # Ops still to run, newest first

    def meet(node: Any, g: Array) -> None:
        if node in pending:
            pending[node] = _sum(pending[node], g)
            return
        pending[node] = g
        if isinstance(node, Op):
            if node.freed:
                raise RuntimeError("backward: an earlier backward ran through part of this tape "
                                   "and freed it. Add the losses first, or run forward again")
            heapq.heappush(queue, (-node.serial, node))

    meet(y.creator or y, gy)
    while queue:
        _, op = heapq.heappop(queue)
        for parent, g in zip(op.parents, op.backward(pending.pop(op)), strict=True):
            if parent is not None:
                meet(parent, g)
        op.free()
    _add_grads(pending)


def _sum(a: Array, b: Array) -> Array:
    """Return a + b in a new array; both inputs may be shared."""
    return a + b if is_gpu(a) else np.add(a, b, out=memory.empty(a.shape, a.dtype))


def _add_grads(gradients: dict[Tensor, Array]) -> None:
    """Add gradients to the ``grad`` of each leaf."""
    for leaf, g in gradients.items():
        _check_like("gradient of a leaf", g, leaf)
    accumulate((leaf.grad, g) for leaf, g in gradients.items() if leaf.grad is not None)
    for leaf, g in gradients.items():
        if leaf.grad is None:
            leaf.grad = get_array_module(leaf.data).array(g, order="C")  # a copy: g may be shared


def _check_like(what: str, g: Any, tensor: Tensor) -> None:
    get_array_module(tensor.data, g if is_array(g) else None)
    if not is_array(g) and not isinstance(g, np.generic):
        raise TypeError(f"{what} is {no_array(g, what.split()[-1])}")
    if (g.dtype, g.shape) != (tensor.dtype, tensor.shape):
        raise ValueError(f"{what} is {g.dtype} {g.shape}, wanted {tensor.dtype} {tensor.shape}")


def _storing(arrays: Iterable[Any]) -> contextlib.AbstractContextManager:
    """Return a context in which values too large for 16 bits become inf without a warning."""
    narrow = any(isinstance(a, np.ndarray) and a.dtype.itemsize == 2 for a in arrays)
    return np.errstate(over="ignore") if narrow else contextlib.nullcontext()


def _dense(a: Any) -> Any:
    """Return the array itself if C-contiguous, else a contiguous copy: kernels index raw memory."""
    return a.copy(order="C") if is_gpu(a) and not a.flags.c_contiguous else a
