"""Packages that gpuconv or its tests import and that a GPU machine may lack: do without them."""

import functools
import importlib.util
import sys
import types
from unittest import mock

OURS = ["scipy", "rich", "safetensors", "threadpoolctl", "platformdirs", "PIL", "ml_dtypes"]
TESTS = ["hypothesis", "matplotlib", "tensorboardX", "build", "pdoc", "torch"]


def absent() -> list[str]:
    """Names of those that are not installed."""
    return [name for name in OURS + TESTS if not there(name)]


@functools.cache
def there(name: str) -> bool:
    """Could it be imported, before something was put in its place?"""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def do_without() -> None:
    """threadpoolctl: BLAS keeps its threads. The others are imported where they are needed."""
    if not there("threadpoolctl"):
        limiter = types.SimpleNamespace(restore_original_limits=lambda: None)
        controller = types.SimpleNamespace(lib_controllers=(), limit=lambda **_: limiter)
        sys.modules["threadpoolctl"] = module = types.ModuleType("threadpoolctl")
        module.ThreadpoolController = lambda: controller
        module.threadpool_info = lambda: []


def skip_hypothesis() -> None:
    """Tests with drawn examples are skipped, the others of their file run."""
    if not there("hypothesis"):
        import pytest

        def given(*_, **__):
            def skipping(f):
                @pytest.mark.skip(reason="hypothesis is not installed")
                @functools.wraps(f)
                def called(*_, **__):
                    pytest.skip("hypothesis is not installed")

                return called

            return skipping

        double = mock.MagicMock(given=given, settings=lambda *_, **__: lambda f: f,
                                example=lambda *_, **__: lambda f: f)
        for name in ("", ".strategies", ".extra", ".extra.numpy"):
            sys.modules[f"hypothesis{name}"] = double
