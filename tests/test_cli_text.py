"""Names that command a terminal, through all commands; typos; hints that work as printed."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cli_tools import ROOT

import gpuconv as gpc
from gpuconv import backend, cli, files

Image = pytest.importorskip("PIL.Image")

FAKE = "gpuconv: error: fake"
EVIL = ["\x1b]0;title\x07", f"b\n{FAKE}", "[red]c", "\u202ed", "e\x9b31m", "f\t\r\x7f",
        "g\u2028\u200b\u2067", "h\udcff"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")


@pytest.fixture(autouse=True)
def no_stand_in(monkeypatch):
    """Let ``--device auto`` mean the CPU, where there is no GPU."""
    monkeypatch.setattr(backend, "_cupy", None)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A folder with such names that holds images of classes with such names, and a run on them."""
    place = tmp_path_factory.mktemp("place") / f"\x1b[31m[bold]\n{FAKE}"
    rng = np.random.default_rng(0)
    for name in EVIL:
        (place / "pets" / name).mkdir(parents=True)
        for number in range(5):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(place / "pets" / name / f"\x1b[{number}\n.png")
    (place / "\x07\x9b.png").write_bytes(b"no image")
    return place


@pytest.fixture
def gpuconv(evil, monkeypatch, capsys):
    """Run a command in that folder; return its exit status and all that it wrote."""
    monkeypatch.chdir(evil)

    def run(*words):
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as done:
            status = done.code
        told = capsys.readouterr()
        return status, told.out + told.err

    return run


def clean(text, terminal=False):
    """Hold that nothing in the text commands a terminal, but for what rich writes; return it."""
    if terminal:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    assert all(c == "\n" or c.isprintable() for c in text), ascii(text)
    assert not re.search(f"^{FAKE}", text, re.M)
    return text


RUN = f"runs/\x1b[32m\n{FAKE}"
TRAIN = ("train", "--data", "pets", "--image-size", 8, "--model", "INPUT 8x8x3 CONV3-2/4 FC 8",
         "--epochs", 1, "--batch-size", 8, "--device", "cpu", "--test-share", 0.4, "--run", RUN)
WRONG = [("train", "--resume", "\x1b[0m\n"), ("evaluate", f"a\n{FAKE}", "--traceback"),
         ("evaluate", "\x1b", f"\x9b\n{FAKE}"), ("train", f"--\x1b]0;x\x07\n{FAKE}"),
         ("train", "--dtype", "\x1b"), ("train", "--epochs", "\x9b"), (f"\x1b\n{FAKE}",),
         ("train", "--data", "\x1b[0m"), ("train", "--model", "\x1b"),
         ("train", "--model", "INPUT 8x8x3 \x1b[31m\u202e\n"), ("train", "--recipe", "\x1b\n"),
         ("train", "--run", RUN), ("predict", "\x07\x9b.png", f"\x1b\n{FAKE}"),
         ("predict", "\x1b", "--top", 1, "\x9b"), ("runs", "\x1b"), ("runs", RUN + "/no"),
         ("report", "\x1b"), ("report", RUN, "--output", "\x1b/x.html"),
         ("data", "--picture", "\x1b/x.png"), ("train", "", "\x1b")]


@pytest.mark.filterwarnings("always")  # they are shown, as lines
def test_names_never_command_a_terminal(evil, gpuconv, monkeypatch):
    status, text = gpuconv(*TRAIN)
    assert status == 0 and r"\x1b[32m\n" in clean(text)
    image = next((evil / "pets" / EVIL[0]).iterdir())
    config = evil / RUN / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"command": f"gpuconv train \x1b[31m\u202e {FAKE}"}))
    shutil.copytree(evil / RUN, evil / "runs" / "\x9b", symlinks=True)
    (evil / "runs" / "\x9b" / "config.json").write_text(json.dumps(
        told | {"model": {"notation": "INPUT 8x8x3 \x1b[31m\u202e"}}))
    # an image that has gone makes warnings
    next((evil / "pets" / EVIL[1]).iterdir()).unlink()
    for words in (("evaluate", RUN), ("evaluate", RUN, "--json"), ("predict", RUN, image),
                  ("predict", RUN, image, "--json"), ("report", RUN), ("runs",), ("runs", "--json"),
                  ("data", "pets"), ("info",), ("summary",), ("evaluate", RUN, "--data", "pets"),
                  ("predict", image)):
        status, text = gpuconv(*words)
        assert status == 0 or words[0] == "predict", ascii(text)
        clean(text)
    for words in WRONG:
        status, text = gpuconv(*words)
        assert status and "gpuconv: error: " in clean(text), words
    page = (evil / RUN / "report.html").read_text(encoding="utf-8")
    assert all(c == "\n" or c.isprintable() for c in page)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in (("evaluate", RUN), ("predict", RUN, image), ("runs",), ("info",),
                  ("data", "pets"), ("report", RUN), (*TRAIN[:-1], "runs/\x1b[33m")):
        status, text = gpuconv(*words)
        assert status == 0 and "\x1b[" in text, ascii(text)
        clean(text, terminal=True)
        if words[0] in ("evaluate", "data"):
            assert "[red]c" in text  # no markup


@pytest.mark.filterwarnings("always")
def test_metadata_of_a_checkpoint_is_escaped(evil, gpuconv):
    if not (evil / RUN).exists():
        gpuconv(*TRAIN)
    state, told = files.load(evil / RUN / "checkpoints" / "best.safetensors")
    for changes in ({"model": {"notation": "INPUT 8x8x3 \x1b[31m"}}, {"model": {"name": "\x1b\n"}},
                    {"classes": ["\x1b\u202e"] * 8}, {"classes": "\x1b"}, {"mean": "\x9b"},
                    {"input_shape": [f"\x1b\n{FAKE}"]}, {"identity": "\x1b"}):
        gpc.save(evil / "x.safetensors", state, told | changes)
        for words in (("evaluate", "x.safetensors", "--data", "pets"),
                      ("report", "x.safetensors")):
            clean(gpuconv(*words)[1])


