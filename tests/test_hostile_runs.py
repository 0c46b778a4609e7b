"""Files of a run that somebody has damaged or made up: one sentence, never more memory or time."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
import safetensors.numpy
from mutations import byte_mutations, json_mutations

import gpuconv as gpc
from gpuconv import cli, files, models, nn, ops, runs, train
from gpuconv.data import Dataset, Source
from gpuconv.data.manifest import Manifest
from gpuconv.ops.conv.tuning_table import Algorithm, Table, Tile
from gpuconv.ops.window import ConvShape, Window
from gpuconv.runs import Config, RunFolder
from gpuconv.train import Settings

FEW, MANY = 24, 2000  # mutations of each kind of file in the default tests, and in the slow ones
NET = "INPUT 8x8x3 CONV3-4/4 BN RELU FC 3"
HOW_MANY = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def crafted(path, state, text):
    """A checkpoint with a right checksum, whatever its metadata say."""
    crc = files._checksum(state, f"{files.VERSION}{text}")
    safetensors.numpy.save_file(dict(state), path, metadata={
        "format": files.FORMAT, "version": str(files.VERSION), "metadata": text, "crc32": crc})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run on images of an .npz file, with every file that a run can have."""
    place = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    np.savez(place / "set.npz", images=rng.integers(0, 256, (24, 8, 8, 3), np.uint8),
             labels=np.arange(24) % 3)
    source = Source.from_options(place / "set.npz")
    settings = Settings(epochs=2, batch_size=8, flip=False, crop=0, views="mirror", ema=0.5)
    config = Config({"notation": NET}, source, settings, recipe="test")
    folder = RunFolder.create(config, place / "run", tuned=table())
    folder.tuned.rename(place / "tuned.json")  # a run of the CPU does not ask for it
    runs.train(config, folder)
    (place / "tuned.json").rename(folder.tuned)
    return folder


def table():
    p = ConvShape(8, 8, 8, 3, 4, Window((3, 3), (4, 4), ((1, 0), (1, 0))))
    where = {"device": "x", "architecture": 90, "cupy": "14", "nvrtc": "13"}
    timed = [(Algorithm("tensor_cores", Tile(128, 64, 32, 64, 32, 3), 2), 0.5),
             (Algorithm("simt"), 1.)]
    return Table(where, {("wgrad", p, "float16", "ieee"): timed})


@pytest.fixture
def copy(run, tmp_path):
    return RunFolder(shutil.copytree(run.path, tmp_path / "run"))


LOADERS = {  # file: (what reads it out of a folder, the exceptions that it documents)
    "config.json": (RunFolder.config, (OSError, ValueError, MemoryError)),
    "environment.json": (RunFolder.environment, (OSError, ValueError, MemoryError)),
    "views.json": (RunFolder.tta_result, (OSError, ValueError, MemoryError)),
    "metrics.jsonl": (RunFolder.history, (OSError, ValueError, MemoryError)),
    "manifest.json": (RunFolder.manifest, (OSError, ValueError, MemoryError)),
    "tuned.json": (lambda folder: ops.load_table(folder.tuned), (OSError, ValueError, MemoryError)),
}


def told(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()] \
        if path.suffix == ".jsonl" else json.loads(path.read_text())
    return lines[0] if path.suffix == ".jsonl" else lines


