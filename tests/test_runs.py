"""A run's folder, and the model out of it."""

import concurrent.futures
import dataclasses
import json
import os
import shutil
import sys

import numpy as np
import pytest
from odd_files import ODD, make_odd

import gpuconv as gpc
from gpuconv import data, models, runs, train
from gpuconv.data import Source
from gpuconv.runs import Config, RunFolder
from gpuconv.train import Settings

timed_module = sys.modules["gpuconv.runs.timed"]  # runs.timed is the function
NET = "INPUT 32x32x3 CONV3-4/4 BN RELU FC 10"


def config(**changes):
    return Config(**dict(model={"notation": NET}, source=Source("shapes", limit=40), seed=2,
                         settings=Settings(epochs=2, batch_size=10), recipe="test") | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = RunFolder.create(config(), tmp_path_factory.mktemp("runs") / "one")
    return folder, runs.train(config(), folder)


def test_what_a_run_leaves(done):
    folder, outcome = done
    assert outcome.signal is None and len(outcome.history.rows) == 2
    names = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*")}
    assert names == {"config.json", "environment.json", "metrics.csv", "metrics.jsonl", "plots",
                     "checkpoints", "checkpoints/best.safetensors",
                     "checkpoints/step-00000004.safetensors",
                     "checkpoints/step-00000008.safetensors"}
    assert folder.config() == config() and folder.status() == "finished"
    assert folder.history().rows == outcome.history.rows
    assert folder.environment()["NumPy"].startswith(np.__version__)


def test_the_model_comes_back(done):
    folder, outcome = done
    trained = runs.load(folder.path)
    assert trained.path == folder.best() and trained.folder.path == folder.path
    assert trained.input_shape == (32, 32, 3) and not trained.model.training
    _, test = folder.data()
    assert trained.classes == test.classes
    found = train.evaluate(trained.model, test, mean=trained.mean, std=trained.std)
    assert found.accuracy == trained.metadata["test_accuracy"] == outcome.history.best.test.accuracy

    probabilities = trained.probabilities(test.images[:7], batch_size=3)
    x = ((test.images[:7] / 255 - trained.mean) / trained.std).astype("float32")
    logits = trained.model.predict(x).astype(float)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, want, rtol=1e-4)


def test_any_checkpoint_will_do(done, tmp_path):
    folder, _ = done
    trained = runs.load(folder.checkpoints()[0])
    assert trained.metadata["epoch"] == 1 and trained.folder.path == folder.path
    alone = tmp_path / "net.safetensors"
    alone.write_bytes(folder.best().read_bytes())
    assert runs.load(alone).folder is None


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes_come_back(tmp_path, dtype):
    folder = RunFolder.create(config(dtype=dtype), tmp_path / "run")
    runs.train(config(dtype=dtype), folder)
    assert runs.load(folder.path).model.dtype.name == dtype


def test_views_are_kept_where_there_are_several(tmp_path):
    settings = Settings(epochs=1, batch_size=10, views="mirror", mean=(0.5, 0.4, 0.3),
                        std=(0.2, 0.3, 0.4))
    folder = RunFolder.create(config(settings=settings), tmp_path / "run")
    outcome = runs.train(config(settings=settings), folder)
    told = json.loads(folder.views.read_text())
    trained = runs.load(folder.path)
    assert trained.mean.tolist() == [0.5, 0.4, 0.3] and trained.std.tolist() == [0.2, 0.3, 0.4]
    found = train.predictions(trained.model, folder.data()[1], views="mirror", mean=trained.mean,
                              std=trained.std)
    assert told["accuracy"] == found.accuracy == outcome.tta_predictions.accuracy
    folder.views.unlink()  # killed just before its end: going on makes up for it
    again = runs.train(config(settings=settings), folder, resume=True)
    assert json.loads(folder.views.read_text()) == told
    assert again.history.rows == outcome.history.rows
    assert folder.tta_result() == runs.TtaResult("mirror", 1, len(found.labels), found.accuracy,
                                                 again.tta_predictions.loss)


def test_a_run_that_is_stopped_early_is_not_seen_in_views(tmp_path):
    class Stop(train.Callback):
        def on_step(self, run):
            run.stop = True

    made = config(settings=Settings(epochs=2, batch_size=10, views="mirror"))
    folder = RunFolder.create(made, tmp_path / "run")
    outcome = runs.train(made, folder, callbacks=[Stop()])
    assert outcome.tta_predictions is folder.tta_result() is None
    assert folder.status() == "can be resumed"


