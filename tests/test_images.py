"""read_image: every mode, size and orientation; what is damaged or hostile is a sentence."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from odd_files import make_odd
from PIL import Image, PngImagePlugin, features

from gpuconv.data import images as module
from gpuconv.data.images import read_image, resized

RED, BLUE = (200, 30, 10), (5, 40, 220)
EXTENSIONS = ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "jp2", "avif"]


def halves(mode="RGB", size=8):
    """Left half red, right half blue."""
    a = np.empty((size, size, 3), np.uint8)
    a[:, : size // 2], a[:, size // 2 :] = RED, BLUE
    image = Image.fromarray(a)
    return image.quantize(4) if mode == "P" else image.convert(mode)


def blob(image, kind="PNG", **more):
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def read(content, size=8, channels=3):
    return read_image(io.BytesIO(content), size, channels)


def grey(*rgb):
    """ITU-R 601, as in Pillow's handbook."""
    return round((299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2]) / 1000)


def photograph(rng, height, width):
    """Something smooth, as JPEG likes it."""
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# -- modes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_colours(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    got = read(blob(halves(mode), kind))
    assert got.shape == (8, 8, 3) and got.dtype == np.uint8 and got.flags.writeable
    assert (got[:, :4] == RED).all() and (got[:, 4:] == BLUE).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_photographs(kind, rng):
    rgb = photograph(rng, 32, 32)
    more = dict(quality=98, subsampling=0) if kind == "JPEG" else {}
    got = read(blob(rgb.convert("CMYK"), kind, **more), 32)
    assert abs(got.astype(int) - np.asarray(rgb)).mean() < 2


@pytest.mark.parametrize("mode, value", [("L", 77), ("1", 1), ("LA", (77, 255)), ("I", 77 * 257),
                                         ("I;16", 77 * 257)])
def test_grey_becomes_three_equal_channels(mode, value):
    kind = "TIFF" if mode == "I" else "PNG"
    content = blob(Image.new(mode, (8, 8), value), kind)
    want = 255 if mode == "1" else 77
    assert (read(content) == want).all()
    got = read(content, channels=1)
    assert got.shape == (8, 8, 1) and (got == want).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_to_8(kind):
    levels = np.array([0, 1, 128, 129, 256, 257, 32767, 32768, 65406, 65407, 65535, 5000], "uint16")
    got = read(blob(Image.fromarray(levels.reshape(3, 4)), kind), (3, 4), 1)
    assert got.reshape(-1).tolist() == [round(int(v) / 257) for v in levels]


def test_big_endian_16_bits():
    levels = np.array([[0, 257, 65535, 25700]], ">u2")
    content = b"P5 4 1 65535\n" + levels.tobytes()
    assert read(content, (1, 4), 1).reshape(-1).tolist() == [0, 1, 255, 100]


def test_floats_of_0_to_1_are_read_and_others_refused():
    ramp = np.linspace(0, 1, 4, dtype="float32").reshape(1, 4)
    got = read(blob(Image.fromarray(ramp), "TIFF"), (1, 4), 1)
    assert got.reshape(-1).tolist() == [0, 85, 170, 255]
    for bad, said in ((2, "0.0..2.0"), (-1, "-1.0..-0.0"), (np.nan, "nan")):
        with pytest.raises(ValueError, match=rf"its values are {said}.*, wanted 0\.\.1"):
            read(blob(Image.fromarray(ramp * np.float32(bad)), "TIFF"), (1, 4))
    with pytest.raises(ValueError, match=r"its values are -1\.\.70000, wanted 0\.\.65535"):
        read(blob(Image.fromarray(np.array([[-1, 70000]], "int32")), "TIFF"), (1, 2))


def test_colour_becomes_grey():
    got = read(blob(halves()), channels=1)
    assert got.shape == (8, 8, 1)
    assert (got[:, :4] == grey(*RED)).all() and (got[:, 4:] == grey(*BLUE)).all()


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_what_is_transparent_is_white(alpha):
    image = Image.new("RGBA", (8, 8), (*RED, alpha))
    want = [round(c * alpha / 255 + 255 * (255 - alpha) / 255) for c in RED]
    np.testing.assert_allclose(read(blob(image)), np.broadcast_to(want, (8, 8, 3)), atol=1)
    got = read(blob(Image.new("LA", (8, 8), (100, alpha))), channels=1)
    np.testing.assert_allclose(got, round(255 - 155 * alpha / 255), atol=1)


