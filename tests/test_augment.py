"""augment_batch: definition, CPU and CUDA to the last bit, and what a move depends on."""

import numpy as np
import pytest

from check import close, host, make
from gpuconv import kernels
from gpuconv.backend import float_dtype
from gpuconv.data import Augment, augment_batch
from gpuconv.data.augment import Move, image_moves
from gpuconv.data.loader import fetch_batch, gather_batch

DTYPES = ["float16", "bfloat16", "float32", "float64"]
KEY = 7, 11
MEAN, STD = (0.49, 0.3, 0.7), (0.2, 0.25, 1.0)
AUGMENTS = [
    pytest.param(None, id="normalise"),
    pytest.param(Augment(), id="usual"),
    pytest.param(Augment(flip=False, pad=2), id="crop"),
    pytest.param(Augment(pad=0), id="flip"),
    pytest.param(Augment(padding_mode="reflect"), id="reflect"),
    pytest.param(Augment(flip="alternate", pad=2, padding_mode="reflect"), id="alternate"),
    pytest.param(Move(-1, 2, padding_mode="zeros"), id="moved"),
    pytest.param(Move(2, -1, True), id="moved-mirrored"),
    pytest.param(Augment(flip=False, pad=9), id="out-of-sight"),  # wider than the image
]


def images(rng, n=9, size=(6, 5), channels=3):
    return rng.integers(0, 256, (n, *size, channels), dtype=np.uint8)


def run(xp, x, index, dtype="float32", augment=None, epoch=3, mean=MEAN, std=STD, key=KEY):
    index = np.array(index, np.int32)
    return host(augment_batch(xp.asarray(x), xp.asarray(index), mean=mean, std=std, dtype=dtype,
                              key=key, epoch=epoch, augment=augment))


