"""A contact sheet: some images of each class in a row, to see what a data set holds."""

from typing import Any

import numpy as np

from gpuconv.backend import to_cpu
from gpuconv.data.dataset import Dataset
from gpuconv.data.images import pillow, resized

TILE = 64      # pixels: smaller images are enlarged up to that, larger ones reduced
GAP = 4        # pixels between images
MARGIN = 16    # pixels around it all
ROWS = 100     # classes at most
LETTERS = 24   # of a class's name
TEXT, FAINT = (34, 34, 34), (130, 130, 130)


def contact_sheet(dataset: Dataset, columns: int = 10) -> np.ndarray:
    """Draw the first images of each class, one class per row, with its name and number of images.

    Args:
        dataset: (N, H, W, C) of 1 or 3 channels; at most its first 100 classes are shown.
        columns: images of a row.

    Returns:
        (height, width, 3) uint8

    Raises:
        ImportError: Pillow is missing.
        ValueError: neither 1 nor 3 channels.
    """
    images, labels = to_cpu(dataset.images), to_cpu(dataset.labels)
    if images.shape[3] not in (1, 3):
        raise ValueError(f"{dataset.name}: images of {images.shape[3]} channels cannot be shown, "
                         "only 1 or 3")
    from PIL import ImageDraw, ImageFont
    names = [_name(name) for name in dataset.classes[:ROWS]]
    name_font, count_font = ImageFont.load_default(15), ImageFont.load_default(11)
    left = MARGIN + GAP * 4 + max(round(name_font.getlength(name)) for name in names)
    height, width = _tile(images.shape[1], images.shape[2])
    sheet = pillow().new("RGB", (left + columns * (width + GAP) - GAP + MARGIN,
                                 len(names) * (height + GAP) - GAP + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        mine = np.nonzero(labels == row)[0]
        top = MARGIN + row * (height + GAP)
        middle = top + height // 2
        draw.text((MARGIN, middle), name, TEXT, name_font, "ls" if height > 30 else "lm")
        if height > 30:
            draw.text((MARGIN, middle + 5), f"{len(mine):,}", FAINT, count_font, "lt")
        for column, image in enumerate(images[mine[:columns]]):
            sheet.paste(_shown(image, height, width), (left + column * (width + GAP), top))
    return np.array(sheet)


def _name(name: str) -> str:
    """Return a class name that the font, which has Latin letters only, can show."""
    short = name if len(name) <= LETTERS else f"{name[:LETTERS - 2]}.."
    return short.encode("latin-1", "replace").decode("latin-1")


def _tile(H: int, W: int) -> tuple[int, int]:
    """Return the size of a tile: a whole multiple of a small image, so pixels stay square."""
    times = TILE // max(H, W)
    if times:
        return H * times, W * times
    return max(1, H * TILE // max(H, W)), max(1, W * TILE // max(H, W))


def _shown(image: np.ndarray, height: int, width: int) -> Any:
    H, W = image.shape[:2]
    if max(H, W) <= TILE:
        image = image.repeat(height // H, axis=0).repeat(width // W, axis=1)
    else:
        image = resized(image[None], (height, width))[0]
    return pillow().fromarray(np.ascontiguousarray(np.broadcast_to(image, (height, width, 3))))
