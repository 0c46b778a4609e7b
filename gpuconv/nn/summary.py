"""A model, layer by layer: volumes, windows, parameters, arithmetic, memory, receptive fields.

One black image runs through the model in eval mode, layer by layer, and the tape that it leaves is
read: modules that users write count as well. A second run tells which layers run as one op.

    parameters      of a convolution K (R S C/groups + bias): shared by all positions of the filter
    unshared        what a locally connected layer would have, P Q K (R S C/groups + bias)
    multiply-adds   P Q K R S C/groups per image; of Linear K C
    activations     bytes of the layer's output, per image; 0 where it is a view of its input
    field           height and width of the part of the image that one output pixel depends on

Source: CS231n notes, "Convolutional networks", on parameter sharing.
"""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv import autograd, recompute
from gpuconv.autograd import Op, Parameter, Tensor
from gpuconv.backend import asarray, get_array_module
from gpuconv.checks import check_choice, check_count, check_kind
from gpuconv.checks import short as short_repr
from gpuconv.nn import fusion
from gpuconv.nn.module import Module
from gpuconv.nn.observed import calls, observed, untouched
from gpuconv.nn.receptive_field import Field, cropped, field, positions, products, windowed
from gpuconv.ops.window import Pair

WIDE = 114  # columns of a terminal that show every column


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer, at one of its calls. Sizes are of one image; bytes are bytes."""

    path: str                  # "2.body.0"
    kind: str                  # its class: "Conv2d"
    arguments: str             # as in its repr
    input: tuple[int, ...]     # volume (H, W, C), or (n,)
    output: tuple[int, ...]
    filter: Pair | None        # (height, width), pixels; None where no window slides
    stride: Pair | None
    padding: tuple[Pair, Pair] | None  # ((top, bottom), (left, right))
    dilation: Pair | None
    cropped: str               # "1 row, 2 columns cropped", where the filter does not fit evenly
    parameters: int
    unshared: int              # parameters, if each position had filters of its own
    multiply_adds: int
    activation_bytes: int
    receptive_field: Pair      # (height, width), pixels of the image; (0, 0) if it sees none
    op: str = ""               # "0+1+2": paths of all layers that run as one op with this one

    @property
    def joined(self) -> bool:
        """Does the layer run as one op with the layer above it?"""
        return self.op != self.path and not self.op.startswith(f"{self.path}+")


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of ``nn.summary``: ``str`` gives plain text, ``table`` a table for a terminal."""

    model: str                 # its class
    input: tuple[int, ...]
    dtype: str
    device: str                # where layers run together so: "cpu", "cuda"; "none": disabled
    rows: tuple[Row, ...]      # in the order of the calls
    parameters: int            # of the model: tied ones once
    trainable: int             # those that are not frozen
    multiply_adds: int
    activation_bytes: int

    @property
    def totals(self) -> str:
        """A sentence."""
        frozen = self.parameters - self.trainable
        return (f"{self.parameters:,} parameters" + (f" ({frozen:,} frozen)" if frozen else "")
                + f"; {short(self.multiply_adds)} multiply-adds and {human(self.activation_bytes)} "
                f"of activations ({self.dtype}) per image of {_x(self.input)}")

    @property
    def _legend(self) -> str:
        line = f"+ runs together with the layer above it ({self.device})"
        return line if any(row.joined for row in self.rows) else ""

    def __str__(self) -> str:
        cells = [list(_HEADINGS), *([*_cells(row), row.cropped] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(w) if i in _RIGHT else c.ljust(w) for i, (c, w) in
                           enumerate(zip(row, widths, strict=True))).rstrip() for row in cells]
        return "\n".join(filter(None, [*lines, self._legend, self.totals]))

    def table(self, width: int | None = None) -> Any:
        """A rich Table for a terminal of so many columns. Default: this one.

        In a narrow terminal large numbers are rounded and cells have several lines: no column is
        left out or cut off.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text
        wide = (width or shutil.get_terminal_size().columns) >= WIDE
        made = Table(box=SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False,
                     collapse_padding=True, caption_justify="left", caption_style="none",
                     caption=Text("\n".join(filter(None, [self._legend, self.totals]))))
        for heading, right in _WIDE if wide else _NARROW:
            made.add_column(Text(heading), justify="right" if right else "left",
                            vertical="top", overflow="fold", no_wrap=right)
        for row in self.rows:
            path, kind, *cells = (_cells if wide else _narrow)(row)
            layer = [Text(path, "cyan"), Text(kind)]
            if not wide:
                layer = [Text(" " if len(path + kind) < 18 else "\n").join(layer)]
            if row.cropped:
                layer[-1].append(f"\n{row.cropped}", "yellow")
            made.add_row(*layer, *map(Text, cells))
        return made


def summary(model: Module, input_shape: tuple[int, ...] = (32, 32, 3),
            device: str | None = None) -> Summary:
    """Describe a model layer by layer, and say which layers run as one op.

    A row is a layer without submodules, at one of its calls; or a module that computes with
    parameters, or windows, of its own. Layers that run as one op stand together.

    Args:
        model: it is left as it was: mode, weights, statistics, random numbers.
        input_shape: (H, W, C) of an image.
        device: "cpu" or "cuda": show which layers run as one op there; no GPU is needed. Default:
            where the model is.

    Raises:
        ValueError, TypeError: the model does not take such images; names the layer.

    >>> from gpuconv.nn import Conv2d, Sequential
    >>> alex = summary(Sequential(Conv2d(3, 96, 11, stride=4)), (227, 227, 3)).rows[0]
    >>> alex.output, alex.parameters, alex.unshared
    ((55, 55, 96), 34944, 105705600)
    """
    check_kind("summary", "model", model, Module)
    if not isinstance(input_shape, (tuple, list)) or not input_shape:
        raise TypeError(f"summary: input_shape is {short_repr(input_shape)}, wanted (H, W, C)")
    shape = tuple(check_count("summary", "a size of input_shape", n) for n in input_shape)
    check_choice("summary", "device", device, (None, "cpu", "cuda"))
    x = Tensor(asarray(np.zeros((1, *shape), model.dtype), model.device), requires_grad=True)
    reader, where = _Reader(x), device or fusion.device_of(x)
    with recompute.disabled(), np.errstate(all="ignore"):
        with untouched(model), autograd.grad(), fusion.disabled(), observed(model, reader.around):
            model.eval()(x)
        with untouched(model), autograd.no_grad(), fusion.planned_for(where):
            ops = calls(model.eval(), x)
    parameters = list(model.parameters())
    return Summary(type(model).__name__, shape, model.dtype.name, where,
                   tuple(_by_op(reader.rows, ops)),
                   sum(p.size for p in parameters),
                   sum(p.size for p in parameters if p.requires_grad),
                   sum(row.multiply_adds for row in reader.rows),
                   sum(row.activation_bytes for row in reader.rows))


def _by_op(rows: list[Row], ops: list[tuple[str, ...]]) -> Iterator[Row]:
    """Yield the rows with the op that each runs in, in the order of the ops; then all others."""
    waiting = list(rows)
    for paths in ops:
        for path in paths:
            for index, row in enumerate(waiting):
                if row.path == path:
                    yield dataclasses.replace(waiting.pop(index), op="+".join(paths))
                    break
    yield from (dataclasses.replace(row, op=row.path) for row in waiting)


class _Reader:
    """Reads the tape as it is written, and makes a row of each layer."""

    def __init__(self, x: Tensor):
        self.x = x
        self.image: Pair = (x.shape[1], x.shape[2]) if x.ndim == 4 else (1, 1)
        self.fields: dict[Any, Field] = {x: Field()}
        self.seen: set[Op] = set()
        self.rows: list[Row] = []
        self.stack: list[list[Op]] = [[]]  # ops of each module that is being called

    def around(self, path: str, module: Module, forward: Any, *inputs: Any) -> Any:
        for value in inputs:
            self.read(value)  # what the caller did in between
        place, leaf = len(self.rows), not any(module.named_children())
        self.stack.append([])
        try:
            y = forward(*inputs)
        except (ValueError, TypeError) as error:
            if not leaf or type(error) not in (ValueError, TypeError):
                raise
            raise type(error)(f"summary: {' '.join(filter(None, ['layer', path]))} "
                              f"({type(module).__name__}): {error}") from None
        self.read(y)
        ops = self.stack.pop()
        own = [p for p in vars(module).values() if isinstance(p, Parameter)]
        if isinstance(y, Tensor) and (leaf or own or any(
                products(op) or windowed(op) for op in ops)):
            self.rows.insert(place, self.row(path, module, ops, own, inputs, y))
        return y

    def read(self, value: Any) -> None:
        """Give the new ops behind a Tensor to the module that is being called."""
        new, todo = [], [value.creator] if isinstance(value, Tensor) else []
        while todo:
            op = todo.pop()
            if isinstance(op, Op) and op not in self.seen:
                self.seen.add(op)
                new.append(op)
                todo.extend(op.parents)
        for op in sorted(new, key=lambda op: op.serial):
            seen = field(op, [self.fields.get(p) for p in op.parents], self.image)
            if seen:
                self.fields[op] = seen
            self.stack[-1].append(op)

    def row(self, path: str, module: Module, ops: list[Op], own: list[Parameter],
            inputs: Any, y: Tensor) -> Row:
        windows = [part for op in ops for part in windowed(op)]
        window = windows[0].window if len(windows) == 1 else None
        padded = next((op.pads for op in ops if hasattr(op, "pads")), None)
        padding = (padded or window.pad) if window else None
        parameters = sum(p.size for p in own)
        copies = sum((math.prod(positions(op)) - 1) * getattr(op, "shared_parameters", 0)
                     for op in windows)
        copied = y.creator in ops and not any(
            get_array_module(y.data).may_share_memory(y.data, v.data)
            for v in inputs if isinstance(v, Tensor))
        return Row(
            path=path, kind=type(module).__name__, arguments=module.arguments(),
            input=next((v.shape[1:] for v in inputs if isinstance(v, Tensor)), ()),
            output=y.shape[1:],
            filter=window.size if window else None, stride=window.stride if window else None,
            padding=padding, dilation=window.dilation if window else None,
            cropped=cropped(windows[0], padding) if padding else "",
            parameters=parameters, unshared=parameters + copies,
            multiply_adds=sum(map(products, ops)),
            activation_bytes=y.data.nbytes if copied else 0,
            receptive_field=self.fields.get(y.creator or y, Field((0, 0))).size)


# -- text --------------------------------------------------------------------------------

_HEADINGS = ("layer", "kind", "output", "filter", "stride", "padding", "parameters", "unshared",
             "multiply-adds", "activations", "field", "")
_RIGHT = range(6, 11)
_WIDE = [(name, i in _RIGHT) for i, name in enumerate(_HEADINGS[:11])]
_NARROW = [("layer", False), ("output", False), ("window", False), ("para-\nmeters", True),
           ("un-\nshared", True), ("mult-\nadds", True), ("activa-\ntions", True),
           ("field", True)]


def short(n: float) -> str:
    """A count in three digits.

    >>> short(999), short(34944), short(105705600)
    ('999', '34.9k', '106M')
    """
    units = iter("kMGT")
    unit = ""
    while n >= 999.5:
        n, unit = n / 1000, next(units, "P")
    return f"{n:.{0 if not unit or n >= 99.95 else 1}f}{unit}"


def human(size: float) -> str:
    """Bytes in a unit that people read.

    >>> human(999), human(1 << 20), human(3.25 * 2**30)
    ('999 bytes', '1.0 MiB', '3.2 GiB')
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _cells(row: Row) -> list[str]:
    return [row.path, "+ " * row.joined + row.kind, _x(row.output), *_window(row),
            f"{row.parameters:,}", f"{row.unshared:,}", f"{row.multiply_adds:,}",
            human(row.activation_bytes), _x(row.receptive_field)]


def _narrow(row: Row) -> list[str]:
    """The window as the notation of ``gpuconv.models`` has it: 3x3/2p1."""
    size, stride, padding = _window(row)
    window = (size + (f"/{stride}" if stride not in ("", "1") else "")
              + (f"p{padding}" if padding not in ("", "0") else ""))
    return [row.path, "+ " * row.joined + row.kind, _x(row.output), window, short(row.parameters),
            short(row.unshared), short(row.multiply_adds), human(row.activation_bytes),
            _x(row.receptive_field)]


def _window(row: Row) -> tuple[str, str, str]:
    """Filter, stride and padding; one number where all are the same."""
    if not (row.filter and row.stride and row.padding):
        return "", "", ""
    dilated = "" if row.dilation == (1, 1) else f" every {_one(row.dilation)}"
    sides = [_one(pair, ",") for pair in row.padding]
    return _x(row.filter) + dilated, _one(row.stride), _one(sides)


def _one(pair: Any, between: str = "x") -> str:
    a, b = pair
    return f"{a}" if a == b else f"{a}{between}{b}"


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
