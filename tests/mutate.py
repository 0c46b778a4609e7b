"""Do the tests see a fault in a kernel? Change the kernels a token at a time, and run their tests.

    python tests/mutate.py                     all kernels: half an hour on two cores
    python tests/mutate.py pool/max_pool.cu         some of them
    python tests/mutate.py --sample 50         no more than 50 mutants of each, drawn by --seed
    python tests/mutate.py --report FILE.md    run nothing, write what is known as a table

A mutant is a source with one token changed (mutants.py). Of the tests of its op, those that need
only a few configurations of the kernels (CASES) run on it, each mutant in a process of its own,
until a test fails: then the mutant is killed. So it is by a crash, by what the CPU stand-in
reports, and when a test takes two seconds of CPU and ten times more than without a mutant. A
survivor whose machine code is that of the original is counted apart: there is nothing to see. Each
other one is listed, with the reason that mutants.toml gives. Of mma.cuh the CPU runs nothing: what
it has for tensor cores is PTX, and tests/hostcuda/hc_mma.h stands in for it.

What is found is kept in a journal, so that a run goes on where it was cut off. A kernel that has
changed is asked anew; what no test killed also if the tests have. --fresh asks all anew.
"""

import argparse
import collections
import contextlib
import datetime
import functools
import hashlib
import importlib
import json
import os
import pathlib
import platform
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from mutants import Mutant, code, mutants  # noqa: E402

from gpuconv import kernels  # noqa: E402
from hostcuda import hostcuda  # noqa: E402

SEED = 0
CONFIGURATIONS = 30  # for one source, at most: a survivor is compiled in each
JOURNAL = hostcuda.CACHE.with_name("gpuconv-mutants.jsonl")
REASONS = HERE / "mutants.toml"
PATIENCE = 2.0  # seconds of CPU for a test, beside ten times what it takes without a mutant
WAIT = 120.0    # seconds on the clock for a mutant, should it sleep for ever


def simt(*named: str) -> list[str]:
    """Both kernels of each: what a test of all three directions asks for."""
    return [f"{file} {name} ACTIVATION=none" for name in named
            for file in ("conv/conv_simt.cu", "conv/conv_simt_wgrad.cu")]


SIMT = simt("R=3 SH=1 LX=4 LY=4 BM=64 BN=32", "R=3 SH=1 LX=4 LY=4 BM=32", "R=2 SH=2 BM=64 BN=32",
            "R=2 SH=1 BM=64 BN=32")

