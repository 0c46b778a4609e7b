"""Checkpoints: a run that is cut off anywhere goes on to the same bits."""

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
from odd_files import ODD, make_odd
from test_train import network, place, same, sgd, tiny, weights

import gpuconv as gpc
from gpuconv import files, nn, optim, random, train
from gpuconv.data import Augment
from gpuconv.train import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Interrupt,
    MetricsFiles,
    fit,
    read_metrics,
)

EPOCHS, STEPS = 3, 3


class StopAt(Callback):
    """Ends the run after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, run):
        self.steps -= 1
        if not self.steps:
            run.stop = True


def job(folder, device="cpu", *, kind="sgd", ema=None, resume=False, callbacks=(), **more):
    """A run with everything random in it; returns (model, history)."""
    model = network(device=device, dropout=True)
    optimizer = {"sgd": lambda: sgd(model, nesterov=True, weight_decay=1e-3),
                 "adamw": lambda: optim.AdamW(model.parameters(), 0.01)}[kind]()
    settings = dict(test=tiny(9, seed=5), epochs=EPOCHS, batch_size=8, optimizer=optimizer,
                    schedule=optim.OneCycle(), augment=Augment(pad=1), seed=3, clip_norm=1.0,
                    ema=optim.EMA(model, ema) if ema else None) | more
    history = fit(model, tiny(), resume=folder if resume else None,
                  callbacks=[*callbacks, Checkpoint(folder, keep=2), MetricsFiles(folder)],
                  **settings)
    return model, history


def told(history):
    """What must be the same: everything but time."""
    return [(row.epoch, row.train, row.test, row.lr) for row in history.rows]


# -- going on ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, ema", [("sgd", None), ("adamw", None), ("sgd", 0.9)])
@pytest.mark.parametrize("cut", [1, 3, 4, 8, 9])
def test_a_run_goes_on_to_the_same_bits(tmp_path, cut, kind, ema):
    """Cut after any step: at the start, at an epoch's end, in the middle, before the last test."""
    whole, history = job(tmp_path / "whole", kind=kind, ema=ema)
    _, begun = job(tmp_path / "cut", kind=kind, ema=ema, callbacks=[StopAt(cut)])
    assert len(begun.rows) == (cut - 1) // STEPS
    again, finished = job(tmp_path / "cut", kind=kind, ema=ema, resume=True)
    assert same(weights(again), weights(whole))
    assert told(finished) == told(history)
    assert told(read_metrics(tmp_path / "cut")) == told(history)
    for name in ("best.safetensors", "step-00000009.safetensors"):
        mine, theirs = (gpc.load(tmp_path / folder / name) for folder in ("cut", "whole"))
        assert same(mine[0], theirs[0]), name
        for clock in ("seconds", "history"):
            mine[1].pop(clock), theirs[1].pop(clock)
        assert mine[1] == theirs[1]


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_signal_while_averages_are_tested_costs_no_bit(tmp_path, monkeypatch, moment):
    """Ctrl-C as weights and averages change places, twice per test, in the middle of that."""
    whole, history = job(tmp_path / "whole", ema=0.9)
    calls, write = [], optim.ema._write

    def interrupted(arrays, values):
        names = list(arrays)
        write({name: arrays[name] for name in names[:2]}, values)
        calls.append(names)
        if len(calls) == moment:
            signal.raise_signal(signal.SIGINT)
        write({name: arrays[name] for name in names[2:]}, values)

    monkeypatch.setattr(optim.ema, "_write", interrupted)
    job(tmp_path / "cut", ema=0.9, callbacks=[interrupt := Interrupt()])
    monkeypatch.undo()
    assert interrupt.received == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, finished = job(tmp_path / "cut", ema=0.9, resume=True)
    assert same(weights(again), weights(whole)) and told(finished) == told(history)


