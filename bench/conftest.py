"""``pytest bench`` times everything; ``pytest bench --benchmark-json=bench.json`` keeps it."""

import harness
import numpy as np
import pytest
import roofline

from gpuconv import backend, threads


def pytest_report_header():
    gpu = backend.device_info()
    return f"bench: {threads.count()} CPU threads; GPU: {gpu.message}"


def pytest_terminal_summary(terminalreporter):
    if roofline.roof.cache_info().currsize:
        for device in ["cpu"] + ["cuda"] * backend.device_info().ready:
            peaks = roofline.roof(device)
            terminalreporter.write_line(f"{device} peaks, measured: {peaks}")


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["gpu"] = backend.device_info().message
    machine_info["threads"] = threads.count()


@pytest.fixture
def library(request):
    """One of harness.LIBRARIES, or a visible skip."""
    return harness.Library(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
