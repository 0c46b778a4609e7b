"""download: what arrives is whole and right, or not there."""

import contextlib
import hashlib
import http.server
import socket
import threading

import pytest

from gpuconv import files

BODY = bytes(range(256)) * 9000  # 2.3 MB: three blocks
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/good; /short ends early; /long announces nothing and goes on; /silent says nothing."""

    def do_GET(self):
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/silent":
            return self.server.done.wait()
        self.send_response(200)
        if self.path in ("/good", "/short"):
            self.send_header("Content-Length", str(len(BODY)))
        if self.path == "/other":
            self.send_header("Content-Length", "10")
        self.end_headers()
        body = {"/short": BODY[:5000], "/long": BODY * 3, "/other": b"0123456789"}
        with contextlib.suppress(ConnectionError):  # the client has hung up
            self.wfile.write(body.get(self.path, BODY))

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.done = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.done.set()
        server.shutdown()
        thread.join()


def fetch(address, path, **change):
    files.download(address, path, **dict(sha256=SHA256, size=len(BODY)) | change)


@pytest.mark.parametrize("page", ["good", "unannounced"])
def test_brings_the_file(url, tmp_path, page):
    target, seen = tmp_path / "new" / "folder" / "file.bin", []
    fetch(f"{url}/{page}", target, progress=lambda done, size: seen.append((done, size)))
    assert target.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY)) and len(seen) >= 3 and seen == sorted(seen)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("page, change, error, message", [
    ("short", {}, ValueError, f"/short gave only 5000 bytes, wanted {len(BODY)}"),
    ("long", {}, ValueError, f"/long gave more than {len(BODY)} bytes, wanted {len(BODY)}"),
    ("other", {}, ValueError, f"/other is 10 bytes long, wanted {len(BODY)}"),
    ("good", dict(sha256="0" * 64), ValueError, f"/good has SHA-256 {SHA256}, wanted 0000"),
    ("missing", {}, OSError, "/missing: HTTP Error 404"),
])
def test_leaves_nothing_behind_when_it_fails(url, tmp_path, page, change, error, message):
    with pytest.raises(error, match=message):
        fetch(f"{url}/{page}", tmp_path / "file.bin", **change)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_file_of_before(url, tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="only 5000 bytes"):
        fetch(f"{url}/short", target)
    assert target.read_bytes() == b"old"


def test_gives_up_on_a_silent_server(url, tmp_path, monkeypatch):
    assert files.PATIENCE == 5
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(OSError, match="/silent: timed out"):
        fetch(f"{url}/silent", tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_says_when_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(OSError, match=f"download: {address}: .*refused"):
        fetch(address, tmp_path / "file.bin")


def test_an_error_of_the_caller_passes_through(url, tmp_path):
    def stop(done, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{url}/good", tmp_path / "file.bin", progress=stop)
    assert list(tmp_path.iterdir()) == []
