"""bench/gpu_day.py without a GPU: its logic with parts made up here, its stages on the stand-in."""

import ast
import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

import pytest
from conftest import HAS_GPU

from gpuconv import kernels
from hostcuda import compiler, deferred

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "bench"))
import gpu_cases  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_day  # noqa: E402
import gpu_nets  # noqa: E402
import gpu_packages  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_stages  # noqa: E402
from gpu_findings import Findings  # noqa: E402
from gpu_parts import Part  # noqa: E402

no_compiler = pytest.mark.skipif(not compiler(), reason="no g++")

FINDS = """
import json, os, sys, time
def write(complete, *figures):
    data = dict(figures=list(figures), failures=[], measurements=[], counts={}, complete=complete)
    open(sys.argv[1], "w").write(json.dumps(data))
def figure(what, value, good=None):
    return dict(what=what, value=value, unit="GB/s", good=good, note="")
"""
WELL = 'write(True, figure("copy", 3.5)); print("fine")'
WRONG = 'write(True, figure("bits", "others", False))'
CRASHES = 'write(False, figure("first", 1)); print("now it crashes"); os.abort()'
HANGS = 'write(False, figure("first", 1)); print("now it hangs", flush=True); time.sleep(100)'


def part(name, does, stage="ceilings", **settings):
    return Part(stage, name, ("-c", FINDS + does), ("FILE",), **{"least": 0.1, **settings})


@pytest.fixture
def day(tmp_path):
    return gpu_day.Day(tmp_path / "day", "a device")


@pytest.mark.skipif(HAS_GPU or not compiler(), reason="wants the stand-in, and g++")
def test_a_captured_case_waits_for_its_arrays(monkeypatch):
    """They are made on another stream, and a GPU may be late."""
    def cases(size, dtype):
        return itertools.islice(gpu_cases.cases(gpu_cases.TINY, dtype), 4)

    monkeypatch.setattr(gpu_checks, "cases", cases)
    findings = Findings(None)
    monkeypatch.setattr(findings, "save", lambda: None)
    with deferred():
        gpu_checks.captured(findings, None)
    assert not findings.data["failures"]
    assert [row["value"] for row in findings.data["figures"]] == ["4 of 4", 0]


def hows(day):
    return {key.partition(": ")[2]: record["how"] for key, record in day.records.items()}


# -- the logic, with parts made up here ------------------------------------------------------


def test_what_crashes_or_hangs_costs_one_part(day, capsys):
    order = [part("a", WELL), part("b", CRASHES), part("c", HANGS, limit=4), part("d", WRONG)]
    assert gpu_day.run_day(day, order) == 1
    assert hows(day) == {"a": "done", "b": "crashed (SIGABRT)", "c": "hung", "d": "done"}
    for name in "bc":  # what it had found, and said
        record = day.records[f"ceilings: {name}"]
        assert record["figures"][0]["what"] == "first" and not record["complete"]
        assert record["tail"][0].startswith("now it")
    said = capsys.readouterr().out
    assert "[2/4] ceilings: b ... crashed (SIGABRT)" in said and "bits: others" in said
    assert "2 of 4 parts done, 3 with failures" in said
    log = (day.folder / "gpu_day.log").read_text()
    assert "now it hangs" in log and "fine" in log
    assert sorted(path.name for path in day.folder.iterdir()) == [
        "gpu_day.json", "gpu_day.log", "gpu_day.md"]