@pytest.mark.parametrize("text, says", [
    ("[", "no JSON"), ("[1]", r"it is \[1\], wanted views, epoch"), ('{"views": "six"}', "wanted"),
    ('{"views": "six", "epoch": 1, "images": 2, "accuracy": "all", "loss": 0.5}',
     "accuracy is 'all'")])
def test_damaged_views_say_so(tmp_path, text, says):
    folder = RunFolder(tmp_path)
    assert folder.tta_result() is None
    folder.views.write_text(text)
    with pytest.raises(ValueError, match=f"views.json: damaged: .*{says}"):
        folder.tta_result()


# -- against the clock -----------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_timed_runs_are_runs(request, tmp_path, device):
    """The same seeds give the accuracy of runs with a folder; each is timed by itself."""
    if device == "cuda":
        request.getfixturevalue("cp")
    made = config(device=device, settings=Settings(epochs=1, batch_size=10, views="mirror"),
                  source=Source("shapes", limit=25))
    seen = []
    found = runs.timed(made, made.source.load(), 2, on_run=seen.append)
    assert found == seen and [one.seed for one in found] == [2, 3]
    assert all(one.seconds > 0 for one in found)
    for one in found:
        folder = RunFolder.create(made, tmp_path / str(one.seed))
        outcome = runs.train(dataclasses.replace(made, seed=one.seed), folder)
        assert outcome.tta_predictions.accuracy == one.accuracy


def test_what_is_inside_the_clock(monkeypatch):
    """Preparing, training and the final test; not data, weights, optimiser, or the first steps."""
    inside, log = [False], []
    monkeypatch.setattr(timed_module.time, "perf_counter", lambda: inside.append(
        not inside.pop()) or 0.0)

    def watched(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (
            log.append((name, inside[0])), real(*a, **k))[1])

    watched(models, "build")
    watched(timed_module.training, "fit")
    watched(timed_module, "predict_test_set")
    watched(Settings, "fit_arguments")
    made = config(settings=Settings(epochs=1, batch_size=10, views="six"))
    monkeypatch.setattr(timed_module.training, "fit", lambda *a, **k: log.append(
        ("fit", len(a[1]), k["epochs"], inside[0])))
    runs.timed(made, made.source.load(), 1)
    assert log == [("build", False), ("fit_arguments", False), ("fit", 30, 1, True),
                   ("predict_test_set", True)] + [
                       ("build", False), ("fit_arguments", False), ("fit", 40, 1, True),
                       ("predict_test_set", True)]


def test_means_and_deviations():
    found = runs.summary([runs.Timing(0, 1.0, 0.9), runs.Timing(1, 3.0, 0.94)])
    assert found == {"seconds": 2.0, "seconds_deviation": pytest.approx(2**0.5),
                     "accuracy": pytest.approx(0.92),
                     "accuracy_deviation": pytest.approx(0.02 * 2**0.5)}
    assert runs.summary([runs.Timing(0, 1.0, 0.9)])["seconds_deviation"] is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the overflow
def test_a_timed_run_that_ends_in_nan_is_an_error():
    made = config(settings=Settings(epochs=1, batch_size=30, lr=1e30),
                  source=Source("shapes", limit=30))
    with pytest.raises(FloatingPointError, match="seed 2: .*not finite for 30 of 30 images"):
        runs.timed(made, made.source.load(), 1)


def test_timed_refuses():
    made = config()
    with pytest.raises(ValueError, match="timed: 0 runs, wanted at least 1"):
        runs.timed(made, made.source.load(), 0)
    with pytest.raises(ValueError, match="seed"):
        runs.timed(config(seed=2**32 - 1), made.source.load(), 2)


def test_a_grey_set_of_another_size(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "digits.npz", images=rng.integers(0, 256, (40, 12, 12), np.uint8),
             labels=np.arange(40) % 4)
    source = Source.from_options(tmp_path / "digits.npz")
    made = config(source=source, model=models.describe("simple_convnet", in_channels=1, classes=4,
                                                       image=12))
    folder = RunFolder.create(made, tmp_path / "run")
    runs.train(made, folder)
    trained = runs.load(folder.path)
    assert trained.input_shape == (12, 12, 1) and len(trained.classes) == 4


