"""Which array library a value belongs to, moving arrays, and what this machine's GPU can do.

The only file that imports CuPy, and only when a GPU is first asked for: importing it takes a
quarter of a second, and work on NumPy arrays never pays for it. An array on the GPU can exist only
after somebody imported CuPy, so ``is_gpu`` looks among the modules already loaded and loads none.
"""

import contextlib
import dataclasses
import re
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from gpuconv import system
from gpuconv.messages import did_you_mean, install, wanted_one_of

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray; in an op's arguments also a Tensor

SCALARS = (bool, int, float, complex, np.generic)  # at home in either library
FLOATS = ("float32", "float64", "float16", "bfloat16")  # names of the dtypes that ops compute with

_cupy: Any = None  # what cupy() returns, once it has been asked; tests put a stand-in here


# -- arrays and their libraries ----------------------------------------------------------


def cupy() -> Any:
    """The cupy module, imported on first use.

    Raises:
        RuntimeError: it is not installed, or the machine cannot run it: says which, and what helps.
    """
    global _cupy
    if _cupy is None:
        info = device_info()
        if not info.ready:
            raise RuntimeError(info.message)
        import cupy as _cupy
    return _cupy


def is_gpu(array: object) -> bool:
    """True for a cupy.ndarray."""
    return isinstance(array, getattr(_cupy or sys.modules.get("cupy"), "ndarray", ()))


def get_array_module(*arrays: object) -> ModuleType:
    """The library that all arrays belong to: numpy or cupy; numpy where there is no array.

    Scalars and None go with either library and decide nothing.

    Raises:
        TypeError: a CPU array meets a GPU array (nothing is ever copied behind the caller's
            back), or something is no array: a list, or a Tensor instead of its ``.data``.

    >>> get_array_module(np.zeros(3), 2.0, None).__name__
    'numpy'
    """
    on_gpu = set()
    for a in arrays:
        if a is None or isinstance(a, SCALARS):
            continue
        on_gpu.add(is_gpu(a))
        if not (is_gpu(a) or isinstance(a, np.ndarray)):
            raise TypeError(f"not an array of numpy or cupy: {type(a).__name__}")
    if len(on_gpu) > 1:
        places = ", ".join("GPU" if is_gpu(a) else "CPU" if isinstance(a, np.ndarray) else repr(a)
                           for a in arrays)
        raise TypeError(f"arrays on CPU and GPU do not mix: {places}")
    return cupy() if True in on_gpu else np


