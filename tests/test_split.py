"""split: the same share of each class, by a seed and the items themselves, the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuconv.data.split import split, split_by_position

NAMES = tuple("abcdefgh")


def by_name(labels, classes, share, seed, where=""):
    """The split of images that are called by their numbers."""
    items = [f"{number}.png".encode() for number in range(len(labels))]
    return split(np.asarray(labels), items, classes, share, seed, where)


BOTH = pytest.mark.parametrize("made", [by_name, split_by_position])


@BOTH
@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(2, 60), min_size=2, max_size=8), share=st.floats(0.01, 0.99),
       seed=st.integers(0, 2**32 - 1), mix=st.randoms(use_true_random=False))
def test_every_image_once_and_the_share_of_each_class(made, counts, share, seed, mix):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    mix.shuffle(labels)
    labels = np.array(labels, np.int32)
    train, test = made(labels, NAMES[: len(counts)], share, seed)
    assert train.dtype == test.dtype == np.int32
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        tested = int((labels[test] == label).sum())
        assert 1 <= tested <= count - 1
        assert abs(tested - count * share) <= 1 or tested in (1, count - 1)


# -- items come and go -----------------------------------------------------------------------------


def drawn(classes, share, seed, mix):
    """{(class, item)} of the test set, whatever the order in which the items stand."""
    both = [(label, item) for label, items in enumerate(classes) for item in items]
    mix.shuffle(both)
    labels = np.array([label for label, _ in both])
    _, test = split(labels, [item for _, item in both], NAMES[: len(classes)], share, seed)
    return {both[i] for i in test}


@settings(deadline=None, max_examples=80)
@given(classes=st.lists(st.sets(st.binary(max_size=6), min_size=3, max_size=40), min_size=2,
                        max_size=3),
       share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1), data=st.data(),
       mix=st.randoms(use_true_random=False))
def test_one_item_that_comes_goes_or_is_renamed_moves_at_most_one_other(classes, share, seed, data,
                                                                        mix):
    gone = data.draw(st.sampled_from(sorted(classes[0])))
    come = data.draw(st.binary(max_size=6).filter(lambda item: item not in classes[0]))
    before = drawn(classes, share, seed, mix)
    for first in (classes[0] - {gone}, classes[0] | {come}, classes[0] - {gone} | {come}):
        moved = drawn([first, *classes[1:]], share, seed, mix) ^ before
        assert len(moved - {(0, gone), (0, come)}) <= 1
        assert all(label == 0 for label, _ in moved)


def test_a_class_is_split_by_its_own_items_alone():
    """A new class, or another number of one, changes nothing for the others."""
    items = [f"{i}.png".encode() for i in range(30)]
    alone = split(np.zeros(30, int), items, ("a",), 0.2, 5)[1]
    labels = np.repeat([1, 0], 30)
    both = split(labels, items * 2, ("new", "a"), 0.2, 5)[1]
    assert sorted(i for i in both if labels[i] == 1) == sorted(alone)


def test_which_of_equal_items_is_tested_is_a_matter_of_their_order():
    train, test = split(np.zeros(10, int), [b"same"] * 10, ("a",), 0.3, 0)
    assert sorted(test) == [0, 1, 2] and sorted(train) == list(range(3, 10))


# -- the same everywhere ---------------------------------------------------------------------------


def test_the_same_bits_everywhere():
    """Written down once: a run that resumes must find its images where they were."""
    labels = np.arange(12, dtype=np.int32) % 2
    train, test = split_by_position(labels, ("a", "b"), 0.25, 3)
    assert (train.tolist(), test.tolist()) == (
        [11, 10, 0, 4, 7, 3, 8, 9], [6, 2, 5, 1])
    train, test = by_name(labels, ("a", "b"), 0.25, 3)
    assert (train.tolist(), test.tolist()) == ([8, 7, 0, 2, 3, 1, 4, 5], [11, 9, 10, 6])


def test_the_ranks_are_keyed_hashes():
    """Against the definition, spelled out."""
    from hashlib import blake2b
    items = [f"{i}.png".encode() for i in range(50)]
    ranked = sorted(items, key=lambda item: blake2b(item, digest_size=16,
                                                    key=b"\7\0\0\0").digest())
    _, test = split(np.zeros(50, int), items, ("a",), 0.2, 7)
    assert {items[i] for i in test} == set(ranked[:10])


@BOTH
def test_the_seed_matters(made):
    labels = np.arange(100) % 2
    parts = [tuple(sorted(made(labels, ("a", "b"), 0.2, seed)[1])) for seed in range(20)]
    assert len(set(parts)) == 20


@BOTH
def test_the_first_images_are_of_all_classes(made):
    train, test = made(np.arange(1000) // 100, [*NAMES, "i", "j"], 0.3, 0)
    assert len(set(train[:100] // 100)) == len(set(test[:100] // 100)) == 10


@BOTH
def test_each_image_is_tested_as_often_as_any_other(made):
    """Over 400 seeds, 5 of 20 images: 100 times each, to five standard deviations."""
    labels = np.arange(40) // 20
    times = sum(np.bincount(made(labels, ("a", "b"), 0.25, seed)[1], minlength=40)
                for seed in range(400))
    assert abs(times - 100).max() < 5 * (400 * 0.25 * 0.75) ** 0.5


# -- refusals --------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("labels, share, message", [
    ([0, 0, 1], 0.5, "class dog has a single image, wanted at least two"),
    ([0, 0, 0], 0.5, "class dog has no image"),
    ([0, 0, 1, 1], 0.0, "data: test_share is 0.0, wanted more than 0 and less than 1"),
    ([0, 0, 1, 1], 1.0, "test_share is 1.0"),
    ([0, 0, 1, 1], float("nan"), "test_share is nan, wanted a finite number")])
def test_refusals(made, labels, share, message):
    with pytest.raises(ValueError, match=message):
        made(np.array(labels), ("cat", "dog"), share, 0)


@BOTH
def test_a_refusal_says_where(made):
    with pytest.raises(ValueError, match="^pets: class dog has no image"):
        made(np.array([0, 0]), ("cat", "dog"), 0.5, 0, "pets: ")


@BOTH
def test_a_seed_out_of_range(made):
    with pytest.raises(ValueError, match=r"seed -1 is outside 0\.\."):
        made(np.array([0, 0, 1, 1]), ("cat", "dog"), 0.5, -1)