# The test files of a source, and its CONFIGURATIONS: a test runs if it asks for no other.
# They are named by some of their constants: T (float if not given) and I (int), and the window's.
CASES = {
    "common/accumulate.cu": ("accumulate", ["", "T=__half", "T=double"]),
    "elementwise/activation.cu": ("activation", [
        "", "T=__half ACTIVATION=relu", "I=long long ACTIVATION=relu"]),
    "optim/adam.cu": ("adam master optimizer", ["", "T=__half MASTER=1", "I=long long"]),
    "data/augment.cu": ("augment", [
        "C=3", "T=__half C=3", "I=long long C=3", "C=1", "T=__half C=1"]),
    "pool/avg_pool.cu": ("avg_pool", [
        "R=2 S=3 INCLUDE=1", "R=3 PT=0 PL=1", "T=__half R=2 INCLUDE=0"]),
    "norm/batch_norm.cu": ("batch_norm batch_norm_fused", [
        "V=1 ACTIVATION=none", "V=4 ACTIVATION=relu", "T=__half V=8"]),
    "elementwise/bias_relu.cu": ("bias_relu", ["V=1", "V=4", "T=__half V=8"]),
    "optim/clip.cu": ("clip", ["", "T=__half", "T=double"]),
    "common/common.cuh": ("max_pool ema", ["pool/max_pool.cu SAVE=1 R=2 S=3", "optim/ema.cu",
                                    "pool/max_pool.cu SAVE=1 R=3 SH=2 PT=1 PL=1"]),
    "elementwise/functors.cuh": ("activation batch_norm_fused", [
        "elementwise/activation.cu", "elementwise/activation.cu T=double ACTIVATION=gelu",
        "norm/batch_norm.cu V=1", "norm/batch_norm.cu V=4"]),
    "optim/step_state.cu": ("step_state", [""]),
    "reduce/column_sums.cu": ("column_sums", ["T=float O=float V=4", "T=__half O=float V=8",
                                       "T=float O=float V=1"]),
    "conv/conv_mma_wgrad.cu": ("gpu_mma_wgrad", [
        f"T={T} O=float BN=32 X_UNIT={x} GY_UNIT=16 PLAIN=0 BM=64 BK={k}"
        for T, x, k in (("__half", 16, 32), ("float", 16, 16), ("__half", 2, 32))]),
    "conv/conv_rotate_filters.cu": ("gpu_mma", ["T=__half SH=1 R=3 DH=1", "T=__half SH=3",
                                         "T=__half SH=2 DW=3"]),
    "conv/conv_mma.cu": ("gpu_mma", [
        "T=__half C=16 GRADIENT=0 R=3", "T=__half C=3 GRADIENT=0", "T=__half GRADIENT=0 SH=2 DW=3",
        "T=__half GRADIENT=1 SH=2 DW=3", "conv/conv_rotate_filters.cu T=__half SH=2 DW=3",
        "T=__half GRADIENT=1 SH=3", "conv/conv_rotate_filters.cu T=__half SH=3",
        "GRADIENT=1 R=3 SH=1", "conv/conv_rotate_filters.cu SH=1 R=3",
        "T=__half C=8 BIAS=0 ACTIVATION=relu WIDE=1", "T=__half RESIDUAL=1"]),
    "conv/gemm.cuh": ("gpu_mma gpu_mma_wgrad", [
        "conv/conv_mma.cu T=__half C=16 GRADIENT=0 R=3 BIAS=0 UNIT=16",
        "conv/conv_mma.cu T=float C=32 GRADIENT=0", "conv/conv_mma.cu T=__half C=3 GRADIENT=0",
        "conv/conv_mma.cu T=__half BK=64",
        "conv/conv_mma_wgrad.cu T=__half O=float BN=32 X_UNIT=16 GY_UNIT=16 PLAIN=0 BM=64 BK=32",
        "conv/conv_mma_wgrad.cu T=__half O=float BN=32 X_UNIT=2 GY_UNIT=16 PLAIN=0 BM=64 BK=32"]),
    "conv/conv_depthwise.cu": ("gpu_simt", [
        "R=3 ACTIVATION=none", "R=2 S=3", "T=__half ACTIVATION=none", "reduce/column_sums.cu"]),
    "conv/conv_simt.cu": ("gpu_simt", [*SIMT, *simt("R=3 S=3 SH=2 BM=64 BN=32")]),
    "conv/conv_simt_wgrad.cu": ("gpu_simt", [*SIMT, "reduce/column_sums.cu O=float"]),
    "conv/simt.cuh": ("gpu_simt", simt(
        "R=3 SH=1 LX=4 LY=4 BM=64 BN=32", "R=3 SH=1 LX=4 LY=4 BM=128 BN=32",
                              "T=double R=3 SH=2 BN=32", "R=2 SH=1 BN=32")),
    "conv/epilogue.cuh": ("gpu_mma", [
        "conv/conv_mma.cu T=__half MOMENTS=1",
        "conv/conv_mma.cu T=__half C=8 BIAS=0 ACTIVATION=relu",
        "conv/conv_mma.cu RESIDUAL=1", "conv/conv_mma.cu T=__nv_bfloat16 C=8 ACTIVATION=gelu",
        "conv/conv_mma.cu C=32 MOMENTS=1"]),
    "common/copy.cu": ("undo", [""]),
    "elementwise/dropout.cu": ("dropout", ["", "T=__half", "T=double"]),
    "optim/ema.cu": ("ema master", ["", "T=__half MASTER=1", "T=double"]),
    "pool/global_pool.cu": ("global_pool", ["SAVE=1", "T=__half SAVE=1", "T=double SAVE=1"]),
    "conv/im2col.cu": ("im2col conv2d", ["R=2 S=3 SH=3", "DH=2 SW=1", "R=3 S=2"]),
    "optim/loss_scale.cu": ("loss_scale", ["", "T=__half", "T=double"]),
    "pool/max_pool.cu": ("max_pool", ["SAVE=1 R=2 S=3", "T=__half SAVE=1 DH=2",
                                 "SAVE=1 R=3 S=2 SH=1"]),
    "matmul/gemm.cu": ("gemm", [
        "BM=64 LA=4 LB=4 LY=4 ACTIVATION=none O=float",
        "BM=64 LA=1 LB=1 LY=1 ACTIVATION=none O=float",
        "BM=32 LA=1 LB=1 LY=1 ACTIVATION=none O=float", "reduce/column_sums.cu V=1 O=float"]),
    "optim/muon.cu": ("muon", ["NESTEROV=1 MASTER=0", "T=__half NESTEROV=1 MASTER=1",
                         "T=double NESTEROV=0 MASTER=0"]),
    "optim/newton_schulz.cu": ("muon", ["", "T=__half", "T=double"]),
    "optim/optim.cuh": ("master loss_scale sgd optimizer", [
        "optim/sgd.cu MOMENTUM=0 MASTER=0", "optim/sgd.cu T=__half MOMENTUM=0 MASTER=1",
        "optim/loss_scale.cu"]),
    "shape/pad.cu": ("pad", ["MODE=0", "MODE=1", "MODE=2 T=__half", "MODE=3"]),
    "common/window.cuh": ("max_pool avg_pool im2col", [
        "pool/max_pool.cu SAVE=1 R=2 S=3", "pool/avg_pool.cu R=3 PT=0 PL=1",
        "conv/im2col.cu R=3 S=2"]),
    "common/pack.cuh": ("pack activation", [
        "common/pack.cuh", "elementwise/activation.cu ACTIVATION=relu",
        "elementwise/activation.cu T=__half ACTIVATION=relu"]),
    "common/philox.cuh": ("random dropout augment", [
        "common/philox.cuh", "elementwise/dropout.cu", "data/augment.cu"]),
    "common/rows.cuh": ("batch_norm_fused batch_norm bias_relu", [
        "norm/batch_norm.cu V=1 ACTIVATION=none", "norm/batch_norm.cu V=4 ACTIVATION=relu",
        "elementwise/bias_relu.cu V=4"]),
    "common/reduce.cuh": ("clip softmax_cross_entropy", [
        "optim/clip.cu", "loss/softmax_cross_entropy.cu WARPS=1",
        "loss/softmax_cross_entropy.cu WARPS=8"]),
    "data/shuffle.cu": ("loader", [""]),
    "optim/sgd.cu": ("sgd master optimizer", ["MOMENTUM=0 MASTER=0", "T=__half NESTEROV=1 MASTER=0",
                                      "T=__half MOMENTUM=1 NESTEROV=0 MASTER=1"]),
    "loss/softmax_cross_entropy.cu": ("softmax_cross_entropy", ["WARPS=1", "WARPS=8",
                                                           "T=__half WARPS=1"]),
}

