"""The numbers of each group of an optimiser that change from step to step: see optimizer.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuconv.backend import Array, array_device, asarray, device_name, get_array_module
from gpuconv.checks import check_number, short
from gpuconv.optim.flat import Flat


def new_tables(flats: Sequence[Sequence[Flat]]) -> dict[str, Array]:
    """{device: (groups, 4) float64}, and each flat buffer's ``control`` is its group's row.

    Factor and multiplier are 1, no step is left out.
    """
    tables: dict[str, Array] = {}
    for number, its in enumerate(flats):
        for flat in its:
            place = device_name(flat.data)
            with array_device(flat.data):
                if place not in tables:
                    tables[place] = get_array_module(flat.data).zeros((len(flats), 4), np.float64)
                    tables[place][:, :2].fill(1)
                flat.control = tables[place][number]
    return tables


def set_factors(caller: str, tables: Mapping[str, Array],
                value: float | Sequence[float] | np.ndarray, groups: int) -> tuple[float, ...]:
    """Write a factor for all groups, or one for each, and return them. Waits for no GPU.

    Raises:
        TypeError: it is neither a number nor a list, tuple or array of them.
        ValueError: one is negative or not finite, or there are not as many as groups.
    """
    many = isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim > 0
    given: Any = value if many else (value,) * groups
    if len(given) != groups:
        raise ValueError(f"{caller}: factor is {short(value)}, wanted a number, or one for each of "
                         f"{groups} groups")
    found = tuple(check_number(caller, f"factor of group {number}" if many else "factor", one,
                               least=0) for number, one in enumerate(given))
    for table in tables.values():
        with array_device(table):
            if len(set(found)) == 1:
                table[:, :1].fill(found[0])
            else:
                for row, factor in zip(table, found, strict=True):
                    row[:1].fill(factor)
    return found


def load_counter(flats: Sequence[Flat], found: np.ndarray, counters: Mapping[str, Array]) -> None:
    """Copy a counter into that of each device, and note where parameters differ in it.

    Args:
        flats: all of the optimiser.
        found: (parameters,) int64, by position.
        counters: {device: (parameters,)}; only the numbers of its own parameters are not 0.
    """
    for place, counter in counters.items():
        with array_device(counter):
            mine = [position for flat in flats if device_name(flat.data) == place
                    for position, _ in flat.members]
            values = np.zeros_like(found)
            values[mine] = found[mine]
            counter[...] = asarray(values, place)
    for flat in flats:
        steps = [found[position] for position, _ in flat.members]
        flat.cuts = {start for start, a, b in zip(flat.starts[1:], steps[1:], steps[:-1],
                                                  strict=True) if a != b}
