"""download: what arrives is whole and right, or not there; a broken transfer goes on."""

import contextlib
import hashlib
import http.server
import re
import socket
import struct
import threading

import pytest

from gpuconv.data import download as module
from gpuconv.data.download import download

BODY = bytes(range(256)) * 9000  # 2.3 MB
SIZE = len(BODY)
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = BODY[::-1]
HALF = SIZE // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """A page per kind of server; /good, /breaks and those with "range" know about ranges."""

    def do_GET(self):
        page, asked = self.path[1:], self.headers.get("Range")
        self.server.asked.append(asked)
        first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if page == "missing":
            return self.send_error(404)
        if page == "silent" or (page == "then-silent" and first):
            return self.server.done.wait()
        if page == "416" and asked:
            return self.send_error(416)
        body = {"other": b"0123456789", "long": BODY * 3, "changed": OTHER}.get(page, BODY)
        head, length = {}, len(body)
        if page not in ("no-ranges", "unannounced", "short", "long", "changed", "other", "416"):
            body = body[first:]
            if first:
                head["Content-Range"] = {
                    "range-shifted": f"bytes {first - 1}-{length - 2}/{length}",
                    "range-nonsense": "bytes from there on",
                    "range-other-size": f"bytes {first}-{length}/{length + 1}",
                    "range-unknown-size": f"bytes {first}-{length - 1}/*",
                }.get(page, f"bytes {first}-{length - 1}/{length}")
        self.send_response(206 if "Content-Range" in head else 200)
        if page not in ("unannounced", "long"):
            head["Content-Length"] = str(len(body))
        for both in head.items():
            self.send_header(*both)
        self.end_headers()
        if page in ("short", "breaks", "resets", "then-silent"):
            body = body[: SIZE // 3 + 1]
        with contextlib.suppress(ConnectionError):  # the client has hung up
            self.wfile.write(body)
            if page == "then-silent":
                self.wfile.flush()
                self.server.done.wait()
        if page == "resets" and body:  # close with RST, when some of it has been read
            threading.Event().wait(0.02)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.done, server.asked = threading.Event(), []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.done.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.bin"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.bin.part"


def fetch(address, path, **change):
    download(address, path, **dict(sha256=SHA256, size=SIZE) | change)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- a first try ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["good", "no-ranges", "unannounced"])
def test_brings_the_file(server, tmp_path, page):
    target, seen = tmp_path / "new" / "folder" / "file.bin", []
    fetch(f"{server.url}/{page}", target, progress=lambda *both: seen.append(both))
    assert target.read_bytes() == BODY and names(target.parent) == ["file.bin"]
    assert seen[0] == (0, SIZE) and seen[-1] == (SIZE, SIZE) and seen == sorted(seen)
    assert len(seen) >= 3 and server.asked == [None]


def test_brings_a_file_of_this_machine(tmp_path, target):
    (tmp_path / "source").write_bytes(BODY)
    fetch((tmp_path / "source").as_uri(), target)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("page, change, error, message", [
    ("long", {}, ValueError, f"/long gave more than {SIZE} bytes, wanted {SIZE}"),
    ("other", {}, ValueError, f"/other is 10 bytes long, wanted {SIZE}"),
    ("good", dict(sha256="0" * 64), ValueError, f"/good has SHA-256 {SHA256}, wanted 0000"),
    ("missing", {}, OSError, "/missing: HTTP Error 404"),
])
def test_leaves_nothing_behind_when_there_is_nothing_to_keep(server, target, page, change, error,
                                                             message):
    with pytest.raises(error, match=message):
        fetch(f"{server.url}/{page}", target, **change)
    assert names(target.parent) == []


def test_an_error_says_what_to_do_by_hand(server, target):
    with pytest.raises(OSError) as caught:
        fetch(f"{server.url}/missing", target)
    assert str(caught.value).endswith(
        f"; by hand: get {server.url}/missing (2,304,000 bytes, SHA-256 {SHA256}) and put it at "
        f"{target}")


def test_a_failure_keeps_the_file_of_before(server, target):
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="broke off"):
        fetch(f"{server.url}/short", target)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("page, left", [("silent", []), ("then-silent", ["file.bin.part"])])
