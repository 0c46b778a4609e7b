"""folder: images per class, however they lie there."""

import os
import pathlib
import random
import sys

import numpy as np
import pytest
from PIL import Image

from gpuconv import threads
from gpuconv.data import Loader, folder, read_image

COLOURS = {"cat": (250, 10, 10), "dog": (10, 250, 10), "owl": (10, 10, 250)}


def put(path, colour, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)


def pets(root, count=10, classes=COLOURS):
    """Image i of a class is its colour with i in green, so that each is known."""
    for name in classes:
        r, _, b = COLOURS[name]
        for i in range(count):
            put(root / name / f"{i:02}.png", (r, i, b))
    return root


def which(dataset):
    """{(class, number)} of a set made by pets."""
    return [(dataset.classes[label], int(image[0, 0, 1]))
            for image, label in zip(dataset.images, dataset.labels, strict=True)]


def colour_matches(dataset):
    """Does each label belong to its image?"""
    reds_and_blues = dataset.images[:, 0, 0][:, [0, 2]].tolist()
    wanted = [COLOURS[dataset.classes[label]] for label in dataset.labels]
    return reds_and_blues == [[r, b] for r, _, b in wanted]


# -- what is read --------------------------------------------------------------------------


def test_a_folder_per_class_is_split(tmp_path):
    train, test = folder(pets(tmp_path / "pets"), image_size=8)
    assert train.images.shape == (24, 8, 8, 3) and test.images.shape == (6, 8, 8, 3)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert train.classes == test.classes == ("cat", "dog", "owl")
    assert (train.name, test.name) == ("pets train", "pets test")
    assert colour_matches(train) and colour_matches(test)
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert sorted(which(train) + which(test)) == sorted((n, i) for n in COLOURS for i in range(10))


@pytest.mark.parametrize("names", [("train", "test"), ("train", "val"), ("train", "validation"),
                                   ("train", "test", "val")])
def test_train_and_test_folders_are_taken_as_they_are(tmp_path, names):
    for n, name in enumerate(names):
        pets(tmp_path / name, count=6 - 2 * n)
    train, test = folder(tmp_path, 8)
    assert sorted(which(train)) == sorted((n, i) for n in COLOURS for i in range(6))
    assert sorted(which(test)) == sorted((n, i) for n in COLOURS for i in range(4))
    assert colour_matches(train) and colour_matches(test)


def test_a_train_folder_alone_is_split(tmp_path):
    pets(tmp_path / "train")
    train, test = folder(tmp_path, 8)
    assert train.classes == tuple(COLOURS) and (len(train), len(test)) == (24, 6)


def test_train_may_be_the_name_of_a_class(tmp_path):
    for name in ("train", "bus", "test"):
        for i in range(4):
            put(tmp_path / name / f"{i}.png", COLOURS["cat"])
    assert folder(tmp_path, 8)[0].classes == ("bus", "test", "train")


def test_a_test_folder_may_lack_a_class(tmp_path):
    pets(tmp_path / "train", 3)
    pets(tmp_path / "test", 3, ["owl"])
    _, test = folder(tmp_path, 8)
    assert test.classes == tuple(COLOURS) and test.labels.tolist() == [2, 2, 2]


def test_images_may_lie_deeper_and_other_files_beside_them(tmp_path):
    pets(tmp_path, 4)
    os.renames(tmp_path / "cat" / "03.png", tmp_path / "cat" / "from anna" / "2019" / "é x.PNG")
    for name in ("notes.txt", "cat/Thumbs.db", "cat/.hidden.png", "cat/._00.png", ".git/x.png",
                 "cat/.cache/00.png", "__MACOSX/cat/00.png", "labels.csv", "00.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no image")
    train, test = folder(tmp_path, 8)
    assert sorted(which(train) + which(test)) == sorted((n, i) for n in COLOURS for i in range(4))


def test_links_to_images_and_classes(tmp_path):
    pets(tmp_path / "store", 4)
    (tmp_path / "pets").mkdir()
    for name in COLOURS:
        (tmp_path / "pets" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "cat" / "loop").symlink_to(tmp_path / "store")
    assert sum(map(len, folder(tmp_path / "pets", 8))) == 12


def test_any_size_and_kind_becomes_one(tmp_path):
    for i, (size, kind) in enumerate([((40, 30), "jpg"), ((5, 9), "gif"), ((64, 64), "bmp"),
                                      ((200, 20), "webp"), ((33, 31), "tiff"), ((9, 9), "jpeg")]):
        path = tmp_path / "ab"[i % 2] / f"{i}.{kind}"
        path.parent.mkdir(exist_ok=True)
        Image.new("L" if i % 2 else "RGB", size, i * 9).save(path)
    train, test = folder(tmp_path, (12, 16), test_share=0.4)
    assert train.images.shape == (4, 12, 16, 3) and test.images.shape == (2, 12, 16, 3)
    train, _ = folder(tmp_path, 16, channels=1)
    assert train.images.shape == (4, 16, 16, 1)
    x, labels = next(Loader(train, 3).epoch(0))
    assert x.shape == (3, 16, 16, 1) and labels.shape == (3,)


def test_each_image_is_as_read_image_has_it(tmp_path, rng):
    made = {}
    for i in range(8):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        made[read_image(path, 8).tobytes()] = i % 2
    for part in folder(tmp_path, 8):
        for image, label in zip(part.images, part.labels, strict=True):
            assert made.pop(image.tobytes()) == label
    assert not made


