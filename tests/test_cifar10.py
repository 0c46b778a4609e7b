"""cifar10: both versions, packed and unpacked, damaged and malicious."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
from odd_files import make_odd

from gpuconv.data import cifar10

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "cifar10"
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
module = sys.modules["gpuconv.data.cifar10"]


# -- synthetic sets ------------------------------------------------------------------------


def batches(rng, n=3):
    """{name: (labels, pixels (n, 32, 32, 3))}."""
    return {name: (rng.integers(0, 10, n), rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
            for name in NAMES}


def binary_files(made):
    def record(label, image):
        return bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))

    return {f"{name}.bin": b"".join(map(record, *both)) for name, both in made.items()}


def python_files(made, protocol=4):
    return {name: pickle.dumps({
        b"batch_label": name.encode(), b"labels": labels.tolist(),
        b"data": images.transpose(0, 3, 1, 2).reshape(len(labels), 3072).copy(),
        b"filenames": [b"x.png"] * len(labels)}, protocol)
        for name, (labels, images) in made.items()}


def put(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in contents.items():
        (folder / name).write_bytes(blob)
    return folder


def pack(path, members):
    """A tar.gz of (TarInfo or name, bytes) pairs."""
    with tarfile.open(path, "w:gz") as tar:
        for info, blob in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            if info.isreg():
                info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return path


def same(sets, made):
    (train, test) = sets
    labels, images = ([both[i] for both in made.values()] for i in (0, 1))
    np.testing.assert_array_equal(train.images, np.concatenate(images[:5]))
    np.testing.assert_array_equal(train.labels, np.concatenate(labels[:5]))
    np.testing.assert_array_equal(test.images, images[5])
    np.testing.assert_array_equal(test.labels, labels[5])
    assert train.classes == test.classes and train.classes[3] == "cat"
    assert (train.name, test.name) == ("CIFAR-10 train", "CIFAR-10 test")


# -- what can be read ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("where", ["folder", "inside", "archive", "folder-of-archive", "renamed"])
def test_reads(tmp_path, rng, version, where):
    made = batches(rng)
    contents, folder, archive = (
        (binary_files(made), BINARY, "cifar-10-binary.tar.gz") if version == "binary" else
        (python_files(made), PYTHON, "cifar-10-python.tar.gz"))
    if where == "folder":
        root = put(tmp_path / "mine", contents)
    elif where == "inside":
        root = put(tmp_path / folder, contents).parent
    else:
        path = tmp_path / (archive if where != "renamed" else "mine.tgz")
        pack(path, [(f"{folder}/{name}", blob) for name, blob in contents.items()])
        root = tmp_path if where == "folder-of-archive" else path
    before = sorted(tmp_path.rglob("*"))
    same(cifar10(root, verify=False), made)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was extracted


def python2_pickle(rng):
    """One batch as Python 2's cPickle wrote it, opcode by opcode: str for bytes, protocol 2."""
    pixels = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
    raw = pixels.tobytes()
    blob = (b"\x80\x02}(U\x06labels](K\x03K\x05eU\x04datacnumpy.core.multiarray\n_reconstruct\n"
            b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n"
            b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            b"T" + len(raw).to_bytes(4, "little") + raw + b"tbu.")
    return blob, pixels


def test_reads_what_python_2_wrote(tmp_path, rng):
    blob, pixels = python2_pickle(rng)
    np.testing.assert_array_equal(pickle.loads(blob, encoding="bytes")[b"data"], pixels)
    put(tmp_path, {name: blob for name in NAMES})
    _, test = cifar10(tmp_path, verify=False)
    assert test.labels.tolist() == [3, 5]
    np.testing.assert_array_equal(test.images[1, 2, 7], pixels[1].reshape(3, 32, 32)[:, 2, 7])


def test_reads_an_array_in_fortran_order(tmp_path, rng):
    made = batches(rng)
    contents = python_files(made)
    batch = pickle.loads(contents["test_batch"])
    contents["test_batch"] = pickle.dumps(
        batch | {b"data": np.asfortranarray(batch[b"data"])}, 4)
    same(cifar10(put(tmp_path, contents), verify=False), made)


