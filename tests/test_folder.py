"""folder: images per class, however they lie there."""

import contextlib
import os
import random
import sys
import unicodedata

import numpy as np
import pytest
from odd_files import make_odd
from PIL import Image

from gpuconv import threads
from gpuconv.data import Loader, Source, folder, images, read_image
from gpuconv.data.folder import folder_by_position, whole_folder

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
                                   ("train", "test", "val"), ("Train", "TEST"),
                                   ("training", "Testing"), ("train", "valid", "__pycache__"),
                                   ("TRAINING", "testing", "Validation")])
def test_train_and_test_folders_are_taken_as_they_are(tmp_path, names):
    for n, name in enumerate(names):
        (tmp_path / name).mkdir()
        if name != "__pycache__":  # without images
            pets(tmp_path / name, count=6 - 2 * n)
    train, test = folder(tmp_path, 8)
    assert sorted(which(train)) == sorted((n, i) for n in COLOURS for i in range(6))
    assert sorted(which(test)) == sorted((n, i) for n in COLOURS for i in range(4))
    assert colour_matches(train) and colour_matches(test)


def test_a_train_folder_alone_is_split(tmp_path):
    pets(tmp_path / "train")
    train, test = folder(tmp_path, 8)
    assert train.classes == tuple(COLOURS) and (len(train), len(test)) == (24, 6)


def test_the_line_about_a_folder_says_which_set_is_not_used(tmp_path):
    for name in ("train", "test", "Val"):
        pets(tmp_path / name, 2)
    source = Source.from_options(tmp_path, image_size=8)
    assert source.describe(*source.load()).endswith(f", from {tmp_path}; Val/ is not used")


@pytest.mark.parametrize("names, message", [
    (["train", "test", "extra"], "holds train/ and test/ beside extra/: unclear whether these are "
     "sets or classes. If they are sets, move extra/ elsewhere; if classes, give train/ and test/"),
    (["train", "unlabeled"], "holds train/ beside unlabeled/"),
    (["train", "bus", "test"], "holds train/ and test/ beside bus/"),
    (["test", "control"], "holds test/ beside control/"),
    (["test", "val"], "holds test/ and val/ but no train/: .* put training images into train/"),
    (["valid", "invalid"], "holds valid/ beside invalid/"),
    (["Train", "training", "test"], "holds Train/ and training/, two names of the train set"),
    (["train", "test", "testing"], "holds test/ and testing/, two names of the test set"),
    (["train", "val", "Valid"], "holds Valid/ and val/, two names of the validation set"),
    (["train/train", "train/test"], "train holds train/ and test/ .* give .*train as the data"),
    (["a/train", "a/test", "b/train", "b/test"], "a holds train/ and test/: wanted the sets above"),
])
@pytest.mark.parametrize("deeper", ["", "cat"])
def test_folders_that_may_be_sets_or_classes_are_refused(tmp_path, names, message, deeper):
    for name in names:
        for i in range(3):
            put(tmp_path / name / deeper / f"{i}.png", COLOURS["cat"])
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        folder(tmp_path, 8)


def test_a_class_of_trains_inside_a_set(tmp_path):
    for name in ("train/train", "train/bus", "test/train", "test/bus"):
        put(tmp_path / name / "1.png", COLOURS["cat"])
    assert folder(tmp_path, 8)[0].classes == ("bus", "train")


@pytest.mark.parametrize("theirs", ["Cat", "CAT"])
def test_classes_of_two_spellings_are_refused(tmp_path, theirs):
    pets(tmp_path / "train", 2)
    pets(tmp_path / "test", 2)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / theirs)
    with pytest.raises(ValueError, match=f"test/{theirs} and .*train/cat are spelt differently"):
        folder(tmp_path, 8)


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


# -- links ---------------------------------------------------------------------------------


def test_links_to_images_and_classes(tmp_path):
    pets(tmp_path / "store", 4)
    (tmp_path / "pets").mkdir()
    for name in COLOURS:
        (tmp_path / "pets" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "cat" / "loop").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "dog" / "up").symlink_to(tmp_path / "pets")
    (tmp_path / "store" / "owl" / "self").symlink_to(tmp_path / "store" / "owl")
    assert sum(map(len, folder(tmp_path / "pets", 8))) == 12


