"""The first call in a process gives what the second one gives.

fresh_calls.py has a call of every public name, and forks a child for each that has done nothing
before. Registrations, caches, lazy imports and operators that an import installs would show.
"""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import fresh_calls
import pytest

import gpuconv as gpc
from gpuconv import runs
from gpuconv.cli import COMMANDS

MODULES = ("gpuconv", "gpuconv.ops", "gpuconv.nn", "gpuconv.optim", "gpuconv.data",
           "gpuconv.train", "gpuconv.models", "gpuconv.runs")
FEW = ("gpuconv.load", "gpuconv.data.Loader", "gpuconv.nn.Conv2d bfloat16", "gpuconv.runs.load")


def test_every_public_name_is_called():
    """A new one needs a call, or a reason why not."""
    public = {f"{module}.{name}" for module in MODULES
              for name in importlib.import_module(module).__all__}
    public |= {f"gpuconv {name}" for name in COMMANDS}
    called = {re.sub(" (float32|bfloat16|--resume)$", "", name) for name in fresh_calls.CALLS}
    exempt = {name for names in fresh_calls.EXEMPT.values() for name in names}
    assert called | exempt == public and not called & exempt


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("names", [
    pytest.param(FEW, id="few"), pytest.param((), id="all", marks=pytest.mark.slow)])
def test_the_first_call_gives_what_the_second_gives(tmp_path, names):
    program = pathlib.Path(fresh_calls.__file__)
    done = subprocess.run([sys.executable, program, tmp_path, *names], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(program.parents[1])})
    assert done.returncode == 0 and done.stdout + done.stderr == ""


def test_without_ml_dtypes_the_error_says_what_to_install(tmp_path, monkeypatch):
    import ml_dtypes
    import numpy as np
    gpc.save(tmp_path / "f", {"a": np.zeros(2, ml_dtypes.bfloat16)})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for load in (gpc.load, runs.load):
        with pytest.raises(TypeError, match="pip install ml_dtypes"):
            load(tmp_path / "f")
