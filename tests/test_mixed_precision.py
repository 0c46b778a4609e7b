"""Training in 16 bits: close to float32, where float16 alone would lose what is small."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from test_checkpoint import StopAt, told
from test_train import place, same, tiny, weights

import gpuconv as gpc
from gpuconv import backend, nn, optim, random, runs, train
from gpuconv.train import Callback, Checkpoint, Settings, fit

TINY = 2.0**-18  # what a planted network multiplies its logits by, and with them its gradients


def network(dtype, device="cpu"):
    random.seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)).to(device, dtype)


def losses(dtype, device="cpu", epochs=10, **more):
    model = network(dtype, device)
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, master=dtype != "float32")
    history = fit(model, tiny(24), epochs=epochs, batch_size=8, seed=2, optimizer=optimizer, **more)
    return np.array([row.train.loss for row in history.rows])


@pytest.mark.parametrize("dtype, share", [("float16", 0.02), ("bfloat16", 0.1)])
def test_the_loss_falls_as_in_float32(xp, dtype, share):
    """30 steps; the bound is 16 roundings of an activation, of those that the loss grows by."""
    want, got = losses("float32"), losses(dtype, place(xp))
    assert want[-1] < want[0] / 3
    assert (abs(got - want) < share * want[0]).all()


class Small(nn.Module):
    """y = 2^-18 x W^T: the gradient of x W^T, 2^-18 / 96 at most, is 0 in float16."""

    def __init__(self):
        self.weight = gpc.Parameter(np.zeros((3, 16), "float32"))

    def forward(self, x):
        return gpc.ops.linear(x.reshape(x.shape[0], 16), self.weight) * TINY


def learn(dtype, device, **more):
    """(accuracy, largest weight) after 8 steps with a learning rate that makes up for it."""
    labels = np.arange(96) % 3
    x = np.zeros((96, 4, 4, 1), backend.float_dtype(dtype))
    x[np.arange(96), labels] = 1
    model = Small().to(device, dtype)
    optimizer = optim.SGD(model.parameters(), 2.0**28, master=dtype == "float16")
    history = fit(model, (x, labels), epochs=8, batch_size=96, optimizer=optimizer, **more)
    return history.last.train.accuracy, float(abs(backend.to_cpu(model.weight.data)).max())


def test_gradients_that_float16_would_lose_are_learned_from(xp):
    where = place(xp)
    assert learn("float16", where, loss_scale=1) == (pytest.approx(1 / 3), 0)  # all were 0
    want, largest = learn("float32", where)
    assert want == 1 and largest > 100
    for more in ({}, dict(loss_scale=2.0**14)):
        assert learn("float16", where, **more) == (1, pytest.approx(largest, rel=2e-3))


class Watch(Callback):
    def __init__(self):
        self.scales, self.skipped = [], []

    def on_step(self, run):
        run.read()
        self.scales.append(float(run.scale.scale))
        self.skipped.append(run.tally.skipped)


def scaled(device, eager=True, callbacks=(), **more):
    """A run with a dynamic scale."""
    model, watch = network("float16", device), Watch()
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, master=True)
    history = fit(model, tiny(24), test=tiny(9, seed=5), epochs=3, batch_size=8, eager=eager,
                  optimizer=optimizer, loss_scale="dynamic", callbacks=[watch, *callbacks], **more)
    state = weights(model) | {name: backend.to_cpu(a).copy()
                              for name, a in optimizer.state_dict().items()}
    return history, watch, state


@pytest.fixture
def high(monkeypatch):
    """A dynamic scale begins too high for float16, and grows after 3 steps."""
    monkeypatch.setattr("gpuconv.train.loop.LossScale",
                        functools.partial(optim.LossScale, scale=2.0**22, interval=3))


def test_a_step_that_overflows_is_left_out_and_counted(xp, high):
    history, watch, _ = scaled(place(xp))
    first = watch.scales[0]
    assert first == 2.0**21 and watch.skipped[0] == 1  # the loss itself is as in any other step
    assert history.rows[0].skipped >= 1 and history.rows[0].train.count == 24
    assert np.isfinite([row.train.loss for row in history.rows]).all()
    halves = [b / a for a, b in zip([2.0**22, *watch.scales], watch.scales, strict=False)]
    assert set(halves) <= {0.5, 1, 2}


@pytest.mark.parametrize("live", [False, True])
def test_progress_tells_of_them(high, capsys, live):
    history, *_ = scaled("cpu", callbacks=[train.Progress(live=live)])
    out, skipped = " ".join(capsys.readouterr().out.split()), history.rows[0].skipped
    assert f"epoch 1: {skipped} update" in out and "gradients were beyond the range of" in out
    assert ("epoch 3:" in out) == (history.rows[2].skipped > 0)


def test_the_captured_step_scales_alike(cp, high):
    eager, captured = (scaled("cuda", eager) for eager in (True, False))
    assert told(eager[0]) == told(captured[0]) and same(eager[2], captured[2])
    assert [row.skipped for row in eager[0].rows] == [row.skipped for row in captured[0].rows]
    assert eager[1].scales == captured[1].scales


@pytest.mark.parametrize("cut", [1, 2, 4, 6])
def test_a_scale_goes_on_where_it_was(xp, high, tmp_path, cut):
    want = scaled(place(xp), eager=False)
    scaled(place(xp), callbacks=[StopAt(cut), Checkpoint(tmp_path)])
    got = scaled(place(xp), eager=False, resume=tmp_path)
    assert told(got[0]) == told(want[0]) and same(got[2], want[2])
    assert [row.skipped for row in got[0].rows] == [row.skipped for row in want[0].rows]
    assert got[1].scales == want[1].scales[cut:]


def test_the_optimiser_is_as_before_when_the_run_is_over(xp):
    model = network("float16", place(xp))
    optimizer = optim.SGD(model.parameters(), 0.05)
    fit(model, tiny(8), epochs=1, batch_size=8, optimizer=optimizer)
    assert backend.to_cpu(optimizer.control)[1:3].tolist() == [1, 0]


def test_a_loss_that_stays_nan_ends_the_run(xp):
    """Where no scale helps, it is not the scale."""
    model = network("float16", place(xp))
    model[5].weight.data[...] = np.nan
    optimizer = optim.SGD(model.parameters(), 0.05)
    with pytest.raises(FloatingPointError, match=r"gradients are not finite, even with a loss "
                                                 r"scale of 3.1e-05, in epoch 11, step 1 of 3"):
        fit(model, tiny(6), epochs=20, batch_size=2, optimizer=optimizer)


@pytest.mark.parametrize("scale, message", [
    (1024, "the loss is nan in epoch 1, step 1 of 3"), (1, "the loss is nan in epoch 1, step 1")])
def test_or_a_fixed_one(scale, message):
    model = network("float16")
    model[5].weight.data[...] = np.nan
    with pytest.raises(FloatingPointError, match=message):
        fit(model, tiny(24), epochs=1, batch_size=8, loss_scale=scale,
            optimizer=optim.SGD(model.parameters(), 0.05))


def test_what_is_scaled_by_default():
    for dtype in ("float32", "bfloat16", "float16"):
        seen = []

        class Look(Callback):
            def on_step(self, run, seen=seen):
                seen.append(run.scale)

        model = network(dtype)
        fit(model, tiny(8), epochs=1, batch_size=8, callbacks=[Look()],
            optimizer=optim.SGD(model.parameters(), 0.05))
        assert (seen[0] is not None) == (dtype == "float16")


@pytest.mark.parametrize("scale, message", [
    ("static", "loss_scale 'static', wanted 'dynamic' or a number"),
    (3, "scale is 3.0, wanted 'dynamic' or a power of two"),
    (0, "scale is 0.0, wanted 'dynamic' or a power")])
def test_refuses(scale, message):
    model = network("float32")
    with pytest.raises(ValueError, match=message):
        fit(model, tiny(8), epochs=1, batch_size=8, loss_scale=scale,
            optimizer=optim.SGD(model.parameters(), 0.05))
    with pytest.raises(ValueError, match="loss_scale .*, wanted 'dynamic' or a power of two"):
        Settings(loss_scale=scale)


def test_settings_of_an_older_run_mean_what_they_meant():
    old = dataclasses.asdict(Settings(lr=0.1))
    del old["loss_scale"], old["master_weights"]
    assert Settings.from_dict(json.loads(json.dumps(old))) == Settings(lr=0.1, loss_scale=1.0,
                                                                master_weights=False)
    assert Settings.from_dict(dataclasses.asdict(Settings(lr=0.1))) == Settings(lr=0.1)


@pytest.mark.parametrize("dtype, change, masters", [
    ("float16", {}, True), ("bfloat16", {}, True), ("float32", {}, False),
    ("float16", dict(master_weights=False), False)])
def test_settings_make_masters_of_16_bit_weights(dtype, change, masters):
    for kind in ("sgd", "adamw"):
        model = network(dtype)
        arguments = Settings(epochs=1, optimizer=kind, **change).fit_arguments(model)
        fit(model, tiny(8), **arguments)
        state = arguments["optimizer"].state_dict()
        assert any(name.startswith("master") for name in state) == masters


def test_the_command_line(tmp_path):
    from cli_tools import SMALL, gpuconv
    done = gpuconv(*SMALL, "--epochs", 1, "--run", tmp_path / "run", "--dtype", "float16",
                   "--loss-scale", 2.0**40, "--no-master-weights")
    assert done.returncode == 1 and "had finite gradients" in done.stderr
    done = gpuconv(*SMALL, "--epochs", 1, "--run", tmp_path / "other", "--dtype", "float16",
                   "--loss-scale", "dynamic")
    assert done.returncode == 0, done.stderr
    config = runs.RunFolder(tmp_path / "other").config()
    assert config.settings.loss_scale == "dynamic" and config.settings.master_weights
    state, _ = gpc.load(train.newest(tmp_path / "other" / "checkpoints"))
    assert {state[name].dtype.name for name in ("scale/scale", "optimizer/master.0")} == {"float32"}
