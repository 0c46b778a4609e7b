"""What else fit can be told: sums of losses, whole batches, statistics, a look beforehand."""

import numpy as np
import pytest
from test_checkpoint import StopAt, told
from test_train import network, place, same, sgd, tiny, weights

from gpuconv import backend, files, nn, optim, train
from gpuconv.data import Augment, Loader
from gpuconv.data.augment import augment_batch
from gpuconv.train import Callback, Checkpoint, fit
from hostcuda import compiler, fake_cupy

captures = pytest.mark.skipif(backend._cupy is fake_cupy and not compiler(),
                              reason="neither a GPU nor g++")


def job(device="cpu", data=None, *, model=None, lr=0.0625, dtype="float32", momentum=0.9, **more):
    """(weights, rows): everything random in it."""
    model = network(dtype, device, dropout=True) if model is None else model
    settings = dict(epochs=3, batch_size=8, seed=3, test=None,
                    optimizer=optim.SGD(model.parameters(), lr, momentum)) | more
    if data is None:
        settings = dict(augment=Augment(pad=1)) | settings
    history = fit(model, tiny() if data is None else data, **settings)
    return weights(model), told(history)


def floats(n):
    x = np.random.default_rng(0).standard_normal((n, 4, 4, 1)).astype("float32")
    return x, np.arange(n) % 3


# -- sums ----------------------------------------------------------------------------------


def test_a_sum_is_a_mean_times_the_images(xp):
    """Of 8: a power of two, so that nothing is rounded otherwise."""
    mean = job(place(xp), eager=True)
    total = job(place(xp), eager=True, reduction="sum", lr=0.0625 / 8)
    assert same(mean[0], total[0])
    assert [row[1] for row in mean[1]] == [row[1] for row in total[1]]
    other = job(place(xp), reduction="sum")
    assert not same(mean[0], other[0])


@captures
@pytest.mark.parametrize("more", [dict(), dict(dtype="float16", loss_scale=2.0**10),
                                  dict(dtype="float16", loss_scale=1.0), dict(n=20)], ids=str)
def test_captured_sums_are_the_eager_ones(cp, more):
    more = dict(more)
    data = tiny(more.pop("n", 24))
    runs = [job("cuda", data, eager=eager, reduction="sum", lr=0.01, **more)
            for eager in (True, False)]
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


def test_losses_of_sums_are_means_per_image(xp):
    """A last batch of 4 weighs half of one of 8."""
    model, data = network(device=place(xp)), tiny(20)
    model.eval()
    still = dict(lr=0.0, momentum=0.0, epochs=1, batch_size=8, data=data)
    rows = [job(place(xp), model=network(device=place(xp)), reduction=how, **still)[1][0]
            for how in ("mean", "sum")]
    assert rows[0][1].count == 20
    assert rows[0][1].loss == pytest.approx(rows[1][1].loss, rel=1e-6)
    assert rows[0][1].accuracy == rows[1][1].accuracy


def test_half_precision_needs_no_scale_with_sums(xp):
    """The scale is 1, and no step looks for gradients that have overflowed."""
    seen = []

    class Watch(Callback):
        def on_step(self, run):
            seen.append((run.scale, run.dynamic))

    _, rows = job(model=network("float16", place(xp)), reduction="sum", loss_scale=1.0, lr=0.01,
                  callbacks=[Watch()], epochs=6, augment=None)
    assert set(seen) == {(None, False)}
    assert rows[-1][1].loss < rows[0][1].loss / 1.5