@pytest.mark.parametrize("target", [".", ".."])
def test_a_class_that_links_to_all_classes_is_refused(tmp_path, target):
    pets(tmp_path / "pets", 3)
    (tmp_path / "pets" / "zoo").symlink_to(target)
    with pytest.raises(ValueError, match="zoo is a link to a folder that it lies in; remove it"):
        folder(tmp_path / "pets", 8)


def test_linked_folders_inside_a_class_are_followed(tmp_path):
    pets(tmp_path / "elsewhere", 5, ["cat"])
    pets(tmp_path / "pets", 2)
    (tmp_path / "pets" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "even").mkdir()
    put(tmp_path / "even more" / "x.png", (COLOURS["cat"][0], 99, COLOURS["cat"][2]))
    (tmp_path / "elsewhere" / "even" / "more").symlink_to(tmp_path / "even more")
    both = folder(tmp_path / "pets", 8)
    assert sum(np.bincount(part.labels) for part in both).tolist() == [2 + 5 + 1, 2, 2]
    names = sorted(name for part in both for name in part.names if name.startswith("cat"))
    assert names == [*(f"cat/0{i}.png" for i in range(2)), "cat/more/cat/00.png",
                     *(f"cat/more/cat/0{i}.png" for i in range(1, 5)),
                     "cat/more/even/more/x.png"]


def test_a_file_that_a_class_reaches_twice_counts_once(tmp_path):
    pets(tmp_path / "pets", 4)
    cat = tmp_path / "pets" / "cat"
    (cat / "again.png").symlink_to(cat / "00.png")
    os.link(cat / "01.png", cat / "hard.png")
    for name in ("one", "two"):
        (cat / name).symlink_to(tmp_path / "more")
    put(tmp_path / "more" / "x.png", COLOURS["cat"])
    names = [name for part in folder(tmp_path / "pets", 8) for name in part.names]
    assert sorted(name for name in names if name.startswith("cat")) == [
        *(f"cat/0{i}.png" for i in range(4)), "cat/one/x.png"]


def test_two_classes_may_share_a_folder(tmp_path):
    pets(tmp_path / "pets", 4)
    (tmp_path / "pets" / "dog" / "cats").symlink_to(tmp_path / "pets" / "cat")
    both = folder(tmp_path / "pets", 8)
    assert sum(np.bincount(part.labels) for part in both).tolist() == [4, 8, 4]


@pytest.mark.parametrize("link", ["test/cat/00.png", "test/cat/more", "test/cat", "test"])
def test_a_training_image_is_not_linked_into_the_test_set(tmp_path, link):
    pets(tmp_path / "train", 2)
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    target = {"test/cat/00.png": "train/cat/00.png", "test": "train"}.get(link, "train/cat")
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"test/cat/.*00\.png is the same file as .*train/cat/00"):
        folder(tmp_path, 8)


@pytest.mark.parametrize("link", ["pig", "cat/more"])
def test_a_link_to_a_folder_that_is_gone_is_named(tmp_path, link):
    pets(tmp_path, 3)
    (tmp_path / link).symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{link}: a link that leads nowhere .*repair or remove"):
        folder(tmp_path, 8)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    pets(tmp_path, 3)
    (tmp_path / "cat" / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        folder(tmp_path, 8)


# -- files come and go ---------------------------------------------------------------------


def held_out(path, **more):
    return set(folder(path, 8, **more)[1].names)


def test_a_file_that_comes_goes_or_is_renamed_moves_at_most_one_other(tmp_path):
    pets(tmp_path, 20)
    for i in range(10):
        before = held_out(tmp_path)
        (tmp_path / "cat" / f"{i:02}.png").unlink()
        assert len((held_out(tmp_path) ^ before) - {f"cat/{i:02}.png"}) <= 1
        before = held_out(tmp_path)
        (tmp_path / "dog" / f"{i:02}.png").rename(tmp_path / "dog" / f"other {i}.png")
        moved = (held_out(tmp_path) ^ before) - {f"dog/{i:02}.png", f"dog/other {i}.png"}
        assert len(moved) <= 1 and not [name for name in moved if not name.startswith("dog")]


def test_accents_are_the_same_in_either_form(tmp_path):
    for form in ("NFC", "NFD"):
        for label in "ab":
            for i in range(20):
                put(tmp_path / form / label / unicodedata.normalize(form, f"\u00e9t\u00e9 {i}.png"),
                    (i, i, i))
    composed, other = (held_out(tmp_path / form) for form in ("NFC", "NFD"))
    assert composed == {unicodedata.normalize("NFC", name) for name in other} != other


def test_the_split_and_the_files_of_older_runs(tmp_path):
    """By position, links to folders passed over, train/ a class: written down from version 0.1.0
    before names counted."""
    names = dict(cat=10, dog=20, train=30)
    for name, red in names.items():
        for i in range(10):
            put(tmp_path / name / f"{i:02}.png", (red, i, 0))
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "dog")
    train, test = folder_by_position(tmp_path, 8, 0.2, 0)
    assert test.names.tolist() == ["train/09.png", "cat/05.png", "dog/06.png", "train/00.png",
                                   "cat/03.png", "dog/07.png"]
    assert (train.fingerprint, test.fingerprint) == ("0f92f0ab", "431233e6")