def test_gives_up_on_a_silent_server(server, target, monkeypatch, page, left):
    assert module.PATIENCE == 5
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with pytest.raises(OSError, match=f"/{page}: the server was silent for 0.1 seconds"):
        fetch(f"{server.url}/{page}", target)
    assert names(target.parent) == left


def test_says_when_nobody_listens(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(OSError, match=f"download: {address}: .*refused"):
        fetch(address, target)


# -- going on ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["breaks", "resets"])
def test_a_broken_transfer_goes_on_in_the_same_call(server, target, page):
    seen = []
    fetch(f"{server.url}/{page}", target, progress=lambda *both: seen.append(both[0]))
    assert target.read_bytes() == BODY and names(target.parent) == ["file.bin"]
    assert len(server.asked) >= 3 and seen == sorted(seen)


def test_goes_on_in_a_later_call(server, target, part):
    def stop(done, size):
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/good", target, progress=stop)
    kept, seen = part.stat().st_size, []
    assert HALF < kept < SIZE and part.read_bytes() == BODY[:kept]
    fetch(f"{server.url}/good", target, progress=lambda *both: seen.append(both))
    assert server.asked == [None, f"bytes={kept}-"] and seen[0] == (kept, SIZE)
    assert target.read_bytes() == BODY and names(target.parent) == ["file.bin"]


def test_an_error_says_what_is_kept(server, target, part):
    with pytest.raises(OSError, match=f"broke off: only 768001 bytes came, wanted {SIZE}; 768,001 "
                                      f"of 2,304,000 bytes wait in {part}, try again to go on; by"):
        fetch(f"{server.url}/short", target)
    assert part.read_bytes() == BODY[:768_001] and len(server.asked) == module.TRIES + 1


@pytest.mark.parametrize("page", [
    "good", "no-ranges", "unannounced", "416", "range-shifted", "range-nonsense",
    "range-unknown-size"])
@pytest.mark.parametrize("left", [
    pytest.param(BODY[:HALF], id="half"), pytest.param(BODY[:-1], id="all-but-one"),
    pytest.param(BODY, id="all"), pytest.param(OTHER[:HALF], id="garbage"),
    pytest.param(OTHER, id="garbage-of-that-size"), pytest.param(BODY + b"!", id="too-long"),
    pytest.param(b"", id="empty")])
def test_whatever_is_left_ends_in_the_right_file(server, target, part, page, left):
    part.write_bytes(left)
    fetch(f"{server.url}/{page}", target)
    assert target.read_bytes() == BODY and names(target.parent) == ["file.bin"]


def test_a_complete_one_needs_no_server(target, part):
    part.write_bytes(BODY)
    fetch("http://127.0.0.1:9/nobody", target)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("page, message, kept", [
    ("changed", "has SHA-256 [0-9a-f]{64}, wanted", False),  # another file of that length
    ("range-other-size", f"is {SIZE + 1} bytes long, wanted {SIZE}", True),
    ("other", f"is 10 bytes long, wanted {SIZE}", True)])
def test_a_file_that_has_changed(server, target, part, page, message, kept):
    part.write_bytes(BODY[:HALF])
    with pytest.raises(ValueError, match=message):
        fetch(f"{server.url}/{page}", target)
    assert names(target.parent) == ["file.bin.part"] * kept


def test_no_two_processes_at_once(server, target, part):
    fcntl = pytest.importorskip("fcntl")
    part.write_bytes(BODY[:HALF])
    with open(part, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=f"another process is fetching it, into {part}"):
            fetch(f"{server.url}/good", target)
    assert part.read_bytes() == BODY[:HALF]
    fetch(f"{server.url}/good", target)
    assert target.read_bytes() == BODY


def test_a_full_disk(server, target, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, block):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    fetched = module._fetch
    monkeypatch.setattr(module, "_fetch", lambda file, *more: fetched(Full(file), *more))
    with pytest.raises(OSError, match="/good: No space left on device; by hand") as caught:
        fetch(f"{server.url}/good", target)
    assert caught.value.errno == 28 and names(target.parent) == []
