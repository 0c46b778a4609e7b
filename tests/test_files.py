"""A file is whole or not there; saved arrays come back bit for bit, or not at all."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
import safetensors.numpy
from odd_files import ODD, make_odd

from check import DTYPES, make
from gpuconv import files, reading
from gpuconv.autograd import Tensor

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]
LAYOUTS = [  # all of them come out scrambled from a plain safetensors 0.8.0
    pytest.param(lambda a: a[::-1], id="negative-stride"),
    pytest.param(lambda a: a[:, ::2], id="strided"),
    pytest.param(lambda a: a.T, id="transposed"),
    pytest.param(np.asfortranarray, id="fortran"),
    pytest.param(lambda a: np.broadcast_to(a[0], (3, *a.shape[1:])), id="broadcast"),
    pytest.param(lambda a: a[1:, 1:], id="corner"),
]


def same(got, want):
    """Equal to the last bit, also in bfloat16."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tobytes() == want.tobytes()


# -- atomic_write ------------------------------------------------------------------------


@pytest.mark.parametrize("mode, content", [("wb", b"new"), ("w", "neu: ä")])
def test_a_whole_file_replaces_the_old_one(tmp_path, mode, content):
    path = tmp_path / "file"
    for _ in range(2):
        with files.atomic_write(path, mode) as file:
            file.write(content)
    got = path.read_bytes()
    assert got == (content if mode == "wb" else content.encode())
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_readers_meanwhile_see_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with files.atomic_write(path, "w") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without SIGKILL")
def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "weights"
    code = f"""
import sys, itertools, numpy as np
from gpuconv import files
for i in itertools.count(1):
    files.save({str(path)!r}, {{"w": np.full(200_000, i, "int64")}})
    print(i, flush=True)
"""
    files.save(path, {"w": np.zeros(200_000, "int64")})
    for delay in (0, 0.003, 0.007):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # it is in the middle of writing, again and again
            threading.Event().wait(delay)
            process.send_signal(signal.SIGKILL)
        state, _ = files.load(path)  # checks its own sum
        assert len(set(state["w"].tolist())) == 1


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_permissions_stay_or_are_the_usual(tmp_path):
    old, new, usual = tmp_path / "old", tmp_path / "new", tmp_path / "usual"
    old.touch()
    old.chmod(0o640)
    usual.touch()
    for path in (old, new):
        with files.atomic_write(path) as file:
            file.write(b"x")
    assert old.stat().st_mode & 0o777 == 0o640
    assert new.stat().st_mode == usual.stat().st_mode


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    path = tmp_path / "f"
    try:
        with pytest.raises(PermissionError, match=str(tmp_path)), files.atomic_write(path):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("folder", ["none", "file"])
def test_a_folder_that_is_none(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=folder), files.atomic_write(tmp_path / folder / "f"):
        pass


def test_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert reading.digest(tmp_path / "abc").startswith("ba7816bf8f01cfea")
    assert reading.digest(tmp_path / "abc", "md5") == "900150983cd24fb0d6963f7d28e17f72"


def test_leftovers_of_a_crash_are_removed_and_nothing_else(tmp_path):
    code = f"""
import os
from gpuconv import files
with files.atomic_write({str(tmp_path / "weights")!r}) as file:
    file.write(b"half")
    file.flush()
    os._exit(1)
"""
    others = [".hidden", ".vscode.settings", "weights", "x.unfinished"]
    for name in others:
        (tmp_path / name).touch()
    subprocess.run([sys.executable, "-c", code])
    assert len(os.listdir(tmp_path)) == len(others) + 1
    (tmp_path / ".a folder.unfinished").mkdir()
    files.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a folder.unfinished", *others]


# -- save and load -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS])
def test_every_dtype_comes_back(tmp_path, rng, dtype):
    bits = rng.integers(0, 256, 2 * 3 * 8, dtype="uint8")
    a = bits.view(make(0, dtype).dtype if dtype in DTYPES else dtype) if dtype != "bool" else (
        bits > 127)
    state = {"a": a.reshape(2, 3, -1), "empty": a[:0].reshape(0, 3), "number": a[0].reshape(())}
    files.save(tmp_path / "f", state)
    back, metadata = files.load(tmp_path / "f")
    assert metadata == {} and sorted(back) == sorted(state)
    for name, want in state.items():
        same(back[name], want)
        assert back[name].flags.writeable and back[name].flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back(tmp_path, rng, layout, dtype):
    view = layout(make(rng.standard_normal((4, 6)), dtype))
    files.save(tmp_path / "f", {"a": view})
    same(files.load(tmp_path / "f")[0]["a"], view.copy())


