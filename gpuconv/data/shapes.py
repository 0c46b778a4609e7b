"""Shapes: ten classes of little pictures, drawn from nothing but a seed.

A data set for a machine without one. Each picture shows one shape, of any position, size, angle
and colour, over a textured background, with a few scraps that are no shape, and noise:

    d(x, y)   signed distance to the shape's edge, in its own turned and scaled coordinates
    cover     clip(1/2 - d * radius, 0, 1), the part of a pixel that the shape covers
    canvas   += cover * (colour - canvas), layer after layer

No pixel means anything by itself, so a linear classifier fails, while a small ConvNet learns edges,
corners and holes within minutes. No class changes when a picture is mirrored.

Picture i is a function of (seed, split, i): asking for fewer gives the first of them. Everything is
computed by operations that IEEE 754 rounds in one way only (+ - * / sqrt), from Philox bits; so the
bytes are the same wherever NumPy runs.
"""

from collections.abc import Callable

import numpy as np

from gpuconv import random, threads
from gpuconv.checks import check_count
from gpuconv.data.dataset import Dataset
from gpuconv.free_memory import check_free_memory

SIZE = 32  # pixels, height and width
STREAM = random.stream("shapes")
NUMBERS = 64  # drawn per picture, apart from the noise

DIRECTIONS = np.exp(2j * np.pi * np.arange(1024) / 1024)
COS, SIN = (np.round(4096 * part).astype(np.float32) / np.float32(4096)  # whatever libm gives
            for part in (DIRECTIONS.real, DIRECTIONS.imag))


# -- the shapes: signed distance to the edge, about 1 from the middle to the far end -----------


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a disc."""
    return np.sqrt(x * x + y * y) - 0.9


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a disc with a hole."""
    return abs(np.sqrt(x * x + y * y) - 0.72) - 0.23


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a square."""
    return np.maximum(abs(x), abs(y)) - 0.8


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to an equilateral triangle."""
    return np.maximum(0.866 * abs(x) + 0.5 * y, -y) - 0.55


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a star; mirrored into half a point, whose edge is a line."""
    x = abs(x)
    for nx, ny in ((-0.30902, -0.95106), (0.80902, -0.58779)):  # at 108 and 36 degrees from a tip
        beyond = np.maximum(nx * x + ny * y, 0)
        x, y = x - 2 * nx * beyond, y - 2 * ny * beyond
    return 0.92962 * abs(x) + 0.36854 * (y - 1.1)


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to two crossed bars."""
    x, y = abs(x), abs(y)
    return np.minimum(np.maximum(x - 0.95, y - 0.3), np.maximum(x - 0.3, y - 0.95))


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to two discs with a wedge down to a tip at (0, -0.95)."""
    x = abs(x)
    dx, dy = x - 0.44, y - 0.32
    wedge = np.maximum(0.766 * x - 0.643 * (y + 0.95), y - 0.13)
    return np.minimum(wedge, np.sqrt(dx * dx + dy * dy) - 0.48)


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a disc without another disc."""
    xx, dy = x * x, y - 0.5
    return np.maximum(np.sqrt(xx + y * y) - 0.95, 0.78 - np.sqrt(xx + dy * dy))


def arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to a triangle on a shaft."""
    x = abs(x)
    head = np.maximum(0.743 * x + 0.669 * (y - 1), 0.1 - y)
    return np.minimum(head, np.maximum(x - 0.27, abs(y + 0.4) - 0.55))


def hourglass(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to two triangles that meet at their tips."""
    y = abs(y)
    return np.maximum(y - 0.85, 0.763 * (abs(x) - 0.08) - 0.646 * y)


Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
SHAPES: tuple[Shape, ...] = (
    circle, ring, square, triangle, star, cross, heart, crescent, arrow, hourglass)
CLASSES = tuple(shape.__name__ for shape in SHAPES)


# -- the set -----------------------------------------------------------------------------------