def test_sums_and_means_are_not_one_run(tmp_path):
    want = job(reduction="sum", lr=0.01)
    job(reduction="sum", lr=0.01, callbacks=[StopAt(4), Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match="is of another run: reduction was sum, is mean"):
        job(lr=0.01, resume=tmp_path)
    got = job(reduction="sum", lr=0.01, resume=tmp_path)
    assert same(got[0], want[0]) and got[1] == want[1]


# -- whole batches -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_the_rest_of_an_epoch_is_left_out(xp, kind, tmp_path):
    data, seen = tiny(22) if kind == "bytes" else floats(22), []

    class Watch(Callback):
        def on_step(self, run):
            seen.append((run.epoch, run.step, run.steps))

    want = job(place(xp), data, drop_last=True, callbacks=[Watch()], eager=True)
    assert seen == [(epoch, step, 2) for epoch in (1, 2, 3) for step in (1, 2)]
    assert [row[1].count for row in want[1]] == [16] * 3
    job(place(xp), data, drop_last=True, callbacks=[StopAt(3), Checkpoint(tmp_path)])
    got = job(place(xp), data, drop_last=True, resume=tmp_path)
    assert same(got[0], want[0]) and got[1] == want[1]
    with pytest.raises(ValueError, match="drop_last was True, is False"):
        job(place(xp), data, resume=tmp_path)


def test_whole_batches_are_those_of_the_others(xp):
    """In the same order, image by image."""
    seen = {}

    class Look(nn.Module):
        def forward(self, x):
            seen.setdefault(self.which, []).append(x.numpy())
            return x

    for which in (False, True):
        look = Look()
        look.which = which
        model = nn.Sequential(look, *network(device=place(xp)))
        job(place(xp), floats(20), model=model, drop_last=which, eager=True, epochs=2)
    every = [x for x in seen[False] if len(x) == 8]
    assert len(seen[True]) == len(every) == 4
    assert all((a == b).all() for a, b in zip(seen[True], every, strict=True))


@pytest.mark.parametrize("n, batch", [(7, 8), (3, 100)])
@pytest.mark.parametrize("data", [tiny, floats])
def test_no_whole_batch_is_refused(data, n, batch):
    with pytest.raises(ValueError, match=f"fit: {n} images make no batch of {batch}: drop_last"):
        job(data=data(n), batch_size=batch, drop_last=True)
    job(data=data(8), batch_size=8, drop_last=True, epochs=1)


# -- a look at the images ------------------------------------------------------------------


class Centred(nn.Sequential):
    """Takes away the mean of the images that it was prepared with."""

    def __init__(self, *modules):
        super().__init__(*modules)
        self.register_buffer("middle", np.zeros(1, "float32"))
        self.looked = []

    def prepare(self, images):
        self.looked.append(images)
        self[0].bias.data = self[0].bias.data * 0 + 7


def centred(device="cpu", dtype="float32"):
    return Centred(*network(dtype, device)).to(device, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_looks_at_the_first_images_before_the_first_step(xp, dtype, monkeypatch):
    monkeypatch.setattr("gpuconv.train.loop.PREPARED", 10)
    model, data, begun = centred(place(xp), dtype), tiny(), []

    class Watch(Callback):
        def on_fit_start(self, run):
            begun.append((len(model.looked), backend.to_cpu(model[0].bias.data).tolist()))

    fit(model, data, epochs=2, batch_size=8, optimizer=sgd(model), augment=Augment(pad=2),
        callbacks=[Watch()])
    assert begun == [(1, [7] * 4)]
    images, = model.looked
    assert isinstance(images, xp.ndarray) and images.dtype == dtype
    (want, _), = Loader(data[:10].to("cpu"), 10, shuffle=False, dtype=dtype, mean=data.mean,
                        std=data.std).epoch(0)
    np.testing.assert_array_equal(backend.to_cpu(images), want)


def test_of_few_images_all_and_of_floats_as_they_are(xp):
    for data, want in ((tiny(3), 3), (floats(20), 20)):
        model = centred(place(xp))
        fit(model, data, epochs=1, batch_size=8, optimizer=sgd(model), normalize=None)
        assert len(model.looked[0]) == want
    np.testing.assert_array_equal(backend.to_cpu(model.looked[0]), floats(20)[0])


def test_a_run_that_goes_on_does_not_look_again(tmp_path):
    whole = centred()
    fit(whole, tiny(), epochs=2, batch_size=8, optimizer=sgd(whole))
    model = centred()
    fit(model, tiny(), epochs=2, batch_size=8, optimizer=sgd(model),
        callbacks=[StopAt(4), Checkpoint(tmp_path)])
    again = centred()
    fit(again, tiny(), epochs=2, batch_size=8, optimizer=sgd(again), resume=tmp_path)
    assert len(whole.looked) == len(model.looked) == 1 and not again.looked
    assert same(weights(again), weights(whole))


def test_averages_begin_with_what_the_look_has_set(xp):
    model = centred(place(xp))
    ema = optim.EMA(model, 0.9)
    fit(model, tiny(), epochs=1, batch_size=8, ema=ema, optimizer=sgd(model, lr=0.0))
    assert backend.to_cpu(ema.averages["0.bias"]).tolist() == [7] * 4


# -- statistics ----------------------------------------------------------------------------

GIVEN = [0.25], [0.5]


def test_images_are_normalised_as_told(xp, tmp_path):
    model, data, trial = centred(place(xp)), tiny(), tiny(9, seed=5)
    history = fit(model, data, test=trial, epochs=1, batch_size=8, optimizer=sgd(model),
                  normalize=GIVEN, callbacks=[Checkpoint(tmp_path)])
    want = augment_batch(data.images, np.arange(24, dtype=np.int32), mean=[0.25], std=[0.5])
    np.testing.assert_array_equal(backend.to_cpu(model.looked[0]), want)
    for given, alike in ((GIVEN, True), (None, False)):
        mean, std = given or (None, None)
        measured = train.evaluate(model, trial, mean=mean, std=std, batch_size=8)
        assert (measured == history.last.test) == alike
    metadata = files.load(train.newest(tmp_path))[1]
    assert (metadata["mean"], metadata["std"]) == GIVEN


def test_the_datas_own_numbers_given_are_the_same_run():
    data = tiny()
    want = job(data=data)
    got = job(data=data, normalize=(data.mean, data.std))
    assert same(got[0], want[0]) and got[1] == want[1]


def test_other_statistics_are_another_run(tmp_path):
    want = job(normalize=GIVEN)
    job(normalize=np.array(GIVEN), callbacks=[StopAt(4), Checkpoint(tmp_path)])
    for normalize in (None, ([0.25], [0.75])):
        with pytest.raises(ValueError, match=r"normalize was \[\[0.25\], \[0.5\]\], is "):
            job(normalize=normalize, resume=tmp_path)
    got = job(normalize=GIVEN, resume=tmp_path)
    assert same(got[0], want[0]) and got[1] == want[1]


# -- older checkpoints, refusals -----------------------------------------------------------


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_a_run_of_an_older_version_goes_on(tmp_path, cut):
    """Which knew nothing of all this: neither its identity nor its optimiser."""
    want = job()
    job(callbacks=[StopAt(cut), Checkpoint(tmp_path)])
    path = train.newest(tmp_path)
    state, metadata = files.load(path)
    for name in ("reduction", "drop_last", "normalize"):
        del metadata["identity"][name]
    del metadata["identity"]["optimizer"][1]["stop"], state["optimizer/group.0.stop"]
    files.save(path, state, metadata)
    with pytest.raises(ValueError, match="reduction was mean, is sum; drop_last was False, is "
                                         "True; normalize was None, is "):
        job(resume=tmp_path, reduction="sum", drop_last=True, normalize=GIVEN)
    got = job(resume=tmp_path)
    assert same(got[0], want[0]) and got[1] == want[1]


@pytest.mark.parametrize("change, text", [
    (dict(reduction="none"), "fit: reduction is 'none', wanted 'mean' or 'sum'"),
    (dict(normalize=([0.5, 0.5], [1, 1])), r"fit: normalize: mean has shape \(2,\), wanted \(1,\)"),
    (dict(normalize=([0.5], [0])), "each more than 0"),
    (dict(normalize=([np.nan], [1])), r"fit: normalize: mean is \[nan\], wanted finite"),
    (dict(normalize=GIVEN, data=floats(9)), "fit: normalize wants uint8 images, train is float32"),
])
def test_refuses(change, text):
    with pytest.raises(ValueError, match=text):
        job(**change)
