"""Damaged data files of every kind: one sentence with the file's name, in little memory."""

import pathlib
import subprocess
import sys

import pytest
from mutated_data import KINDS, try_all
from PIL import features

TESTS = pathlib.Path(__file__).parent


def check_supported(kind):
    name = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind)
    if name and not features.check(name):
        pytest.skip(f"this Pillow reads no {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_gives_a_sentence(tmp_path, kind, monkeypatch):
    check_supported(kind)
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 1 << 28)
    assert try_all(kind, 24, tmp_path) < 22  # some of the damage does something


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damages_in_little_memory(kind):
    check_supported(kind)
    done = subprocess.run([sys.executable, TESTS / "mutated_data.py", kind, "2000"], text=True,
                          capture_output=True, timeout=600, cwd=TESTS.parent,
                          env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
