"""A stand-in for the `cupy` module on machines without a GPU.

Its arrays live in host memory, and RawModule compiles the very same CUDA source with g++ and runs
it on the CPU: the GPU branch of every op (allocation, launch geometry, argument order, kernel) runs
unchanged. conftest.py hands it to gpuconv.backend; the real `cupy` module stays importable.

Only what is listed exists, with CuPy's own arguments; a name that gpuconv begins to use is added
here, and test_stand_in checks it against the real CuPy. The array is in fake_ndarray.py, devices,
streams and memory in fake_cuda.py. Where CuPy would copy a NumPy array behind the caller's back (as
an index) or take a hidden turn (out=), this refuses.
"""

import functools as _functools
import re as _re
import types

import numpy as np

from gpuconv.kernels import signatures as _signatures

from . import fake_cuda as _fake_cuda
from . import fake_ndarray as _arrays
from . import rules as _rules
from . import work as _work
from .fake_cuda import cuda, get_default_memory_pool  # noqa: F401
from .fake_ndarray import ndarray
from .hostcuda import HostModule
from .hostcuda import parted as _parted

__version__ = "14, the stand-in"
UFUNCS = "exp isnan log maximum minimum sqrt tanh".split()


# -- new arrays --------------------------------------------------------------------------


def empty(shape, dtype=float, order="C"):
    """NaN, or -1: what a kernel forgets to write is not zero by luck."""
    return _arrays.new(shape, dtype, order)


def full(shape, fill_value, dtype=None, order="C"):
    """A constant."""
    if dtype is None:
        dtype = getattr(fill_value, "dtype", np.asarray(fill_value).dtype)
    a = empty(shape, dtype, order)
    a.fill(fill_value)
    return a


def zeros(shape, dtype=float, order="C"):
    """Zeros."""
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C"):
    """Ones."""
    return full(shape, 1, dtype, order)


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    """An array of a's shape, and its dtype if there is no other."""
    if subok is not None:
        raise TypeError("subok is not supported yet")
    like = np.empty_like(prototype.host, _rules.supported(dtype or prototype.dtype), order,
                         shape=shape)
    return _arrays.new_like(like)


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    """A constant, in a's shape."""
    y = empty_like(a, dtype, order, subok, shape)
    y.fill(fill_value)
    return y


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    """Zeros, in a's shape."""
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    """Ones, in a's shape."""
    return full_like(a, 1, dtype, order, subok, shape)


def arange(start, stop=None, step=1, dtype=None):
    """Numbers in equal steps."""
    if stop is None:
        start, stop = 0, start
    values = np.arange(start, stop, step, dtype)
    return _arrays.into(np.empty_like(values), "arange", lambda a, *_: np.copyto(a, values),
                        start, stop, step)


# -- from elsewhere ----------------------------------------------------------------------


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """An array on the GPU: from a NumPy array, a list or another array."""
    if subok or ndmin:
        raise NotImplementedError("the stand-in's array has no subok= and no ndmin=")
    if hasattr(obj, "__cuda_array_interface__"):  # somebody else's array "on the GPU"
        theirs = types.SimpleNamespace(__array_interface__=obj.__cuda_array_interface__, owner=obj)
        obj = _foreign(np.array(theirs, copy=None))
    if isinstance(obj, ndarray):
        return _from_gpu(obj, dtype, copy, order or "K")
    a = np.array(obj, dtype, copy=None)
    a = a.astype(_rules.supported(a.dtype), copy=False)
    order = order if order in ("C", "F") else "F" if a.flags.fnc else "C"
    staged, y = a.copy(), empty(a.shape, a.dtype, order)  # the caller may change his at once
    if not a.ndim:
        y.fill(a)
        return y
    if _fake_cuda._lane().capture is not None:
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
    _arrays.task(y, "from host", np.copyto, (), [y.host, staged])
    return y


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """The array itself where it is on this GPU already."""
    return array(a, dtype, copy, order, blocking=blocking)


