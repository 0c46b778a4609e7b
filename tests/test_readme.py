"""README tells the truth: its examples run, its commands are the ones that CI runs."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path):
    done = subprocess.run([sys.executable, "-W", "error", "-c", EXAMPLES[number]], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "gpc.train.fit" in EXAMPLES[number]:  # chance is 10 %
        accuracy, = re.findall(r"^(\d+\.\d)% of 500 test images right$", done.stdout, re.M)
        assert float(accuracy) >= 90


def test_there_are_examples_of_the_library_and_of_plain_arrays():
    assert any("gpc.train.fit" in code for code in EXAMPLES)
    assert any("gpc.vjp" in code and "max_pool2d(conv2d" in code for code in EXAMPLES)


def test_two_commands_set_up_everything_themselves():
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.M)
    assert len(commands) == 2
    assert commands[0].endswith("gpuconv train") and commands[1].endswith("-m pytest -q -n auto")


def test_every_file_that_it_links_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
