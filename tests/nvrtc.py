"""What each kernel takes of a device: registers, shared memory, stack, spills. No GPU needed.

    python tests/nvrtc.py                     the worst of what is in use, kernel by kernel
    python tests/nvrtc.py --each max_pool.cu  each configuration, architecture by architecture

NVRTC compiles for any architecture without a driver, through CuPy and with its options. The numbers
stand in the cubin, an ELF file; how much of the stack is spilled registers only ptxas tells, in
its log. All of it is kept in the user's cache directory, so that a source is compiled once.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import multiprocessing
import os
import pathlib
import re
import struct

from gpuconv import kernels

ARCHS = 75, 80, 86, 89, 90, 100, 120  # that a source is for, unless its header says otherwise
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache",
                     "gpuconv-nvrtc")
OPTIONS = (*kernels.OPTIONS, "-ftz=true",  # the last two are CuPy's own, see its compiler.py
           "--device-as-default-execution-space")
FOLDER = pathlib.Path(__file__).parents[1] / "kernels"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.cu"))
FEW = 8                               # compilations that are not worth starting processes


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one kernel takes; the stack lies in local memory, which is as slow as global."""

    registers: int   # of a thread
    shared: int      # bytes of static arrays, of a block
    stack: int       # bytes of a thread: arrays that are indexed at run time, calls, and spills
    stores: int      # bytes spilled: what a thread writes there for want of registers
    loads: int       # bytes that it reads back
    threads: int     # of a block, at most: __launch_bounds__, or 1024


@dataclasses.dataclass(frozen=True, order=True)
class Job:
    """One compilation: a file in kernels/, or an absolute path."""

    file: str
    options: tuple[str, ...]     # sorted: their order changes nothing
    arch: int

    def __post_init__(self):
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    def __str__(self):
        return " ".join([pathlib.Path(self.file).name, "for", f"sm_{self.arch}", *self.options])


# -- what the header of a source says ----------------------------------------------------


def header(file):
    """The comment that a source begins with."""
    return (FOLDER / file).read_text(encoding="utf-8").split("#include")[0]


def archs(file):
    """Architectures that a source is for: ARCHS, or what its header says in a line such as

        // Archs    sm_80 and newer: cp.async
        // Archs    sm_90, sm_100: the tensor memory accelerator
    """
    line = re.search(r"^// Archs\s+([^:\n]+)", header(file), re.M)
    if not line:
        return ARCHS
    named = tuple(map(int, re.findall(r"sm_(\d+)", line[1])))
    found = [a for a in ARCHS if a in named or ("newer" in line[1] and a > named[0])]
    if not found:
        raise ValueError(f"{file}: no architecture of {ARCHS} in {line[0]!r}")
    return tuple(found)


def dtypes(file):
    """Names of the dtypes that a source is for: all, or what its header says in a line such as

        // Dtypes   float16, bfloat16: the products that tensor cores have
    """
    line = re.search(r"^// Dtypes\s+([^:\n]+)", header(file), re.M)
    return re.findall(r"\w+", line[1]) if line else [d for d in kernels.C_TYPES if "float" in d]


def excused(file):
    """{kernel: why it may use the stack}, from lines of the header such as

        // Stack    max_pool_backward: 32 bytes, the window's marks, indexed at run time
    """
    return dict(re.findall(r"^// Stack\s+(\w+): *(\S.*)$", header(file), re.M))


# -- the compiler ------------------------------------------------------------------------


def headers():
    """The folder with cuda_fp16.h: of NVIDIA's wheels, or of an installed toolkit; or None."""
    wheels = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []
    folders = [f for root in wheels for f in pathlib.Path(root).glob("*/include")]
    toolkits = os.environ.get("CUDA_PATH"), "/usr/local/cuda"
    folders += [pathlib.Path(t, "include") for t in toolkits if t]
    return next((f for f in folders if (f / "cuda_fp16.h").is_file()), None)


def missing():
    """Why nothing can be compiled here; None if it can."""
    try:
        from cupy.cuda import nvrtc
        nvrtc.getVersion()
    except Exception as error:  # cupy's own error where the library is missing is no ImportError
        return f"no NVRTC: {error}"
    return None if headers() else "no CUDA headers for NVRTC"


