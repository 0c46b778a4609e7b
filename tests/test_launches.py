"""Every launch fits every architecture that its kernel is for; and each check of that can fail."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import launches
import numpy as np
import nvrtc
import pytest
from kernel_cases import parallel
from launches import Launch
from nvrtc_cases import CASES, options

from check import DTYPES
from gpuconv import backend, kernels
from hostcuda import fake_cupy

compiles = pytest.mark.skipif(bool(nvrtc.missing()), reason=str(nvrtc.missing()))
SMALL = nvrtc.Needs(registers=32, shared=0, stack=0, stores=0, loads=0, threads=1024)
LAUNCH = Launch("op.cu", "f", (), (100,), (256,))


@pytest.fixture(scope="module")
def driven():
    return launches.drive()


# -- what is launched --------------------------------------------------------------------


@pytest.mark.parametrize("file", nvrtc.FILES)
def test_the_drive_launches_every_kernel_in_every_dtype(driven, file):
    text = kernels.source(file)
    mine = [launch for launch in driven if launch.file == file]
    wanted = {kernels.C_TYPES[T] for T in DTYPES if T in nvrtc.dtypes(file)}
    for function, parameters in kernels.signatures(text).items():
        if not {kind.rstrip("*") for kind, _ in parameters} & {"T", "A"}:
            continue  # it is the same for all
        seen = values([launch for launch in mine if launch.function == function], "T")
        assert wanted & {"float", "double"} <= seen, f"{function}: {seen}"  # all of clip_norm's
    seen = {name: values(mine, name) for name in re.findall(r"\bCFG_(\w+)", text)}
    assert all(seen.values()) and seen.get("T", wanted) == wanted  # one without floats is one
    assert seen.get("I", {"int", "long long"}) == {"int", "long long"}


def values(listed, name):
    """What launches give for one constant."""
    return {o.split("=")[1] for launch in listed for o in launch.options
            if o.startswith(f"-DCFG_{name}=")}


def test_the_drive_is_the_same_each_time_and_leaves_everything_as_it_was(driven):
    def state():
        return backend._cupy, fake_cupy.RawModule, dict(backend._words), kernels.INT_ITEMS

    before = state()
    assert launches.drive() == driven
    assert state() == before and kernels.kernel.cache_info().currsize == 0


def test_records_and_runs(cp, tmp_path):
    x, y = cp.ones(10, "float32"), cp.empty(10, "float32")
    with launches.recording(cp) as noted:
        launch = kernels.kernel("elementwise/activation.cu", "activation_forward", T="float32",
                                I=kernels.index(x), ACTIVATION="relu")
        launch(10, x, y, 10)
        launch(10, x, y, 10, block=32)
    assert y.get().tolist() == [1] * 10
    options = "-DCFG_A=float", "-DCFG_ACTIVATION=relu", "-DCFG_I=int", "-DCFG_T=float"
    want = {Launch("elementwise/activation.cu", "activation_forward", options, (1,), (block,))
            for block in (32, 256)}
    assert noted == want
    launches.write(noted, tmp_path / "x.json.main")
    assert launches.read(tmp_path / "x.json") == want


def test_records_shared_memory_and_its_opt_in():
    noted = set()
    kernel = launches.Kernel(noted, "op.cu", "f", (), None)
    assert kernel.max_dynamic_shared_size_bytes == 48 << 10
    kernel((1,), (32,), [], shared_mem=10)
    kernel.max_dynamic_shared_size_bytes = 64 << 10
    kernel((1, 2), (32,), [], shared_mem=60 << 10)
    assert noted == {Launch("op.cu", "f", (), (1,), (32,), 10, 0),
                     Launch("op.cu", "f", (), (1, 2), (32,), 60 << 10, 64 << 10)}


# -- feasibility -------------------------------------------------------------------------


def test_every_architecture_has_limits():
    assert set(launches.LIMITS) == set(nvrtc.ARCHS)


def test_the_largest_launch_of_all_is_no_larger_than_a_grid(cp):
    noted = set()
    kernel = launches.Kernel(noted, "op.cu", "f", (), None)
    kernels.launch(lambda device: kernel, "f", [("x", np.dtype("float32"), True)], 2**50,
                   cp.ones(1, "float32"))
    assert noted == {Launch("op.cu", "f", (), (kernels.MAX_BLOCKS,), (kernels.BLOCK,))}
    assert not said(dict(grid=(kernels.MAX_BLOCKS,), block=(kernels.BLOCK,)), 75)


@pytest.mark.parametrize("arch", nvrtc.ARCHS)
@pytest.mark.parametrize("change", [
    {}, dict(grid=(2**31 - 1, 65535, 65535)), dict(block=(1024,)), dict(block=(2, 8, 64)),
    dict(registers=64, block=(1024,)), dict(registers=128, block=(512,)),
    dict(registers=255, block=(256,)), dict(registers=168, block=(384,)),
    dict(threads=256), dict(shared=48 << 10), dict(dynamic=48 << 10),
    dict(shared=16 << 10, dynamic=32 << 10), dict(dynamic=64 << 10, opt_in=64 << 10),
    dict(dynamic=1, opt_in=64 << 10),
], ids=str)
def test_runs_at_its_limits(change, arch):
    assert not said(change, arch)


@pytest.mark.parametrize("change, message", [
    (dict(grid=(2**31,)), "a grid of 2147483648 blocks along x, wanted 1 .. 2147483647"),
    (dict(grid=(1, 65536)), "a grid of 65536 blocks along y, wanted 1 .. 65535"),
    (dict(grid=(1, 1, 65536)), "a grid of 65536 blocks along z, wanted 1 .. 65535"),
    (dict(grid=(0,)), "a grid of 0 blocks along x, wanted 1 .. 2147483647"),
    (dict(block=(0,)), "a block of 0 threads along x, wanted 1 .. 1024"),
    (dict(block=(1, 1, 65)), "a block of 65 threads along z, wanted 1 .. 64"),
    (dict(block=(32, 33)), "a block of 1056 threads, at most 1024"),
    (dict(threads=128), "a block of 256 threads, its launch bounds are 128"),
    (dict(registers=65, block=(1024,)),
     "65 registers for 1024 threads: the register file has room for 896"),
    (dict(registers=255, block=(257,)),
     "255 registers for 257 threads: the register file has room for 256"),
    (dict(registers=169, block=(384,)),
     "169 registers for 384 threads: the register file has room for 256"),
    (dict(shared=49153), "49153 bytes of static shared memory, at most 49152"),
    (dict(dynamic=49153), "49153 bytes of dynamic shared memory, 49152 allowed"),
    (dict(shared=4, dynamic=49152), "49152 bytes of dynamic shared memory, 49148 allowed"),
    (dict(dynamic=52 << 10, opt_in=50 << 10),
     "53248 bytes of dynamic shared memory, 51200 allowed"),
    (dict(opt_in=228 << 10), "233472 bytes of shared memory, sm_90 has 232448 for a block"),
    (dict(shared=1, opt_in=227 << 10),
     "232449 bytes of shared memory, sm_90 has 232448 for a block"),
], ids=str)
def test_what_is_refused(change, message):
    assert message in said(change, 90)


@pytest.mark.parametrize("arch, kilobytes", [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227),
                                             (100, 227), (120, 99)])
def test_shared_memory_of_a_block_by_architecture(arch, kilobytes):
    size = kilobytes << 10
    assert not said(dict(dynamic=size, opt_in=size), arch)
    assert len(said(dict(dynamic=size, opt_in=size + 1), arch)) == 1


def said(change, arch):
    """The problems of LAUNCH and SMALL with these fields changed."""
    names = {f.name for f in dataclasses.fields(Launch)}
    launch = dataclasses.replace(LAUNCH, **{k: v for k, v in change.items() if k in names})
    needs = dataclasses.replace(SMALL, **{k: v for k, v in change.items() if k not in names})
    return list(launches.problems(launch, needs, arch))


@compiles
def test_a_kernel_that_is_launched_too_wide_is_found(tmp_path, monkeypatch):
    """From the source to the sentence, through the real compiler."""
    monkeypatch.setattr(nvrtc, "CACHE", tmp_path)
    file = tmp_path / "op.cu"
    file.write_text('extern "C" __global__ void __launch_bounds__(64) f(int* x) { x[0] = 1; }\n')
    noted = {Launch(str(file), "f", (), (1,), (threads,)) for threads in (64, 65)}
    monkeypatch.setattr(nvrtc, "archs", lambda file: (80, 90))
    found = nvrtc.needs_of(launches.jobs(noted))
    assert launches.all_problems(noted, found) == {
        f"f of op.cu on sm_{arch}: a block of 65 threads, its launch bounds are 64"
        for arch in (80, 90)}


# -- all of it ---------------------------------------------------------------------------


@compiles
def test_one_configuration_of_each_file_compiles_and_fits_on_every_architecture(driven):
    """The others in the slow test."""
    held(driven, nvrtc.needs_of(launches.sample(driven)))


def held(noted, found):
    """Assert that all launches of what was compiled fit, without a spill or a warning."""
    assert not launches.all_problems(noted, found)
    assert not list(nvrtc.complaints(found))


@pytest.fixture(scope="module")
def everything(driven, tmp_path_factory):
    """The drive, and what the ordinary tests launch, in a process of their own."""
    path = tmp_path_factory.mktemp("launches") / "all.json"
    root = pathlib.Path(nvrtc.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "launches", *parallel(), "--launches", path,
         "tests"],
        capture_output=True, text=True, cwd=root, env=os.environ | {
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])})
    assert done.returncode in (0, 1), done.stdout[-4000:]  # 1: a test failed, and is red elsewhere
    return driven | launches.read(path)


@pytest.mark.slow
@compiles
def test_everything_compiles_and_fits(everything):
    """CASES in every dtype on every device, with the longer index and whatever else the tests
    launch on one of them each, in turns."""
    def cases(index):
        return [(file, options(file, case, T, index)) for file, listed in CASES.items()
                for case in listed for T in DTYPES if T in nvrtc.dtypes(file)]

    found = nvrtc.needs_of([nvrtc.Job(*case, arch) for case in cases("int32")
                            for arch in nvrtc.archs(case[0])]
                           + launches.in_turns(cases("int64"))
                           + launches.in_turns((one.file, one.options) for one in everything))
    print(*nvrtc.table(found), sep="\n")  # seen with -s, or when it fails
    held(everything, found)
    used = {(job.file, name) for job, needs in found.items() for name, n in needs.items()
            if name and n.stack}
    excused = {(file, name) for file in nvrtc.FILES for name in nvrtc.excused(file)}
    assert excused <= used, "a header excuses a stack that there is not"