def accumulator(dtype: Any) -> np.dtype:
    """The dtype that sums of ``dtype`` are taken in: itself, but float32 for the 16-bit floats.

    >>> accumulator(np.float16), accumulator(np.float64)
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.result_type(dtype, np.float32))


def float_dtype(dtype: Any) -> np.dtype:
    """The NumPy dtype of a name or type: one of float32, float64, float16, bfloat16.

    Raises:
        TypeError: it is something else, or bfloat16 without the package ml_dtypes.

    >>> float_dtype("float16")
    dtype('float16')
    """
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(f"bfloat16 needs a package: {install('bfloat16')}") from None
        return np.dtype(ml_dtypes.bfloat16)
    try:
        found = np.dtype("None" if dtype is None else dtype)  # for NumPy None is float64
    except TypeError:
        raise TypeError(f"unsupported dtype {dtype!r}, {wanted_one_of(dtype, FLOATS)}") from None
    if found.name not in FLOATS:
        raise TypeError(f"unsupported dtype {found}, wanted one of {', '.join(FLOATS)}")
    return found


# -- moving ------------------------------------------------------------------------------


def asarray(x: Any, device: str = "auto") -> Array:
    """An array of numpy or cupy from anything array-like, without a copy where none is needed.

    Args:
        x: array of numpy or cupy, nested list, number, or any object with ``__dlpack__`` or
            ``__cuda_array_interface__`` (a torch tensor, say).
        device: "auto" leaves it where it is; "cpu", "cuda" (the current device) or "cuda:0" ...

    Raises:
        ValueError: unknown device.
        RuntimeError: no usable GPU; the text says what is missing.

    >>> asarray([1.0, 2.0], "cpu")
    array([1., 2.])
    """
    number = gpu_number(device)
    if not (isinstance(x, np.ndarray) or is_gpu(x)):
        x = _adopt(x)
    if device == "auto":
        return x
    if device == "cpu":
        return to_cpu(x)
    return to_gpu(x, number)


def to_cpu(x: Any) -> np.ndarray:
    """The array on the CPU; itself if it is there. Raises what a kernel reported meanwhile."""
    if not is_gpu(x):
        x = x if isinstance(x, np.ndarray) else _adopt(x)
    if is_gpu(x):
        with x.device:  # else CuPy copies on a stream of the current device, which waits for none
            x = x.get()  # of this one's
        raise_reported()
    return x


def to_gpu(x: Any, number: int | None = None) -> Array:
    """The array on GPU ``number`` (default: the current one); itself if it is there."""
    cp = cupy()
    if not (isinstance(x, np.ndarray) or is_gpu(x)):
        x = _adopt(x)
    if number is None:
        return x if is_gpu(x) else cp.asarray(x)
    if is_gpu(x) and x.device.id != number and not x.flags.c_contiguous:
        with x.device:  # CuPy moves between devices only what is in one piece
            x = x.copy(order="C")
    with cp.cuda.Device(number):
        return x if is_gpu(x) and x.device.id == number else cp.asarray(x)


def gpu_number(device: str) -> int | None:
    """2 for "cuda:2"; None for "auto", "cpu", and "cuda", the current GPU.

    Raises:
        ValueError: anything else.
    """
    if device in ("auto", "cpu", "cuda"):
        return None
    found = re.fullmatch(r"cuda:(\d+)", device) if isinstance(device, str) else None
    if not found:
        near = str(device).lower().replace("gpu", "cuda")  # it looks more like "cpu"
        raise ValueError(f"device {device!r}: wanted 'auto', 'cpu', 'cuda' or 'cuda:<number>'"
                         f"{did_you_mean(near, ('auto', 'cpu', 'cuda'))}")
    return int(found[1])


def array_device(array: Array) -> Any:
    """Context in which new arrays land beside this one: its GPU; nothing on the CPU."""
    return array.device if is_gpu(array) else contextlib.nullcontext()


def device_name(array: Array) -> str:
    """Where an array lives, as ``asarray`` spells it: "cpu" or "cuda:0"."""
    return f"cuda:{array.device.id}" if is_gpu(array) else "cpu"


def _adopt(x: Any) -> Array:
    if hasattr(x, "__cuda_array_interface__"):
        return cupy().asarray(x)
    if hasattr(x, "__dlpack__"):
        kind, _ = x.__dlpack_device__()
        return cupy().from_dlpack(x) if kind == 2 else np.from_dlpack(x)  # 2: kDLCUDA
    return np.asarray(x)


# -- what a kernel has to report ---------------------------------------------------------

_words: dict[int, Array] = {}  # device number: the word kernels on it write to


def error_word() -> Array:
    """(3,) int32 on the current GPU, always the same: [code, value, limit], zeros when all is well.

    A kernel cannot raise. One that meets a bad value writes it here and stays within its arrays;
    whoever next brings a result to the CPU (``Tensor.item``, ``to_cpu``) raises it.
    """
    cp = cupy()
    number = cp.cuda.Device().id
    if number not in _words:
        _words[number] = cp.zeros(3, np.int32)
        cp.cuda.get_current_stream().synchronize()  # other streams will use it too
    return _words[number]


def raise_reported() -> None:
    """Raise what a kernel wrote into its error word, once.

    Raises:
        ValueError: a label was out of range.
    """
    for word in list(_words.values()):  # another thread may add its device
        with word.device:
            code, value, limit = word.get().tolist()
            if code:
                word.fill(0)
        if code:
            raise ValueError(f"softmax_cross_entropy: label {value} is outside 0..{limit - 1}")


# -- probing -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """What the machine offers to CuPy."""

    state: str  # "ready", "no cupy", "no driver", "no device" or "no libraries"
    message: str  # one sentence: what is there, or what is missing and what mends it
    name: str | None = None  # of the current device
    compute_capability: str | None = None  # "90"
    memory: int | None = None  # bytes on the device
    driver: int | None = None  # CUDA version of the driver, 13000 for 13.0
    cupy: str | None = None  # version

    @property
    def ready(self) -> bool:
        """Can arrays live and kernels run on a GPU?"""
        return self.state == "ready"


def device_info() -> DeviceInfo:
    """Find out whether there is a usable GPU, without raising.

    >>> device_info().state in ("ready", "no cupy", "no driver", "no device", "no libraries")
    True
    """
    try:
        cp = _cupy or __import__("cupy")
    except ImportError as error:
        return DeviceInfo("no cupy", f"CuPy is not installed: {install('cuda13')} (12 instead of "
                          f"13 for a driver older than 580) [{error}]")
    version = cp.__version__
    try:
        driver = cp.cuda.runtime.driverGetVersion()
    except Exception:  # any failure to ask means: not there
        driver = 0
    if not driver:
        return DeviceInfo("no driver", "CuPy is installed but there is no NVIDIA driver: install "
                          f"one (nvidia.com/drivers), then {install('cuda13')} (12 instead of 13 "
                          "for a driver older than 580)", cupy=version)
    try:
        count, why = cp.cuda.runtime.getDeviceCount(), "it sees none"
    except Exception as error:
        count, why = 0, str(error)
    if not count:
        extra = "cuda12" if driver < 13000 else "cuda13"
        return DeviceInfo("no device", f"The NVIDIA driver (CUDA {driver // 1000}) offers no "
                          f"device to CuPy ({why}): check nvidia-smi and CUDA_VISIBLE_DEVICES; for "
                          f"this driver {install(extra)}", driver=driver,
                          cupy=version)
    try:
        cp.cuda.nvrtc.getVersion()
        cp.cuda.device.get_cublas_handle()
    except Exception as error:  # DynamicLibNotFoundError is neither ImportError nor a CUDA error
        extra = "cuda12" if driver < 13000 else "cuda13"
        return DeviceInfo("no libraries", "NVRTC or cuBLAS is missing: "
                          f"{install(extra)} [{error}]", driver=driver, cupy=version)
    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    name, memory = properties["name"].decode(), properties["totalGlobalMem"]
    capability = f"{properties['major']}{properties['minor']}"
    return DeviceInfo("ready", f"{name}, {memory / 2**30:.0f} GiB, compute capability "
                      f"{capability[:-1]}.{capability[-1]}, CuPy {version}",
                      name, capability, memory, driver, version)


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that new arrays can have on a device.

    CPU: what the system can give without swapping, within the limits of this process and of its
    control group (a container, say). GPU: what the driver has, and the free blocks of CuPy's pool.
    None where the system does not tell.

    >>> free_memory() is None or free_memory() > 0
    True
    """
    if device == "cpu":
        return system.free_memory()
    cp = cupy()
    number = gpu_number(device)
    with contextlib.nullcontext() if number is None else cp.cuda.Device(number):
        return cp.cuda.runtime.memGetInfo()[0] + cp.get_default_memory_pool().free_bytes()