def shapes(train: int = 10_000, test: int = 2_000, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Draw a training set and a test set of synthetic pictures, 32x32 RGB, ten classes.

    Args:
        train: number of pictures to learn from; picture i is of class i % 10.
        test: number of pictures to be tested on.
        seed: 0 .. 2**32 - 1; both sets are functions of it.

    Returns:
        (train, test)

    Raises:
        ValueError: a negative number of pictures, or a seed out of range.

    >>> train, test = shapes(train=20, test=10)
    >>> train.images.shape, train.classes[train.labels[3]]
    ((20, 32, 32, 3), 'triangle')
    """
    for name, count in (("train", train), ("test", test)):
        check_count("shapes", name, count, least=0)
        check_free_memory(count * SIZE * SIZE * 3, f"shapes: {count:,} images")
    key = random.check_seed(seed, "shapes"), STREAM
    return _set(train, key, 0, "shapes train"), _set(test, key, 1, "shapes test")


def _set(count: int, key: tuple[int, int], split: int, name: str) -> Dataset:
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    indices = np.arange(count, dtype=np.uint64)
    for label, shape in enumerate(SHAPES):
        mine, out = indices[label :: len(SHAPES)], images[label :: len(SHAPES)]

        def draw(chunk: slice, shape: Shape = shape, mine: np.ndarray = mine,
                 out: np.ndarray = out) -> None:
            out[chunk] = _draw(shape, mine[chunk], key, split)

        threads.each(draw, threads.chunks(len(mine), 16 * SIZE * SIZE * 4))
    return Dataset(images, (indices % len(SHAPES)).astype(np.int32), CLASSES, name)


class _Numbers:
    """Random numbers of each picture, handed out one at a time as (n, 1, 1) float32."""

    def __init__(self, pictures: np.ndarray, key: tuple[int, int], split: int):
        self.next = 0
        self.words = _words(pictures, key, split, 0, NUMBERS)

    def between(self, low: float, high: float) -> np.ndarray:
        """Return uniform numbers in [low, high)."""
        word = self.words[:, self.next, None, None] >> np.uint32(8)
        self.next += 1
        return low + (high - low) * (word.astype(np.float32) * np.float32(2**-24))

    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (cos, sin) of random angles."""
        which = self.between(0, len(COS)).astype(np.intp)
        return COS[which], SIN[which]

    def colour(self, hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> list:
        """Return random R, G, B in 0 .. 255: a tent function over the hue for each."""
        tents = (abs((hue + third) % 1 * 6 - 3) - 1 for third in (0, 2 / 3, 1 / 3))
        return [255 * value * (1 + saturation * (np.clip(tent, 0, 1) - 1)) for tent in tents]


def _words(pictures: np.ndarray, key: tuple[int, int], split: int, first: int,
           count: int) -> np.ndarray:
    """Return (n, count) uint32, from block ``first`` of each picture's own Philox sequence."""
    blocks = np.arange(first, first + count // 4, dtype=np.uint64)
    four = random.philox((blocks, pictures[:, None], split, 0), key)
    return np.stack([w.astype(np.uint32) for w in four], axis=2).reshape(len(pictures), count)


def _draw(shape: Shape, pictures: np.ndarray, key: tuple[int, int], split: int) -> np.ndarray:
    """Draw (n, 32, 32, 3) uint8 pictures of one shape."""
    numbers = _Numbers(pictures, key, split)
    between = numbers.between
    h, w = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2  # 0 is the middle

    # colours far enough apart: other hue, and lighter or darker
    hue, light = between(0, 1), between(0, 1) < 0.5
    dark, bright = between(0.1, 0.4), between(0.75, 1)
    ink = numbers.colour(hue, between(0.35, 1), np.where(light, bright, dark))
    paper_hue, faint = hue + between(0.2, 0.8), between(0.2, 0.8)
    value = np.where(light, dark, bright)
    papers = [numbers.colour(paper_hue + between(-0.08, 0.08), faint, value * between(0.75, 1.1))
              for _ in range(2)]

    canvas = _paper(papers, numbers, h, w)
    for _ in range(2):
        scrap = numbers.colour(between(0, 1), between(0.2, 0.9), between(0.2, 1))
        _paint(canvas, _scrap(numbers, h, w), scrap)

    radius = between(8, 13)
    room = 16 - 0.9 * radius
    x, y = h - room * between(-1, 1), w - room * between(-1, 1)  # (n, 32, 32)
    cos, sin = numbers.direction()
    cos, sin = cos / radius, sin / radius
    distance = shape(cos * x + sin * y, cos * y - sin * x)
    _paint(canvas, np.clip(0.5 - distance * radius, 0, 1), ink)

    words = _words(pictures, key, split, NUMBERS // 4, SIZE * SIZE * 3 // 4)
    noise = words.astype("<u4", copy=False).view(np.uint8).reshape(-1, 3, SIZE, SIZE)
    canvas += between(0.02, 0.16)[:, None] * (noise - np.float32(127.5))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)  # (n, 32, 32, 3)


def _paper(colours: list, numbers: _Numbers, h: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Draw backgrounds, (n, 3, 32, 32) float32: stripes and a slope between two colours."""
    cos, sin = numbers.direction()
    across = cos * h + sin * w
    stripes = abs((across * numbers.between(0.03, 0.16) + numbers.between(0, 1)) % 1 - 0.5) * 2
    cos, sin = numbers.direction()
    mix = stripes * numbers.between(0, 1) + (cos * h + sin * w) * (1 / 32)
    np.clip(mix, 0, 1, out=mix)
    return np.stack([a + (b - a) * mix for a, b in zip(*colours, strict=True)], axis=1)


def _scrap(numbers: _Numbers, h: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the cover of a short thick line, (n, 32, 32)."""
    x, y = h - numbers.between(-16, 16), w - numbers.between(-16, 16)
    cos, sin = numbers.direction()
    along, across = abs(cos * x + sin * y), abs(cos * y - sin * x)
    distance = np.maximum(along - numbers.between(1, 7), across - numbers.between(0.5, 1.6))
    return np.clip(0.5 - distance, 0, 1)


def _paint(canvas: np.ndarray, cover: np.ndarray, colour: list) -> None:
    for channel, ink in enumerate(colour):
        under = canvas[:, channel]
        under += cover * (ink - under)
