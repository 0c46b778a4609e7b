"""Compile the CUDA sources in kernels/ with NVRTC, and launch them with checked arguments.

CuPy checks nothing at a launch: an array of the wrong dtype is read as if it were right, a view is
passed as its base pointer, a Python int as 8 bytes where the kernel reads 4. So the loader reads
the parameter list of each kernel, and ``launch`` holds every argument against it.
"""

import functools
import operator
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.backend import Array, accumulator, cupy, float_dtype, is_gpu

HERE = pathlib.Path(__file__).parent
FOLDERS = HERE / "cuda", HERE.parent / "kernels"  # in a wheel, in a checkout

C_TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float",
           "float64": "double", "bool": "bool", "int8": "signed char", "uint8": "unsigned char",
           "int32": "int", "uint32": "unsigned", "int64": "long long",
           "uint64": "unsigned long long"}

INT_ITEMS = 2**31     # the number of elements from which an int cannot count an array
MAX_BLOCKS = 2**16    # of one launch; kernels step through what is left, see grid_stride
BLOCK = 256           # threads of a block, unless a kernel wants another number
STATIC_SHARED = 48 << 10  # bytes of shared memory that every kernel may have without asking

# Compiler options, the same for all kernels: CuPy compiles an empty program for each set of options
# (20 ms) before it looks into its cache. Without this one the compiler fuses a product and a sum
# where it likes, in one variant of a kernel and not in another, and their bits differ.
OPTIONS = "--fmad=false",

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"(.+?)".*$', re.M)


@functools.cache
def source(file: str | pathlib.Path) -> str:
    """Return the text of a CUDA source, with each #include "x.cuh" pasted in once.

    Pasted, because CuPy's disk cache hashes the source text and the options but not the
    files an #include names: an edited header would otherwise run as the stale kernel.

    Args:
        file: path of a file in kernels/, "pool/max_pool.cu"; or the absolute path of one of your
            own, whose headers are looked for beside it, then in kernels/. Read once per process.

    Raises:
        FileNotFoundError: no such file or header; says where it was looked for.
    """
    ours = next((f for f in FOLDERS if (f / "common/common.cuh").is_file()), None)
    if ours is None:
        raise FileNotFoundError(f"no common/common.cuh in {' or '.join(map(str, FOLDERS))}")
    pasted: set[pathlib.Path] = set()

    def text(what: str, *places: pathlib.Path) -> str:
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"no {what} {' or '.join(map(str, places))}")
        if path in pasted:
            return ""
        pasted.add(path)
        return INCLUDE.sub(lambda m: text(f"header of {path.name}", path.parent / m[1],
                                          ours / m[1]), path.read_text(encoding="utf-8"))

    return text("CUDA source (a file of your own needs its absolute path)", ours / file)


