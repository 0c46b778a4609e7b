"""A test set out of a training set: some images of each class, chosen by a seed."""

from collections.abc import Sequence

import numpy as np

from gpuconv import random

SPLIT, ORDER = random.stream("split"), random.stream("order")


def split(labels: np.ndarray, classes: Sequence[str], share: float, seed: int,
          where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Which images to learn from, and which to be tested on.

    Of each class the same share is for the test, to the nearest image and at least one on either
    side. Both parts come mixed, so that the first images of them are of many classes.

    Args:
        labels: (N,) integers, 0 .. len(classes) - 1.
        classes: name of each label.
        share: of the test, more than 0 and less than 1.
        seed: 0 .. 2**32 - 1; the result is a function of it and of the labels.
        where: what a message about a class begins with.

    Returns:
        (train, test): indices, (N_train,) and (N_test,) int32.

    Raises:
        ValueError: a class has fewer than two images, or share is no such number.

    >>> train, test = split(np.array([0] * 8 + [1] * 4), ("cat", "dog"), 0.25, seed=0)
    >>> [sum(labels < 8).item() for labels in (train, test)], len(train), len(test)
    ([6, 2], 9, 3)
    """
    if not 0 < share < 1:
        raise ValueError(f"test share {share}: wanted more than 0 and less than 1")
    random.check_seed(seed)
    train, test = [], []
    for label, name in enumerate(classes):
        mine, = np.nonzero(labels == label)
        if len(mine) < 2:
            found = ("no image", "a single image")[len(mine)]
            raise ValueError(f"{where}class {name} has {found}, wanted at least "
                             "two: one to learn from, and one for the test")
        count = min(max(1, int(len(mine) * share + 0.5)), len(mine) - 1)
        mixed = mine[random.permutation(len(mine), (seed, SPLIT), label)]
        test.append(mixed[:count])
        train.append(mixed[count:])
    return mixed_up(np.concatenate(train), seed, 0), mixed_up(np.concatenate(test), seed, 1)


def mixed_up(indices: np.ndarray, seed: int, which: int) -> np.ndarray:
    """The indices of a part (0 to learn from, 1 for the test) in random order, as int32."""
    order = random.permutation(len(indices), (seed, ORDER), which)
    return np.sort(indices)[order].astype(np.int32)
