"""How tests run gpuconv as its users do: a process, its output, its exit status."""

import functools
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = "train --data shapes --model simple_convnet --limit 40 --batch-size 20 --device cpu".split()


def gpuconv(*arguments, folder=ROOT, **settings):
    """Run it in a pipe, with these environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run([sys.executable, "-m", "gpuconv", *map(str, arguments)],
                          capture_output=True, text=True, timeout=120, cwd=folder,
                          env=environment)


def fails(status, *arguments, **settings):
    """Its one line on stderr."""
    done = gpuconv(*arguments, **settings)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    line, = done.stderr.splitlines()
    assert line.startswith("gpuconv: error: ")
    return line


def in_a_terminal(*arguments, interrupt_at=None, width=100, folder=ROOT):
    """(output, exit status) with a pseudo-terminal as standard output."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TERM="xterm-256color", COLUMNS=str(width),
                       LINES="40", OMP_NUM_THREADS="1")
    process = subprocess.Popen([sys.executable, "-m", "gpuconv", *arguments], stdin=follower,
                               stdout=follower, stderr=follower, env=environment, cwd=folder,
                               # a test run in the background ignores Ctrl-C, and so would this
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.close(follower)
    seen, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([leader], [], [], 1)[0]:
            try:
                seen += os.read(leader, 1 << 16)
            except OSError:  # EIO: the other side has closed
                break
        if interrupt_at and interrupt_at in seen:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(leader)
    return seen.decode(), process.wait(timeout=10)


@functools.cache
def tiny_run():
    """The folder of a run, for all tests together: one epoch of 60 drawn images."""
    tiny_run.parent = tempfile.TemporaryDirectory()  # as long as the tests run
    folder = pathlib.Path(tiny_run.parent.name, "runs", "tiny")
    folder.parent.mkdir()
    done = gpuconv(*"train --data shapes --model simple_convnet --limit 60 --batch-size 20".split(),
                   *"--epochs 1 --device cpu --run".split(), folder, folder=tiny_run.parent.name)
    assert done.returncode == 0, done.stderr
    return folder
