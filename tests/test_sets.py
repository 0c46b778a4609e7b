"""A run is measured on its own test images, whatever has become of the folder since."""

import contextlib
import io
import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from gpuconv import cli, report, runs, train
from gpuconv.data import Source
from gpuconv.data.manifest import Manifest
from gpuconv.runs import Config, RunFolder
from gpuconv.train import Settings

COUNT = 20  # images of a class, of which 4 are tested


def noise(*seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def config(path, **more):
    source = Source.from_options(path, image_size=8, **more)
    return Config({"notation": "INPUT 8x8x3 | FC 2"}, source, Settings(
        epochs=2, batch_size=8, crop=0), recipe="test")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the data set ``set`` and a run on it, ``run``."""
    place = tmp_path_factory.mktemp("made")
    for label in "ab":
        for i in range(COUNT):
            save(place / "set" / label / f"{i:02}.png", noise(ord(label), i))
    told = config(place / "set")
    runs.train(told, RunFolder.create(told, place / "run"))
    return place


@pytest.fixture
def place(made, tmp_path):
    """A copy, whose run knows that it is one."""
    shutil.copytree(made, tmp_path / "x")
    path = tmp_path / "x" / "run" / "config.json"
    told = json.loads(path.read_text())
    told["source"]["path"] = str(tmp_path / "x" / "set")
    path.write_text(json.dumps(told))
    return tmp_path / "x"


def pixels(data):
    return {image.tobytes() for image in data.images}


def names(place, which):
    return getattr(Manifest.read(place / "run" / "manifest.json"), which).names


def before(place, which):
    """The bytes of the images of a set, as the run began."""
    return {noise(ord(name[0]), int(name[2:4])).tobytes() for name in names(place, which)}


def gpuconv(*words):
    """(status, stdout, the lines on stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          warnings.catch_warnings()):
        warnings.simplefilter("default")
        status = cli.main([*map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue().splitlines()


def evaluate(place, *words):
    """(JSON of the command, the lines on stderr)."""
    status, out, err = gpuconv("evaluate", place / "run", "--json", *words)
    return json.loads(out) if status == 0 else None, err


def measured(place):
    """The run's test set as it is now, and its differences; no training image is in it."""
    found = RunFolder(place / "run").sets()
    assert not pixels(found.test) & before(place, "train")
    return found.test, found.differences


# -- what a run keeps ------------------------------------------------------------------------------


def test_nothing_has_changed(place):
    found, own = RunFolder(place / "run").sets(), config(place / "set").source.load()
    assert [part.fingerprint for part in (found.train, found.test)] == [
        part.fingerprint for part in own]
    assert found.test.images.base is not None  # no copy
    assert (len(found.train), len(found.test)) == (32, 8) and found.warnings() == []
    told, said = evaluate(place)
    assert told["images"] == 8 and told["warnings"] == said == []
    assert told["differences"]["missing"] == {"count": 0, "names": []}
    kept = RunFolder(place / "run").history().best
    assert told["accuracy"] == kept.test.accuracy


def test_a_fixed_data_set_has_no_manifest(tmp_path):
    told = Config({"notation": "INPUT 32x32x3 | FC 10"}, Source("shapes", limit=10),
                  Settings(epochs=1, batch_size=10))
    folder = RunFolder.create(told, tmp_path / "run")
    runs.train(told, folder)
    assert folder.manifest() is None and folder.sets().warnings() == []
    with pytest.raises(ValueError, match="the run's images are shapes, which have no place"):
        folder.sets(tmp_path)
    status, _, said = gpuconv("evaluate", folder.path, "--data", "shapes", "--limit", "10")
    assert status == 0 and said == []


def test_a_data_set_that_repeats_its_training_images_in_its_test_set(tmp_path):
    for label in "ab":
        for i in range(10):
            save(tmp_path / "set" / label / f"{i}.png", noise(0))
            save(tmp_path / "set" / label / f"{i}.png", noise(i % 2))
    told = config(tmp_path / "set")
    folder = RunFolder.create(told, tmp_path / "run")
    with pytest.warns(UserWarning, match="4 of the 4 test images have the pixels of training ima"):
        runs.train(told, folder)
    found = folder.sets()
    assert len(found.test) == 4  # exactly the set of the run, and what it is worth
    assert found.warnings() == ["4 test images of the run have the pixels of training images"]


# -- files come and go -----------------------------------------------------------------------------


def test_deleted_files(place):
    gone = [name for which in ("test", "train") for name in (
        min(names(place, which)), max(names(place, which)))]
    want = before(place, "test") - {noise(ord(name[0]), int(name[2:4])).tobytes()
                                    for name in gone}
    for name in gone:
        (place / "set" / name).unlink()
    test, different = measured(place)
    assert pixels(test) == want and len(test) == 6
    assert different.missing == tuple(gone[:2]) and different.missing_training == tuple(gone[2:])
    told, said = evaluate(place)
    line = f"2 test images of the run are missing: {gone[0]}, {gone[1]}"
    assert told["images"] == 6 and told["differences"]["missing"] == {
        "count": 2, "names": gone[:2]}
    assert said[0] == f"gpuconv: warning: {line}" and told["warnings"][0] == line
    found = report.write_findings(RunFolder(place / "run"), place / "x.html")[1]
    assert len(found.predictions.labels) == 6 and line in found.notes
    with pytest.warns(UserWarning) as told:
        assert pixels(RunFolder(place / "run").data()[1]) == want
    assert str(told[0].message) == line and len(told) == 2


def test_files_that_are_numbered_anew(place):
    """One is deleted and the others close ranks: nearly each name has another image now."""
    for label in "ab":
        (place / "set" / label / "03.png").unlink()
        for i in range(4, COUNT):
            (place / "set" / label / f"{i:02}.png").rename(
                place / "set" / label / f"{i - 1:02}.png")
    test, different = measured(place)
    gone = {noise(ord(label), 3).tobytes() for label in "ab"}
    assert pixels(test) == before(place, "test") - gone
    assert not different.changed and not different.new


def test_training_images_in_the_place_of_test_images(place):
    first, *others = names(place, "test")
    lost, trained = noise(ord(first[0]), int(first[2:4])).tobytes(), names(place, "train")[0]
    shutil.copy(place / "set" / trained, place / "set" / first)
    shutil.copy(place / "set" / trained, place / "set" / "a" / "new.png")
    test, different = measured(place)
    assert pixels(test) == before(place, "test") - {lost} and len(test) == len(others)
    assert sorted(different.trained) == sorted([first, "a/new.png"])
    assert different.missing == (first,) and different.new == ()
    assert any("2 files hold training images under other names" in line
               for line in evaluate(place)[1])


def test_new_files_are_left_out(place):
    for i in range(50):
        save(place / "set" / "a" / f"more {i}.png", noise(1, i))
    save(place / "set" / "c" / "pig.png", noise(2))
    test, different = measured(place)
    assert pixels(test) == before(place, "test") and len(different.new) == 51
    told, said = evaluate(place, "--split", "all")
    assert told["images"] == 40
    assert "51 images are new, and left out: a/more 0.png" in said[0]


def test_changed_images_are_measured_and_told(place):
    name = names(place, "test")[0]
    save(place / "set" / name, noise(3))
    moved = names(place, "test")[1]
    other = "b" if moved[0] == "a" else "a"
    (place / "set" / moved).rename(place / "set" / other / "moved.png")
    test, different = measured(place)
    assert len(test) == 7 and noise(3).tobytes() not in pixels(test)  # not the image of the run
    assert different.changed == tuple(sorted([name, moved])) and not different.new
    row = next(i for i, image in enumerate(test.images)
               if image.tobytes() == noise(ord(moved[0]), int(moved[2:4])).tobytes())
    assert test.classes[test.labels[row]] == other  # as it is called now


@pytest.mark.parametrize("how", ["foreign", "swapped"])
def test_a_manifest_that_is_not_of_the_checkpoint(place, how):
    """Then training images might be measured as test images."""
    path = place / "run" / "manifest.json"
    if how == "swapped":
        told = json.loads(path.read_text())
        told["train"], told["test"] = told["test"], told["train"]
        path.write_text(json.dumps(told))
    else:
        Manifest.of(*Source("folder", str(place / "set"), image_size=8, seed=5).load()).write(path)
    told, said = evaluate(place)
    assert told is None and "manifest.json lists other images than the checkpoint" in said[-1]
    status, _, said = gpuconv("report", place / "run")
    assert "manifest.json lists other images than the checkpoint" in said[-1]


def test_a_class_that_is_gone_is_missing_and_one_that_is_renamed_is_not(place):
    shutil.rmtree(place / "set" / "a")
    (place / "set" / "b").rename(place / "set" / "c")
    test, different = measured(place)
    assert len(different.missing) == 4 and test.classes == ("a", "b")
    assert test.labels.tolist() == [1] * 4


def test_images_moved_between_given_sets(tmp_path):
    for part, count in (("train", 8), ("test", 4)):
        for label in "ab":
            for i in range(count):
                save(tmp_path / "set" / part / label / f"{i}.png", noise(len(part), ord(label), i))
    told, place = config(tmp_path / "set"), tmp_path
    runs.train(told, RunFolder.create(told, place / "run"))
    (place / "set/train/a/0.png").rename(place / "set/test/a/9.png")
    (place / "set/test/b/0.png").rename(place / "set/train/b/9.png")
    found = RunFolder(place / "run").sets()
    assert pixels(found.test) == {noise(4, ord(label), i).tobytes() for label in "ab"
                                  for i in range(4)}
    assert found.differences.trained == ("test/a/9.png",)


def test_a_limit_leaves_images_out_that_are_not_new(tmp_path):
    for label in "ab":
        for i in range(COUNT):
            save(tmp_path / "set" / label / f"{i:02}.png", noise(ord(label), i))
    told = config(tmp_path / "set", limit=5)
    runs.train(told, RunFolder.create(told, tmp_path / "run"))
    test, different = measured(tmp_path)
    counts = different.as_dict()
    assert len(test) == 5 and not any(counts[kind]["count"] for kind in counts)
    (tmp_path / "set" / names(tmp_path, "test")[0]).unlink()
    test, different = measured(tmp_path)
    assert len(test) == 4 and len(different.missing) == 1


# -- other places ----------------------------------------------------------------------------------


def test_a_folder_that_has_moved(place):
    (place / "set").rename(place / "moved")
    (place / "moved" / names(place, "test")[0]).unlink()
    told, said = evaluate(place)
    assert told is None and "if the images of the run have moved, --data says where" in said[0]
    told, said = evaluate(place, "--data", place / "moved")
    assert told["images"] == 7 and "7 test images of moved" in told["data"]
    assert "1 test image of the run is missing" in said[0]
    found = report.write_findings(RunFolder(place / "run"), place / "x.html",
                                  data=place / "moved")[1]
    assert len(found.predictions.labels) == 7


def test_other_images_some_of_which_were_trained_on(place):
    for label in "ab":
        for i in range(30):
            save(place / "other" / label / f"{i:02}.png", noise(7, ord(label), i))
    for number, name in enumerate(names(place, "train")[:10]):
        shutil.copy(place / "set" / name, place / "other" / name[0] / f"again {number}.png")
    told, said = evaluate(place, "--data", place / "other")
    assert told["images"] == 70 and "70 images of other" in told["data"]
    assert said == ["gpuconv: warning: the model was trained on 10 of these 70 images"]
    told, said = evaluate(place, "--data", place / "other", "--split", "test",
                          "--test-share", 0.5)
    _, test = Source.from_options(place / "other", image_size=8, test_share=0.5).load()
    known = len(pixels(test) & before(place, "train"))
    assert 0 < known and told["images"] == len(test) - known
    assert said[0].endswith("; they are left out") and "images of the test part" in told["data"]
    with pytest.raises(ValueError, match="other holds other images than the run was trained and"):
        RunFolder(place / "run").sets(place / "other")


def test_other_images_where_those_of_the_run_were(place):
    for path in (place / "set").rglob("*.png"):
        save(path, noise(8, ord(path.parent.name), int(path.stem)))
    told, said = evaluate(place)
    assert told is None
    assert "set holds other images than the run was trained and tested on; if those" in said[0]


def test_a_run_goes_on_with_its_own_images(place, made):
    """Files have been added, and all have moved: the same bits as undisturbed."""
    folder = RunFolder(place / "run")
    folder.checkpoints()[-1].unlink()
    for i in range(9):
        save(place / "set" / "b" / f"new {i}.png", noise(9, i))
    (place / "set").rename(place / "moved")
    status, _, said = gpuconv("train", "--resume", folder.path, "--data", place / "moved")
    assert status == 0 and "9 images are new, and left out" in said[0]
    last, want = (runs.load(train.newest(RunFolder(p / "run").checkpoints_folder))
                  for p in (place, made))
    for a, b in zip(last.model.parameters(), want.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


# -- .npz files ------------------------------------------------------------------------------------


def test_a_run_does_not_go_on_without_some_of_its_images(place):
    lost = place / "set" / names(place, "test")[0]
    lost.rename(place / "kept.png")
    status, _, said = gpuconv("train", "--resume", place / "run")
    assert status == 1 and said[-1].startswith(
        f"gpuconv: error: 1 of the run's images in {place / 'set'} are missing or have changed (")
    assert said[-1].endswith("put them back, and resume the run then; its checkpoints are kept")
    (place / "kept.png").rename(lost)
    assert gpuconv("train", "--resume", place / "run")[0] == 0


def test_a_resumed_run_remembers_where_its_images_have_moved(place):
    (place / "set").rename(place / "elsewhere")
    assert gpuconv("train", "--resume", place / "run", "--data", place / "elsewhere")[0] == 0
    told, said = evaluate(place)
    assert told["images"] == 8 and said == []


def test_a_run_without_its_broken_images(place, monkeypatch):
    """What is skipped when it is trained is skipped whenever its images are read again."""
    (place / "set" / "a" / "05.png").write_bytes(b"no image")
    monkeypatch.chdir(place)
    train_it = ["train", "--data", place / "set", "--image-size", 8, "--model",
                "INPUT 8x8x3 | FC 2", "--epochs", 2, "--batch-size", 8, "--run", place / "new"]
    status, _, err = gpuconv(*train_it)
    assert status == 1 and "a/05.png: no image" in err[-1] and "--skip-broken" in err[-1]
    status, _, err = gpuconv(*train_it, "--skip-broken")
    assert status == 0 and "1 of the 40 images" in err[0] and "a/05.png" in err[0]
    folder = RunFolder(place / "new")
    assert folder.config().source.skip_broken
    told = Manifest.read(place / "new" / "manifest.json")
    assert set(told.names) == set(names(place, "train") + names(place, "test")) - {"a/05.png"}
    for part in ("train", "test"):  # no other image is in another set
        assert set(getattr(told, part).names) == set(names(place, part)) - {"a/05.png"}
    for words in (["evaluate", place / "new"], ["report", place / "new"],
                  ["train", "--resume", place / "new"]):
        status, out, err = gpuconv(*words)
        assert status == 0 and all("a/05.png" in line for line in err), err
        assert "could not be measured" not in out


def test_an_image_that_breaks_later_can_be_skipped(place):
    save(place / "set" / "a" / "new.png", noise(1))
    (place / "set" / "a" / "new.png").write_bytes(b"no image")
    for words in (["evaluate", place / "run"], ["evaluate", place / "run", "--data", place / "set"],
                  ["train", "--resume", place / "run"]):
        status, _, err = gpuconv(*words)
        assert status == 1 and "a/new.png: no image" in err[-1] and "--skip-broken" in err[-1]
        status, _, err = gpuconv(*words, "--skip-broken")
        assert status == 0 and "a/new.png" in err[0]


def test_a_report_is_not_replaced_by_one_that_could_measure_nothing(place):
    assert gpuconv("report", place / "run")[0] == 0
    page = (place / "run" / "report.html").read_bytes()
    (place / "set").rename(place / "elsewhere")
    status, _, said = gpuconv("report", place / "run")
    assert status == 1 and "report.html is left as it is: the model could not" in said[-1]
    assert (place / "run" / "report.html").read_bytes() == page
    assert gpuconv("report", place / "run", "--output", place / "other.html")[0] == 0


def test_an_npz_file(tmp_path):
    images, labels = np.stack([noise(i) for i in range(40)]), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    told = config(tmp_path / "x.npz")
    folder = RunFolder.create(told, tmp_path / "run")
    runs.train(told, folder)
    first = folder.sets()
    test, learnt = pixels(first.test), pixels(first.train)
    gone = next(i for i in range(40) if images[i].tobytes() in test)
    twin = next(i for i in range(40) if images[i].tobytes() in learnt)
    order = np.random.default_rng(0).permutation(40)
    kept = order[order != gone]
    np.savez(tmp_path / "x.npz", labels=np.r_[labels[kept], [labels[twin], 0]],
             images=np.r_[images[kept], [images[twin], noise(99)]] / 255)
    found = folder.sets()
    assert pixels(found.test) == test - {images[gone].tobytes()}
    assert pixels(found.train) == learnt and len(found.train) == 32
    assert found.differences.as_dict() | {"trained": 0} == {
        "missing": {"count": 1, "names": [f"an image of {labels[gone]}"]},
        "changed": {"count": 0, "names": []}, "missing_training": {"count": 0, "names": []},
        "changed_training": {"count": 0, "names": []}, "trained": 0,
        "new": {"count": 1, "names": ["image 40"]}}
    assert found.differences.trained in (("image 39",), (f"image {list(kept).index(twin)}",))


# -- older runs ------------------------------------------------------------------------------------


@pytest.fixture
def old(place):
    """As a run was before there were manifests: by position, and config.json knows no split."""
    shutil.rmtree(place / "run")
    source = config(place / "set", split=1, seed=5).source
    told = Config({"notation": "INPUT 8x8x3 | FC 2"}, source, Settings(epochs=1, batch_size=8))
    folder = RunFolder.create(told, place / "run")
    runs.train(told, folder)
    folder.manifest_file.unlink()
    path = folder.path / "config.json"
    text = json.loads(path.read_text())
    del text["source"]["split"]
    path.write_text(json.dumps(text))
    return place


def test_an_older_run_keeps_its_split(old):
    folder = RunFolder(old / "run")
    assert folder.config().source.split == 1
    test = folder.data()[1]
    assert pixels(test) != pixels(Source.from_options(old / "set", image_size=8, seed=5).load()[1])
    told, said = evaluate(old)
    assert said == [] and told["accuracy"] == folder.history().last.test.accuracy
    (old / "set").rename(old / "moved")
    told, said = evaluate(old, "--data", old / "moved")
    assert said == [] and told["images"] == 8 and "8 test images of moved" in told["data"]


def test_an_older_run_whose_images_have_changed(old):
    (old / "set" / "a" / "00.png").unlink()
    told, said = evaluate(old)
    assert "have changed since the run, which kept no list of them: the test images" in said[0]
    assert "perhaps not the test images of the run" in told["data"]
    assert told["differences"] is None
    found = report.write_findings(RunFolder(old / "run"), old / "x.html")[1]
    assert found.predictions is None
    assert "its test set cannot be told from its training images" in found.notes[1]
    told, said = evaluate(old, "--data", old / "set", "--split", "test")
    assert "images of the test part of set" in told["data"]
    assert said == ["gpuconv: warning: the run kept no list of its images: it may have been "
                    "trained on these"]


# -- manifests from anywhere -----------------------------------------------------------------------


WHOLE = {"classes": ["a"], "train": {"names": ["x"], "labels": [0], "digests": ["00" * 16]},
         "test": {"names": None, "labels": [], "digests": []}}


@pytest.mark.parametrize("text, message", [
    ("", "no JSON: line 1, column 1"), ("[1]", "wanted classes"), ("{}", "wanted classes"),
    ("[" * 10**5, "more than 100 levels"), ("\xff", "byte 0 is not UTF-8"),
    ("null", "wanted classes"),
    (json.dumps(WHOLE | {"classes": [1]}), "classes: wanted a list of strings"),
    (json.dumps(WHOLE | {"classes": "a"}), "classes: wanted a list of strings"),
    (json.dumps(WHOLE | {"train": "x"}), "wanted names, labels and digests"),
    *((json.dumps(WHOLE | {"train": WHOLE["train"] | change}), message) for change, message in [
        ({"labels": [1]}, r"labels: wanted whole numbers of 0\.\.0"),
        ({"labels": [-1]}, "labels"), ({"labels": [True]}, "labels"), ({"labels": 7}, "labels"),
        ({"labels": [10**400]}, "labels"), ({"digests": ["00"]}, "digests: wanted 16 bytes"),
        ({"digests": ["zz" * 16]}, "digests: wanted 16 bytes"), ({"digests": [None]}, "digests"),
        ({"names": [3]}, "names: wanted"), ({"names": []}, "1 labels, 1 digests, 0 names"),
        ({"labels": []}, "0 labels")])])
def test_a_damaged_manifest(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"{path}: damaged.*{message}.*; put back a copy"):
        Manifest.read(path)


def test_a_manifest_that_is_no_file_or_too_large(tmp_path):
    path = tmp_path / "manifest.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"manifest\.json is a folder, wanted a file"):
        Manifest.read(path)
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)  # a file of holes
    with pytest.raises(MemoryError, match="x: its values need .* GB of memory"):
        Manifest.read(tmp_path / "x")


def test_a_damaged_manifest_is_one_sentence(place):
    (place / "run" / "manifest.json").write_text("{")
    told, said = evaluate(place)
    line, = said
    assert told is None and line.startswith("gpuconv: error: ") and "manifest.json: damaged" in line


@pytest.mark.skipif("os.name == 'nt'", reason="Windows has no such names")
def test_names_that_are_no_unicode(tmp_path):
    for label in "ab":
        for i in range(4):
            save(tmp_path / "set" / label / f"\udcff\n{i}.png", noise(ord(label), i))
    told = config(tmp_path / "set")
    folder = RunFolder.create(told, tmp_path / "run")
    runs.train(told, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folder.data()[1]) == 2
