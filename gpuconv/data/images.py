"""Image files as arrays: any size, mode and orientation becomes (H, W, C) uint8.

The image is turned upright as its EXIF data say, what is transparent becomes white, the largest
middle part of the wanted shape is cut out and resized (bicubic over as many pixels as an output
pixel covers, so nothing aliases). An animation gives its first frame. A JPEG that is much too large
is decoded at a half, a quarter or an eighth of its size in the first place.

Only formats that Pillow decodes by itself are read: never one that would start another program, as
Encapsulated PostScript does.

Limits, checked before pixels are decoded: an image, and a tile of a TIFF, has at most PIXELS
pixels. Decoding takes up to BYTES bytes of memory per pixel (a JPEG: per pixel of the size that it
is decoded at, and 8 for each of its own) and twice the length of the file; what does not fit into
free memory is refused.
"""

import contextlib
import errno
import functools
import os
import struct
from typing import IO, Any

import numpy as np

from gpuconv import reading, threads
from gpuconv.checks import check_choice, check_count, check_path, check_shape
from gpuconv.data.streams import scans, tiles
from gpuconv.free_memory import check_free_memory
from gpuconv.messages import install

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
            ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
FOREIGN = (".ai", ".apng", ".arw", ".avifs", ".cr2", ".cr3", ".crw", ".dcm", ".dds", ".dib",
           ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".icns", ".ico",
           ".j2c", ".j2k", ".jpc", ".jpf", ".jpx", ".jxl", ".jxr", ".nef", ".nrw", ".orf", ".pam",
           ".pcx", ".pdf", ".pef", ".pfm", ".ps", ".psb", ".psd", ".qoi", ".raf", ".ras", ".raw",
           ".rw2", ".sgi", ".srw", ".svg", ".svgz", ".tga", ".wmf", ".xbm", ".xcf", ".xpm")
OPTIONAL = {".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"}  # Pillow may be without
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
PIXELS = 178_956_970  # of an image, at most
BYTES = 24            # of memory for each pixel that is decoded; at most 23.4 were measured
WORTH_ASKING = 1 << 26  # bytes of memory; for less, the system is not asked how much is free
SCANS = 500         # of a JPEG, at most
TILE = 12_000       # bytes that OpenJPEG takes for each tile, besides its pixels
LARGEST = 2**16     # height or width of a result, pixels
GAP = 2             # a JPEG is decoded at a size at least so many times the wanted one
SWAP = range(5, 9)  # EXIF orientations that swap height and width


class RefusedError(ValueError):
    """A file that is refused, in a sentence with its name."""


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
        OSError: the file is not there, no regular file, or cannot be read.
        ValueError: it is empty, damaged, truncated, huge (more than 178,956,970 pixels), or no
            image of one of FORMATS.
        MemoryError: decoding it needs more memory than is free.

    >>> import io
    >>> read_image(io.BytesIO(b"P5 4 2 255 abcdefgh"), 2, channels=1)[:, :, 0]
    array([[ 98,  99],
           [102, 103]], dtype=uint8)
    """
    image = read_within(file, size, channels, None)
    assert image is not None
    return image


def read_within(file: str | os.PathLike | IO[bytes], size: int | tuple[int, int], channels: int,
                most: int | None) -> np.ndarray | None:
    """Read an image file as ``read_image`` does, if that takes at most ``most`` bytes of memory.

    Returns:
        (H, W, C) uint8; None if it takes more. Where ``most`` is None, what is free is the limit.
    """
    height, width = height_and_width("read_image", "size", size)
    check_choice("read_image", "channels", channels, (1, 3))
    pillow()
    if not hasattr(file, "read"):
        check_path("read_image", "file", file)
    if not isinstance(file, str | os.PathLike):
        name = str(getattr(file, "name", "image"))
        return _read(file, name, 0, (height, width), channels, most)
    try:
        with reading.open_file(file) as opened:
            return _read(opened, str(file), os.fstat(opened.fileno()).st_size, (height, width),
                         channels, most)
    except FileNotFoundError:
        if os.path.islink(file):
            target = os.readlink(os.fspath(file))
            raise FileNotFoundError(f"{file}: a link to {target}, which is not there") from None
        raise


def height_and_width(caller: str, name: str, size: Any) -> tuple[int, int]:
    """Return the sizes of an image from (height, width), or one number for both; pixels.

    Raises:
        TypeError, ValueError: it is something else; names the caller and the argument.
    """
    height, width = check_shape(caller, name, size if isinstance(size, tuple) else (size, size), 2)
    check_count(caller, name, height, most=LARGEST)
    check_count(caller, name, width, most=LARGEST)
    return height, width


def resized(images: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Return images of another size: their middle part, cropped and resized as by ``read_image``.

    Args:
        images: (N, H, W, C) uint8.
        size: height and width of the result, or one number for both; pixels.

    Returns:
        (N, size, size, C) uint8; ``images`` itself if that is its size.

    Raises:
        MemoryError: the result does not fit into free memory.

    >>> resized(np.arange(16, dtype="uint8").reshape(1, 4, 4, 1) * 16, 2)[0, :, :, 0]
    array([[ 47,  77],
           [163, 193]], dtype=uint8)
    """
    height, width = height_and_width("resized", "size", size)
    N, H, W, C = images.shape
    if (H, W) == (height, width):
        return images
    Image = pillow()
    check_free_memory(N * height * width * C, f"resized: {N:,} images of {height}x{width}x{C}")
    out = np.empty((N, height, width, C), np.uint8)

    def work(chunk: slice) -> None:
        for n in range(chunk.start, chunk.stop):
            for c in range(C):
                plane = Image.fromarray(np.ascontiguousarray(images[n, :, :, c]))
                out[n, :, :, c] = np.asarray(_fit(plane, plane.size, (height, width)))

    threads.each(work, threads.chunks(N, H * W * C))
    return out