def test_a_transparent_colour_of_a_palette():
    image = halves("P")
    red = image.getpixel((0, 0))
    some = bytes(51 if i == image.getpixel((7, 0)) else 255 for i in range(256))
    for kind in ("PNG", "GIF"):
        got = read(blob(image, kind, transparency=red))
        assert (got[:, :4] == 255).all() and (got[:, 4:] == BLUE).all()
    got = read(blob(image, transparency=some))
    np.testing.assert_allclose(got[0, 7], [round(c / 5 + 204) for c in BLUE], atol=1)
    assert (got[:, :4] == RED).all()


@pytest.mark.parametrize("mode, value", [("L", 77), ("RGB", RED), ("I;16", 300), ("1", 1)])
def test_a_transparent_colour_of_an_image(mode, value):
    image = Image.new(mode, (8, 8), value)
    image.paste(0 if mode != "RGB" else BLUE, (0, 0, 4, 8))
    got = read(blob(image, transparency=value))
    assert (got[:, 4:] == 255).all() and (got[:, :4] != 255).any(axis=2).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    more = dict(lossless=True) if kind == "WEBP" else {}
    got = read(blob(frames[0], kind, save_all=True, append_images=frames[1:], **more))
    np.testing.assert_allclose(got, np.broadcast_to(RED, got.shape), atol=1)


# -- sizes ---------------------------------------------------------------------------------


def test_an_image_of_that_size_is_not_touched(rng):
    a = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(blob(Image.fromarray(a)), 32), a)


@pytest.mark.parametrize("height, width, size", [
    (96, 96, (32, 32)), (96, 64, (32, 32)), (64, 96, (32, 32)), (64, 128, (16, 32)),
    (136, 128, (16, 32)), (17, 17, (34, 34)), (1, 301, (4, 4)), (300, 200, (4, 4))])
