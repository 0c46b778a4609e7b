"""Measured choices: what was fastest on one device, by `gpuconv tune`, stored as JSON.

    {"format": "gpuconv tuned", "version": 1,
     "device": "NVIDIA H200", "architecture": 90, "cupy": "14.2.0", "nvrtc": "13.0",
     "entries": [{"direction": "forward", "dtype": "float16", "precision": "ieee",
                  "problem": {"N": 128, ...},
                  "candidates": [{"engine": "tensor_cores", "tile": [128, 64, 32, 64, 32, 3],
                                  "splits": null, "milliseconds": 0.021}, ...]}, ...]}

Candidates stand fastest first. A table holds for the device and the versions it was measured with,
and only where it is asked for: ``with ops.tuned(table):``. It changes which engine computes, and so
the last bits; its ``hash`` says which table it was.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from gpuconv import files, reading
from gpuconv.backend import cupy
from gpuconv.checks import check_kind, check_path
from gpuconv.jsontext import is_count, is_number
from gpuconv.messages import program
from gpuconv.ops.conv.gpu_tile import Tile
from gpuconv.ops.conv.shape import Problem

FORMAT, VERSION = "gpuconv tuned", 1
Direction = Literal["forward", "input_gradient", "weight_gradient"]
DIRECTIONS: tuple[Direction, ...] = "forward", "input_gradient", "weight_gradient"
ENGINES = "tensor_cores", "simt", "explicit"
MOST_SPLITS = 1 << 16  # what a grid of CUDA has in its third direction
Key = tuple[Direction, Problem, str, str]  # direction, sizes, name of the dtype, precision


class Choice(NamedTuple):
    """An engine, and how it cuts the work where that is open."""

    engine: str                # one of ENGINES
    tile: Tile | None = None   # of tensor cores
    splits: int | None = None  # of the weight gradient on tensor cores: partial sums


def here() -> dict[str, Any]:
    """What a table depends on, of the current device.

    Raises:
        RuntimeError: there is no usable GPU.
    """
    cp = cupy()
    device = cp.cuda.Device()
    name = cp.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return {"device": name, "architecture": int(device.compute_capability),
            "cupy": cp.__version__, "nvrtc": ".".join(map(str, cp.cuda.nvrtc.getVersion()))}


class Table:
    """Candidates with their milliseconds, fastest first, for each convolution that was measured.

    Args:
        where: what ``here`` gave when it was measured.
        entries: {(direction, problem, dtype's name, precision): [(choice, milliseconds), ...]}.
    """

    def __init__(self, where: dict[str, Any], entries: dict[Key, list[tuple[Choice, float]]]):
        self.where = where
        self.entries = {key: sorted(timed, key=lambda one: one[1])
                        for key, timed in entries.items()}

    def find(self, key: Key) -> list[Choice]:
        """Fastest first; none if it was not measured."""
        return [choice for choice, _ in self.entries.get(key, ())]

    @property
    def hash(self) -> str:
        """Of all that it says, in hex: two tables with one hash give the same bits."""
        return hashlib.sha256(json.dumps(self._told(), sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """It must have been measured on this device, with these versions.

        Raises:
            ValueError: it was not; says what differs.
        """
        now = here()
        other = [f"{name} {self.where.get(name)}, here {now[name]}" for name in now
                 if self.where.get(name) != now[name]]
        if other:
            raise ValueError(f"the tuned table was measured elsewhere ({'; '.join(other)}): run "
                             f"{program()} tune here")

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON, as a whole or not at all."""
        with files.atomic_write(path, "w") as file:
            json.dump(self._told(), file, indent=1)
            file.write("\n")

    def _told(self) -> dict[str, Any]:
        entries = [
            {"direction": direction, "dtype": dtype, "precision": precision,
             "problem": p._asdict(),
             "candidates": [{**choice._asdict(), "milliseconds": ms} for choice, ms in timed]}
            for (direction, p, dtype, precision), timed in self.entries.items()]
        return {"format": FORMAT, "version": VERSION, **self.where, "entries": entries}


def load_table(path: str | os.PathLike) -> Table:
    """Return the table in a file that ``Table.save`` wrote.

    Raises:
        OSError: it cannot be read, or is no file.
        MemoryError: it could take more memory than is free.
        ValueError: it is no such table, or one of another version.
    """
    check_path("load_table", "path", path)
    try:
        told = reading.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; run {program()} tune again") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)} is no tuned table: run {program()} tune again")
    if told.get("version") != VERSION:
        raise ValueError(f"{os.fspath(path)} is a tuned table of version "
                         f"{told.get('version')!r:.40}, wanted {VERSION}: run "
                         f"{program()} tune again")
    try:
        where = {name: told[name] for name in ("device", "architecture", "cupy", "nvrtc")}
        return Table(where, dict(map(_entry, told["entries"])))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{os.fspath(path)} is a damaged tuned table ({what:.200}): run "
                         f"{program()} tune again") from None


def _entry(told: dict[str, Any]) -> tuple[Key, list[tuple[Choice, float]]]:
    """Return a convolution of a file, and its candidates."""
    sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v
                             for name, v in told["problem"].items()}
    p, direction, dtype = Problem(**sizes), told["direction"], told["dtype"]
    if direction not in DIRECTIONS or not isinstance(dtype, str) or not isinstance(
            told["precision"], str):
        raise ValueError(f"direction {direction!r:.40}, dtype {dtype!r:.40}")
    pairs = p.stride, p.pad, p.dilation
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs) or not all(
            is_count(size) for size in (*p[:9], p.groups, *(n for pair in pairs for n in pair))):
        raise ValueError(f"sizes {p!r:.100}")
    return (direction, p, dtype, told["precision"]), [
        (_choice(one), float(one["milliseconds"])) for one in told["candidates"]]


def _choice(told: dict[str, Any]) -> Choice:
    """Return a candidate of a file.

    Raises:
        ValueError: a value makes no sense.
    """
    engine, tile, splits = told["engine"], told["tile"], told["splits"]
    if engine not in ENGINES or not is_number(told["milliseconds"], 0) or not (
            splits is None or is_count(splits, 1, MOST_SPLITS)) or (
            (tile is None) == (engine == "tensor_cores")) or not (
            tile is None or len(tile) == 6 and all(is_count(size, 1, 1024) for size in tile)):
        raise ValueError(f"candidate {told!r:.100}")
    return Choice(engine, tile and Tile(*tile), splits)


class _Here(threading.local):
    table: Table | None = None


_here = _Here()


@contextlib.contextmanager
def tuned(table: Table) -> Iterator[None]:
    """Inside, in this thread, convolutions and Linear layers run as the table says.

    Backward passes, too, where they lie inside. What was not measured runs as always.

    Args:
        table: of ``load_table``, from a file that ``gpuconv tune`` wrote.

    Raises:
        ValueError: it was measured on another device, or with other versions.
    """
    check_kind("tuned", "table", table, Table, " of ops.load_table(path)")
    table.check()
    with used(table):
        yield


@contextlib.contextmanager
def used(table: Table) -> Iterator[None]:
    """As ``tuned``, wherever it was measured."""
    before, _here.table = _here.table, table
    try:
        yield
    finally:
        _here.table = before


def find(direction: Direction, p: Problem, dtype: np.dtype, precision: str) -> list[Choice]:
    """What the table of this thread says, fastest first; none where there is no table."""
    table = _here.table
    return [] if table is None else table.find((direction, p, dtype.name, precision))


def current() -> Table | None:
    """The table of this thread, where there is one."""
    return _here.table
