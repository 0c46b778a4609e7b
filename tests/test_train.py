import gc
import math
import weakref

import numpy as np
import pytest

from check import DTYPES, make
from gpuconv import nn, optim, random, train
from gpuconv.data import Augment, Dataset, Loader
from gpuconv.ops import softmax_cross_entropy
from gpuconv.train import Callback, evaluate, fit
from gpuconv.train.measure import Tally


def tiny(n=24, seed=0, name="tiny"):
    """Three classes of 4x4 grey images, told apart by which row is bright."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3).astype(np.int32)
    images = rng.integers(0, 100, (n, 4, 4, 1), dtype=np.uint8)
    images[np.arange(n), labels] += np.uint8(120)
    return Dataset(images, labels, ("top", "middle", "low"), name)


def network(dtype="float32", device="cpu", dropout=False):
    random.seed(1)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    layers += [nn.Dropout(0.3)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(64, 3)).to(device, dtype)


def sgd(model, lr=0.05, **more):
    return optim.SGD(model.parameters(), lr=lr, momentum=0.9, **more)


def run(model, data=None, **more):
    settings = dict(epochs=3, batch_size=8) | more
    if "optimizer" not in settings:
        settings["optimizer"] = sgd(model)
    return fit(model, tiny() if data is None else data, **settings)


def place(xp):
    return "cpu" if xp is np else "cuda"


def weights(model):
    return {name: a.copy() if isinstance(a, np.ndarray) else a.get()
            for name, a in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


# -- what it learns ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_falls(xp, dtype):
    history = run(network(dtype, place(xp)), test=tiny(12, seed=5), epochs=6)
    losses = [row.train.loss for row in history.rows]
    assert losses[-1] < losses[0] / 2
    assert history.last.test.accuracy == 1


def test_same_seed_same_bits(xp):
    ends = []
    for seed in (3, 3, 4):
        model = network(device=place(xp), dropout=True)
        history = run(model, augment=Augment(pad=1), seed=seed, test=tiny(9, seed=5))
        ends.append((weights(model), [(r.train, r.test) for r in history.rows]))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    assert not same(ends[0][0], ends[2][0])


def test_the_gpu_trains_like_the_cpu(cp):
    """The same order, the same augmentation, and so the same losses, up to rounding."""
    losses = [[row.train.loss for row in run(network(device=device), augment=Augment(pad=1)).rows]
              for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_one_step_is_what_it_says():
    model, twin = network(), network()
    data = tiny(8)
    run(model, data, epochs=1, optimizer=sgd(model, lr=0.1))
    optimizer = sgd(twin, lr=0.1)
    (x, labels), = Loader(data, 8).epoch(0)
    loss = softmax_cross_entropy(twin(x), labels)
    loss.backward()
    optimizer.step()
    assert same(weights(model), weights(twin))


def test_label_smoothing_is_for_training_alone():
    def once(smoothing):
        model = network()
        return run(model, test=tiny(9), epochs=1, batch_size=24, label_smoothing=smoothing,
                   optimizer=sgd(model, lr=0.0)).last

    plain, smooth = once(0.0), once(0.5)
    assert plain.train.loss != smooth.train.loss
    assert plain.test == smooth.test


def test_dropout_draws_anew_in_each_step():
    model, seen = network(dropout=True), []

    class Watch(Callback):
        def on_step(self, run):
            seen.append((run.model[4].key, run.model[4].step))

    run(model, epochs=2, callbacks=[Watch()], seed=9)
    assert len(set(seen)) == len(seen) == 6


# -- schedule ------------------------------------------------------------------------------


def test_the_schedule_drives_the_learning_rate():
    asked, rates = [], []

    def schedule(step, total):
        asked.append((step, total))
        return 1 / (1 + step)

    class Watch(Callback):
        def on_step(self, run):
            rates.append(run.lr)

    history = run(network(), epochs=2, schedule=schedule, callbacks=[Watch()])
    assert asked == [(step, 6) for step in range(6)]
    assert rates == [0.05 * (1 / (1 + step)) for step in range(6)]
    assert [row.lr for row in history.rows] == [rates[2], rates[5]]


def test_a_factor_of_zero_changes_nothing():
    model = network()
    before = weights(model)
    run(model, schedule=lambda step, total: 0.0)
    assert all((weights(model)[k] == before[k]).all() for k in before if "weight" in k)


# -- evaluate ------------------------------------------------------------------------------


def test_evaluate_is_a_count(xp):
    model, data = network(device=place(xp)), tiny(20)
    run(model, data, epochs=1)
    got = evaluate(model, data, batch_size=7)
    x = (data.images / 255 - data.mean) / data.std
    logits = network().eval()
    logits.load_state_dict(weights(model))
    z = logits(x.astype("float32")).numpy()
    loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(20), data.labels]
    assert got.count == 20 and got.accuracy == np.mean(z.argmax(axis=1) == data.labels)
    assert got.loss == pytest.approx(loss.mean(), rel=1e-5)


def test_evaluate_changes_nothing():
    model = network(dropout=True)
    model[1].eval()
    before = weights(model), [m.training for m in model.modules()]
    assert evaluate(model, tiny()) == evaluate(model, tiny(), batch_size=24)
    assert same(before[0], weights(model)) and before[1] == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def test_evaluate_restores_the_mode_after_an_error():
    model = network()
    with pytest.raises(ValueError, match="channels"):
        evaluate(model, (np.zeros((2, 4, 4, 3), "uint8") + np.arange(3, dtype="uint8"), [0, 1]),
                 mean=np.zeros(3), std=np.ones(3))
    assert all(m.training for m in model.modules())


def test_the_test_set_is_not_augmented_and_gets_the_training_mean(monkeypatch):
    made = []

    def loader(data, batch_size, **settings):
        made.append((data.name, settings))
        return Loader(data, batch_size, **settings)

    monkeypatch.setattr("gpuconv.data.batches.Loader", loader)
    data, trial = tiny(), tiny(9, seed=5, name="trial")
    run(network(), data, test=trial, epochs=1, augment=Augment(pad=1))
    (_, first), (name, second) = made
    assert first["augment"] == Augment(pad=1) and first["shuffle"]
    assert name == "trial" and second["augment"] is None and not second["shuffle"]
    assert (second["mean"] == data.mean).all() and (second["std"] == data.std).all()
    assert (data.mean != trial.mean).any()


# -- plain arrays --------------------------------------------------------------------------


def test_float_images_are_used_as_they_are(xp):
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x.numpy())
            return x

    model = nn.Sequential(Look(), nn.Flatten(), nn.Linear(16, 3)).to(place(xp))
    x = np.random.default_rng(0).standard_normal((9, 4, 4, 1), "float32")
    labels = np.arange(9) % 3
    fit(model, (x, labels), test=(x, labels.tolist()), epochs=2, batch_size=4,
        optimizer=sgd(model), eager=True)  # a layer looks
    (first, second), whole = (np.concatenate(seen[a:b]) for a, b in ((0, 3), (6, 9))), x
    assert [len(part) for part in seen] == 4 * [4, 4, 1]
    assert sorted(first.ravel()) == sorted(second.ravel()) == sorted(whole.ravel())
    assert (first != second).any()  # shuffled, epoch by epoch
    assert (np.concatenate(seen[3:6]) == whole).all()  # the test set is not


def test_a_pair_of_bytes_is_a_data_set():
    data = tiny()
    a, b = network(), network()
    run(a, data)
    run(b, (data.images, data.labels.astype(np.int64)))
    assert same(weights(a), weights(b))


# -- callbacks, mode, history --------------------------------------------------------------


class Diary(Callback):
    def __init__(self, lines):
        self.lines = lines

    def on_fit_start(self, run):
        self.lines.append("start")

    def on_step(self, run):
        self.lines.append((run.epoch, run.step))

    def on_test_start(self, run):
        self.lines.append("test")

    def on_epoch_end(self, run):
        self.lines.append(len(run.history.rows))

    def on_fit_end(self, run):
        self.lines.append("end")


def test_callbacks_are_called_in_order():
    lines = []
    run(network(), test=tiny(3), epochs=2, batch_size=12, callbacks=[Diary(lines)])
    assert lines == ["start", (1, 1), (1, 2), "test", 1, (2, 1), (2, 2), "test", 2, "end"]


def test_a_callback_sees_how_it_goes(xp):
    rows = []

    class Watch(Callback):
        def on_step(self, run):
            rows.append((run.loss, run.accuracy, run.images_per_second))

    history = run(network(device=place(xp)), epochs=1, callbacks=[Watch()])
    last = history.last
    assert rows[-1] == (last.train.loss, last.train.accuracy, last.images_per_second)
    assert last.train.count == 24 and last.test is None and last.seconds > 0
    assert math.isnan(rows[0][0]) == (xp is not np)  # on a GPU nobody waits for the first step


def test_a_callback_may_end_the_run():
    """After the epoch; or at once, and then the epoch has not been."""
    class Stop(Callback):
        def __init__(self, step):
            self.step, self.steps = step, 0

        def on_step(self, run):
            self.steps += 1
            run.stop = run.step == self.step and run.epoch == 2

        def on_epoch_end(self, run):
            run.stop = run.epoch == 2

    for step, rows, steps in ((None, 2, 6), (2, 1, 5)):
        stop = Stop(step)
        assert len(run(network(), epochs=5, callbacks=[stop]).rows) == rows
        assert stop.steps == steps


def test_losses_add_up_alike_whenever_they_are_read():
    losses = np.random.default_rng(0).random(30, "float32").astype(object)
    sums = []
    for every in (1, 7, 30):
        tally = Tally()
        for n, loss in enumerate(losses, 1):
            tally.add(np.zeros((3, 2), "float32"), np.float32(loss)[()] * np.ones((), "float32"),
                      np.zeros(3, "int32"))
            if n % every == 0:
                tally.read()
        tally.read()
        sums.append(tally.as_dict())
    assert sums[0] == sums[1] == sums[2] and sums[0]["count"] == 90


def test_clip_norm_limits_what_a_step_does():
    def moved(clip_norm):
        model = network()
        before = weights(model)
        run(model, tiny(8), epochs=1, optimizer=optim.SGD(model.parameters(), lr=1.0),
            clip_norm=clip_norm)
        after = weights(model)
        names = [name for name, _ in model.named_parameters()]
        return math.sqrt(sum(((after[n] - before[n]).astype(float) ** 2).sum() for n in names))

    assert moved(None) == moved(1e6) > 0.2
    assert 0.05 * 0.99 < moved(0.05) < 0.05 * 1.01


def test_averages_are_tested_and_kept():
    model, twin = network(), network()
    tested = []

    class Watch(Callback):
        def on_epoch_end(self, run):
            tested.append(run.history.last.test.loss)

    ema = optim.EMA(model, 0.5)
    run(model, test=tiny(9, seed=5), epochs=2, ema=ema, callbacks=[Watch()])
    run(twin, epochs=2)
    kept, own = weights(model), weights(twin)
    assert not same(kept, own)  # the averages, not the weights of the last step
    assert evaluate(model, tiny(9, seed=5), mean=tiny().mean, std=tiny().std,
                    batch_size=8).loss == tested[-1]
    assert all(np.array_equal(ema.averages[name], kept[name]) for name in kept)


def test_the_end_is_told_even_after_an_error():
    lines = []

    class Break(Callback):
        def on_step(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network(), callbacks=[Diary(lines), Break()])
    assert lines == ["start", (1, 1), "end"]


def test_each_module_is_back_in_its_mode():
    model = network()
    model[1].eval()
    modes = []

    class Watch(Callback):
        def on_step(self, run):
            modes.append(all(m.training for m in run.model.modules()))

    run(model, callbacks=[Watch()], test=tiny(3))
    assert all(modes) and not model[1].training and model[0].training
    model.eval()
    with pytest.raises(FloatingPointError):
        model[0].weight.data[...] = np.nan
        fit(model, tiny(), epochs=1, batch_size=8, optimizer=sgd(network_of(model)))
    assert not any(m.training for m in model.modules())


def network_of(model):
    """The model, its parameters free for another optimiser."""
    for p in model.parameters():
        p.rebind(p.data.copy(), None)
    return model


def test_history_is_a_table():
    history = run(network(), epochs=2, test=tiny(3))
    lines = str(history).splitlines()
    assert lines[0].split()[:3] == ["epoch", "loss", "accuracy"] and len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match="no epoch has ended"):
        _ = train.History().last


def test_nothing_of_a_step_stays_alive():
    inputs = []

    class Watch(nn.Module):
        def forward(self, x):
            inputs.append(weakref.ref(x))
            return x

    model = nn.Sequential(Watch(), *network())
    gc.collect()
    gc.disable()
    try:
        run(model, epochs=2, test=tiny(9))
        assert len(inputs) > 6 and not any(ref() for ref in inputs)
    finally:
        gc.enable()


# -- refusals ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run(xp):
    model = network(device=place(xp))
    lines = []
    with pytest.raises(FloatingPointError,
                       match=r"the loss is (nan|inf) in epoch 1, step \d of 3; the learning rate "
                             r"was 1e\+30: a smaller one may help"), np.errstate(all="ignore"):
        run(model, optimizer=sgd(model, lr=1e30), callbacks=[Diary(lines)])
    assert lines[-1] == "end"


def test_a_test_loss_that_is_nan_ends_it_too():
    """The last step may spoil weights that no step looks at any more."""
    model = network()
    with pytest.raises(FloatingPointError, match="the test loss is nan after epoch 1; the learning "
                                                 "rate was 1e.30: a smaller one may help"), \
            np.errstate(all="ignore"):
        fit(model, tiny(), test=tiny(9), epochs=1, batch_size=len(tiny()),
            optimizer=sgd(model, lr=1e30))


def test_the_step_of_a_nan_is_named(xp):
    data = tiny()
    x = make((data.images / 255), "float32")
    order = Loader(data, 8).order(0)
    x[int(order[17])] = np.nan  # in the third batch
    model = network(device=place(xp))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 3 of 3"):
        run(model, (x, data.labels))


def test_a_label_without_a_logit_is_refused(xp):
    model = network(device=place(xp))
    with pytest.raises(ValueError, match=r"label 3 is outside 0\.\.2"):
        run(model, (tiny().images, np.arange(24) % 4))
    with pytest.raises(ValueError, match=r"label 9 is outside 0\.\.2"):
        evaluate(model, (tiny(3).images, [0, 1, 9]))


BYTES = np.zeros((4, 4, 4, 1), "uint8")


@pytest.mark.parametrize("error, text, change", [
    (ValueError, "epochs is 0, wanted at least 1", dict(epochs=0)),
    (ValueError, "batch_size is -2, wanted at least 1", dict(batch_size=-2)),
    (TypeError, "epochs is 1.5, wanted a whole number", dict(epochs=1.5)),
    (ValueError, "seed -1", dict(seed=-1)),
    (ValueError, "label_smoothing is 2, wanted 0..1", dict(label_smoothing=2)),
    (ValueError, "fit: train: no images", dict(data=tiny()[:0])),
    (ValueError, "fit: test: no images", dict(test=tiny()[:0])),
    (ValueError, r"images have shape \(4, 4, 4\), wanted \(N, H, W, C\)",
     dict(data=(BYTES[..., 0], [0, 1, 2, 0]))),
    (ValueError, r"labels \(3,\), wanted \(4,\)", dict(data=(BYTES, [0, 1, 2]))),
    (ValueError, "label -1 is no class", dict(data=(BYTES, [0, 1, 2, -1]))),
    (TypeError, "labels are float64", dict(data=(BYTES, [0.0, 1, 2, 0]))),
    (TypeError, "images are int64, wanted uint8 or float32",
     dict(data=(BYTES.astype(int), [0, 1, 2, 0]))),
    (TypeError, "images are float64, the model is float32",
     dict(data=(BYTES.astype(float), [0, 1, 2, 0]))),
    (TypeError, "data is ndarray, wanted a Dataset or a pair", dict(data=BYTES)),
    (ValueError, "augment wants uint8 images, train is float32",
     dict(data=(BYTES.astype("float32"), [0, 1, 2, 0]), augment=Augment())),
    (TypeError, "train is uint8, test float32",
     dict(test=(BYTES.astype("float32"), [0, 1, 2, 0]))),
    (ValueError, r"images of train are \(4, 4, 1\), of test \(5, 4, 1\)",
     dict(test=(np.zeros((3, 5, 4, 1), "uint8"), [0, 1, 2]))),
    (ValueError, "x has 3 channels, w wants 1",
     dict(data=Dataset(np.tile(tiny().images, 3), tiny().labels, tiny().classes, "rgb"))),
    (ValueError, "clip_norm is 0, wanted more than 0", dict(clip_norm=0)),
    (TypeError, "fit: ema is float, wanted an EMA", dict(ema=0.9)),
    (TypeError, "callback 0 is .*, wanted a Callback", dict(callbacks=[print])),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refuses(error, text, change):
    model = network()
    before = weights(model)
    with pytest.raises(error, match=text):
        run(model, **change)
    assert same(weights(model), before)


def test_refuses_the_optimizer_of_another_model():
    with pytest.raises(ValueError, match="optimizer holds no parameter of the model"):
        run(network(), optimizer=sgd(network()))


def test_evaluate_refuses():
    with pytest.raises(ValueError, match="evaluate: batch_size is 0"):
        evaluate(network(), tiny(), batch_size=0)
    with pytest.raises(ValueError, match="evaluate: no images"):
        evaluate(network(), tiny()[:0])
