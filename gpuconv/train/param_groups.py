"""Groups of parameters by name, and the optimisers of a run that they go to.

    names        of the parameters: a pattern as of file names, "*.bias"; the first that fits counts
    lr ... stop  for these alone; what a group does not say is as for all others
"""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from gpuconv.autograd import Parameter
from gpuconv.checks import check_kind, listed, short
from gpuconv.jsontext import is_count, is_number
from gpuconv.nn import Module
from gpuconv.optim import SGD, Adam, AdamW, Muon, Optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD, "adam": Adam, "adamw": AdamW, "muon": Muon}
ALL = "lr", "momentum", "weight_decay", "stop"
KNOWN = {"sgd": (*ALL, "nesterov"), "adam": ALL, "adamw": ALL,
         "muon": (*ALL, "nesterov", "orthogonal", "iterations", "normalize")}


def defaults(optimizer: str) -> dict[str, Any]:
    """What an optimiser takes for what it is not told.

    >>> defaults("adamw")["weight_decay"]
    0.01
    """
    parameters = inspect.signature(OPTIMIZERS[optimizer]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


SECOND = defaults("adam")["betas"][1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters with settings of their own; None: as for all others.

    >>> Group("*.bias", lr=0.1, weight_decay=0.0).lr
    0.1
    """

    names: str                        # pattern of their names: *, ?, [12]
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    nesterov: bool | None = None      # of sgd and muon; default: where there is momentum
    orthogonal: bool | None = None    # of muon; default: what has two axes or more
    iterations: int | None = None     # likewise; default: 5
    normalize: bool | None = None     # likewise; default: no
    stop: float | None = None         # share of the run that they are trained for; default: 1

    def given(self) -> dict[str, Any]:
        """What it says, but for the names."""
        return {name: value for name, value in dataclasses.asdict(self).items()
                if value is not None and name != "names"}


def check_group(group: Group, optimizer: str) -> None:
    """Refuse what the optimiser does not know.

    Raises:
        ValueError: it does not, or no number is meant by it; the optimiser itself sees the rest.
    """
    if not isinstance(group, Group) or not isinstance(group.names, str):
        raise ValueError(f"Settings: groups: {short(group)} is no Group of names")
    where = f"group {short(group.names)}"
    for name, value in group.given().items():
        if name not in KNOWN[optimizer]:
            raise ValueError(f"{where}: {optimizer} has no {name}")
        flag = name in ("nesterov", "orthogonal", "normalize")
        if not (isinstance(value, bool) if flag else is_number(value)):
            raise ValueError(f"{where}: {name} {short(value)}, wanted a "
                             f"{'bool' if flag else 'number'}")
        low, high = {"momentum": (0, 1), "stop": (0, 1), "iterations": (1, 99)}.get(
            name, (0, float("inf")))
        if not low <= value <= high or (name, value) in (("stop", 0), ("momentum", 1)) or (
                name == "iterations" and not is_count(value)):
            raise ValueError(f"{where}: {name} {short(value)} is out of range")


def parameter_groups(model: Module, optimizer: str, groups: Sequence[Group],
                     general: Group) -> list[dict[str, Any]]:
    """What an optimiser is made of: each group's parameters and settings; last, all the others.

    Of a group whose updates muon makes orthogonal those with one axis are apart: they are updated
    as by sgd.

    Raises:
        ValueError: a group matches no parameter.
    """
    check_kind("parameter_groups", "model", model, Module)
    members: list[list[Parameter]] = [[] for _ in (*groups, general)]
    named = list(model.named_parameters())
    for name, p in named:
        fits = [fnmatch.fnmatchcase(name, group.names) for group in groups]
        members[fits.index(True) if True in fits else -1].append(p)
    for group, mine in zip(groups, members[:-1], strict=True):
        if not mine:
            there = listed([name for name, _ in named], 20)
            raise ValueError(f"group {short(group.names)} has no parameters of the model, or "
                             f"others have taken them: there are {there}")
    found: list[dict[str, Any]] = []
    for group, mine in zip((*groups, general), members, strict=True):
        settings = _settings(optimizer, general.given() | group.given())
        vectors = [p for p in mine if settings.get("orthogonal") and p.ndim < 2]
        rest = [p for p in mine if p not in vectors] if vectors else mine
        found += [{"params": rest, **settings}] * bool(rest)
        found += [{"params": vectors, **settings, "orthogonal": False}] * bool(vectors)
    return found


def _settings(optimizer: str, given: dict[str, Any]) -> dict[str, Any]:
    """Those of one group, under the optimiser's own names."""
    momentum = given.pop("momentum")
    if optimizer in ("adam", "adamw"):
        return {**given, "betas": (momentum, SECOND)}
    settings = {"momentum": momentum, "nesterov": momentum > 0, **given}
    return {"orthogonal": True, **settings} if optimizer == "muon" else settings