SURVIVED, KILLED, INVALID, SAME = "survived", "killed", "did not compile", "same code"
STATUSES = [SURVIVED, KILLED, INVALID, SAME]
Configuration = tuple[str, frozenset[str]]  # kernel file, {"T=float", "R=3", ...}


class Test(NamedTuple):
    """One pytest item, and what it takes on the kernels as they are."""

    item: pytest.Item
    seconds: float                # of CPU
    needs: frozenset[Configuration]


# -- a process of one's own ------------------------------------------------------------------


class Fork:
    """work(say) in a copy of this process, without a terminal; its return value is the status.

    ``said`` is what it wrote. ``status`` is -1 where a signal ended it, or our patience did.
    """

    def __init__(self, work: Callable[[Callable[[str], None]], int], seconds: float):
        self.started, self.seconds, self.said, self.cpu = time.monotonic(), seconds, b"", 0.0
        self.pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writing)
            return
        import resource  # there is none on Windows, where pytest reads this file, too
        status = 70
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            status = work(lambda text: _write(writing, text.encode()))
        except BaseException:
            _write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def ended(self) -> bool:
        """Whether it has; waits a moment for news."""
        if select.select([self.pipe], [], [], 0.02)[0]:
            news = os.read(self.pipe, 1 << 16)
            self.said += news
            if news:
                return False
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() < self.started + self.seconds:
                return False
            os.killpg(self.pid, signal.SIGKILL)
            pid, status, usage = os.wait4(self.pid, 0)
        os.close(self.pipe)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        return True


def _write(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data):]


# -- tests, and what they need ---------------------------------------------------------------


def failure(item: pytest.Item, then: pytest.Item | None) -> str:
    """Run one test; what went wrong in it, or "" """
    reports = runtestprotocol(item, log=False, nextitem=then)
    return "\n".join(r.longreprtext or "failed" for r in reports if r.failed)


def following(items: list) -> Iterator[tuple[Any, Any]]:
    """Each with the next; pytest tears down what that one does not share."""
    return zip(items, [*items[1:], None], strict=True)


