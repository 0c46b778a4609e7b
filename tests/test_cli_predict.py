"""``gpuconv predict`` as its users meet it."""

import json
import re

import numpy as np
import pytest
from cli_tools import fails, gpuconv, in_a_terminal, tiny_run

import gpuconv as gpc
from gpuconv import runs

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of images: one of the size that the model takes, others of other sizes and modes."""
    folder = tmp_path_factory.mktemp("pictures")
    image = gpc.data.shapes(1, 1)[1].images[0]
    Image.fromarray(image).save(folder / "exact.png")
    Image.fromarray(image).resize((200, 150)).convert("L").save(folder / "grey.jpg")
    Image.fromarray(image).resize((7, 5)).convert("RGBA").save(folder / "a [b] c.png")
    (folder / "damaged.png").write_bytes((folder / "exact.png").read_bytes()[:60])
    return folder


def test_probabilities_are_the_library_s(pictures):
    done = gpuconv("predict", tiny_run(), pictures / "exact.png", "--json", "--top", 10)
    assert done.returncode == 0 and done.stderr == ""
    (told,) = json.loads(done.stdout)
    trained = runs.load(tiny_run())
    p = trained.probabilities(gpc.data.shapes(1, 1)[1].images)[0]
    assert told["image"] == str(pictures / "exact.png")
    assert {c["class"]: np.float32(c["probability"]) for c in told["classes"]} == dict(
        zip(trained.classes, p, strict=True))
    order = [c["probability"] for c in told["classes"]]
    assert order == sorted(order, reverse=True)


def test_a_table_in_a_pipe(pictures):
    done = gpuconv("predict", tiny_run(), "exact.png", "grey.jpg", "a [b] c.png", folder=pictures)
    assert done.returncode == 0 and "\x1b" not in done.stdout
    headings, *rows = done.stdout.splitlines()
    assert headings.split() == ["image", "class", "probability"]
    assert [row[:11].strip() for row in rows] == (
        ["exact.png"] * 3 + ["grey.jpg"] * 3 + ["a [b] c.png"] * 3)


def test_a_damaged_image_does_not_keep_the_others_from_an_answer(pictures):
    paths = [pictures / "damaged.png", pictures / "exact.png"]
    done = gpuconv("predict", tiny_run(), *paths)
    assert done.returncode == 1 and "exact.png" in done.stdout
    line, = done.stderr.splitlines()
    assert line.startswith(f"gpuconv: error: {paths[0]}: ")
    done = gpuconv("predict", tiny_run(), *paths, "--json", "--top", 1)
    first, second = json.loads(done.stdout)
    assert done.returncode == 1 and str(paths[0]) in first["error"]
    assert second["classes"][0]["probability"] > 0


def test_several_that_cannot_be_read_are_all_named(pictures):
    done = gpuconv("predict", tiny_run(), "damaged.png", "x.png", "exact.png", folder=pictures)
    line, = done.stderr.splitlines()
    assert done.returncode == 1
    assert re.search(": error: 2 images cannot be read: damaged.png: .*; x.png: no such", line)


def test_wrong_usage(pictures, tmp_path):
    line = fails(1, "predict", tiny_run(), pictures)
    assert f"{pictures} is a folder" in line and "was read" not in line
    assert "nothing.png: no such file" in fails(1, "predict", tiny_run(), "nothing.png")
    assert "was read as RUN: wanted an IMAGE" in fails(1, "predict", tiny_run())
    assert "IMAGE" in fails(2, "predict")
    assert "out of range" in fails(2, "predict", tiny_run(), "a.png", "--top", 0)


def test_in_a_terminal(pictures):
    seen, status = in_a_terminal("predict", str(tiny_run()), str(pictures / "grey.jpg"))
    assert status == 0 and "\u2588" in seen and "\x1b[" in seen
