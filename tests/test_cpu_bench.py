"""bench/cpu_day.py: its references, its clock and its page; all parts once, on tiny sizes."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from check import close
from gpuconv import models, nn, threads
from gpuconv.autograd import Tensor

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "bench"))
import cpu_day  # noqa: E402
import cpu_layers  # noqa: E402
import cpu_memory  # noqa: E402
import cpu_passes  # noqa: E402
import cpu_rounds  # noqa: E402
import cpu_scaling  # noqa: E402
import cpu_train  # noqa: E402
from bench_train_step import products  # noqa: E402
from cpu_layers import LAYERS, Case, Layer  # noqa: E402
from cpu_rounds import OURS, TORCH, Size, Timed  # noqa: E402
from cpu_table import Found, Target, mean, page  # noqa: E402
from harness import Work  # noqa: E402

TINY = Size(rounds=2, seconds=0, turn=0, long_turn=0, batch=4, apart=1, every=11, flops=1, passes=1,
            nets=("simple_convnet", "speed-run net"), batches=(2, 4), sides=(16, 32), pixels=32**2,
            image=64)
SMALL = [  # one of each kind
    Layer("net", 6, 3, 4, 3, padding=1), Layer("net", 9, 2, 3, 3, stride=2, padding=1),
    Layer("net", 7, 4, 2, 1, stride=2), Layer("net", 5, 3, 6, 5), Layer("net", 12, 3, 2, 5, 4, 2)]


# -- what gpuconv is held against ------------------------------------------------------------


@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_sgemm_is_the_product_of_the_definition(layer):
    case = Case(layer, 2)
    M, K, RSC = case.sizes
    assert case.N * layer.flops == 2 * M * K * RSC
    got = {(product, name): run() for product in cpu_layers.GRADIENTS
           for name, run in case.sgemm(product).items()}
    y, gx, gw = (case.im2col[product]() for product in cpu_layers.GRADIENTS)
    close(got["forward", "sgemm"].reshape(y.shape), y, terms=RSC)
    close(got["gw", "sgemm"].reshape(gw.shape), gw, terms=M)
    assert got["gx", "sgemm"].shape == (M, RSC)
    assert (("gx", "sgemm gather") in got) == (layer.stride == 1)
    if layer.stride == 1:
        close(got["gx", "sgemm gather"].reshape(gx.shape), gx, terms=K * layer.R**2)


@pytest.mark.parametrize("net, parameters", [
    ("cifar_convnet", 307_946 - 20_490 - 2 * 2 * (32 + 64 + 128)),  # without Linear and BatchNorm
    ("LeNet-5", 150 + 2_400 + 48_000), ("AlexNet", 2_469_696 - 1_152),  # without biases
    ("VGG-16", 14_714_688 - 4_224), ("ResNet-18", 11_689_512 - 513_000 - 9_600)])
def test_the_layers_are_those_of_the_net(net, parameters):
    mine = [layer for layer in LAYERS if layer.net == net]
    assert sum(layer.times * layer.K * layer.R**2 * layer.C for layer in mine) == parameters
    assert [layer.first for layer in mine] == [True] + [False] * (len(mine) - 1)
    assert all(layer.batch(1e12) * layer.H**2 * layer.C * 4 <= cpu_layers.MEMORY for layer in mine)
    assert all(layer.batch(1) == cpu_layers.LEAST for layer in mine)


def test_the_cifar_layers_are_those_of_the_model():
    convolutions = [m for m in models.cifar_convnet().modules() if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape for m in convolutions] == [
        (layer.K, 3, 3, layer.C) for layer in LAYERS if layer.net == "cifar_convnet"]
    assert len({dataclasses.replace(layer, net="", times=1) for layer in LAYERS}) == len(LAYERS)


def test_the_speed_run_net_is_that_of_the_issue():
    net, filters = cpu_train.speed_run(), 0
    said = []
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None and layer.weight.shape[1:3] == (3, 3)
            said.append(str(layer.weight.shape[0]))
            filters += layer.weight.size
        else:
            said.append({nn.MaxPool2d: "pool", nn.BatchNorm2d: "BN", nn.GELU: "GELU"}.get(
                type(layer), type(layer).__name__))
    assert "-".join(said) == ("64-pool-BN-GELU-64-BN-GELU-256-pool-BN-GELU-256-BN-GELU-"
                              "256-pool-BN-GELU-256-BN-GELU-GlobalMaxPool2d-Linear")
    assert net.predict(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 10)
    assert filters == 9 * (3 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    by_side = [32**2 * 27 * 64, 16**2 * 9 * 64 * 64, 16**2 * 9 * 64 * 256]
    by_side += [2 * 8**2 * 9 * 256**2, 4**2 * 9 * 256**2, 256 * 10]
    assert sum(products(net)) == sum(by_side)


@pytest.mark.parametrize("kind", cpu_passes.SHAPES)
def test_the_shapes_of_the_passes_are_those_of_the_nets(kind):
    types = {"max pool": nn.MaxPool2d, "global max pool": nn.GlobalMaxPool2d,
             "BatchNorm": nn.BatchNorm2d, "ReLU": nn.ReLU, "GELU": nn.GELU}
    seen = set()
    for make in cpu_train.NETS.values():
        x = Tensor(np.zeros((2, 32, 32, 3), "float32"))
        for layer in make():
            if type(layer) is types[kind]:
                seen.add((x.shape[1], x.shape[3]))
            x = layer(x)
    assert set(cpu_passes.SHAPES[kind]) == seen


# -- the clock -------------------------------------------------------------------------------


def test_rivals_take_turns_and_the_first_call_of_a_turn_is_not_timed(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(cpu_rounds.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cpu_rounds.time, "sleep", lambda seconds: calls.append("pause"))

    def rival(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds if calls[-2:-1] == [name] else 100  # the first of a turn is slow
        return run

    runs = dict(a=rival("a", 2.0), b=rival("b", 7.0))
    times = cpu_rounds.in_turns(runs, Size(rounds=4, seconds=1e9, turn=5), pause=1)
    turn = ["a"] * 5 + ["b"] * 2  # wakes, one untimed, then until 5 seconds have passed
    assert calls == ["a", "b", "pause"] + 4 * [*turn, "pause"]
    assert times == dict(a=Timed(2.0, 0.0, 12), b=Timed(7.0, 0.0, 4))
    few = cpu_rounds.in_turns(runs, Size(rounds=9, seconds=0, turn=0))
    assert few["a"].calls == cpu_rounds.LEAST
    assert cpu_rounds.in_turns(runs, Size(rounds=9, seconds=0, turn=0), least=5)["a"].calls == 5


def test_spread_is_of_the_middle_half():
    assert Timed.of([4.0]) == Timed(4.0, 0.0, 1)
    assert Timed.of([1, 2, 3, 4, 5, 6, 700]) == Timed(4, 1.0, 7)


def test_who_gives_a_wrong_result_is_named_and_not_timed():
    torch = pytest.importorskip("torch")
    x, wrong = np.arange(6, dtype="float32").reshape(1, 1, 2, 3), []
    work = Work("double", dict(x=x), ours=lambda x: 2 * x, torch=lambda x: 2.001 * x,
                definition=lambda: 2 * x)
    times = cpu_rounds.race(work, TINY, [OURS, TORCH[0]], {"more": lambda: None}, wrong)
    assert list(times) == [OURS, "more"] and cpu_rounds.best(times) is None
    assert wrong[0].startswith("double, torch: ") and "off; worst" in wrong[0]
    assert torch.get_num_threads() == threads.count()


# -- the page --------------------------------------------------------------------------------


def test_a_target_is_met_or_not_or_not_measured():
    assert [Target("a", value, 1, at_least).good for at_least in (True, False)
            for value in (0.5, 1, 2, None)] == [False, True, True, None, True, True, False, None]
    found = Found(targets=[Target("speed", 0.849, 0.85), Target("memory", None, 1, False)])
    found.table("Says.", ["a", "b"], [["x", "1"]], 1)
    text = page(["the head"], {"train": "nets"}, {"train": found})
    assert "| speed | 0.85 | >= 0.85 | **NO** |  |" in text
    assert "| memory | - | <= 1.00 | not measured |  |" in text
    assert "## Train: nets\n\nSays.\n\n| a | b |\n|---|---:|\n| x | 1 |\n" in text
    assert "WRONG" not in text
    assert mean([2, 8]) == pytest.approx(4) and mean([]) is None


def tables(text):
    """{section: [{heading: cell}]}, each table of a section after the other."""
    found, section, headings = {}, "", None
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            headings = None
        elif headings is None:
            headings = cells
        elif not set(line) <= set("|-:"):
            found.setdefault(section.partition(":")[0], []).append(
                dict(zip(headings, cells, strict=True)))
    return found


@pytest.fixture(scope="module")
def day():
    """(page, what was found) of all parts; processes of their own are tested below."""
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_rounds, "PAUSE", 0)
        patch.setattr(cpu_memory, "apart", lambda what, *words: getattr(cpu_memory, what)(*words))
        return cpu_day.measure(list(cpu_day.PARTS), TINY, "python bench/cpu_day.py")


HEADINGS = dict(zip((OURS, *TORCH), ("gpuconv", "PyTorch", "PyTorch channels_last"), strict=True))


def number(cell):
    return float(cell.strip("*%").replace(",", ""))


def test_every_part_is_there_and_nothing_was_wrong(day):
    text, found = day
    assert [each.wrong for each in found.values()] == [[]] * len(cpu_day.PARTS), text
    assert [name.lower() for name in tables(text)] == ["what is wanted", *cpu_day.PARTS]
    assert "`python bench/cpu_day.py`, 20" in text and "A quick look" in text
    assert re.search(r"NumPy \S+, SciPy \S+, PyTorch \S+ \(.*openblas|blis|mkl", text)
    assert "PyTorch is not installed" not in text


def test_training_and_passes_divide_pytorchs_better_time_by_ours(day):
    text, found = day
    for part, say, places in (("train", lambda s: TINY.batch / s, 0.51),
                              ("passes", lambda s: 1e3 * s, 0.0051)):
        shown = tables(text)[part.capitalize()]
        assert len(shown) == len(found[part].rows) > 0
        for row, cells in zip(found[part].rows, shown, strict=True):
            seconds = {name: timed.seconds for name, timed in row["times"].items()}
            assert set(seconds) == {OURS, *TORCH}
            ratio = min(seconds[name] for name in TORCH) / seconds[OURS]
            assert row["over"] == pytest.approx(ratio)
            assert number(cells["over the better"]) == pytest.approx(ratio, abs=0.006)
            for name, heading in HEADINGS.items():
                assert number(cells[heading]) == pytest.approx(say(seconds[name]), abs=places)
    assert [row["net"] for row in tables(text)["Train"]] == list(TINY.nets)
    assert [row["pass"] for row in tables(text)["Passes"]] == [
        f"{kind} {H}x{H}x{C} {way}" for kind, ((H, C), *_) in cpu_passes.SHAPES.items()
        for way in ("forward", "forward + backward")]


def test_layers_have_all_rows_and_ratios_follow_from_the_times(day):
    text, found = day
    rows = found["layers"].rows
    shown = [row for row in tables(text)["Layers"] if "M, N, K" in row]
    assert [(row["layer"], row[""].strip("*")) for row in shown] == [
        (str(layer), product) for layer in LAYERS[::TINY.every] for product in cpu_layers.GRADIENTS]
    assert [row[""] == "gx*" for row in shown] == [not row["counts"] for row in rows]
    for row, cells in zip(rows, shown, strict=True):
        seconds = {name: timed.seconds for name, timed in row["times"].items()}
        bars = dict(sgemm=("sgemm", "sgemm gather"), im2col=("im2col",), torch=TORCH)
        for ratio, names in bars.items():
            want = min(seconds[name] for name in names if name in seconds) / seconds[OURS]
            assert row[ratio] == pytest.approx(want)
        assert number(cells["/ sgemm"]) == pytest.approx(row["sgemm"], abs=0.006)
        rate = row["flops"] / seconds[OURS] / 1e9
        assert number(cells["gpuconv"]) == pytest.approx(rate, abs=0.51)
    counted = [row for row in rows if row["counts"]]
    targets = {target.what: target for target in found["layers"].targets}
    for product in cpu_layers.GRADIENTS:
        target = targets[f"conv layers over sgemm, the worst, {product}"]
        mine = [row["sgemm"] for row in counted if row["product"] == product]
        assert target.value == min(mine)
        assert target.note.endswith(f"{sum(r < 0.85 for r in mine)} of {len(mine)} under")
    ratios = [row["im2col"] for row in counted]
    assert targets["conv layers over whole-batch im2col, the worst"].value == min(ratios)
    assert targets["conv layers over whole-batch im2col, geometric mean"].value == pytest.approx(
        float(np.exp(np.mean(np.log(ratios)))))


def test_memory_scaling_and_threads_say_what_they_found(day):
    text, found = day
    [row] = found["memory"].rows
    assert row["net"] == TINY.nets[0] and set(row["bytes"]) == {OURS, *TORCH}
    scaling = found["scaling"]
    for what in ("batch", "training step, cifar_convnet", "image"):
        assert len([row for row in scaling.rows if row["what"] == what]) == 2
    sides = [row for row in scaling.rows if row.get("side")]
    for first, last in (sides[:2], sides[2:]):
        assert first["over"] == 1
        assert last["over"] == pytest.approx(last["seconds"] / last["flops"] * first["flops"]
                                             / first["seconds"])
    assert all(row["same"] for row in found["threads"].rows)
    assert len(found["threads"].rows) == 3 * len(LAYERS[::3 * TINY.every]) + len(TINY.nets)
    assert threads.count() == len(threads_here())
    for target in (target for each in found.values() for target in each.targets):
        assert f"| {target.what} | " in text and target.value is not None
    assert len(tables(text)["What is wanted"]) == 2 + 5 + 3 + 1 + 4 + 1


def threads_here():
    import os
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())


def test_operations_of_a_step_do_not_depend_on_how_pixels_are_cut():
    (_, few), (_, many) = cpu_scaling.layer_of(32, 1), cpu_scaling.layer_of(16, 4)
    assert few == many == 3 * 2 * 32 * 32 * 9 * 32 * 32
    assert cpu_scaling.step(32, 1)[1] == 6 * sum(products(models.cifar_convnet()))


def test_without_pytorch_its_columns_stay_empty(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu_day, "there", lambda name: False)
    monkeypatch.setattr(cpu_day, "QUICK", TINY)
    file = tmp_path / "page.md"
    assert cpu_day.main(["--quick", "--part", "passes", "--output", str(file)]) == 0
    text = file.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "PyTorch is not installed: nothing is compared with it" in text
    assert "`python bench/cpu_day.py --part passes --quick`" in text
    assert all(row["PyTorch"] == row["over the better"] == "-" for row in tables(text)["Passes"])
    assert all(row["met"] == "not measured" for row in tables(text)["What is wanted"])


def test_a_part_that_fails_is_named_and_the_next_one_runs(monkeypatch, capsys):
    def fails(size, rivals, say):
        raise MemoryError("too large")

    def works(size, rivals, say):
        return Found(tables=["fine"])

    monkeypatch.setattr(cpu_day, "PARTS", {"train": ("nets", fails), "memory": ("bytes", works)})
    assert cpu_day.main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "* train: MemoryError: too large" in out and "## Memory: bytes\n\nfine" in out


# -- memory ----------------------------------------------------------------------------------


def test_peak_is_what_was_there_at_the_worst_moment():
    peak = cpu_memory.Peak()
    a = np.ones(64 << 20, np.uint8)
    del a
    assert not peak.exact or 60 << 20 <= peak.bytes() <= 80 << 20


def test_a_process_of_its_own_measures_a_step_and_an_image():
    got = cpu_memory.apart("step", "simple_convnet", OURS, 64)
    assert not got["exact"] or 10 << 20 < got["bytes"] < 200 << 20
    got = cpu_memory.apart("image", 128, 0)
    assert got["matrix"] == 9 * got["result"] == 9 * 4 * 128 * 128 * 16
    assert got["flops"] == 2 * 128 * 128 * 16 * 9 * 16 and got["seconds"] > 0
    with pytest.raises(RuntimeError, match="KeyError: 'no net'"):
        cpu_memory.apart("step", "no net", OURS, 1)


def test_the_command_works_from_elsewhere(tmp_path):
    for file, words in (("cpu_day.py", ["--help"]), ("cpu_memory.py", ["image", "8", "1"])):
        done = subprocess.run([sys.executable, str(ROOT / "bench" / file), *words], cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["flops"] == 3 * 2 * 8 * 8 * 16 * 9 * 16
