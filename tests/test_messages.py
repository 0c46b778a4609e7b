"""Parts of messages: escaped text, suggestions, commands that can be pasted into a shell."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata

import pytest

import gpuconv as gpc
from gpuconv import backend, messages, models, train
from gpuconv.data import Source

HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, line separators


def test_no_character_that_commands_a_terminal_is_printable():
    harmful = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in HARMFUL]
    assert {"\x07", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066", "\u200b", "\u2028",
            "\udcff"} <= set(harmful)
    assert not re.search(r"[^ -~]", messages.printable("".join(harmful)))


def test_what_people_write_stays_as_it_is():
    text = "caf\u00e9 \u732b \u2192 95% [red]x[/red] $x^2$ \\ '\""
    assert messages.printable(text) == text


# -- suggestions -----------------------------------------------------------------------------


@pytest.mark.parametrize("call, says", [
    (lambda: train.Settings(optimizer="Sgdd"), "did you mean sgd"),
    (lambda: train.Settings(schedule="cosin"), "did you mean cosine"),
    (lambda: train.Settings(views="miror"), "did you mean mirror"),
    (lambda: models.build({"name": "cifar_convnt"}), "did you mean cifar_convnet"),
    (lambda: models.describe("INPUT 8x8x3 CONF3-4 FC 2"), "did you mean CONV"),
    (lambda: Source.from_options("cifar-10"), "no such file or folder; .*did you mean cifar10"),
    (lambda: Source.from_options("Shape"), "did you mean shapes"),
    (lambda: gpc.asarray([1.0], "gpu:1"), "'cuda:<number>'; did you mean cuda"),
    (lambda: backend.float_dtype("fp16"), "did you mean float16"),
], ids=range(9))
def test_a_typo_gets_a_suggestion(call, says):
    with pytest.raises((ValueError, TypeError, OSError), match=says):
        call()


def test_what_is_like_nothing_gets_none():
    with pytest.raises(ValueError,  match="wanted 'none', 'mirror' or 'six'$"):
        train.Settings(views="12345")


# -- commands --------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with programs in ``.venv/bin`` and ``other``; PATH leads to none of them."""
    for folder in (".venv/bin", "other"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("gpuconv", "python"):
            (tmp_path / folder / name).write_text("#!/bin/sh\n")
            (tmp_path / folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv/bin/gpuconv"), "train"])
    return tmp_path


posix = pytest.mark.skipif(os.name == "nt", reason="paths and PATH of POSIX")


@posix
def test_the_program_is_what_was_started(place, monkeypatch):
    assert messages.program() == ".venv/bin/gpuconv"
    monkeypatch.setenv("PATH", f"{place}/other")
    assert messages.program() == ".venv/bin/gpuconv"  # PATH has another one
    monkeypatch.setenv("PATH", f"{place}/.venv/bin:{place}/other")
    assert messages.program() == "gpuconv"
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(place / ".venv" / "bin")
    assert messages.program() == "./gpuconv"
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["/a b/bin/gpuconv"])
    assert messages.program() == "'/a b/bin/gpuconv'"


@posix
def test_a_module_is_run_by_its_python(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(place / "gpuconv" / "__main__.py")])
    assert messages.program() == ".venv/bin/python -m gpuconv"
    monkeypatch.setenv("PATH", f"{place}/.venv/bin")
    assert messages.program() == "python -m gpuconv"
    (place / ".venv/bin/python").unlink()
    (place / ".venv/bin/python").symlink_to(place / "other/python")  # as in a venv
    monkeypatch.setenv("PATH", f"{place}/other")
    assert messages.program() == ".venv/bin/python -m gpuconv"
    monkeypatch.setattr(sys, "argv", ["a notebook"])
    assert messages.program() == ".venv/bin/python -m gpuconv"


@posix
def test_in_a_folder_that_is_gone(place, monkeypatch):
    gone = place / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert messages.program() == shlex.quote(f"{place}/.venv/bin/gpuconv")


def test_words_of_a_command_are_quoted_for_this_shell(monkeypatch):
    words = ["runs/a b", "it's", "$x", "plain-1.2/x"]
    if os.name != "nt":
        done = subprocess.run(["sh", "-c", f"printf '%s\\n' {messages.quoted(*words)}"],
                              capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == words
    monkeypatch.setattr(messages.os, "name", "nt")
    assert messages.quoted(r".venv\Scripts\gpuconv", "a b") == r'.venv\Scripts\gpuconv "a b"'


def test_what_is_installed_is_what_the_extras_say():
    """Of a CUDA the versions matter; of other packages the name is enough."""
    project = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for extra, packages in messages.PACKAGES.items():
        listed = [text.split(";")[0].strip() for text in extras[extra]]
        assert [one if one in listed else re.split("[<>=]", listed[i])[0]
                for i, one in enumerate(packages)] == list(packages) and (
                    len(packages) == len(listed)), extra
    assert messages.install("plot").endswith("-m pip install matplotlib")
    assert messages.install("pillow").endswith("-m pip install pillow")
