"""split: the same share of each class, by a seed, the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuconv.data.split import split

NAMES = tuple("abcdefgh")


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(2, 60), min_size=2, max_size=8), share=st.floats(0.01, 0.99),
       seed=st.integers(0, 2**32 - 1), mix=st.randoms(use_true_random=False))
def test_every_image_once_and_the_share_of_each_class(counts, share, seed, mix):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    mix.shuffle(labels)
    labels = np.array(labels, np.int32)
    train, test = split(labels, NAMES[: len(counts)], share, seed)
    assert train.dtype == test.dtype == np.int32
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        tested = int((labels[test] == label).sum())
        assert 1 <= tested <= count - 1
        assert abs(tested - count * share) <= 1 or tested in (1, count - 1)


def test_the_same_bits_everywhere():
    """Written down once: a run that resumes must find its images where they were."""
    train, test = split(np.arange(12, dtype=np.int32) % 2, ("a", "b"), 0.25, 3)
    assert (train.tolist(), test.tolist()) == (
        [11, 10, 0, 4, 7, 3, 8, 9], [6, 2, 5, 1])


def test_the_seed_matters():
    labels = np.arange(100) % 2
    parts = [tuple(sorted(split(labels, ("a", "b"), 0.2, seed)[1])) for seed in range(20)]
    assert len(set(parts)) == 20


def test_the_first_images_are_of_all_classes():
    train, test = split(np.arange(1000) // 100, [*NAMES, "i", "j"], 0.3, 0)
    assert len(set(train[:100] // 100)) == len(set(test[:100] // 100)) == 10


def test_each_image_is_tested_as_often_as_any_other():
    """Over 400 seeds, 5 of 20 images: 100 times each, to five standard deviations."""
    labels = np.arange(40) // 20
    times = sum(np.bincount(split(labels, ("a", "b"), 0.25, seed)[1], minlength=40)
                for seed in range(400))
    assert abs(times - 100).max() < 5 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("labels, share, message", [
    ([0, 0, 1], 0.5, "class dog has a single image, wanted at least two"),
    ([0, 0, 0], 0.5, "class dog has no image"),
    ([0, 0, 1, 1], 0.0, "test share 0.0: wanted more than 0 and less than 1"),
    ([0, 0, 1, 1], 1.0, "test share 1.0"), ([0, 0, 1, 1], float("nan"), "test share nan")])
def test_refusals(labels, share, message):
    with pytest.raises(ValueError, match=message):
        split(np.array(labels), ("cat", "dog"), share, 0)


def test_a_refusal_says_where():
    with pytest.raises(ValueError, match="^pets: class dog has no image"):
        split(np.array([0, 0]), ("cat", "dog"), 0.5, 0, "pets: ")


def test_a_seed_out_of_range():
    with pytest.raises(ValueError, match=r"seed -1 is outside 0\.\."):
        split(np.array([0, 0, 1, 1]), ("cat", "dog"), 0.5, -1)