# -- any image -----------------------------------------------------------------------------


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
    scandir = os.scandir

    @contextlib.contextmanager
    def mixed(path):
        with scandir(path) as found:
            entries = list(found)
        random.Random(1).shuffle(entries)
        yield iter(entries)

    monkeypatch.setattr(os, "scandir", mixed)
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


def spoil(root, *names):
    """Cut these images off in the middle."""
    for name in names:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])


def test_all_damaged_images_are_listed(tmp_path):
    names = ("cat/03.png", "dog/07.png", "owl/00.png")
    spoil(pets(tmp_path), *names)
    with pytest.raises(ValueError) as caught:
        folder(tmp_path, 8)
    first, lines = str(caught.value), caught.value.__notes__
    assert first == (f"3 of the 30 images in {tmp_path} cannot be read (repair or remove them, or "
                     "go on without: --skip-broken, skip_broken=True):")
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"  {tmp_path}/{name}: ") and "damaged" in line


def test_a_long_list_of_damaged_images_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["gpuconv.data.folder"], "SHOWN", 2)
    spoil(pets(tmp_path), *(f"cat/0{i}.png" for i in range(5)))
    with pytest.raises(ValueError, match=r"(?s)5 of .*cat/00\.png.*cat/01\.png.*\.\.\. and 3 more"
                       ) as caught:
        folder(tmp_path, 8)
    assert "cat/02.png" not in "".join(caught.value.__notes__)


def test_broken_images_are_skipped_and_no_other_changes_sets(tmp_path):
    pets(tmp_path)
    whole = folder(tmp_path, 8)
    gone = {whole[0].names[3], whole[0].names[10], whole[1].names[2]}
    spoil(tmp_path, *gone)
    with pytest.warns(UserWarning, match="3 of the 30 images in .* cannot be read, left "
                                         "out: /.*; /.*; /") as seen:
        parts = folder(tmp_path, 8, skip_broken=True)
    assert all(name in str(seen[0].message) for name in gone)
    for got, want in zip(parts, whole, strict=True):
        kept = [i for i, name in enumerate(want.names) if name not in gone]
        assert got.fingerprint == want[np.array(kept)].fingerprint
        assert got.names.tolist() == want.names[kept].tolist() and got.name == want.name
    with pytest.warns(UserWarning, match="3 of the 30"):
        assert len(whole_folder(tmp_path, 8, skip_broken=True)) == 27
    with pytest.raises(ValueError, match="3 of the 30"):
        whole_folder(tmp_path, 8)


@pytest.mark.parametrize("broken, message", [
    ([f"train/cat/0{i}.png" for i in range(3)], "no image of class cat that can be read is left to "
     "train with"),
    ([f"test/{name}/0{i}.png" for i in range(3) for name in COLOURS], "is left to test with")])
@pytest.mark.filterwarnings("ignore:.*cannot be read, left out")
def test_a_set_of_broken_images_is_refused(tmp_path, broken, message):
    for name in ("train", "test"):
        pets(tmp_path / name, 3)
    spoil(tmp_path, *broken)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, 8, skip_broken=True)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "link to nowhere", "link to itself"])
