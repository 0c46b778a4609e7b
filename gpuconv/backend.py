"""Which array library a value belongs to, moving arrays, and what this machine's GPU can do.

The only file that imports CuPy, and only when a GPU is first asked for: importing it takes a
quarter of a second, and work on NumPy arrays never pays for it. An array on the GPU can exist only
after somebody imported CuPy, so ``is_gpu`` looks among the modules already loaded and loads none.
"""

import contextlib
import re
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from gpuconv import free_memory as host_memory
from gpuconv.checks import check_count, check_plain, is_numeric, no_array, short, type_name
from gpuconv.device import DeviceInfo, probe
from gpuconv.messages import did_you_mean, install, wanted_one_of

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray; in an op's arguments also a Tensor

SCALARS = (bool, int, float, complex, np.generic)  # at home in either library
FLOATS = ("float32", "float64", "float16", "bfloat16")  # names of the dtypes that ops compute with
PLAIN = np.ndarray, np.memmap, np.recarray  # exact classes; other subclasses compute otherwise

_cupy: Any = None  # what cupy() returns, once it has been asked; tests put a stand-in here


# -- arrays and their libraries ----------------------------------------------------------


def cupy() -> Any:
    """Return the cupy module, imported on first use.

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
    """Return whether this is a cupy.ndarray."""
    return isinstance(array, getattr(_cupy or sys.modules.get("cupy"), "ndarray", ()))


def is_array(x: object) -> bool:
    """Return whether this is a NumPy or CuPy array, but not a masked array or np.matrix."""
    return type(x) in PLAIN or is_gpu(x)


def get_array_module(*arrays: object) -> ModuleType:
    """Return the library of all arrays, numpy or cupy; numpy if there are none.

    Scalars and None go with either library and decide nothing.

    Raises:
        TypeError: a CPU array meets a GPU array (nothing is ever copied behind the caller's
            back), or something is no array: a list, a masked array, np.matrix, or a Tensor
            instead of its ``.data``.

    >>> get_array_module(np.zeros(3), 2.0, None).__name__
    'numpy'
    """
    on_cpu = on_gpu = False
    for a in arrays:
        if type(a) in PLAIN:
            on_cpu = True
        elif is_gpu(a):
            on_gpu = True
        elif a is not None and not isinstance(a, SCALARS):
            raise TypeError(f"get_array_module: not an array of numpy or cupy: {no_array(a)}")
    if on_cpu and on_gpu:
        places = ", ".join("GPU" if is_gpu(a) else "CPU" if type(a) in PLAIN else short(a)
                           for a in arrays)
        raise TypeError(f"arrays on CPU and GPU do not mix: {places}")
    return cupy() if on_gpu else np


def check_arrays(caller: str, **arrays: Any) -> ModuleType:
    """Return the library of arguments that must be arrays of numbers; None is passed over.

    Raises:
        TypeError: one is no such array, or CPU meets GPU; names the caller and the argument.

    >>> check_arrays("Dataset", images=np.zeros(3), labels=[1])
    Traceback (most recent call last):
    TypeError: Dataset: labels is list, wanted an array: np.array(labels) makes one
    """
    for name, a in arrays.items():
        if a is None or isinstance(a, np.generic):
            continue
        if not is_array(a):
            raise TypeError(f"{caller}: {name} is {no_array(a, name)}")
        check_plain(caller, name, a)
    try:
        return get_array_module(*arrays.values())
    except TypeError as error:
        raise TypeError(f"{caller}: {error}") from None


def accumulator(dtype: Any) -> np.dtype:
    """Return the dtype that sums of ``dtype`` are taken in: itself; float32 for 16-bit floats.

    >>> accumulator(np.float16), accumulator(np.float64)
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.result_type(dtype, np.float32))


