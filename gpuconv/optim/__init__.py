"""Optimisers and schedules; here are their public names."""

from gpuconv.optim.adam import Adam, AdamW
from gpuconv.optim.flat import Flat
from gpuconv.optim.optimizer import Optimizer
from gpuconv.optim.schedules import Constant, Cosine, OneCycle, StepDecay
from gpuconv.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Cosine", "Flat", "OneCycle", "Optimizer",
           "StepDecay"]