def _from_gpu(a, dtype, copy, order):
    dtype = a.dtype if dtype is None else dtype
    if a.memory.device_id == _work._state.device:
        return a.astype(dtype, order, copy=bool(copy))
    return a.copy(order).astype(dtype, copy=False)


def _foreign(host):
    return ndarray(host, _work.Memory(host, _work._state.device))


def from_dlpack(array, *, device=None, copy=None):
    """An array that shares the memory of somebody else's."""
    return array if isinstance(array, ndarray) else _foreign(np.from_dlpack(array))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """A NumPy array of an array from anywhere."""
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(
        a, order=order)


# -- functions of arrays -----------------------------------------------------------------


def ascontiguousarray(a, dtype=None):
    """The array itself where it is dense; an array without axes gets one."""
    a = a.astype(dtype or a.dtype, copy=False)
    return a.reshape(1) if not a.ndim else _arrays.dense(a)


def broadcast_to(array, shape):
    """A view."""
    return ndarray(np.broadcast_to(array.host, shape), array.memory)


def may_share_memory(a, b, max_work=None):
    """Do the bounds of two arrays overlap?"""
    return np.may_share_memory(a.host, b.host)


def copyto(dst, src, casting="same_kind", where=None):
    """dst[...] = src."""
    if where is not None:
        raise NotImplementedError("the stand-in's copyto has no where=")
    _arrays.change("copyto", lambda y, x: np.copyto(y, x, casting=casting), dst, src)


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    """Arrays joined along an axis."""
    _rules.no_out(out)
    if not all(isinstance(a, ndarray) for a in tup):
        raise TypeError("Only cupy arrays can be concatenated")
    if any(not a.ndim for a in tup):
        raise TypeError("zero-dimensional arrays cannot be concatenated")
    return _arrays.compute("concatenate", lambda *some: np.concatenate(
        some, axis, dtype=dtype, casting=casting), *tup)


def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    """Arrays of one shape, along a new axis."""
    _rules.no_out(out)
    if not all(isinstance(a, ndarray) for a in tup):
        raise TypeError("Only cupy arrays can be concatenated")
    return _arrays.compute("stack", lambda *some: np.stack(
        some, axis, dtype=dtype, casting=casting), *tup)


def where(condition, x=None, y=None):
    """Elements of x where the condition holds, else of y."""
    if x is None or y is None:
        raise NotImplementedError("the stand-in's where wants x and y")
    _rules.no_bfloat16("where", x, y)
    return _arrays.compute("where", np.where, condition, x, y)


def argsort(a, axis=-1, kind=None):
    """The order, of which CuPy knows only a stable one."""
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    _rules.no_bfloat16("argsort", a)
    return _arrays.compute("argsort", lambda a: np.argsort(a, axis, kind="stable"), a)


def _ufunc(name):
    f = getattr(np, name)

    def call(*args, out=None, dtype=None, casting="same_kind"):
        _rules.no_out(out)
        if len(args) != f.nin:
            raise TypeError(f"Wrong number of arguments for 'cupy_{name}'")
        if not any(isinstance(a, ndarray) for a in args):
            raise TypeError(f"Unsupported type {type(args[0])}")
        return _arrays.compute(name, _functools.partial(f, dtype=dtype, casting=casting), *args)

    call.__name__ = name
    return call


globals().update({name: _ufunc(name) for name in UFUNCS})


def matmul(a, b):
    """As cuBLAS multiplies: 16-bit numbers are summed in float32 and rounded once.

    And as CuPy 14 calls it: not while a stream captures; no stacks of bfloat16 (cupy#10317), and
    one number from 16-bit vectors is computed in 16 bits.
    """
    if max(a.ndim, b.ndim) > 2:
        if a.dtype.name == "bfloat16":
            raise TypeError("data type 'E' not understood")
    if a.size and b.size and _fake_cuda._lane().capture is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently "
                                  "unsupported")
    return _arrays.compute("matmul", _multiply, a, b)


