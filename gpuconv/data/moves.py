"""How images are moved: mirrored and shifted, at random to train with, or all alike.

Random ones are functions of (key, image, epoch), words of Philox at (image, 0, epoch): the same in
whichever batch an image comes, and on either device (see kernels/data/augment.cu).
"""

import dataclasses
import operator

import numpy as np

from gpuconv import random
from gpuconv.checks import check_choice, check_count

FLIPS = False, True, "alternate"  # in the order of augment.cu
PAD = 2**30                       # pixels, at most: 2 * pad + 1 fits an int of augment.cu
ALWAYS = len(FLIPS)               # mirrored, all images


@dataclasses.dataclass(frozen=True)
class Augment:
    """What may happen to a training image.

    Args:
        flip: mirror left and right: each image at random in each epoch; or with "alternate" each in
            every other epoch, half of the images beginning in the first: so two epochs show every
            image both ways.
        pad: pixels that the crop may move by, in each direction; 0 for no crop.
        padding_mode: what lies outside the image: "zeros" (black) or "reflect".

    Raises:
        ValueError: pad is negative, or flip or padding_mode something else.

    >>> Augment(pad=2)
    Augment(flip=True, pad=2, padding_mode='zeros')

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6
    (alternating flip).
    """

    flip: bool | str = True
    pad: int = 4
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        check_count("Augment", "pad", self.pad, 0, PAD)
        check_choice("Augment", "flip", self.flip, FLIPS)
        check_choice("Augment", "padding_mode", self.padding_mode, ("zeros", "reflect"))


@dataclasses.dataclass(frozen=True)
class Move:
    """One move, of all images.

    Args:
        down, right: pixel (h, w) becomes what was at (h + down, w + right).
        mirror: left and right, after that?
        padding_mode: what lies outside the image: "zeros" (black) or "reflect".
    """

    down: int = 0
    right: int = 0
    mirror: bool = False
    padding_mode: str = "reflect"

    @property
    def pad(self) -> int:
        """Pixels that it may need beyond the image."""
        return max(abs(self.down), abs(self.right))


NOTHING = Augment(flip=False, pad=0)


def numbers(augment: Augment | Move) -> tuple[int, int, int, int]:
    """What augment.cu is told: how far at random, when to mirror, and how far down and right."""
    if isinstance(augment, Move):
        return 0, ALWAYS if augment.mirror else 0, augment.down, augment.right
    return augment.pad, FLIPS.index(augment.flip), 0, 0


def moves(index: np.ndarray, key: tuple[int, int], epoch: int,
          augment: Augment | Move) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How images ``index`` are moved in ``epoch``: rows and columns down and right, and mirrored.

    Returns:
        (oh, ow, flip): (B,) int32 in -pad .. pad, twice; (B,) bool.
    """
    if isinstance(augment, Move):
        oh, ow = (np.full(len(index), by, np.int32) for by in (augment.down, augment.right))
        return oh, ow, np.full(len(index), augment.mirror)
    step = operator.index(epoch)
    word = random.philox((index, 0, step & random.LOW, step >> 32), key)
    reach = np.uint64(2 * augment.pad + 1)
    oh, ow = ((w * reach >> np.uint64(32)).astype(np.int32) - np.int32(augment.pad)
              for w in word[:2])
    if augment.flip == "alternate":
        first = random.philox((index, 0, 0, 0), key)[2]
        return oh, ow, (first >> np.uint64(31)).astype(bool) ^ bool(step % 2)
    return oh, ow, (word[2] >> np.uint64(31)).astype(bool) & augment.flip
