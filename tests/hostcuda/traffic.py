"""What a kernel asks of memory, counted while it runs on the CPU: bounds, not a GPU's counters.

    with traffic.recording() as launches:      # every kernel of the stand-in, while inside
        max_pool2d(x, 2)                       # x in the stand-in's memory
    launches[0].arrays["x"].read.bytes         # distinct bytes that were read
    launches[0].accesses                       # per line of the source: requests, sectors, passes

The 32 lanes of a warp that reach the same access together make one request. Real memory moves at
least ``unique`` sectors of 32 bytes (what a perfect cache would) and at most those of all requests.

What is modelled, and what not:

* Lanes run in lock-step and wait for each other where their paths meet, see hc_traffic.cpp. A GPU
  does so for structured code, but does not promise it.
* g++ -O1 decides which reads stay: two of the same place may be one, as NVRTC would do it, and a
  read that is used twice may be two where NVRTC finds one. What NVRTC spills is not seen.
* An access is as wide as the type in the source (a struct's alignment tells a vector); NVRTC does
  not join narrower ones either, unless it unrolls a loop.
* An array that NumPy allocated counts as if it began at a multiple of 512 bytes, as CuPy's do.
* No caches, no DRAM pages, no time, no out-of-bounds checks (that is the checked mode). An atomic
  counts as one request, whoever else wants the place; cp.async counts where it is issued. What
  mma.cuh does is shown at the start of the block of code that it is called in.
"""

import contextlib
import ctypes
import functools
import math
import re
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuconv import kernels

from . import fake_cupy
from .hostcuda import HostKernel, HostModule, Mode

MODE = Mode("hc_traffic.cpp", (
    "-fsanitize-coverage=trace-pc",      # where each thread went
    "-fno-sanitize=undefined,float-cast-overflow",  # its checks are branches
    "-fno-tree-sra",                     # a vector is read as a whole
    "-fno-reorder-blocks",               # the order of the source: where paths meet
    "-finline-functions", "-finline-limit=100000", "--param=large-function-growth=100000",
    "--param=inline-unit-growth=100000", "-g1"))
KINDS = {1: "read", 2: "write", 3: "atomic"}
SECTOR = 32  # bytes


class Access(NamedTuple):
    """The requests of one instruction to one array, added up."""

    array: str
    kind: str         # read, write or atomic
    line: int         # of the source, headers pasted in
    text: str         # of that line
    size: int         # bytes per lane
    requests: int
    lanes: int        # that took part
    bytes: int        # lanes x size
    distinct: int     # bytes, what several lanes share counted once; in shared memory of words
    sectors: int      # touched; 0 in shared memory
    least: int        # sectors that could hold the distinct bytes
    passes: int       # through the banks of shared memory
    groups: int       # of lanes that pass together: the fewest passes


class Unique(NamedTuple):
    """What has been touched at least once."""

    bytes: int
    sectors: int


class Traffic(NamedTuple):
    """One array of a launch."""

    name: str
    dtype: np.dtype
    size: int           # elements
    read: Unique
    written: Unique


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: str
    grid: int           # blocks
    block: int          # threads
    arrays: dict[str, Traffic]    # those in global memory, by the names of the parameters
    accesses: list[Access]
    letters: dict[str, Any]       # by name: sizes, constants, and whether there is an array

    def of(self, array: str, *kinds: str) -> list[Access]:
        """The accesses to an array, of these kinds or of all."""
        return [a for a in self.accesses if a.array == array and (not kinds or a.kind in kinds)]


