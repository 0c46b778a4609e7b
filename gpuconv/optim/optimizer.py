"""Optimizer: what all of them share: groups of parameters, flat buffers, state by position."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Parameter
from gpuconv.backend import Array, array_device, asarray, device_name
from gpuconv.optim.flat import Flat, pack


class Optimizer:
    """Updates parameters from their gradients; a subclass defines ``check`` and ``update``.

    Making one packs the parameters into flat buffers (see flat.py): from then on the module that
    owns them cannot move; ``release`` undoes it.

    Args:
        params: Parameters (``module.parameters()``), or groups: dicts with "params" and any of the
            settings that this group has for itself.
        settings: {name: default}; floats and bools.

    Attributes:
        groups: [{"params": [...], "lr": ...}, ...]; settings may be changed between steps.
        factor: a schedule's: every group's lr is multiplied by it.
        flats: [[Flat, ...] for each group].
        counters: {name: int64 array on the CPU}: whole numbers that state_dict holds as well.
    """

    saved: ClassVar[tuple[str, ...]] = ()  # names of the state arrays that state_dict holds

    def __init__(self, params: Iterable[Any], settings: Mapping[str, Any]):
        if isinstance(params, (Parameter, Mapping)) or not isinstance(params, Iterable):
            raise TypeError(f"{self.name}: params is {type(params).__name__}, wanted Parameters "
                            f"or dicts in a list")
        listed = list(params)
        if not any(isinstance(group, Mapping) for group in listed):
            listed = [{"params": listed}]
        self.groups = [self._group(number, group, settings) for number, group in enumerate(listed)]
        self.factor = 1.0
        try:
            self.flats = pack(group["params"] for group in self.groups)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        self.counters: dict[str, np.ndarray] = {}

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    def _group(self, number: int, group: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(group, Mapping):
            raise TypeError(f"{self.name}: group {number} is {type(group).__name__}, wanted a dict "
                            f"like the others")
        unknown = set(group) - {"params", *settings}
        if unknown or "params" not in group:
            raise ValueError(f"{self.name}: group {number} has {sorted(group)}, wanted 'params' "
                             f"and any of {sorted(settings)}")
        params = group["params"]
        params = [params] if isinstance(params, Parameter) else list(params)
        if not params:
            raise ValueError(f"{self.name}: group {number} has no parameters")
        full = {**settings, **group, "params": params}
        self.check(full)
        return full

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError where a setting makes no sense; runs before each step, too."""

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any], lr: float) -> None:
        """Update one part of the flat arrays; lr has the factor in it."""
        raise NotImplementedError

    def step(self) -> None:
        """Update all parameters that are not frozen, from their gradients.

        A parameter whose gradient is zero is updated like the others: momentum and weight decay
        still act on it.

        Raises:
            RuntimeError: a ``grad`` was replaced by hand, or the parameters have been released.
        """
        if not self.flats:
            raise RuntimeError(f"{self.name}: step after release(): it holds no parameters")
        work = []
        for group, flats in zip(self.groups, self.flats, strict=True):
            self.check(group)
            work += [(flat, list(flat.active()), group) for flat in flats]  # check all, then update
        for flat, parts, group in work:
            for part in parts:
                self.update(flat, part, group, float(group["lr"] * self.factor))

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        for flats in self.flats:
            for flat in flats:
                with array_device(flat.grad):
                    flat.grad.fill(0)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self.name} cannot be copied or pickled: its parameters live in its "
                        "buffers. Copy the module, make an optimiser of the copy, and give it this "
                        "one's state_dict()")

    def release(self) -> None:
        """Give the parameters arrays of their own again; this optimiser is then spent."""
        for flats in self.flats:
            for flat in flats:
                flat.release()
        self.flats, self.groups, self.counters = [], [], {}

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Everything but the parameters, as arrays by name; the live arrays, not copies.

        "momentum.3" belongs to the parameter at position 3, counted over all groups; "group.0.lr"
        is the setting of a group, an array of one number on the CPU.
        """
        state = {}
        for flats in self.flats:
            for flat in flats:
                for kind in flat.state:
                    for (position, _), view in zip(flat.members, flat.views(flat.state[kind]),
                                                   strict=True):
                        state[f"{kind}.{position}"] = view
        for number, group in enumerate(self.groups):
            for name, value in group.items():
                if name != "params":
                    plain = value if isinstance(value, (bool, np.bool_)) else float(value)
                    state[f"group.{number}.{name}"] = np.array(plain)
        return state | self.counters

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in what ``state_dict`` gave, in an optimiser of the same parameters and groups.

        Args:
            state: arrays of either library by name; numbers will do for settings. Where all state
                arrays of a buffer are missing they become zeros: no step had needed them.

        Raises:
            ValueError: a name, shape or dtype does not fit; lists all of them, and has changed
                nothing.
        """
        settings = {f"group.{number}.{name}": (group, name) for number, group in
                    enumerate(self.groups) for name in group if name != "params"}
        kept = []
        for flat in (flat for flats in self.flats for flat in flats):
            names = {kind: [f"{kind}.{position}" for position, _ in flat.members]
                     for kind in self.saved}
            needed = any(name in state for listed in names.values() for name in listed)
            kept += [(flat, kind, listed if needed else []) for kind, listed in names.items()]
        want: dict[str, Any] = {name: ((), None) for name in settings}
        want |= {name: (a.shape, a.dtype) for name, a in self.counters.items()}
        want |= {name: (p.shape, self.state_dtype(flat)) for flat, _, listed in kept
                 for name, (_, p) in zip(listed, flat.members, strict=False)}

        found = {name: asarray(state[name]) for name in want if name in state}
        wrong = [f"missing {name}" for name in want if name not in state]
        wrong += [f"unexpected {name}" for name in state if name not in want]
        wrong += [f"{name} is {a.dtype} {a.shape}, wanted {want[name][1] or 'a number'} "
                  f"{want[name][0]}" for name, a in found.items() if a.shape != want[name][0]
                  or want[name][1] not in (None, a.dtype)]
        wrong += [f"{name} is {a.dtype}, wanted a number" for name, a in found.items()
                  if name in settings and a.dtype.kind not in "biuf"]
        wrong += [f"{name} counts to less than 0" for name, a in found.items()
                  if name in self.counters and a.dtype.kind == "i"
                  and (asarray(a, "cpu") < 0).any()]
        if wrong:
            raise ValueError(f"{self.name}: load_state_dict: " + "; ".join(wrong))
        loaded = [dict(group) for group in self.groups]
        for name in settings:
            _, number, setting = name.split(".")
            loaded[int(number)][setting] = asarray(found[name], "cpu").item()
        for group in loaded:
            self.check(group)

        for group, values in zip(self.groups, loaded, strict=True):
            group.update(values)
        for name, counter in self.counters.items():
            counter[...] = asarray(found[name], "cpu")
        for flat, kind, listed in kept:
            with array_device(flat.data):
                if kind in flat.state:
                    flat.state[kind].fill(0)
                elif listed:
                    flat.new_state(kind, self.state_dtype(flat))
                for name, view in zip(listed, flat.views(flat.state[kind]) if listed else (),
                                      strict=True):
                    view[...] = asarray(found[name], device_name(view))

    def state_dtype(self, flat: Flat) -> np.dtype:
        """dtype of the state arrays."""
        return flat.data.dtype