def _multiply(a, b):
    wide = np.result_type(a, np.float32)
    if a.ndim and a.dtype.itemsize == 2 and a.size == b.size == a.shape[-1]:
        products = np.multiply(a.ravel(), b.ravel())
        total = sum(products, a.dtype.type(0)) if a.dtype == np.float16 else (
            products.astype(wide).sum().astype(a.dtype))
        return np.reshape(total, (a @ b).shape).astype(a.dtype)
    return np.matmul(a.astype(wide), b.astype(wide)).astype(np.result_type(a, b))


ndarray.__matmul__ = lambda a, b: matmul(a, b) if isinstance(b, ndarray) else NotImplemented


# -- kernels -----------------------------------------------------------------------------


class RawModule:
    """CUDA source, compiled for the CPU."""

    mode = "checked"  # see hostcuda.Mode

    def __init__(self, *, code, options=()):
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got "
                            f"{type(options).__name__})")
        self.code, options = _parted(code, options)
        self.module = HostModule(self.code, options, self.mode)

    def get_function(self, name):
        return RawKernel(self.module.get_function(name), self.code)


class RawKernel:
    """A kernel; more dynamic shared memory than 48 KB must be asked for, as on the device."""

    def __init__(self, kernel, code):
        self.kernel, self.code = kernel, code
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid, block, args, *, shared_mem=0):
        if not (isinstance(grid, tuple) and isinstance(block, tuple)):
            raise TypeError(f"grid {grid!r} and block {block!r} must be tuples")
        hosts = [np.uintp(0) if a is None else _argument(a) for a in args]
        _refuse_overlap(self.kernel.name, self.code, args)
        most = self.max_dynamic_shared_size_bytes

        def run():
            self.kernel(grid, block, hosts, shared_mem, max_shared=most)

        if _work.simple():
            run()
            return
        names = _parameters(self.code)[self.kernel.name]
        reads = [a.memory for a in args if isinstance(a, ndarray)]
        writes = [a.memory for a, (_, const) in zip(args, names, strict=True)
                  if isinstance(a, ndarray) and not const]
        operands = [(name, a) for a, (name, _) in zip(args, names, strict=True)]
        operands += [("grid", grid), ("block", block), ("shared memory", shared_mem)]
        _work.give(_fake_cuda._lane(), self.kernel.name, run, reads, writes, operands)


def _argument(a):
    if isinstance(a, ndarray):
        if a.memory.device_id != _work._state.device:
            raise RuntimeError(f"cudaErrorIllegalAddress: a kernel on device {_work._state.device} "
                               f"is given an array of device {a.memory.device_id}")
        return a.host
    if isinstance(a, (np.generic, int, float)):
        return a
    raise TypeError(f"Unsupported type {type(a)}")


def _refuse_overlap(kernel, code, args):
    """What a __restrict__ pointer writes, no other one may reach: the compiler counts on it."""
    arrays = {}
    for a, (name, const), alone in zip(args, _parameters(code)[kernel], _restricted(code)[kernel],
                                       strict=True):
        if isinstance(a, ndarray):
            arrays.setdefault(id(a.memory), []).append((name, a.host, not const, alone))
    for known in arrays.values():
        for n, (name, a, writes, alone) in enumerate(known):
            for other, b, writes_too, alone_too in known[:n]:
                if (writes or writes_too) and (alone or alone_too) and np.may_share_memory(a, b):
                    raise RuntimeError(f"{kernel}: {other} and {name} overlap, and one that is "
                                       "__restrict__ is written")


@_functools.cache
def _restricted(code):
    """{kernel: [is it a __restrict__ pointer? of each parameter]}."""
    marked = _re.sub(r"\b__restrict__\s+", "alone_", code)
    return {kernel: [name.startswith("alone_") for _, name in listed]
            for kernel, listed in _signatures(marked).items()}


@_functools.cache
def _parameters(code):
    """{kernel: [(name, does it only read it?) of each parameter]}."""
    marked = _re.sub(r"\bconst\s+", "const_", code)
    return {kernel: [(name, kind.startswith("const_")) for kind, name in listed]
            for kernel, listed in _signatures(marked).items()}