@pytest.mark.parametrize("signals", [1, 3])
def test_signals_in_a_save_wait_until_it_is_written(tmp_path, monkeypatch, signals):
    """Ctrl-C pressed twice: the second time while the step of the first is saved."""
    save = files.save

    def interrupted(*args, **more):
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        save(*args, **more)

    whole, _ = job(tmp_path / "whole")
    monkeypatch.setattr(files, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "cut", callbacks=[Interrupt(), Signal(2)])
    monkeypatch.undo()
    assert [path.name for path in train.checkpoints(tmp_path / "cut")] == [
        "step-00000002.safetensors"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(weights(job(tmp_path / "cut", resume=True)[0]), weights(whole))


class Counting(nn.Module):
    """Counts the images that it sees, in training and in tests; the first test may be stopped."""

    def __init__(self, stops):
        self.stops = stops
        self.register_buffer("seen", np.zeros((), np.int64))

    def forward(self, x):
        self.seen += len(x.data)
        if self.stops and not self.training:
            signal.raise_signal(signal.SIGTERM)
        return x


def test_a_test_that_is_measured_again_counts_once(tmp_path):
    def count(place, stops=False, **more):
        random.seed(0)
        model = nn.Sequential(Counting(stops), nn.Flatten(), nn.Linear(16, 3))
        fit(model, tiny(), test=tiny(9, seed=5), epochs=2, batch_size=8, optimizer=sgd(model),
            callbacks=[Interrupt(), Checkpoint(place)], **more)
        return int(model[0].seen)

    whole = count(tmp_path / "whole")
    assert count(tmp_path / "cut", stops=True) == len(tiny())
    assert count(tmp_path / "cut", resume=tmp_path / "cut") == whole


class Signal(Callback):
    """Presses Ctrl-C after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, run):
        self.steps -= 1
        if not self.steps:
            signal.raise_signal(signal.SIGINT)


def test_a_signal_in_the_test_ends_it_after_a_batch(tmp_path):
    class Signal(Callback):
        def on_test_start(self, run):
            signal.raise_signal(signal.SIGTERM)

    _, begun = job(tmp_path, callbacks=[Interrupt(), Signal()])
    assert not begun.rows and [path.name for path in train.checkpoints(tmp_path)] == [
        "step-00000003.safetensors"]
    _, finished = job(tmp_path, resume=True)
    assert all(np.isfinite([row.images_per_second, row.seconds]).all() for row in finished.rows)


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path):
    class Signal(Callback):
        def on_fit_start(self, run):
            signal.raise_signal(signal.SIGINT)

    _, begun = job(tmp_path, callbacks=[Interrupt(), Signal()])
    assert not begun.rows and not train.checkpoints(tmp_path)


def test_on_the_gpu_too(cp, tmp_path):
    """Where losses are read now and then: reading them for a checkpoint changes nothing."""
    whole, history = job(tmp_path / "whole", "cuda")
    job(tmp_path / "cut", "cuda", callbacks=[StopAt(5)])
    again, finished = job(tmp_path / "cut", "cuda", resume=True)
    assert same(weights(again), weights(whole)) and told(finished) == told(history)


def test_cut_again_and_again(tmp_path):
    whole, _ = job(tmp_path / "whole")
    job(tmp_path / "cut", callbacks=[StopAt(1)])
    for _ in range(EPOCHS * STEPS - 1):
        last, history = job(tmp_path / "cut", resume=True, callbacks=[StopAt(1)])
    last, history = job(tmp_path / "cut", resume=True)
    assert same(weights(last), weights(whole)) and len(history.rows) == EPOCHS


def test_a_finished_run_has_nothing_to_do(tmp_path):
    first, history = job(tmp_path, ema=0.5)
    steps = []

    class Watch(Callback):
        def on_step(self, run):
            steps.append(run.step)

    again, same_history = job(tmp_path, ema=0.5, resume=True, callbacks=[Watch()])
    assert steps == [] and told(same_history) == told(history)
    assert same(weights(again), weights(first))


def test_early_stopping_stays_stopped(tmp_path):
    """A rate of 0 never gets better."""
    stop = [EarlyStopping(patience=2)]
    _, history = job(tmp_path, schedule=lambda step, total: 0.0, epochs=9, callbacks=stop)
    assert len(history.rows) in (3, 4)  # running statistics still move: the second may be better
    _, again = job(tmp_path, schedule=lambda step, total: 0.0, epochs=9, callbacks=stop,
                   resume=True)
    assert told(again) == told(history)


def test_float_images_and_16_bits(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 4, 4, 1)).astype("float16")
    data = x, np.arange(20) % 3

    def once(folder, resume=None, callbacks=()):
        model = network("float16")
        fit(model, data, epochs=2, batch_size=8, optimizer=sgd(model), resume=resume,
            callbacks=[*callbacks, Checkpoint(folder)])
        return weights(model)

    whole = once(tmp_path / "a")
    once(tmp_path / "b", callbacks=[StopAt(4)])
    assert same(once(tmp_path / "b", resume=tmp_path / "b"), whole)


# -- what is kept --------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(tmp_path):
    _, history = job(tmp_path, epochs=6)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.safetensors", "metrics.csv", "metrics.jsonl",
                     "step-00000015.safetensors", "step-00000018.safetensors"]
    _, best = gpc.load(tmp_path / "best.safetensors")
    assert best["epoch"] == history.best.epoch
    assert best["test_accuracy"] == history.best.test.accuracy == max(
        row.test.accuracy for row in history.rows)


def test_a_checkpoint_holds_the_weights_as_in_use(tmp_path):
    model, history = job(tmp_path, ema=0.9)
    state, metadata = gpc.load(train.newest(tmp_path))
    assert same(train.weights(state), weights(model))
    assert metadata["classes"] == ["top", "middle", "low"]
    assert metadata["mean"] == tiny().mean.tolist() and metadata["input_shape"] == [4, 4, 1]


def test_saved_within_a_long_epoch(tmp_path):
    seen = []

    class Watch(Callback):
        def on_step(self, run):
            seen.append(run.checkpoint and run.checkpoint.name)

    model = network()
    fit(model, tiny(), epochs=1, batch_size=8, optimizer=sgd(model),
        callbacks=[Checkpoint(tmp_path, minutes=1e-9), Watch()])
    assert seen == [f"step-0000000{n}.safetensors" for n in (1, 2, 3)]


def test_metrics_are_for_people_and_programs(tmp_path):
    _, history = job(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["test_accuracy"] for row in rows] == [r.test.accuracy for r in history.rows]
    head, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert head.split(",") == list(rows[0]) and len(lines) == EPOCHS
    assert float(lines[-1].split(",")[head.split(",").index("loss")]) == history.last.train.loss


def test_numbers_that_are_not_finite_are_null(tmp_path):
    metrics = train.Metrics(float("nan"), 0.1, 3)
    row = train.Epoch(1, metrics, metrics, 1.0, 2.0, 3.0)
    MetricsFiles(tmp_path).write(train.History([row]))
    assert '"test_loss": null' in (tmp_path / "metrics.jsonl").read_text()
    back = read_metrics(tmp_path).last
    assert np.isnan(back.test.loss) and back.test.accuracy == 0.1


# -- what goes wrong -----------------------------------------------------------------------


def damage(path, how):
    blob = bytearray(path.read_bytes())
    if how == "short":
        del blob[len(blob) // 2:]
    elif how == "flipped":
        blob[-100] ^= 1
    else:
        blob[:] = b"hello"
    path.write_bytes(blob)


@pytest.mark.parametrize("how", ["short", "flipped", "foreign"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, how):
    whole, history = job(tmp_path / "whole")
    job(tmp_path / "cut", callbacks=[StopAt(8)])
    damage(train.checkpoints(tmp_path / "cut")[-1], how)
    with pytest.warns(UserWarning, match=r"step-00000008.* going on from step-00000006"):
        again, finished = job(tmp_path / "cut", resume=True)
    assert same(weights(again), weights(whole)) and told(finished) == told(history)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_hides_no_checkpoint(tmp_path, kind):
    """Neither when the run goes on, nor from the count of those that are kept."""
    whole, history = job(tmp_path / "whole")
    job(tmp_path / "cut", callbacks=[StopAt(4)])
    for step in ("00000002", "00000007", "99999999", "000000004"):
        make_odd(tmp_path / "cut" / f"step-{step}.safetensors", kind)
    with pytest.warns(UserWarning, match="step-99999999.*step-00000007.*going on from step-0+4"):
        again, finished = job(tmp_path / "cut", resume=True)
    assert same(weights(again), weights(whole)) and told(finished) == told(history)
    assert [path.name for path in train.checkpoints(tmp_path / "cut")] == [
        "step-00000006.safetensors", "step-00000009.safetensors"]


def test_a_damaged_newer_one_costs_no_good_one(tmp_path):
    """It is not counted among those that are kept, however few."""
    job(tmp_path, callbacks=[StopAt(8)])
    damage(train.checkpoints(tmp_path)[-1], "short")
    model = network(dropout=True)
    with pytest.warns(UserWarning, match="going on from step-00000006"):
        fit(model, tiny(), test=tiny(9, seed=5), epochs=EPOCHS, batch_size=8, seed=3, clip_norm=1.0,
            optimizer=sgd(model, nesterov=True, weight_decay=1e-3), schedule=optim.OneCycle(),
            augment=Augment(pad=1), resume=tmp_path,
            callbacks=[StopAt(1), Checkpoint(tmp_path, keep=1)])
    assert [path.name for path in train.checkpoints(tmp_path)] == [
        "step-00000007.safetensors", "step-00000008.safetensors"]
    gpc.load(tmp_path / "step-00000007.safetensors")


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_one_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch, error):
    job(tmp_path, callbacks=[StopAt(8)])
    unreadable, real = train.checkpoints(tmp_path)[-1], os.open

    def fails(path, *rest):
        if os.fspath(path) == str(unreadable):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", fails)
    with pytest.warns(UserWarning, match="step-00000008.* going on from step-00000006"):
        assert train.newest(tmp_path).name == "step-00000006.safetensors"


def test_the_best_is_the_last_resort(tmp_path):
    job(tmp_path, callbacks=[StopAt(8)])
    for path in train.checkpoints(tmp_path):
        damage(path, "short")
    with pytest.warns(UserWarning, match="step-00000008.*step-00000006.*going on from best"):
        assert train.newest(tmp_path).name == "best.safetensors"


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path, monkeypatch):
    """Else a run would start again over its checkpoints."""
    def fails(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", fails)
    with pytest.raises(PermissionError):
        train.newest(tmp_path)


@pytest.mark.parametrize("how", ["short", "flipped", "foreign"])
def test_a_damaged_file_that_was_named_is_refused(tmp_path, how):
    job(tmp_path, callbacks=[StopAt(2)])
    path, = train.checkpoints(tmp_path)
    damage(path, how)
    with pytest.raises(ValueError, match="step-00000002.safetensors: damaged"):
        resume(path)
    with pytest.raises(ValueError, match="no checkpoint is whole: .*step-00000002"):
        job(tmp_path, resume=True)


def resume(path):
    model = network(dropout=True)
    return fit(model, tiny(), epochs=1, batch_size=8, optimizer=sgd(model), resume=path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        job(tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        resume(tmp_path / "gone.safetensors")


def test_weights_alone_are_no_run(tmp_path):
    gpc.save(tmp_path / "w.safetensors", network(dropout=True).state_dict())
    with pytest.raises(ValueError, match="holds weights, but no run to resume"):
        resume(tmp_path / "w.safetensors")


@pytest.mark.parametrize("change, text", [
    (dict(epochs=4), "epochs was 3, is 4"),
    (dict(batch_size=6), "batch_size was 8, is 6"),
    (dict(seed=4), "seed was 3, is 4"),
    (dict(augment=None), r"augment was Augment\(.*\), is None"),
    (dict(schedule=None), r"schedule was OneCycle\(.*\), is Constant"),
    (dict(clip_norm=None), "clip_norm was 1.0, is None"),
    (dict(kind="adamw"), "optimizer was .*SGD.*, is .*AdamW"),
    (dict(ema=0.5), "ema was None, is 0.5"),
])
def test_another_run_is_refused(tmp_path, change, text):
    job(tmp_path, callbacks=[StopAt(4)])
    with pytest.raises(ValueError, match=f"is of another run: {text}"):
        job(tmp_path, resume=True, **change)


def test_other_data_are_refused(tmp_path):
    job(tmp_path, callbacks=[StopAt(4)])
    model = network(dropout=True)
    with pytest.raises(ValueError, match="training set was [0-9a-f]{8}, is [0-9a-f]{8}"):
        fit(model, tiny(seed=1), epochs=3, batch_size=8, optimizer=sgd(model), resume=tmp_path)


def test_a_new_run_does_not_write_over_another(tmp_path):
    job(tmp_path, callbacks=[StopAt(4)])
    with pytest.raises(ValueError, match="holds those of another run"):
        job(tmp_path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_costs_no_checkpoint(tmp_path, monkeypatch, error):
    whole, history = job(tmp_path / "whole")
    calls, real = [], files.save

    def fails(path, *rest):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(error, "it failed")
        real(path, *rest)

    monkeypatch.setattr(files, "save", fails)
    with pytest.raises(OSError, match="cannot write the checkpoint .*it failed.*newest that is "
                                      "whole is .*step-"):
        job(tmp_path / "cut")
    monkeypatch.undo()
    again, finished = job(tmp_path / "cut", resume=True)
    assert same(weights(again), weights(whole)) and told(finished) == told(history)


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    class Spoil(Callback):
        def on_step(self, run):
            if run.epoch == 2 and run.step == STEPS:
                run.model[0].weight.data[0] = np.inf

    with pytest.raises(FloatingPointError,
                       match=r"0\.weight is no longer finite in epoch 2, step 3 of 3; .* The last "
                             r"good checkpoint is .*step-00000003"):
        model = network()
        fit(model, tiny(), epochs=3, batch_size=8, optimizer=sgd(model),
            callbacks=[Spoil(), Checkpoint(tmp_path)])
    assert [path.name for path in train.checkpoints(tmp_path)] == ["step-00000003.safetensors"]


def test_a_loss_that_explodes_names_the_last_good_checkpoint(tmp_path):
    def schedule(step, total):
        return 1.0 if step < 3 else 1e30

    model = network()
    with pytest.raises(FloatingPointError, match="The last good checkpoint is .*step-00000003"), \
            np.errstate(all="ignore"):
        fit(model, tiny(), epochs=3, batch_size=8, optimizer=sgd(model), schedule=schedule,
            callbacks=[Checkpoint(tmp_path)])


@pytest.mark.parametrize("settings, text", [
    (dict(keep=0), "keep is 0, wanted at least 1"),
    (dict(minutes=0), "minutes is 0, wanted more than 0"), (dict(minutes=float("nan")), "nan")])
def test_refuses(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        Checkpoint(tmp_path, **settings)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Checkpoint(tmp_path / "file")


def test_tied_weights_go_on(tmp_path):
    """A parameter under two names is kept once."""
    def tied():
        random.seed(1)
        layer = nn.Conv2d(1, 1, 3, padding=1)
        return nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(16, 3))

    def once(folder, resume=None, callbacks=()):
        model = tied()
        fit(model, tiny(), epochs=2, batch_size=8, optimizer=sgd(model), resume=resume,
            callbacks=[*callbacks, Checkpoint(folder)])
        return weights(model)

    whole = once(tmp_path / "a")
    once(tmp_path / "b", callbacks=[StopAt(4)])
    assert same(once(tmp_path / "b", tmp_path / "b"), whole)
    shutil.rmtree(tmp_path)


def test_the_network_may_lie_on_either_device(cp, tmp_path):
    """Other bits, but it goes on."""
    job(tmp_path, "cuda", callbacks=[StopAt(4)])
    _, history = job(tmp_path, place(np), resume=True)
    assert len(history.rows) == EPOCHS
