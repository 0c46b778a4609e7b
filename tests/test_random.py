"""Philox against its authors' known answers; NumPy and CUDA give the same bits; seeds."""

import itertools

import numpy as np
import pytest

from gpuconv import backend, kernels, random

ONES = 0xFFFFFFFF
KNOWN = [  # counter, key, words: kat_vectors of the authors' library Random123, philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),  # digits of pi
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
CUDA = """
extern "C" __global__ void rounds(const unsigned* c, unsigned k0, unsigned k1, unsigned* y) {
    const Words four = philox({{c[0], c[1], c[2], c[3]}}, k0, k1);
    for (int i = 0; i < 4; ++i) y[i] = four.w[i];
}
extern "C" __global__ void words(
    unsigned long long first, unsigned k0, unsigned k1, unsigned long long step, unsigned* y)
{
    y[threadIdx.x] = philox_word(first + threadIdx.x, k0, k1, step);
}
"""


@pytest.fixture
def cuda(cp):
    return cp.RawModule(code=kernels.source("common/philox.cuh") + CUDA)


def word(element, key, step):
    """Its definition, in Python's own integers around one call of philox."""
    quarter = element // 4
    counter = (quarter & ONES, quarter >> 32, step & ONES, step >> 32)
    return int(random.philox(counter, key)[element % 4])


# -- the function ------------------------------------------------------------------------


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_known_answers(xp, counter, key, words):
    assert tuple(int(w) for w in random.philox(counter, key, xp)) == words


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_known_answers_in_cuda(cp, cuda, counter, key, words):
    y = cp.zeros(4, "uint32")
    cuda.get_function("rounds")((1,), (1,), (
        cp.asarray(np.uint32(counter)), np.uint32(key[0]), np.uint32(key[1]), y))
    assert tuple(y.tolist()) == words


def test_counters_broadcast(xp):
    counter = xp.asarray([[0], [5]]), xp.asarray([7, 8, 9]), 1, 2
    got = random.philox(counter, (3, 4), xp)
    for i, j in np.ndindex(2, 3):
        want = random.philox(((0, 5)[i], (7, 8, 9)[j], 1, 2), (3, 4))
        assert [int(w[i, j]) for w in got] == [int(w) for w in want]


# -- the sequence ------------------------------------------------------------------------


def test_words_are_the_definition_and_a_prefix_of_longer_ones(xp):
    key, step = (123, 456), 2**32 + 5
    longest = random.words(13, key, step, xp)
    assert longest.dtype == np.uint32
    assert longest.tolist() == [word(i, key, step) for i in range(13)]
    for n in range(13):
        assert random.words(n, key, step, xp).tolist() == longest.tolist()[:n]


@pytest.mark.parametrize("step", [0, 1, 2**32 - 1, 2**32, 2**40 + 3])
@pytest.mark.parametrize("first", [0, 3, 4093, 2**32 - 5, 2**34 - 6, 2**40 + 1])
def test_cuda_draws_the_same_words(cp, cuda, first, step):
    y = cp.zeros(12, "uint32")
    cuda.get_function("words")((1,), (12,), (
        np.uint64(first), np.uint32(7), np.uint32(ONES), np.uint64(step), y))
    assert y.tolist() == [word(first + i, (7, ONES), step) for i in range(12)]


def test_keys_streams_and_steps_differ():
    drawn = [tuple(random.words(4, key, step).tolist())
             for key in ((0, 0), (1, 0), (0, 1)) for step in (0, 1, 2**32)]
    assert len(set(drawn)) == 9


def test_words_are_uniform():
    words = random.words(1 << 16, (2024, 1))
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 32)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / 256  # 5 standard deviations
    counts = np.bincount(words >> 24, minlength=256)
    assert ((counts - 256) ** 2 / 256).sum() < 255 + 5 * np.sqrt(2 * 255)  # chi squared


# -- permutations ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_is_one_and_the_same_in_both_libraries(xp, n):
    order = random.permutation(n, (5, 6), 7, xp)
    assert order.dtype == np.int32 and backend.get_array_module(order) is xp
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == random.permutation(n, (5, 6), 7).tolist()


def test_every_order_comes():
    orders = [tuple(random.permutation(4, (1, 2), step).tolist()) for step in range(600)]
    counts = [orders.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 600 and min(counts) > 5 and max(counts) < 55  # 25 each, give or take 5


# -- seeds -------------------------------------------------------------------------------


@pytest.fixture
def default(monkeypatch):
    """The test may seed: what the others count from is untouched."""
    monkeypatch.setattr(random, "_default", random._Default())


def test_seed_starts_again(default):
    def draw():
        return (random.fresh(), random.fresh(), random.generator().standard_normal(),
                random.generator().standard_normal(), random.fresh())

    random.seed(7)
    first = draw()
    assert first != draw()
    random.seed(7)
    assert first == draw()
    random.seed(8)
    assert first != draw()
    assert len(set(first)) == 5  # no draw is used twice


@pytest.mark.parametrize("n", [-1, 2**32, 2**64])
def test_seeds_out_of_range_are_refused(default, n):
    with pytest.raises(ValueError, match=rf"seed {n} is outside 0\.\.4294967295"):
        random.seed(n)


@pytest.mark.parametrize("n", [1.5, "7", None])
def test_seeds_are_integers(default, n):
    with pytest.raises(TypeError):
        random.seed(n)


@pytest.mark.parametrize("n", [0, 2**32 - 1, np.int64(3), np.uint32(ONES)])
def test_seeds_in_range_are_taken(default, n):
    random.seed(n)
    assert random.fresh() == ((int(n), 0), 0)


def test_streams_are_named():
    assert random.stream("abc") == 0xBF1678BA  # SHA-256 of "abc" begins ba 78 16 bf
    names = [f"layers.{i}.{j}" for i in range(20) for j in range(20)]
    assert len({random.stream(name) for name in names}) == 400
