"""The stand-in's array: it holds a NumPy array instead of being one.

So whatever CuPy refuses is refused: np.asarray(a), arithmetic with NumPy arrays, arrays of another
device. Every result stays "on the GPU", a sum or an element too, as an array without axes. New
arrays are C-contiguous where CuPy's are, whatever NumPy makes of the operands' order.
"""

import math
import operator
import types
import warnings

import numpy as np

from . import fake_cuda, work
from .rules import added, averaged, no_bfloat16, no_out, supported

ELSEWHERE = ("The device where the array resides ({}) is different from the current device ({}). "
             "Peer access is unavailable between these devices.")
WORDS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%",
         "pow": "**", "lshift": "<<", "rshift": ">>", "and": "&", "or": "|", "xor": "^"}


class ndarray:
    """An array 'on the GPU'; ``get()`` copies it to a NumPy array."""

    __array_ufunc__ = None  # numpy_array + a asks a, which refuses
    __hash__ = None

    def __init__(self, host, memory=None):
        self.host = host
        if memory is None:  # the result of an immediate task
            owner = host
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            lane = fake_cuda._lane()
            memory = work.Memory(owner, work._state.device, lane)
        self.memory = memory

    # -- what it is --------------------------------------------------------------------

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    device = property(lambda self: fake_cuda.Device(self.memory.device_id))

    @property
    def flags(self):
        of = self.host.flags
        return types.SimpleNamespace(c_contiguous=of.c_contiguous, f_contiguous=of.f_contiguous)

    @property
    def data(self):
        """Where the array lives; ``data.mem`` is the block that it is a part of."""
        return fake_cuda.MemoryPointer(self.memory, self.host.__array_interface__["data"][0]
                                       - self.memory.ptr)

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # -- to the host -------------------------------------------------------------------

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is not None:
            raise NotImplementedError("the stand-in's get has no out=")
        lane = fake_cuda._lane(stream, self.memory.device_id)
        if lane.capture is not None:
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        host = self.host
        if work.simple():
            return host.copy(order)
        a = np.full_like(host, 0, order=order, subok=False)
        poison(a)
        task = work.give(lane, "get", lambda: np.copyto(a, host), [self.memory])
        if blocking:
            work.finish(task)
        return a

    def item(self):
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __bool__(self):
        if not self.size:
            warnings.warn("The truth value of an empty array is ambiguous.", DeprecationWarning,
                          stacklevel=2)
            return False
        if self.size > 1:
            raise ValueError("The truth value of an array with more than one element is ambiguous. "
                             "Use a.any() or a.all()")
        return bool(self.get())

    def __repr__(self):
        return repr(self.get())

    def __reduce__(self):
        from . import fake_cupy
        return fake_cupy.array, (self.get(order="A"),)

    def __deepcopy__(self, memo):
        with self.device:
            return self.copy()

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        work.synchronize(fake_cuda._lane(device=self.memory.device_id))  # as its reader would
        asked = dict(max_version=max_version, dl_device=dl_device, copy=copy)
        return self.host.__dlpack__(**{key: v for key, v in asked.items() if v is not None})

    def __dlpack_device__(self):
        return 2, self.memory.device_id

    # -- views, which are no work ------------------------------------------------------

    T = property(lambda self: ndarray(self.host.T, self.memory))

    def transpose(self, *axes):
        return ndarray(self.host.transpose(*axes), self.memory)

    def swapaxes(self, axis1, axis2):
        return ndarray(self.host.swapaxes(axis1, axis2), self.memory)

    def reshape(self, *shape, order="C", copy=None):
        if order != "C" or copy is not None:
            raise NotImplementedError("the stand-in's reshape has no order= and no copy=")
        reshaped = self.host.reshape(*shape)
        if np.may_share_memory(reshaped, self.host) or not self.size:
            return ndarray(reshaped, self.memory)
        return self.copy().reshape(*shape)

    def view(self, dtype=None, type=None):
        if type is not None:
            raise NotImplementedError("the stand-in's view has no type=")
        return ndarray(self.host.view(dtype or self.dtype), self.memory)

    def ravel(self, order="C"):
        return dense(self.reshape(-1) if order == "C" else self.T.reshape(-1))

    def __getitem__(self, key):
        parts, indices = split_key(key)
        if not indices:
            return ndarray(self.host[parts], self.memory)
        if any(i.dtype == bool for i in indices.values()):  # how many are True?
            indices = {n: i.get() if i.dtype == bool else i for n, i in indices.items()}
        return compute("take", lambda a, *given: a[with_indices(parts, indices, given)], self,
                       *(i for i in indices.values() if isinstance(i, ndarray)))

    # -- writing -----------------------------------------------------------------------

    def __setitem__(self, key, value):
        parts, indices = split_key(key)
        if indices:
            def scatter(a, value, *given):
                a[with_indices(parts, indices, given)] = value

            change("scatter", scatter, self, value, *indices.values())
            return
        view = ndarray(self.host[parts], self.memory)
        if isinstance(value, ndarray):
            copy_into(view, value)
        else:
            view.fill(value)

    def fill(self, value):
        if isinstance(value, ndarray) and value.shape:
            raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
        if not isinstance(value, ndarray):
            value = np.asarray(value, self.dtype)[()]
            if isinstance(value, np.ndarray):
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        change("fill", lambda a, v: np.copyto(a, v, casting="unsafe"), self, value)

    # -- copies ------------------------------------------------------------------------

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        dtype = supported(dtype)
        if dtype == self.dtype and not copy:
            laid_out = {"K": True, "A": self.flags.c_contiguous or self.flags.f_contiguous,
                        "C": self.flags.c_contiguous, "F": self.flags.f_contiguous}
            if laid_out[order or "K"]:
                return self
        like = np.empty_like(self.host, dtype, order or "K", subok=False)
        return into(like, "astype", lambda a, b: np.copyto(a, b, casting="unsafe"), self)

    def copy(self, order="C"):
        here = work._state.device
        if self.memory.device_id == here or not self.size:
            return self.astype(self.dtype, order)
        with self.device:
            source = self.astype(self.dtype, order, copy=False)
        if not (source.flags.c_contiguous or source.flags.f_contiguous):
            raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
        y = new(source.shape, source.dtype, "C" if source.flags.c_contiguous else "F")
        peer_copy(y, source)
        return y

    # -- reductions --------------------------------------------------------------------

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        no_out(out)
        return compute("sum", lambda a: added(a, axis, dtype, keepdims), self)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        no_out(out)
        return compute("mean", lambda a: averaged(a, axis, dtype, keepdims), self)

    def max(self, axis=None, out=None, keepdims=False):
        no_out(out)
        return compute("max", lambda a: a.max(axis, keepdims=keepdims), self)

    def min(self, axis=None, out=None, keepdims=False):
        no_out(out)
        return compute("min", lambda a: a.min(axis, keepdims=keepdims), self)

    def all(self, axis=None, out=None, keepdims=False):
        no_out(out)
        return compute("all", lambda a: a.all(axis, keepdims=keepdims), self)

    def any(self, axis=None, out=None, keepdims=False):
        no_out(out)
        return compute("any", lambda a: a.any(axis, keepdims=keepdims), self)

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        no_out(out, dtype)
        no_bfloat16("argmax", self)
        return compute("argmax", lambda a: a.argmax(axis, keepdims=keepdims), self)


