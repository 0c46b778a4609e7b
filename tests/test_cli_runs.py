"""``gpuconv runs`` as its users meet it."""

import json
import re
import shutil

import pytest
from cli_tools import fails, gpuconv, in_a_terminal, tiny_run
from odd_files import make_odd

from gpuconv import runs
from gpuconv.cli.runs import about

ODD_FILES = {"folder for config.json": "folder", "fifo for config.json": "FIFO",
             "link for config.json": "link to itself", "fifo for metrics.jsonl": "FIFO",
             "nowhere for metrics.jsonl": "link to nowhere", "fifo for views.json": "FIFO"}
DAMAGED = ("bad metrics", "empty", "list", "foreign", "null", "huge numbers", "deep", *ODD_FILES)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with the tiny run, broken ones and things that are no runs."""
    parent = tmp_path_factory.mktemp("many")
    good = shutil.copytree(tiny_run(), parent / "good")
    runs.RunFolder(good).write_tta_result(runs.TtaResult("six", 1, 40, 0.4321, 1.5))
    shutil.copytree(good, parent / "stopped")
    (parent / "stopped" / "views.json").unlink()
    text = (parent / "stopped" / "config.json").read_text()
    (parent / "stopped" / "config.json").write_text(text.replace('"epochs": 1', '"epochs": 5'))
    shutil.copytree(good, parent / "bad metrics")
    (parent / "bad metrics" / "metrics.jsonl").write_text("{nonsense\n")
    for name, content in [("empty", ""), ("list", "[]"), ("foreign", '{"lr": 1}'),
                          ("null", '{"model": null, "source": null, "settings": null}')]:
        (parent / name).mkdir()
        (parent / name / "config.json").write_text(content)
    for name, kind in ODD_FILES.items():
        shutil.copytree(good, parent / name)
        (parent / name / name.split()[-1]).unlink(missing_ok=True)
        make_odd(parent / name / name.split()[-1], kind)
    huge = parent / "huge numbers"
    shutil.copytree(good, huge)
    row = json.loads((huge / "metrics.jsonl").read_text())
    (huge / "metrics.jsonl").write_text(json.dumps(row | {"images_per_second": 10**400}) + "\n")
    deep = parent / "deep"
    shutil.copytree(good, deep)
    (deep / "config.json").write_text("[" * 100_000)
    (parent / "no run").mkdir()
    (parent / "a file").write_text("hello")
    return parent


def status_of(name):
    """A run whose test in several views cannot be read is none the worse for it."""
    return "finished" if name.endswith("views.json") else "damaged"


def test_json(many):
    done = gpuconv("runs", many, "--json")
    assert done.returncode == 0 and done.stderr == ""
    rows = {row["run"]: row for row in json.loads(done.stdout)}
    last = runs.RunFolder(tiny_run()).history().last
    good = rows["good"]
    assert good["status"] == "finished" and good["problem"] is None
    assert (good["model"], good["data"], good["epochs"], good["epochs_asked"]) == (
        "simple_convnet", "shapes", 1, 1)
    assert good["best_test_accuracy"] == last.test.accuracy
    assert (good["views"], good["views_accuracy"]) == ("six", 0.4321)
    assert good["images_per_second"] == last.images_per_second
    stopped = rows["stopped"]
    assert (stopped["status"], stopped["epochs"], stopped["epochs_asked"]) == (
        "can be resumed", 1, 5)
    assert stopped["views"] is stopped["views_accuracy"] is None
    for name in DAMAGED:
        assert rows[name]["status"] == status_of(name) and ".json" in rows[name]["problem"]
    for name in ODD_FILES:
        assert f"{name}/{name.split()[-1]}" in rows[name]["problem"]
    assert rows.keys() == {"good", "stopped", *DAMAGED}


def test_a_table_in_a_pipe(many):
    done = gpuconv("runs", many)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    good, = (line for line in done.stdout.splitlines() if line.startswith("good "))
    assert " simple_convnet  shapes " in good and " 1/1 " in good and good.endswith("finished")
    assert " 43.21%  " in good
    for name in DAMAGED:
        assert re.search(rf"^{name} .* {status_of(name)}$", done.stdout, re.M)
        assert re.search(rf"^{name}: .*\.json", done.stdout, re.M)


def test_a_run_itself():
    row, = json.loads(gpuconv("runs", tiny_run(), "--json").stdout)
    assert row["run"] == "tiny" and row["path"] == str(tiny_run())


def test_no_runs(tmp_path):
    done = gpuconv("runs", folder=tmp_path)
    assert done.returncode == 0 and "there are no runs in" in done.stdout
    assert gpuconv("runs", tmp_path, "--json").stdout == "[]\n"


def test_wrong_usage(tmp_path):
    assert "there is no folder" in fails(1, "runs", tmp_path / "nowhere")
    (tmp_path / "file").write_text("hello")
    assert "there is no folder" in fails(1, "runs", tmp_path / "file")
    assert "unrecognized arguments: more" in fails(2, "runs", tmp_path, "more")


def test_in_a_terminal(many):
    seen, status = in_a_terminal("runs", str(many), width=140)
    assert status == 0 and "\x1b[" in seen and "can be resumed" in seen


def test_a_run_that_cannot_be_read_says_why_in_words(tmp_path, monkeypatch):
    def config(self):
        raise PermissionError(13, "Permission denied", "one/config.json")

    (tmp_path / "config.json").touch()
    monkeypatch.setattr(runs.RunFolder, "config", config)
    assert about(runs.RunFolder(tmp_path))["problem"] == "one/config.json: permission denied"
