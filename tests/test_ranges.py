"""NVTX ranges, one per layer."""

import numpy as np
import pytest

from gpuconv import nn


@pytest.fixture
def log(cp, monkeypatch):
    calls = []
    monkeypatch.setattr(cp.cuda.nvtx, "RangePush", lambda message: calls.append(message))
    monkeypatch.setattr(cp.cuda.nvtx, "RangePop", lambda: calls.append("pop"))
    return calls


def test_each_layer_is_a_range_and_ranges_nest(cp, log):
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Flatten())
    x = cp.asarray(np.ones((1, 2, 2, 1), "float32"))
    with nn.nvtx_ranges(model):
        model(x)
    assert log == ["Sequential", "0 Sequential", "0.0 ReLU", "pop", "pop", "1 Flatten", "pop",
                   "pop"]
    model(x)
    assert len(log) == 8  # off again


def test_layers_that_run_as_one_op_are_one_range(cp, log):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Residual(nn.ReLU())).to("cuda")
    with nn.nvtx_ranges(model):
        model(cp.asarray(np.ones((1, 2, 2, 1), "float32")))
    assert log == ["Sequential", "0+1 BatchNorm2d+ReLU", "pop", "2.body.0 ReLU", "pop",
                   "2 Residual", "pop", "pop"]


def test_a_range_ends_where_a_layer_fails(cp, log):
    model = nn.Sequential(nn.Linear(3, 2)).to("cuda")
    with pytest.raises(ValueError, match="linear"), nn.nvtx_ranges(model):
        model(cp.asarray(np.ones((1, 4), "float32")))
    assert log == ["Sequential", "0 Linear", "pop", "pop"]


def test_without_a_gpu_the_error_says_what_is_missing(monkeypatch):
    def missing():
        raise RuntimeError("CuPy is not installed: pip install 'gpuconv[cuda13]'")

    monkeypatch.setattr("gpuconv.nn.ranges.cupy", missing)
    model = nn.ReLU()
    with pytest.raises(RuntimeError, match="not installed"), nn.nvtx_ranges(model):
        pass
    assert "forward" not in vars(model)


def test_the_names_are_cupys_own():
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    assert callable(cupy.cuda.nvtx.RangePush) and callable(cupy.cuda.nvtx.RangePop)
