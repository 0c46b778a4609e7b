"""Loading of an optimiser's ``state_dict``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.backend import Array, accumulator, adopt, array_device, asarray, device_name
from gpuconv.checks import listed, short
from gpuconv.optim.flat import Flat
from gpuconv.state import LISTED, check_state

if TYPE_CHECKING:
    from gpuconv.optim.optimizer import Optimizer


def load(optimizer: "Optimizer", state: Mapping[str, Any]) -> None:
    """Do ``Optimizer.load_state_dict``: copy a state in, or raise and change nothing."""
    caller = f"{optimizer.name}: load_state_dict"
    optimizer.check_holds(caller)
    check_state(caller, state)
    settings = [f"group.{number}.{name}" for number, group in enumerate(optimizer.groups)
                for name in group if name != "params" and
                (name != "stop" or f"group.{number}.stop" in state)]
    arrays = []  # (flat buffer, name in its state, names in the state_dict or none)
    for flat in optimizer.all_flats():
        for saved in optimizer.saved, ("master",) * (optimizer.master and flat.narrow):
            stored = {name: [f"{name}.{position}" for position, _ in flat.members]
                      for name in saved}
            needed = any(name in state for names in stored.values() for name in names)
            arrays += [(flat, name, names if needed else []) for name, names in stored.items()]
    want: dict[str, Any] = {name: ((), None) for name in settings}
    want |= {name: (a.shape, a.dtype) for name, a in optimizer.counters.items()}
    want |= {name: (p.shape, accumulator(p.dtype)) for flat, _, names in arrays
             for name, (_, p) in zip(names, flat.members, strict=False)}

    found = {name: adopt(caller, name, state[name]) for name in want if name in state}
    wrong = [f"missing {name}" for name in want if name not in state]
    unexpected = [short(name).strip("'") for name in state if name not in want]
    wrong += [f"unexpected {name}" for name in unexpected]
    wrong += [f"{name} is {a.dtype} {a.shape}, wanted {want[name][1] or 'a number'} "
              f"{want[name][0]}" for name, a in found.items() if a.shape != want[name][0]
              or want[name][1] not in (None, a.dtype)]
    wrong += [f"{name} is {a.dtype}, wanted a number" for name, a in found.items()
              if name in settings and a.dtype.kind not in "biuf"]
    wrong += [f"{name} counts to less than 0" for name, a in found.items()
              if name in optimizer.counters and a.dtype.kind == "i"
              and (asarray(a, "cpu") < 0).any()]
    if wrong:
        raise ValueError(f"{caller}: {listed(wrong, LISTED, '; ')}")
    loaded = [dict(group) for group in optimizer.groups]
    for name in settings:
        _, number, setting = name.split(".")
        value = asarray(found[name], "cpu").item()
        flag = isinstance(optimizer.groups[int(number)][setting], (bool, np.bool_))
        loaded[int(number)][setting] = bool(value) if flag and value in (0, 1) else value
    for group in loaded:
        optimizer.check(group)

    for group, values in zip(optimizer.groups, loaded, strict=True):
        group.update(values)
    for name, counters in optimizer._counters.items():
        _load_counter(optimizer.all_flats(), asarray(found[name], "cpu"), counters)
    for flat, saved_as, names in arrays:
        with array_device(flat.data):
            if saved_as in flat.state:
                flat.state[saved_as].fill(0)
            elif names:
                flat.get_or_create_state(saved_as)
            for name, view in zip(names, flat.views(flat.state[saved_as]) if names else (),
                                  strict=True):
                view[...] = asarray(found[name], device_name(view))


def _load_counter(flats: Sequence[Flat], counts: np.ndarray, counters: Mapping[str, Array]) -> None:
    """Copy the counts of all parameters to the counter of each device.

    Args:
        flats: all of the optimiser; their ``cuts`` are set where neighbouring counts differ.
        counts: (parameters,) int64, by position.
        counters: {device: (parameters,)}; counts of parameters on other devices become 0.
    """
    for place, counter in counters.items():
        with array_device(counter):
            here = [position for flat in flats if device_name(flat.data) == place
                    for position, _ in flat.members]
            values = np.zeros_like(counts)
            values[here] = counts[here]
            counter[...] = asarray(values, place)
    for flat in flats:
        steps = [counts[position] for position, _ in flat.members]
        flat.cuts = {start for start, a, b in zip(flat.starts[1:], steps[1:], steps[:-1],
                                                  strict=True) if a != b}