# -- operators -------------------------------------------------------------------------------


def _operators():
    for name in ("lt", "le", "eq", "ne", "gt", "ge"):
        yield f"__{name}__", lambda a, b, name=name: compute(name, getattr(operator, name), a, b)
    for name, f in (("neg", operator.neg), ("abs", abs), ("invert", operator.invert)):
        yield f"__{name}__", lambda a, name=name, f=f: compute(name, f, a)
    for name, word in WORDS.items():
        f = getattr(operator, f"{name}_" if name in ("and", "or") else name)
        g = getattr(operator, f"i{name}")
        yield f"__{name}__", lambda a, b, word=word, f=f: (
            NotImplemented if asks_first(b) else compute(word, f, a, b))
        yield f"__r{name}__", lambda a, b, word=word, f=f: compute(word, f, b, a)
        yield f"__i{name}__", lambda a, b, word=word, g=g: change(f"{word}=", g, a, b)


def asks_first(other):
    """Is it one that computes with arrays by itself, a Tensor say?"""
    return not isinstance(other, ndarray) and getattr(other, "__array_ufunc__", "") is None


for _name, _method in _operators():
    setattr(ndarray, _name, _method)


# -- tasks -----------------------------------------------------------------------------------


def quick():
    """Is a task simply done, its result NumPy's?"""
    return work.simple() and fake_cuda._current.allocator is None


def host(a):
    """What NumPy computes with."""
    if isinstance(a, ndarray):
        if a.memory.device_id != work._state.device:
            raise ValueError(ELSEWHERE.format(a.memory.device_id, work._state.device))
        return a.host
    if isinstance(a, (np.ndarray, list, tuple, dict, str)):
        raise TypeError(f"Unsupported type {type(a)}")
    return a


def dummy(a):
    """Zeros of that shape and dtype, in place of what is not known yet."""
    return np.broadcast_to(np.zeros((), a.dtype), a.shape) if isinstance(a, ndarray) else a


