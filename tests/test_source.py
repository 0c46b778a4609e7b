"""Source: what --data says; Dataset.fingerprint: whether the data are the same."""

import binascii
import dataclasses
import functools
import json
import pathlib
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from test_cifar10 import batches, binary_files, pack, put

from gpuconv.data import Dataset, Source, cifar10, folder, npz, shapes

module = sys.modules["gpuconv.data.source"]
FOLDER = "cifar-10-batches-bin"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty working folder and cache; CIFAR-10 of any size is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(module, "cifar10", functools.partial(cifar10, verify=False))
    return tmp_path


@pytest.fixture
def found(places, rng):
    """The folder of a small CIFAR-10."""
    return put(places / "data" / FOLDER, binary_files(batches(rng)))


@pytest.fixture
def pets(places):
    for name in ("cat", "dog"):
        (places / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (9, 9), i * 20).save(places / "pets" / name / f"{i}.png")
    return places / "pets"


def digits(places):
    np.savez(places / "digits.npz", images=np.zeros((20, 8, 8), "uint8"), labels=np.arange(20) % 2)
    return places / "digits.npz"


# -- what a person means -------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "auto", "cifar10", "shapes"])
def test_names(places, text):
    more = dict(limit=5, image_size=16, test_share=0.5, seed=3)
    assert Source.from_options(text, **more) == Source(text or "auto", None, **more)


def test_paths_become_absolute(pets, places):
    assert Source.from_options("pets") == Source("folder", str(pets))
    assert Source.from_options(pets) == Source("folder", str(pets))
    path = digits(places)
    assert Source.from_options("digits.npz") == Source("npz", str(path))


