"""``gpuconv info`` as its users meet it."""

import re

import numpy as np
from cli_tools import fails, gpuconv, in_a_terminal
from conftest import HAS_GPU

import gpuconv as gpc


def test_info():
    done = gpuconv("info")
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert rows["NumPy"].startswith(np.__version__) and "threads" in rows["NumPy"]
    assert rows["gpuconv"].startswith(gpc.__version__)
    assert rows["GPU"].split(":")[0] in ("ready", "no cupy", "no driver", "no device",
                                         "no libraries")
    assert {"Python", "SciPy", "CPU", "CuPy", "CIFAR-10"} <= rows.keys()


def test_info_in_a_terminal():
    seen, status = in_a_terminal("info")
    assert status == 0 and "GPU" in seen and "\x1b[" in seen
    if not HAS_GPU:
        assert "cuda-toolkit[cublas" in seen.replace("\r\n", "")  # brackets are no markup


def test_a_file_called_data_is_no_data_set(tmp_path):
    (tmp_path / "data").write_text("hello")
    assert "not found" in gpuconv("info", folder=tmp_path).stdout


def test_wrong_usage():
    assert "unrecognized arguments: everything" in fails(2, "info", "everything")
    assert "unrecognized option --json (see" in fails(2, "info", "--json")
    assert "ignored explicit argument 'all'" in fails(2, "info", "--traceback=all")
