"""Parameter groups of an optimiser, selected by parameter names.

    names        pattern of parameter names, as of file names: "*.bias"; the first match counts
    lr ... stop  settings of these parameters; without a value a group has the general setting
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
COMMON = "lr", "momentum", "weight_decay", "stop"
SETTINGS = {"sgd": (*COMMON, "nesterov"), "adam": COMMON, "adamw": COMMON,
            "muon": (*COMMON, "nesterov", "orthogonal", "iterations", "normalize")}


def defaults(optimizer: str) -> dict[str, Any]:
    """Return the default settings of an optimiser.

    >>> defaults("adamw")["weight_decay"]
    0.01
    """
    parameters = inspect.signature(OPTIMIZERS[optimizer]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


BETA2 = defaults("adam")["betas"][1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings of a group of parameters; None: the general setting.

    >>> Group("*.bias", lr=0.1, weight_decay=0.0).lr
    0.1
    """

    names: str                        # pattern of their names: *, ?, [12]
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    nesterov: bool | None = None      # of sgd and muon; default: where there is momentum
    orthogonal: bool | None = None    # of muon; default: parameters with two axes or more
    iterations: int | None = None     # of muon; default: 5
    normalize: bool | None = None     # of muon; default: no
    stop: float | None = None         # share of the run to train them for; default: 1

    def settings(self) -> dict[str, Any]:
        """Return the settings that have a value, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items()
                if value is not None and name != "names"}


def check_group(group: Group, optimizer: str) -> None:
    """Check the settings of a group.

    Raises:
        ValueError: the optimiser has no such setting, or a value has a wrong type or range.
    """
    if not isinstance(group, Group) or not isinstance(group.names, str):
        raise ValueError(f"Settings: groups: {short(group)} is no Group of names")
    where = f"group {short(group.names)}"
    for name, value in group.settings().items():
        if name not in SETTINGS[optimizer]:
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
    """Return the groups for an optimiser: parameters and settings of each; last, all others.

    Parameters with one axis of a group that muon orthogonalises become a group of their own, which
    is updated as by sgd.

    Raises:
        ValueError: a group matches no parameter.
    """
    check_kind("parameter_groups", "model", model, Module)
    members: list[list[Parameter]] = [[] for _ in (*groups, general)]
    named = list(model.named_parameters())
    for name, p in named:
        fits = [fnmatch.fnmatchcase(name, group.names) for group in groups]
        members[fits.index(True) if True in fits else -1].append(p)
    for group, selected in zip(groups, members[:-1], strict=True):
        if not selected:
            there = listed([name for name, _ in named], 20)
            raise ValueError(f"group {short(group.names)} has no parameters of the model, or "
                             f"others have taken them: there are {there}")
    result: list[dict[str, Any]] = []
    for group, selected in zip((*groups, general), members, strict=True):
        settings = _settings(optimizer, general.settings() | group.settings())
        vectors = [p for p in selected if settings.get("orthogonal") and p.ndim < 2]
        rest = [p for p in selected if p not in vectors] if vectors else selected
        result += [{"params": rest, **settings}] * bool(rest)
        result += [{"params": vectors, **settings, "orthogonal": False}] * bool(vectors)
    return result


def _settings(optimizer: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a group under the optimiser's own names."""
    momentum = values.pop("momentum")
    if optimizer in ("adam", "adamw"):
        return {**values, "betas": (momentum, BETA2)}
    settings = {"momentum": momentum, "nesterov": momentum > 0, **values}
    return {"orthogonal": True, **settings} if optimizer == "muon" else settings
