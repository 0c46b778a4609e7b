"""One process at a time trains in a run's folder, and no end of a process leaves it locked."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest
from cli_tools import fails
from odd_files import make_odd
from test_runs import config

from gpuconv import runs, train
from gpuconv.runs import RunFolder, lock, locked
from gpuconv.runs.lock import in_use

HOLD = "from gpuconv.runs import locked; import os, signal, sys; with_ = locked(sys.argv[1])\n" \
       "with_.__enter__(); print('locked', flush=True); "


def holder(folder, more="sys.stdin.read()"):
    """A process that has the lock, and then does more."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", HOLD + more, folder],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def refused(folder, match="is in use by"):
    with pytest.raises(RuntimeError, match=match), locked(folder):
        pass


def free(folder):
    """It can be had, and leaves nothing."""
    with locked(folder):
        assert os.listdir(folder) == ["run.lock"]
    assert os.listdir(folder) == []


# -- who gets it ---------------------------------------------------------------------------


def test_another_process_is_named(tmp_path):
    with holder(tmp_path) as process:
        refused(tmp_path, rf"^{tmp_path} is in use by process {process.pid} on {platform.node()}, "
                          r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: one process trains a run")
        process.communicate("")
    free(tmp_path)


def test_a_killed_process_holds_nothing(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid
    free(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_child_holds_nothing(tmp_path):
    """It outlives its parent, which is killed; nor does it release what its parent holds."""
    more = """
if not os.fork():
    try:
        with_.__exit__(None, None, None)
        print("left", flush=True)
    except OSError as error:
        print(error, flush=True)
sys.stdin.read()
"""
    with holder(tmp_path, more) as process:
        assert process.stdout.readline() == "left\n"
        refused(tmp_path)
        process.kill()
        process.wait()
        free(tmp_path)  # the child still waits for its input


def test_one_process_holds_it_once(tmp_path):
    """Two threads, or the same cell of a notebook twice."""
    with locked(tmp_path):
        refused(tmp_path, f"by process {os.getpid()}, this one, on")
        seen = []
        thread = threading.Thread(target=lambda: seen.append(pytest.raises(
            RuntimeError, locked(tmp_path).__enter__)))
        thread.start()
        thread.join()
        assert len(seen) == 1
    free(tmp_path)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_it_ends_with_the_block(tmp_path, error):
    with pytest.raises(error), locked(tmp_path):
        raise error
    assert os.listdir(tmp_path) == []
    free(tmp_path)


def test_a_file_that_is_deleted_before_it_is_locked(tmp_path, monkeypatch):
    """Its holder ends just then, and another one has already come."""
    first, second, real = locked(tmp_path), locked(tmp_path), os.open
    first.__enter__()

    def late(path, *rest):
        descriptor = real(path, *rest)
        monkeypatch.undo()
        first.__exit__(None, None, None)
        second.__enter__()
        return descriptor

    monkeypatch.setattr(os, "open", late)
    refused(tmp_path)
    second.__exit__(None, None, None)
    free(tmp_path)


def test_many_at_once(tmp_path):
    """At no time have two the lock, although each deletes its file."""
    folder, inside, taken = tmp_path / "run", tmp_path / "inside", []
    folder.mkdir()

    def often():
        for _ in range(150):
            try:
                with locked(folder):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails for a second one
                    taken.append(threading.get_ident())
                    inside.unlink()
            except RuntimeError:
                continue

    failures = []

    def work():
        try:
            often()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and taken and os.listdir(folder) == []


# -- what a crash leaves -------------------------------------------------------------------


def left(folder, **changes):
    (folder / "run.lock").write_text(json.dumps(lock._this_process() | {"pid": 7} | changes))


def test_a_lock_of_another_machine_stays_until_it_is_deleted(tmp_path):
    """Its file system may keep locks to each machine."""
    left(tmp_path, host="elsewhere", boot="of elsewhere", since="yesterday")
    for _ in range(2):
        refused(tmp_path, rf"^{tmp_path} is in use by process 7 on elsewhere, since yesterday: if "
                          rf"that process has ended, delete {tmp_path / 'run.lock'}$")
    (tmp_path / "run.lock").unlink()
    free(tmp_path)


@pytest.mark.parametrize("changes", [
    pytest.param({}, id="the-same-number-again"), pytest.param({"boot": "before"}, id="reboot"),
    pytest.param({"host": "another-container"}, id="another-container")])
def test_a_stale_lock_of_this_machine_is_taken_over(tmp_path, changes):
    left(tmp_path, **changes)
    free(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 5000, "\0\xff", '{"pid": 1}'])
def test_a_text_that_makes_no_sense(tmp_path, text):
    (tmp_path / "run.lock").write_text(text, encoding="latin-1")
    free(tmp_path)
    with locked(tmp_path):
        (tmp_path / "run.lock").write_text(text, encoding="latin-1")
        refused(tmp_path, "is in use by another process")


def test_a_new_file_in_its_place_is_left_alone(tmp_path):
    with locked(tmp_path):
        (tmp_path / "run.lock").unlink()  # by hand
        with locked(tmp_path):
            pass
        left(tmp_path)
    assert os.listdir(tmp_path) == ["run.lock"]


@pytest.mark.parametrize("kind", ["folder", "FIFO"])
def test_what_is_no_file_is_no_lock(tmp_path, kind):
    make_odd(tmp_path / "run.lock", kind)
    with pytest.raises(OSError, match="run.lock"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="run.lock: this file system has no locks"):
        free(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError) as caught, locked(tmp_path):
        pass
    assert caught.value.errno == errno.EIO


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def write(descriptor, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left on device: .*run.lock"), locked(tmp_path):
        pass
    monkeypatch.undo()
    free(tmp_path)


# -- runs ----------------------------------------------------------------------------------


def test_a_run_is_locked_while_it_is_trained(tmp_path):
    """It can be looked at meanwhile."""
    class Watch(train.Callback):
        def on_epoch_end(self, run):
            refused(folder.path)
            for resume in (False, True):
                with pytest.raises(RuntimeError, match="is in use by"):
                    runs.train(config(), RunFolder(folder.path), resume=resume)
            line = fails(1, "train", "--resume", folder.path) if run.epoch == 2 else "in use by"
            assert "in use by" in line and "Traceback" not in line
            seen.append(runs.load(folder.path).metadata["epoch"])

    seen, folder = [], RunFolder.create(config(), tmp_path / "run")
    runs.train(config(), folder, callbacks=[Watch()])
    assert len(seen) == 2 and not (folder.path / "run.lock").exists()
    runs.train(config(), folder, resume=True)


def test_a_signal_ends_the_lock(tmp_path):
    class Signal(train.Callback):
        def on_step(self, run):
            signal.raise_signal(signal.SIGINT)

    folder = RunFolder.create(config(), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):  # at the second one
        runs.train(config(), folder, callbacks=[Signal(), Signal()])
    assert not (folder.path / "run.lock").exists()


def test_a_folder_in_which_another_process_makes_a_run(tmp_path):
    with locked(tmp_path), pytest.raises(RuntimeError, match="is in use by"):
        RunFolder.create(config(), tmp_path)
    RunFolder.create(config(), tmp_path)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links need rights on Windows")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_writes_nowhere_else(tmp_path, link):
    (tmp_path / "precious").write_text("data")
    link(tmp_path / "precious", tmp_path / "run.lock")
    with pytest.raises(OSError, match=r"run\.lock is no file of its own"), locked(tmp_path):
        pass
    (tmp_path / "run.lock").unlink()
    os.symlink(tmp_path / "nothing", tmp_path / "run.lock")
    with pytest.raises(OSError, match=r"run\.lock is no file of its own"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "data" and not (tmp_path / "nothing").exists()


def test_a_run_that_is_being_trained_is_shown_as_such(tmp_path):
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path) == (os.name != "nt")
        told = json.loads((tmp_path / "run.lock").read_text())
    assert not in_use(tmp_path)
    for strange in ({"pid": 2**22 + 1}, {"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": 10**30},
                    {"boot": "another", "host": "another"}):
        (tmp_path / "run.lock").write_text(json.dumps(told | strange))
        assert not in_use(tmp_path), strange
