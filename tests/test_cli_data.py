"""``gpuconv data`` as its users meet it."""

import contextlib
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from cli_tools import ROOT, fails, gpuconv, in_a_terminal
from odd_files import make_odd
from PIL import Image
from test_cifar10 import batches, binary_files, pack

from gpuconv.cli.data import loading

FETCH = """
import dataclasses, functools, sys
from gpuconv import cli
import gpuconv.data.source as source
module = sys.modules["gpuconv.data.cifar10"]
url, size, sha256, *arguments = sys.argv[1:]
module.URL = url
module.BINARY = dataclasses.replace(module.BINARY, archive_bytes=int(size), archive_sha256=sha256)
source.cifar10 = functools.partial(source.cifar10, verify=False)  # of any number of images
sys.exit(cli.main(arguments))
"""


@pytest.fixture
def pets(tmp_path):
    for name, count in (("cat", 10), ("dog", 5)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (i, 100, 0)).save(tmp_path / "pets" / name / f"{i}.jpg")
    return tmp_path / "pets"


# -- good paths ----------------------------------------------------------------------------


def test_a_folder_and_its_picture(pets, tmp_path):
    picture = tmp_path / "pets.png"
    done = gpuconv("data", pets, "--image-size", 20, "--picture", picture)
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == f"data    pets, 2 classes, 12 + 3 images of 20x20, from {pets}"
    assert lines[1] == "images  20x20 pixels, 3 channels, uint8"
    assert re.fullmatch(r"mean    0\.\d{4} 0\.39\d\d 0\.0\d{3}", lines[2])
    assert re.fullmatch(r"std     0\.\d{4} 0\.0\d{3} 0\.0\d{3}", lines[3])
    assert lines[5:8] == ["class  train  test", "cat        8     2", "dog        4     1"]
    assert lines[8] == f"picture written to {picture}"
    with Image.open(picture) as made:
        assert made.format == "PNG" and made.size[0] > 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets", "pets.png"]


def test_an_npz_file(tmp_path):
    np.savez(tmp_path / "digits.npz", x_train=np.zeros((6, 8, 8)), y_train=[3, 4] * 3,
             x_test=np.ones((4, 8, 8)), y_test=[3, 4] * 2)
    done = gpuconv("data", "digits.npz", folder=tmp_path)
    assert done.stderr == ""
    assert "6 + 4 images of 8x8" in done.stdout and "8x8 pixels, 1 channel, uint8" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["3          3     2", "4          3     2"]


def test_help_has_an_example():
    done = gpuconv("data", "--help")
    assert done.returncode == 0 and "gpuconv data cifar10 --download" in done.stdout


