"""``random.philox`` at successive counters, in place: a quarter of the time.

Words 0 and 2 of a counter go through the same steps, and so do words 1 and 3: each two are one
array here. Tested against the definition in random.py.
"""

import numpy as np

from gpuconv import threads
from gpuconv.random import LOW, MULTIPLY, ROUNDS, STEP

HALF, MASK = np.uint64(32), np.uint64(LOW)


def words_at_least(limit: int, first: int, count: int, step: int,
                   key: tuple[int, int]) -> np.ndarray:
    """Return (4*count,) bool: is each word of ``random.words`` from 4*first on at least ``limit``?

    >>> words_at_least(2**31, 0, 1, 0, (0, 0))  # 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8
    array([False,  True,  True,  True])
    """
    even, odd, product = (threads.workspace(name, (2, count), np.uint64)
                          for name in ("even", "odd", "product"))
    counter = np.arange(first, first + count, dtype=np.uint64)
    np.bitwise_and(counter, MASK, out=even[0])
    np.right_shift(counter, HALF, out=odd[0])
    even[1], odd[1] = step & LOW, step >> 32
    factors = np.array(MULTIPLY, np.uint64)[:, None]
    for number in range(ROUNDS):
        words = [(k + number * grown) & LOW for k, grown in zip(key, STEP, strict=True)]
        np.multiply(even, factors, out=product)  # 64 bits
        np.right_shift(product[::-1], HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, np.array(words, np.uint64)[:, None], out=even)
        np.bitwise_and(product[::-1], MASK, out=odd)
    enough = threads.workspace("enough", (count, 4), bool)
    np.greater_equal(even, np.uint64(limit), out=enough.T[0::2])
    np.greater_equal(odd, np.uint64(limit), out=enough.T[1::2])
    return enough.reshape(-1)
