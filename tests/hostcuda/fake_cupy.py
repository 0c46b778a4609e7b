"""A stand-in for the `cupy` module on machines without a GPU.

Its arrays live in host memory, and RawModule compiles the very same CUDA source with g++ and runs
it on the CPU: the GPU branch of every op (allocation, launch geometry, argument order, kernel) runs
unchanged. conftest.py hands it to gpuconv.backend; the real `cupy` module stays importable.

An ndarray *holds* a NumPy array instead of being one, so that whatever CuPy refuses is refused
here: np.asarray(a), arithmetic with NumPy arrays, NumPy arrays as kernel arguments. Only what is
listed exists; a name that gpuconv begins to use is added here, and test_architecture checks it
against the real CuPy. What CuPy itself does (streams, cuBLAS, real memory) is for a GPU to show.
"""

import types
from time import perf_counter as _now

import numpy as np

from .hostcuda import HostModule

__version__ = "14, the stand-in"
FUNCTIONS = """arange argsort ascontiguousarray broadcast_to concatenate exp full full_like isnan
    log maximum minimum ones ones_like sqrt stack tanh where zeros zeros_like""".split()
METHODS = """__abs__ __add__ __and__ __eq__ __floordiv__ __ge__ __getitem__ __gt__ __iadd__ __imul__
    __invert__ __isub__ __itruediv__ __le__ __lshift__ __lt__ __mod__ __mul__ __ne__ __neg__ __or__
    __pow__ __radd__ __rmul__ __rshift__ __rsub__ __rtruediv__ __setitem__ __sub__ __truediv__
    __xor__ all any argmax astype copy fill max mean min ravel reshape sum swapaxes
    transpose""".split()
ATTRIBUTES = "dtype flags nbytes ndim shape size strides T".split()
CONVERSIONS = "__bool__ __float__ __int__ __len__ item tolist".split()


class ndarray:
    """An array 'on the GPU'; ``get()`` copies it to a NumPy array."""

    __array_ufunc__ = None  # numpy_array + a asks a, which refuses
    __hash__ = None

    def __init__(self, host):
        self.host = host

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def __dlpack__(self, *, stream=None, **options):
        return self.host.__dlpack__(**options)

    def __dlpack_device__(self):
        return 2, 0

    def get(self):
        return self.host.copy()

    @property
    def device(self):
        return Device(0)

    def __repr__(self):
        return f"gpu {self.host!r}"

    @property
    def data(self):
        """Where the array lives: ``data.mem`` has the address and the bytes of the allocation."""
        owner = self.host
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return types.SimpleNamespace(mem=types.SimpleNamespace(ptr=owner.ctypes.data,
                                                               size=owner.nbytes))


class Device:
    """The one device: a context that changes nothing."""

    def __init__(self, id=0):
        self.id = id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class _Event:
    """A moment; what the GPU was given before is done by then."""

    def record(self):
        self.moment = _now()


# cupy.cuda: as much of it as gpuconv.backend asks when it looks for a GPU.
cuda = types.SimpleNamespace(
    Device=Device,
    Event=_Event,
    get_elapsed_time=lambda a, b: 1e3 * (b.moment - a.moment),
    nvtx=types.SimpleNamespace(RangePush=lambda message, id_color=-1: None, RangePop=lambda: None),
    runtime=types.SimpleNamespace(
        driverGetVersion=lambda: 13000,
        memGetInfo=lambda: (6 << 30, 8 << 30),
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {"name": b"stand-in that runs CUDA on the CPU",
                                            "totalGlobalMem": 8 << 30, "major": 0, "minor": 0}),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
    device=types.SimpleNamespace(get_cublas_handle=lambda: 0),
    get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None))


def get_default_memory_pool():
    """Has 1 GiB in free blocks, and keeps it."""
    return types.SimpleNamespace(free_bytes=lambda: 1 << 30, free_all_blocks=lambda: None)


class RawModule:
    """CUDA source, compiled for the CPU."""

    mode = "checked"  # see hostcuda.Mode

    def __init__(self, *, code, options=()):
        self.module = HostModule(code, options, self.mode)

    def get_function(self, name):
        return RawKernel(self.module.get_function(name))