@functools.cache
def pillow() -> Any:
    """Import and return Pillow's Image module, with the formats of this installation."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"reading image files needs Pillow: {install('pillow')}") from None
    Image.init()
    return Image


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Return those of SUFFIXES whose formats this installation of Pillow can decode."""
    pillow()
    from PIL import features
    return tuple(suffix for suffix in SUFFIXES
                 if suffix not in OPTIONAL or features.check(OPTIONAL[suffix]))


def looks_like_image(path: str) -> bool:
    """Tell whether a regular file begins like a JPEG, PNG, GIF, TIFF or WebP file."""
    with reading.open_file(path) as file:
        start = file.read(12)
    return start.startswith(BEGINNINGS) or (start[:4], start[8:]) == (b"RIFF", b"WEBP")


def _read(file: IO[bytes], name: str, length: int, size: tuple[int, int], channels: int,
          most: int | None) -> np.ndarray | None:
    """Read an open file of ``length`` bytes; see ``read_within``."""
    def fits(need: int, what: str) -> bool:
        if most is None and need > WORTH_ASKING:
            check_free_memory(need, f"{name}: {what}")
        return most is None or need <= most

    length *= 2  # some formats are read as a whole at once, and copied
    if not fits(length, f"{length // 2:,} bytes"):
        return None
    try:
        with _open(file, name) as image:
            W, H = image.size
            if W * H > PIXELS:
                raise RefusedError(f"{name}: refused, it may be a decompression bomb: its {W}x{H} "
                              f"pixels are more than {PIXELS:,}")
            drafted = image.draft("L" if channels == 1 else "RGB", (GAP * max(size),) * 2)
            if not fits(length + _memory(image, name, W * H, size),
                        f"{W}x{H} pixels, made {size[1]}x{size[0]},"):
                return None
            return _decode(image, drafted and drafted[1][2:], size, channels)
    except MemoryError as error:
        text = str(error)
        raise MemoryError(text if text.startswith(name) else
                          f"{name}: more memory than is free: {text}".removesuffix(": ")) from None
    except pillow().DecompressionBombError as error:
        raise RefusedError(f"{name}: refused, it may be a decompression bomb: {error}") from None
    except Exception as error:  # what a damaged image raises is anybody's guess
        if isinstance(error, RefusedError):
            raise
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, name) from None  # of the disk
        raise ValueError(f"{name}: damaged, or of a kind that cannot be read: "
                         f"{str(error) or type(error).__name__}") from None


def _open(file: IO[bytes], name: str) -> Any:
    """Return Pillow's image of an open file, its header read.

    ``Image.open`` would also warn of images that are smaller than PIXELS, without their names.

    Raises:
        RefusedError: it is none of FORMATS, or its header is damaged.
    """
    Image = pillow()
    file.seek(0)
    start, problem = file.read(16), "no image of a known kind, or its beginning is damaged"
    for form in FORMATS if start else ():
        factory, accepts = Image.OPEN.get(form, (None, lambda start: False))
        known = not accepts or accepts(start)
        if isinstance(known, str):  # Pillow was built without this format
            problem = known
        elif known:
            file.seek(0)
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(file, "")
    raise RefusedError(f"{name}: {problem if start else 'empty'}")


def _memory(image: Any, name: str, pixels: int, size: tuple[int, int]) -> int:
    """Return the bytes that decoding takes; ``pixels``: of the image before ``draft``."""
    need = BYTES * (image.size[0] * image.size[1] + size[0] * size[1])
    if image.format in ("JPEG", "MPO"):
        need += 8 * pixels  # coefficients of a progressive one
        if (found := scans(image.fp)) > SCANS:  # each takes the time of decoding the whole image
            raise RefusedError(f"{name}: refused, it may be a decompression bomb: it has {found:,} "
                               f"scans, wanted at most {SCANS}")
    elif image.format == "JPEG2000":
        need += TILE * tiles(image.fp)
    elif image.format == "TIFF" and 322 in image.tag_v2:
        width, height = (int(image.tag_v2[tag]) for tag in (322, 323))  # of a tile
        if width * height > PIXELS:
            raise RefusedError(f"{name}: refused, it may be a decompression bomb: its tiles of "
                          f"{width}x{height} pixels are larger than {PIXELS:,}")
        need += BYTES * width * height
    return need


def _decode(image: Any, drafted: tuple[float, float] | None, size: tuple[int, int],
            channels: int) -> np.ndarray:
    """Return the pixels at their final size; ``drafted``: width and height of a reduced JPEG."""
    image.load()
    orientation = image.getexif().get(0x0112)  # after load, which turns TIFFs by itself
    extent = drafted or image.size  # an eighth of 777 pixels: 97.1 of the 98
    image = _on_white(_eight_bits(image)).convert("L" if channels == 1 else "RGB")
    image = _fit(image, extent, size[::-1] if orientation in SWAP else size)
    turn = pillow().Transpose
    how = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
           6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90}.get(orientation)
    if how is not None:
        image = image.transpose(how)
    return np.array(image).reshape(*size, channels)


def _eight_bits(image: Any) -> Any:
    """Return 16-bit, 32-bit and float grey images with 8 bits; others unchanged."""
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
    """Return the largest middle part with this shape, resized to this width and height."""
    (height, width), (W, H) = size, extent
    scale = min(W / width, H / height)
    left, top = max(0, W - scale * width) / 2, max(0, H - scale * height) / 2
    return image.resize((width, height), pillow().Resampling.BICUBIC,
                        (left, top, W - left, H - top))