def compute(name, f, *operands):
    """The array f(*operands), in C order."""
    hosts = [host(a) for a in operands]
    with np.errstate(all="ignore"):  # a GPU does not warn
        if quick():
            return ndarray(np.asarray(f(*hosts), order="C"))
        like = np.asarray(f(*map(dummy, operands)))
    y = new(like.shape, like.dtype)
    return task(y, name, lambda a, *given: np.copyto(a, f(*given)), operands, [y.host, *hosts])


def into(like, name, f, *operands):
    """A new array laid out as ``like``, after f(it, *operands)."""
    hosts = [host(a) for a in operands]
    y = ndarray(like) if quick() else new_like(like)
    return task(y, name, f, operands, [y.host, *hosts])


def change(name, f, y, *operands):
    """y, after f(y, *operands) has changed it."""
    hosts = [host(a) for a in (y, *operands)]
    if not quick():
        with np.errstate(all="ignore"):  # what is wrong with the operands is said at once
            f(np.zeros(y.shape, y.dtype), *map(dummy, operands))
    return task(y, name, f, operands, hosts)


def task(y, name, f, operands, hosts):
    """Give the current stream f(*hosts), which writes y, the first of them."""
    def run():
        with np.errstate(all="ignore"):
            f(*hosts)

    if quick():
        run()
        return y
    reads = [a.memory for a in operands if isinstance(a, ndarray)]
    work.give(fake_cuda._lane(), name, run, reads, [y.memory],
              [("out", y), *((str(n), a) for n, a in enumerate(operands))])
    return y


def copy_into(y, x):
    """y[...] = x: between devices only where the bytes lie alike."""
    while x.ndim > y.ndim and x.shape[0] == 1:
        x = x[0]
    if x.memory.device_id != y.memory.device_id and (x.shape, x.strides, x.dtype) == (
            y.shape, y.strides, y.dtype) and y.flags.c_contiguous:
        peer_copy(y, x)
    else:
        change("copy", lambda a, b: np.copyto(a, b, casting="unsafe"), y, x)


def peer_copy(y, x):
    """The bytes of one device's array into another's, on the current stream."""
    lane, other = fake_cuda._lane(), work.null(x.memory.device_id)
    if lane.capture is not None:
        raise NotImplementedError("the stand-in captures no copy between devices")
    after = other.before_next() if lane.kind == "null" else ()  # null streams wait for both devices
    to, of = y.host, x.host
    task = work.give(lane, "peer copy", lambda: np.copyto(to, of), [x.memory], [y.memory],
                     after=after)
    if task and lane.kind == "null":
        other.awaited.append(task)


def new(shape, dtype, order="C"):
    """A poisoned array on the current device."""
    dtype = supported(dtype)
    shape = (operator.index(shape),) if not isinstance(shape, (tuple, list)) else tuple(shape)
    memory = fake_cuda.alloc(math.prod(shape) * dtype.itemsize).mem
    a = np.ndarray(shape, dtype, memory.raw, order=order or "C")
    if dtype.kind == "b":
        a.fill(True)
    return ndarray(a, memory)


def new_like(like):
    """The same, with shape, dtype and strides of a NumPy array without gaps."""
    axes = sorted(range(like.ndim), key=lambda n: -like.strides[n])
    y = new(tuple(like.shape[n] for n in axes), like.dtype)
    y.host = y.host.transpose(np.argsort(axes))
    return y


def dense(a):
    """The array itself where it is C-contiguous."""
    return a if a.flags.c_contiguous else a.copy()


def poison(a):
    a.reshape(-1).view(np.uint8)[...] = work.POISON if a.dtype != bool else 1


# -- what stands in brackets -------------------------------------------------------------------


def split_key(key):
    """(key for NumPy, {place: index array}) of what stands in brackets."""
    parts, indices = list(key) if isinstance(key, tuple) else [key], {}
    for n, part in enumerate(parts):
        if isinstance(part, ndarray):
            indices[n] = part
        elif part is not None and part is not Ellipsis and not isinstance(part, slice):
            if isinstance(part, (bool, np.bool_)) or not isinstance(part, (int, np.integer)):
                raise TypeError(f"Unsupported type {type(part)} as an index")
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)  # a[0] is a view, too
    return tuple(parts), indices


def with_indices(parts, indices, given):
    """The key again; ``given`` are the arrays among the indices, as NumPy has them."""
    parts, given = list(parts), list(given)
    for n, index in indices.items():
        parts[n] = given.pop(0) if isinstance(index, ndarray) else index
    return tuple(parts)