def damaged(path, count, seed):
    """Half of them changed as JSON, half as bytes."""
    blob, value = path.read_bytes(), told(path)
    rest = b"".join(blob.splitlines(True)[1:]) if path.suffix == ".jsonl" else b""
    for text in json_mutations(value, count // 2, seed):
        yield text.encode("utf-8", "replace") + b"\n" + rest
    yield from byte_mutations(blob, count - count // 2, seed)


@pytest.mark.parametrize("count", HOW_MANY)
@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_raises_what_it_documents_and_names_the_file(copy, name, count):
    read, documented = LOADERS[name]
    path, refused = copy.path / name, 0
    for blob in damaged(path, count, seed=1):
        path.write_bytes(blob)
        try:
            read(copy)
        except documented as error:
            refused += 1
            assert name in str(error) and len(str(error)) < 1500, repr(error)
    assert refused > count // 4


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_checkpoint_with_a_right_checksum_and_any_metadata(run, tmp_path, count):
    state, metadata = gpc.load(run.best())
    path, refused = tmp_path / "made.safetensors", 0
    for text in json_mutations(metadata, count, seed=2):
        crafted(path, state, text)
        try:
            runs.load(path)
        except (OSError, ValueError, TypeError, MemoryError) as error:
            refused += 1
            assert "made.safetensors" in str(error) and len(str(error)) < 1500, repr(error)
    assert count // 10 < refused


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_checkpoint_of_damaged_bytes(run, tmp_path, count):
    path = tmp_path / "made.safetensors"
    for blob in byte_mutations(run.best().read_bytes(), count, seed=3):
        path.write_bytes(blob)
        try:
            gpc.load(path)
        except (OSError, ValueError, TypeError, MemoryError) as error:
            assert "made.safetensors" in str(error) and len(str(error)) < 1500, repr(error)


def spoilt_arrays(state, name):
    """The arrays with one missing, or of another name, shape or dtype."""
    a = state[name]
    rest = {other: b for other, b in state.items() if other != name}
    yield rest
    yield rest | {name + "x": a, "": a}
    for b in (a.reshape(-1)[:0], a.reshape(1, *a.shape), np.zeros((), a.dtype), a.astype(bool),
              a.astype(np.int8), a.astype(np.float64 if a.dtype != np.float64 else np.float16)):
        if (b.dtype, b.shape) != (a.dtype, a.shape):
            yield rest | {name: b}


def test_arrays_that_are_not_those_of_the_model(run, tmp_path):
    (path, _), config, (train_set, test_set) = run.checkpoints()[::-1], run.config(), run.data()
    state, metadata = gpc.load(path)
    made = tmp_path / "made.safetensors"
    model, arguments = model_of(config)
    for name in {name.rpartition("/")[0]: name for name in state}.values():  # one of each part
        for spoilt in spoilt_arrays(state, name):
            gpc.save(made, spoilt, metadata)
            if "/" not in name:
                with pytest.raises(ValueError, match="made.safetensors: "):
                    runs.load(made)
            try:  # masters and momentum may be missing: an older run had none
                train.fit(model, train_set, test=test_set, resume=made, **arguments)
            except ValueError as error:
                assert "made.safetensors: " in str(error)


def model_of(config):
    model = models.build(config.model)
    return model, config.settings.fit_arguments(model)


@pytest.mark.parametrize("count", [FEW // 2, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_any_metadata_or_says_why_not(run, tmp_path, count):
    """Those that are gone on with are of the last step: nothing is left to do."""
    (path, _), config, (train_set, test_set) = run.checkpoints()[::-1], run.config(), run.data()
    state, metadata = gpc.load(path)
    made = tmp_path / "made.safetensors"
    for text in json_mutations(metadata, count, seed=4):
        crafted(made, state, text)
        model, arguments = model_of(config)
        try:
            train.fit(model, train_set, test=test_set, resume=made, **arguments)
        except (ValueError, MemoryError) as error:
            assert "made.safetensors" in str(error) and len(str(error)) < 4000, repr(error)
        arguments["optimizer"].release()


def command(*words):
    """(exit status, lines on stderr) of a command in this process."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said), \
            warnings.catch_warnings():
        warnings.simplefilter("always")  # as in a process of its own, not as in pytest
        try:
            status = cli.main([*map(str, words)])
        except SystemExit as end:
            status = end.code
    return status, said.getvalue().splitlines()


COMMANDS = {
    "evaluate": lambda folder: ("evaluate", folder.path, "--device", "cpu"),
    "runs": lambda folder: ("runs", folder.path.parent),
    "report": lambda folder: ("report", folder.path, "--device", "cpu"),
    "predict": lambda folder: ("predict", folder.path, folder.path / "x.png", "--device", "cpu"),
    "resume": lambda folder: ("train", "--resume", folder.path, "--device", "cpu"),
}


QUICK = {"evaluate": "config.json", "runs": "views.json", "report": "environment.json",
         "predict": "checkpoint", "resume": "manifest.json"}


@pytest.mark.parametrize("what, name, count", [
    *((what, name, 2) for what, name in QUICK.items()),
    *(pytest.param(what, name, 24, marks=pytest.mark.slow)
      for what in COMMANDS for name in (*LOADERS, "checkpoint"))])
def test_a_command_says_what_is_wrong_in_one_line(copy, what, name, count):
    """Only what the command line may fail with, and no more than one error."""
    from PIL import Image
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(copy.path / "x.png")
    copy.tuned.rename(copy.path / "kept")
    state, metadata = gpc.load(copy.best())
    path = copy.path / name
    kinds = json_mutations(metadata, count, 5) if name == "checkpoint" else \
        damaged(copy.path / "kept" if name == "tuned.json" else path, count, 5)
    for blob in kinds:
        if name == "checkpoint":
            for one in (copy.best(), *copy.checkpoints()):
                crafted(one, state, blob)
        else:
            path.write_bytes(blob)
        status, lines = command(*COMMANDS[what](copy))
        errors = [line for line in lines if line.startswith("gpuconv: error: ")]
        assert status in (0, 1) and len(errors) == status, (status, lines)
        assert all(line.startswith(("gpuconv: error: ", "gpuconv: warning: ", "gpuconv: to ",
                                    "    ")) for line in lines), lines


# -- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("description", [
    {"name": "simple_convnet", "arguments": {"classes": 100_000}},
    {"name": "cifar_convnet", "arguments": {"image": 4000}},
    {"name": "speedrun", "arguments": {"in_channels": 100_000}},
    {"notation": "INPUT 32x32x3 | FC 500000"}, {"notation": "INPUT 1x1x900000000 BN FC 1"},
    {"notation": "INPUT 32x32x3 | [CONV3-32]*1000000000 | FC 10"},
    {"notation": "INPUT 32x32x3 | " + "[" * 90_000 + "FC 10" + "]" * 90_000},
    {"name": "simple_convnet", "arguments": {"classes": 10**300}},
], ids=lambda d: str(d)[:60])
def test_a_small_checkpoint_of_a_giant_model_takes_no_memory(tmp_path, description):
    path = tmp_path / "bomb.safetensors"
    gpc.save(path, {"w": np.zeros(1, "f4")}, {
        "model": description, "classes": ["a"], "mean": [0, 0, 0], "std": [1, 1, 1],
        "input_shape": [32, 32, 3]})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="bomb.safetensors: .*model"):
            runs.load(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("sizes", [(3, 10, 32), (1, 7, 29), (2, 3, 50)])
def test_a_plan_has_the_sizes_of_the_model(name, sizes):
    description = {"name": name, "arguments": dict(
        zip(("in_channels", "classes", "image"), sizes, strict=True))}
    plan, model = models.plan(description), models.build(description)
    C, classes, image = sizes
    assert plan.input == (image, image, C) == models.input_shape(description)
    assert plan.output == model.predict(np.zeros((1, image, image, C), "f4")).shape[1:]
    arrays = model.state_dict()
    assert plan.weights == sum(a.size for n, a in arrays.items() if n.endswith("weight"))
    assert plan.parameters >= sum(p.size for p in model.parameters())


def test_a_model_that_does_not_fit_is_not_built(monkeypatch):
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 10**6)
    with pytest.raises(MemoryError, match="the model's weights need 0.00 GB"):
        models.build({"notation": "INPUT 32x32x3 FC 50"})
    assert isinstance(models.build({"notation": "INPUT 32x32x3 FC 20"}), nn.Sequential)


def sparse(path, size):
    """A safetensors file whose array is a hole in the file."""
    head = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
                       "__metadata__": {"format": "gpuconv", "version": "1", "metadata": "{}",
                                        "crc32": "00000000"}}).encode()
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size)


def test_a_file_of_holes_is_compared_with_free_memory(run, tmp_path):
    sparse(tmp_path / "big.safetensors", 4 << 40)
    with pytest.raises(MemoryError, match="big.safetensors: its arrays need 4398.05 GB"):
        gpc.load(tmp_path / "big.safetensors")
    folder = tmp_path / "checkpoints"
    shutil.copytree(run.checkpoints_folder, folder)
    sparse(folder / "step-00000099.safetensors", 4 << 40)
    with pytest.warns(UserWarning, match=r"step-00000099.* need .* going on from step-00000006"):
        assert train.newest(folder).name == "step-00000006.safetensors"


# -- values --------------------------------------------------------------------------------


@pytest.mark.parametrize("change, message", [
    ({"epochs": 10**18}, "epochs is 1000000000000000000, wanted at most 1000000"),
    ({"batch_size": 10**30}, "batch_size is 1000"), ({"lr": "x"}, "lr is 'x', wanted a number"),
    ({"lr": float("inf")}, "lr is inf, wanted a finite number"),
    ({"lr": 10**400}, "lr is a whole number of 1329 bits"), ({"crop": 0.5}, "crop is 0.5"),
    ({"momentum": None}, "momentum is None"), ({"ema": True}, "ema is True"),
    ({"loss_scale": 10**400}, "loss_scale is a whole number of 1329 bits"),
    ({"patience": "x"}, "patience is 'x'"),
    ({"groups": {"names": "*"}}, "groups .*, wanted a list"), ({"groups": [3]}, "groups .* list"),
    ({"groups": [{"names": "*", "lr": 10**400}]}, ".*: lr a whole number"),
    ({"views": ["six"]}, "views "),
    ({"mean": ["a"], "std": [1]}, "mean is 'a', wanted a number"), ({"flip": []}, "flip "),
    ({"mean": [0.5], "std": [0]}, "std is 0, wanted more than 0"),
    ({"drop_last": "no"}, "drop_last is 'no', wanted True or False"),
])
def test_settings_that_no_run_can_have(copy, change, message):
    path = copy.path / "config.json"
    values = json.loads(path.read_text())
    values["settings"] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"config.json: not the settings of a run: (Settings: )?"
                                         f"{message}.*; "
                                         "put back a copy"):
        copy.config()


@pytest.mark.parametrize("change, message", [
    ({"epoch": 10**18}, "epoch is 1000000000000000000, wanted a whole number of 1..2"),
    ({"epoch": "x"}, "epoch is 'x'"), ({"step": -1}, "step is -1, wanted a whole number of 0..3"),
    ({"history": [1]}, "epoch 1 of the history: it is 1, wanted numbers by name"),
    ({"history": []}, "the history has 0 epochs, the run is in epoch 2"),
    ({"tally": {"loss": 0.0, "correct": 1, "count": 10**400}}, "count is 1000"),
    ({"tally": [1]}, r"tally is \[1\]"), ({"seconds": -1e300}, "seconds is -1e"),
    ({"lr": None}, "lr is None, wanted a number"), ({"identity": [1]}, r"identity is \[1\]"),
    ({"identity": {"optimizer": "sgd"}}, "is of another run"),
])
def test_a_position_that_no_run_can_have(run, tmp_path, change, message):
    state, metadata = gpc.load(run.checkpoints()[-1])
    gpc.save(tmp_path / "made.safetensors", state, metadata | change)
    model, arguments = model_of(run.config())
    before = {name: a.copy() for name, a in model.state_dict().items()}
    train_set, test_set = run.data()
    with pytest.raises(ValueError, match=f"made.safetensors.*{message}"):
        train.fit(model, train_set, test=test_set, resume=tmp_path / "made.safetensors",
                  **arguments)
    assert all((before[name] == a).all() for name, a in model.state_dict().items())


@pytest.mark.parametrize("change, message", [
    ({"epoch": 2}, "epoch is 2, wanted 1"), ({"accuracy": 1.5}, "accuracy is 1.5, wanted"),
    ({"seconds": float("inf")}, "seconds is inf"), ({"count": 0.5}, "count is 0.5"),
    ({"loss": True}, "loss is True, wanted a number"), ({"lr": 10**400}, "lr is 1000"),
])
def test_a_row_of_metrics_that_no_run_can_have(copy, change, message):
    path = copy.path / "metrics.jsonl"
    path.write_text(json.dumps(told(path) | change) + "\n")
    with pytest.raises(ValueError, match=f"metrics.jsonl: damaged: line 1 .*{message}.*delete it"):
        copy.history()


# -- a folder with something else in it --------------------------------------------------------


@pytest.mark.parametrize("name", ["views.json", "environment.json"])
def test_what_a_run_can_do_without_does_not_stop_its_report(copy, name):
    (copy.path / name).unlink()
    (copy.path / name).mkdir()
    status, lines = command("report", copy.path, "--device", "cpu")
    assert status == 0 and f"{name} is a folder, wanted a file" in " ".join(lines)
    rows = json.loads(spoken("runs", copy.path.parent, "--json"))
    assert rows[0]["status"] == "finished" and rows[0]["best_test_accuracy"] is not None
    assert (rows[0]["problem"] is None) == (name != "views.json")


def spoken(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main([*map(str, words)]) == 0
    return out.getvalue()


def test_a_file_where_a_folder_should_be(copy):
    shutil.rmtree(copy.plots)
    copy.plots.touch()
    says = "plots is no folder, wanted one: move it away or delete it"
    for words in (COMMANDS["report"](copy), COMMANDS["resume"](copy)):
        status, lines = command(*words)
        assert status == 1 and says in lines[-1]


# -- answers that are not finite -----------------------------------------------------------------


def spoilt(folder, value):
    """The best checkpoint with such a number among its weights."""
    path = folder.best()
    state, metadata = gpc.load(path)
    state["4.weight"][0, 0] = value
    gpc.save(path, state, metadata)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_whose_answers_are_nan_is_a_failure(copy, value):
    from PIL import Image
    spoilt(copy, value)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(copy.path / "x.png")
    (copy.path / "views.json").unlink()
    for what, of in (("evaluate", "6"), ("predict", "1")):
        status, lines = command(*COMMANDS[what](copy))
        assert status == 1 and re.search(rf"answers are not finite for {of} of {of} images .*: "
                                         "its 4.weight holds NaN or infinity; use", lines[-1])
    status, lines = command(*COMMANDS["report"](copy))
    assert status == 0 and "answers are not finite for 6 of 6 images" in " ".join(lines)


def test_answers_that_overflow_name_the_images(rng):
    """A single one, by its name; minus infinity alone is a probability of 0."""
    images = np.zeros((3, 1, 1, 2), np.uint8)
    images[1] = 255, 0
    data = Dataset(images, np.int32([0, 1, 0]), ("a", "b"), "tiny",
                       np.array(["x.png", "y.png", "z.png"], object))
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model[1].weight.data[...] = [[3e38, 0], [0, 0]]
    model[1].bias.data[...] = [3e38, 0]
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match=r"not finite for 1 of "
                                                   r"3 images \(y.png\): its weights are finite"):
        train.predictions(model, data, mean=[0, 0], std=[1, 1])
    model[1].bias.data[...] = [0, -np.inf]
    model[1].weight.data.fill(0)
    found = train.predictions(model, data, mean=[0, 0], std=[1, 1])
    assert found.probabilities.tolist() == [[1, 0]] * 3


def test_the_files_of_this_test_are_whole(run):
    """Else every mutation would be refused for that."""
    for name, (read, _) in LOADERS.items():
        assert read(run) is not None, name
    assert isinstance(run.manifest(), Manifest) and dataclasses.is_dataclass(run.tta_result())
    assert set(os.listdir(run.path)) >= set(LOADERS)


def test_a_history_without_tests(copy, capsys):
    """Its checksum is right; the run had a test set."""
    for path in copy.checkpoints_folder.iterdir():
        state, metadata = gpc.load(path)
        metadata["history"] = [row | {"test_count": None} for row in metadata["history"]]
        gpc.save(path, state, metadata)
    copy.tuned.unlink()
    assert cli.main(["train", "--resume", str(copy.path), "--device", "cpu"]) == 1
    assert "its history has epochs without a test" in capsys.readouterr().err


def test_numbers_that_no_axis_can_show(copy, capsys):
    rows = [json.loads(line) for line in (copy.path / "metrics.jsonl").read_text().splitlines()]
    rows[0]["loss"], rows[1]["loss"] = 1e308, -1e308
    (copy.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["report", str(copy.path)]) == 0, capsys.readouterr().err
