"""How a model is trained, as plain values: a recipe sets them, a run keeps them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.data import Augment
from gpuconv.nn import Module
from gpuconv.optim import EMA, SGD, Adam, AdamW, Constant, Cosine, OneCycle, Optimizer, StepDecay

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES: dict[str, Callable[[], Callable[[int, int], float]]] = {
    "constant": Constant, "step": StepDecay, "cosine": Cosine, "one-cycle": OneCycle}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that ``fit`` is told, but for model, data and seed.

    Raises:
        ValueError: a value makes no sense; says which.

    >>> Settings(epochs=3, lr=0.1).replace(lr=0.2).lr
    0.2
    """

    epochs: int = 6
    batch_size: int = 128
    optimizer: str = "sgd"        # sgd, adam or adamw
    lr: float = 0.05              # where the schedule's factor is 1
    momentum: float = 0.9         # Nesterov's, of sgd; Adam's first beta
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"   # constant, step, cosine or one-cycle
    flip: bool = True             # mirror every second training image
    crop: int = 4                 # pixels that training images may move by
    label_smoothing: float = 0.0  # share of the target that all classes get
    clip_norm: float | None = None  # largest norm of all gradients
    ema: float | None = None      # decay of the average of weights that is tested and kept
    patience: int | None = None   # epochs without a better test before the run ends
    loss_scale: str | float | None = None  # dynamic, or a power of two; default: dynamic in float16
    master_weights: bool = True   # float32 copies of 16-bit weights, which the updates act on

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before any data are read."""
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", tuple(SCHEDULES))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r}, wanted one of "
                                 f"{', '.join(choices)}")
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if (value is not None or name != "patience") and (
                    isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} {value}, wanted a whole number, at least 1")
        for name in ("lr", "weight_decay", "crop"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}, wanted at least 0")
        for name in ("momentum", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} {value}, wanted at least 0 and less than 1")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing {self.label_smoothing}, wanted 0..1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm {self.clip_norm}, wanted more than 0")
        if self.loss_scale not in (None, "dynamic") and (
                isinstance(self.loss_scale, str) or not self.loss_scale > 0
                or math.frexp(self.loss_scale)[0] != 0.5):
            raise ValueError(f"loss_scale {self.loss_scale}, wanted 'dynamic' or a power of two")

    def replace(self, **changes: Any) -> "Settings":
        """The same with other values."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Settings":
        """From what ``dataclasses.asdict`` gave, of this version or an older one.

        Raises:
            ValueError: unknown names, or values that make no sense.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}")
        before = {"loss_scale": 1.0, "master_weights": False}  # what there was before these were
        return cls(**before | dict(values))

    def fit_arguments(self, model: Module) -> dict[str, Any]:
        """What ``fit`` is called with, for this model: ``fit(model, data, **arguments)``."""
        return {"epochs": self.epochs, "batch_size": self.batch_size,
                "optimizer": self._optimizer(model), "schedule": SCHEDULES[self.schedule](),
                "augment": Augment(self.flip, self.crop) if self.flip or self.crop else None,
                "label_smoothing": self.label_smoothing, "clip_norm": self.clip_norm,
                "loss_scale": self.loss_scale,
                "ema": EMA(model, self.ema) if self.ema else None}

    def _optimizer(self, model: Module) -> Optimizer:
        master = self.master_weights and model.dtype.itemsize == 2
        if self.optimizer == "sgd":
            return SGD(model.parameters(), self.lr, self.momentum, self.momentum > 0,
                       self.weight_decay, master=master)
        kind = {"adam": Adam, "adamw": AdamW}[self.optimizer]
        return kind(model.parameters(), self.lr, (self.momentum, 0.999),
                    weight_decay=self.weight_decay, master=master)

    def __str__(self) -> str:
        """In a few words.

        >>> print(Settings())
        sgd, one-cycle, lr 0.05, momentum 0.9, weight decay 0.0005, mirrored, cropped by 4
        """
        words = [self.optimizer, self.schedule, f"lr {self.lr:g}", f"momentum {self.momentum:g}",
                 f"weight decay {self.weight_decay:g}"]
        words += ["mirrored"] * self.flip + [f"cropped by {self.crop}"] * (self.crop > 0)
        words += [f"{name.replace('_', ' ')} {value:g}" for name in (
            "label_smoothing", "clip_norm", "ema", "patience") if (value := getattr(self, name))]
        words += [] if self.loss_scale is None else [f"loss scale {self.loss_scale}"]
        return ", ".join(words)