def run(text: str, function: str, grid: int, block: int, *args: Any, shared_mem: int = 0,
        options: tuple[str, ...] = ()) -> Launch:
    """Run one kernel of a CUDA source.

    Args:
        text: the source, without #include "..." lines.
        function: the kernel.
        grid, block: blocks, and threads of each.
        args: NumPy arrays and scalars, ``np.uintp(0)`` for a null pointer.
        shared_mem: bytes of dynamic shared memory.
        options: of the compiler, such as -DCFG_T=float.
    """
    launches: list[Launch] = []
    compiled = HostModule(text, options, MODE).get_function(function)
    Watched(compiled, text, options, launches)((grid,), (block,), args, shared_mem)
    return launches[0]


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, every kernel of the stand-in runs in traffic mode and leaves a Launch in the list."""
    launches: list[Launch] = []

    class Module(HostModule):
        def __init__(self, code, options=(), mode=MODE):
            super().__init__(code, options, MODE)
            self.code, self.options = code, options

        def get_function(self, name):
            return Watched(super().get_function(name), self.code, self.options, launches)

    before, fake_cupy.HostModule = fake_cupy.HostModule, Module
    kernels.kernel.cache_clear()  # compiled kernels keep their mode
    try:
        yield launches
    finally:
        fake_cupy.HostModule = before
        kernels.kernel.cache_clear()


class Watched:
    """A HostKernel whose launches leave a Launch each."""

    def __init__(self, kernel: HostKernel, code: str, options: tuple[str, ...],
                 launches: list[Launch]):
        self.kernel, self.name, self.launches = kernel, kernel.name, launches
        self.source = code.split("\n")
        self.parameters = [(p, kind.endswith("*"))
                           for kind, p in kernels.signatures(code)[kernel.name]]
        self.constants = {key: int(value) for key, value in re.findall(
            r"-DCFG_(\w+)=(-?\d+)(?: |$)", " ".join(options))}
        for name in re.findall(r"-DCFG_ACTIVATION=([a-z]\w*)", " ".join(options)):
            self.constants["ACTIVATION"] = int(name != "none")

    def __call__(self, grid, block, args, shared_mem=0, **keywords):
        library = self.kernel.library
        for a in args:
            if isinstance(a, np.ndarray):
                while isinstance(a.base, np.ndarray):
                    a = a.base
                if a.dtype != np.uint8:  # the stand-in's own blocks are bytes, and lie right
                    library.hc_traffic_allocation(ctypes.c_void_p(a.ctypes.data),
                                             ctypes.c_size_t(a.nbytes))
        self.kernel(grid, block, args, shared_mem, **keywords)

        pairs = [(p, a) for (p, _), a in zip(self.parameters, args, strict=True)]
        arrays = [(p, a) for p, a in pairs if isinstance(a, np.ndarray)]
        totals = _table(library.hc_traffic_arrays, 5)
        traffic = {p: Traffic(p, a.dtype, a.size, Unique(*row[1:3]), Unique(*row[3:]))
                   for (p, a), row in zip(arrays, totals[: len(arrays)], strict=True)}
        names = [p for p, _ in arrays] + ["shared"] * (len(totals) - len(arrays))

        rows = _table(library.hc_traffic_accesses, 12)
        lines = _lines(library._name, tuple(r[0] for r in rows))
        accesses = [Access(names[r[1]], KINDS[r[2]], line,
                           self.source[line - 1].strip() if line else "", r[3], *r[4:])
                    for r, line in zip(rows, lines, strict=True)]
        letters = {p: isinstance(a, np.ndarray) if pointer else np.asarray(a).item()
                   for (p, pointer), a in zip(self.parameters, args, strict=True)}
        self.launches.append(Launch(
            self.name, math.prod(grid), math.prod(block), traffic,
            sorted(accesses, key=lambda a: (a.line, a.array)), letters | self.constants))


def _table(function: Any, columns: int) -> list[list[int]]:
    start = ctypes.POINTER(ctypes.c_uint64)()
    function.restype = ctypes.c_size_t
    rows = function(ctypes.byref(start))
    flat = [start[i] for i in range(rows * columns)]
    return [flat[i : i + columns] for i in range(0, len(flat), columns)]


@functools.cache
def _lines(library: str, places: tuple[int, ...]) -> list[int]:
    """The line of the source for each place in the library, 0 where nobody knows."""
    if not places:
        return []
    done = subprocess.run(["addr2line", "-e", library, *(hex(p - 1) for p in places)],
                          capture_output=True, text=True, check=True)
    found = [re.search(r"kernel\.cu:(\d+)", row) for row in done.stdout.splitlines()]
    return [int(m[1]) if m else 0 for m in found]