# -- the same everywhere -------------------------------------------------------------------


def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    pets(tmp_path)
    want = [part.fingerprint for part in folder(tmp_path, 8)]
    walk, iterdir = os.walk, pathlib.Path.iterdir

    def mixed(things):
        things = list(things)
        random.Random(1).shuffle(things)
        return things

    def mixed_walk(top):
        for where, folders, names in walk(top):
            folders[:] = mixed(folders)
            yield where, folders, mixed(names)

    monkeypatch.setattr(os, "walk", mixed_walk)
    monkeypatch.setattr(pathlib.Path, "iterdir", lambda path: iter(mixed(iterdir(path))))
    assert [part.fingerprint for part in folder(tmp_path, 8)] == want


def test_the_number_of_threads_does_not_matter(tmp_path, monkeypatch):
    pets(tmp_path)
    prints = []
    for count in (1, 4):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        prints.append([part.fingerprint for part in folder(tmp_path, 8)])
    assert prints[0] == prints[1]


def test_a_seed_gives_the_same_split_and_another_one_another(tmp_path):
    pets(tmp_path)
    first, again, other = (folder(tmp_path, 8, seed=seed) for seed in (5, 5, 6))
    assert [p.fingerprint for p in first] == [p.fingerprint for p in again]
    assert set(which(first[1])) != set(which(other[1]))


def test_a_fingerprint_tells_what_changed(tmp_path):
    pets(tmp_path)
    before = folder(tmp_path, 8)[0].fingerprint
    put(tmp_path / "cat" / "00.png", (1, 2, 3))
    put(tmp_path / "cat" / "01.png", (1, 2, 3))
    put(tmp_path / "cat" / "02.png", (1, 2, 3))
    changed = folder(tmp_path, 8)[0].fingerprint
    (tmp_path / "owl").rename(tmp_path / "pig")
    assert len({before, changed, folder(tmp_path, 8)[0].fingerprint}) == 3


def test_a_limit_reads_no_more(tmp_path, monkeypatch):
    pets(tmp_path)
    whole, seen = folder(tmp_path, 8), []
    train, test = folder(tmp_path, 8, limit=5, progress=lambda *both: seen.append(both))
    for few, all_of in zip((train, test), whole, strict=True):
        np.testing.assert_array_equal(few.images, all_of.images[:5])
        np.testing.assert_array_equal(few.labels, all_of.labels[:5])
    assert seen == [(10, 10)]


def test_progress_counts_to_the_end(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sys.modules["gpuconv.data.folder"], "ROUND", 4)
    monkeypatch.setattr(threads, "count", lambda: 2)
    folder(pets(tmp_path), 8, progress=lambda *both: seen.append(both))
    assert seen == [(8, 30), (16, 30), (24, 30), (30, 30)]


# -- refusals ------------------------------------------------------------------------------


def test_damaged_images_are_named_and_counted(tmp_path):
    pets(tmp_path)
    for name in ("dog/07.png", "cat/03.png", "owl/00.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{tmp_path}/cat/03\.png: .*damaged.* \(3 of the 30 "
                                         rf"images in {tmp_path} cannot be read; repair"):
        folder(tmp_path, 8)


@pytest.mark.parametrize("names, message", [
    ([], r"holds no folders: wanted a folder of images for each class, at least two"),
    (["a.png", "b.png"], r"holds images, but no folders"),
    (["cat/1.png", "cat/2.png"], r"holds only the folder cat: wanted"),
    (["cat/1.png", "cat/2.png", "dog/readme.txt"], r"dog holds no image: nothing there ends in"),
    (["cat/1.png", "cat/2.png", "dog/1.png"], r"^/.*: class dog has a single image, wanted"),
    (["train/cat/1.png", "train/dog/1.png", "test/cow/1.png"],
     r"test/cow is a class that .*train does not have"),
    (["train/cat/1.png", "train/dog/1.png", "test/cat/x.txt"], r"test/cat holds no image"),
    (["train/cat/1.png", "test/cat/1.png"], r"train holds only the folder cat"),
    (["cat/.1.png", "dog/.1.png"], r"cat holds no image"),
])
def test_a_folder_that_will_not_do(tmp_path, names, message):
    for name in names:
        put(tmp_path / name, (1, 2, 3)) if name.endswith("png") else put(
            tmp_path / name.replace(".txt", ".png"), (1, 2, 3))
        if name.endswith(".txt"):
            (tmp_path / name.replace(".txt", ".png")).rename(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, 8)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        folder(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file: no such folder"):
        folder(tmp_path / "file")


def test_an_unreadable_image_is_named(tmp_path):
    pets(tmp_path, 3)
    (tmp_path / "cat" / "00.png").unlink()
    (tmp_path / "cat" / "00.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"^/.*cat/00\.png: No such file[^\[]*1 of the 9 images"):
        folder(tmp_path, 8)


def test_more_than_fits(tmp_path, monkeypatch):
    pets(tmp_path)
    monkeypatch.setattr("gpuconv.backend.free_memory", lambda: 5000)
    with pytest.raises(MemoryError, match="30 images of 8x8x3 take 5,760 bytes, and 5,000 are fre"):
        folder(tmp_path, 8)
    assert len(folder(tmp_path, 7)[0]) == 24