def test_another_byte_order_comes_back_as_our_own(tmp_path):
    files.save(tmp_path / "f", {"a": np.array([1, 2.5], ">f4")})
    same(files.load(tmp_path / "f")[0]["a"], np.float32([1, 2.5]))


def test_arrays_on_the_gpu_are_saved_as_well(tmp_path, cp):
    files.save(tmp_path / "f", {"a": cp.asarray(np.float32([[1, 2], [3, 4]])).T})
    same(files.load(tmp_path / "f")[0]["a"], np.float32([[1, 3], [2, 4]]))


def test_special_values_come_back(tmp_path):
    a = np.array([np.nan, -np.inf, -0.0, 5e-324, np.finfo(float).max])
    files.save(tmp_path / "f", {"a": a, "": a[:1], "a.b/ä": a[1:]})
    back, _ = files.load(tmp_path / "f")
    same(back["a"], a)
    same(back[""], a[:1])
    same(back["a.b/ä"], a[1:])


def test_metadata_comes_back(tmp_path):
    metadata = {"epoch": 3, "model": ["convnet", {"classes": 10}], "note": "ä \"x\"", "x": None}
    files.save(tmp_path / "f", {}, metadata)
    assert files.load(tmp_path / "f") == ({}, metadata)


def test_others_can_read_it(tmp_path):
    a = np.float32([[1, 2], [3, 4]])
    files.save(tmp_path / "f", {"a": a.T})
    same(safetensors.numpy.load_file(tmp_path / "f")["a"], a.T.copy())


def test_saving_over_a_file_replaces_it_or_leaves_it(tmp_path):
    path = tmp_path / "f"
    files.save(path, {"a": np.ones(2)})
    for bad in ({"a": [1.0]}, {"a": np.array(["text"])}):
        with pytest.raises((TypeError, ValueError)):
            files.save(path, bad)
    assert files.load(path)[0]["a"].tolist() == [1, 1]
    files.save(path, {"b": np.zeros(1)})
    assert list(files.load(path)[0]) == ["b"] and os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [files.load, reading.digest, reading.open_file, reading.read_text])
def test_what_is_no_file_is_not_opened(tmp_path, kind, read):
    """A FIFO without a writer would block for ever, a device may have no end."""
    make_odd(tmp_path / "odd", kind)
    with pytest.raises(OSError, match="odd"):
        read(tmp_path / "odd")
    if kind in ("folder", "FIFO", "socket", "device"):
        with pytest.raises(OSError, match=f"odd is a {kind}, wanted a file"):
            read(tmp_path / "odd")


def test_a_file_that_becomes_a_fifo_is_not_opened_either(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    make_odd(tmp_path / "odd", "FIFO")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    with pytest.raises(OSError, match="odd is a FIFO, wanted a file"):
        reading.open_file(tmp_path / "odd")


def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path / "file").write_text("ä", encoding="utf-8")
    (tmp_path / "link").symlink_to("file")
    assert reading.read_text(tmp_path / "link") == "ä"


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_metadata_that_make_no_sense_are_damage(tmp_path, text):
    """With a checksum that holds: somebody has written them on purpose."""
    arrays = {"w": np.ones(2)}
    crc = files._checksum(arrays, f"1{text}")
    safetensors.numpy.save_file(arrays, tmp_path / "f", metadata={
        "format": "gpuconv", "version": "1", "metadata": text, "crc32": crc})
    with pytest.raises(ValueError, match="f: damaged: its metadata are "):
        files.load(tmp_path / "f")


def test_a_dtype_that_numpy_lacks(tmp_path):
    head = (b'{"w":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]},'
            b'"__metadata__":{"format":"gpuconv","version":"1"}}')
    (tmp_path / "f").write_bytes(len(head).to_bytes(8, "little") + head + b"ab")
    with pytest.raises(ValueError, match=r"f: w is F8_E5M2, wanted one of \['BF16', "):
        files.load(tmp_path / "f")


