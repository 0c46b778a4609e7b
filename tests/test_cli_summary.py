"""``gpuconv summary`` as its users meet it."""

import json
import re

from cli_tools import fails, gpuconv, in_a_terminal


def test_summary_of_a_notation_with_memory():
    done = gpuconv("summary", "--model", "INPUT 32x32x3 | CONV5-8 RELU POOL3/2 | FC 10", "--device",
                   "cpu", "--memory", "--batch-size", 64)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    layers, memory = done.stdout.split("\n\n")
    lines = layers.splitlines()
    assert [re.split(" {2,}", line)[1] for line in lines[1:-2]] == [
        "Conv2d", "ReLU", "+ MaxPool2d", "Flatten", "Linear"]
    assert lines[-2] == "+ runs together with the layer above it (cpu)"
    assert lines[3].endswith("7x7  1 row, 1 column cropped")
    assert lines[-1].startswith("18,618 parameters; 632k multiply-adds")
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in memory.splitlines())
    assert rows["batch size"] == "64 images" and rows["peak"].endswith("MiB in a training step")
    assert {"parameters", "gradients", "optimizer", "activations", "workspace", "data"} <= set(rows)


def test_json_has_rows_totals_and_bytes():
    done = gpuconv("summary", "--model", "simple_convnet", "--image-size", 16, "--dtype", "float16",
                   "--device", "cpu", "--json", "--memory")
    found = json.loads(done.stdout)
    assert found["input"] == [16, 16, 3] and found["dtype"] == "float16"
    assert found["rows"][0]["output"] == [16, 16, 32] and found["rows"][0]["unshared"] == 622_592
    assert [row["op"] for row in found["rows"]] == ["0", "1+2", "1+2", "3", "4"]
    assert found["device"] == "cpu"
    assert found["parameters"] == 2_432 + 8 * 8 * 32 * 10 + 10
    parts = found["memory"]
    assert parts["batch_size"] == 128 and parts["peak"] == sum(parts[name] for name in (
        "parameters", "gradients", "optimizer", "data", "activations", "workspace"))


def test_the_plan_of_a_gpu_needs_none():
    done = gpuconv("summary", "--model", "cifar_convnet", "--device", "cuda")
    kinds = [re.split(" {2,}", line)[1] for line in done.stdout.splitlines()[1:4]]
    assert done.returncode == 0 and kinds == ["Conv2d", "+ BatchNorm2d", "+ ReLU"]
    assert "+ runs together with the layer above it (cuda)" in done.stdout


def test_in_a_narrow_terminal_no_column_is_cut_off():
    seen, status = in_a_terminal("summary", "--model", "simple_convnet", "--device", "cpu",
                                 width=80)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert status == 0 and "\x1b[" in seen and "…" not in plain
    assert max(map(len, plain.splitlines())) <= 80
    for word in ("output", "window", "shared", "field", "32x32x32", "5x5p2", "2.5M", "81.9k"):
        assert word in plain


def test_failures_are_one_line():
    line = fails(1, "summary", "--model", "convnet")
    assert "unknown model 'convnet': wanted cifar_convnet, simple_convnet, speedrun, or" in line
    assert "image is 4 pixels, wanted at least 8" in fails(1, "summary", "--image-size", 4)
    assert "--batch-size goes with --memory" in fails(1, "summary", "--batch-size", 4)
    assert "0 is out of range" in fails(2, "summary", "--memory", "--batch-size", 0)
