"""Optimizer: what all of them share: groups of parameters, flat buffers, state by position.

What changes from step to step lies beside the parameters, on a GPU in device memory, and kernels
read it there: so a step that was captured as a CUDA graph can be replayed.

    control [factor, multiplier, skip, unused]    float64: of the learning rates; of the gradients;
                                                  1 leaves the step out, and not a bit changes;
                                                  2 all later ones, too (HALT)
    counters                                      steps of each parameter that were not left out

Each group has a control of its own, a row of a table; only the factors differ.

The settings of a group are constants of a captured step, and so is which parameters are frozen:
``constants()`` says them all, and where it has changed the step must be captured again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpuconv.autograd import Parameter
from gpuconv.backend import (
    Array,
    array_device,
    asarray,
    device_name,
    get_array_module,
    is_gpu,
)
from gpuconv.checks import check_flag, check_number, listed, short, type_name
from gpuconv.optim.control import new_tables, set_factors
from gpuconv.optim.flat import Flat, pack
from gpuconv.optim.saved_state import load
from gpuconv.undo import Undo

MULTIPLIER, SKIP = 1, 2  # of control, as in kernels/optim/optim.cuh; factor is the first
HALT = 2                 # value of skip: leave out this step and all later ones


class Optimizer:
    """Updates parameters from their gradients; a subclass defines ``check`` and ``update``.

    Making one packs the parameters into flat buffers (see flat.py): from then on the module that
    owns them cannot move; ``release`` undoes it. Parameters that another optimiser holds are taken
    over, with their values and gradients: the other one raises RuntimeError when it is used.

    Every group has a setting "stop", the share of a run that ``fit`` trains it for, 0 < stop <= 1:
    its schedule comes to an end there, and afterwards it is frozen.

    Args:
        params: Parameters (``module.parameters()``), or groups: dicts with "params" and any of the
            settings that this group has for itself.
        settings: {name: default}; floats and bools.
        master: keep float32 copies of 16-bit parameters, which the updates act on? Then an update
            below half a unit in a parameter's last place is not lost.

    Attributes:
        groups: [{"params": [...], "lr": ...}, ...]; settings may be changed between steps.
        flats: [[Flat, ...] for each group].
        tables: {device: its (groups, 4) controls}.
        undo: the Undo that ``step`` adds to and its owner restores after an error; None: its own.
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
        """Allocate what lies beside the flat buffers; runs before any parameter moves there."""
        self.flats, self.tables = flats, new_tables(flats)

    @property
    def name(self) -> str:
        """For messages."""
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
        """Refuse to go on where the parameters are no longer this optimiser's.

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

    # -- what changes from step to step ---------------------------------------------------

    @property
    def factor(self) -> float:
        """A schedule's: every group's lr is multiplied by it. Setting it waits for no GPU.

        It may be set to a list, tuple or array, too, a number for each group; read it is the first
        group's. None is negative.
        """
        return self._factors[0]

    @factor.setter
    def factor(self, value: float | Sequence[float] | np.ndarray) -> None:
        self._factors = set_factors(self.name, self.tables, value, len(self._factors))

    @property
    def factors(self) -> tuple[float, ...]:
        """``factor`` of each group, as last set from here."""
        return self._factors

    @property
    def table(self) -> Array:
        """(groups, 4) float64, beside the parameters; of each group its control.

        Raises:
            ValueError: the parameters are on several devices.
        """
        if len(self.tables) > 1:
            raise ValueError(f"{self.name}: parameters are on {' and '.join(sorted(self.tables))}"
                             ", wanted one device")
        return next(iter(self.tables.values()))

    @property
    def control(self) -> Array:
        """(4,) of the first group, likewise: factor, gradients' multiplier, skip, unused."""
        return self.table[0]

    @property
    def controls(self) -> dict[str, Array]:
        """{device: (4,) of the first group}."""
        return {place: table[0] for place, table in self.tables.items()}

    @property
    def counters(self) -> dict[str, Array]:
        """{name: int64 array}: whole numbers that state_dict holds, the live arrays.

        With parameters on several devices each has its own, and these are sums, on the CPU.
        """
        return {name: next(iter(its.values())) if len(its) == 1 else
                np.sum([asarray(a, "cpu") for a in its.values()], 0)
                for name, its in self._counters.items()}

    def new_counter(self, name: str) -> None:
        """A number for each parameter, by position; ``flat.counters[name]`` is that of its device.

        A parameter is counted on its own device; its numbers on the others stay 0.
        """
        its = self._counters[name] = {}
        for flat in self.all_flats():
            place = device_name(flat.data)
            if place not in its:
                with array_device(flat.data):
                    its[place] = get_array_module(flat.data).zeros(
                        sum(len(group["params"]) for group in self.groups), np.int64)
            flat.counters[name] = its[place]

    def constants(self) -> tuple:
        """All that a captured step cannot read anew: settings, and which parameters are frozen."""
        return tuple((tuple((name, value) for name, value in group.items() if name != "params"),
                      tuple(p.requires_grad for p in group["params"])) for group in self.groups)

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
        """Raise ValueError where a setting makes no sense; runs before each step, too."""
        check_number(self.name, "stop", group["stop"], above=0, most=1)

    def update(self, flat: Flat, part: slice, group: Mapping[str, Any]) -> None:
        """Update one part of the flat arrays, with the numbers in ``flat.control``."""
        raise NotImplementedError

    def master_of(self, flat: Flat) -> Array | None:
        """The wide copies (n,) of its parameters, if it has any."""
        return flat.get_or_create_state("master") if self.master and flat.narrow else None

    def step(self) -> None:
        """Update all parameters that are not frozen, from their gradients.

        A parameter whose gradient is zero is updated like the others: momentum and weight decay
        still act on it. After an error, an interruption too, parameters and state are as before.

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
                if is_gpu(flat.data) or not flat.control[SKIP]:  # a GPU's kernels look themselves
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
        """Give the parameters arrays of their own again; this optimiser is then spent."""
        for flat in self.all_flats():
            flat.release()
        self.flats, self.groups, self._counters = [], [], {}

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Everything but the parameters, as arrays by name; the live arrays, not copies.

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
                    plain = value if isinstance(value, (bool, np.bool_)) else float(value)
                    state[f"group.{number}.{name}"] = np.array(plain)
        return state | self.counters

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in what ``state_dict`` gave, in an optimiser of the same parameters and groups.

        Args:
            state: arrays of either library by name; numbers will do for settings, of which "stop"
                may be missing. Where all state arrays of a buffer are missing they become zeros: no
                step had needed them. So do masters, which then are the parameters.

        Raises:
            TypeError: state is no dict of arrays.
            ValueError: a name, shape or dtype does not fit; lists them, and has changed nothing.
        """
        load(self, state)
