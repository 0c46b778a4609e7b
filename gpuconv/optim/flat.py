"""Flat buffers: all parameters of an optimiser's group in one array, all gradients in another.

    data  [ w0 ......  b0 .  w1 ............ ]    each parameter starts at a multiple of 256 bytes,
    grad  [ g0 ......  g0 .  g1 ............ ]    at the same offset in both; gaps hold zeros

``Parameter.data`` and ``.grad`` become views. An update is then one pass, the norm of all
gradients one reduction, and the addresses never change. There is one Flat per group, dtype and
device.

16-bit parameters may have a ``master``: float32 copies that the updates act on. A parameter is its
master, rounded; if it differs, a user has written the parameter, and the parameter is used.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gpuconv import kernels, memory, threads
from gpuconv.autograd import Parameter
from gpuconv.backend import (
    Array,
    accumulator,
    array_device,
    cupy,
    device_name,
    get_array_module,
    is_array,
    is_gpu,
)
from gpuconv.checks import is_numeric, no_array, short, type_name
from gpuconv.undo import uninterrupted

ALIGN = 256      # bytes: alignment of cudaMalloc, enough for any vector load
BLOCKS = 1024    # GPU: most blocks of a reduction, enough to fill any device
CHUNK = 1 << 19  # CPU: elements per thread; handing over fewer takes as long as updating them


class Flat:
    """Parameters of one group, dtype and device in one buffer, with their optimiser state.

    A new Flat holds copies; ``take_over`` makes the parameters views of it.

    Args:
        members: (position, parameter): position counts over all groups of the optimiser.

    Attributes:
        data, grad: (n,), dtype of the parameters.
        state: {name: (n,) array} of the optimiser: momentum, say.
        control, counters: the optimiser's, on this device; see Optimizer.
        work: {name: array} of the optimiser that state_dict does not hold.
        cuts: offsets at which neighbouring parameters may have different step counts.
    """

    def __init__(self, members: list[tuple[int, Parameter]]):
        self.members = members
        first = members[0][1].data
        step = ALIGN // first.dtype.itemsize
        self.starts: list[int] = []
        n = 0
        for _, p in members:
            self.starts.append(n)
            n += -(-p.size // step) * step
        with array_device(first):
            self.data, self.grad = (zeros(n, first.dtype, first) for _ in range(2))
            self.state: dict[str, Array] = {}
            self.control: Array = None
            self.counters: dict[str, Array] = {}
            self.work: dict[str, Array] = {}
            self.cuts: set[int] = set()
            self.datas, self.grads = self.views(self.data), self.views(self.grad)
            self.taken: list[Parameter] = []  # parameters that another Flat has taken over
            for (_, p), data, grad in zip(members, self.datas, self.grads, strict=True):
                data[...] = p.data
                if p.grad is not None:
                    grad[...] = p.grad

    def take_over(self) -> None:
        """Make ``data`` and ``grad`` of each parameter views; note it in the Flat that held it."""
        for (_, p), data, grad in zip(self.members, self.datas, self.grads, strict=True):
            if p.holder is not None:
                p.holder.taken.append(p)
            p.rebind(data, grad, holder=self)

    def views(self, flat: Array) -> list[Array]:
        """Return the views of a flat array that belong to each parameter, in its shape."""
        return [flat[start : start + p.size].reshape(p.shape)
                for start, (_, p) in zip(self.starts, self.members, strict=True)]

    def new_state(self, name: str, dtype: np.dtype) -> Array:
        """Return (n,) zeros on the parameters' device, stored as ``state[name]``.

        Raises:
            RuntimeError: the current stream is capturing: each replay would clear it.
        """
        refuse_capture(self.data, f"{name} is made by the first step")
        with array_device(self.data):
            self.state[name] = zeros(self.data.size, dtype, self.data)
        return self.state[name]

    def get_or_create_state(self, name: str) -> Array:
        """Return ``state[name]``, in the accumulator dtype; zeros if it is new."""
        found = self.state.get(name)
        return self.new_state(name, accumulator(self.data.dtype)) if found is None else found

    @property
    def narrow(self) -> bool:
        """Whether the parameters have 16 bits."""
        return self.data.dtype.itemsize == 2

    def active(self) -> Iterator[slice]:
        """Yield the parts of the flat arrays to update: all but the frozen parameters.

        Neighbours are joined, so there is a single part if nothing is frozen.

        Raises:
            RuntimeError: a parameter's ``grad`` is no longer the view that it was given.
        """
        ends = [*self.starts[1:], self.data.size]
        begin = end = 0
        for start, stop, (position, p), grad in zip(self.starts, ends, self.members, self.grads,
                                                    strict=True):
            if p.grad is not grad:
                raise RuntimeError(f"step: grad of parameter {position} {p.shape} was replaced; "
                                   "clear gradients with zero_grad(), which keeps them in place")
            if p.requires_grad:
                if start != end:
                    if end > begin:
                        yield slice(begin, end)
                    begin = start
                end = stop
        if end > begin:
            yield slice(begin, end)

    def release(self) -> None:
        """Give each parameter that is still a view arrays of its own."""
        for _, p in self.members:
            if p.holder is self:
                with array_device(p.data):
                    p.rebind(p.data.copy(), None if p.grad is None else p.grad.copy())


def pack(groups: Iterable[Iterable[Parameter]],
         prepare: Callable[[list[list[Flat]]], None] | None = None) -> list[list[Flat]]:
    """Move parameters and gradients into flat buffers; move none after an error.

    Args:
        groups: parameters, each in one group, once; also frozen ones, which ``Flat.active`` skips
            while they are frozen. Parameters of another optimiser are taken over.
        prepare: called with the Flats, which hold copies, before any parameter moves.

    Returns:
        For each group its Flats, one per dtype and device.

    Raises:
        TypeError: something is no Parameter, or a gradient no array of real numbers.
        ValueError: a parameter comes twice, or a gradient has another shape or device.
    """
    members: list[dict[Any, list[tuple[int, Parameter]]]] = []
    positions: dict[int, int] = {}  # identity: position
    for group in groups:
        members.append({})
        for p in group:
            position = len(positions)
            if not isinstance(p, Parameter):
                raise TypeError(f"parameter {position} is {type_name(p)}, wanted a Parameter")
            if id(p) in positions:
                raise ValueError(f"parameter {position} {p.shape} is parameter "
                                 f"{positions[id(p)]} again")
            positions[id(p)] = position
            _check_grad(position, p)
            place = p.dtype, p.data.device.id if is_gpu(p.data) else None
            members[-1].setdefault(place, []).append((position, p))
    flats = [[Flat(part) for part in group.values()] for group in members]
    if prepare is not None:
        prepare(flats)
    with uninterrupted():
        for flat in (flat for group in flats for flat in group):
            flat.take_over()
    return flats


def _check_grad(position: int, p: Parameter) -> None:
    """Check that a gradient can be copied into a flat buffer."""
    grad, name = p.grad, f"grad of parameter {position}"
    if grad is None:
        return
    if not is_array(grad):
        raise TypeError(f"{name} is {no_array(grad, 'grad')}")
    if not is_numeric(grad.dtype) or grad.dtype.kind == "c":
        raise TypeError(f"{name} is {short(grad)}, wanted real numbers")
    if grad.shape != p.shape:
        raise ValueError(f"{name} is {short(grad)}, wanted shape {p.shape}")
    if device_name(grad) != device_name(p.data):
        raise ValueError(f"{name} is on {device_name(grad)}, wanted {device_name(p.data)}")


def cpu_chunks(n: int) -> list[slice]:
    """Return slices of 0..n for the CPU's threads; a function of n alone.

    >>> cpu_chunks(500_000), len(cpu_chunks(5_000_000))
    ([slice(0, 500000, None)], 10)
    """
    return threads.chunks(n, 1, CHUNK)


def reduction_blocks(g: Array) -> int:
    """Return the number of thread blocks of a reduction over g on a GPU."""
    return max(1, min(BLOCKS, g.size * g.dtype.itemsize // (16 * 8 * kernels.BLOCK)))


def behind(p: np.ndarray, master: np.ndarray | None) -> np.ndarray:
    """Return the values behind parameters p (n,) in accumulator(dtype); p itself if it has it.

    That is the master (n,), but p where it is not the rounded master: a user has written it.
    """
    wide = memory.widened(p, accumulator(p.dtype))
    if master is not None:
        with np.errstate(over="ignore"):
            rounded = memory.empty(p.shape, p.dtype)
            rounded[...] = master
        np.copyto(wide, master, where=rounded == p)
    return wide


def refuse_capture(array: Array, what: str) -> None:
    """Raise RuntimeError while the current stream of the array's GPU is capturing."""
    if is_gpu(array) and cupy().cuda.get_current_stream().is_capturing():
        raise RuntimeError(f"{what}: do that once before the capture")


def zeros(n: int, dtype: np.dtype, like: Array) -> Array:
    """Return (n,) zeros that start at a multiple of ALIGN bytes."""
    xp = get_array_module(like)
    if xp is not np:
        return xp.zeros(n, dtype)  # CuPy allocates in multiples of 512
    raw = np.zeros(n * dtype.itemsize + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + n * dtype.itemsize].view(dtype)