class RawKernel:
    """A kernel; more dynamic shared memory than 48 KB must be asked for, as on the device."""

    def __init__(self, kernel):
        self.kernel, self.max_dynamic_shared_size_bytes = kernel, 48 << 10

    def __call__(self, grid, block, args, *, shared_mem=0):
        self.kernel(grid, block, [_host(a) for a in args], shared_mem,
                    max_shared=self.max_dynamic_shared_size_bytes)


def _host(a):
    """What NumPy computes with."""
    if isinstance(a, np.ndarray):
        raise TypeError(f"Unsupported type {type(a)}")
    if isinstance(a, (list, tuple)):
        return type(a)(map(_host, a))
    return a.host if isinstance(a, ndarray) else a


def _gpu(a):
    """Every NumPy array or scalar (a reduction gives one) becomes an array 'on the GPU'."""
    return ndarray(np.asarray(a)) if isinstance(a, (np.ndarray, np.generic)) else a


def _on_host(f):
    def wrapped(*args, **kwargs):
        with np.errstate(all="ignore"):  # a GPU does not warn
            out = f(*map(_host, args), **{key: _host(a) for key, a in kwargs.items()})
        for a in args:
            if isinstance(a, ndarray) and a.host is out:  # a += b is a itself
                return a
        return _gpu(out)

    return wrapped


def empty(shape, dtype=float):
    """NaN, or -1: what a kernel forgets to write is not zero by luck."""
    a = np.empty(shape, dtype)
    a.reshape(-1).view(np.uint8)[...] = 0xFF if a.dtype != bool else 1
    return ndarray(a)


def empty_like(a, dtype=None):
    """An array of a's shape, and its dtype if there is no other."""
    return empty(a.shape, dtype or a.dtype)


def array(a, dtype=None, copy=True, order="K"):
    """An array on the GPU: from a NumPy array, a list or another array."""
    host = a.host if isinstance(a, ndarray) else a
    if hasattr(a, "__cuda_array_interface__"):  # somebody else's array "on the GPU"
        host = types.SimpleNamespace(__array_interface__=a.__cuda_array_interface__, owner=a)
    return ndarray(np.array(host, dtype, copy=copy or None, order=order))


def asarray(a, dtype=None):
    """The array itself where it is on the GPU already."""
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype)


def from_dlpack(a):
    """An array that shares the memory of somebody else's."""
    return a if isinstance(a, ndarray) else ndarray(np.from_dlpack(a))


def asnumpy(a):
    """A NumPy array of an array from anywhere."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


@_on_host
def matmul(a, b):
    """As cuBLAS multiplies: 16-bit numbers are summed in float32 and rounded once.

    And as CuPy 14 calls it: no stacks of bfloat16 (cupy#10317), and one number from 16-bit
    vectors is computed in 16 bits.
    """
    if max(a.ndim, b.ndim) > 2 and a.dtype.name == "bfloat16":
        raise TypeError("data type 'E' not understood")
    wide = np.result_type(a, np.float32)
    if a.ndim and a.dtype.itemsize == 2 and a.size == b.size == a.shape[-1]:
        products = np.multiply(a.ravel(), b.ravel())
        total = sum(products, a.dtype.type(0)) if a.dtype == np.float16 else (
            products.astype(wide).sum().astype(a.dtype))
        return np.reshape(total, (a @ b).shape).astype(a.dtype)
    return np.matmul(a.astype(wide), b.astype(wide)).astype(np.result_type(a, b))


globals().update({name: _on_host(getattr(np, name)) for name in FUNCTIONS})
for name in METHODS:
    setattr(ndarray, name, _on_host(getattr(np.ndarray, name)))
for name in CONVERSIONS:
    setattr(ndarray, name, lambda self, *args, name=name: getattr(self.host, name)(*args))
for name in ATTRIBUTES:
    setattr(ndarray, name, property(lambda self, name=name: _gpu(getattr(self.host, name))))
ndarray.__matmul__ = lambda a, b: matmul(a, b) if isinstance(b, ndarray) else NotImplemented
del name
