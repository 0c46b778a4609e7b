"""``pytest bench`` times everything; ``pytest bench --benchmark-json=bench.json`` keeps it."""

import os

import harness
import numpy as np
import pytest
import roofline

from gpuconv import backend, threads

LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before we add to it


def gpu():
    info = backend.device_info()
    return info.message if info.ready else info.state


def pytest_report_header():
    lines = [f"bench: {threads.count()} CPU threads; GPU: {gpu()}"]
    if LOAD > 0.5:
        lines.append(f"bench: OTHERS ARE WORKING on this machine (load {LOAD:.1f}): "
                     "do not believe the times")
    return lines


def pytest_terminal_summary(terminalreporter):
    if roofline.roof.cache_info().currsize:
        for device in ["cpu"] + ["cuda"] * backend.device_info().ready:
            peaks = roofline.roof(device)
            terminalreporter.write_line(f"{device} peaks, measured: {peaks}")


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["gpu"] = gpu()
    machine_info["load"] = LOAD
    machine_info["threads"] = threads.count()


@pytest.fixture
def library(request):
    """One of harness.LIBRARIES, or a visible skip."""
    return harness.Library(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
