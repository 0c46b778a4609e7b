"""npz: arrays of images and labels, under three sets of names; nothing in them is run."""

import contextlib
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from odd_files import make_odd
from PIL import Image

from gpuconv.data import Loader, npz
from gpuconv.data.npz import npz_by_position

KERAS = ("x_train", "y_train", "x_test", "y_test")
OURS = ("images", "labels", "test_images", "test_labels")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def made(rng):
    """(images, labels, test images, test labels)."""
    return (rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3,
            rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8), np.arange(9) % 3)


def put(path, names, arrays, **more):
    np.savez(path, **dict(zip(names, arrays, strict=False)), **more)
    return path


# -- what is read --------------------------------------------------------------------------


@pytest.mark.parametrize("names", [OURS, KERAS, MEDMNIST], ids=["ours", "keras", "medmnist"])
@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
def test_a_set_with_a_test_set(tmp_path, made, names, packed):
    packed(tmp_path / "digits.npz", **dict(zip(names, made, strict=True)))
    train, test = npz(tmp_path / "digits.npz")
    for got, images, labels in ((train, *made[:2]), (test, *made[2:])):
        np.testing.assert_array_equal(got.images, images)
        np.testing.assert_array_equal(got.labels, labels)
        assert got.labels.dtype == np.int32 and got.classes == ("0", "1", "2")
    assert (train.name, test.name) == ("digits train", "digits test")


