"""What can lie where a file is expected, and must not be opened like one."""

import os
import socket

import pytest

ODD = ("folder", "FIFO", "socket", "device", "link to nowhere", "link to itself")


def make_odd(path, kind):
    """Put it there, or skip the test where the system has no such thing."""
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_text("")
        return
    if os.name != "posix":
        pytest.skip("a system without such files")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":  # its name may be too long for bind
        with socket.socket(socket.AF_UNIX) as made:
            before = os.getcwd()
            os.chdir(path.parent)
            try:
                made.bind(path.name)
            finally:
                os.chdir(before)
    else:
        path.symlink_to({"device": "/dev/zero", "link to nowhere": path.parent / "nowhere",
                         "link to itself": path}[kind])