# -- when the disk fails -----------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
@pytest.mark.parametrize("old", [True, False], ids=["old-file", "no-file"])
def test_a_limit_on_file_sizes(tmp_path, old):
    path = tmp_path / "weights"
    if old:
        files.save(path, {"w": np.arange(3.0)})
    code = f"""
import errno, resource, numpy as np
from gpuconv import files
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    files.save({str(path)!r}, {{"w": np.zeros(100_000)}})
except OSError as error:
    assert error.errno == errno.EFBIG
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stays = "the file of before stays" if old else "nothing is left of it"
    assert done.stdout == f"{path} could not be written: File too large; {stays}\n"
    assert os.listdir(tmp_path) == ["weights"] * old
    if old:
        same(files.load(path)[0]["w"], np.arange(3.0))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
                                   capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk):
    path = small_disk / "weights"
    files.save(path, {"w": np.arange(3.0)})
    for _ in range(2):
        with pytest.raises(OSError, match="weights could not be written: No space left on device; "
                                          "the file of before stays") as caught:
            files.save(path, {"w": np.zeros(10_000)})
        assert caught.value.errno == errno.ENOSPC and os.listdir(small_disk) == ["weights"]
    (small_disk / "filler").write_bytes(bytes(57_000))
    for i in range(20):  # down to the last page, then no room for a name
        with contextlib.suppress(OSError):
            (small_disk / f"filler{i}").write_bytes(bytes(4096))
    before = sorted(os.listdir(small_disk))
    with pytest.raises(OSError, match="No space left on device; the file of before stays"):
        files.save(path, {"w": np.ones(3)})
    assert sorted(os.listdir(small_disk)) == before
    same(files.load(path)[0]["w"], np.arange(3.0))


def test_no_room_for_a_name(tmp_path, monkeypatch):
    def full(suffix, prefix, folder):
        raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/{prefix}x9t2{suffix}")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError, match="/f could not be written: No space left on device; nothing"):
        files.save(tmp_path / "f", {"w": np.ones(1)})


def test_a_read_only_disk(small_disk):
    path = small_disk / "weights"
    files.save(path, {"w": np.arange(3.0)})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(PermissionError, match="weights: the folder .* cannot be written to"):
        files.save(path, {"w": np.ones(3)})
    assert os.listdir(small_disk) == ["weights"]


@pytest.mark.parametrize("where", [8, 60, -1], ids=["length", "header", "content"])
@pytest.mark.parametrize("old", [True, False], ids=["old-file", "no-file"])
def test_what_the_disk_garbles_replaces_nothing(tmp_path, monkeypatch, where, old):
    path = tmp_path / "weights"
    if old:
        files.save(path, {"w": np.arange(3.0)})
    sync = os.fsync

    def garble(descriptor):
        sync(descriptor)
        at = where % os.fstat(descriptor).st_size
        byte, = os.pread(descriptor, 1, at)
        os.pwrite(descriptor, bytes([byte ^ 4]), at)

    monkeypatch.setattr(os, "fsync", garble)
    with pytest.raises(ValueError, match=f"save: what {path} would be does not read back: "):
        files.save(path, {"w": np.ones(3)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["weights"] * old
    if old:
        same(files.load(path)[0]["w"], np.arange(3.0))


def test_what_safetensors_garbles_replaces_nothing(tmp_path, monkeypatch):
    """A whole file, with a checksum that holds, of another array: like its issue 825."""
    honest = safetensors.numpy.save

    def scramble(arrays, described):
        wrong = {name: a[::-1].copy() for name, a in arrays.items()}
        text = described["version"] + described["metadata"]
        return honest(wrong, described | {"crc32": files._checksum(wrong, text)})

    monkeypatch.setattr(safetensors.numpy, "save", scramble)
    with pytest.raises(ValueError, match="does not read back: it has CRC-32 .{8}, wanted .{8}$"):
        files.save(tmp_path / "f", {"w": np.arange(3.0)})
    assert os.listdir(tmp_path) == []


def test_it_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name(tmp_path, monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to tell descriptors apart")
    done, sync, replace = [], os.fsync, os.replace

    def noted_sync(descriptor):
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def noted_replace(old, new):
        done.append(("replace", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.save(tmp_path / "f", {"w": np.ones(1)})
    monkeypatch.undo()
    (first, temporary), *rest = done
    assert first == "fsync" and temporary.startswith(".f.")
    assert rest == [("replace", "f"), ("fsync", tmp_path.name)]


def test_a_check_sees_the_whole_file_and_can_refuse_it(tmp_path):
    path, seen = tmp_path / "f", []
    path.write_bytes(b"old")

    def check(temporary):
        seen.append((pathlib.Path(temporary).read_bytes(), path.read_bytes()))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), files.atomic_write(path, check=check) as file:
        file.write(b"new")
    assert seen == [(b"new", b"old")] and path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


# -- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize("value, error, message", [
    ([1.0], TypeError, "save: w is list, wanted an array"),
    (None, TypeError, "save: w is NoneType, wanted an array"),
    (2.0, TypeError, "save: w is float, wanted an array"),
    (Tensor(np.ones(1)), TypeError, "Tensor"),
    (np.array(["text"]), TypeError, "save: w has dtype <U4, wanted numbers"),
    (np.array([{}]), TypeError, "save: w has dtype object"),
    (np.ma.zeros(2), TypeError, r"save: w is MaskedArray, wanted an array: x.filled\(0\)"),
])
def test_what_is_no_array_of_numbers_is_not_saved(tmp_path, value, error, message):
    with pytest.raises(error, match=message):
        files.save(tmp_path / "f", {"w": value})
    assert os.listdir(tmp_path) == []


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "weights"
    files.save(path, {"w": np.arange(5.0), "b": np.zeros(2)}, {"epoch": 1})
    blob = path.read_bytes()
    for n in range(len(blob)):
        path.write_bytes(blob[:n])
        with pytest.raises(ValueError, match=rf"{path.name}: damaged"):
            files.load(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "weights"
    state, metadata = {"w": np.arange(3.0), "b": np.zeros(2, "float32")}, {"epoch": 1}
    files.save(path, state, metadata)
    blob = path.read_bytes()
    for i in range(len(blob)):
        path.write_bytes(blob[:i] + bytes([blob[i] ^ 1 << i % 8]) + blob[i + 1 :])
        with pytest.raises(ValueError, match=path.name):
            files.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign"
    for content in (b"", b"PK\3\4 a zip file", b"\0" * 100, b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="foreign: damaged, or no safetensors file"):
            files.load(path)
    safetensors.numpy.save_file({"a": np.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="foreign: a safetensors file, but not .* gpuconv .*'pt'"):
        files.load(path)
    safetensors.numpy.save_file({"a": np.ones(2)}, path)
    with pytest.raises(ValueError, match=r"not one of gpuconv \(format None\)"):
        files.load(path)


def test_files_of_a_newer_gpuconv_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "VERSION", files.VERSION + 1)
    files.save(tmp_path / "new", {"a": np.ones(2)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"new: written by a newer gpuconv \(version 2, .* to 1\)"):
        files.load(tmp_path / "new")


def test_bfloat16_without_its_package_says_what_to_install(tmp_path):
    files.save(tmp_path / "f", {"a": make([1.0], "bfloat16")})
    code = f"""