def test_the_shorter_side_is_fitted_and_the_middle_cut_out(rng, height, width, size):
    """Against PyTorch's antialiased bicubic resize of the whole, and a cut."""
    torch = pytest.importorskip("torch")
    a = rng.integers(60, 200, (height, width, 3), dtype=np.uint8)  # room for overshoots
    scale = max(size[0] / height, size[1] / width)
    whole = [round(height * scale), round(width * scale)]
    top, left = ((n - m) // 2 for n, m in zip(whole, size, strict=True))
    want = torch.nn.functional.interpolate(
        torch.from_numpy(a.transpose(2, 0, 1)[None].astype("float32")), whole, mode="bicubic",
        antialias=True)[0].permute(1, 2, 0).numpy()[top : top + size[0], left : left + size[1]]
    got = read(blob(Image.fromarray(a)), size)
    assert got.shape == (*size, 3)
    assert abs(got - want).max() <= 1.5  # Pillow rounds twice


def test_a_fine_pattern_becomes_its_mean():
    """Nearest neighbour, or bicubic over four pixels, would give black or white."""
    a = np.zeros((512, 512), np.uint8)
    a[::2] = 255
    got = read(blob(Image.fromarray(a)), 16, 1)
    assert 120 <= got.min() and got.max() <= 135


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", [(600, 800), (1111, 777), (64, 64), (65, 500)])
def test_a_large_jpeg_is_as_good_as_a_png(rng, height, width, channels):
    """A JPEG is decoded at a fraction of its size: nearly the same must come out."""
    image = photograph(rng, height, width)
    fine = dict(quality=98, subsampling=0)
    ours = read(blob(image, "JPEG", **fine), 32, channels).astype(int)
    assert abs(ours - read(blob(image), 32, channels)).mean() < 1.5


def test_a_large_jpeg_is_decoded_small(rng, monkeypatch):
    fitted = []
    monkeypatch.setattr(module, "_fit", lambda image, *more, real=module._fit: (
        fitted.append(image.size), real(image, *more))[1])
    read(blob(photograph(rng, 1200, 1600), "JPEG"), 32)
    assert fitted == [(200, 150)]  # an eighth


def test_resized_does_the_same(rng):
    a = rng.integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    got = resized(a, (16, 12))
    for n in range(5):
        np.testing.assert_array_equal(got[n], read(blob(Image.fromarray(a[n])), (16, 12)))
    assert resized(a, (40, 30)) is a
    assert resized(a[..., :2], 8).shape == (5, 8, 8, 2) and resized(a[:0], 8).shape == (0, 8, 8, 3)


# -- orientation ---------------------------------------------------------------------------

UPRIGHT = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1],
           4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
           7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(rng, kind, orientation):
    a = np.asarray(photograph(rng, 6, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"WEBP": dict(lossless=True), "JPEG": dict(quality=100, subsampling=0)}.get(kind, {})
    content = blob(Image.fromarray(a), kind, exif=exif, **more)
    want = UPRIGHT[orientation](a)
    got = read(content, want.shape[:2])
    np.testing.assert_allclose(got, want, atol=3 if kind == "JPEG" else 0)
    if kind == "PNG":  # the middle is the same; Pillow rounds rows, then columns
        np.testing.assert_allclose(read(content, 4).astype(int),
                                   read(blob(Image.fromarray(want)), 4), atol=1)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_strange_orientation_is_none(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert (read(blob(halves(), exif=exif))[0, 0] == RED).all()


# -- what is refused -----------------------------------------------------------------------


def supported(extension):
    return {"webp": "webp", "jp2": "jpg_2000", "avif": "avif"}.get(extension) in (
        None, *features.get_supported())


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_half_a_file_is_damaged(tmp_path, rng, extension):
    if not supported(extension):
        pytest.skip(f"this Pillow reads no {extension}")
    path = tmp_path / f"half.{extension}"
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    assert read_image(path, 40).shape == (40, 40, 3)
    content = path.read_bytes()
    for part in (len(content) // 2, len(content) * 9 // 10, 12):
        path.write_bytes(content[:part])
        with pytest.raises(ValueError, match=rf"half\.{extension}: .*damaged"):
            read_image(path, 40)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_flipped_bytes_give_an_image_or_a_sentence(tmp_path, rng, extension):
    if not supported(extension):
        pytest.skip(f"this Pillow reads no {extension}")
    path = tmp_path / f"x.{extension}"
    photograph(rng, 24, 30).save(path)
    content = path.read_bytes()
    for _ in range(60):
        bad = bytearray(content)
        for at in rng.integers(0, min(len(bad), 400), 3):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try:
            assert read_image(path, 8).shape == (8, 8, 3)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")


def test_what_is_empty_or_no_image(tmp_path):
    path = tmp_path / "x.png"
    for content, said in ((b"", "empty"), (b"hello, I am a text", "no image of a known kind"),
                          (b"\x80\x04K\x05.", "no image"), (bytes(1000), "no image")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.png: {said}"):
            read_image(path, 8)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image(tmp_path / "gone.png", 8)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_image(tmp_path, 8)


@pytest.mark.parametrize("name", ["x.eps", "x.png"])
def test_a_program_is_never_run(tmp_path, monkeypatch, name):
    """Pillow would hand PostScript to Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", None)
    path = tmp_path / name
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="no image of a known kind"):
        read_image(path, 8)


def png(width, height):
    """As its header says; of its pixels there are none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(
        ">I", zlib.crc32(name + body)) for name, body in (
            (b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("width, height", [(30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused(width, height):
    with pytest.raises(ValueError, match=f"image: refused, it may be a decompression bomb: its "
                                         f"{width}x{height} pixels are more than 178,956,970"):
        read(png(width, height))


def test_pixels_that_do_not_fit_into_free_memory_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 2 * 10**9)
    with pytest.raises(MemoryError, match=r"^image: 9000x10000 pixels, made 8x8, need 2\.16 GB"):
        read(png(9_000, 10_000))
    with pytest.raises(MemoryError, match="image: 8x8 pixels, made 60000x60000, need 86"):
        read(blob(halves()), 60_000)
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 3 * 10**9)
    with pytest.raises(ValueError, match="image: damaged"):  # no warning of Pillow's comes before
        read(png(9_000, 10_000))


def ifd(tags, data):
    """A TIFF of 8 bits with these tags, all of type LONG; its pixels follow."""
    tags = {258: 8, 262: 1, 277: 1, **tags}
    offset = 8 + 2 + 12 * len(tags) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, offset if value == "data" else value)
            for tag, value in sorted(tags.items())]
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(rows) + bytes(4) + data)


def test_the_tiles_of_a_tiff_are_no_larger_than_an_image():
    """Its decoder would take the memory of a whole tile, whatever the image's size."""
    small = {256: 16, 257: 16, 259: 1, 322: 16, 323: 16, 324: "data", 325: 256}
    assert (read(ifd(small, bytes(range(256))), 16, 1)[..., 0].ravel() == np.arange(256)).all()
    with pytest.raises(ValueError, match="image: refused, .*bomb: its tiles of 40000x40000 pixels"):
        read(ifd(small | {259: 32773, 322: 40_000, 323: 40_000}, bytes(99)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without FIFOs")
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    for kind in ("FIFO", "socket", "device"):
        make_odd(tmp_path / kind, kind)
        with pytest.raises(OSError, match=f"{kind} is a {kind}, wanted a file"):
            read_image(tmp_path / kind, 8)
    make_odd(tmp_path / "link", "link to nowhere")
    with pytest.raises(FileNotFoundError, match=r"link: a link to .*nowhere, which is not there"):
        read_image(tmp_path / "link", 8)


def test_a_file_is_not_read_into_memory_that_is_not_there(tmp_path, monkeypatch):
    """Pillow reads WebP and AVIF files as a whole; a sparse file may have any length."""
    with open(tmp_path / "x.webp", "wb") as file:
        file.write(blob(halves(), "WEBP"))
        file.truncate(10**9)
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 10**9)
    with pytest.raises(MemoryError, match=r"x\.webp: 1,000,000,000 bytes need 2\.00 GB"):
        read_image(tmp_path / "x.webp", 8)


def test_a_bomb_in_a_text_of_a_png_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "\0" * (1 << 22), zip=True)
    with pytest.raises(ValueError, match="image: damaged, or .*too large"):
        read(blob(halves(), pnginfo=info))


@pytest.mark.parametrize("size, channels", [(0, 3), ((4, -1), 3), (4, 2), (4, 4)])
def test_impossible_wishes(size, channels):
    with pytest.raises(ValueError, match="read_image: (size|channels) is"):
        read(blob(halves()), size, channels)


def test_an_error_of_the_disk_is_none_of_the_image(tmp_path):
    class Disk(io.BytesIO):
        name = "x.png"

        def read(self, *_):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        read_image(Disk(blob(halves())), 8)


def test_without_pillow_it_says_what_to_install():
    code = """
import sys
sys.modules["PIL"] = None
from gpuconv.data import read_image
try:
    read_image("x.png", 8)
except ImportError as error:
    sys.exit("pip install pillow" not in str(error))
"""
    subprocess.run([sys.executable, "-c", code], check=True,
                   cwd=pathlib.Path(__file__).parents[1])


def test_a_jpeg_of_very_many_scans_is_refused():
    blob = io.BytesIO()
    Image.new("L", (64, 64), 9).save(blob, "JPEG", progressive=True)
    whole = blob.getvalue()
    scan = whole[whole.rindex(b"\xff\xda"):-2]
    assert read(whole).shape == (8, 8, 3)
    assert read(whole[:-2] + 100 * scan + whole[-2:]).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="it has [0-9]+ scans, wanted at most 500"):
        read(whole[:-2] + 600 * scan + whole[-2:])


def test_each_tile_of_a_jpeg_2000_counts(monkeypatch):
    """Its decoder takes memory for each tile, whatever its size."""
    blob = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blob, "JPEG2000", no_jp2=True)
    stream = bytearray(blob.getvalue())
    at = stream.index(b"\xff\x51")
    struct.pack_into(">II", stream, at + 6, 255, 256)  # width and height
    struct.pack_into(">II", stream, at + 22, 1, 1)     # of a tile
    monkeypatch.setattr("gpuconv.free_memory.free_memory", lambda: 500 * 10**6)
    with pytest.raises(MemoryError, match="image: 255x256 pixels, made 8x8, need 0.78 GB"):
        read(bytes(stream))