def test_what_is_no_file_is_a_broken_image(tmp_path, kind):
    pets(tmp_path, 3)
    make_odd(tmp_path / "cat" / "x.png", kind)
    want = {"link to nowhere": r"a link to .*nowhere, which is not there", "link to itself":
            "too many levels of symbolic links"}.get(kind, f"is a {kind}, wanted a file")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/cat/x\.png.*{want} \(1 of the 10 images"):
        folder(tmp_path, 8)
    with pytest.warns(UserWarning, match=rf"cat/x\.png.*{want}"):
        assert sum(map(len, folder(tmp_path, 8, skip_broken=True))) == 9


def test_images_that_cannot_be_read_are_named(tmp_path):
    pets(tmp_path, 3)
    for name in ("cat/a.HEIC", "cat/b.heic", "owl/in/c.svg", "dog/d.cr2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"anything")
    (tmp_path / "dog" / "photo").write_bytes((tmp_path / "dog" / "00.png").read_bytes())
    (tmp_path / "dog" / "README").write_text("no image")
    for read in (folder, whole_folder):
        with pytest.warns(UserWarning) as seen:
            read(tmp_path, 8)
        assert [str(w.message) for w in seen] == [
            f"{tmp_path}: left out 4 images of kinds that cannot be read (cat/a.HEIC, cat/b.heic, "
            "dog/d.cr2 and 1 more): convert them to JPEG or PNG",
            f"{tmp_path}: left out 1 image without a suffix (dog/photo): rename them: 1.jpg, say"]
    for path in (tmp_path / "dog").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"dog holds no image that can be read, but 2 of other "
                                         r"kinds or without a suffix \(d\.cr2, photo\): convert"):
        folder(tmp_path, 8)


def test_a_format_that_pillow_lacks_is_named(tmp_path, monkeypatch):
    pets(tmp_path, 3)
    (tmp_path / "cat" / "new.avif").write_bytes(b"anything")
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    images.suffixes.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"1 image of kinds that .*cat/new\.avif"):
            folder(tmp_path, 8)
    finally:
        images.suffixes.cache_clear()


def test_a_folder_without_images_is_no_class(tmp_path):
    for name in ("train", "test"):
        pets(tmp_path / name, 3)
        (tmp_path / name / "bat").mkdir()
    (tmp_path / "train" / "bat" / "notes.txt").touch()
    for path in (tmp_path / "test" / "dog").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="no image in train/bat, test/bat, test/dog: left out of "
                                         "the classes"):
        train, test = folder(tmp_path, 8)
    assert train.classes == tuple(COLOURS) and sorted(set(test.labels)) == [0, 2]
    assert colour_matches(train) and colour_matches(test)
    put(tmp_path / "test" / "bat" / "1.png", (1, 2, 3))
    with pytest.raises(ValueError, match="train/bat holds no image, and .*test/bat does"):
        folder(tmp_path, 8)


@pytest.mark.parametrize("names", [
    ("train_set", "test_set"), ("Training Images", "validation-data"), ("seg_train", "seg_test"),
    ("dataset_train", "val2017")])
def test_folders_that_look_like_sets_are_refused(tmp_path, names):
    for name in names:
        pets(tmp_path / name, 3)
    with pytest.raises(ValueError, match=f"holds {names[0]}/ and {names[1]}/, which look like "
                                         "sets, not classes: if they are sets, call them train/"):
        folder(tmp_path, 8)


@pytest.mark.parametrize("names", [("train_1", "train_2"), ("test_strip", "train_station"),
                                   ("testset", "control"), ("images", "photos")])
def test_other_names_are_classes(tmp_path, names):
    for name in names:
        for i in range(3):
            put(tmp_path / name / f"{i}.png", (1, i, 3))
    assert folder(tmp_path, 8)[0].classes == tuple(sorted(names))


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    pets(tmp_path, 4)
    want = [part.fingerprint for part in folder(tmp_path, 8)]
    module, at_once, most = sys.modules["gpuconv.data.folder"], [], []

    def watched(path, size, channels, limit, real=module.read_within):
        at_once.append(limit)
        if limit is None:
            most.append(len([x for x in at_once if x is None]))
        try:
            return real(path, size, channels, limit)
        finally:
            at_once.remove(limit)

    monkeypatch.setattr(module, "read_within", watched)
    monkeypatch.setattr(module, "SHARE", 1000)  # bytes, less than any image takes
    monkeypatch.setattr(threads, "count", lambda: 4)
    assert [part.fingerprint for part in folder(tmp_path, 8)] == want
    assert most == [1] * 12


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


def test_more_than_fits(tmp_path, monkeypatch):
    pets(tmp_path)
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 5000)
    with pytest.raises(MemoryError, match="30 images of 8x8x3 need .* memory, 0.00 GB are free"):
        folder(tmp_path, 8)
    assert len(folder(tmp_path, 7)[0]) == 24
