"""Parts of messages to people: escaped text, suggestions, commands that can be pasted into a shell.

Exceptions of the Python API hold names as they are, so that a program can compare them. Whatever
shows a text to a person, the command line and the report, passes it through ``printable``.
"""

import contextlib
import difflib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable

PACKAGES = {  # of the extras in pyproject.toml
    "cuda13": ("cupy-cuda13x>=14,<15", "cuda-toolkit[cublas,cudart,curand,nvrtc]==13.*"),
    "cuda12": ("cupy-cuda12x>=14,<15", "cuda-toolkit[cublas,cudart,curand,nvrtc]==12.*"),
    "bfloat16": ("ml_dtypes", "numpy>=2.1.2"),
    "plot": ("matplotlib",),
    "tensorboard": ("tensorboardX",),
    "docs": ("pdoc",),
}


def printable(text: str) -> str:
    r"""Escape characters that control a terminal, reorder or hide text, or break a line.

    That is all that Unicode does not call printable: control characters, also those beyond ASCII,
    line separators, bidirectional and zero-width formats, lone surrogates, unassigned characters.

    >>> print(printable("red\x1b[31m"), printable("two\nlines"), printable("no Unicode\udcff"))
    red\x1b[31m two\nlines no Unicode\udcff
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def did_you_mean(word: object, choices: Iterable[object]) -> str:
    """Return the end of a message about an unknown word: the choice most like it, if one is.

    >>> did_you_mean("sdg", ["sgd", "adam"]), did_you_mean("x", ["sgd", "adam"])
    ('; did you mean sgd?', '')
    """
    spelt = {str(choice).lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(word)[:80].lower(), spelt, 1, 0.5)
    return f"; did you mean {spelt[near[0]]}?" if near else ""


def wanted_one_of(word: object, choices: Iterable[object]) -> str:
    """Return the end of a message about an unknown word: all choices, and the one most like it.

    >>> wanted_one_of("sdg", ["sgd", "adam"])
    'wanted one of sgd, adam; did you mean sgd?'
    """
    return f"wanted one of {', '.join(map(str, choices))}{did_you_mean(word, choices)}"


def quoted(*words: object) -> str:
    """Return words as a shell takes them.

    >>> quoted("runs/my run")
    "'runs/my run'"
    """
    if os.name == "nt":
        return " ".join(f'"{word}"' if re.search(r"[^\w:./\\+-]", str(word)) else str(word)
                        for word in words)
    return shlex.join(map(str, words))


def program() -> str:
    """Return the shell command that runs this gpuconv.

    "gpuconv" if the shell finds it under that name, else the path of the script; or, if that is not
    what was started, the module of this Python.
    """
    started = sys.argv[0] if sys.argv else ""
    if os.path.basename(started).lower() in ("gpuconv", "gpuconv.exe"):
        return _typed(started)
    return f"{python()} -m gpuconv"


def python() -> str:
    """Return the shell command that runs this Python."""
    return _typed(sys.executable) if sys.executable else "python"


def install(what: str) -> str:
    """Return the shell command that installs what an extra of gpuconv needs, or a package."""
    return f"{python()} -m pip install {quoted(*PACKAGES.get(what, (what,)))}"


def _typed(path: str) -> str:
    """Return an executable by name if PATH leads to it, else by its path, quoted."""
    with contextlib.suppress(OSError, ValueError):  # the folder is gone; another drive of Windows
        name = os.path.basename(path).removesuffix(".exe")
        found = shutil.which(name)
        if found and _place(found) == _place(path):
            return name
        inside = os.path.relpath(path)
        if not inside.startswith(os.pardir):
            path = inside if os.path.dirname(inside) else os.path.join(os.curdir, inside)
    return quoted(path)


def _place(path: str) -> tuple[str, str]:
    """Return (folder without links, name): a Python of a venv is a link to another one."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.realpath(folder), os.path.normcase(name).removesuffix(".exe")