def test_a_second_call_goes_on_with_what_is_missing_then_with_what_did_not_end(day, monkeypatch):
    order = [part("a", CRASHES), part("b", WELL), part("c", WELL, files=("README.md",)),
             part("d", WELL)]
    gpu_day.run_day(day, order[:3])
    again = gpu_day.Day(day.folder, "a device")
    assert [again.rank(p) for p in order] == [1, 3, 3, 0]
    other = gpu_day.sources
    monkeypatch.setattr(gpu_day, "sources", lambda p: "others" if p.files else other(p))
    assert again.rank(order[2]) == 2
    ran, run = [], gpu_day.Day.run
    monkeypatch.setattr(gpu_day.Day, "run",
                        lambda self, p, s: ran.append(p.name) or run(self, p, s))
    gpu_day.run_day(again, order)
    assert ran == ["d", "a", "c"]
    assert again.records["ceilings: a"]["tries"] == 2
    assert again.records["ceilings: c"]["sources"] == "others"
    ran.clear()
    gpu_day.run_day(again, order[1:])
    assert ran == []


def test_a_budget_ends_it_in_time(day, monkeypatch, capsys):
    monkeypatch.setattr(gpu_day, "GRACE", 0.2)
    order = [part("a", WELL), part("b", HANGS), part("c", WELL, least=60), part("d", WELL)]
    began = time.monotonic()
    assert gpu_day.run_day(day, order, budget=8) == 3
    assert time.monotonic() - began < 80  # b alone would take 100
    assert hows(day) == {"a": "done", "b": "out of budget"}  # which is no failure
    assert "out of budget: 2 parts were not begun; call again to go on" in capsys.readouterr().out
    assert gpu_day.run_day(gpu_day.Day(day.folder, "a device"), [order[0], *order[2:]]) == 0


