"""Dataset and Loader: every image once, the same bits again, from any batch on."""

from fractions import Fraction

import numpy as np
import pytest

from check import close, host
from gpuconv import kernels, random
from gpuconv.data import Augment, Dataset, Loader
from gpuconv.data.augment import _pixel_table
from gpuconv.data.loader import SHUFFLE, epoch_order

CLASSES = tuple("abcdefghij")


def dataset(xp, n=23, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, n).astype(np.int32)
    return Dataset(xp.asarray(images), xp.asarray(labels), CLASSES, "test set")


def bits(batches):
    return [(host(x).tobytes(), host(labels).tobytes()) for x, labels in batches]


# -- Dataset -------------------------------------------------------------------------------


def test_mean_and_std_are_exact():
    d = dataset(np, 500)
    total = d.images.reshape(-1, 3).sum(axis=0).tolist()
    assert d.mean.tolist() == [float(Fraction(t, 500 * 36 * 255)) for t in total]
    close(d.std, (d.images.reshape(-1, 3) / np.longdouble(255)).std(0).astype("float64"))
    assert d.mean is d.mean  # counted once


def test_std_of_a_large_constant_does_not_cancel():
    d = Dataset(np.full((100, 8, 8, 1), 255, np.uint8), np.zeros(100, "int32"), ("a",), "white")
    assert (d.mean, d.std) == ([1], [0])


def test_a_slice_and_indices_give_a_dataset(xp):
    d = dataset(xp)
    part, chosen = d[5:9], d[xp.asarray(np.int32([3, 3, 1]))]
    np.testing.assert_array_equal(host(part.images), host(d.images)[5:9])
    np.testing.assert_array_equal(host(chosen.labels), host(d.labels)[[3, 3, 1]])
    assert (len(part), part.classes, part.name) == (4, CLASSES, "test set")
    with pytest.raises(TypeError, match="index 3 gives one image"):
        d[3]


def test_to_moves_there_and_back(cp):
    d = dataset(np)
    there = d.to("cuda")
    assert type(there.images) is type(there.labels) is cp.ndarray
    assert there.to("cuda") is there and d.to("cpu") is d
    np.testing.assert_array_equal(there.to("cpu").images, d.images)
    np.testing.assert_array_equal(there.mean, d.mean)


@pytest.mark.parametrize("images, labels, error, message", [
    (np.zeros((2, 4, 4, 3), "float32"), np.zeros(2, "int32"), TypeError, "images are float32"),
    (np.zeros((2, 4, 4), "uint8"), np.zeros(2, "int32"), ValueError, r"shape \(2, 4, 4\), wanted"),
    (np.zeros((2, 4, 4, 3), "uint8"), np.zeros(2, "int64"), TypeError, "labels are int64, wanted"),
    (np.zeros((2, 4, 4, 3), "uint8"), np.zeros((2, 1), "int32"), ValueError, r"shape \(2, 1\)"),
    (np.zeros((2, 4, 4, 3), "uint8"), np.zeros(3, "int32"), ValueError, "2 images, 3 labels"),
    (np.zeros((2, 4, 4, 3), "uint8"), np.int32([0, 10]), ValueError, r"label 10 is outside 0\.\.9"),
    (np.zeros((2, 4, 4, 3), "uint8"), np.int32([0, -1]), ValueError, "label -1 is outside"),
])
def test_refuses_what_is_no_dataset(images, labels, error, message):
    with pytest.raises(error, match=f"mine: .*{message}"):
        Dataset(images, labels, CLASSES, "mine")


def test_no_pixels_no_mean():
    with pytest.raises(ValueError, match=r"no pixels, shape \(0, 6, 6, 3\)"):
        _ = dataset(np)[:0].mean


# -- Loader --------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once(xp):
    d = dataset(xp)
    loader = Loader(d, 5, mean=[0] * 3, std=[1 / 255] * 3)
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == 5
    assert [len(x) for x, _ in batches] == [5, 5, 5, 5, 3]
    order = host(loader.order(1))
    assert sorted(order) == list(range(23)) and list(order) != list(range(23))
    seen = np.concatenate([host(x) for x, _ in batches])
    close(seen, host(d.images)[order].astype("float32"))
    labels = np.concatenate([host(labels) for _, labels in batches])
    np.testing.assert_array_equal(labels, host(d.labels)[order])
    assert labels.dtype == np.int32


def test_the_last_short_batch_can_be_dropped(xp):
    loader = Loader(dataset(xp), 5, drop_last=True)
    assert [len(x) for x, _ in loader.epoch(0)] == [5] * 4 and len(loader) == 4
    assert len(Loader(dataset(xp), 23, drop_last=True)) == 1


def test_unshuffled_is_in_the_order_of_the_set(xp):
    d = dataset(xp)
    labels = np.concatenate([host(b) for _, b in Loader(d, 4, shuffle=False).epoch(9)])
    np.testing.assert_array_equal(labels, host(d.labels))


def test_the_same_epoch_has_the_same_bits(xp):
    loader = Loader(dataset(xp), 5, augment=Augment(), seed=3)
    first = bits(loader.epoch(2))
    assert bits(loader.epoch(1)) != first
    assert bits(loader.epoch(2)) == first
    assert bits(Loader(dataset(xp), 5, augment=Augment(), seed=3).epoch(2)) == first
    assert bits(Loader(dataset(xp), 5, augment=Augment(), seed=4).epoch(2)) != first


