"""A plugin of pytest: each test runs with everything on the GPU done as late as a GPU may.

    python -m pytest -p late tests/test_conv2d.py -k host-cuda

A test that passes without it and fails with it reads something before it has waited for it.
"""

import pytest

from hostcuda import deferred


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with deferred():
        return (yield)
