"""The power fails: a training process is killed, or cannot write, and goes on to the same bits."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cli_tools import ROOT, fails, gpuconv

import gpuconv as gpc
from gpuconv import runs, train

KILLS = 20
WHAT = ["train", "--data", "shapes", "--limit", 24, "--batch-size", 2, "--device", "cpu",
        "--model", "INPUT 32x32x3 CONV3-4/4 BN RELU DROPOUT0.2 FC 10"]
ALWAYS = ["--minutes", 1e-9]  # a checkpoint after each step: there is always one being written


def start(*arguments, **settings):
    """The process, not waited for."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    return subprocess.Popen([sys.executable, "-m", "gpuconv", *map(str, arguments)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment, **settings)


def bits(folder):
    """What must be the same in the end: weights and optimiser of newest and best, and metrics."""
    folder = runs.RunFolder(folder)
    states = [gpc.load(path)[0] for path in (train.newest(folder.checkpoints_folder),
                                             folder.best())]
    lines = [re.sub(r'"(images_per_second|seconds)": [^,}]*', "", line)
             for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [{name: a.tobytes() for name, a in state.items()} for state in states], lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: (its folder, epochs, seconds)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    done = gpuconv(*WHAT, *ALWAYS, "--epochs", 6, "--run", folder)
    assert done.returncode == 0, done.stderr
    return folder, 6, time.monotonic() - began


def test_killed_twenty_times(whole, tmp_path):
    """SIGKILL at random moments, in start, steps, tests and saves; no half file is ever read."""
    undisturbed, epochs, seconds = whole
    want, draw, kills, moments = bits(undisturbed), random.Random(7), 0, set()
    while kills < KILLS or len(moments) <= 5:
        folder = tmp_path / f"run-{kills}"
        begun = [*WHAT, *ALWAYS, "--epochs", epochs, "--run", folder]
        goes_on = ["train", *ALWAYS, "--resume", folder]
        while True:
            process = start(*(goes_on if (folder / "config.json").exists() else begun))
            more = kills < KILLS or len(moments) <= 5
            patience = draw.uniform(0.15, 0.6 + kills / KILLS) * seconds if more else 120
            try:
                out, err = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                found = train.checkpoints(folder / "checkpoints")
                moments.add(found[-1].name if found else None)
                for path in found:
                    gpc.load(path)  # whole, each of them
                continue
            assert process.returncode == 0, err
            break
        assert bits(folder) == want
        assert not list(folder.rglob(".*"))  # nothing temporary is left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_it_saved(whole, tmp_path, number):
    """Ctrl-C and SIGTERM: saved after the step, and the command to go on is printed."""
    undisturbed, epochs, _ = whole
    folder = tmp_path / "run"
    process = start(*WHAT, "--minutes", 60, "--epochs", epochs, "--run", folder,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    for line in process.stdout:
        if re.match(r" +1 ", line):  # the first epoch
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.fullmatch(rf"gpuconv: to go on: \S+ -m gpuconv train --resume {folder}", err.strip())
    saved = train.checkpoints(folder / "checkpoints")[-1]
    assert saved.name >= "step-00000012"
    assert runs.RunFolder(folder).status() == "can be resumed"
    done = gpuconv("train", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert bits(folder) == bits(undisturbed)


def limited():
    """Files of at most 20 kB: a checkpoint is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_file_that_cannot_grow(whole, tmp_path):
    """One line says what; what was saved before is whole, and goes on."""
    undisturbed, epochs, _ = whole
    folder = tmp_path / "run"
    begin_and_stop(folder, epochs)
    before = [path.read_bytes() for path in train.checkpoints(folder / "checkpoints")]
    process = start("train", "--resume", folder, *ALWAYS, preexec_fn=limited)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    hint, line = err.splitlines()
    assert "cannot write the checkpoint" in line and "the newest that is whole is" in line
    assert re.fullmatch(rf"gpuconv: to go on: \S+ -m gpuconv train --resume {folder}", hint)
    assert [path.read_bytes() for path in train.checkpoints(folder / "checkpoints")] == before
    done = gpuconv("train", "--resume", folder)
    assert done.returncode == 0 and bits(folder) == bits(undisturbed)


def begin_and_stop(folder, epochs):
    process = start(*WHAT, "--epochs", epochs, "--run", folder)
    for line in process.stdout:
        if re.match(r" +2 ", line):
            break
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def mounted(folder, *options):
    """Commands that are run where ``folder`` is a file system of its own, or skip."""
    script = f'mount -t tmpfs {" ".join(options)} tmpfs "$0" && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", script, str(folder)]
    if shutil.which("unshare") is None or subprocess.run(
            [*prefix, "true"], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    return prefix


def test_a_disk_that_is_full(whole, tmp_path):
    """A real one, of 150 kB: it fills up, the run ends with a sentence, and goes on elsewhere."""
    undisturbed, epochs, _ = whole
    disk, rescued = tmp_path / "disk", tmp_path / "rescued"
    disk.mkdir()
    command = f"{sys.executable} -m gpuconv {' '.join(map(repr, map(str, WHAT)))}"
    script = (f"{command} --epochs {epochs} --keep 9 --run {disk}/run; echo status $?; "
              f"cp -r {disk}/run {rescued}")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run([*mounted(disk, "-o", "size=150k"), "sh", "-c", script],
                          capture_output=True, text=True, env=environment, cwd=ROOT)
    assert "status 1" in done.stdout and "No space left on device" in done.stderr, done.stderr
    assert "cannot write the checkpoint" in done.stderr and "Traceback" not in done.stderr
    assert not list(rescued.rglob(".*"))
    assert len(train.checkpoints(rescued / "checkpoints")) >= 1
    done = gpuconv("train", "--resume", rescued)
    assert done.returncode == 0, done.stderr
    assert bits(rescued) == bits(undisturbed)


def test_a_folder_that_cannot_be_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run([*mounted(disk, "-o", "ro"), sys.executable, "-m", "gpuconv",
                           *map(str, WHAT), "--run", str(disk / "run")],
                          capture_output=True, text=True, env=environment, cwd=ROOT)
    line, = done.stderr.splitlines()
    assert done.returncode == 1 and "read-only file system" in line.lower()


def test_a_damaged_checkpoint_is_passed_over_in_one_line(whole, tmp_path):
    undisturbed, epochs, _ = whole
    folder = tmp_path / "run"
    begin_and_stop(folder, epochs)
    first, last = train.checkpoints(folder / "checkpoints")
    last.write_bytes(last.read_bytes()[:5000])
    done = gpuconv("train", "--resume", folder)
    line, = done.stderr.splitlines()
    assert done.returncode == 0 and line.startswith(f"gpuconv: warning: {last}: damaged")
    assert line.endswith(f"going on from {first.name}")
    assert bits(folder) == bits(undisturbed)


def test_what_cannot_be_resumed(whole, tmp_path):
    assert "is no folder of a run" in fails(1, "train", "--resume", tmp_path)
    line = fails(1, "train", "--resume", whole[0], "--lr", 0.2, "--no-augment", "--keep", 3)
    assert line.endswith("was told: --lr, --no-augment cannot be changed")


def test_a_run_that_was_killed_before_its_first_checkpoint(whole, tmp_path):
    """It cannot be begun twice; --resume starts it again, to the same bits."""
    undisturbed, epochs, _ = whole
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(undisturbed / "config.json", folder)
    (folder / "metrics.jsonl").write_text("")
    line = fails(1, *WHAT, "--run", folder)
    assert line.endswith(f" -m gpuconv train --resume {folder}")
    line = fails(1, "evaluate", folder)
    assert re.search(rf"no checkpoint; to start the run again: \S+ -m gpuconv train --resume "
                     rf"{folder}$", line)
    done = gpuconv("train", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (f"gpuconv: warning: {folder}: the run ended before its first "
                           "checkpoint, so it starts again\n")
    assert bits(folder) == bits(undisturbed)