def test_a_set_without_is_split_by_seed(tmp_path, made):
    path = put(tmp_path / "x.npz", OURS, made[:2])
    parts = [npz(path, seed=seed) for seed in (1, 1, 2)]
    train, test = parts[0]
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    known = {image.tobytes(): label for image, label in zip(*made[:2], strict=True)}
    for part in (train, test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert known.pop(image.tobytes()) == label
    assert not known
    assert parts[1][0].fingerprint == train.fingerprint != parts[2][0].fingerprint
    assert len(npz(path, test_share=0.5)[1]) == 15


def held_out(path, images, labels, **more):
    """The bytes of the test images."""
    return {image.tobytes() for image in npz(put(path, OURS, [images, labels], **more))[1].images}


def test_an_image_that_comes_or_goes_moves_at_most_one_other(tmp_path, made):
    """So do positions, dtype, and what the classes are called."""
    images, labels = made[:2]
    path, mixed = tmp_path / "x.npz", np.random.default_rng(0).permutation(30)
    before = held_out(path, images, labels)
    assert held_out(path, images[mixed], labels[mixed]) == before
    assert held_out(path, images / 255, np.array(["a", "b", "c"])[labels]) == before
    for gone in range(30):
        moved = held_out(path, np.delete(images, gone, 0), np.delete(labels, gone)) ^ before
        assert len(moved - {images[gone].tobytes()}) <= 1
    for come in made[2]:
        moved = held_out(path, np.concatenate([come[None], images]), [0, *labels]) ^ before
        assert len(moved - {come.tobytes()}) <= 1


def test_identical_images_are_split_like_others(tmp_path):
    train, test = npz(put(tmp_path / "x.npz", OURS, [np.zeros((10, 4, 4)), [0, 1] * 5]))
    assert np.bincount(train.labels).tolist() == [4, 4]
    assert np.bincount(test.labels).tolist() == [1, 1]


def test_the_split_of_older_runs(tmp_path):
    """By position: written down from version 0.1.0 before contents counted."""
    images = 20 * np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    path = put(tmp_path / "x.npz", OURS, [images, np.arange(12) % 2])
    train, test = npz_by_position(path, None, 0.25, 3)
    assert (train.images // 20).ravel().tolist() == [11, 10, 0, 4, 7, 3, 8, 9]
    assert (test.images // 20).ravel().tolist() == [6, 2, 5, 1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floats_of_0_to_1(tmp_path, dtype):
    levels = np.arange(256).reshape(4, 8, 8, 1)
    path = put(tmp_path / "x.npz", OURS, [(levels / 255).astype(dtype), [0, 1, 0, 1]] * 2)
    train, _ = npz(path)
    np.testing.assert_array_equal(train.images, levels)


def test_one_channel(tmp_path, made):
    grey = made[0][..., 0]  # (N, H, W)
    train, test = npz(put(tmp_path / "x.npz", KERAS, [grey, made[1]]))
    assert train.images.shape == (24, 8, 8, 1) and train.mean.shape == (1,)
    x, _ = next(Loader(train, 4).epoch(0))
    assert x.shape == (4, 8, 8, 1)


@pytest.mark.parametrize("labels, classes", [
    (np.array(["owl", "cat", "dog"] * 10), ("cat", "dog", "owl")),
    (np.array([b"owl", b"cat", b"dog"] * 10), ("cat", "dog", "owl")),
    (np.array([9, -1, 4] * 10, "int8"), ("-1", "4", "9")),
    (np.array([9, 0, 4] * 10, "uint64"), ("0", "4", "9")),
    (np.array([[2], [0], [1]] * 10), ("0", "1", "2"))])
def test_labels_name_the_classes(tmp_path, made, labels, classes):
    path = put(tmp_path / "x.npz", OURS, [made[0], labels, made[0], labels])
    train, test = npz(path)
    assert train.classes == classes
    assert train.labels.tolist() == test.labels.tolist() == [2, 0, 1] * 10


@pytest.mark.parametrize("labels", [np.array([1, 0, 2] * 10), np.array(["b", "z", "a"] * 10)])
@pytest.mark.parametrize("kind", ["U", "S"])
def test_names_of_classes(tmp_path, made, labels, kind):
    names = np.array(["z", "b", "a"]).astype(kind)
    train, _ = npz(put(tmp_path / "x.npz", OURS, [made[0], labels] * 2, classes=names))
    assert train.classes == ("z", "b", "a") and train.labels.tolist() == [1, 0, 2] * 10


def test_a_class_may_have_no_image_where_classes_are_named(tmp_path, made):
    names = ["a", "b", "c", "d"]
    train, _ = npz(put(tmp_path / "x.npz", OURS, made, classes=names))
    assert train.classes == tuple(names)


def test_resized(tmp_path, made):
    path = put(tmp_path / "x.npz", OURS, made)
    train, test = npz(path, image_size=4)
    assert train.images.shape == (30, 4, 4, 3) and test.images.shape == (9, 4, 4, 3)
    want = Image.fromarray(made[0][7]).resize((4, 4), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(train.images[7], want)
    assert npz(path, (4, 6))[0].images.shape == (30, 4, 6, 3)


def test_limit(tmp_path, made):
    path = put(tmp_path / "x.npz", OURS, made)
    assert [len(part) for part in npz(path, limit=10)] == [10, 9]
    path = put(tmp_path / "y.npz", OURS, made[:2])
    whole, few = npz(path), npz(path, limit=4)
    np.testing.assert_array_equal(few[0].images, whole[0].images[:4])
    assert len(few[1]) == 4


def test_other_arrays_are_left_unread(tmp_path, made):
    train, _ = npz(put(tmp_path / "x.npz", OURS, made, notes=np.array([{}], object)))
    assert len(train) == 30


# -- refusals ------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.mark.parametrize("names", [("images",), ("labels",), ("classes",), ("images", "labels")])
def test_objects_are_refused_and_nothing_is_run(tmp_path, made, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    evil = np.array([Evil()] * 30, object)
    arrays = dict(images=made[0], labels=made[1]) | dict.fromkeys(names, evil)
    np.savez("x.npz", **arrays)
    with pytest.raises(ValueError, match=r"x\.npz: \w+ is an array of Python objects, which could "
                                         r"run code: wanted numbers or strings"):
        npz("x.npz")
    assert not os.path.exists("marker")


@pytest.mark.parametrize("content", [
    pytest.param(pickle.dumps(Evil()), id="pickle"), pytest.param(b"", id="empty"),
    pytest.param(b"hello", id="text"), pytest.param(b"PK\3\4" + bytes(100), id="zip-header")])
def test_what_is_no_npz(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: (no \.npz file|the file is damaged)"):
        npz("x.npz")
    assert not os.path.exists("marker")


def test_an_npy_file(tmp_path, made):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, made[0])
    with pytest.raises(ValueError, match=r"no \.npz file"):
        npz(tmp_path / "x.npz")


def test_truncated_and_damaged(tmp_path, made, rng):
    path = put(tmp_path / "x.npz", OURS, made)
    content = path.read_bytes()
    for n in range(0, len(content), 97):
        path.write_bytes(content[:n])
        with pytest.raises(ValueError, match=r"x\.npz"):
            npz(path)
    for at in rng.integers(0, len(content), 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            npz(path)  # some bytes of a zip file say nothing about its content
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") or str(error).startswith(f"{path} holds")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("images", "hello")
        file.writestr("labels.npy", "hello")
    with pytest.raises(ValueError, match=r"x\.npz: \w+ is damaged"):
        npz(tmp_path / "x.npz")


def header(shape, descr="|u1", text=None):
    """The beginning of an .npy file."""
    told = text or repr(dict(descr=descr, fortran_order=False, shape=shape))
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(told) + 1) + told.encode() + b"\n"


def zipped(path, images, method=zipfile.ZIP_DEFLATED):
    """An .npz file with these bytes as its images, and four labels."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", header((4,), "<i8") + np.arange(4).tobytes())
    return path


@pytest.mark.parametrize("images, message", [
    (header((1 << 20, 100, 100, 3)), r"images is damaged: of shape .* 31,457,280,000 bytes, but 0"),
    (header((1 << 62, 1 << 62, 4)), "images is damaged: of shape"),
    (header((-1, -4)) + bytes(4), "images is damaged: of shape"),
    (header((4, 2, 2)) + bytes(17), "16 bytes, but 17 are there"),
    (header((4, 2, 2)) + bytes(15), "16 bytes, but 15 are there"),
    (header((0,), "|V2147483647"), r"images is an array of \|V2147483647, wanted numbers or str"),
    (header((4,), [("x", "<f4")]) + bytes(16), "images is an array of .*, wanted numbers or"),
    (header((4,), "<M8[s]") + bytes(32), "images is an array of datetime64"),
    (header(0, text="-" * 9000 + "1"), "its header is no description of an array"),
    (header(0, text="(" * 4500 + ")" * 4500), "images is damaged: "),
    (b"\x93NUMPY\2\0" + struct.pack("<I", 1 << 31) + bytes(1 << 24),
     "its header has 2,147,483,660 bytes, wanted at most 10,000"),
    (b"\x93NUMPY\3\0" + bytes(99), "no array, or one of a newer format")])
def test_a_header_is_not_believed(tmp_path, images, message):
    path = zipped(tmp_path / "x.npz", images)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"x\.npz: .*{message}") as caught:
            npz(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23 and len(str(caught.value)) < 500
    finally:
        tracemalloc.stop()


def test_arrays_that_do_not_fit_are_not_read(tmp_path, made, monkeypatch):
    """The sum counts; so do the copies that are made of images."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **dict(zip(OURS, made, strict=True)))
    need = made[0].nbytes + made[2].nbytes + 8 * (made[1].nbytes + made[3].nbytes)
    for free, fits in ((need - 1, False), (need, True)):
        monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda free=free: free)
        with contextlib.nullcontext() if fits else pytest.raises(
                MemoryError, match=r"x\.npz: its arrays need"):
            npz(path)
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 10**6)
    with pytest.raises(MemoryError, match="30 images of 400x400x3 need"):
        npz(path, 400)


def test_a_bomb_of_zeros_is_refused_by_its_size(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.npz", header((4, 1 << 11, 1 << 11)) + bytes(1 << 24))
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 1 << 24)
    tracemalloc.start()
    try:
        with pytest.raises(MemoryError, match=r"x\.npz: its arrays need 0\.02 GB of memory"):
            npz(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["labels", "classes"])
@pytest.mark.parametrize("words, message", [
    (np.array([b"\xff", b"a", b"b", b"c"]), "can't decode byte 0xff"),
    (np.array([2**31, 97, 98, 99], "<u4").view("<U1"), "text that is no Unicode"),
    (np.array([2**31, 97, 98, 99], ">u4").view(">U1"), "text that is no Unicode")])
def test_text_that_is_none(tmp_path, name, words, message):
    np.savez(tmp_path / "x.npz", **dict(images=IMAGES, labels=LABELS) | {name: words})
    with pytest.raises(ValueError, match=rf"x\.npz: {name} is damaged: .*{message}"):
        npz(tmp_path / "x.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_packings_are_refused(tmp_path, method):
    path = zipped(tmp_path / "x.npz", header((4, 2, 2)) + bytes(16), method)
    with pytest.raises(ValueError, match=rf"images is packed by method {method}, wanted a file as"):
        npz(path)


def test_an_encrypted_member_is_named(tmp_path, made):
    content = bytearray(put(tmp_path / "x.npz", OURS, made[:2]).read_bytes())
    at = content.index(b"PK\1\2")
    content[at + 8] |= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: images is encrypted"):
        npz(tmp_path / "x.npz")


def test_a_sum_that_is_wrong_names_the_member(tmp_path, made):
    content = bytearray(put(tmp_path / "x.npz", OURS, made[:2]).read_bytes())
    content[500] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: images is damaged: Bad CRC-32"):
        npz(tmp_path / "x.npz")


def test_endless_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuconv.data.members.DIRECTORY", 1 << 16)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for i in range(2000):
            file.writestr(str(i), b"")
    with pytest.raises(ValueError, match="its list of members is longer than 65,536 bytes"):
        npz(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    make_odd(tmp_path / "x.npz", kind)
    with pytest.raises(OSError, match=rf"x\.npz is a {kind}, wanted a file"):
        npz(tmp_path / "x.npz")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        npz(tmp_path / "gone.npz")


def twice(images, labels):
    return dict(images=images, labels=labels, test_images=images, test_labels=labels)


IMAGES, LABELS = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize("arrays, message", [
    (dict(x=IMAGES, y=LABELS), "holds x, y: wanted images and labels, or x_train and y_train"),
    (dict(), "holds nothing: wanted images and labels"),
    (dict(images=IMAGES, labels=LABELS, test_images=IMAGES),
     "holds only one of test_images and test_labels"),
    (twice(IMAGES.astype(int), LABELS), r"images are int64 of 0\.\.0, wanted uint8 of 0\.\.255 or"),
    (twice(IMAGES.astype(bool), LABELS), r"images are bool of False\.\.False, wanted uint8"),
    (twice(IMAGES + 255.0, LABELS), r"images are float64 of 255\.0\.\.255\.0, wanted uint8"),
    (twice(IMAGES - 0.5, LABELS), r"float64 of -0\.5\.\.-0\.5"),
    (twice(IMAGES + np.nan, LABELS), r"float64 of nan\.\.nan"),
    (twice(IMAGES + 0j, LABELS), r"complex128 of"),
    (twice(IMAGES[0, 0], LABELS), r"images have shape \(8, 3\), wanted \(N, H, W\) or"),
    (twice(IMAGES.reshape(4, 192), LABELS), r"images have shape \(4, 192\), wanted"),
    (twice(IMAGES.transpose(0, 3, 1, 2), LABELS),
     r"images have shape \(4, 3, 8, 8\), which looks like channels first; wanted \(N, H, W, C\): "
     r"images\.transpose\(0, 2, 3, 1\)"),
    (twice(IMAGES[:0], LABELS[:0]), r"holds 0 classes"),
    (twice(IMAGES[:3], LABELS), "3 images, 4 labels"),
    (twice(IMAGES, LABELS + 0.5), "labels are float64, wanted integers or strings"),
    (twice(IMAGES, np.eye(2)[LABELS]), r"labels have shape \(4, 2\), wanted \(N,\)"),
    (twice(IMAGES, LABELS * 0), "holds 1 classes, wanted at least two"),
    (twice(IMAGES, LABELS) | dict(test_labels=LABELS + 1),
     "label 2 is of no class: there are 0, 1"),
    (twice(IMAGES, LABELS) | dict(test_labels=np.array(["0", "1", "0", "1"])), "of two kinds"),
    (twice(IMAGES, LABELS) | dict(classes=np.array(["cat"])), "holds 1 classes"),
    (twice(IMAGES, LABELS + 1) | dict(classes=np.array(["cat", "dog"])), "label 2 is of no class"),
    (twice(IMAGES, LABELS - 1) | dict(classes=np.array(["cat", "dog"])), "label -1 is of no class"),
    (twice(IMAGES, LABELS) | dict(classes=np.array(["cat", "cat"])), "wanted names"),
    (twice(IMAGES, LABELS) | dict(classes=np.array([["cat", "dog"]])), "wanted names"),
    (twice(IMAGES, np.array(["a", "b"] * 2)) | dict(classes=np.array(["cat", "dog"])),
     "label a is of no class: there are cat, dog"),
    (twice(IMAGES, LABELS) | dict(test_images=IMAGES[:, :4]),
     r"images have shape \(4, 8, 8, 3\), test_images \(4, 4, 8, 3\)"),
    (dict(images=IMAGES[:3], labels=np.array([0, 0, 1])), r"\.npz: class 1 has a single image"),
])
def test_refusals(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        npz(tmp_path / "x.npz")


@pytest.mark.parametrize("name, shape, descr", [
    ("labels", (10**9,), "|S0"), ("labels", (2**62,), "<U0"), ("classes", (10**8,), "<U0")])
def test_text_of_no_characters_is_refused(tmp_path, name, shape, descr):
    """A thousand million of them would be in a file of a few hundred bytes."""
    parts = {"images": header((10, 2, 2, 3)) + bytes(120),
             "labels": header((10,)) + bytes(5) + b"\1" * 5, name: header(shape, descr)}
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for part, blob in parts.items():
            archive.writestr(f"{part}.npy", blob)
    with pytest.raises(ValueError, match=f"x.npz: {name} .*text of no characters"):
        npz(tmp_path / "x.npz")


def test_images_of_text(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.full((10, 8, 8), "a"), labels=[0, 1] * 5)
    with pytest.raises(ValueError, match="x.npz: images are <U1, wanted uint8 of 0..255 or floats"):
        npz(tmp_path / "x.npz")


def test_many_members_make_a_short_message(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"a{i}": np.zeros(1) for i in range(500)})
    with pytest.raises(ValueError, match="x.npz holds .* and 490 more: wanted images"):
        npz(tmp_path / "x.npz")


def test_images_that_are_almost_black_are_a_warning(tmp_path):
    """As scikit-learn's digits are, 0..16, when they are made uint8."""
    images = np.zeros((10, 8, 8), "uint8")
    images[:, 2] = 16
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1] * 5)
    with pytest.warns(UserWarning, match="x.npz: the largest value of images is 16 of 255"):
        npz(tmp_path / "x.npz")
