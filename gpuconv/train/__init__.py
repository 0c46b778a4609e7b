"""Training and measuring; here are the public names."""

from gpuconv.train.callback import Callback, Run
from gpuconv.train.history import Epoch, History, Metrics
from gpuconv.train.loop import evaluate, fit
from gpuconv.train.progress import Progress

__all__ = ["Callback", "Epoch", "History", "Metrics", "Progress", "Run", "evaluate", "fit"]
