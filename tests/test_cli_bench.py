"""``gpuconv bench`` as its users meet it; how long things take is nobody's to assert."""

import json
import re

import numpy as np
import pytest
from cli_tools import fails, gpuconv
from conftest import HAS_GPU
from rich.console import Console

import gpuconv as gpc
from gpuconv import cli, nn
from gpuconv.cli import bench

SMALL = ["bench", "--model", "INPUT 8x8x3 | CONV3-4 RELU POOL2 | FC 5", "--batch-size", 4,
         "--device", "cpu", "--seconds", 0.01]
LAYERS = {"cpu": {"0": "Conv2d", "1+2": "ReLU+MaxPool2d", "3": "Flatten", "4": "Linear"},
          "cuda": {"0+1+2": "Conv2d+ReLU+MaxPool2d", "3": "Flatten", "4": "Linear"}}


@pytest.fixture
def quick(monkeypatch):
    """Small work."""
    monkeypatch.setattr(bench, "SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(bench, "COPIED", 1 << 12)
    monkeypatch.setattr(bench, "QUEUED", {"cpu": 1, "cuda": 2})


def test_json():
    done = gpuconv(*SMALL, "--json")
    assert done.returncode == 0 and done.stderr == ""
    told = json.loads(done.stdout)
    assert told["batch_size"] == 4 and told["dtype"] == "float32"
    assert told["threads"] == gpc.threads.count()
    product, copy = told["peak_flops_per_second"], told["peak_bytes_per_second"]
    for value in (product, copy, told["training_images_per_second"],
                  told["evaluation_images_per_second"]):
        assert value > 0
    assert {layer["name"]: layer["kind"] for layer in told["layers"]} == LAYERS["cpu"]
    conv = told["layers"][0]
    assert conv["output"] == [4, 8, 8, 4]
    # two operations per multiply-add; x, y, w and b, four bytes each number
    assert conv["flops"] == 2 * 4 * 8 * 8 * 4 * 27
    assert conv["bytes"] == 4 * (4 * 8 * 8 * 3 + 4 * 8 * 8 * 4 + 4 * 27 + 4)
    assert conv["share"] == pytest.approx(
        max(conv["flops"] / product, conv["bytes"] / copy) / conv["seconds"])
    pool = told["layers"][1]  # what passes between ReLU and it is no traffic
    assert pool["output"] == [4, 4, 4, 4] and pool["bytes"] == 4 * (4 * 8 * 8 * 4 + 4 * 4 * 4 * 4)


def table(*arguments, capsys):
    """(what stands above the table, its rows)"""
    assert cli.main([*map(str, SMALL), *arguments]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    above, below = told.out.split("of peak\n")
    return above, [row.split() for row in below.splitlines()]


@pytest.mark.parametrize("dtype", gpc.backend.FLOATS)
def test_a_table(dtype, quick, capsys):
    above, rows = table("--dtype", dtype, capsys=capsys)
    assert f" parameters, {dtype}\n" in above and "of two 64 x 64 matrices" in above
    assert {row[0]: row[1] for row in rows[:4]} == LAYERS["cpu"]
    assert rows[2][-2:] == ["-", "-"]  # Flatten only looks at its input in another way


def test_on_a_gpu(quick, cp, capsys):
    above, rows = table("--device", "cuda", capsys=capsys)
    assert re.search("^device +cuda, ", above) and (
        {row[0]: row[1] for row in rows[:3]} == LAYERS["cuda"])


def test_a_layer_that_is_used_twice_counts_twice(quick, xp):
    class Twice(nn.Module):
        def __init__(self):
            self.norm, self.flatten = nn.Linear(6, 6), nn.Flatten()

        def forward(self, x):
            return self.norm(self.norm(self.flatten(x)))

    model = Twice().to("cpu" if xp is np else "cuda")
    found = bench.Bench(model, (2, 1, 2, 3), 0.0).layers()
    assert [(layer.kind, layer.output) for layer in found] == [
        ("Flatten", (2, 6)), ("Linear", (2, 6))]
    linear = found[1]
    assert linear.flops == 2 * 2 * 2 * 36
    assert linear.bytes == 2 * 4 * (12 + 12 + 36 + 6)


def test_a_residual_branch_reads_its_shortcut(quick, cp):
    model = nn.Sequential(nn.Residual(nn.Conv2d(2, 2, 1, bias=False)), nn.ReLU()).to("cuda")
    layer, = bench.Bench(model, (3, 4, 4, 2), 0.0).layers()
    assert (layer.name, layer.kind) == ("0.body.0+0+1", "Conv2d+Residual+ReLU")
    assert layer.output == (3, 4, 4, 2) and layer.bytes == 4 * (3 * 96 + 4)


def test_wrong_usage():
    assert "invalid choice: 'int8'" in fails(2, "bench", "--dtype", "int8")
    assert "out of range" in fails(2, "bench", "--batch-size", 0)
    done = gpuconv("bench", "--model", "INPUT 8x8x3 | CONF3-4")
    assert done.returncode == 1 and "CONF3-4" in done.stderr and "Traceback" not in done.stderr
    if not HAS_GPU:
        fails(1, "bench", "--device", "cuda")


def test_in_a_terminal(quick, capsys):
    model = gpc.models.build(gpc.models.describe("simple_convnet"))
    out = Console(width=80, force_terminal=True)
    layers = bench.Bench(model, (2, 32, 32, 3), 0.0).layers()
    bench.show_layers(out, layers, bench.Peaks(1e15, 1e15))
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b[" in lines[0] and len(lines) == 6 and "Linear" in lines[-1]


def test_what_bounds_a_layer():
    layer = bench.Layer("0", "Conv2d", (1, 2), seconds=2.0, flops=6e9, bytes=8e9)
    assert layer.rate(bench.Peaks(1e10, 1e9)) == "4.0 GB/s"
    assert layer.share(bench.Peaks(1e10, 1e10)) == 0.4
    assert layer.rate(bench.Peaks(5e9, 1e10)) == "3 GFLOP/s"
    assert layer.share(bench.Peaks(5e9, 1e10)) == 0.6


def test_more_than_the_peak_is_explained(capsys):
    layer = bench.Layer("0", "ReLU", (1, 2), seconds=1.0, flops=0, bytes=2e9)
    bench.show_layers(Console(), [layer], bench.Peaks(1e10, 1e9))
    told = capsys.readouterr().out
    assert "2.0 GB/s     200%\nmore than 100%: the data stayed in a cache" in told
