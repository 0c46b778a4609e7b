"""The real CuPy on a machine without a GPU, over a device that computes nothing.

    driver = nulldriver.install()      before anything imports cupy; for the rest of the process
    python -m nulldriver PART          runs one of parts.py and prints what the driver saw, as JSON

What is real: all of CuPy. Arrays, ufuncs and their kernels, copies, fills, memory pools, streams,
captures and graphs, NVRTC, RawModule, and the packing of arguments. So this shows what the stand-in
(tests/hostcuda) can only claim: what CuPy itself launches, allocates and waits for.

What is not: the device. Its memory is the host's; a launch is looked at and not run, so what a
kernel should compute is zero, or was there before. Libraries that bring a CUDA runtime of their own
are not reached: sorting is replaced, CUB is off, cuBLAS takes every call and does nothing. Modules
are PTX, which is quicker to compile and says how large each parameter is. No time means anything.

How: CuPy reaches CUDA through the C functions of two of its modules, ``runtime`` and ``driver``.
Cython keeps them in a dictionary, ``__pyx_capi__``: a capsule per function, whose name is its
signature, and a module that is imported looks there for the functions that it calls. Here they are
exchanged before any such module is imported. null_driver.cpp has those that gpuconv comes through;
the signatures go into a header, against which it is compiled, so that g++ says what has changed in
a new CuPy. In place of each other function there is one that refuses to be called, by its name.
Calls from Python (``cupy.cuda.runtime.getDevice()``) bypass the capsules: these names are replaced
too.

For a new CuPy: put its version into KNOWN, run tests/test_null_driver.py, and write what refuses.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
import types

import numpy as np

from hostcuda.hostcuda import CACHE, cached, compiler, cxx

KNOWN = "14.0", "14.1", "14.2"  # versions of CuPy with which this has been seen to work
SOURCE = pathlib.Path(__file__).with_name("null_driver.cpp")
NO_DEVICE = "check_status", "get_build_version", "runtimeGetVersion"  # functions that ask none
PACKAGES = "cupy-cuda13x", "cupy-cuda12x", "cupy"
PYTHON = """\
#include <cstdint>
#include <cstddef>
struct PyObject;
extern "C" {
extern PyObject _Py_NoneStruct, *PyExc_RuntimeError, *PyExc_MemoryError;
void Py_IncRef(PyObject *), PyErr_SetString(PyObject *, const char *);
PyObject *Py_BuildValue(const char *, ...);
const char *PyUnicode_AsUTF8AndSize(PyObject *, intptr_t *);
PyObject *PyImport_ImportModule(const char *);
PyObject *PyObject_CallMethod(PyObject *, const char *, const char *, ...);
int PyBytes_AsStringAndSize(PyObject *, char **, intptr_t *);
"""
REFUSE = """
extern "C" {prototype} {{
    refuse("{name} is not written: tests/nulldriver/null_driver.cpp");
    return {failed};
}}
"""


def missing():
    """Why this machine cannot have it; None if it can."""
    versions = [v for name in PACKAGES if (v := version(name))]
    if not versions:
        return "no CuPy"
    if not versions[0].startswith(tuple(f"{known}." for known in KNOWN)):
        return f"CuPy {versions[0]}: nulldriver knows {', '.join(KNOWN)}"
    return None if compiler() else "no g++"


def version(package):
    """Of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- the functions of CuPy ---------------------------------------------------------------


class Signature:
    """Of a C function that Cython exports: runtime.free, ``PyObject *(intptr_t, int)``."""

    TYPES = {"PyObject *": ctypes.py_object, "int": ctypes.c_int, "intptr_t": ctypes.c_ssize_t,
             "size_t": ctypes.c_size_t, "unsigned int": ctypes.c_uint, "float": ctypes.c_float,
             "void *": ctypes.c_void_p}
    ENUMS = "CUdevice", "cudaMemcpyKind"

    def __init__(self, module, name, text):
        returned, listed = re.fullmatch(r"(.*?)\s*\((.*)\)", text).groups()
        self.module, self.name, self.returned = module, name, self.plain(returned)
        self.arguments = [] if listed == "void" else [self.plain(a) for a in listed.split(",")]

    @classmethod
    def plain(cls, declared):
        """A type without a name behind it: objects of a class are objects, an enum is an int."""
        kind = re.sub(r"__pyx_(skip_dispatch|optional_args)$", "", declared.strip()).strip()
        if kind.startswith("struct"):  # an object, or options
            return "PyObject *" if "struct __pyx_obj_" in kind else "void *"
        return "int" if kind in cls.ENUMS else kind

    @property
    def known(self):
        """Are all its types? Those that return structs are left as they are."""
        return {self.returned, *self.arguments} <= self.TYPES.keys()

    @property
    def symbol(self):
        return f"{self.module}_{self.name}"

    @property
    def prototype(self):
        return f"{self.returned} {self.symbol}({', '.join(self.arguments)})"

    @property
    def body(self):
        """A function that refuses, with the value by which Cython knows of an exception."""
        failed = {"PyObject *": "nullptr", "int": "-1"}.get(self.returned, "0")
        return REFUSE.format(prototype=self.prototype, failed=failed,
                             name=f"{self.module}.{self.name}")


def signatures(module):
    """Those of a module of CuPy's that can be replaced."""
    short = module.__name__.rpartition(".")[2]
    named = [(name, capsule_name(capsule)) for name, capsule in module.__pyx_capi__.items()]
    found = [Signature(short, name, text) for name, text in named if "(" in text]  # no variables
    return [s for s in found if s.known and s.name not in NO_DEVICE]


def built(listed):
    """The compiled null_driver.cpp, with a function for each signature."""
    text = SOURCE.read_text(encoding="utf-8")
    written = set(re.findall(r"^[\w *]+?\b((?:runtime|driver)_\w+)\(", text, re.M))
    header = PYTHON + "".join(f"{s.prototype};\n" for s in listed) + "}\n"
    text = header + text + "".join(s.body for s in listed if s.symbol not in written)
    options = "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror"

    def build(path, scratch):
        (scratch / "null_driver.cpp").write_text(text, encoding="utf-8")
        cxx(*options, scratch / "null_driver.cpp", "-o", path)

    return ctypes.PyDLL(cached((text, options), ".so", build))


# -- capsules ----------------------------------------------------------------------------

_kept = []  # what capsules point at, and those that were there before


def capsule_name(capsule):
    """Which Cython writes the signature into."""
    get = ctypes.pythonapi.PyCapsule_GetName
    get.restype, get.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return get(capsule).decode()


def capsule(function, name):
    """A new one."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    _kept.append(ctypes.create_string_buffer(name.encode()))
    return make(ctypes.cast(function, ctypes.c_void_p), ctypes.addressof(_kept[-1]), None)


def replace(module, signature, library):
    """A function of CuPy's, for C and for Python."""
    function = library[signature.symbol]
    function.restype = signature.TYPES[signature.returned]
    function.argtypes = [signature.TYPES[a] for a in signature.arguments]
    old = module.__pyx_capi__[signature.name]
    _kept.append(old)
    module.__pyx_capi__[signature.name] = capsule(function, capsule_name(old))

    def call(*arguments):
        """What Cython hands over besides is 0: no method overrides it, no option is given."""
        more = len(function.argtypes) - len(arguments)
        return function(*arguments, *[None if a is ctypes.c_void_p else 0
                                      for a in function.argtypes[-more:] if more])

    if hasattr(module, signature.name):
        setattr(module, signature.name, functools.wraps(getattr(module, signature.name))(call))


# -- the device --------------------------------------------------------------------------


class Driver:
    """What the device saw."""

    def __init__(self, library):
        self.library = library
        for name in ("null_captured", "null_refused", "null_ptx"):
            getattr(library, name).restype = ctypes.c_char_p
        library.null_live.restype = ctypes.c_size_t
        library.null_ptx.argtypes = [ctypes.c_ssize_t]

    def live(self):
        """Bytes of device memory that have been allocated and not freed."""
        return self.library.null_live()

    def graphs(self):
        """Names of what was captured, in order, for each graph."""
        told = self.library.null_captured().decode()
        return [graph.splitlines() for graph in told.split(";\n")[:-1]]

    def refused(self):
        """What was asked of the device that it does not do, a sentence each."""
        return self.library.null_refused().decode().splitlines()

    def parameters(self, kernel):
        """Bytes of each parameter of a cupy.RawKernel, as its PTX declares them."""
        ptx = self.library.null_ptx(kernel.kernel.ptr).decode()
        listed = re.search(rf"\.entry {kernel.name}\((.*?)\)", ptx, re.S)[1]
        found = re.findall(r"\.param (?:\.align \d+ )?\.[a-z](\d+)[^,[]*(?:\[(\d+)\])?", listed)
        return [int(bits) // 8 * int(length or 1) for bits, length in found]


class Cublas(types.ModuleType):
    """The module through which CuPy calls cuBLAS: constants are 0, products are not computed."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 0 if name.isupper() else functools.partial(self.call, name)

    def call(self, name, *arguments):
        if name == "destroy":  # when Python ends
            return 0
        import cupy
        if cupy.cuda.get_current_stream().is_capturing():  # as in CuPy's own, at each call
            raise NotImplementedError(f"cuBLAS, {name}, while a stream captures")
        return 0


class Module:
    """cupy.RawModule, whose kernels hold what they are given against their parameters."""

    real = driver = None  # cupy.RawModule, Driver: set by install

    def __init__(self, *args, **options):
        self.module = self.real(*args, **options)

    def get_function(self, name):
        return Kernel(self.module.get_function(name), self.driver)


class Kernel:
    """A cupy.RawKernel."""

    def __init__(self, kernel, driver):
        self.kernel, self.wanted = kernel, driver.parameters(kernel)

    def __call__(self, grid, block, args, **options):
        sent = [a.itemsize if isinstance(a, np.generic) else 8 for a in args]
        if sent != self.wanted:
            raise TypeError(f"{self.kernel.name} is sent {sent} bytes, and reads {self.wanted}")
        self.kernel(grid, block, args, **options)

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self.kernel.max_dynamic_shared_size_bytes = size


def install(architecture=80):
    """Let CuPy find the device, and gpuconv CuPy.

    Args:
        architecture: its compute capability; 80 is the stand-in's.
    """
    if "cupy" in sys.modules:
        raise RuntimeError("cupy is imported already")
    os.environ |= {"CUPY_ACCELERATORS": "", "CUPY_COMPILE_WITH_PTX": "1",
                   "CUPY_CACHE_DIR": str(CACHE / "cupy")}
    from cupy_backends.cuda.api import driver, runtime
    listed = [(module, s) for module in (runtime, driver) for s in signatures(module)]
    library = built([s for _, s in listed])
    library.null_architecture(architecture)
    for module, signature in listed:
        replace(module, signature, library)
    from cupy_backends.cuda import libs
    libs.cublas = sys.modules[f"{libs.__name__}.cublas"] = Cublas("cublas")
    import cupy
    pool = cupy.get_default_memory_pool()

    def zeros(size):
        """What no kernel computes is always the same."""
        memory = pool.malloc(size)
        ctypes.memset(memory.ptr, 0, size)
        return memory

    cupy.cuda.set_allocator(zeros)
    cupy.argsort = lambda a, axis=-1, kind=None: cupy.arange(len(a))
    Module.real, Module.driver, cupy.RawModule = cupy.RawModule, Driver(library), Module
    return Module.driver
