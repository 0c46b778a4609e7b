"""What ``import gpuconv`` costs on top of NumPy, in new processes; PyTorch's import beside it."""

import importlib.util
import os
import subprocess
import sys

import pytest

ROUNDS = 10
ALONE = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # no thread spins for work


@pytest.mark.parametrize("modules", ["numpy", "numpy, gpuconv", "numpy, torch"])
def test_import(benchmark, modules):
    name = modules.rpartition(", ")[2]
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    code = (f"import time; began = time.perf_counter(); import {modules}; "
            f"import sys; assert {name!r} in sys.modules; print(time.perf_counter() - began)")

    def run():
        done = subprocess.run([sys.executable, "-c", code], check=True, env=ALONE,
                              capture_output=True, text=True)
        return float(done.stdout)

    benchmark.group = "import"
    benchmark.extra_info.update(work="import", modules=modules)
    assert 0 < benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1) < 60