import sys
sys.modules["ml_dtypes"] = None
from gpuconv import files
try:
    files.load({str(tmp_path / "f")!r})
except TypeError as error:
    sys.exit("pip install ml_dtypes" not in str(error))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_there_or_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        files.load(tmp_path / "nothing")
    with pytest.raises(OSError, match=tmp_path.name):
        files.load(tmp_path)


@pytest.mark.parametrize("shape", ["1," * 70 + "1", f"{2**62},0", f"{2**63 + 1},0"])
def test_a_shape_that_numpy_cannot_have(tmp_path, shape):
    size = 4 if "0" not in shape else 0
    head = ('{"__metadata__":{"format":"gpuconv","version":"1","metadata":"{}","crc32":"0"},'
            f'"w":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,{size}]}}}}').encode()
    (tmp_path / "f").write_bytes(len(head).to_bytes(8, "little") + head + bytes(size))
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/f: damaged"):
        files.load(tmp_path / "f")


def test_a_header_of_very_many_bytes_is_refused_unread(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.write((64 << 20).to_bytes(8, "little"))
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match="f: damaged, .* header has more than 33,554,432 bytes"):
        files.load(tmp_path / "f")


@pytest.mark.parametrize("kind", sorted(set(ODD) - {"folder", "link to nowhere"}))
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    make_odd(tmp_path / "odd", kind)
    before = os.lstat(tmp_path / "odd")
    with pytest.raises(OSError, match="wanted a file|symbolic links"):
        files.save(tmp_path / "odd", {"w": np.zeros(2)})
    assert os.lstat(tmp_path / "odd") == before


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "f")
    for value in (1.0, 2.0):  # the first time it leads nowhere
        files.save(tmp_path / "link", {"w": np.full(2, value)})
        assert (tmp_path / "link").is_symlink()
        assert files.load(tmp_path / "real" / "f")[0]["w"].tolist() == [value, value]


def test_arguments_the_other_way_round():
    with pytest.raises(TypeError, match=r"save: path is a dict: .* save\(path, state\)"):
        files.save({"w": np.zeros(2)}, "f.safetensors")
