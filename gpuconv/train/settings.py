"""Settings of a training run as plain values, which recipes set and runs store."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpuconv.checks import (
    check_choice,
    check_count,
    check_flag,
    check_kind,
    check_number,
    listed,
    short,
)
from gpuconv.data import Augment
from gpuconv.messages import did_you_mean
from gpuconv.nn import Module
from gpuconv.optim import EMA, Constant, Cosine, Linear, OneCycle, Optimizer, StepDecay
from gpuconv.train.param_groups import OPTIMIZERS, Group, check_group, defaults, parameter_groups
from gpuconv.train.tta import VIEWS

SCHEDULES: dict[str, Callable[[], Callable[[int, int], float]]] = {
    "constant": Constant, "step": StepDecay, "linear": Linear, "cosine": Cosine,
    "one-cycle": OneCycle}
# largest values; a captured run evaluates its schedule for all steps beforehand
MOST = {"epochs": 10**6, "batch_size": 2**31 - 1, "patience": 10**6}
CHOICES = {"optimizer": tuple(OPTIMIZERS), "schedule": tuple(SCHEDULES),
           "flip": (False, True, "alternate"), "padding_mode": ("zeros", "reflect"),
           "reduction": ("mean", "sum")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of ``fit`` except model, data and seed.

    Raises:
        TypeError, ValueError: a value has a wrong type or range; names it.

    >>> Settings(epochs=3, lr=0.1).replace(lr=0.2).lr
    0.2
    """

    epochs: int = 6
    batch_size: int = 128
    optimizer: str = "sgd"        # sgd, adam, adamw or muon
    lr: float = 0.05              # where the schedule's factor is 1
    momentum: float = 0.9         # Nesterov's, of sgd and muon; Adam's first beta
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"   # constant, step, linear, cosine or one-cycle
    flip: bool | str = True       # mirror every second training image; or "alternate"
    crop: int = 4                 # largest shift of training images, pixels
    label_smoothing: float = 0.0  # share of the target spread over all classes
    clip_norm: float | None = None  # largest norm of all gradients
    ema: float | None = None      # decay of the average of weights that is tested and kept
    patience: int | None = None   # epochs without a better test before the run ends
    loss_scale: str | float | None = None  # dynamic, or a power of two; default: dynamic in float16
    master_weights: bool = True   # float32 copies of 16-bit weights, which the updates act on
    groups: tuple[Group, ...] = ()  # parameters with settings of their own
    padding_mode: str = "zeros"   # pixels outside a cropped image: zeros or reflect
    reduction: str = "mean"       # of the loss over a batch; "sum": gradients are sums
    drop_last: bool = False       # whether to leave out a smaller last batch of an epoch
    views: str = "none"           # test-time augmentation after the last epoch, see train.VIEWS
    mean: tuple[float, ...] | None = None  # to normalise images to; default: the data's own
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check types and ranges, before any data are read."""
        for name, choices in CHOICES.items():
            check_choice("Settings", name, getattr(self, name), choices)
        check_choice("Settings", "views", self.views, VIEWS)
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None or name != "patience":
                check_count("Settings", name, value, most=most)
        check_count("Settings", "crop", self.crop, 0)
        for name in ("lr", "weight_decay"):
            check_number("Settings", name, getattr(self, name), least=0)
        for name in ("momentum", "ema"):
            if getattr(self, name) is not None or name != "ema":
                check_number("Settings", name, getattr(self, name), least=0, below=1)
        check_number("Settings", "label_smoothing", self.label_smoothing, least=0, most=1)
        if self.clip_norm is not None:
            check_number("Settings", "clip_norm", self.clip_norm, above=0)
        scale = self.loss_scale
        if scale is not None and not (scale == "dynamic" if isinstance(scale, str) else math.frexp(
                check_number("Settings", "loss_scale", scale))[0] == 0.5):
            raise ValueError(f"Settings: loss_scale is {short(scale)}, wanted 'dynamic' or a power "
                             "of two")
        for name in ("master_weights", "drop_last"):
            check_flag("Settings", name, getattr(self, name))
        check_kind("Settings", "groups", self.groups, Sequence)
        for group in self.groups:
            check_group(group, self.optimizer)
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"Settings: mean {short(self.mean)}, std {short(self.std)}: wanted "
                             "both, or none")
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given is not None:
                check_kind("Settings", name, given, Sequence)
                for number in given:
                    check_number("Settings", name, number, above=0 if name == "std" else None)

    def replace(self, **changes: Any) -> "Settings":
        """Return the settings with other values."""
        unknown = changes.keys() - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise TypeError(f"Settings.replace: there is no setting {min(unknown):.80}"
                            f"{did_you_mean(min(unknown), vars(self))}")
        return dataclasses.replace(self, **changes)

    def with_optimizer(self, optimizer: str) -> "Settings":
        """Return the settings for another optimiser, with its usual learning rate.

        If the optimiser changes, groups, a summed loss and a fixed loss scale are reset: they fit
        the old learning rate only.

        Raises:
            ValueError: unknown optimiser.

        >>> Settings(lr=0.3).with_optimizer("adamw").lr
        0.001
        """
        check_choice("with_optimizer", "optimizer", optimizer, OPTIMIZERS)
        if optimizer == self.optimizer:
            return self
        return self.replace(optimizer=optimizer, groups=(), reduction="mean", loss_scale=None,
                            **OPTIMIZER_SETTINGS.get(optimizer, {}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings of a ``dataclasses.asdict``, of this version or an older one.

        Raises:
            ValueError: unknown names, or values of a wrong type or range.
        """
        check_kind("Settings.from_dict", "values", values, Mapping)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings {listed(unknown):.200}")
        older = {"loss_scale": 1.0, "master_weights": False}  # of versions without these settings
        made = older | dict(values)
        for name, kind in (("groups", dict), ("mean", object), ("std", object)):
            value = made.get(name)
            if not isinstance(value, list | tuple | None) or not all(
                    isinstance(one, kind) for one in value or ()):
                raise ValueError(f"{name} {value!r:.80}, wanted a list")
            made[name] = value and tuple(value)  # JSON has lists
        try:
            made["groups"] = tuple(Group(**group) for group in made["groups"] or ())
        except TypeError as error:
            raise ValueError(f"groups: {error}") from None
        try:
            return cls(**made)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def fit_arguments(self, model: Module) -> dict[str, Any]:
        """Return the arguments of ``fit`` for this model: ``fit(model, data, **arguments)``.

        Raises:
            ValueError: a group matches no parameter of the model.
        """
        augment = Augment(self.flip, self.crop, self.padding_mode)
        return {"epochs": self.epochs, "batch_size": self.batch_size,
                "optimizer": self._optimizer(model), "schedule": SCHEDULES[self.schedule](),
                "augment": augment if self.flip or self.crop else None,
                "label_smoothing": self.label_smoothing, "clip_norm": self.clip_norm,
                "loss_scale": self.loss_scale, "reduction": self.reduction,
                "drop_last": self.drop_last,
                "normalize": None if self.mean is None else (self.mean, self.std),
                "ema": EMA(model, self.ema) if self.ema else None}

    def parameter_groups(self, model: Module) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser of this model.

        Raises:
            ValueError: a group matches no parameter of the model.
        """
        general = Group("*", self.lr, self.momentum, self.weight_decay)
        return parameter_groups(model, self.optimizer, self.groups, general)

    def _optimizer(self, model: Module) -> Optimizer:
        return OPTIMIZERS[self.optimizer](
            self.parameter_groups(model), lr=self.lr,
            master=self.master_weights and model.dtype.itemsize == 2)

    def __str__(self) -> str:
        """Return a summary in a few words.

        >>> print(Settings())
        sgd, one-cycle, lr 0.05, momentum 0.9, weight decay 0.0005, mirrored, cropped by 4
        """
        words = [self.optimizer, self.schedule, f"lr {self.lr:g}", f"momentum {self.momentum:g}",
                 f"weight decay {self.weight_decay:g}"]
        words += ["mirrored" + " in every other epoch" * (self.flip == "alternate")] * bool(
            self.flip)
        words += [f"cropped by {self.crop}" + " of a reflection" * (
            self.padding_mode == "reflect")] * (self.crop > 0)
        words += [f"{name.replace('_', ' ')} {value:g}" for name in (
            "label_smoothing", "clip_norm", "ema", "patience") if (value := getattr(self, name))]
        words += [] if self.loss_scale is None else [f"loss scale {self.loss_scale}"]
        if n := len(self.groups):
            own = any(group.lr is not None for group in self.groups)
            words.append(f"{n} group{'s' * (n > 1)}" + " (last lr is the largest one's)" * own)
        words += ["summed loss"] * (self.reduction == "sum")
        words += [f"views {self.views}"] * (self.views != "none")
        return ", ".join(words)


def _adam_settings(optimizer: str) -> dict[str, float]:
    """Return the default lr, momentum and weight decay of adam or adamw."""
    usual = defaults(optimizer)
    return {"lr": usual["lr"], "momentum": usual["betas"][0],
            "weight_decay": usual["weight_decay"]}


# usual settings of each optimiser: a learning rate of one does not suit another
OPTIMIZER_SETTINGS: dict[str, dict[str, float]] = {
    "sgd": {name: getattr(Settings, name) for name in ("lr", "momentum", "weight_decay")},
    "adam": _adam_settings("adam"), "adamw": _adam_settings("adamw"),
    "muon": {"lr": 0.06, "momentum": 0.9, "weight_decay": 0.02}}