def test_what_a_hanging_part_had_started_ends_with_it(day, tmp_path):
    child = tmp_path / "child"
    does = f"""
import subprocess
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open({str(child)!r}, "w").write(str(process.pid)); time.sleep(100)"""
    gpu_day.run_day(day, [part("a", does, limit=4)])
    assert hows(day) == {"a": "hung"}
    state = pathlib.Path(f"/proc/{child.read_text()}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("it still runs")


def test_a_day_that_is_killed_leaves_whole_files_and_no_process(tmp_path):
    script = tmp_path / "day.py"
    script.write_text(f"""
import sys; sys.path[:0] = {[str(ROOT / "tests"), str(ROOT / "bench"), str(ROOT)]!r}
import signal, gpu_day, pathlib, test_gpu_day as t
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
day = gpu_day.Day(pathlib.Path({str(tmp_path / "day")!r}), "a device")
gpu_day.run_day(day, [t.part("a", t.WELL), t.part("b", t.HANGS)])
""")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert any("done" in line for line in process.stdout)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    kept = gpu_day.Day(tmp_path / "day", "a device")
    assert hows(kept) == {"a": "done"}  # the other is missing: it is begun again


def test_results_of_two_devices_do_not_mix(day):
    gpu_day.run_day(day, [part("a", WELL)])
    with pytest.raises(ValueError, match="holds results of a device, this is another"):
        gpu_day.Day(day.folder, "another")


def test_json_and_table(day):
    order = [part("a | b", WELL), part("c", CRASHES, stage="tests"), part("d", WELL, stage="ops")]
    gpu_day.run_day(day, order, chosen=order[:2])
    data = json.loads((day.folder / "gpu_day.json").read_text())
    assert data["device"] == "a device" and set(data["records"]) == {"ceilings: a | b", "tests: c"}
    for record in data["records"].values():
        assert set(record) == {
            "figures", "failures", "measurements", "counts", "complete", "how", "command",
            "seconds", "began", "limit", "sources", "tries", "tail"}
    table = (day.folder / "gpu_day.md").read_text()
    assert table.startswith("# a device\n\n`python bench/gpu_day.py`: 1 of 3 parts are done;")
    assert "not measured yet: tests: c, ops: d." in table
    assert "\n## Ceilings: " in table and "\n## Ops" not in table
    assert "| copy | 3.5 | GB/s |  |  |" in table
    assert "The last lines of c, which crashed (SIGABRT):\n\n```\nnow it crashes\n" in table


def test_measurements_in_the_table(day):
    measured = [dict(work="train step cifar_convnet", library=library, device="cuda", ms=ms,
                     precision=precision, images_per_second=128e3 / ms, gb_per_second=None,
                     gflop_per_second=100.0, roof_share=0.25)
                for library, precision, ms in [
                    ("cupy", "float32", 4.0), ("cupy fp16", "float16", 3.0),
                    ("torch cuda", "float32", 2.0), ("torch cuda channels_last", "float32", 1.0),
                    ("torch cuda fp16", "float16", 6.0)]]
    does = f"""
data = dict(figures=[], failures=[dict(name="t", line="E | x")], counts=dict(passed=5, failed=1),
            measurements={measured!r}, complete=True)
open(sys.argv[1], "w").write(json.dumps(data))"""
    assert gpu_day.run_day(day, [part("train_step", does, stage="training")]) == 1
    table = (day.folder / "gpu_day.md").read_text()
    assert ("| train step cifar_convnet | float32 | 32,000 images/s | 4.000 ms | 25% | 0.25 |"
            in table)
    assert ("| train step cifar_convnet | float16 | 42,667 images/s | 3.000 ms | 25% | 2.00 |"
            in table)
    assert "| train step cifar_convnet | torch cuda channels_last* | 1.000 |" in table
    assert "5 passed, 1 failed, 5 measurements" in table and r"| t | E \| x |" in table


def test_passes_over_memory_and_compilation_in_the_table(day):
    measured = [dict(work=work, library=library, device="cuda", precision="float16", ms=ms,
                     images_per_second=None, gb_per_second=gb, gflop_per_second=None,
                     roof_share=share)
                for work, library, ms, gb, share in [
                    ("relu", "cupy fp16", 1.0, 9.0, 0.9), ("relu", "torch cuda fp16", 2.0, 4, 0.4),
                    ("pool", "cupy fp16", 1.0, 9.0, 0.4), ("pool", "torch cuda fp16", 8.0, 1, 0.1)]]
    does = f"""
data = dict(figures=[], failures=[], counts=dict(passed=4), measurements={measured!r},
            compiled=dict(kernels=7, seconds=2.5), complete=True)
open(sys.argv[1], "w").write(json.dumps(data))"""
    assert gpu_day.run_day(day, [part("activation", does, stage="ops")]) == 0
    table = (day.folder / "gpu_day.md").read_text()
    assert "| float16 | of the measured copy | 2 | 60% | 85% | 40% pool |" in table
    assert "| float16 | PyTorch's time over ours | 2 | 4.00 | 1.3 | 2.00 relu |" in table
    assert "s of them to compile or load kernels, 7 times" in table and "| 7 in 2.5 s |" in table


@pytest.mark.skipif(HAS_GPU, reason="there is one")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    for command in (["bench/gpu_day.py"], [str(ROOT / "bench" / "gpu_day.py")]):
        done = subprocess.run([sys.executable, *command, "--output", str(tmp_path / "day")],
                              capture_output=True, text=True,
                              cwd=ROOT if command[0].startswith("bench") else tmp_path)
        assert done.returncode == 2 and done.stdout == ""
        line, = done.stderr.splitlines()
        assert line.startswith("gpu_day: no GPU to work with: ")
    assert not (tmp_path / "day").exists()


def test_list(capsys):
    assert gpu_day.main(["--list"]) == 0
    said = capsys.readouterr().out
    for stage in gpu_parts.STAGES:
        assert f"\n{stage}: " in "\n" + said
    assert "racecheck (at most 4 minutes)" in said


def test_wrong_usage(capsys):
    for wrong in (["--stand-in"], ["--stage", "tset"], ["--budget", "soon"]):
        with pytest.raises(SystemExit, match="2"):
            gpu_day.main(wrong)
    assert "wants --output" in capsys.readouterr().err


def test_a_folder_for_each_device_and_day():
    folder = gpu_day.default_folder("NVIDIA H100 80GB HBM3")
    assert folder.parent == ROOT / "bench" / "results"
    assert folder.name.startswith("nvidia-h100-80gb-hbm3-20")


# -- the parts of a day ----------------------------------------------------------------------


def test_parts_are_short_and_their_files_are_there():
    found = gpu_parts.parts(data_dir="x")
    assert list(dict.fromkeys(part.stage for part in found)) == list(gpu_parts.STAGES)
    assert len({part.key for part in found}) == len(found)
    for part in found:
        assert part.limit <= 8 * 60 and "FILE" in part.quiet
        for file in part.files:
            assert (ROOT / file).is_file()
        if part.command[0] == "bench/gpu_stages.py":
            assert part.command[1:3] in gpu_stages.WORK


def test_the_instructions_of_tensor_cores_are_tested_first():
    first = next(part for part in gpu_parts.parts() if part.stage == "tests")
    assert first.files == ("tests/test_mma.py",)


def test_files_that_only_need_a_kernel_compiler_without_a_gpu_are_tested():
    """They mention the stand-in, too, in the condition of a skip."""
    files = {file for group in gpu_parts.test_groups() for file in group}
    assert "tests/test_step.py" in files
    assert not files & {"tests/test_capture.py", "tests/test_streams.py", "tests/test_races.py"}


def test_networks_have_their_layers():
    assert tuple(gpu_nets.NETS) == gpu_parts.NETS
    flops = {name: sum(layer.count * 2 * p.K * p.depth * p.P * p.Q for layer in layers
                       for p in [layer.sizes(1)])
             for name, (_, layers) in gpu_nets.NETS.items()}  # of one image
    weights = {name: sum(layer.count * layer.K * layer.size**2 * layer.C for layer in layers)
               for name, (_, layers) in gpu_nets.NETS.items()}
    assert weights["VGG-16, batch 256"] == 14_710_464  # 14,714,688 with biases, as published
    assert weights["ResNet-50, batch 256"] == 23_454_912
    assert round(flops["VGG-16, batch 256"] / 2e9, 2) == 15.35
    assert round(flops["ResNet-50, batch 256"] / 2e9, 2) == 4.09
    assert round(flops["speed-run net, batch 2000"] / 1e9, 4) == 0.2363  # performance.md, 1.7


def test_every_op_is_tested_and_timed():
    found = gpu_parts.parts()
    named = {word for part in found for word in part.command}
    for path in (ROOT / "bench").glob("bench_*.py"):
        if path.stem == "bench_import":
            continue  # no GPU has a part in it
        assert f"bench/{path.name}" in named
    for path in (ROOT / "kernels").rglob("*.cu"):
        python = re.search(r"gpuconv/(?:\w+/)*(\w+)\.py", path.read_text())[1]  # in its header
        tests = {f"tests/test_{name}.py" for name in (path.stem, python)}
        assert tests & named or all(  # what cannot run there is run by the training
            gpu_parts.STAND_IN.search((ROOT / test).read_text())
            for test in tests if (ROOT / test).is_file()), path.name
    assert "tests/test_hostcuda.py" not in named


@no_compiler
@pytest.mark.skipif(HAS_GPU, reason="counts what the stand-in launches")
def test_the_cases_launch_every_kernel(cp, monkeypatch):
    launched, get = set(), cp.RawModule.get_function
    monkeypatch.setattr(cp.RawModule, "get_function",
                        lambda self, name: launched.add(name) or get(self, name))
    kernels.kernel.cache_clear()
    for dtype in ("float32", "float16"):
        for case in gpu_cases.cases(gpu_cases.TINY, dtype):
            assert case.run()
    assert launched == {name for path in (ROOT / "kernels").rglob("*.cu")
                        for name in kernels.signatures(kernels.source(path))}


def names_of_cupy(path):
    """Dotted names behind cp and backend.cupy() in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            words, at = [], node
            while isinstance(at, ast.Attribute):
                words, at = [at.attr, *words], at.value
            if ast.unparse(at) in ("cp", "cupy()") or (
                    isinstance(at, ast.Call) and ast.unparse(at.func) == "backend.cupy"):
                yield words


def test_names_of_cupy_exist_in_the_real_one():
    cupy = pytest.importorskip("cupy")
    checked = 0
    for path in [ROOT / "bench" / f"{name}.py" for name in (
            "gpu_cases", "gpu_checks", "gpu_conv", "gpu_findings", "gpu_speed", "roofline",
            "cudnn_conv", "harness")] + [
            ROOT / "tests" / "test_gpu.py"]:
        for words in names_of_cupy(path):
            thing = cupy
            for word in words:
                assert hasattr(thing, word), f"{path.name}: cupy.{'.'.join(words)}"
                thing = getattr(thing, word)
                checked += 1
                if isinstance(thing, type):  # its instances have more
                    break
    assert checked > 20
    from cupy._core import _routines_linalg as numbers
    assert numbers.COMPUTE_TYPE_TF32 != numbers.COMPUTE_TYPE_DEFAULT


# -- the stages, on the stand-in -------------------------------------------------------------


def stand_in(stage, name=None):
    return [p for p in gpu_parts.parts(stand_in=True)
            if p.stage == stage and name in (None, p.name)]


@no_compiler
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU for it")
def test_the_stages_run_on_the_stand_in(day):
    pytest.importorskip("pytest_benchmark")
    chosen = [*stand_in("device"), *stand_in("determinism"), *stand_in("ceilings"),
              *stand_in("training", "run in float32"), *stand_in("training", "step of 128"),
              *stand_in("training", "memory of 128"), *stand_in("training", "start"),
              *stand_in("convolutions", "cifar_convnet, batch 128")]
    assert gpu_day.run_day(day, chosen) == 0, (day.folder / "gpu_day.md").read_text()
    figures = {f["what"]: f for record in day.records.values() for f in record["figures"]}
    assert figures["GPU"]["value"].startswith("stand-in")
    assert figures["cases with the same bits twice, float32"]["good"] is True
    for what in ("float16 twice", "float16 captured", "float32 captured"):
        assert figures[f"training in {what}"]["value"] == "the same bits"
    assert figures["loss of step 1 on the GPU, float64"]["good"] is True
    for precision in ("float32", "tf32", "float16"):
        assert figures[f"matrix product, {precision}"]["unit"] == "TFLOP/s"
    for end in ("test accuracy after 1 epochs", "captured and eager", "captured: peak",
                "warm start: import to the first trained step", ", input_gradient"):
        assert any(what.endswith(end) for what in figures) == (
            end != ", input_gradient" or bool(gpu_packages.there("torch"))), end
    compiled = day.records["convolutions: cifar_convnet, batch 128"]["compiled"]
    assert compiled["kernels"] >= 3 and compiled["seconds"] > 0
    assert "| part |" in (day.folder / "gpu_day.md").read_text()


def run_pytest(day, *command):
    p = gpu_parts._pytest("tests", [], list(command), 300)
    gpu_day.run_day(day, [dataclasses.replace(p, quiet=(*p.quiet, "--stand-in"))])
    record, = day.records.values()
    return record


@no_compiler
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU for it")
def test_a_bench_on_the_stand_in(day, monkeypatch):
    pytest.importorskip("pytest_benchmark")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # benches would believe in others
    record = run_pytest(day, "bench/bench_softmax_cross_entropy.py",
                        "-k", "cupy and 128x10")
    assert record["how"] == "done" and not record["failures"]
    kinds = {(m["library"], m["precision"]) for m in record["measurements"]}
    assert kinds == {("cupy", "float32"), ("cupy fp16", "float16")}
    assert all(m["ms"] > 0 and m["device"] == "cuda" for m in record["measurements"])


@no_compiler
@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU for it")
def test_every_bench_on_the_stand_in(day):
    pytest.importorskip("pytest_benchmark")
    chosen = [*stand_in("ops"), *stand_in("training", "train_step")]
    assert gpu_day.run_day(day, chosen) == 0, (day.folder / "gpu_day.md").read_text()
    for record in day.records.values():
        assert record["counts"]["passed"] == len(record["measurements"]) > 0
    assert "## In short" in (day.folder / "gpu_day.md").read_text()


@no_compiler
def test_a_run_of_tests(day, tmp_path):
    """What passes, fails and cannot be collected is counted, and named with its first line."""
    (tmp_path / "test_some.py").write_text("""
import pytest
def test_well(): pass
def test_wrong(): assert 1 == 2, "one is not two"
def test_elsewhere(): pytest.skip("not here")
@pytest.fixture
def broken(): raise RuntimeError("no set-up")
def test_broken(broken): pass
""")
    (tmp_path / "test_bad.py").write_text("import nothing_of_that_name")
    record = run_pytest(day, str(tmp_path / "test_some.py"), str(tmp_path / "test_bad.py"))
    assert record["how"] == "done", record["tail"]
    assert record["counts"] == dict(passed=1, failed=3, skipped=1)
    failures = {re.split("::|/|[ ]", f["name"])[-1]: f["line"]
                for f in record["failures"]}
    assert failures["test_wrong"].startswith("AssertionError: one is not two")
    assert failures["test_broken"] == "RuntimeError: no set-up"
    assert "nothing_of_that_name" in failures["test_bad.py"]


WITHOUT = """
import functools
from importlib.machinery import PathFinder
def without(find, name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else find(name, path, target)
PathFinder.find_spec = functools.partial(without, PathFinder.find_spec)
"""


@no_compiler
def test_without_the_other_packages(day, tmp_path, monkeypatch):
    """CuPy, NumPy, pytest and pytest-benchmark are enough: the rest is done without, or skipped."""
    names = gpu_packages.OURS + gpu_packages.TESTS
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(names=names))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # some need these packages
    chosen = [p for p in stand_in("determinism") if p.name in ("training", "ops")]
    assert gpu_day.run_day(day, chosen) == 0, (day.folder / "gpu_day.log").read_text()
    day.records.clear()
    record = run_pytest(day, "tests/test_linear.py", "tests/test_window.py",
                        "tests/test_files.py")
    assert record["how"] == "done" and not record["failures"], record
    assert record["counts"]["passed"] > 20 and record["counts"]["skipped"] > 3


SANITIZER = """#!/bin/sh
tool=$2; shift 4
[ "$tool" = synccheck ] && {{ echo "========= Error: Device not supported"; exit 1; }}
"$@" || exit 1
[ "$tool" = racecheck ] && {{
    echo "========= Error: Race reported between Write access at conv"
    echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"; exit 0; }}
echo "========= ERROR SUMMARY: 0 errors"
"""


@no_compiler
@pytest.mark.skipif(HAS_GPU or os.name == "nt", reason="a made-up compute-sanitizer")
def test_sanitizers(day, tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format())
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    chosen = [p for p in stand_in("sanitizer") if p.name != "initcheck"]
    assert gpu_day.run_day(day, chosen) == 1
    figures = {f["what"]: f for record in day.records.values() for f in record["figures"]}
    assert figures["memcheck"]["value"] == 0 and figures["memcheck"]["good"] is True
    assert figures["racecheck"]["value"] == 1 and figures["racecheck"]["good"] is False
    assert "Race reported" in day.records["sanitizer: racecheck"]["failures"][0]["line"]
    assert figures["synccheck"]["value"] == "not supported here"
    assert figures["synccheck"]["note"] == "Error: Device not supported"


# -- README ----------------------------------------------------------------------------------


def test_the_gpu_figures_of_the_readme_come_from_a_file():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    kept = [path.parent.name for path in (ROOT / "bench" / "results").glob("*/gpu_day.json")]
    assert any(f"bench/results/{name}/gpu_day.md" in text for name in kept) or (
        "GPU: not measured yet" in text)
