"""What a part of the GPU day finds, kept in a file as it comes; and what its compilations took."""

import contextlib
import importlib.metadata
import json
import pathlib
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from gpu_packages import there

from gpuconv import backend
from gpuconv.files import atomic_write


class Findings:
    """Figures and failures of a part, kept in a file as they come."""

    def __init__(self, path: pathlib.Path | None):
        self.path = path
        self.data: dict[str, Any] = dict(figures=[], failures=[], measurements=[], counts={},
                                         complete=False)

    def figure(self, what: str, value: Any, unit: str = "", good: bool | None = None,
               note: str = "") -> None:
        """Keep one; ``good`` says whether it is as it must be, None that it may be what it is."""
        row = dict(what=what, value=value, unit=unit, good=good, note=note)
        self.data["figures"].append(row)
        self.save()
        print(*(f"{word}" for word in row.values() if word not in (None, "")), flush=True)

    def failure(self, name: str, line: str) -> None:
        """Keep the name of what failed, and the first line of why."""
        self.data["failures"].append(dict(name=name, line=line[:400]))
        self.save()

    def end(self) -> None:
        """All has been tried."""
        self.data["complete"] = True
        self.save()

    def save(self) -> None:
        """The file is whole at each moment."""
        if self.path is None:  # they are printed
            return
        with atomic_write(self.path, "w") as file:
            json.dump(self.data, file)


def first_line(error: BaseException) -> str:
    """Of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def failing(findings: Findings, name: str) -> Iterator[None]:
    """What is raised inside is a failure of that name; the part goes on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        findings.failure(name, first_line(error))


@contextlib.contextmanager
def compiling(findings: Findings) -> Iterator[None]:
    """Inside, the kernels that are compiled, or come from CuPy's cache on the disk, are counted.

    The part's record has ``compiled``: {"kernels": how many, "seconds": how long all of it took}.
    """
    cp = backend.cupy()
    raw, found = cp.RawModule, dict(kernels=0, seconds=0.0)
    findings.data["compiled"] = found

    @contextlib.contextmanager
    def timed() -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            found["seconds"] = round(found["seconds"] + time.perf_counter() - began, 3)

    class Timed(raw):
        """CuPy compiles when a function is first asked for; the stand-in does at once."""

        def __init__(self, **source: Any):
            with timed():
                super().__init__(**source)

        def get_function(self, name: str) -> Any:
            found["kernels"] += 1
            with timed():
                return super().get_function(name)

    cp.RawModule = Timed
    try:
        yield
    finally:
        cp.RawModule = raw


def version(package: str) -> str:
    """Of an installed package; CuPy's has its CUDA in its name."""
    if package == "cupy":
        return backend.device_info().cupy
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "not installed"


def known(dtype: str) -> bool:
    """Has this machine such numbers?"""
    return dtype != "bfloat16" or there("ml_dtypes")


def litter(size: int) -> None:
    """Fill memory that is free now, and free it again."""
    cp = backend.cupy()
    held = [cp.full(max(1, size >> shift), 0xFF, np.uint8) for shift in range(8)]
    cp.cuda.get_current_stream().synchronize()
    del held
