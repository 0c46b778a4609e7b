import os
import re
import shutil

import pytest
from cli_tools import fails, gpuconv
from conftest import HAS_GPU

from gpuconv import files, runs
from gpuconv.data import Source
from gpuconv.train import Settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which ``runs/one`` is a run."""
    place = tmp_path_factory.mktemp("place")
    config = runs.Config({"name": "simple_convnet", "arguments": {}}, Source("shapes", limit=20),
                         Settings(epochs=1, batch_size=20))
    runs.train(config, runs.RunFolder.create(config, place / "runs" / "one"))
    return place


def report(place, *arguments):
    done = gpuconv("report", *arguments, "--device", "cpu", folder=place)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def test_the_newest_run(place):
    rows = report(place)
    assert rows["report"] == os.path.join("runs", "one", "report.html")
    text = (place / rows["report"]).read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n")
    accuracy = files.load(place / "runs/one/checkpoints/best.safetensors")[1]["test_accuracy"]
    assert rows["accuracy"] == f"{accuracy:.1%} of 20 test images"
    assert rows["device"].startswith("cpu") and rows["checkpoint"].endswith("best.safetensors")


def test_a_checkpoint_of_a_run_and_a_path(place, tmp_path):
    checkpoint = next((place / "runs/one/checkpoints").glob("step-*.safetensors"))
    rows = report(place, checkpoint, "--output", tmp_path / "x.html", "--mistakes", 3)
    assert rows["checkpoint"] == str(checkpoint) and rows["report"] == str(tmp_path / "x.html")
    assert (tmp_path / "x.html").is_file()


def test_what_is_no_run(place, tmp_path):
    assert f"there is no folder {tmp_path / 'nowhere'}" in fails(1, "report", tmp_path / "nowhere")
    assert f"{tmp_path} is no folder of a run: it has no config.json" in fails(
        1, "report", tmp_path)
    config = place / "runs/one/config.json"
    line = fails(1, "report", config)
    assert f"{config} is no checkpoint; a report of the run: " in line
    assert line.endswith(f" -m gpuconv report {config.parent}")
    assert "there is no run in" in fails(1, "report", folder=tmp_path)
    alone = shutil.copy(place / "runs/one/checkpoints/best.safetensors", tmp_path)
    assert "lies in no run's folder" in fails(1, "report", alone)


def test_damaged_runs(place, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(place / "runs/one", broken)
    for path in (broken / "checkpoints").iterdir():
        path.write_bytes(b"half of a file")
    assert "best.safetensors: damaged" in fails(1, "report", broken, "--device", "cpu")
    (broken / "config.json").write_text("{")
    assert "config.json: damaged: it is no JSON: line 1, column 2;" in fails(1, "report", broken)


def test_where_nothing_can_be_written(place, tmp_path):
    assert "there is no folder" in fails(1, "report", place / "runs/one", "--output",
                                         tmp_path / "a" / "b.html", "--device", "cpu")
    assert "is a folder" in fails(1, "report", place / "runs/one", "--output", tmp_path)


def test_wrong_usage():
    assert "--mistakes: -1 is out of range" in fails(2, "report", "--mistakes", "-1")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_cuda_without_a_gpu(place):
    line = fails(1, "report", place / "runs/one", "--device", "cuda")
    assert "driver" in line or "CuPy is not installed" in line or "device" in line


def test_help_has_examples():
    done = gpuconv("report", "--help")
    assert done.returncode == 0 and re.search("\nexamples:\n  .* -m gpuconv report", done.stdout)
