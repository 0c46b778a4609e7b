"""shapes: a function of the seed, mirrored without harm, out of reach of a linear classifier."""

import hashlib

import numpy as np
import pytest
import scipy.linalg

from gpuconv.data import shapes
from gpuconv.data.shapes import CLASSES, SHAPES


@pytest.fixture(scope="module")
def sets():
    return shapes()


def test_what_it_holds(sets):
    train, test = sets
    assert train.images.shape == (10_000, 32, 32, 3) and test.images.shape == (2000, 32, 32, 3)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert np.bincount(train.labels).tolist() == [1000] * 10
    assert train.classes == test.classes == CLASSES and len(set(CLASSES)) == 10
    assert (train.name, test.name) == ("shapes train", "shapes test")
    assert train.images.flags.c_contiguous


def test_no_picture_comes_twice(sets):
    prints = {image.tobytes() for part in sets for image in part.images}
    assert len(prints) == 12_000


def test_these_are_the_bytes(sets):
    """Numbers measured on this set stay comparable: it is the same on every machine."""
    digest = hashlib.sha256(sets[0].images.tobytes() + sets[1].images.tobytes()).hexdigest()
    assert digest[:16] == "d3e4b164fca978df"


def test_fewer_are_the_first_of_more(sets):
    few = shapes(train=33, test=7)
    for part, whole in zip(few, sets, strict=True):
        np.testing.assert_array_equal(part.images, whole.images[: len(part)])
        np.testing.assert_array_equal(part.labels, whole.labels[: len(part)])


def test_a_function_of_the_seed():
    (a, _), (b, _), (c, _) = shapes(10, 0, seed=5), shapes(10, 0, seed=5), shapes(10, 0, seed=6)
    np.testing.assert_array_equal(a.images, b.images)
    assert not np.array_equal(a.images, c.images)


def test_none_at_all():
    train, test = shapes(0, 0)
    assert len(train) == len(test) == 0


@pytest.mark.parametrize("options, message", [
    (dict(train=-1), "shapes: train is -1, wanted at least 0"),
    (dict(test=-2), "shapes: test is -2, wanted at least 0"),
    (dict(seed=-1), "seed -1 is outside"), (dict(seed=2**32), "seed 4294967296 is outside")])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(**dict(train=10, test=10) | options)


# -- the shapes themselves -----------------------------------------------------------------

GRID = np.meshgrid(np.linspace(-2, 2, 801), np.linspace(-2, 2, 801))  # x, y; 0.005 apart


@pytest.mark.parametrize("shape", SHAPES, ids=CLASSES)
def test_a_mirror_changes_no_class(shape):
    x, y = GRID
    np.testing.assert_array_equal(shape(x, y), shape(-x, y))


@pytest.mark.parametrize("shape", SHAPES, ids=CLASSES)
def test_is_a_distance(shape):
    """One unit of way is one unit of distance, at the edge: edges are as soft as one pixel."""
    d = shape(*GRID)
    down, right = np.gradient(d, 0.005)
    steep = np.hypot(down, right)[abs(d) < 0.02]
    assert abs(np.median(steep) - 1) < 0.01 and np.quantile(steep, 0.9) < 1.01


@pytest.mark.parametrize("shape", SHAPES, ids=CLASSES)
def test_is_about_one_wide(shape):
    x, y = GRID
    inside = shape(x, y) < 0
    assert 0.8 < np.hypot(x, y)[inside].max() < 1.2
    assert 1.0 < inside.mean() * 16 < 2.7  # area, where the disc of radius 1 has 3.1


def test_every_shape_is_another():
    inside = np.array([shape(*GRID).ravel() < 0 for shape in SHAPES], float)
    both = inside @ inside.T
    either = inside.sum(1)[:, None] + inside.sum(1) - both
    assert (both / either - np.eye(10)).max() < 0.85


# -- how hard it is ------------------------------------------------------------------------


def test_a_linear_classifier_fails(sets):
    """Ridge regression on the pixels, solved exactly, with the strength that suits it best."""
    train, test = (np.c_[s.images.reshape(len(s), -1) / np.float32(255) - np.float32(0.5),
                         np.ones(len(s), "float32")] for s in sets)
    square, want = train.T @ train, train.T @ np.eye(10, dtype="float32")[sets[0].labels]
    right = []
    for strength in (10, 300, 10_000):
        w = scipy.linalg.solve(square + strength * np.eye(len(square), dtype="float32"), want,
                               assume_a="pos")
        right.append(np.mean((test @ w).argmax(1) == sets[1].labels))
    assert max(right) < 0.5, right