class Handler(http.server.SimpleHTTPRequestHandler):
    """Breaks off after the first half of the archive; knows about ranges."""

    def do_GET(self):
        blob, asked = self.server.blob, self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        first = int(asked[6:-1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(blob) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(blob) - 1}/{len(blob)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(blob[first:] if asked else blob[: len(blob) // 2])

    def log_message(self, *_):
        pass


def test_download(tmp_path, rng):
    archive = pack(tmp_path / "x.tar.gz", [
        (f"cifar-10-batches-bin/{name}", blob) for name, blob in
        binary_files(batches(rng, 100)).items()])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.blob, server.asked = archive.read_bytes(), []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        command = [sys.executable, "-c", FETCH, f"http://127.0.0.1:{server.server_port}/",
                   str(len(server.blob)), hashlib.sha256(server.blob).hexdigest(), "data",
                   "cifar10", "--download"]
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
        runs = [subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60,
                               env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **cache})
                for _ in range(2)]
        server.shutdown()
        thread.join()
    for done in runs:
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "airplane" in done.stdout and "CIFAR-10, 500 + 100 images, from" in done.stdout
    megabytes = f"{len(server.blob) / 1e6:.1f}"
    counted = [line for line in runs[0].stdout.splitlines() if line.startswith("fetching")]
    assert counted[0] == f"fetching CIFAR-10: 0.0 of {megabytes} MB"
    assert counted[-1] == f"fetching CIFAR-10: {megabytes} of {megabytes} MB"
    assert len(counted) <= 11 and "fetching" not in runs[1].stdout  # it is there
    assert server.asked == [("/cifar-10-binary.tar.gz", None),
                            ("/cifar-10-binary.tar.gz", f"bytes={len(server.blob) // 2}-")]
    found = list(tmp_path.rglob("cifar-10-binary.tar.gz*"))
    assert len(found) == 1 and found[0].read_bytes() == server.blob


# -- bad paths -----------------------------------------------------------------------------


def test_cifar10_that_is_not_there_is_not_fetched(tmp_path):
    line = fails(1, "data", "cifar10", folder=tmp_path, XDG_CACHE_HOME=str(tmp_path),
                 HOME=str(tmp_path), https_proxy="http://127.0.0.1:9")
    for part in ("gpuconv data cifar10 --download", "by hand: get https://www.cs.toronto.edu/~kriz/"
                 "cifar-10-binary.tar.gz", "170,052,171 bytes", "SHA-256 c4a38c50"):
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_image(pets):
    (pets / "cat" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    line = fails(1, "data", pets)
    assert "cat/3.jpg" in line and "1 of the 15 images" in line


def test_broken_images_are_listed_or_skipped(pets, tmp_path):
    for name in ("cat/3.jpg", "dog/2.jpg"):
        (pets / name).write_bytes(b"\xff\xd8\xff\xe0 no more")
    (pets / "cat" / "new.heic").touch()
    (pets / "bat").mkdir()
    done = gpuconv("data", pets)
    assert done.returncode == 1
    *warned, first, cat, dog = done.stderr.splitlines()
    assert warned == [
        f"gpuconv: warning: {pets}: no image in bat: left out of the classes",
        f"gpuconv: warning: {pets}: left out 1 image of kinds that cannot be read "
        "(cat/new.heic): convert them to JPEG or PNG"]
    assert first == (f"gpuconv: error: 2 of the 15 images in {pets} cannot be read (repair or "
                     "remove them, or go on without: --skip-broken, skip_broken=True):")
    assert "cat/3.jpg: " in cat and "dog/2.jpg: " in dog
    done = gpuconv("data", pets, "--skip-broken")
    assert done.returncode == 0
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"gpuconv: warning: 2 of the 15 images in {pets} cannot be read, left")
    assert "cat/3.jpg: " in line and "dog/2.jpg: " in line
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [(name, int(a) + int(b)) for name, a, b in rows] == [("cat", 9), ("dog", 4)]


def test_a_fifo_among_the_images(pets):
    make_odd(pets / "cat" / "x.jpg", "FIFO")
    line = fails(1, "data", pets)
    assert "cat/x.jpg is a FIFO, wanted a file (1 of the 16 images" in line


@pytest.mark.parametrize("arguments, status, message", [
    (["nowhere"], 1, "data nowhere: no such file or folder; wanted cifar10, shapes, a folder"),
    (["shapes", "--download"], 1, "--download fetches CIFAR-10 and nothing else, not shapes"),
    (["shapes", "--test-share", "2"], 2, "--test-share: 2 is out of range, wanted 0..1"),
    (["shapes", "--picture", "no/folder/x.png"], 1, "there is no folder no/folder")])
def test_wrong_usage(arguments, status, message, tmp_path):
    assert message in fails(status, "data", *arguments, folder=tmp_path)


# -- what counts ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit, words", [("bytes", ["fetching CIFAR-10", "5.0/10.0 MB", "-:--:--"]),
                                         ("images", ["reading", "5000000/10000000", "images"])])
def test_a_bar_in_a_terminal(unit, words):
    from rich.console import Console
    out = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={})
    with loading(out) as progress:
        progress(0, 10**7, unit)
        progress(5 * 10**6, 10**7, unit)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.file.getvalue())
    for word in words:
        assert word in shown
    assert "━" in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_would_command_a_terminal(tmp_path):
    for name in ("\x1b[31mred\nline", "\udcff", "plain"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (4, 4), (i * 99, 0, 7)).save(tmp_path / name / f"{i}.png")
    seen, status = in_a_terminal("data", str(tmp_path))
    piped = gpuconv("data", tmp_path).stdout
    assert status == 0 and "\x1b[31mred" not in seen + piped
    for name in (r"\x1b[31mred\nline", r"\udcff", "plain"):
        assert re.search(rf"^{re.escape(name)} +1 +1$", piped, re.M) and name in seen


def test_plain_lines_in_a_pipe():
    from rich.console import Console
    out = Console(file=io.StringIO(), _environ={})
    with loading(out) as progress:
        for done in range(0, 1001):
            progress(done * 1000, 10**6, "bytes")
            progress(done, 1000, "images")
    lines = out.file.getvalue().splitlines()
    assert lines == [f"fetching CIFAR-10: 0.{i} of 1.0 MB" for i in range(10)] + [
        "fetching CIFAR-10: 1.0 of 1.0 MB"]
