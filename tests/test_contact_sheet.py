"""contact_sheet: the first images of each class, in rows."""

import numpy as np
import pytest

from gpuconv.data import Dataset, shapes
from gpuconv.data.contact_sheet import GAP, MARGIN, TILE, contact_sheet


def tiles(sheet, rows, columns, height, width):
    """The places where images should be: (rows, columns, height, width, 3)."""
    left = sheet.shape[1] - MARGIN + GAP - columns * (width + GAP)
    return np.array([[sheet[top : top + height, x : x + width]
                      for x in range(left, left + columns * (width + GAP), width + GAP)]
                     for top in range(MARGIN, MARGIN + rows * (height + GAP), height + GAP)])


def test_each_row_has_the_first_images_of_a_class():
    train, _ = shapes(60, 0)
    sheet = contact_sheet(train, columns=4)
    assert sheet.dtype == np.uint8 and sheet.shape[0] == 2 * MARGIN + 10 * (TILE + GAP) - GAP
    shown = tiles(sheet, 10, 4, TILE, TILE)
    for label in range(10):
        mine = train.images[train.labels == label][:4]
        np.testing.assert_array_equal(shown[label], mine.repeat(2, axis=1).repeat(2, axis=2))
    names = sheet[:, : sheet.shape[1] - MARGIN - 4 * (TILE + GAP)]
    assert names.min() < 60 and (sheet[:MARGIN] == 255).all()  # something is written there


@pytest.mark.parametrize("H, W, height, width", [
    (8, 8, 64, 64), (28, 28, 56, 56), (64, 32, 64, 32), (200, 100, 64, 32), (1, 500, 1, 64)])
def test_sizes(rng, H, W, height, width):
    images = rng.integers(0, 100, (4, H, W, 1), dtype=np.uint8)
    data = Dataset(images, np.int32([0, 0, 1, 1]), ("cat", "dog"), "tiny")
    sheet = contact_sheet(data, columns=3)
    shown = tiles(sheet, 2, 3, height, width)
    assert (shown[:, :2] < 120).all() and (shown[:, 2] == 255).all()  # there is no third


def test_names_of_any_kind_and_many_classes():
    names = tuple(["日本", "a" * 300, "[bold]", "é"] + [f"class {i}" for i in range(200)])
    data = Dataset(np.zeros((204, 4, 4, 3), "uint8"), np.arange(204, dtype=np.int32), names, "many")
    sheet = contact_sheet(data)
    assert sheet.shape[0] == 2 * MARGIN + 100 * (TILE + GAP) - GAP and sheet.shape[1] < 1100


def test_two_channels_are_refused():
    data = Dataset(np.zeros((1, 4, 4, 2), "uint8"), np.int32([0]), ("a",), "tiny")
    with pytest.raises(ValueError, match="tiny: images of 2 channels cannot be shown"):
        contact_sheet(data)
