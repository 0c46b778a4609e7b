"""``gpuconv evaluate`` as its users meet it."""

import json
import re
import shutil

import numpy as np
import pytest
from cli_tools import fails, gpuconv, in_a_terminal, tiny_run
from rich.console import Console

import gpuconv as gpc
from gpuconv import runs
from gpuconv.cli import evaluate
from gpuconv.data import Dataset
from gpuconv.train import Predictions


@pytest.fixture(scope="module")
def found():
    """(JSON that the command writes, what the library says) of the tiny run."""
    trained = runs.load(tiny_run())
    test = gpc.data.shapes(60, 60)[1]
    done = gpuconv("evaluate", tiny_run(), "--json", "--device", "cpu")
    assert done.returncode == 0 and done.stderr == ""
    return json.loads(done.stdout), gpc.train.predictions(trained.model, test, mean=trained.mean,
                                                          std=trained.std)


def test_json_is_what_the_library_says(found):
    told, library = found
    assert told["accuracy"] == library.accuracy and told["images"] == 60
    assert told["loss"] == pytest.approx(library.loss, rel=1e-6)
    assert told["confusion"] == library.confusion.tolist()
    assert [row["name"] for row in told["classes"]] == list(library.classes)
    kept = runs.RunFolder(tiny_run()).history().last  # of the training
    assert kept.test.accuracy == told["accuracy"]


def test_tables_in_a_pipe(found):
    told, library = found
    done = gpuconv("evaluate", folder=tiny_run().parent.parent)  # the newest in ./runs
    assert done.returncode == 0 and "\x1b" not in done.stdout
    right = library.confusion.trace()
    assert f"accuracy    {library.accuracy:.2%}, {right} of 60 images" in done.stdout
    assert re.search(r"^data        60 test images of shapes, 60 \+ 60 images, drawn$", done.stdout,
                     re.M)
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class "))
    for line, row in zip(lines[start + 1:], library.per_class(), strict=False):
        assert line.split()[:3] == [row.name, str(row.images), str(row.correct)]
    matrix = [line.split()[1:] for line in lines[-10:]]
    assert matrix == [[str(n) if n else "." for n in row] for row in library.confusion.tolist()]


def test_other_data_and_batch_size(found):
    told = json.loads(gpuconv("evaluate", tiny_run(), "--data", "shapes", "--limit", 20, "--json",
                              "--batch-size", 7).stdout)
    assert told["images"] == 20 and np.sum(told["confusion"]) == 20


def test_views(found):
    trained = runs.load(tiny_run())
    test = gpc.data.shapes(60, 60)[1]
    want = gpc.train.predictions(trained.model, test, mean=trained.mean, std=trained.std,
                                 views="six")
    told = json.loads(gpuconv("evaluate", tiny_run(), "--views", "six", "--json").stdout)
    assert told["views"] == "six" and told["confusion"] == want.confusion.tolist()
    assert found[0]["views"] == "none" and told["loss"] == pytest.approx(want.loss, rel=1e-6)
    assert "views is 'ten', wanted 'none', 'mirror' or 'six'" in fails(
        1, "evaluate", tiny_run(), "--views", "ten")


