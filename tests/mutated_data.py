"""Data files of every kind, damaged thousands of times: what readers say, and the memory they take.

    python mutated_data.py KIND COUNT    prints how many were read; fails at an undocumented error
"""

import bz2
import gzip
import io
import lzma
import pathlib
import random
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib

import numpy as np
from mutations import byte_mutations
from PIL import Image
from test_cifar10 import BINARY, batches, binary_files, python_files

from gpuconv.data import cifar10, npz, read_image

FREE = 1 << 28   # bytes of memory that are called free
EXTRA = 3 << 28  # bytes that the process may have beyond what it starts with
SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
IMAGES = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF")
KINDS = (*IMAGES, "npz", "tar.gz", "tar.xz", "tar.bz2", "tar", "bin", "pickle")
PACK = {"tar.gz": gzip.compress, "tar.xz": lzma.compress, "tar.bz2": bz2.compress, "tar": bytes}
EXTREME = (0, 1, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
OPCODES = b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}])" + bytes(range(0x80, 0x99))


# -- good files, and damage that their checksums do not show -------------------------------


def image(kind, rng):
    """A file of 20x24 pixels."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((24, 20))
    out = io.BytesIO()
    more = {"TIFF": dict(compression="tiff_lzw"), "JPEG": dict(progressive=True)}.get(kind, {})
    coarse.save(out, kind, **more)
    return out.getvalue()


def png(blob, chance):
    """A PNG with one chunk changed, its length or its content, and a checksum that is right."""
    chunks, at = [], 8
    while at < len(blob):
        length, = struct.unpack(">I", blob[at:at + 4])
        chunks.append([length, blob[at + 4:at + 8 + length]])
        at += 12 + length
    n = chance.randrange(len(chunks))
    length, content = chunks[n]
    if chance.random() < 0.3:
        chunks[n][0] = chance.choice(EXTREME)
    elif chance.random() < 0.3:
        big = zlib.compress(bytes(chance.choice((10, 10**6, 10**7))))
        kind = chance.choice((b"zTXtx\0\0", b"iCCPx\0\0", b"iTXtx\0\1\0\0\0", b"eXIf", b"acTL"))
        chunks.insert(1, [len(kind) - 4 + len(big), kind + big])
    else:
        chunks[n][1] = content[:4] + next(byte_mutations(content[4:], 1, chance.random()))
        chunks[n][0] = len(chunks[n][1]) - 4
    return blob[:8] + b"".join(struct.pack(">I", length) + content + struct.pack(
        ">I", zlib.crc32(content)) for length, content in chunks)


def numbers(blob, chance):
    """Two or four bytes of the beginning as an extreme number."""
    size, at = chance.choice((2, 4)), chance.randrange(min(len(blob), 300))
    value = chance.choice(EXTREME) % 2 ** (8 * size)
    return blob[:at] + value.to_bytes(size, chance.choice(("little", "big"))) + blob[at + size:]


def npz_file(chance, damaged):
    """An .npz file; damaged: an array's header or content, within a sound zip file."""
    images, labels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.arange(6) % 2
    number = chance.choice(("-1", "0", "7", "2**9", str(2**31), str(2**62), "1.5"))
    arrays = dict(images=images, labels=labels, classes=np.array(["a", "b"]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", chance.choice((0, 8, 8, 12, 14)) if damaged else 8) as file:
        for name, array in arrays.items():
            with io.BytesIO() as member:
                np.save(member, array)
                blob = member.getvalue()
            if damaged and chance.random() < 0.5:
                how = chance.randrange(4)
                if how == 0:
                    blob = blob.replace(b"(6,", f"({number},".encode())
                elif how == 1:
                    kind = chance.choice(("O", "<U9", "<f8", "V9", ">u2", "|b1", "<c16", "<M8[s]",
                                          "|V2147483647", "<U500000000", "|S0"))
                    blob = blob.replace(b"|u1", kind.encode()).replace(b"<i8", kind.encode())
                elif how == 2:
                    blob = blob[:8] + struct.pack("<H", chance.choice((0, 1, 65535))) + blob[10:]
                else:
                    blob = next(byte_mutations(blob, 1, chance.random()))
            file.writestr(f"{name}.npy", blob)
    return out.getvalue()


def tar_file(chance, damaged):
    """A tar archive; damaged: a header's fields, with a checksum that is right."""
    out = io.BytesIO()
    for name, blob in binary_files(batches(np.random.default_rng(0), 1)).items():
        info = tarfile.TarInfo(f"{BINARY}/{name}")
        info.size = len(blob)
        if damaged and chance.random() < 0.4:
            info.type = bytes([chance.choice(b"0125xgLKSX?")])
            info.size = chance.choice((len(blob), *EXTREME, -1, 2**40, 2**62))
            if chance.random() < 0.3:
                info.name = chance.choice(("../x", "x" * 90, "\u00e9", "."))
        head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        if damaged and chance.random() < 0.1:
            at = chance.randrange(148)
            head[at:at + 2] = chance.randbytes(2)
            head[148:156] = b" " * 8
            head[148:156] = b"%06o\0 " % sum(head)
        out.write(head + blob + bytes(-len(blob) % 512))
    return out.getvalue() + bytes(1024)


def opcodes(blob, chance):
    """A pickle with a few of its bytes replaced by instructions, among them huge sizes."""
    made = bytearray(blob)
    for _ in range(chance.choice((1, 2, 5))):
        at = chance.randrange(min(len(made), 200))
        word = bytes([chance.choice(OPCODES)])
        if chance.random() < 0.3:
            word += chance.choice((b"\xff\xff\xff\x7f", (2**62).to_bytes(8, "little"), b"\xff"))
        made[at:at + chance.choice((0, 1))] = word
    return bytes(made)


def damaged_files(kind, count):
    """Yield ``count`` damaged versions of a file."""
    chance, rng = random.Random(kind), np.random.default_rng(0)
    if kind in IMAGES:
        good = image(kind, rng)
    elif kind == "npz":
        good = npz_file(chance, False)
    elif kind in PACK:
        good = PACK[kind](tar_file(chance, False))
    else:
        made = batches(rng, 2)
        good = binary_files(made)["data_batch_1.bin"] if kind == "bin" else \
            python_files(made)["data_batch_1"]
    for n, blob in enumerate(byte_mutations(good, count, 1)):
        if n % 2:
            yield blob
        elif kind == "npz":
            yield npz_file(chance, True)
        elif kind in PACK:
            yield PACK[kind](tar_file(chance, True))
        elif kind == "pickle":
            yield opcodes(good, chance)
        elif kind == "PNG":
            yield png(good, chance)
        else:
            yield numbers(good, chance)


# -- reading them --------------------------------------------------------------------------


def reader(kind, folder):
    """(path of the damaged file, what reads it)."""
    if kind in IMAGES:
        path = folder / f"x.{SUFFIXES.get(kind, kind.lower())}"
        return path, lambda: read_image(path, 8)
    if kind == "npz" or kind in PACK:
        path = folder / f"x.{kind}"
        return path, lambda: npz(path) if kind == "npz" else cifar10(path, verify=False)
    made = batches(np.random.default_rng(0), 2)
    for name, blob in (binary_files if kind == "bin" else python_files)(made).items():
        (folder / name).write_bytes(blob)
    return (folder / ("data_batch_1.bin" if kind == "bin" else "data_batch_1"),
            lambda: cifar10(folder, verify=False))


def try_all(kind, count, folder):
    """Read ``count`` damaged files; return how many of them were read without an error.

    Raises:
        AssertionError: an undocumented exception, or one that does not name the file.
    """
    path, read = reader(kind, folder)
    sound = 0
    for n, blob in enumerate(damaged_files(kind, count)):
        path.write_bytes(blob)
        try:
            read()
            sound += 1
        except (ValueError, OSError, MemoryError) as error:
            said = str(error)
            assert str(path) in said and len(said) < 1000, f"{kind} {n}: {error!r}"
        except Exception as error:
            raise AssertionError(f"{kind} {n}: {error!r}") from error
    return sound


def main(kind, count):
    """Try them with little memory."""
    import resource

    import gpuconv.free_memory
    gpuconv.free_memory.free_memory = lambda: FREE
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        try_all(kind, 2, pathlib.Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(try_all(kind, count, pathlib.Path(folder)))
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert taken < EXTRA, f"{kind}: {taken:,} bytes of memory"
    print(f"{taken >> 20} MiB")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