def float_dtype(dtype: Any, caller: str = "") -> np.dtype:
    """Return the NumPy dtype of a name or type: float32, float64, float16 or bfloat16.

    Args:
        dtype: what NumPy takes for one, or "bfloat16".
        caller: beginning of an error message, "Loader: ".

    Raises:
        TypeError: it is something else, or bfloat16 without the package ml_dtypes.

    >>> float_dtype("float16")
    dtype('float16')
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(f"{caller}bfloat16 needs a package: {install('bfloat16')}") from None
        return np.dtype(ml_dtypes.bfloat16)
    try:
        found = np.dtype("None" if dtype is None else dtype)  # for NumPy None is float64
    except (TypeError, ValueError, AttributeError):  # it may be anything
        raise TypeError(f"{caller}unsupported dtype {short(dtype)}, "
                        f"{wanted_one_of(dtype, FLOATS)}") from None
    if found.name not in FLOATS:
        raise TypeError(f"{caller}unsupported dtype {str(found):.60}, "
                        f"{wanted_one_of(found, FLOATS)}")
    return found


# -- moving ------------------------------------------------------------------------------


def asarray(x: Any, device: str = "auto") -> Array:
    """Return an array of numpy or cupy from anything array-like, without a needless copy.

    Args:
        x: array of numpy or cupy, nested list, number, or any object with ``__dlpack__`` or
            ``__cuda_array_interface__`` (a torch tensor, say).
        device: "auto" leaves it where it is; "cpu", "cuda" (the current device) or "cuda:0" ...

    Raises:
        TypeError: x is a masked array or np.matrix, or holds what is no number.
        ValueError: unknown device, lists of different lengths, a number beyond 64 bits.
        RuntimeError: no usable GPU; the text says what is missing.

    >>> asarray([1.0, 2.0], "cpu")
    array([1., 2.])
    """
    number, x = gpu_number(device, "asarray: "), adopt("asarray", "x", x)
    if device == "auto":
        return x
    if device == "cpu":
        return to_cpu(x)
    return to_gpu(x, number)


def to_cpu(x: Any) -> np.ndarray:
    """Return the array on the CPU, itself if it is there; raise errors that kernels reported."""
    x = adopt("to_cpu", "x", x)
    if is_gpu(x):
        with x.device:  # else CuPy copies on a stream of the current device, which waits for none
            x = x.get()  # of this one's
        raise_reported()
    return x


def to_gpu(x: Any, number: int | None = None) -> Array:
    """Return the array on GPU ``number`` (default: the current one); itself if it is there."""
    x = adopt("to_gpu", "x", x)
    if number is not None:
        number = check_count("to_gpu", "number", number, 0, 2**31 - 1)
    cp = cupy()
    if number is None:
        return x if is_gpu(x) else cp.asarray(x)
    if is_gpu(x) and x.device.id != number and not x.flags.c_contiguous:
        with x.device:  # CuPy moves between devices only what is in one piece
            x = x.copy(order="C")
    with cp.cuda.Device(number):
        return x if is_gpu(x) and x.device.id == number else cp.asarray(x)


def gpu_number(device: str, caller: str = "") -> int | None:
    """Return 2 for "cuda:2"; None for "auto", "cpu", and "cuda", the current GPU.

    Raises:
        ValueError: anything else; the message begins with ``caller``.
    """
    if isinstance(device, str) and device in ("auto", "cpu", "cuda"):
        return None
    found = re.fullmatch(r"cuda:(\d{1,9})", device) if isinstance(device, str) else None
    if not found:
        near = did_you_mean(str(device).replace("gpu", "cuda"), ("auto", "cpu", "cuda"))
        raise ValueError(f"{caller}device {short(device)}: wanted 'auto', 'cpu', 'cuda' or "
                         f"'cuda:<number>'{near}")
    return int(found[1])


def array_device(array: Array) -> Any:
    """Return a context that allocates on the array's GPU; without effect for NumPy arrays."""
    return array.device if is_gpu(array) else contextlib.nullcontext()


def device_name(array: Array) -> str:
    """Return the device of an array as ``asarray`` spells it: "cpu" or "cuda:0"."""
    return f"cuda:{array.device.id}" if is_gpu(array) else "cpu"


def adopt(caller: str, name: str, x: Any) -> Array:
    """Return x as an array of numpy or cupy where it is; itself if it is one.

    Args:
        caller: name of the function whose argument x is, for messages.
        name: of the argument.
        x: anything array-like, as for ``asarray``.

    Raises:
        TypeError, ValueError: as ``asarray``.
    """
    if is_array(x):
        a = x
    elif isinstance(x, (np.ndarray, type)):
        raise TypeError(f"{caller}: {name} is {no_array(x, name)}")
    elif hasattr(x, "__cuda_array_interface__"):
        a = cupy().asarray(x)
    elif hasattr(x, "__dlpack__"):
        device, _ = x.__dlpack_device__()
        a = cupy().from_dlpack(x) if device == 2 else np.from_dlpack(x)  # 2: kDLCUDA
    else:
        try:
            a = np.asarray(x)
        except (TypeError, ValueError) as error:  # lists of different lengths, say
            refusal = TypeError if isinstance(error, TypeError) else ValueError
            raise refusal(f"{caller}: {name} is {type_name(x)}: {error}") from None
    if is_numeric(a.dtype):
        return a
    if a.dtype == object and a.size and all(isinstance(v, int) for v in a.flat):
        raise ValueError(f"{caller}: {name} holds a number beyond 64 bits")
    if is_array(x) or isinstance(x, (list, tuple)):
        raise TypeError(f"{caller}: {name} has dtype {str(a.dtype):.60}, wanted numbers")
    raise TypeError(f"{caller}: {name} is {no_array(x, name)}")


# -- what a kernel has to report ---------------------------------------------------------

_words: dict[int, Array] = {}  # device number: the word kernels on it write to


def error_word() -> Array:
    """Return [code, value, limit] of the current GPU, (3,) int32; zeros mean no error.

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


# -- the machine -------------------------------------------------------------------------


def device_info() -> DeviceInfo:
    """Find out whether there is a usable GPU, without raising.

    >>> device_info().state in ("ready", "no cupy", "no driver", "no device", "no libraries")
    True
    """
    return probe(_cupy)


def free_memory(device: str = "cpu") -> int | None:
    """Return how many bytes new arrays can have on a device; None where the system does not tell.

    CPU: what the system can give without swapping, within the limits of this process and of its
    control group (a container, say). GPU: what the driver has, and the free blocks of CuPy's pool.

    >>> free_memory() is None or free_memory() > 0
    True
    """
    if device == "cpu":
        return host_memory.free_memory()
    cp = cupy()
    number = gpu_number(device)
    with contextlib.nullcontext() if number is None else cp.cuda.Device(number):
        return cp.cuda.runtime.memGetInfo()[0] + cp.get_default_memory_pool().free_bytes()