def test_runs_are_found(tmp_path, done, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.find() == []
    with pytest.raises(FileNotFoundError, match="there is no run in .*gpuconv train makes one"):
        runs.newest()
    made = [RunFolder.create(config()) for _ in range(3)]
    for age, folder in enumerate(made):
        os.utime(folder.path / "config.json", (age, age))
    (tmp_path / "runs" / "notes").mkdir()
    assert [f.path for f in runs.find()] == [f.path for f in reversed(made)]
    assert made[0].path.name.endswith("-test") and made[0].status() == "can be started again"
    with pytest.raises(FileNotFoundError, match="there is no run in .* that has a model: .*gpuconv "
                                                "train makes one; .*there is no checkpoint"):
        runs.newest()


@pytest.mark.parametrize("damage", ["config", "model", "folder"])
def test_the_newest_run_is_one_that_can_be_used(tmp_path, done, damage):
    for age, name in enumerate(("older", "newer")):
        shutil.copytree(done[0].path, tmp_path / name)
        os.utime(tmp_path / name / "config.json", (age, age))
    assert runs.newest(tmp_path).path.name == "newer"
    if damage == "config":
        (tmp_path / "newer" / "config.json").write_text("{")
    elif damage == "folder":
        (tmp_path / "newer" / "config.json").unlink()
        (tmp_path / "newer" / "config.json").mkdir()
    else:
        shutil.rmtree(tmp_path / "newer" / "checkpoints")
    with pytest.warns(UserWarning, match=r"newer is passed over: .*newer.*; this is .*older$"):
        assert runs.newest(tmp_path).path.name == "older"


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "plots").mkdir()
    with pytest.raises(FileExistsError, match="is not empty: it has letter.txt; a new run wants a"):
        RunFolder.create(config(), tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    (tmp_path / "letter.txt").rename(tmp_path / "plots" / "letter.txt")
    with pytest.raises(FileExistsError, match="is not empty: it has plots"):
        RunFolder.create(config(), tmp_path)


# -- runs that were killed early -------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing is done about it."""


def test_a_folder_without_a_config_can_be_used_again(tmp_path, monkeypatch):
    """Wherever the process that made it was killed."""
    moments = [(os, "replace"), (Config, "write"), (os, "fsync")]
    for owner, name in moments:
        def killed(*args):
            raise Killed

        monkeypatch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            RunFolder.create(config(), tmp_path / "run")
        monkeypatch.undo()
    (tmp_path / "run" / ".config.json.x1y2.unfinished").write_text("{")
    (tmp_path / "run" / "run.lock").write_text("")
    folder = RunFolder.create(config(), tmp_path / "run")
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json",
                                                                   "environment.json", "plots"]
    with pytest.raises(FileExistsError, match="is not empty: it holds a run; .*gpuconv train "
                                              "--resume .*/run$"):
        RunFolder.create(config(), tmp_path / "run")


def test_a_run_without_a_checkpoint_starts_again(done, tmp_path):
    """To the bits that an undisturbed run gives."""
    class Kill(train.Callback):
        def on_step(self, run):
            if run.step == 3:
                raise Killed

    folder = RunFolder.create(config(), tmp_path / "run")
    (folder.path / "environment.json").unlink()  # killed while it asked for the GPU
    for path in (folder.path, folder.plots):
        (path / ".curves.png.x1y2.unfinished").write_text("half")
    with pytest.raises(Killed):
        runs.train(config(), folder, callbacks=[Kill()])
    assert folder.status() == "can be started again" and folder.history().rows == []
    with pytest.warns(UserWarning, match="run: the run ended before its first checkpoint, so it "
                                         "starts again"):
        runs.train(folder.config(), folder, resume=True)
    assert folder.environment()["NumPy"] and not list(folder.path.rglob(".*"))
    mine, theirs = (gpc.load(one.checkpoints()[-1])[0] for one in (folder, done[0]))
    assert {name: a.tobytes() for name, a in mine.items()} == {
        name: a.tobytes() for name, a in theirs.items()}