def by_definition(x, index, augment, epoch=3):
    """float64, image by image: np.pad, cut, mirror, normalise."""
    out = []
    for i in index:
        image = x[i]
        if augment:
            p, (H, W) = augment.pad, image.shape[:2]
            oh, ow, flip = (m[0] for m in image_moves(np.int32([i]), KEY, epoch, augment))
            mode = "constant" if augment.padding_mode == "zeros" else "reflect"
            wide = np.pad(image, ((p, p), (p, p), (0, 0)), mode=mode)
            image = wide[p + oh : p + oh + H, p + ow : p + ow + W]
            image = image[:, ::-1] if flip else image
        out.append((image / 255 - np.array(MEAN)) / np.array(STD))
    return np.array(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_is_the_definition(xp, rng, augment, dtype):
    x, index = images(rng), [4, 0, 8, 4, 1, 2, 3]
    got = run(xp, x, index, dtype, augment)
    assert got.dtype == float_dtype(dtype)
    close(got, by_definition(x, index, augment).astype(got.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_cuda_gives_the_bits_of_numpy(cp, rng, augment, dtype):
    x, index = images(rng, 40), rng.permutation(40)
    got, want = (run(xp, x, index, dtype, augment, epoch=2**33 + 5) for xp in (cp, np))
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, channels", [((6, 8), 3), ((4, 2), 1), ((3, 5), 8), ((40, 50), 3)])
def test_cuda_in_packs_of_16_bytes(cp, rng, size, channels, dtype):
    x, index = images(rng, 5, size, channels), [3, 0, 4]
    how = dict(mean=[0.4] * channels, std=[0.3] * channels, augment=Augment(pad=2))
    got, want = (run(xp, x, index, dtype, **how) for xp in (cp, np))
    assert got.tobytes() == want.tobytes()


def test_every_byte_has_the_same_float_on_both(cp):
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    got, want = (run(xp, x, [0], mean=[0.4914], std=[0.247]) for xp in (cp, np))
    assert got.tobytes() == want.tobytes()


def test_normalises_as_torch_does(xp, rng):
    torch = pytest.importorskip("torch")
    x = images(rng)
    t = torch.tensor(x, dtype=torch.float64) / 255
    want = (t - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    close(run(xp, x, range(9), "float64"), want.numpy())


def test_a_move_depends_on_image_and_epoch_alone(xp, rng):
    x, some = images(rng, 30), rng.permutation(30)
    a = run(xp, x, some, augment=Augment())
    b = run(xp, x, range(30), augment=Augment())
    np.testing.assert_array_equal(a, b[some])  # whatever the batch and the place in it
    assert not np.array_equal(run(xp, x, range(30), augment=Augment(), epoch=4), b)
    assert not np.array_equal(run(xp, x, range(30), augment=Augment(), key=(8, 11)), b)
    assert not np.array_equal(run(xp, x, range(30), augment=Augment(), key=(7, 12)), b)


def test_moves_are_uniform_and_independent():
    n, p = 81_000, 4
    oh, ow, flip = image_moves(np.arange(n, dtype=np.int32), (3, 4), 5, Augment(pad=p))
    counts = np.zeros((2 * p + 1, 2 * p + 1, 2))
    np.add.at(counts, (oh + p, ow + p, flip.astype(int)), 1)
    expected = n / counts.size  # 500
    assert ((counts - expected) ** 2).sum() / expected < 161 + 5 * np.sqrt(2 * 161)  # chi squared


def test_a_flip_mirrors_left_and_right(xp):
    x = np.zeros((40, 2, 3, 1), np.uint8)
    x[:, 0] = np.uint8([[10], [20], [30]])
    y = run(xp, x, range(40), augment=Augment(pad=0), mean=[0.0], std=[1 / 255])[..., 0]
    _, _, flip = image_moves(np.arange(40, dtype=np.int32), KEY, 3, Augment(pad=0))
    assert 5 < flip.sum() < 35
    np.testing.assert_allclose(y[flip][:, 0], [[30, 20, 10]] * int(flip.sum()))
    np.testing.assert_allclose(y[~flip][:, 0], [[10, 20, 30]] * int((~flip).sum()))
    assert not y[:, 1].any()


def test_alternating_flips_show_every_image_both_ways_in_two_epochs(xp, rng):
    x, augment = images(rng, n=40), Augment(flip="alternate", pad=0)
    index = np.arange(40)
    plain = run(xp, x, index)
    seen = [run(xp, x, index, augment=augment, epoch=epoch) for epoch in range(4)]
    first = np.array([(a == b).all() for a, b in zip(seen[0], plain, strict=True)])
    assert 10 < first.sum() < 30
    np.testing.assert_array_equal(seen[1], seen[0][:, :, ::-1])
    for epoch in (2, 3):
        np.testing.assert_array_equal(seen[epoch], seen[epoch - 2])
    moved = Augment(flip="alternate", pad=2)
    shifts = [image_moves(np.arange(40), KEY, epoch, moved) for epoch in (0, 2)]
    assert (shifts[0][0] != shifts[1][0]).any() and (shifts[0][2] == shifts[1][2]).all()


def test_padding_is_black_before_it_is_normalised(xp):
    y = run(xp, np.full((1, 2, 2, 3), 255, np.uint8), [0], augment=Augment(flip=False, pad=40))
    close(np.unique(y[0, :, :, 0]), np.float32([-MEAN[0] / STD[0]]))


def test_views_give_what_their_copies_give(xp, rng):
    x = images(rng, 12, (5, 8))
    index = np.int32([3, 99, 1, 99, 0, 99])
    view = augment_batch(xp.asarray(x)[::2, :, ::-1], xp.asarray(index)[::2], mean=MEAN, std=STD,
                         key=KEY, epoch=3, augment=Augment())
    want = run(xp, x[::2, :, ::-1].copy(), [3, 1, 0], augment=Augment())
    np.testing.assert_array_equal(host(view), want)


def pieces(xp, rng, dtype, size=(6, 8), n=11, B=4):
    """images, labels, order, x, out_labels of a set; x begins at no multiple of 16 bytes."""
    x, order = images(rng, n, size), rng.permutation(n)
    if dtype:
        x = make(rng.standard_normal((n, *size, 3)), dtype)
    labels = rng.integers(0, 10, n)
    return [xp.asarray(x), *(xp.asarray(a.astype(np.int32)) for a in (labels, order)),
            xp.empty(1 + B * size[0] * size[1] * 3, float_dtype(dtype or "float32"))[1:].reshape(
                B, *size, 3), xp.zeros(B, np.int32)]


def test_fetch_is_augment_batch_of_what_the_clock_says(xp, rng):
    x, labels, order, y, chosen = pieces(xp, rng, None)
    how = dict(mean=MEAN, std=STD, key=KEY, augment=Augment())
    for batch, n in ((0, 4), (1, 4), (2, 3)):
        clock = xp.asarray(np.int64([2**32 + 1, batch, 77]))
        fetch_batch(x, labels, order, clock, y[:n], chosen[:n], batch_size=4, **how)
        index = host(order)[batch * 4 : batch * 4 + n]
        want = augment_batch(host(x), index, epoch=2**32 + 1, **how)
        assert host(y[:n]).tobytes() == want.tobytes()
        np.testing.assert_array_equal(host(chosen)[:n], host(labels)[index])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 8), (5, 3)])
def test_gather_takes_float_images_as_they_are(xp, rng, size, dtype):
    x, labels, order, _, chosen = pieces(xp, rng, dtype, size)
    y, clock = xp.empty((3, *size, 3), x.dtype), xp.asarray(np.int64([0, 2]))
    gather_batch(x, labels, order, clock, y, chosen[:3], batch_size=4)
    index = host(order)[8:]
    assert host(y).tobytes() == host(x)[index].tobytes()
    np.testing.assert_array_equal(host(chosen)[:3], host(labels)[index])


def test_gather_into_an_array_that_begins_anywhere(cp, rng):
    x, labels, order, y, chosen = pieces(cp, rng, "float32")
    gather_batch(x, labels, order, cp.zeros(2, "int64"), y, chosen, batch_size=4)
    np.testing.assert_array_equal(host(y), host(x)[host(order)[:4]])


def test_a_clock_that_is_too_far_stays_inside_the_set_on_the_gpu(cp, rng):
    x, labels, order, y, chosen = pieces(cp, rng, None)
    for batch in (100, -100):
        clock = cp.asarray(np.int64([0, batch]))
        fetch_batch(x, labels, order, clock, y, chosen, batch_size=4, mean=MEAN, std=STD)
        last = host(order)[-1 if batch > 0 else 0]
        assert (host(chosen) == host(labels)[last]).all()


@pytest.mark.parametrize("at, change, error, message", [
    (1, lambda a: a.astype("int64"), TypeError, "labels are int64, out_labels int32"),
    (1, lambda a: a[:3], ValueError, r"labels \(3,\), .* they do not fit"),
    (2, lambda a: a.astype("int64"), TypeError, "int64, wanted"),
    (3, lambda a: a[:, :3], ValueError, r"x \(4, 3, 8, 3\).* they do not fit"),
    (4, lambda a: a[:3], ValueError, r"out_labels \(3,\): they do not fit"),
])
@pytest.mark.parametrize("dtype", [None, "float32"], ids=["fetch", "gather"])
def test_fetch_refuses(xp, rng, dtype, at, change, error, message):
    arrays = pieces(xp, rng, dtype)
    arrays[at] = change(arrays[at])
    x, labels, order, y, chosen = arrays
    arrays, how = (x, labels, order, xp.zeros(2, "int64"), y, chosen), dict(mean=MEAN, std=STD)
    with pytest.raises(error, match=message):
        if dtype:
            gather_batch(*arrays, batch_size=4)
        else:
            fetch_batch(*arrays, batch_size=4, **how)


def test_empty_batch(xp, rng):
    assert run(xp, images(rng), [], augment=Augment()).shape == (0, 6, 5, 3)


@pytest.mark.parametrize("limit, value", [("INT_ITEMS", 0), ("MAX_BLOCKS", 1)])
def test_as_on_huge_arrays(cp, rng, monkeypatch, limit, value):
    x = images(rng, 20)
    want = run(np, x, range(20), augment=Augment())
    monkeypatch.setattr(kernels, limit, value)  # 64-bit offsets; threads that take many turns
    np.testing.assert_array_equal(run(cp, x, range(20), augment=Augment()), want)


def test_a_bad_index_stays_inside_the_set_on_the_gpu(cp, rng):
    x = images(rng)
    got, want = run(cp, x, [-5, 100]), run(cp, x, [0, 8])
    np.testing.assert_array_equal(got, want)


def test_a_bad_index_is_an_error_on_the_cpu(rng):
    with pytest.raises(IndexError, match="index runs from -1 to 9, there are 9 images"):
        run(np, images(rng), [-1, 9])


@pytest.mark.parametrize("change, error, message", [
    (dict(images=np.zeros((2, 4, 4, 1), "float32")), TypeError, "images are float32, index is int"),
    (dict(index=np.zeros(2, "int64")), TypeError, "index is int64, wanted uint8 and int32"),
    (dict(images=np.zeros((4, 4, 1), "uint8")), ValueError, r"images have shape \(4, 4, 1\)"),
    (dict(images=np.zeros((0, 4, 4, 1), "uint8")), ValueError, "there is no pixel"),
    (dict(mean=[0.5, 0.5]), ValueError, r"mean has shape \(2,\), wanted \(1,\)"),
    (dict(std=[0.0]), ValueError, r"std \[0.0\]: a channel does not vary"),
    (dict(std=[float("nan")]), ValueError, "does not vary"),
    (dict(dtype="int8"), TypeError, "unsupported dtype int8"),
    (dict(augment=Augment(padding_mode="reflect")), ValueError, "a reflection of 4 pixels does"),
    (dict(augment=Move(0, -4)), ValueError, "a reflection of 4 pixels does not fit"),
])
def test_refuses(change, error, message):
    good = dict(images=np.zeros((2, 4, 4, 1), "uint8"), index=np.zeros(1, "int32"), mean=[0.5],
                std=[0.5])
    with pytest.raises(error, match=message):
        augment_batch(**good | change)


@pytest.mark.parametrize("options, message", [
    (dict(pad=-1), "pad is -1, wanted at least 0"),
    (dict(padding_mode="wrap"), "padding_mode is 'wrap'"),
    (dict(flip="never"), "flip is 'never', wanted False, True or 'alternate'")])
def test_augment_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Augment(**options)


def test_a_move_is_that_of_all_images_in_all_epochs(xp, rng):
    x = images(rng)
    plain = run(xp, x, range(9))
    for epoch, key in ((0, (1, 2)), (7, (3, 4))):
        there = run(xp, x, range(9), augment=Move(1, -1, True), epoch=epoch, key=key)
        wide = np.pad(plain, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        np.testing.assert_array_equal(there, wide[:, 2:, :-2][:, :, ::-1])
        assert (run(xp, x, range(9), augment=Move(), epoch=epoch, key=key) == plain).all()


def test_arrays_on_two_devices_do_not_mix(cp, rng):
    with pytest.raises(TypeError, match="do not mix"):
        augment_batch(images(rng), cp.asarray(np.int32([0])), mean=MEAN, std=STD)
