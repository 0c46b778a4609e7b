"""``gpuconv tune``: its flow, on the stand-in too; what is fastest is nobody's to assert there."""

import json
import re

import numpy as np
import pytest
from cli_tools import fails
from conftest import HAS_GPU

import gpuconv as gpc
from gpuconv import cli, ops
from gpuconv.ops.conv import autotune, gpu_dispatch
from gpuconv.ops.conv.tuning_table import Algorithm, load_table
from gpuconv.ops.window import ConvShape, Window

NET = "INPUT 4x4x8 | CONV3-8 RELU | FC 5"
SMALL = ["tune", "--model", NET, "--batch-size", "2", "--device", "cuda"]


@pytest.fixture
def quick(monkeypatch, cp):
    """Few candidates, measured once."""
    monkeypatch.setattr(autotune, "FLUSH", 1 << 10)
    monkeypatch.setattr(autotune, "ROUNDS", 2)
    monkeypatch.setattr(autotune, "WARMUP", 1)
    every = gpu_dispatch.candidates

    def few(*key):
        first, *others = every(*key)
        yield first
        yield from (c for c in others if c.engine == "simt")

    monkeypatch.setattr(gpu_dispatch, "candidates", few)


def tune(*arguments, capsys):
    """What it prints."""
    assert cli.main([*SMALL, *map(str, arguments)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def test_measures_what_a_training_step_asks_for(quick, tmp_path, capsys):
    path = tmp_path / "t.json"
    out = tune("--dtype", "float16", "--output", path, capsys=capsys)
    rows = [line.split("  ")[0] for line in out.splitlines() if "->" in line]
    assert rows == ["forward", "forward", "input gradient", "weight gradient", "weight gradient"]
    assert re.search(r"forward +4x4x8 -> 8, 3x3 +[\d.]+ +[\d.]+ +[\d.]+x +\w", out)
    assert f"gpuconv train --tuned {path}" in out and "left out" not in out
    told = json.loads(path.read_text())
    assert told["format"] == "gpuconv tuned" and len(told["entries"]) == 5
    first = told["entries"][0]
    assert first["problem"]["N"] == 2 and first["dtype"] == "float16"
    cores = {"tensor_cores"} if gpu_dispatch.architecture() >= 80 else set()
    assert {c["engine"] for c in first["candidates"]} == {"simt", *cores}
    assert all(c["milliseconds"] >= 0 for c in first["candidates"])


def test_the_table_is_used_and_gives_the_same_step(quick, tmp_path, capsys, monkeypatch):
    tune("--dtype", "float32", "--output", tmp_path / "t.json", capsys=capsys)
    table = load_table(tmp_path / "t.json")
    cp, seen, dispatch = gpc.backend.cupy(), [], gpu_dispatch.dispatch
    monkeypatch.setattr(gpu_dispatch, "dispatch", lambda *how: (
        seen.append(dispatch(*how)) or seen[-1]))
    x, w = cp.ones((2, 4, 4, 8), "float32"), cp.ones((8, 3, 3, 8), "float32")
    with ops.tuned(table):
        ops.conv2d(x, w, padding=1)
    key = next(key for key in table.entries if key[0] == "forward" and key[1].R == 3)
    assert seen == table.find(key)[:1]


def test_tf32(quick, tmp_path, capsys):
    tune("--precision", "tf32", "--output", tmp_path / "t.json", capsys=capsys)
    assert {key[3] for key in load_table(tmp_path / "t.json").entries} == {"tf32"}


def test_what_fails_or_errs_is_left_out(quick, monkeypatch):
    key = "forward", ConvShape(1, 4, 4, 8, 8, Window((1, 1))), "float16", "ieee"
    failed = []

    def forward(*arrays, out, algorithm):
        gpu_dispatch.forward(*arrays, out=out, algorithm=algorithm)
        if algorithm.engine == "simt":
            out *= 1.25

    monkeypatch.setitem(autotune.RUN, "forward", forward)
    found = autotune.measured([key], lambda *failure: failed.append(failure))
    assert [algorithm.engine for algorithm in found.find(key)] == ["tensor_cores"]
    (_, chosen, why), = failed
    assert chosen == Algorithm("simt") and re.fullmatch(r"its result is 2.5e-01 off", why)

    def broken(*arguments, **more):
        raise MemoryError("of the device")

    monkeypatch.setitem(autotune.RUN, "forward", broken)
    assert autotune.measured([key]).find(key) == []


def test_operands_have_the_shapes(cp):
    p = ConvShape(2, 5, 4, 6, 9, Window((2, 3)), 3)
    for direction, want in (("forward", "xwy"), ("dgrad", "ywx"), ("wgrad", "xyw")):
        shapes = dict(x=(2, 5, 4, 6), w=(9, 2, 3, 2), y=(2, 4, 2, 9))
        got = autotune.operands((direction, p, "bfloat16", "ieee"))
        assert [a.shape for a in got] == [shapes[name] for name in want]
        assert np.isfinite(got[0].get().astype(float)).all()


def test_refuses(tmp_path, capsys, cp):
    for arguments, message in (
            (["--device", "cpu"], "there is nothing to choose on the CPU"),
            (["--output", tmp_path / "no" / "t.json"], "there is no folder"),
            (["--model", "INPUT 4x4x8 | RELU"], "neither convolutions nor Linear layers")):
        assert cli.main([*SMALL, *map(str, arguments)]) == 1
        told = capsys.readouterr()
        assert message in told.err and told.out == ""


@pytest.mark.skipif(HAS_GPU, reason="wants a machine without a GPU")
def test_without_a_gpu():
    line = fails(1, "tune")
    assert "pip install" in line or "driver" in line or "device" in line