def test_a_run_that_was_killed_between_its_best_and_its_first_checkpoint(done, tmp_path):
    """The best is written first, and is a checkpoint as well."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(done[0].path, folder.path)
    while folder.checkpoints():
        folder.checkpoints()[0].unlink()
    assert runs.load(folder.path).path == folder.best()
    outcome = runs.train(config(), folder, resume=True)
    assert [row.train for row in outcome.history.rows] == [
        row.train for row in done[1].history.rows]


def test_a_run_whose_checkpoints_are_gone_does_not_start_again(done, tmp_path):
    """Its metrics would be lost, too."""
    shutil.copytree(done[0].path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    shutil.rmtree(folder.checkpoints_folder)
    with pytest.raises(FileNotFoundError, match="checkpoints: there is no checkpoint"):
        runs.train(config(), folder, resume=True)
    assert len(folder.history().rows) == 2


# -- files that are none ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ODD)
def test_a_best_that_is_no_file(done, tmp_path, kind):
    folder = RunFolder(shutil.copytree(done[0].path, tmp_path / "run"))
    (folder.checkpoints_folder / "best.safetensors").unlink()
    make_odd(folder.checkpoints_folder / "best.safetensors", kind)
    with pytest.warns(UserWarning, match="best.safetensors.*going on from step-00000008"):
        assert runs.load(folder.path).path == folder.checkpoints()[-1]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name, read", [
    ("config.json", RunFolder.config), ("environment.json", RunFolder.environment),
    ("metrics.jsonl", RunFolder.history), ("views.json", RunFolder.tta_result),
    ("tuned.json", lambda folder: runs.train(config(), folder))])
def test_a_file_of_a_run_that_is_none(tmp_path, kind, name, read):
    folder = RunFolder.create(config(), tmp_path / "run")
    (folder.path / name).unlink(missing_ok=True)
    make_odd(folder.path / name, kind)
    with pytest.raises(OSError, match=name):
        read(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\x00", '{"a": ' * 100_000, "5"])
def test_json_that_nobody_writes(tmp_path, text):
    folder = RunFolder.create(config(), tmp_path / "run")
    for name, read in (("views.json", folder.tta_result), ("metrics.jsonl", folder.history),
                       ("environment.json", folder.environment), ("config.json", folder.config)):
        (folder.path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            read()


def test_early_stopping_is_an_end(done, tmp_path):
    folder, _ = done
    early = config(settings=Settings(epochs=9, batch_size=10, patience=1))
    new = RunFolder.create(early, tmp_path / "run")
    rows = folder.history().rows
    train.MetricsFiles(new.path).write(
        train.History([rows[0], dataclasses.replace(rows[0], epoch=2)]))
    assert new.status() == "finished"


@pytest.mark.parametrize("text, message", [
    ("{", r"config.json: damaged: it is no JSON: line 1, column 2; put back a copy"),
    ('{"model": {}}', "not the settings of a run: no 'source'"),
    ("[]", "not the settings of a run"),
    ('{"model": {}, "source": {}, "settings": {"lr": -1}}', "lr is -1, wanted at least 0"),
    ('{"model": {}, "source": {}, "settings": {}, "colour": 1}', "colour"),
])
def test_a_damaged_config(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("change, message", [
    (dict(model=[1]), "no description of a model"),
    (dict(model={"name": "resnet"}), "unknown model 'resnet'"),
    (dict(dtype="float99"), "dtype 'float99', wanted one of float32"),
    (dict(seed="x"), "config.json"),
    (dict(device=5), "device 5"),
    (dict(source={"kind": "folder", "path": 5}), "path 5, wanted text"),
    (dict(source={"kind": "shapes", "limit": -3}), "limit -3, wanted a whole number"),
    (dict(source={"kind": "shapes", "image_size": "8"}), "image_size '8', wanted a whole number"),
])
def test_an_edited_config(tmp_path, change, message):
    folder = RunFolder.create(config(), tmp_path / "run")
    path = folder.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"not the settings of a run.*{message}|{message}.*not th"):
        folder.config()


def test_another_model_is_not_gone_on_with(tmp_path):
    """Of the same weights: only their names and shapes would not tell."""
    small = Settings(epochs=1, batch_size=20)
    one = config(settings=small, model={"notation": "INPUT 32x32x3 | CONV3-2/4 RELU | FC 10"})
    folder = RunFolder.create(one, tmp_path / "run")
    runs.train(one, folder)
    other = config(settings=small, model={"notation": "INPUT 32x32x3 | CONV3-2/4 GELU | FC 10"})
    with pytest.raises(ValueError, match="is of another model: .* RELU .*, is .* GELU"):
        runs.train(other, folder, resume=True)


def test_runs_of_one_second_have_folders_of_their_own(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.create(config(), parent=tmp_path), range(8)))
    assert len({folder.path for folder in made}) == 8


@pytest.mark.parametrize("change, message", [
    (dict(input_shape=[32, 32]), r"input_shape is \[32, 32\], wanted \[H, W, C\]"),
    (dict(input_shape="abc"), "input_shape is 'abc'"),
    (dict(classes="abc"), "classes are 'abc', wanted a list of names"),
    (dict(classes=[1, 2]), "classes are"),
    (dict(mean=[0.5]), r"mean is \[0.5\], wanted 3 numbers"),
    (dict(std="abc"), "std is 'abc', wanted 3 numbers"),
])
def test_a_checkpoint_that_makes_no_sense(done, tmp_path, change, message):
    state, metadata = gpc.load(done[0].best())
    gpc.save(tmp_path / "w.safetensors", state, metadata | change)
    with pytest.raises(ValueError, match=f"w.safetensors: {message}"):
        runs.load(tmp_path / "w.safetensors")


def test_a_checkpoint_knows_its_run_from_inside_its_folder(done, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder.checkpoints_folder)
    assert runs.load("best.safetensors").folder.path == folder.path.absolute()


def test_what_cannot_be_loaded(tmp_path, done):
    folder, _ = done
    with pytest.raises(FileNotFoundError, match="is no folder of a run: it has no config.json"):
        runs.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        runs.load(tmp_path / "gone.safetensors")
    plain = tmp_path / "w.safetensors"
    gpc.save(plain, {"w": np.ones(3)})
    with pytest.raises(ValueError, match="there is no model, classes, mean, std, input_shape"):
        runs.load(plain)
    state, metadata = gpc.load(folder.best())
    gpc.save(plain, state, metadata | {"model": {"name": "gone"}})
    with pytest.raises(ValueError, match="unknown model 'gone'"):
        runs.load(plain)
    gpc.save(plain, dict(list(state.items())[1:]), metadata)
    with pytest.raises(ValueError, match="missing"):
        runs.load(plain)


def test_images_that_do_not_fit(done):
    trained = runs.load(done[0].path)
    with pytest.raises(ValueError, match=r"images are \(1, 8, 8, 3\), the model takes \(N, 32, 32"):
        trained.probabilities(np.zeros((1, 8, 8, 3), "uint8"))


def test_damaged_metrics_are_named(done, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1 is no row of metrics"):
        RunFolder(tmp_path).history()


def test_a_word_is_no_metric(done, tmp_path):
    row = json.loads((done[0].path / "metrics.jsonl").read_text().splitlines()[0])
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"accuracy": "<b>"}) + "\n")
    with pytest.raises(ValueError, match="line 1 is no row of metrics: accuracy is '<b>'"):
        RunFolder(tmp_path).history()


def test_the_sets_are_those_it_was_trained_on(done):
    folder, _ = done
    mine, theirs = folder.data(), data.shapes(40, 40)
    assert [part.fingerprint for part in mine] == [part.fingerprint for part in theirs]


def test_other_blas_kernels_are_noted_when_a_run_goes_on(tmp_path, monkeypatch, recwarn):
    """They may give other last bits; an older run does not say which it had."""
    module = sys.modules["gpuconv.runs.environment"]  # runs.environment is the function
    monkeypatch.setattr(module, "kernels", lambda: "Haswell")
    folder = RunFolder.create(config(settings=Settings(epochs=1, batch_size=20)), tmp_path / "run")
    assert folder.environment()["BLAS kernels"] == "Haswell"
    runs.train(folder.config(), folder)
    monkeypatch.setattr("gpuconv.runs.job.kernels", lambda: "SkylakeX")
    with pytest.warns(UserWarning, match="began with BLAS kernels for Haswell, .* for SkylakeX"):
        runs.train(folder.config(), folder, resume=True)
    recwarn.clear()
    (folder.path / "environment.json").write_text("{}")
    runs.train(folder.config(), folder, resume=True)
    (folder.path / "environment.json").write_text("{")
    runs.train(folder.config(), folder, resume=True)
    assert not recwarn
