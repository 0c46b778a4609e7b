"""The geometry of a sliding window, against enumeration of its pixels."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpuconv.ops.window import Window, pair, sides, window_from

small = st.integers(1, 4)
pads = st.tuples(st.integers(0, 4), st.integers(0, 4))
windows = st.builds(Window, st.tuples(small, small), st.tuples(small, small), st.tuples(pads, pads),
                    st.tuples(small, small), st.booleans())
images = st.tuples(st.integers(1, 9), st.integers(1, 9))
each = hypothesis.settings(max_examples=200, derandomize=True, deadline=None, database=None)


def positions(window, axis, n):
    """Starts of the windows along an axis, counted from the first pixel of the image."""
    (near, far), stride, extent = window.pad[axis], window.stride[axis], window.extent[axis]
    starts = []
    for start in itertools.count(-near, stride):
        overhang = start + extent - (n + far)
        if overhang >= stride or (start >= n if window.ceil_mode else overhang > 0):
            return starts
        starts.append(start)


def pixel(window, axis, starts):
    """(positions, size): the place along an axis of each window's pixels."""
    return np.add.outer(starts, np.arange(window.size[axis]) * window.dilation[axis])


def fits(window, image):
    return all(positions(window, axis, n) for axis, n in enumerate(image))


@each
@hypothesis.given(windows, images)
def test_out_shape_counts_the_positions(window, image):
    counts = tuple(len(positions(window, axis, n)) for axis, n in enumerate(image))
    if min(counts) < 1:
        with pytest.raises(ValueError, match=r"window .* does not fit"):
            window.out_shape(*image)
    else:
        assert window.out_shape(*image) == counts


@each
@hypothesis.given(windows, images)
def test_disjoint_and_tiles(window, image):
    hypothesis.assume(fits(window, image))
    hits = np.zeros(image, int)
    rows, columns = (pixel(window, axis, positions(window, axis, n)).ravel()
                     for axis, n in enumerate(image))
    for h in rows[(rows >= 0) & (rows < image[0])]:
        np.add.at(hits[h], columns[(columns >= 0) & (columns < image[1])], 1)
    assert hits.max() <= 1 or not window.disjoint
    assert (hits == 1).all() or not window.tiles(*image)


def test_windows_side_by_side_tile():
    assert Window((2, 3), (2, 3)).tiles(8, 9)
    assert Window((2, 2), (2, 2), ((1, 1), (0, 0))).tiles(4, 4)
    assert not Window((2, 3), (2, 3)).tiles(8, 10)  # the last column is cropped
    assert Window((2, 3), (2, 3), ceil_mode=True).tiles(7, 10)
    assert not Window((2, 2), (3, 3)).tiles(8, 8)


def test_padding_beyond_the_filter_is_kept():
    """A window may lie in the padding altogether: convolution asks for such."""
    assert Window((1, 1), pad=((5, 5), (0, 0))).out_shape(4, 4) == (14, 4)
    assert Window((3, 3), pad=((3, 3), (3, 3))).out_shape(4, 4) == (8, 8)


def test_macros_name_every_number():
    window = Window((1, 2), (3, 4), ((5, 6), (7, 8)), (9, 10))
    assert window.macros() == dict(R=1, S=2, SH=3, SW=4, DH=9, DW=10, PT=5, PL=7)


def test_one_number_stands_for_two():
    assert pair(3) == (3, 3) and pair([3, np.int64(5)]) == (3, 5)
    assert sides(1) == ((1, 1), (1, 1)) and sides((1, 2)) == ((1, 1), (2, 2))
    assert sides(((0, 1), (2, 3))) == ((0, 1), (2, 3)) == sides([[0, 1], [2, 3]])


@pytest.mark.parametrize("call, error, message", [
    (lambda: pair((1, 2, 3)), ValueError, r"\(1, 2, 3\) has 3 numbers, wanted \(height, width\)"),
    (lambda: pair(1.5), TypeError, "1.5: wanted a whole number"),
    (lambda: sides((1, (2, 3))), ValueError, r"padding \(1, \(2, 3\)\): wanted \(\(top, bottom\)"),
    (lambda: window_from("op", (0, 1), 1, 0, 1), ValueError, r"window \(0, 1\), .*: at least 1"),
    (lambda: window_from("op", 1, (1, 0), 0, 1), ValueError, r"stride \(1, 0\), .*: at least 1"),
    (lambda: window_from("op", 1, 1, ((0, -1), (0, 0)), 1), ValueError,
     r"padding \(\(0, -1\), \(0, 0\)\)"),
    (lambda: Window((3, 3), dilation=(2, 2)).out_shape(4, 4), ValueError,
     r"window \(3, 3\), dilation \(2, 2\), padding .* does not fit \(4, 4\)"),
])
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