def test_looks_in_data_and_in_the_cache(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    with pytest.raises(FileNotFoundError) as caught:
        cifar10()
    for part in (tmp_path / "data", tmp_path / "cache" / "gpuconv", "download=True",
                 "gpuconv data cifar10 --download",
                 "cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "170,052,171 bytes", "c4a38c50a"):
        assert str(part) in str(caught.value)
    first, second = batches(rng), batches(rng)
    put(tmp_path / "cache" / "gpuconv" / PYTHON, python_files(first))
    same(cifar10(verify=False), first)
    put(tmp_path / "data" / BINARY, binary_files(second))
    same(cifar10(verify=False), second)


@pytest.mark.parametrize("root", [None, "there"])
def test_download(tmp_path, rng, monkeypatch, root):
    made, asked = batches(rng), []

    def download(url, path, *, sha256, size, progress):
        asked.append((url, sha256[:8], size))
        path.parent.mkdir(parents=True)
        pack(path, [(f"{BINARY}/{name}", blob) for name, blob in binary_files(made).items()])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(module, "fetch", download)
    for _ in range(2):  # the second time it is there
        same(cifar10(root, download=True, verify=False), made)
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c4a38c50",
                      170_052_171)]
    assert (tmp_path / (root or "cache/gpuconv") / "cifar-10-binary.tar.gz").is_file()


# -- what is damaged -----------------------------------------------------------------------


def test_truncated(tmp_path, rng):
    contents = binary_files(batches(rng))
    contents["data_batch_4.bin"] = contents["data_batch_4.bin"][:-1]
    put(tmp_path, contents)
    with pytest.raises(ValueError, match=r"data_batch_4\.bin: 9218 bytes are not whole records"):
        cifar10(tmp_path, verify=False)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin: 9219 bytes, wanted 30730000"):
        cifar10(tmp_path)


@pytest.mark.parametrize("version", ["binary", "python"])
def test_a_label_beyond_nine(tmp_path, rng, version):
    made = batches(rng)
    made["data_batch_2"][0][1] = 10
    put(tmp_path, (binary_files if version == "binary" else python_files)(made))
    with pytest.raises(ValueError, match=r"data_batch_2.*: record 1 has label 10, wanted 0\.\.9"):
        cifar10(tmp_path, verify=False)


def test_a_missing_file(tmp_path, rng):
    contents = binary_files(batches(rng))
    del contents["data_batch_3.bin"]
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin is missing"):
        cifar10(put(tmp_path / "a", contents), verify=False)
    archive = pack(tmp_path / "a.tar.gz", contents.items())
    with pytest.raises(ValueError, match=r"a\.tar\.gz: holds no data_batch_3\.bin"):
        cifar10(archive, verify=False)


def test_wrong_hash(tmp_path, rng):
    made = {name: (np.zeros(10_000, int), np.zeros((10_000, 32, 32, 3), np.uint8))
            for name in NAMES[:1]} | {name: both for name, both in batches(rng).items()
                                      if name != NAMES[0]}
    put(tmp_path / "b", binary_files(made))
    with pytest.raises(ValueError, match=r"data_batch_1\.bin: MD5 [0-9a-f]{32}, wanted 5dd7e06a"):
        cifar10(tmp_path / "b")
    put(tmp_path / "p", python_files(made))
    with pytest.raises(ValueError, match=r"data_batch_1: MD5 [0-9a-f]{32}, wanted c99cafc1"):
        cifar10(tmp_path / "p")


def test_an_official_name_wants_the_official_archive(tmp_path, rng, monkeypatch):
    path = pack(tmp_path / "cifar-10-binary.tar.gz", binary_files(batches(rng)).items())
    size = path.stat().st_size
    with pytest.raises(ValueError, match=f"{size} bytes, wanted 170052171"):
        cifar10(path)
    monkeypatch.setitem(vars(module.BINARY), "archive_bytes", size)
    with pytest.raises(ValueError, match=r"tar\.gz: SHA-256 [0-9a-f]{64}, wanted c4a38c50"):
        cifar10(path)