def test_an_epoch_can_begin_at_any_batch(xp):
    loader = Loader(dataset(xp), 5, augment=Augment(), seed=3)
    whole = bits(loader.epoch(2))
    for start in range(len(loader) + 1):
        assert bits(loader.epoch(2, start=start)) == whole[start:]


def test_both_devices_give_the_same_bits(cp):
    d = dataset(np)
    here, there = (bits(Loader(e, 5, augment=Augment(), seed=3, mean=d.mean, std=d.std).epoch(1))
                   for e in (d, d.to("cuda")))
    assert here == there


def test_batches_stay_on_the_device_of_the_set(cp):
    for x, labels in Loader(dataset(cp), 12).epoch(0):
        assert type(x) is type(labels) is cp.ndarray


def test_a_test_set_is_normalised_like_the_training_set(xp):
    train, test = dataset(xp), dataset(xp, 6, seed=1)
    (x, _), = Loader(test, 6, shuffle=False, mean=train.mean, std=train.std).epoch(0)
    want = (host(test.images) / 255 - train.mean) / train.std
    close(x, want.astype("float32"))
    (own, _), = Loader(test, 6, shuffle=False, dtype="float64").epoch(0)
    close(host(own).mean((0, 1, 2)) + 1, np.ones(3))


@pytest.mark.parametrize("n", [0, 1, 2, 300, 1001])
@pytest.mark.parametrize("seed, epoch", [(0, 0), (2**32 - 1, 2**33 + 5)])
def test_an_order_is_a_permutation_and_the_same_on_either_device(xp, n, seed, epoch):
    order = epoch_order(xp.zeros(n), seed, epoch)
    assert order.dtype == "int32" and isinstance(order, xp.ndarray)
    assert host(order).tolist() == random.permutation(n, (seed, SHUFFLE), epoch).tolist()


def test_keys_of_an_order_are_64_bits(cp):
    """The lower half, too, which decides where the upper ones are equal."""
    n, key, step = 1001, (2**32 - 1, 5), 2**33 + 5
    keys = cp.empty(n, "uint64")
    kernels.kernel("data/shuffle.cu", "shuffle_keys")(n, keys, *key, step, n)
    words = random.words(2 * n, key, step).astype("uint64").reshape(n, 2)
    np.testing.assert_array_equal(host(keys), words[:, 0] << np.uint64(32) | words[:, 1])


def test_an_order_can_be_filled_in_place(xp):
    for shuffle in (True, False):
        loader, room = Loader(dataset(xp), 5, shuffle=shuffle), xp.zeros(23, "int32")
        assert loader.order(4, out=room) is room
        np.testing.assert_array_equal(host(room), host(loader.order(4)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_captured_fetch_gives_the_batches_of_every_epoch(cp, dtype):
    d = dataset(np)
    loader = Loader(d.to("cuda"), 5, augment=Augment(), seed=3, dtype=dtype, mean=d.mean, std=d.std)
    order, clock = cp.empty(23, "int32"), cp.zeros(2, "int64")
    stream, pool, graphs = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool(), {}
    with stream:
        for n in (5, 3):  # a graph for the last batch
            loader.order(0, out=order)
            x, labels = cp.empty((n, 6, 6, 3), dtype), cp.empty(n, "int32")
            loader.fetch(order, clock, x, labels)
            clock[1:] += 1  # no kernel is loaded for the first time while a stream captures
            with cp.cuda.using_allocator(pool.malloc):
                stream.begin_capture()
                loader.fetch(order, clock, x, labels)
                clock[1:] += 1
                graphs[n] = stream.end_capture(), x, labels
        _pixel_table.cache_clear()  # as 32 other means would
        for epoch in (1, 2):
            loader.order(epoch, out=order)
            clock[...] = cp.asarray(np.int64([epoch, 0]))
            got = []
            for n in (5, 5, 5, 5, 3):
                graph, x, labels = graphs[n]
                graph.launch(stream)
                got += bits([(x, labels)])
            assert got == bits(loader.epoch(epoch))


def test_a_bfloat16_loader(xp):
    (x, _), = Loader(dataset(xp), 23, dtype="bfloat16").epoch(0)
    assert x.dtype.name == "bfloat16"


def test_an_empty_set_has_no_batches(xp):
    loader = Loader(dataset(xp)[:0], 5, mean=[0] * 3, std=[1] * 3)
    assert len(loader) == 0 and list(loader.epoch(0)) == []


@pytest.mark.parametrize("options, error, message", [
    (dict(batch_size=0), ValueError, "batch_size is 0, wanted at least 1"),
    (dict(batch_size=4, seed=-1), ValueError, "seed -1 is outside"),
    (dict(batch_size=4, dtype="int8"), TypeError, "unsupported dtype int8"),
])
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        Loader(dataset(np), **options)


@pytest.mark.parametrize("epoch, start", [(-1, 0), (0, -1), (0, 6)])
def test_refuses_at_once_what_is_no_batch(epoch, start):
    with pytest.raises(ValueError, match="Loader: (epoch|start) is (-1|6), wanted at "):
        Loader(dataset(np), 5).epoch(epoch, start)