def measured(items: list[pytest.Item]) -> list[Test]:
    """The tests that launch kernels, as they run on the unchanged ones."""
    plain, read, asked = kernels.kernel, kernels.source, set()

    def source(file):
        if str(file).endswith(".cuh"):  # for a kernel of the test's own
            asked.add((str(file), frozenset()))
        return read(file)

    @functools.wraps(plain)
    def kernel(file, function, **constants):
        typed = constants
        if "T" in constants:
            T = kernels.float_dtype(constants["T"])
            typed = constants | {"T": T, "A": kernels.accumulator(T)}
        words = (word.removeprefix("-DCFG_") for word in kernels.defines(**typed))
        asked.add((str(file), frozenset(words)))
        return plain(file, function, **constants)

    def work(say):
        kernels.kernel, kernels.source = kernel, source
        for number, (item, then) in enumerate(following(items)):
            asked.clear()
            start = time.process_time()
            if wrong := failure(item, then):
                say(f"{wrong}\n{item.nodeid} fails without any mutant")
                return 1
            needs = [[file, sorted(words)] for file, words in asked]
            say(json.dumps([number, time.process_time() - start, needs]) + "\n")
        return 0

    fork = Fork(work, 1200)
    while not fork.ended():
        pass
    if fork.status:
        raise SystemExit(fork.said.decode())
    found = map(json.loads, fork.said.decode().splitlines())
    return [Test(items[number], seconds, frozenset((f, frozenset(w)) for f, w in needs))
            for number, seconds, needs in found if needs]


def chosen(source: str, tests: list[Test]) -> list[Test]:
    """Those that need no configurations but the source's few; quick ones first."""
    known = {c for t in tests for c in t.needs}
    ours = set()
    for named in CASES[source][1]:
        file = re.match(r"(\w+/\w+\.cuh?)?", named)[0] or source
        wanted = {"T": "float", "I": "int"} | dict(re.findall(r"(\w+)=(long long|\S+)", named))
        match = []
        for kernel, words in known:
            constants = dict(word.split("=") for word in words)
            if kernel == file and all(constants.get(k, v) == v for k, v in wanted.items()):
                match.append((kernel, words))
        if not match:
            listed = "\n".join(" ".join(sorted(c[1])) for c in known if c[0] == file)
            raise SystemExit(f"{source}: {named!r} is no configuration, wanted one of:\n{listed}")
        ours.update(match)
    if len(ours) > CONFIGURATIONS:
        listed = "\n".join(f"{file} {' '.join(sorted(words))}" for file, words in ours)
        raise SystemExit(f"{source}: more than {CONFIGURATIONS} configurations:\n{listed}")
    found = sorted((t for t in tests if t.needs <= ours), key=lambda t: (len(t.needs), t.seconds))
    if not found:
        raise SystemExit(f"{source}: each of its tests needs other configurations as well")
    return found


# -- one mutant ------------------------------------------------------------------------------


def trial(source: str, text: str, tests: list[Test], folder: pathlib.Path, say) -> int:
    """Status of the changed text of a source, found in this process, which it spoils."""
    originals = {c: kernels.source(c[0]) for t in tests for c in t.needs}
    changed = folder / "kernels"
    shutil.copytree(kernels.HERE.parent / "kernels", changed)
    (changed / source).write_text(text)
    for compiled in hostcuda.CACHE.glob("*.o"):  # the run-time system, the same for all kernels
        (folder / compiled.name).symlink_to(compiled)
    hostcuda.CACHE, kernels.FOLDERS = folder, (changed,)
    kernels.source.cache_clear()
    kernels.kernel.cache_clear()
    compile = hostcuda.cxx

    def cxx(*arguments):
        try:
            return compile(*arguments)
        except RuntimeError as error:
            say(str(error))
            os._exit(STATUSES.index(INVALID))

    hostcuda.cxx = cxx
    for test, then in following(tests):
        signal.setitimer(signal.ITIMER_PROF, PATIENCE + 10 * test.seconds)
        say(test.item.nodeid + "\n")
        if wrong := failure(test.item, then and then.item):
            say(wrong)
            return STATUSES.index(KILLED)
    signal.setitimer(signal.ITIMER_PROF, 0)
    same = all(assembly(was, words) == assembly(kernels.source(file), words)
               for (file, words), was in originals.items())
    return STATUSES.index(SAME if same else SURVIVED)