@pytest.mark.parametrize("damage", [
    pytest.param(lambda b: b[: len(b) // 2], id="half"),
    pytest.param(lambda b: b"not an archive" * 99, id="no-archive"),
    pytest.param(lambda b: b[:3000] + bytes(2000) + b[5000:], id="hole"),
    pytest.param(lambda b: b"", id="empty"),
    pytest.param(lambda b: gzip.compress(b"not a tar" * 99), id="no-tar"),
])
def test_a_damaged_archive(tmp_path, rng, damage):
    path = pack(tmp_path / "x.tar.gz", binary_files(batches(rng)).items())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.tar\.gz: (damaged, or no|holds no|an archive)"):
        cifar10(path, verify=False)


# -- what is hostile -----------------------------------------------------------------------


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", [
    "/etc/passwd", f"/{BINARY}/data_batch_1.bin", f"../{BINARY}/data_batch_1.bin",
    f"{BINARY}/../data_batch_1.bin", f"x/{BINARY}/data_batch_1.bin", "..", "data_batch_1.bin/x"])
def test_members_elsewhere_are_passed_over(tmp_path, rng, name):
    made = batches(rng)
    folder = tmp_path / "only"
    folder.mkdir()
    path = pack(folder / "x.tar.gz", [(name, b"evil"), *(
        (f"./{BINARY}/{n}", blob) for n, blob in binary_files(made).items()), (name, b"evil")])
    same(cifar10(path, verify=False), made)
    assert list(tmp_path.rglob("*")) == [folder, path]


@pytest.mark.parametrize("kind", [
    pytest.param(tarfile.SYMTYPE, id="symlink"), pytest.param(tarfile.LNKTYPE, id="hard-link"),
    pytest.param(tarfile.CHRTYPE, id="device"), pytest.param(tarfile.DIRTYPE, id="folder")])
def test_a_link_is_refused(tmp_path, rng, kind):
    contents = binary_files(batches(rng))
    path = pack(tmp_path / "x.tar.gz", [
        *contents.items(), (special(f"{BINARY}/test_batch.bin", kind, "/etc/passwd"), b"")])
    with pytest.raises(ValueError, match=r"test_batch\.bin is a link or a device"):
        cifar10(path, verify=False)


def test_a_member_twice_is_refused(tmp_path, rng):
    contents = list(binary_files(batches(rng)).items())
    path = pack(tmp_path / "x.tar.gz", [*contents, contents[2]])
    with pytest.raises(ValueError, match=r"holds data_batch_3\.bin twice"):
        cifar10(path, verify=False)


