"""What all commands have in common: help, exit status, one line for an error, pipes."""

import os
import re
import subprocess
import sys

import pytest
from cli_tools import ROOT, fails, gpuconv

import gpuconv as gpc
from gpuconv import cli

SLOW = "rich scipy PIL matplotlib safetensors concurrent.futures gpuconv.data gpuconv.train"
SHARED = {"__init__", "introduction", "options", "output"}  # files that are no commands


# -- help, version -------------------------------------------------------------------------


def test_help_shows_each_command_with_a_line_and_examples():
    done = gpuconv("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert tuple(re.findall(r"^    (\w+) +[a-z]\w* .*[^.]$", done.stdout, re.M)) == cli.COMMANDS
    for example in re.findall(r"^  .*gpuconv (\w+)", done.stdout.split("examples:\n")[1], re.M):
        assert example in cli.COMMANDS


def test_every_command_has_a_file_and_every_file_is_a_command():
    files = {path.stem for path in (ROOT / "gpuconv" / "cli").glob("*.py")}
    assert files - SHARED == set(cli.COMMANDS) and len(set(cli.COMMANDS)) == len(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_has_an_example_of_it(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert re.search(rf"examples?:\n  .*gpuconv {command}\b", text)


def test_examples_of_all_commands_can_be_parsed():
    import shlex
    for command in cli.COMMANDS:
        for example in sys.modules[f"gpuconv.cli.{command}"].EXAMPLES:
            name, *arguments = shlex.split(example.split("  #")[0])
            assert name == "gpuconv" and arguments[0] == command
            cli.parser().parse_args(arguments)


@pytest.mark.parametrize("arguments, after", [
    (["train", "--model", ""], ": the one after --model"), (["evaluate", ""], ": the one after"),
    ([""], " (see")])
def test_an_empty_argument_is_a_variable_that_was_not_set(arguments, after, capsys):
    """It meant whatever is the default: another model, the newest run."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert f"gpuconv: error: an argument is empty{after}" in capsys.readouterr().err


def test_help_imports_nothing_slow():
    code = ("import sys; from gpuconv import cli; cli.parser().format_help(); "
            f"print([m for m in {SLOW.split()} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_version():
    assert gpuconv("--version").stdout == f"gpuconv {gpc.__version__}\n"


# -- failures ------------------------------------------------------------------------------


def test_no_command():
    assert "command" in fails(2)
    assert "invalid choice: 'fly'" in fails(2, "fly")


@pytest.fixture
def failing(monkeypatch):
    """Let ``gpuconv info`` raise something."""
    def put(error):
        def run(args):
            raise error
        monkeypatch.setattr("gpuconv.cli.info.run", run)
    return put


def pointing(text, note):
    error = ValueError(text)
    error.add_note(note)
    return error


@pytest.mark.parametrize("error, text", [
    (ValueError("size 3 does not fit"), "size 3 does not fit"),
    (pointing("model: cannot read CONF", "  INPUT | CONF\n          ^^^^"),
     "model: cannot read CONF\n  INPUT | CONF\n          ^^^^"),
    (ValueError("no file a\ngpuconv: error: b"), "no file a\\ngpuconv: error: b"),
    (FileExistsError(17, "File exists", "runs/one/plots"),
     "runs/one/plots: a file has that name, wanted a folder"),
    (FileNotFoundError(2, "No such file or directory", "a b.png"),
     "a b.png: no such file or directory"),
    (FileNotFoundError("found no CIFAR-10"), "found no CIFAR-10"),
    (ImportError("the plots need matplotlib"), "the plots need matplotlib"),
    (MemoryError(), "MemoryError"),
], ids=["one line", "a note as it is", "a name of two lines", "no folder", "of the system",
        "own words", "missing", "no words"])
def test_a_failure_is_said_without_a_traceback(error, text, failing, capsys):
    failing(error)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr() == ("", f"gpuconv: error: {text}\n")


def test_a_failure_shows_where_if_asked(failing, capsys):
    failing(ValueError("size 3"))
    assert cli.main(["info", "--traceback"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "gpuconv: error: size 3"


def test_a_mistake_of_ours_is_not_hidden(failing):
    failing(KeyError("a bug"))
    with pytest.raises(KeyError):
        cli.main(["info"])


def test_interrupted(failing, capsys):
    failing(KeyboardInterrupt())
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "gpuconv: interrupted\n"


# -- pipes ---------------------------------------------------------------------------------


def test_a_reader_may_leave():
    """``gpuconv info | head -1``."""
    read, write = os.pipe()
    os.close(read)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-m", "gpuconv", "info"], stdout=write, cwd=ROOT,
                          stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    os.close(write)
    assert done.stderr == ""


def test_what_the_output_cannot_show_is_escaped(tmp_path):
    """A folder's name, say, where the output is ASCII."""
    (tmp_path / "\u732b").mkdir()
    done = gpuconv("info", folder=tmp_path / "\u732b", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "\\u732b" in done.stdout