# -- typos -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words, says, see", [
    (["train", "--epoch", "3"], "unrecognized option --epoch; did you mean --epochs?", "train "),
    (["train", "--epoch=3"], "unrecognized option --epoch; did you mean --epochs?", "train "),
    (["evaluate", "--jsn"], "did you mean --json?", "evaluate "),
    (["train", "--12345"], "unrecognized option --12345 (", "train "),
    (["trian"], "invalid choice: 'trian', wanted one of train, evaluate, .*; did you mean train?",
     ""),
    (["train", "--dtype", "fp16"], "wanted one of float32, .*; did you mean float16?", "train "),
    (["train", "--device", "gpu"], "did you mean cuda?", "train "),
    (["info", "more"], "unrecognized arguments: more (", "info "),
])
def test_a_typo_gets_a_suggestion_and_the_help_of_its_command(words, says, see, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    line, = capsys.readouterr().err.splitlines()
    assert done.value.code == 2
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), line), line
    assert re.search(rf"\(see \S+( -m)? ?(gpuconv)? {see}--help\)$", line), line


# -- predict ---------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with two images and, in ``runs``, a run."""
    from cli_tools import tiny_run
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run(), tmp_path / "runs" / "one")
    for name in ("a.png", "b.png"):
        Image.fromarray(gpc.data.shapes(1, 1)[1].images[0]).save(tmp_path / name)
    return tmp_path


def test_predict_uses_the_newest_run(pictures, capsys):
    assert cli.main(["predict", "a.png", "--json", "b.png"]) == 0
    newest = capsys.readouterr().out
    assert cli.main(["predict", "runs/one", "--json", "a.png", "b.png"]) == 0
    assert capsys.readouterr().out == newest
    checkpoint = "runs/one/checkpoints/best.safetensors"
    assert cli.main(["predict", checkpoint, "a.png", "b.png", "--json"]) == 0
    assert capsys.readouterr().out == newest
    assert [row["image"] for row in json.loads(newest)] == ["a.png", "b.png"]


@pytest.mark.parametrize("words, says", [
    (["runs/two", "a.png"], "runs/two: no such file or directory; runs/two was read as an image, "
                            "because it is neither the folder of a run nor a .safetensors file"),
    (["runs", "a.png"], "runs is a folder: name its files, runs/*; runs was read as an image"),
    (["c.png", "runs", "a.png"], "2 images cannot be read: c.png: no such file or directory; "
                                 "runs is a folder: name its files, runs/*"),
    (["runs/one"], "runs/one was read as RUN: wanted an IMAGE, too"),
    (["x.safetensors", "a.png"], "x.safetensors: no such file or directory; x.safetensors was "
                                 "read as RUN, because of its name"),
])
def test_predict_says_how_it_read_its_arguments(pictures, words, says, capsys):
    assert cli.main(["predict", *words]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpuconv: error: {says}")
    assert ("was read" in line) == ("was read" in says)


def test_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", "runs/typo", "a.png"]) == 1
    assert re.search(r"there is no run in .* train makes one; runs/typo was read as an image",
                     capsys.readouterr().err)


# -- hints -----------------------------------------------------------------------------------


def test_the_parent_of_runs_is_no_run(pictures, capsys):
    for words in (["evaluate", "runs"], ["train", "--resume", "runs"], ["report", "runs"]):
        assert cli.main(words) == 1
        assert capsys.readouterr().err == ("gpuconv: error: runs is no folder of a run: it has no "
                                           "config.json; the newest run in it is runs/one\n")


def test_a_file_where_a_folder_is_wanted(pictures, capsys):
    shutil.rmtree("runs/one/plots")
    (pictures / "runs/one/plots").touch()
    assert cli.main(["report"]) == 1
    assert "runs/one/plots is no folder, wanted one: move it away" in capsys.readouterr().err


def install_script(folder):
    """A script ``gpuconv`` as pip writes it; returns its path from the folder."""
    script = folder / ".venv" / "bin" / "gpuconv"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                      "from gpuconv.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return ".venv/bin/gpuconv"


@pytest.mark.slow
def test_each_printed_hint_works_when_it_is_pasted(tmp_path):
    """``gpuconv`` is not on PATH, and the run has a blank in its name."""
    def shell(command):
        return subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True,
                              env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, timeout=300)

    script = install_script(tmp_path)
    done = shell(f"{script} train --data shapes --limit 200 --epochs 1 --device cpu --run 'my run'")
    assert done.returncode == 0, done.stderr
    hints = re.findall(rf"^\w+ +({re.escape(script)} .*)$", done.stdout, re.M)
    assert [hint.split()[1] for hint in hints] == ["evaluate", "report"]
    for hint in hints:
        done = shell(hint)
        assert done.returncode == 0 and not done.stderr, (hint, done.stderr)
    for example in re.findall(rf"^  ({re.escape(script)} .*)$", shell(f"{script} --help").stdout,
                              re.M):
        assert shell(f"{example} --help").returncode == 0
    done = shell(f"{script} train --data shapes --run 'my run'")
    hint = re.search(rf"{re.escape(script)} train --resume .*$", done.stderr)[0]
    done = shell(hint)  # the run has ended, so there is nothing to do
    assert done.returncode == 0, done.stderr
    done = shell(f"{script} train --epoch 3")
    see = re.search(r"\(see (.*)\)$", done.stderr.strip())[1]
    assert "--epochs" in shell(see).stdout
