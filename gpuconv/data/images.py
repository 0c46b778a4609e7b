"""Image files as arrays: any size, mode and orientation becomes (H, W, C) uint8.

The image is turned upright as its EXIF data say, what is transparent becomes white, the largest
middle part of the wanted shape is cut out and resized (bicubic over as many pixels as an output
pixel covers, so nothing aliases). An animation gives its first frame. A JPEG that is much too large
is decoded at a half, a quarter or an eighth of its size in the first place.

Only formats that Pillow decodes by itself are read: never one that would start another program, as
Encapsulated PostScript does.
"""

import functools
import os
from typing import IO, Any

import numpy as np

from gpuconv import threads
from gpuconv.messages import install

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
            ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
GAP = 2             # a JPEG is decoded at a size at least so many times the wanted one
SWAP = range(5, 9)  # EXIF orientations that swap height and width


def read_image(file: str | os.PathLike | IO[bytes], size: int | tuple[int, int],
               channels: int = 3) -> np.ndarray:
    """Read an image file at a given size.

    Args:
        file: its path, or a file open for reading bytes.
        size: height and width of the result, or one number for both; pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        (H, W, C) uint8

    Raises:
        ImportError: Pillow is missing.
        OSError: the file cannot be read.
        ValueError: it is empty, damaged, truncated, huge (179 million pixels, as Pillow has it),
            or no image of one of FORMATS.

    >>> import io
    >>> read_image(io.BytesIO(b"P5 4 2 255 abcdefgh"), 2, channels=1)[:, :, 0]
    array([[ 98,  99],
           [102, 103]], dtype=uint8)
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    if min(height, width) < 1 or channels not in (1, 3):
        raise ValueError(f"read_image: size {size}, channels {channels}: wanted sizes from 1 on, "
                         "and 1 or 3 channels")
    pillow()
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:  # where this fails, the system's error names the path
            return _read(opened, str(file), (height, width), channels)
    return _read(file, str(getattr(file, "name", "image")), (height, width), channels)


def resized(images: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Images of another size: their middle part, cut and resized as by ``read_image``.

    Args:
        images: (N, H, W, C) uint8.
        size: height and width of the result, or one number for both; pixels.

    Returns:
        (N, size, size, C) uint8; ``images`` itself if that is its size.

    >>> resized(np.arange(16, dtype="uint8").reshape(1, 4, 4, 1) * 16, 2)[0, :, :, 0]
    array([[ 47,  77],
           [163, 193]], dtype=uint8)
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    N, H, W, C = images.shape
    if (H, W) == (height, width):
        return images
    Image = pillow()
    out = np.empty((N, height, width, C), np.uint8)

    def work(piece: slice) -> None:
        for n in range(piece.start, piece.stop):
            for c in range(C):
                plane = Image.fromarray(np.ascontiguousarray(images[n, :, :, c]))
                out[n, :, :, c] = np.asarray(_fit(plane, plane.size, (height, width)))

    threads.each(work, threads.chunks(N, H * W * C))
    return out


@functools.cache
def pillow() -> Any:
    """Pillow's Image module, with the formats that this installation has."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"reading image files needs Pillow: {install('pillow')}") from None
    Image.init()
    return Image


def _read(file: IO[bytes], name: str, size: tuple[int, int], channels: int) -> np.ndarray:
    Image = pillow()
    try:
        with Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            return _decode(image, size, channels)
    except Image.UnidentifiedImageError:
        file.seek(0)
        what = "no image of a known kind, or its beginning is damaged" if file.read(1) else "empty"
        raise ValueError(f"{name}: {what}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: refused, it may be a decompression bomb: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # what a damaged image raises is anybody's guess
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{name}: damaged, or of a kind that cannot be read: {error}") from None


def _decode(image: Any, size: tuple[int, int], channels: int) -> np.ndarray:
    longest = GAP * max(size)
    drafted = image.draft("L" if channels == 1 else "RGB", (longest, longest))  # None: no JPEG
    image.load()
    orientation = image.getexif().get(0x0112)  # after load, which turns TIFFs by itself
    extent = drafted[1][2:] if drafted else image.size  # an eighth of 777 pixels: 97.1 of the 98
    image = _on_white(_eight_bits(image)).convert("L" if channels == 1 else "RGB")
    image = _fit(image, extent, size[::-1] if orientation in SWAP else size)
    turn = pillow().Transpose
    how = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
           6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90}.get(orientation)
    if how is not None:
        image = image.transpose(how)
    return np.array(image).reshape(*size, channels)


def _eight_bits(image: Any) -> Any:
    """Grey of 16 or 32 bits, or of floats, as grey of 8 bits; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    a, most = np.asarray(image), 1 if image.mode == "F" else 65535
    low, high = a.min(), a.max()
    if not 0 <= low <= high <= most:  # NaN as well
        raise ValueError(f"its values are {low}..{high}, wanted 0..{most}")
    grey = (a * (255 / most) + 0.5).astype(np.uint8)
    grey[a == image.info.get("transparency", -1)] = 255
    return pillow().fromarray(grey)


def _on_white(image: Any) -> Any:
    if not image.has_transparency_data:
        return image
    white = pillow().new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white


def _fit(image: Any, extent: tuple[float, float], size: tuple[int, int]) -> Any:
    """The largest middle part of this shape, of an image this wide and high, resized."""
    (height, width), (W, H) = size, extent
    scale = min(W / width, H / height)
    left, top = max(0, W - scale * width) / 2, max(0, H - scale * height) / 2
    return image.resize((width, height), pillow().Resampling.BICUBIC,
                        (left, top, W - left, H - top))