def signatures(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return {kernel: [(type, name) of each parameter]} of the extern "C" __global__ functions.

    >>> signatures('extern "C" __global__ void f(const T* __restrict__ x, long long n) {}')
    {'f': [('T*', 'x'), ('long long', 'n')]}
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    head = (r'extern\s+"C"\s+__global__(?:\s|void\b|__launch_bounds__\s*\([^)]*\))+'
            r"(\w+)\s*\(([^)]*)\)")

    def parameter(declared: str) -> tuple[str, str]:
        *kind, name = re.findall(r"\w+|\*", re.sub(r"\b(const|__restrict__)\b", "", declared))
        return " ".join(kind).replace(" *", "*"), name

    return {name: [parameter(p) for p in listed.split(",") if p.strip()]
            for name, listed in re.findall(head, text)}


def defines(**constants: Any) -> tuple[str, ...]:
    """Return the compiler options for compile-time constants: ints, bools, dtypes and C names.

    >>> defines(R=3, SAVE=True, T=np.dtype("float16"), ACTIVATION="relu")
    ('-DCFG_R=3', '-DCFG_SAVE=1', '-DCFG_T=__half', '-DCFG_ACTIVATION=relu')
    """

    def text(value: Any) -> Any:
        if isinstance(value, str) and value.isidentifier():
            return value
        return C_TYPES[value.name] if isinstance(value, np.dtype) else operator.index(value)

    return tuple(f"-DCFG_{name}={text(value)}" for name, value in constants.items())


def configured(text: str, options: tuple[str, ...]) -> str:
    """Return a source with its constants in front; line numbers stay the same.

    As options of the compiler they would cost 20 ms for each set in each process: CuPy compiles an
    empty program with them before it looks into its cache.

    >>> configured("int x[CFG_R];", defines(R=3))
    '#define CFG_R 3\\n#line 1\\nint x[CFG_R];'
    """
    lines = (option.removeprefix("-D").replace("=", " ", 1) for option in options)
    return "".join(f"#define {line}\n" for line in lines) + "#line 1\n" + text


def index(*arrays: Array | None) -> np.dtype:
    """Return the dtype of flat offsets into these arrays: int if it suffices, else int64."""
    small = all(a is None or a.size < INT_ITEMS for a in arrays)
    return np.dtype("int32" if small else "int64")


@functools.cache
def kernel(file: str | pathlib.Path, function: str, *, T: Any = None,
           **constants: Any) -> Callable[..., None]:
    """Return a compiled __global__ function: ``kernel(...)(threads, *arguments)`` launches it.

    Args:
        file: in kernels/, or the absolute path of a file of your own.
        function: name of an extern "C" __global__ in it.
        T: dtype of the stored elements. A, the dtype of the arithmetic, is T, but float32 for the
            16-bit floats: their sums need more bits than they have. None: there are no floats.
        constants: ints, dtypes and C names. The source reads each as CFG_<name>.

    Raises:
        FileNotFoundError: there is no such file; says where it was looked for.
        ValueError: there is no such function in it, or a parameter of it has a type that launch
            cannot check; says what there is, or what is known.

    CuPy always compiles with -ftz=true: float32 numbers below 1e-38 count as zero on the GPU.
    ``a * b + c`` rounds twice; ``fma(a, b, c)``, which is faster, rounds once.

    A plain extern "C" name with #defines works with the disk cache of every CuPy; template
    name_expressions are recompiled in each process before CuPy 14.2. The prefix matters:
    a bare T breaks every template in the CUDA headers.
    """
    dtypes = {} if T is None else {"T": float_dtype(T), "A": accumulator(T)}
    dtypes |= {key: v for key, v in constants.items() if isinstance(v, np.dtype)}
    options = defines(**constants | dtypes)

    text = source(file)
    by_c_name = {c: float_dtype(name) if name == "bfloat16" else np.dtype(name)
                 for name, c in C_TYPES.items()
                 if name != "bfloat16" or (T is not None and name == dtypes["T"].name)}
    aliases = {alias: dtypes[key] for alias, key in re.findall(r"using (\w+) = CFG_(\w+);", text)}
    known, functions = by_c_name | aliases, signatures(text)
    if function not in functions:
        raise ValueError(f'{file}: no extern "C" __global__ function {function!r} among '
                         f"{', '.join(functions) or 'none'}")
    for kind, name in functions[function]:
        if kind.rstrip("*") not in known:
            raise ValueError(f"{file}: {function}: {name} is declared {kind}, wanted one of "
                             f"{', '.join(known)}, or a pointer to one")
    parameters = [(name, known[kind.rstrip("*")], kind.endswith("*"))
                  for kind, name in functions[function]]
    code = configured(text, options)
    compiled: dict[int, Any] = {}  # device: function; a module belongs to one device

    def get(device: int) -> Any:
        if device not in compiled:
            compiled[device] = cupy().RawModule(code=code, options=OPTIONS).get_function(function)
        return compiled[device]

    return functools.partial(launch, get, function, parameters)


def launch(get: Callable[[int], Any], function: str, parameters: list, threads: int, *args: Any,
           block: int = BLOCK, shared: int = 0, every: bool = False) -> None:
    """Launch one thread per unit of work, on the arrays' device and CuPy's current stream.

    Args:
        get: gives the compiled function of a device.
        function: its name, for messages.
        parameters: (name, dtype, whether it is a pointer) of each parameter.
        threads: wanted in all, rounded up to whole blocks, at most ``MAX_BLOCKS`` of them: kernels
            stride over what is left. Nothing is launched for 0.
        args: an array, or None for a null pointer; for the others a number, narrowed here to
            the type that the kernel declares.
        block: threads of a block.
        shared: bytes of dynamic shared memory.
        every: launch a block for each ``block`` of threads, however many that are, for a kernel
            that does not stride.

    Raises:
        TypeError, ValueError, OverflowError: an argument is not what the kernel declares.
    """
    if len(args) != len(parameters):
        raise TypeError(f"{function}: {len(args)} arguments for {len(parameters)} parameters")
    narrow = [_checked(f"{function}: {name}", arg, dtype, pointer)
              for arg, (name, dtype, pointer) in zip(args, parameters, strict=True)]
    devices = {arg.device.id: arg.device for arg in args if is_gpu(arg)}
    if len(devices) != 1:
        raise ValueError(f"{function}: its arrays are on devices {sorted(devices)}, wanted one")
    if threads:
        (number, device), = devices.items()
        blocks = -(-threads // block)
        with device:
            compiled = get(number)
            if shared > STATIC_SHARED:
                compiled.max_dynamic_shared_size_bytes = shared
            compiled((blocks if every else min(blocks, MAX_BLOCKS),), (block,), narrow,
                     shared_mem=shared)


def _checked(what: str, arg: Any, dtype: np.dtype, pointer: bool) -> Any:
    if not pointer:
        if is_gpu(arg) or isinstance(arg, np.ndarray):
            raise TypeError(f"{what} is an array, wanted one {dtype}")
        if dtype.kind in "iu":
            return dtype.type(operator.index(arg))  # OverflowError where it does not fit
        return dtype.type(bool(arg) if dtype.kind == "b" else float(arg))
    if arg is None:
        return np.uintp(0)
    if not is_gpu(arg):
        raise TypeError(f"{what} is {type(arg).__name__}, wanted a GPU array of {dtype}")
    if arg.dtype != dtype:
        raise TypeError(f"{what} is an array of {arg.dtype}, wanted {dtype}")
    if not arg.flags.c_contiguous:
        raise ValueError(f"{what}, shape {arg.shape}, is not C-contiguous")
    return arg
