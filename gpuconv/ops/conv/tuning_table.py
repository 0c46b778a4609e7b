"""Tuning table: the algorithms that `gpuconv tune` measured on one device, stored as JSON.

    {"format": "gpuconv tuned", "version": 1,
     "device": "NVIDIA H200", "architecture": 90, "cupy": "14.2.0", "nvrtc": "13.0",
     "entries": [{"direction": "forward", "dtype": "float16", "precision": "ieee",
                  "problem": {"N": 128, ..., "groups": 1},
                  "candidates": [{"engine": "tensor_cores", "tile": [128, 64, 32, 64, 32, 3],
                                  "splits": null, "milliseconds": 0.021}, ...]}, ...]}

The directions are "forward", "input_gradient" (dgrad) and "weight_gradient" (wgrad); "problem"
holds the sizes of a ``ConvShape``. Candidates stand fastest first; those of the engine "explicit",
which older versions had, are skipped on loading. A table is valid for the device and the versions
it was measured with, and is used only inside ``with ops.tuned(table):``. It changes the algorithm,
and so the last bits; its ``hash`` says which table it was.
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
from gpuconv.ops.window import ConvShape, spanning

FORMAT, VERSION = "gpuconv tuned", 1
Direction = Literal["forward", "dgrad", "wgrad"]
STORED: dict[Direction, str] = {  # names of the directions in a file
    "forward": "forward", "dgrad": "input_gradient", "wgrad": "weight_gradient"}
ENGINES = "tensor_cores", "simt", "explicit"  # in a file
REMOVED = "explicit"   # of ENGINES
MOST_SPLITS = 1 << 16  # what a grid of CUDA has in its third direction
Key = tuple[Direction, ConvShape, str, str]  # direction, sizes, name of the dtype, precision


class Algorithm(NamedTuple):
    """An engine, with its tile and the number of partial sums where these can be selected."""

    engine: str                # "tensor_cores" or "simt"
    tile: Tile | None = None   # of tensor cores
    splits: int | None = None  # of the weight gradient on tensor cores: partial sums


def here() -> dict[str, Any]:
    """Return the properties of the current device that a table depends on.

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
        where: result of ``here`` when it was measured.
        entries: {(direction, shape, dtype's name, precision): [(algorithm, milliseconds), ...]}.
    """

    def __init__(self, where: dict[str, Any], entries: dict[Key, list[tuple[Algorithm, float]]]):
        self.where = where
        self.entries = {key: sorted(timed, key=lambda one: one[1])
                        for key, timed in entries.items()}

    def find(self, key: Key) -> list[Algorithm]:
        """Return the measured algorithms, fastest first; none if it was not measured."""
        return [algorithm for algorithm, _ in self.entries.get(key, ())]

    @property
    def hash(self) -> str:
        """Hash of the stored text, in hex: two tables with one hash give the same bits."""
        return hashlib.sha256(json.dumps(self._told(), sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Refuse a table of another device or other versions.

        Raises:
            ValueError: it was measured elsewhere; says what differs.
        """
        now = here()
        other = [f"{name} {self.where.get(name)}, here {now[name]}" for name in now
                 if self.where.get(name) != now[name]]
        if other:
            raise ValueError(f"the tuned table was measured elsewhere ({'; '.join(other)}): run "
                             f"{program()} tune here")

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as JSON, as a whole or not at all."""
        with files.atomic_write(path, "w") as file:
            json.dump(self._told(), file, indent=1)
            file.write("\n")

    def _told(self) -> dict[str, Any]:
        entries = [
            {"direction": STORED[direction], "dtype": dtype, "precision": precision,
             "problem": _sizes(shape),
             "candidates": [{**one._asdict(), "milliseconds": ms} for one, ms in timed]}
            for (direction, shape, dtype, precision), timed in self.entries.items()]
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


def _sizes(shape: ConvShape) -> dict[str, Any]:
    """Return the sizes of a convolution as a file holds them."""
    (top, _), (left, _) = shape.window.pad
    return {**{name: getattr(shape, name) for name in "NHWCKRSPQ"}, "stride": shape.window.stride,
            "pad": (top, left), "dilation": shape.window.dilation, "groups": shape.groups}


def _shape(told: dict[str, Any]) -> ConvShape:
    """Return the convolution of ``_sizes``.

    Raises:
        ValueError: a size makes no sense.
    """
    N, H, W, C, K, R, S, P, Q = sizes = [told[name] for name in "NHWCKRSPQ"]
    stride, pad, dilation = pairs = [tuple(told[name]) for name in ("stride", "pad", "dilation")]
    if not all(len(pair) == 2 for pair in pairs) or not all(map(is_count, sizes)) or not all(
            is_count(n, 1) for n in (R, S, P, Q, *stride, *dilation, told["groups"])) or not all(
            type(n) is int for n in pad):
        raise ValueError(f"sizes {told!r:.100}")
    return ConvShape(N, H, W, C, K, spanning((R, S), stride, pad, dilation, (H, W), (P, Q)),
                     told["groups"])


def _entry(told: dict[str, Any]) -> tuple[Key, list[tuple[Algorithm, float]]]:
    """Return a convolution of a file, and its candidates."""
    shape, dtype = _shape(told["problem"]), told["dtype"]
    direction = {name: key for key, name in STORED.items()}.get(told["direction"])
    if direction is None or not isinstance(dtype, str) or not isinstance(told["precision"], str):
        raise ValueError(f"direction {told['direction']!r:.40}, dtype {dtype!r:.40}")
    timed = [(_algorithm(one), float(one["milliseconds"])) for one in told["candidates"]]
    return (direction, shape, dtype, told["precision"]), [
        (algorithm, ms) for algorithm, ms in timed if algorithm.engine != REMOVED]


def _algorithm(told: dict[str, Any]) -> Algorithm:
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
    return Algorithm(engine, tile and Tile(*tile), splits)


class _Here(threading.local):
    table: Table | None = None


_here = _Here()


@contextlib.contextmanager
def tuned(table: Table) -> Iterator[None]:
    """Compute convolutions and Linear layers with the table's algorithms, inside the block.

    This concerns this thread only, and backward passes inside the block too. What was not measured
    runs with its default.

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
    """Use a table inside the block as ``tuned`` does, without a check of the device."""
    before, _here.table = _here.table, table
    try:
        yield
    finally:
        _here.table = before


def find(direction: Direction, shape: ConvShape, dtype: np.dtype,
         precision: str) -> list[Algorithm]:
    """Return the algorithms of this thread's table, fastest first; none without a table."""
    table = _here.table
    return [] if table is None else table.find((direction, shape, dtype.name, precision))


def current() -> Table | None:
    """Return the table of this thread, or None."""
    return _here.table
