"""A test set out of a training set: a share of each class, ranked by a hash of each image's name.

    rank(item) = BLAKE2b(item, key = seed); the lowest ranks of a class are its test images

An item is what identifies an image: its name in a folder, its pixels in an .npz file. The rank of
one item does not depend on the others. So inserting, deleting or renaming one item moves at most
one other item of its class between the two sets.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from gpuconv import random
from gpuconv.checks import check_number

SPLIT, ORDER = random.stream("split"), random.stream("order")


def split(labels: np.ndarray, items: Sequence[bytes], classes: Sequence[str], share: float,
          seed: int, where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Choose the same share of each class to test on, by the ranks of the items.

    The share is rounded to the nearest number of images, and leaves at least one image of each
    class in either set. Both sets are shuffled, so that their first images are of many classes.

    Args:
        labels: (N,) integers, 0 .. len(classes) - 1.
        items: N; what identifies each image. Equal items of a class rank in the order given.
        classes: name of each label.
        share: of the test set, more than 0 and less than 1.
        seed: 0 .. 2**32 - 1.
        where: beginning of a message about a class.

    Returns:
        (train, test): indices, (N_train,) and (N_test,) int32.

    Raises:
        ValueError: a class has fewer than two images, or share is out of range.

    >>> names = [f"{i}.png".encode() for i in range(12)]
    >>> train, test = split(np.array([0] * 8 + [1] * 4), names, ("cat", "dog"), 0.25, seed=0)
    >>> [sum(labels < 8).item() for labels in (train, test)], len(train), len(test)
    ([6, 2], 9, 3)
    """
    key = random.check_seed(seed, "data").to_bytes(4, "little")
    ranks = [hashlib.blake2b(item, key=key, digest_size=16).digest() for item in items]

    def ranked(mine: np.ndarray, label: int) -> np.ndarray:
        return np.array(sorted(mine.tolist(), key=ranks.__getitem__))  # stable

    return _divided(labels, classes, share, seed, where, ranked)


def split_by_position(labels: np.ndarray, classes: Sequence[str], share: float, seed: int,
                      where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Choose as runs did whose config.json has no ``split``: by the positions of the images.

    Kept so that those runs resume and are measured on the same images as before. A function of
    the labels only: one deleted image moves many others between the sets. Arguments, result and
    errors are those of ``split``.
    """
    def ranked(mine: np.ndarray, label: int) -> np.ndarray:
        return mine[random.permutation(len(mine), (seed, SPLIT), label)]

    random.check_seed(seed, "data")
    return _divided(labels, classes, share, seed, where, ranked)


def _divided(labels: np.ndarray, classes: Sequence[str], share: float, seed: int, where: str,
             ranked: Callable[[np.ndarray, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, test): of each class, ``ranked`` tells which indices come first."""
    check_number("data", "test_share", share, above=0, below=1)
    train, test = [], []
    for label, name in enumerate(classes):
        mine, = np.nonzero(labels == label)
        if len(mine) < 2:
            found = ("no image", "a single image")[len(mine)]
            raise ValueError(f"{where}class {name} has {found}, wanted at least "
                             "two: one to learn from, and one for the test")
        count = min(max(1, int(len(mine) * share + 0.5)), len(mine) - 1)
        first = ranked(mine, label)
        test.append(first[:count])
        train.append(first[count:])
    return mixed_up(np.concatenate(train), seed, 0), mixed_up(np.concatenate(test), seed, 1)


def mixed_up(indices: np.ndarray, seed: int, which: int) -> np.ndarray:
    """Return the indices of a set (0: training, 1: test) in random order, as int32."""
    order = random.permutation(len(indices), (seed, ORDER), which)
    return np.sort(indices)[order].astype(np.int32)