def build(job):
    """(cubin, log of the compiler); RuntimeError with the log where it refuses."""
    from cupy.cuda import nvrtc
    text, name = kernels.source(job.file), pathlib.Path(job.file).name
    program = nvrtc.createProgram(text, name, [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch=sm_{job.arch}", f"-I{headers()}", *OPTIONS,
                                       *job.options, "--ptxas-options=-v"])
        cubin = nvrtc.getCUBIN(program) + b"\0"  # CuPy drops the last byte
        return cubin, nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError:
        raise RuntimeError(f"{job}: {nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


def ptx(text, options, arch=80):
    """Return the PTX of a source, as text."""
    from cupy.cuda import nvrtc
    program = nvrtc.createProgram(text, "kernel.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch=compute_{arch}", f"-I{headers()}", *options])
        return nvrtc.getPTX(program).decode()
    finally:
        nvrtc.destroyProgram(program)


@functools.cache
def fingerprint():
    """What the answer depends on besides the job: the compiler, its headers, the readers below."""
    from cupy.cuda import nvrtc
    texts = [f.read_text() for f in sorted(headers().glob("cuda_[bf]*16.h*"))]
    texts += map(inspect.getsource, (build, Needs, spills, warnings, read_cubin, records))
    return hashlib.sha256(repr((nvrtc.getVersion(), texts)).encode()).hexdigest()


def kept(job):
    """Where the answer is kept; what stands behind // in the source does not change it."""
    text = re.sub(r"\s*//[^\n]*", "", kernels.source(job.file))
    key = repr((text, job.options, job.arch, OPTIONS, fingerprint())).encode()
    return CACHE / f"{hashlib.sha256(key).hexdigest()[:24]}.json"


def needs(job):
    """{kernel: Needs} of all kernels of the file, and warnings under the key "": a list."""
    path = kept(job)
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        cubin, log = build(job)
        stored = {name: dict(dataclasses.asdict(found), **spills(log, name))
                  for name, found in read_cubin(cubin).items()}
        stored[""] = warnings(log)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(stored))
        fresh.replace(path)  # atomic: several processes compile at once
    return {name: Needs(**found) if name else found for name, found in stored.items()}


def needs_of(jobs):
    """{job: needs(job)}. Compiles in processes: threads would wait for each other in NVRTC."""
    jobs = list(dict.fromkeys(jobs))
    new = [job for job in jobs if not kept(job).exists()]
    if len(new) > FEW:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
            collections.deque(pool.map(needs, new, chunksize=4), maxlen=0)
    return {job: needs(job) for job in jobs}


# -- what it says ------------------------------------------------------------------------


def spills(log, kernel):
    """{"stores": , "loads": } in bytes, as ptxas -v reports them.

    Functions that were not inlined have lines of their own; each kernel is charged with them.
    """
    found = re.findall(r"Function properties for (\S+)\s[^\n]*?stack frame, (\d+) bytes spill "
                       r"stores, (\d+) bytes spill loads", log)
    entries = set(re.findall(r"Compiling entry function '(\w+)'", log))
    if kernel not in entries or kernel not in {name for name, _, _ in found}:
        raise RuntimeError(f"ptxas does not speak of {kernel}: {log}")
    mine = [(int(stores), int(loads)) for name, stores, loads in found
            if name == kernel or name not in entries]
    return dict(zip(("stores", "loads"), map(sum, zip(*mine, strict=True)), strict=True))


def warnings(log):
    """Lines of the log in which NVRTC or ptxas warns."""
    return re.findall(r"^.*\bwarning *[:#].*$", log, re.M | re.I)


Section = collections.namedtuple("Section", "name type flags addr at size link info align entry")
FRAME_SIZE, MIN_STACK, MAX_THREADS, REGISTERS = 0x11, 0x12, 0x05, 0x2F  # EIATTR_...
RESERVED = 1024  # bytes at the start of each block's shared memory, on sm_90 and newer


