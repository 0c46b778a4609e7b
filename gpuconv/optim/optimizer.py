"""Base class of the optimisers: groups of parameters, flat buffers, state by position.

What changes from step to step is in memory of the parameters' device, where kernels read it: a step
that was captured as a CUDA graph can be launched again.

    control   [factor, multiplier, skip, unused]   float64, a row per group
        factor       of the learning rate
        multiplier   of the gradients
        skip         1: skip the step, no bit changes;  2 (HALT): skip all later steps, too
    counters                                       steps of each parameter that were not skipped

Only the factors differ from group to group. Settings of groups and frozen parameters are constants
of a captured step: after a change it must be captured again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Parameter
from gpuconv.backend import Array, array_device, asarray, device_name, get_array_module, is_gpu
from gpuconv.checks import check_flag, check_number, listed, short, type_name
from gpuconv.optim.flat import Flat, pack
from gpuconv.optim.saved_state import load
from gpuconv.undo import Undo

MULTIPLIER, SKIP = 1, 2  # columns of control, as in kernels/optim/optim.cuh; factor is column 0
HALT = 2                 # value of skip: skip this step and all later ones


class Optimizer:
    """Base class that updates parameters from their gradients; subclasses define ``update``.

    An optimiser packs its parameters into flat buffers (see flat.py): from then on the module that
    owns them cannot move to another device; ``release`` undoes it. Parameters of another optimiser
    are taken over, with their values and gradients; the other one then raises RuntimeError.

    Every group has a setting "stop", 0 < stop <= 1: the share of a run that ``fit`` trains it for.
    The group's schedule ends there, and afterwards the group is frozen.

    Args:
        params: Parameters (``module.parameters()``), or groups: dicts with "params" and any
            settings of the group's own.
        settings: {name: default}; floats and bools.
        master: whether to keep float32 copies of 16-bit parameters, which the updates act on, so
            that an update below half a unit in a parameter's last place is not lost.

    Attributes:
        groups: [{"params": [...], "lr": ...}, ...]; settings may be changed between steps.
        flats: [[Flat, ...] for each group].
        tables: {device: (groups, 4) control}.
        undo: Undo of the caller that ``step`` records its changes in; None: one of its own.
    """

    saved: ClassVar[tuple[str, ...]] = ()  # names of the state arrays that state_dict holds

    def __init__(self, params: Iterable[Any], settings: Mapping[str, Any], master: bool = False):
        module = hasattr(params, "parameters")
        if module or isinstance(params, (Parameter, Mapping, str)) or not isinstance(
                params, Iterable):
            hint = ": model.parameters()" if module else ""
            raise TypeError(f"{self.name}: params is {type_name(params)}, wanted Parameters or "
                            f"dicts in a list{hint}")
        given, settings = list(params), {**settings, "stop": 1.0}
        if not any(isinstance(group, Mapping) for group in given):
            given = [{"params": given}]
        self.groups = [self._group(number, group, settings) for number, group in enumerate(given)]
        self.master = check_flag(self.name, "master", master)
        self._factors = (1.0,) * len(self.groups)
        self.undo: Undo | None = None
        self._counters: dict[str, dict[str, Array]] = {}  # {name: {device: array}}
        try:
            pack((group["params"] for group in self.groups), self._prepare)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def _prepare(self, flats: list[list[Flat]]) -> None:
        """Allocate the control tables; called before any parameter moves to the flat buffers."""
        self.flats = flats
        self.tables: dict[str, Array] = {}
        for number, group_flats in enumerate(flats):
            for flat in group_flats:
                place = device_name(flat.data)
                with array_device(flat.data):
                    if place not in self.tables:
                        table = get_array_module(flat.data).zeros((len(flats), 4), np.float64)
                        table[:, :SKIP].fill(1)  # factor and multiplier
                        self.tables[place] = table
                    flat.control = self.tables[place][number]

    @property
    def name(self) -> str:
        """Name of the class, for messages."""
        return type(self).__name__

    def __repr__(self) -> str:
        groups = []
        for group in self.groups:
            settings = [f"{name}={short(value)}" for name, value in group.items()
                        if name != "params"]
            groups.append(f"{len(group['params'])} parameters, {', '.join(settings)}")
        return f"{self.name}({listed(groups, 4, '; ')})"

    def all_flats(self) -> list[Flat]:
        """Return the flat buffers of all groups."""
        return [flat for flats in self.flats for flat in flats]

    def check_holds(self, caller: str) -> None:
        """Check that the parameters are still this optimiser's.

        Raises:
            RuntimeError: they have been released, or another optimiser has taken over one.
        """
        if not self.flats:
            raise RuntimeError(f"{caller} after release(): the optimiser holds no parameters")
        taken = [p for flat in self.all_flats() for p in flat.taken]
        if taken:
            raise RuntimeError(f"{caller}: an optimiser that was made later has taken over "
                               f"{len(taken)} of the parameters (one of shape {taken[0].shape}): "
                               "use the newest optimiser of them, or make a new one")

    # -- values that change from step to step --------------------------------------------

    @property
    def factor(self) -> float:
        """Factor of the first group's learning rate, at least 0, as a schedule sets it.

        Setting it to a number sets it for all groups; a list, tuple or array has a number for each
        group. Setting it does not wait for a GPU.
        """
        return self._factors[0]

    @factor.setter
    def factor(self, value: float | Sequence[float] | np.ndarray) -> None:
        groups = len(self._factors)
        many = isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim > 0
        values: Any = value if many else (value,) * groups
        if len(values) != groups:
            raise ValueError(f"{self.name}: factor is {short(value)}, wanted a number, or one for "
                             f"each of {groups} groups")
        self._factors = tuple(
            check_number(self.name, f"factor of group {number}" if many else "factor", one, least=0)
            for number, one in enumerate(values))
        for table in self.tables.values():
            with array_device(table):
                if len(set(self._factors)) == 1:
                    table[:, :1].fill(self._factors[0])  # one launch
                    continue
                for row, factor in zip(table, self._factors, strict=True):
                    row[:1].fill(factor)

    @property
    def factors(self) -> tuple[float, ...]:
        """``factor`` of each group, as last set on the host."""
        return self._factors

    @property
    def table(self) -> Array:
        """Control of all groups, (groups, 4) float64, on the parameters' device.

        Raises:
            ValueError: the parameters are on several devices.
        """
        if len(self.tables) > 1:
            raise ValueError(f"{self.name}: parameters are on {' and '.join(sorted(self.tables))}"
                             ", wanted one device")
        return next(iter(self.tables.values()))

    @property
    def control(self) -> Array:
        """Control of the first group, (4,): factor, multiplier of gradients, skip, unused."""
        return self.table[0]

    @property
    def counters(self) -> dict[str, Array]:
        """{name: int64 array} of the counters in state_dict, the live arrays.

        With parameters on several devices, which have a counter each, these are sums on the CPU.
        """
        return {name: next(iter(by_device.values())) if len(by_device) == 1 else
                np.sum([asarray(a, "cpu") for a in by_device.values()], 0)
                for name, by_device in self._counters.items()}

    def new_counter(self, name: str) -> None:
        """Make ``flat.counters[name]``, an array with a count of each parameter, by position.

        A parameter is counted on its own device; its counts on other devices stay 0.
        """
        by_device = self._counters[name] = {}
        for flat in self.all_flats():
            place = device_name(flat.data)
            if place not in by_device:
                with array_device(flat.data):
                    by_device[place] = get_array_module(flat.data).zeros(
                        sum(len(group["params"]) for group in self.groups), np.int64)
            flat.counters[name] = by_device[place]

    def _group(self, number: int, group: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(group, Mapping):
            raise TypeError(f"{self.name}: group {number} is {type_name(group)}, wanted a dict "
                            f"like the others")
        unknown = set(group) - {"params", *settings}
        if unknown or "params" not in group:
            names = [short(name).strip("'") for name in group]
            raise ValueError(f"{self.name}: group {number} has {listed(names)}, wanted "
                             f"'params' and any of {sorted(settings)}")
        params = group["params"]
        if isinstance(params, str) or not isinstance(params, (Parameter, Iterable)):
            raise TypeError(f"{self.name}: params of group {number} is {type_name(params)}, wanted "
                            "Parameters in a list")
        params = [params] if isinstance(params, Parameter) else list(params)
        if not params:
            raise ValueError(f"{self.name}: group {number} has no parameters")
        full = {**settings, **group, "params": params}
        self.check(full)
        return full

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError for a wrong setting; also called before each step."""
        check_number(self.name, "stop", group["stop"], above=0, most=1)

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any]) -> None:
        """Update one part of the flat arrays, with the values in ``flat.control``."""
        raise NotImplementedError

    def master_of(self, flat: Flat) -> Array | None:
        """Return the float32 copies (n,) of 16-bit parameters; None without them."""
        return flat.get_or_create_state("master") if self.master and flat.narrow else None

    def step(self) -> None:
        """Update all parameters that are not frozen, from their gradients.

        A parameter whose gradient is zero is updated like the others: momentum and weight decay
        act on it. After an error or an interruption parameters and state are as before.

        Raises:
            RuntimeError: a ``grad`` was replaced by hand, the parameters have been released, or
                another optimiser has taken over one of them.
        """
        self.check_holds(f"{self.name}: step")
        work = []
        for group, flats in zip(self.groups, self.flats, strict=True):
            self.check(group)
            work += [(flat, list(flat.active()), group) for flat in flats]  # check all, then update
        with Undo.of(self.undo) as undo:
            undo.keep_items(self._counters, *self.groups)
            for flat, parts, group in work:
                if is_gpu(flat.data) or not flat.control[SKIP]:  # on a GPU kernels read it
                    undo.keep_items(flat.state)
                    undo.keep(flat.data, *flat.state.values(), *flat.counters.values())
                    for part in parts:
                        self.update(flat, part, group)

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        if self.flats:
            self.check_holds(f"{self.name}: zero_grad")
        for flat in self.all_flats():
            with array_device(flat.grad):
                flat.grad.fill(0)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self.name} cannot be copied or pickled: its parameters live in its "
                        "buffers. Copy the module, make an optimiser of the copy, and give it this "
                        "one's state_dict()")

    def release(self) -> None:
        """Give the parameters arrays of their own; the optimiser cannot be used afterwards."""
        for flat in self.all_flats():
            flat.release()
        self.flats, self.groups, self._counters = [], [], {}

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Return the state and settings as arrays by name: the live arrays, not copies.

        "momentum.3" belongs to the parameter at position 3, counted over all groups; "group.0.lr"
        is the setting of a group, an array of one number on the CPU.
        """
        if self.flats:
            self.check_holds(f"{self.name}: state_dict")
        state = {}
        for flat in self.all_flats():
            for name, array in flat.state.items():
                for (position, _), view in zip(flat.members, flat.views(array), strict=True):
                    state[f"{name}.{position}"] = view
        for number, group in enumerate(self.groups):
            for name, value in group.items():
                if name != "params":
                    flag = isinstance(value, (bool, np.bool_))
                    state[f"group.{number}.{name}"] = np.array(value if flag else float(value))
        return state | self.counters

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in a ``state_dict`` of an optimiser of the same parameters and groups.

        Args:
            state: NumPy or CuPy arrays by name; settings may be numbers, and "stop" may be missing.
                If all state arrays of a flat buffer are missing, they become zeros, and masters
                copies of the parameters: no step had needed them.

        Raises:
            TypeError: state is no dict of arrays.
            ValueError: names, shapes or dtypes do not fit; lists them, and changes nothing.
        """
        load(self, state)
