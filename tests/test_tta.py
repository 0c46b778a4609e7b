"""Views: which there are, their moves and weights, the same on either device."""

import numpy as np
import pytest

from check import close
from gpuconv import nn, random, train
from gpuconv.data import Dataset
from gpuconv.train import VIEWS, predictions

STATISTICS = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])


def photographs(n=9):
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (n, 5, 6, 3), np.uint8), np.arange(n, dtype="int32") % 3,
                   ("a", "b", "c"), "noise")


def network(dtype="float32", device="cpu"):
    random.seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(),
                         nn.Linear(120, 3)).to(device, dtype)


def six_by_hand(images):
    """(images as seen, weight) of each view: pad, cut, mirror."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")  # (N, H + 2, W + 2, C)
    for seen, weight in ((images, 0.25), (wide[:, :-2, :-2], 0.125), (wide[:, 2:, 2:], 0.125)):
        yield seen, weight
        yield seen[:, :, ::-1], weight


def by_hand(views, images):
    if views == "six":
        return list(six_by_hand(images))
    both = [(images, 0.5), (images[:, :, ::-1], 0.5)]
    return both if views == "mirror" else [(images, 1.0)]


@pytest.mark.parametrize("views", VIEWS)
def test_logits_are_those_of_a_loop_over_views(xp, views):
    data, model = photographs(), network("float64")
    x = (data.images / 255 - STATISTICS["mean"]) / STATISTICS["std"]
    want = sum(weight * model.predict(np.ascontiguousarray(seen))
               for seen, weight in by_hand(views, x))
    found = predictions(network("float64", "cpu" if xp is np else "cuda"), data, batch_size=4,
                        views=views, **STATISTICS)
    close(found.logits, want, terms=1 << 8)
    assert (found.labels == data.labels).all()


def test_the_model_sees_bits_that_are_the_same_on_both_devices(cp):
    """What flattens an image shows it."""
    data = photographs()
    data = Dataset(data.images, data.labels, tuple(map(str, range(90))), "noise")
    seen = [predictions(nn.Flatten(), there, views="six", **STATISTICS).logits
            for there in (data, data.to("cuda"))]
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logits_of_16_bits_are_averaged_in_float32(xp, dtype):
    found = predictions(network(dtype, "cpu" if xp is np else "cuda"), photographs(), views="six")
    want = predictions(network(), photographs(), views="six")
    assert found.logits.dtype == np.float32
    np.testing.assert_allclose(found.logits, want.logits, atol=0.05)


def test_a_mirrored_set_gives_the_same_answers():
    data = photographs()
    mirrored = Dataset(data.images[:, :, ::-1], data.labels, data.classes, data.name)
    for views in ("mirror", "six"):
        one, two = (predictions(network("float64"), d, views=views, **STATISTICS).logits
                    for d in (data, mirrored))
        if views == "mirror":
            close(one, two, terms=1 << 8)
        else:  # one is shifted up and left, the other up and right
            assert not np.allclose(one, two)


@pytest.mark.parametrize("views, count", [("none", 1), ("mirror", 2), ("six", 6)])
def test_weights_add_up_to_one(views, count):
    assert len(VIEWS[views]) == count and sum(view.weight for view in VIEWS[views]) == 1


def test_without_views_it_is_what_the_model_answers():
    one, two = (predictions(network(), photographs(), **more) for more in ({}, {"views": "none"}))
    np.testing.assert_array_equal(one.logits, two.logits)
    found = train.evaluate(network(), photographs())
    assert found.loss == pytest.approx(one.loss, rel=1e-6)


def test_refuses():
    with pytest.raises(ValueError, match="views is 'ten', wanted 'none', 'mirror' or 'six'"):
        predictions(network(), photographs(), views="ten")
    tiny = Dataset(np.zeros((2, 1, 6, 3), np.uint8), np.int32([0, 1]), ("a", "b"), "tiny")
    with pytest.raises(ValueError, match="a reflection of 1 pixels does not fit images of"):
        predictions(nn.Flatten(), tiny, views="six", mean=[0] * 3, std=[1] * 3)