def read_cubin(cubin):
    """{kernel: Needs} from the ELF file, spills left at 0.

    .nv.info holds (symbol, number) under REGISTERS and of the stack; .nv.info.<kernel> its launch
    bounds; .nv.shared.<kernel> is as long as its static arrays.
    """
    start, = struct.unpack_from("<Q", cubin, 40)
    count, strings = struct.unpack_from("<HH", cubin, 60)
    raw = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + 64 * i) for i in range(count)]

    def string(table, at):
        at += raw[table][4]
        return cubin[at:cubin.index(b"\0", at)].decode()

    sections = {s.name: s for s in (Section(string(strings, r[0]), *r[1:]) for r in raw)}
    symbols = sections[".symtab"]
    names = [string(symbols.link, struct.unpack_from("<I", cubin, at)[0])
             for at in range(symbols.at, symbols.at + symbols.size, 24)]

    def numbers(attribute):
        """{name of the symbol: its number}."""
        pairs = [struct.unpack("<II", value) for code, value in records(cubin, sections[".nv.info"])
                 if code == attribute]
        return {names[symbol]: number for symbol, number in pairs}

    registers, frame, least = map(numbers, (REGISTERS, FRAME_SIZE, MIN_STACK))
    reserved = RESERVED * (".nv.shared.reserved.0" in sections)
    found = {}
    for name in (s.removeprefix(".text.") for s in sections if s.startswith(".text.")):
        bounds = dict(records(cubin, sections[f".nv.info.{name}"])).get(MAX_THREADS)
        shared = sections.get(f".nv.shared.{name}")
        found[name] = Needs(
            registers[name], shared.size - reserved if shared and shared.size else 0,
            max(frame.get(name, 0), least.get(name, 0)), 0, 0,
            math.prod(struct.unpack("<III", bounds)) if bounds else 1024)
    return found


def records(cubin, section):
    """(attribute, value) of an .nv.info section: form, attribute, 16 bits; form 4: its length."""
    at = section.at
    while at < section.at + section.size:
        form, attribute, number = struct.unpack_from("<BBH", cubin, at)
        at += 4
        length = number if form == 4 else 0
        yield attribute, cubin[at:at + length] if form == 4 else number
        at += length


def complaints(found):
    """Sentences on what {job: needs} shows: warnings, and a stack that no header excuses."""
    for job, kernel_needs in found.items():
        for line in kernel_needs[""]:
            yield f"{job}: {line}"
        for name, n in kernel_needs.items():
            if name and (n.stack or n.stores or n.loads) and name not in excused(job.file):
                yield (f"{job}: {name} has {n.stack} bytes of stack, {n.stores} of them spilled, "
                       f"and the header has no line '// Stack    {name}: why'")


# -- the table ---------------------------------------------------------------------------


def table(found, each=False):
    """Lines of text from {job: needs}: a row per kernel, the worst of its configurations."""
    rows = collections.defaultdict(dict)
    for job, kernel_needs in found.items():
        for name, n in kernel_needs.items():
            if name:
                key = (job.file, name, " ".join(o.removeprefix("-DCFG_") for o in job.options))
                rows[key if each else key[:2]].setdefault(job.arch, []).append(n)
    width = max(len(name) for _, name, *_ in rows)
    yield (f"{'':{width}s} {'configu-':>8s}  {'registers of a thread on sm_':{5 * len(ARCHS)}s}"
           f"{'shared':>8s} {'stack':>6s} {'spilled':>7s}")
    yield (f"{'kernel':{width}s} {'rations':>8s} {''.join(f'{a:5d}' for a in ARCHS)}"
           f" {'bytes':>8s} {'bytes':>6s} {'bytes':>7s}")
    for (_, name, *options), by_arch in sorted(rows.items()):
        every = [n for ns in by_arch.values() for n in ns]
        registers = "".join(
            f"{max(n.registers for n in by_arch[a]):5d}" if a in by_arch else f"{'-':>5s}"
            for a in ARCHS)
        worst = (max(getattr(n, what) for n in every) for what in ("shared", "stack", "stores"))
        yield (f"{name:{width}s} {max(map(len, by_arch.values())):8d} {registers}"
               " {:8d} {:6d} {:7d}".format(*worst) + f"  {' '.join(options)}".rstrip())


def main():
    import launches  # which imports this module
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="in kernels/; all of them if none is named")
    parser.add_argument("--each", action="store_true", help="a row for each configuration")
    arguments = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    jobs = [job for job in launches.jobs(launches.drive())
            if not arguments.files or job.file in arguments.files]
    print(*table(needs_of(jobs), arguments.each), sep="\n")


if __name__ == "__main__":
    main()
