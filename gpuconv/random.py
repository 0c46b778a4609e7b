"""Random numbers without a hidden state: Philox 4x32-10, the same bits in NumPy and in CUDA.

    words(key, counter) = ten rounds of multiply, exclusive-or and swap over counter, keyed by key

A number is a pure function of key = (seed, stream) and counter = (element, step): whoever knows
them can draw it again, on either device, in any order. So dropout masks are drawn a second time in
the backward pass instead of being stored, and a run resumes exactly. The GPU's function is in
``kernels/common/philox.cuh``.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import hashlib
import itertools
from typing import Any

import numpy as np

from gpuconv.backend import Array
from gpuconv.checks import check_count, short

MULTIPLY = 0xD2511F53, 0xCD9E8D57  # of the first and the third word, in each round
STEP = 0x9E3779B9, 0xBB67AE85      # what the key words grow by between rounds
ROUNDS = 10
LOW = 0xFFFFFFFF                   # 32 bits


class _Default:
    """Seed and number of the draws that have no key of their own."""

    seed = 0
    draws = itertools.count()


_default = _Default()


def seed(n: int) -> None:
    """Start all draws that get no key of their own again from n: initial weights, dropout.

    Args:
        n: 0 .. 2**32 - 1.

    Raises:
        TypeError: n is no integer.
        ValueError: n is outside that range.

    >>> seed(7); a = generator().standard_normal(); seed(7); a == generator().standard_normal()
    True
    """
    _default.seed, _default.draws = check_seed(n), itertools.count()


def check_seed(n: int, caller: str = "seed") -> int:
    """Return n as an int, if it can be the first word of a key.

    Raises:
        TypeError, ValueError: it cannot; begins with the caller's name.
    """
    try:
        return check_count(caller, "seed", n, 0, LOW)
    except ValueError:
        raise ValueError(f"{caller}: seed {short(n)} is outside 0..{LOW}") from None


def fresh() -> tuple[tuple[int, int], int]:
    """Return (key, step) of a draw that nothing has used since ``seed``."""
    return (_default.seed, 0), next(_default.draws)


def generator() -> "np.random.Generator":  # quoted: numpy.random is slow to import
    """Return a new NumPy generator, a function of the seed and of the number of draws before."""
    return np.random.default_rng([_default.seed, next(_default.draws)])


def stream(name: str) -> int:
    """Return the second word of a key for a name: 32 bits of its SHA-256.

    >>> stream("features.3") == stream("features.3") != stream("features.4")
    True
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any], xp: Any = np) -> tuple:
    """Return four random words for each counter.

    Args:
        counter: four words, each an array (or a number) of 0 .. 2**32 - 1; they broadcast.
        key: two words.
        xp: library of the arrays.

    Returns:
        Four arrays of uint64 that hold 32 bits each.

    >>> [hex(w) for w in philox((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (xp.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = (int(k) for k in key)
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLY[0]), c2 * np.uint64(MULTIPLY[1])  # 64-bit products
        c0, c1, c2, c3 = ((p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & np.uint64(LOW),
                          (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & np.uint64(LOW))
        k0, k1 = (k0 + STEP[0]) & LOW, (k1 + STEP[1]) & LOW
    return c0, c1, c2, c3


def words(n: int, key: tuple[int, int], step: int = 0, xp: Any = np) -> Array:
    """Return (n,) uint32: element i is word i % 4 of Philox at 64-bit counters (i // 4, step).

    >>> words(5, key=(1, 2)).shape
    (5,)
    """
    quarter = xp.arange(-(-n // 4), dtype=np.uint64)
    counter = (quarter & np.uint64(LOW), quarter >> np.uint64(32), step & LOW, step >> 32)
    four = xp.stack([w.astype(np.uint32) for w in philox(counter, key, xp)], axis=1)  # (n/4, 4)
    return four.reshape(-1)[:n]


def permutation(n: int, key: tuple[int, int], step: int = 0, xp: Any = np) -> Array:
    """Return 0 .. n-1 in random order, (n,) int32, the same on either device.

    >>> sorted(permutation(4, key=(0, 0)).tolist())
    [0, 1, 2, 3]
    """
    pairs = words(2 * n, key, step, xp).astype(np.uint64).reshape(n, 2)
    order = xp.argsort(pairs[:, 0] << np.uint64(32) | pairs[:, 1], kind="stable")
    return order.astype(np.int32)