def test_views_are_those_that_the_run_was_told(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["views"] = "mirror"
    (folder / "config.json").write_text(json.dumps(config))
    done = gpuconv("evaluate", folder)
    assert re.search(r"^accuracy .* of 60 images, views mirror$", done.stdout, re.M)
    assert ", views" not in gpuconv("evaluate", folder, "--views", "none").stdout


def test_all_of_the_data(found):
    told = [json.loads(gpuconv("evaluate", tiny_run(), "--json", "--split", split,
                               "--limit", 30).stdout) for split in ("train", "test", "all")]
    assert [one["images"] for one in told] == [30, 30, 60]
    first, second, both = (np.array(one["confusion"]) for one in told)
    assert np.array_equal(first + second, both) and not np.array_equal(first, second)


def test_wrong_usage(tmp_path):
    missing = tmp_path / "nowhere"
    assert str(missing) in fails(1, "evaluate", missing)
    assert "there is no run in" in fails(1, "evaluate", folder=tmp_path)
    assert "out of range" in fails(2, "evaluate", tiny_run(), "--batch-size", 0)
    assert "go with --data" in fails(1, "evaluate", tiny_run(), "--image-size", 8)
    lost = tmp_path / "lost.safetensors"
    gpc.save(lost, {"weight": np.zeros(3)})
    assert f"{lost}: holds named arrays" in fails(1, "evaluate", lost)
    (tmp_path / "text.safetensors").write_text("hello")
    assert "text.safetensors" in fails(1, "evaluate", tmp_path / "text.safetensors")


def test_all_of_ones_own_images_are_named_without_a_part(tmp_path):
    np.savez(tmp_path / "grey.npz", images=np.zeros((8, 32, 32, 1), np.uint8), labels=[0, 1] * 4)
    line = fails(1, "evaluate", tiny_run(), "--data", tmp_path / "grey.npz")
    assert "error: grey: images are (32, 32, 1), the model takes (32, 32, 3)" in line


def test_images_that_are_not_square(tmp_path):
    """A model made for them takes them as they are, from another file too."""
    rng = np.random.default_rng(0)
    for name in ("learn", "more"):
        np.savez(tmp_path / f"{name}.npz", labels=np.arange(20) % 2,
                 images=rng.integers(0, 256, (20, 4, 6, 1), np.uint8))
    done = gpuconv("train", "--data", "learn.npz", "--model", "INPUT 4x6x1 FC 2", "--crop", 1,
                   "--epochs", 1, "--device", "cpu", "--run", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = gpuconv("evaluate", "run", "--data", "more.npz", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 20


def test_a_checkpoint_outside_a_run_wants_data(tmp_path):
    best = tiny_run() / "checkpoints" / "best.safetensors"
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(best.read_bytes())
    assert "say --data" in fails(1, "evaluate", alone)
    assert gpuconv("evaluate", alone, "--data", "shapes", "--limit", 10).returncode == 0


# -- classes -------------------------------------------------------------------------------


def tiny(labels, classes):
    return Dataset(np.zeros((len(labels), 2, 2, 3), np.uint8), np.int32(labels), classes, "mine")


def test_classes_in_another_order_are_matched_by_name():
    data = evaluate.as_trained(tiny([0, 1, 1], ("dog", "cat")), ("bird", "cat", "dog"))
    assert data.classes == ("bird", "cat", "dog") and data.labels.tolist() == [2, 1, 1]


def test_a_class_without_images_does_no_harm():
    data = evaluate.as_trained(tiny([0, 0], ("cat", "whale")), ("bird", "cat"))
    assert data.labels.tolist() == [1, 1]


def test_images_of_an_unknown_class_are_refused():
    with pytest.raises(ValueError, match="mine has images of whale; the model knows bird, cat"):
        evaluate.as_trained(tiny([1], ("cat", "whale")), ("bird", "cat"))


# -- what fits a terminal ------------------------------------------------------------------


def guesses(K, N=500):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    return Predictions(rng.standard_normal((N, K)) + 2 * np.eye(K)[labels], labels,
                       tuple(f"class {k}" for k in range(K)))


def test_the_matrix_of_ten_classes_fits_80_columns():
    labels = np.arange(10_000) % 10
    found = Predictions(np.eye(10)[labels], labels, tuple(
        "airplane automobile bird cat deer dog frog horse ship truck".split()))
    assert evaluate.fits(found, 80)


def test_a_wide_matrix_gives_way_to_the_most_frequent_mistakes(capsys):
    found = guesses(30)
    out = Console(width=80)
    assert not evaluate.fits(found, 80)
    evaluate.show_classes(out, found)
    evaluate.show_pairs(out, found)
    text = capsys.readouterr().out
    assert "the 20 of 30 classes with the lowest recall" in text
    label, answer = np.unravel_index(
        np.argmax(found.confusion - np.diag(found.confusion.diagonal())), (30, 30))
    first = text.split("share\n")[1].splitlines()[0]
    times = found.confusion[label, answer]
    assert first.split() == [*f"class {label} class {answer} {times}".split(),
                             f"{times / found.confusion[label].sum():.1%}"]


def test_no_mistakes(capsys):
    evaluate.show_pairs(Console(), Predictions(np.eye(3), np.arange(3), ("a", "b", "c")))
    assert capsys.readouterr().out == "no mistakes\n"


def test_in_a_terminal():
    seen, status = in_a_terminal("evaluate", str(tiny_run()), width=80)
    assert status == 0 and "\x1b[" in seen and "precision" in seen