def test_home(pets, places, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    monkeypatch.setenv("USERPROFILE", str(places))
    assert Source.from_options("~/pets").path == str(pets)


def test_a_folder_or_an_archive_of_cifar10(found, places, rng):
    assert Source.from_options(found) == Source("cifar10", str(found))
    assert Source.from_options("data") == Source("cifar10", str(places / "data"))
    assert Source.from_options(data_dir="data") == Source("cifar10", str(places / "data"))
    assert Source.from_options("cifar10", data_dir="data") == Source(
        "cifar10", str(places / "data"))
    path = pack(places / "mine.tgz", [(n, b) for n, b in binary_files(batches(rng)).items()])
    assert Source.from_options("mine.tgz") == Source("cifar10", str(path))
    assert len(Source.from_options("mine.tgz").load()[0]) == 15


def test_a_name_wins_over_a_folder(places, pets):
    pets.rename(places / "shapes")
    assert Source.from_options("shapes").kind == "shapes"
    assert Source.from_options("./shapes").kind == "folder"


@pytest.mark.parametrize("text, data_dir, error, message", [
    ("gone", None, FileNotFoundError, "data gone: no such file or folder; wanted cifar10, shapes"),
    ("gone.npz", None, FileNotFoundError, "data gone.npz: no such file"),
    ("notes.txt", None, ValueError, r"data notes\.txt: wanted cifar10, shapes, a folder"),
    (None, "gone", FileNotFoundError, "--data-dir gone: no such file or folder"),
    ("shapes", ".", ValueError, r"--data-dir \. is where CIFAR-10 is; shapes are drawn"),
    ("pets", ".", ValueError, r"--data-dir \. is where CIFAR-10 is; pets is a place already")])
def test_refusals(places, text, data_dir, error, message):
    (places / "notes.txt").touch()
    with pytest.raises(error, match=message):
        Source.from_options(text, data_dir=data_dir)


def test_a_source_is_one():
    with pytest.raises(ValueError, match="data of kind 'mnist': wanted one of auto, cifar10"):
        Source("mnist")
    with pytest.raises(ValueError, match="data of kind folder needs a path"):
        Source("folder")
    with pytest.raises(ValueError, match="split 3, wanted 1 or 2"):
        Source("folder", "/x", split=3)


def test_it_goes_through_json(pets):
    source = Source.from_options(pets, limit=3, seed=2, skip_broken=True)
    assert Source(**json.loads(json.dumps(dataclasses.asdict(source)))) == source
    with pytest.raises(ValueError, match="skip_broken 'no', wanted true or false"):
        Source("folder", "/x", skip_broken="no")


# -- load ----------------------------------------------------------------------------------


def same(got, want):
    assert [part.fingerprint for part in got] == [part.fingerprint for part in want]
    assert [part.name for part in got] == [part.name for part in want]


def test_loads_what_the_functions_load(pets, places):
    path = digits(places)
    same(Source.from_options(pets, seed=4, test_share=0.3, image_size=7).load(),
         folder(pets, 7, 0.3, 4))
    same(Source.from_options(pets, limit=3).load(), folder(pets, limit=3))
    same(Source.from_options(path, seed=4, test_share=0.3, image_size=7).load(),
         npz(path, 7, 0.3, 4))
    same(Source.from_options(path, limit=3).load(), npz(path, limit=3))
    same(Source.from_options("shapes", limit=30, seed=9).load(), shapes(30, 30))


def test_auto_is_cifar10_where_it_is_found(found, places):
    train, test = Source().load()
    assert (train.name, len(train), len(test)) == ("CIFAR-10 train", 15, 3)
    assert Source().describe(train, test) == (
        f"CIFAR-10, 15 + 3 images, from {pathlib.Path('data', FOLDER)}")
    resolved = Source().resolved()
    assert resolved == Source("cifar10", str(found))
    assert resolved.describe(train, test) == f"CIFAR-10, 15 + 3 images, from {found}"
    same(resolved.load(), (train, test))


def test_auto_is_shapes_elsewhere(places):
    train, test = Source(limit=20).load()
    assert train.name == "shapes train" and Source().resolved() == Source("shapes")
    assert Source().describe(train, test) == ("shapes, 20 + 20 images, drawn; found no CIFAR-10 "
                                              "(--download fetches it)")
    assert Source("shapes").describe(train, test) == "shapes, 20 + 20 images, drawn"


@pytest.mark.parametrize("kind", ["auto", "cifar10"])
def test_download_is_asked_for(places, monkeypatch, kind):
    asked = []

    def fake(root, download, *, progress):
        asked.append((root, download))
        if not download:
            raise FileNotFoundError("none")
        progress(5, 10)
        return shapes(4, 2)

    monkeypatch.setattr(module, "cifar10", fake)
    seen = []
    train, _ = Source(kind).load(download=True, progress=lambda *all_of: seen.append(all_of))
    assert asked == [(None, True)] and seen == [(5, 10, "bytes")]
    if kind == "cifar10":
        with pytest.raises(FileNotFoundError):
            Source(kind).load()


def test_progress_of_a_folder(pets):
    seen = []
    Source.from_options(pets).load(progress=lambda *all_of: seen.append(all_of))
    assert seen[-1] == (20, 20, "images")


def test_image_size_and_limit_hold_for_all(found):
    for source in (Source("cifar10", limit=2, image_size=20),
                   Source("shapes", limit=2, image_size=20)):
        train, test = source.load()
        assert train.images.shape == test.images.shape == (2, 20, 20, 3)


def test_says(pets, places):
    source = Source.from_options(pets, image_size=12)
    assert source.describe(*source.load()) == (
        f"pets, 2 classes, 16 + 4 images of 12x12, from {pets}")
    path = digits(places)
    source = Source.from_options(path)
    assert source.describe(*source.load()) == (
        f"digits, 2 classes, 16 + 4 images of 8x8, from {path}")


# -- fingerprints --------------------------------------------------------------------------


def make(images=None, labels=(0, 1, 1), classes=("a", "b"), name="x"):
    if images is None:
        images = np.arange(36, dtype="uint8").reshape(3, 2, 2, 3)
    return Dataset(images, np.int32(labels), classes, name)


def test_a_fingerprint_is_of_the_content(cp):
    one = make()
    assert len(one.fingerprint) == 8 and int(one.fingerprint, 16) >= 0
    assert make(name="other").fingerprint == one.fingerprint
    assert make(one.images[::-1].copy()[::-1]).fingerprint == one.fingerprint
    gpu = Dataset(cp.asarray(one.images), cp.asarray(one.labels), one.classes, "x")
    assert gpu.fingerprint == one.fingerprint


def test_any_change_changes_it():
    one = make()
    bit = one.images.copy()
    bit[2, 1, 1, 2] ^= 1
    changed = [make(bit), make(labels=(0, 1, 0)), make(classes=("a", "c")),
               make(classes=("a", "b", "c")), make(one.images.reshape(3, 4, 1, 3)),
               make(one.images[[1, 0, 2]]), one[:2], make(one.images[:0], ())]
    prints = [one.fingerprint, *(d.fingerprint for d in changed)]
    assert len(set(prints)) == len(prints)


def test_names_follow_their_images(xp):
    names = np.array(["a/1.png", "b/2.png", "b/3.png"], object)
    one = dataclasses.replace(make(), names=names).to("cpu" if xp is np else "cuda")
    assert one.fingerprint == make().fingerprint
    assert one[1:].names.tolist() == ["b/2.png", "b/3.png"]
    assert one[xp.asarray([2, 0])].names.tolist() == ["b/3.png", "a/1.png"]
    with pytest.raises(ValueError, match="x: 2 names, 3 labels"):
        dataclasses.replace(make(), names=names[:2])


def test_what_the_fingerprint_is():
    """Checkpoints remember it: it must stay."""
    one = make()
    told = b"((3, 2, 2, 3), ('a', 'b'))" + bytes(range(36)) + struct.pack("<3i", 0, 1, 1)
    assert one.fingerprint == f"{binascii.crc32(told):08x}"
