"""Optimisers, schedules, clipping, scaling of losses, averages of weights: the public names."""

from gpuconv.optim.adam import Adam, AdamW
from gpuconv.optim.clip import clip_grad_norm
from gpuconv.optim.ema import EMA
from gpuconv.optim.flat import Flat
from gpuconv.optim.loss_scale import LossScale
from gpuconv.optim.muon import Muon
from gpuconv.optim.optimizer import Optimizer
from gpuconv.optim.schedules import Constant, Cosine, Linear, OneCycle, StepDecay
from gpuconv.optim.sgd import SGD

__all__ = ["EMA", "SGD", "Adam", "AdamW", "Constant", "Cosine", "Flat", "Linear", "LossScale",
           "Muon", "OneCycle", "Optimizer", "StepDecay", "clip_grad_norm"]
