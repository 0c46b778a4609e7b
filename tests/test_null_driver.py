"""gpuconv on the real CuPy, over a device that computes nothing: see nulldriver/__init__.py."""

import json
import os
import pathlib
import re
import subprocess
import sys

import nulldriver
import nvrtc
import pytest

from gpuconv import backend, kernels
from gpuconv.train import step as steps
from hostcuda import fake_cupy, launches

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    bool(why := nulldriver.missing() or nvrtc.missing()), reason=str(why))


def run(part, folder=None):
    """A part in a process of its own: what it found, what was captured, what was refused."""
    rooms = os.pathsep.join(str(ROOT / room) for room in ("", "tests", "bench"))
    done = subprocess.run([sys.executable, "-m", "nulldriver", part], capture_output=True,
                          text=True, cwd=folder,
                          env=os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and not done.stderr, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return told["found"], told["graphs"], told["refused"]


REFUSED = {
    "launch": "", "captured launch": "", "captured fill": "",
    "long for int": "f is sent [8, 8] bytes, and reads [8, 4]",
    "block": "f: no device takes this launch", "grid": "f: no device takes this launch",
    "shared memory": "f: no device takes this launch",
    "opt-in": "more shared memory than a block can have",
    "copy": "a copy of 1024 bytes leaves its block", "fill": "a memset of 8 bytes leaves its block",
    "free": "free of what is no block", "unwritten": "runtime.memcpy2D is not written",
    "wait": "streamSynchronize while a stream captures",
    "wait for all": "deviceSynchronize while a stream captures",
    "look": "the current stream is capturing, so D2H transfers are disallowed",  # CuPy's words
    "from the host": "the current stream is capturing, so H2D transfers are disallowed",
    "module": "moduleLoadData while a stream captures",
    "other stream": "f on another stream than the one that captures"}


def test_what_the_device_refuses():
    found, graphs, refused = run("refusals")
    assert found.keys() == REFUSED.keys()
    assert [name for name, said in found.items()
            if REFUSED[name] not in said or bool(said) != bool(REFUSED[name])] == []
    assert graphs[:2] == [["f"], ["memset"]] and not any(graphs[2:])
    for said in found.values():  # and nobody can swallow it
        assert said.partition("null driver: ")[2] in ["", *refused]


def test_a_cupy_that_it_does_not_know_is_told(monkeypatch):
    monkeypatch.setattr(nulldriver, "KNOWN", ("14.99",))
    assert re.fullmatch(r"CuPy [\d.]+: nulldriver knows 14.99", nulldriver.missing())


def test_training_is_captured_and_gives_its_memory_back():
    """Each optimiser in each dtype, without a warning; then predictions."""
    found, graphs, refused = run("training")
    assert refused == [] and len(found) == 9 and all(graphs)
    assert {run: after - before for run, (before, after, _) in found.items()} == dict.fromkeys(
        found, 0)
    # one for each size of a batch; Muon's second group ends on the way, and all begins anew
    assert {run: made for run, (_, _, made) in found.items()} == {
        run: 3 if run.startswith("muon") else 2 for run in found}


CUPYS = {"fill": "memset", "*": "cupy_multiply", "sum": "cupy_sum", "astype": "cupy_copy"}


@pytest.mark.skipif(backend._cupy is not fake_cupy, reason="looks into the stand-in's graphs")
def test_a_step_launches_what_the_stand_in_counts(cp, monkeypatch):
    """In the same order. CuPy's own operations are one launch each, under another name; CUB is off,
    with which a sum may be two.
    """
    from nulldriver.parts import FEW, STEPS, train
    made, capture = {}, steps.CapturedStep.capture

    def noted(self, n):
        capture(self, n)
        made[n] = [CUPYS.get(name, name) for name in launches(self.graphs[n])]

    monkeypatch.setattr(steps.CapturedStep, "capture", noted)
    monkeypatch.setattr(fake_cupy.RawModule, "mode", "fast")
    kernels.kernel.cache_clear()
    found, _, refused = run("launches")
    try:
        for kind, dtype in STEPS:
            train(kind, dtype, **FEW)
            real = found[f"{kind}, {dtype}"]
            assert [re.sub("__.*", "", name) for name in real] == made[FEW["batch_size"]]
    finally:
        kernels.kernel.cache_clear()
    assert refused == []


def test_a_start_is_quick():
    """CuPy compiles an empty program for each set of options, 20 ms: one for its own operations,
    one for all kernels of gpuconv. An operation with a number imports all of its sparse matrices,
    and SciPy's, 300 ms.
    """
    found, _, refused = run("start")
    assert refused == [] and found == dict(ours=[False, True], scipy=False)


def test_forecasts_of_memory_leave_nothing_behind():
    found, _, refused = run("memory")
    assert refused == []
    assert {name: len(set(bytes)) for name, bytes in found.items()} == dict(predict=1, explain=1)


def test_commands_run_to_their_end(tmp_path):
    found, graphs, refused = run("commands", tmp_path)
    assert refused == []
    assert {line: (status, said) for line, (status, _, said) in found.items()} == dict.fromkeys(
        found, (0, ""))
    told = {line.split()[0]: told for line, (_, told, _) in found.items()}
    assert "ready: a device that computes nothing" in told["info"]
    assert "left out" not in told["tune"] and "tensor cores" in told["tune"]
    assert len(graphs) == 3  # 250 and 6 images, 8 images


def test_the_cases_of_the_gpu_day_run_and_are_captured():
    found, _, _ = run("cases")
    assert found["refused"] == found["failed"] == []
    assert found["ran"]["float32"] == found["ran"]["float16"] > 40
    # a case of an optimiser copies its weights to the device
    assert {case.partition(" (")[0] for case in found["uncaptured"]} == {
        "sgd", "sgd momentum", "sgd nesterov", "adam", "adamw", "muon",
        "sgd, loss scale, master weights"}