def assembly(text: str, words: frozenset[str]) -> str:
    """Of the code alone: no checks, no line numbers."""
    command = [hostcuda.compiler(), "-std=c++17", "-O2", "-ffp-contract=off", "-w",
               "-fkeep-inline-functions",
               f"-I{hostcuda.HERE}", "-include", str(hostcuda.HERE / "hostcuda.h"),
               *(f"-DCFG_{word}" for word in words), "-x", "c++", "-S", "-o", "-", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


# -- all mutants -----------------------------------------------------------------------------


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


class Journal:
    """What is known of each mutant: one line of JSON in a file, the last one counts."""

    def __init__(self, path: pathlib.Path, fresh: bool):
        self.path, self.known = path, {}
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry

    def key(self, source: str, text: str, m: Mutant) -> str:
        return digest(source.encode(), code(text).encode(), f"{m.token} {m.old} {m.new}".encode())

    def get(self, source: str, text: str, m: Mutant, tests: str | None = None) -> dict | None:
        """The entry; of one that other tests did not kill, None."""
        entry = self.known.get(self.key(source, text, m))
        if entry and tests and entry["status"] in (SURVIVED, SAME) and entry["tests"] != tests:
            return None
        return entry

    def add(self, source: str, text: str, m: Mutant, **found: Any) -> None:
        entry = {"key": self.key(source, text, m), "source": source, "shown": m.shown} | found
        self.known[entry["key"]] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def fingerprint(source: str) -> str:
    """Of the tests of a source, and of the configurations they may use."""
    files = [HERE / f"test_{name}.py" for name in CASES[source][0].split()]
    return digest(repr(CASES[source]).encode(), *(f.read_bytes() for f in files))


def sample(source: str, found: list[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """No more than ``count`` of them, drawn at random, in their order; None: all."""
    if count is None or count >= len(found):
        return found
    drawn = random.Random(f"{seed} {source}").sample(range(len(found)), count)
    return [found[i] for i in sorted(drawn)]


class Runner:
    """A pytest plugin: instead of running the tests once, run some of them for each mutant."""

    def __init__(self, sources: list[str], jobs: int, journal: Journal,
                 count: int | None = None, seed: int = 0):
        self.sources, self.jobs, self.journal = sources, jobs, journal
        self.count, self.seed = count, seed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        with contextlib.suppress(ImportError):  # seconds: here once, else for each mutant
            importlib.import_module("torch")
        for source in self.sources:
            text = (ROOT / "kernels" / source).read_text()
            tests = fingerprint(source)
            asked = [m for m in sample(source, mutants(text, SEED), self.count, self.seed)
                     if not self.journal.get(source, text, m, tests)]
            if not asked:
                continue
            names = {f"test_{name}.py" for name in CASES[source][0].split()}
            items = [i for i in session.items if i.path.name in names and "[cpu" not in i.name
                     and {"cp", "xp", "device"} & set(i.fixturenames)]
            selected = chosen(source, measured(items))
            start = time.monotonic()
            found = self.run(source, text, asked, selected, tests)
            print(f"{source}: {len(asked)} mutants, {len(selected)} tests, "
                  + ", ".join(f"{found[s]} {s}" for s in STATUSES if found[s])
                  + f", {time.monotonic() - start:.0f} s", flush=True)
        return True

    def run(self, source: str, text: str, asked: list[Mutant], tests: list[Test],
            tested: str) -> collections.Counter:
        found: collections.Counter = collections.Counter()
        killers: collections.Counter = collections.Counter()
        names = {t.item.nodeid for t in tests}
        waiting, running = collections.deque([None, *asked]), {}
        with tempfile.TemporaryDirectory(prefix="gpuconv-mutants-") as scratch:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    m = waiting.popleft()
                    folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
                    order = sorted(tests, key=lambda t: -killers[t.item.nodeid])
                    work = functools.partial(trial, source, m.of(text) if m else text, order,
                                             folder)
                    running[Fork(work, WAIT)] = m, folder
                for fork in [f for f in running if f.ended()]:
                    m, folder = running.pop(fork)
                    shutil.rmtree(folder)
                    said = fork.said.decode(errors="replace")
                    if fork.status > len(STATUSES) or not m and STATUSES[fork.status] != SAME:
                        raise SystemExit(f"{source}: {m and m.shown}: {fork.status}\n{said}")
                    if not m:
                        continue
                    status = STATUSES[fork.status] if fork.status >= 0 else KILLED
                    found[status] += 1
                    ran = [n for n in said.splitlines() if n in names]
                    killers.update(ran[-1:] if status == KILLED else [])
                    self.journal.add(source, text, m, status=status, tests=tested,
                                     seconds=round(fork.cpu, 2), last=said[-300:])
        return found


# -- the table -------------------------------------------------------------------------------


def report(journal: Journal, sources: list[str]) -> tuple[str, float, int]:
    """Markdown; the share of killed mutants; and how many survivors nobody has explained."""
    reasons = _reasons()
    rows, listed, unexplained = [], [], 0
    total: collections.Counter = collections.Counter()
    seconds = 0.0
    for source in sources:
        text, count = (ROOT / "kernels" / source).read_text(), collections.Counter()
        survivors = []
        for m in mutants(text, SEED):
            entry = journal.get(source, text, m)
            if not entry:
                count["not run"] += 1
                continue
            count[entry["status"]] += 1
            seconds += entry["seconds"]
            if entry["status"] == SURVIVED:
                reason = reasons.get(source, {}).get(m.shown, "")
                unexplained += not reason
                survivors.append(f"* {m.line}: `{m.shown}` {reason or '(no reason known)'}")
        total += count
        rows.append((source, count))
        if survivors:
            listed += ["", f"### {source}", "", *survivors]
    names = [KILLED, SURVIVED, SAME, INVALID] + ["not run"] * bool(total["not run"])

    def row(name: str, count: collections.Counter) -> str:
        numbers = [sum(count.values()), *(count[n] for n in names)]
        return f"| {name} | {' | '.join(map(str, numbers))} | {share(count):.1%} |"

    lines = [
        f"# Mutation run, {datetime.date.today()}", "",
        "`python tests/mutate.py`: each kernel with one token changed, under the tests of its op;",
        f"in a few configurations of its kernels (CASES), seed {SEED}. Machine: "
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU (the CUDA runs on the CPU). "
        f"CPU time in all: {seconds / 60:.0f} minutes.", "",
        "*Killed* is of all mutants that compile, *same code* included: those differ in the source",
        "alone, the compiler makes the same instructions of both.", "",
        *["*Not run*: of these sources only some mutants were drawn (`--sample N`, seed 0).", ""]
        * bool(total["not run"]),
        f"| source | mutants | {' | '.join(names)} | share killed |",
        "|---|" + "--:|" * (len(names) + 2),
        *(row(*r) for r in rows), row("**all**", total), "",
        "## Survivors", "", "Line of the source, the change in it as `{was => became}`, and why no "
        "test fails.", *listed]
    return "\n".join(lines) + "\n", share(total), unexplained


def stale() -> list[tuple[str, str]]:
    """Reasons for mutants that are no longer."""
    old = []
    for source, reasons in _reasons().items():
        known = {m.shown for m in mutants((ROOT / "kernels" / source).read_text(), SEED)}
        old += [(source, shown) for shown in reasons if shown not in known]
    return old


def _reasons() -> dict[str, dict[str, str]]:
    return tomllib.loads(REASONS.read_text()) if REASONS.exists() else {}


def share(count: collections.Counter) -> float:
    return count[KILLED] / max(1, count[KILLED] + count[SURVIVED] + count[SAME])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of a source")
    parser.add_argument("--seed", type=int, default=0, help="which those are; default 0")
    parser.add_argument("--fresh", action="store_true", help="ask all anew")
    parser.add_argument("--journal", type=pathlib.Path, default=JOURNAL)
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="write it, run nothing")
    options = parser.parse_args()
    unknown = set(options.source) - set(CASES)
    if unknown:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(CASES)}")
    sources = options.source or list(CASES)
    journal = Journal(options.journal, options.fresh)
    path = options.report
    if not path:
        files = sorted({str(HERE / f"test_{name}.py") for s in sources
                        for name in CASES[s][0].split()})
        runner = Runner(sources, options.jobs, journal, options.sample, options.seed)
        pytest.main(["-q", "-s", "--no-header", "-p", "no:cacheprovider", "--rootdir", str(ROOT),
                     *files], plugins=[runner])
        if not options.source and options.sample is None:
            path = ROOT / "bench" / "results" / f"mutations-{datetime.date.today()}.md"
    text, killed, unexplained = report(journal, sources)
    for source, shown in stale():
        print(f"mutants.toml: {source} has no {shown!r}")
    if path:
        path.write_text(text)
    else:
        print(text)
    print(f"{killed:.1%} killed, {unexplained} survivors without a reason")
    return 0 if killed >= 0.9 and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main())