def test_an_oversize_member_is_refused_unread(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(module, "BIGGEST", 10_000)
    contents = binary_files(batches(rng))
    contents["data_batch_5.bin"] = bytes(10_001)
    for root in (pack(tmp_path / "x.tar.gz", contents.items()), put(tmp_path / "x", contents)):
        with pytest.raises(ValueError, match=r"data_batch_5\.bin: 10001 bytes, no file of CIFAR"):
            cifar10(root, verify=False)


class Call:
    """Pickles as the call f(*arguments)."""

    def __init__(self, f, *arguments):
        self.call = f, arguments

    def __reduce__(self):
        return self.call


def named(module_name, name):
    """Pickle that loads a global and calls it with ("touch marker",)."""
    return (b"\x80\x04\x8c" + bytes([len(module_name)]) + module_name.encode() + b"\x8c"
            + bytes([len(name)]) + name.encode() + b"\x93\x8c\x0ctouch marker\x85R.")


ATTACKS = {
    "os.system": lambda: pickle.dumps(Call(__import__("os").system, "touch marker")),
    "eval": lambda: pickle.dumps(Call(eval, "open('marker', 'w')")),
    "exec": lambda: pickle.dumps({b"labels": [Call(exec, "open('marker', 'w')")]}, 2),
    "open": lambda: pickle.dumps(Call(open, "marker", "w")),
    "getattr": lambda: pickle.dumps(Call(getattr, "", "join")),
    "subprocess": lambda: pickle.dumps(Call(subprocess.call, ["touch", "marker"]), 0),
    "numpy.load": lambda: pickle.dumps(Call(np.load, "marker")),
    "numpy.fromfile": lambda: named("numpy", "fromfile"),
    "numpy.core.multiarray": lambda: named("numpy.core.multiarray", "scalar"),
    "numpy attribute": lambda: named("numpy", "os.system"),
    "dotted": lambda: named("numpy.core.multiarray", "_reconstruct.__globals__"),
    "codecs": lambda: named("_codecs", "encode"),
    "copyreg": lambda: named("copyreg", "_reconstructor"),
    "persistent": lambda: b"\x80\x04\x8c\x06marker\x51.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_calls_is_refused(tmp_path, rng, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    contents = python_files(batches(rng))
    contents["data_batch_1"] = ATTACKS[attack]()
    put(tmp_path / "x", contents)
    with pytest.raises(ValueError, match=r"data_batch_1: refused: its pickle (asks for|refers to)"):
        cifar10("x", verify=False)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("change", [
    pytest.param(dict(data=np.zeros((3, 3072), object)), id="objects"),
    pytest.param(dict(data=np.zeros((3, 3072), "float32")), id="floats"),
    pytest.param(dict(data=np.zeros((3, 3071), "uint8")), id="narrow"),
    pytest.param(dict(data=np.zeros((2, 3072), "uint8")), id="fewer-than-labels"),
    pytest.param(dict(data=b"bytes"), id="no-array"),
    pytest.param(dict(labels=[1, 2, 300]), id="big-label"),
    pytest.param(dict(labels=[1, 2, "3"]), id="text-label"),
    pytest.param(dict(labels=5), id="no-list"),
])
def test_a_pickle_of_something_else_is_refused(tmp_path, rng, change):
    contents = python_files(batches(rng))
    batch = pickle.loads(contents["test_batch"]) | {k.encode(): v for k, v in change.items()}
    contents["test_batch"] = pickle.dumps(batch, 4)
    with pytest.raises(ValueError, match="test_batch: no batch of CIFAR-10's Python version"):
        cifar10(put(tmp_path, contents), verify=False)


@pytest.mark.parametrize("blob", [
    pytest.param(b"", id="empty"), pytest.param(b"\x80\x04", id="cut"),
    pytest.param(b"no pickle", id="text"), pytest.param(pickle.dumps([1]), id="list"),
    pytest.param(python2_pickle(np.random.default_rng(0))[0][:-40], id="cut-late"),
    pytest.param(python2_pickle(np.random.default_rng(0))[0].partition(b"\x89T")[0] + b"\x89Ntbu.",
                 id="no-bytes"),
])
def test_a_broken_pickle(tmp_path, rng, blob):
    contents = python_files(batches(rng)) | {"test_batch": blob}
    with pytest.raises(ValueError, match="test_batch: no batch of CIFAR-10's Python version"):
        cifar10(put(tmp_path, contents), verify=False)


def test_a_pickle_cannot_change_the_reader(tmp_path, rng):
    """BUILD on a class would set its attributes: here a __setstate__ of the array's stand-in."""
    contents = python_files(batches(rng))
    good = dict(contents)
    contents["data_batch_1"] = (b"\x80\x04cnumpy\nndarray\nN}\x8c\x0c__setstate__cnumpy\ndtype\n"
                                b"s\x86b.")
    with pytest.raises(ValueError, match="data_batch_1: no batch"):
        cifar10(put(tmp_path / "bad", contents), verify=False)
    cifar10(put(tmp_path / "good", good), verify=False)


# -- sizes that are not believed -----------------------------------------------------------


def peak_of(call):
    """(the message of the ValueError that a call raises, bytes of memory that it took at most)."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            call()
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "lzma":
           lambda blob: lzma.compress(blob, lzma.FORMAT_ALONE), "tar": bytes}


@pytest.mark.parametrize("packer", PACKERS)
def test_archives_of_any_packing(tmp_path, rng, packer):
    made = batches(rng)
    whole = pack(tmp_path / "x.tar.gz", [(f"./{BINARY}/{n}", blob) for n, blob in
                                         binary_files(made).items()])
    blob = PACKERS[packer](gzip.decompress(whole.read_bytes()))
    whole.write_bytes(blob)
    same(cifar10(whole, verify=False), made)
    for part in (blob[:len(blob) // 2], blob[:300], blob[:200] + bytes(99) + blob[300:]):
        whole.write_bytes(part)
        with pytest.raises(ValueError, match=r"x\.tar\.gz: (damaged, or no archive: .|holds no)"):
            cifar10(whole, verify=False)


def test_an_archive_with_extended_headers(tmp_path, rng):
    """As tar of Linux and macOS write them: times and owners, long names of other members."""
    made = batches(rng)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
            for name, blob in [("long" * 99, b"x" * 999), *binary_files(made).items()]:
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.uname = len(blob), 1.5, "\u00e9"
                tar.addfile(info, io.BytesIO(blob))
        same(cifar10(tmp_path / "x.tar", verify=False), made)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
                                  tarfile.GNUTYPE_LONGLINK, tarfile.REGTYPE])
def test_a_header_of_gigabytes_is_not_read(tmp_path, monkeypatch, kind):
    """16 MB of zeros in 16 kB; the limit stands in for half a gigabyte."""
    monkeypatch.setattr("gpuconv.data.tar.UNPACKED", 1 << 23)
    info = special("x", kind)
    info.size = 1 << 33
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 24)))
    said, peak = peak_of(lambda: cifar10(path, verify=False))
    assert said == f"{path}: damaged, or no archive: unpacks to more than 8,388,608 bytes"
    assert peak < 1 << 21


def test_endless_members_take_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuconv.data.tar.UNPACKED", 1 << 20)
    block = special("x", tarfile.DIRTYPE).tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(block * 3_000))
    said, peak = peak_of(lambda: cifar10(path, verify=False))
    assert "unpacks to more than 1,048,576 bytes" in said and peak < 1 << 20


@pytest.mark.parametrize("change, message", [
    (dict(type=tarfile.GNUTYPE_SPARSE, size=10**6), "is sparse, wanted a plain file"),
    (dict(size=-512), "has -512 bytes"), (dict(size=1 << 40), "1099511627776 bytes, no file of CI"),
    (dict(size=9 << 20), "it ends inside data_batch_1.bin")])
def test_a_member_of_a_strange_size(tmp_path, change, message):
    info = special("data_batch_1.bin", tarfile.REGTYPE)
    for field, value in change.items():
        setattr(info, field, value)
    path = tmp_path / "x.tar.xz"
    path.write_bytes(lzma.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    said, peak = peak_of(lambda: cifar10(path, verify=False))
    assert said.startswith(f"{path}") and message in said and peak < 1 << 24


def test_an_lzma_header_that_asks_for_gigabytes(tmp_path):
    blob = bytearray(lzma.compress(bytes(9999), lzma.FORMAT_ALONE))
    blob[1:5] = b"\0\0\0\x80"  # the dictionary: 2 GB
    (tmp_path / "x.tar").write_bytes(blob)
    with pytest.raises(ValueError, match=r"x\.tar: damaged, .*Memory usage limit exceeded"):
        cifar10(tmp_path / "x.tar", verify=False)


def laughs(steps):
    """A tuple of tuples of tuples; as text, or hashed, it would take 2**steps operations."""
    return b"\x80\x02K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(steps))


@pytest.mark.parametrize("blob, message", [
    pytest.param(b"\x80\x02}r\xff\xff\xff\x07.", "no batch", id="memo"),
    pytest.param(b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x.", "no batch", id="bytes"),
    pytest.param(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "no batch",
                 id="bytearray"),
    pytest.param(b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"N.", "no batch", id="frame"),
    pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7fx.", "no batch", id="long"),
    pytest.param(b"L" + b"9" * 10**5 + b"L\n.", "no batch", id="digits"),
    pytest.param(b"\x80\x02K\x01" + b"2" * 10**5 + b".", "has the instruction DUP", id="dup"),
    pytest.param(b"\x80\x04" + b"\x8f" * 10**5 + b".", "has the instruction EMPTY_SET", id="sets"),
    pytest.param(b"\x80\x02" + b"]" * (1 << 16) + b".", "more than 1,000 instr", id="lists"),
    pytest.param(b"\x80\x02}" + laughs(60)[2:] + b"K\x01s.", "a key that is no string", id="hash"),
    pytest.param(b"\x80\x02}U\x06labels]sU\x04datacnumpy\nndarray\n)R(K\x01" + laughs(60)[2:]
                 + b"cnumpy\ndtype\nU\x02u1\x85R\x89Ntbs.", "a shape that is none", id="text"),
    pytest.param(b"]" * 900 + b"a" * 899 + b".", "no batch", id="deep"),
])
def test_a_pickle_of_great_promises(tmp_path, rng, monkeypatch, blob, message):
    if message.startswith("more than"):
        monkeypatch.setattr("gpuconv.data.unpickle.STEPS", 1000)
    put(tmp_path, python_files(batches(rng)) | {"data_batch_1": blob})
    said, peak = peak_of(lambda: cifar10(tmp_path, verify=False))
    assert said.startswith(f"{tmp_path}/data_batch_1: ") and message in said
    assert peak < 1 << 23 and len(said) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without FIFOs")
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_file_is_not_opened(tmp_path, rng, kind):
    contents = binary_files(batches(rng))
    del contents["data_batch_1.bin"]
    make_odd(put(tmp_path / "x", contents) / "data_batch_1.bin", kind)
    make_odd(tmp_path / "x.tar.gz", kind)
    for root, name in ((tmp_path / "x", "data_batch_1.bin"), (tmp_path / "x.tar.gz", "x.tar.gz")):
        with pytest.raises(OSError, match=rf"{name} is a {kind}, wanted a file"):
            cifar10(root, verify=False)


# -- the real set --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    if not (SHARED / "decode.py").is_file():
        pytest.skip("no packed CIFAR-10 beside the repository")
    folder = tmp_path_factory.mktemp("cifar10") / BINARY
    subprocess.run([sys.executable, SHARED / "decode.py", SHARED, folder], check=True)
    return folder


def test_the_real_set(real):
    train, test = cifar10(real)  # every file has its official length and hash
    assert train.images.shape == (50_000, 32, 32, 3) and test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(train.mean, [0.491400, 0.482158, 0.446531], atol=5e-7)
    np.testing.assert_allclose(train.std, [0.247032, 0.243485, 0.261588], atol=5e-7)
    assert train.classes == tuple((SHARED / "batches.meta.txt").read_text().split())
    first = np.fromfile(real / "data_batch_1.bin", np.uint8, 3073)
    np.testing.assert_array_equal(train.images[0], first[1:].reshape(3, 32, 32).transpose(1, 2, 0))


def test_one_flipped_bit_of_the_real_set(real, tmp_path):
    for path in real.iterdir():
        (tmp_path / path.name).symlink_to(path)
    blob = bytearray((real / "data_batch_3.bin").read_bytes())
    blob[12_345] ^= 1
    (tmp_path / "data_batch_3.bin").unlink()
    (tmp_path / "data_batch_3.bin").write_bytes(blob)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: MD5 [0-9a-f]{32}, wanted 942cd6a4"):
        cifar10(tmp_path)


def test_the_hash_of_a_pickle_is_checked_before_it_is_read(tmp_path):
    for name in module.PYTHON.md5:  # would make a table of gigabytes
        (tmp_path / name).write_bytes(b"\x80\x02}r\xff\xff\xff\x07.")
    with pytest.raises(ValueError, match="MD5 .*, wanted"):
        cifar10(tmp_path)
