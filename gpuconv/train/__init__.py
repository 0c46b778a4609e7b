"""Training and measuring; here are the public names."""

from gpuconv.train.callback import Callback, Run
from gpuconv.train.checkpoint import Checkpoint, checkpoints, newest, weights
from gpuconv.train.history import Epoch, History, Metrics
from gpuconv.train.loop import fit
from gpuconv.train.measure import evaluate
from gpuconv.train.metrics_files import MetricsFiles, read_metrics
from gpuconv.train.predictions import Predictions, predictions
from gpuconv.train.progress import Progress
from gpuconv.train.settings import Group, Settings
from gpuconv.train.stopping import EarlyStopping, Interrupt
from gpuconv.train.tensorboard import TensorBoard
from gpuconv.train.tta import VIEWS

__all__ = ["VIEWS", "Callback", "Checkpoint", "EarlyStopping", "Epoch", "Group", "History",
           "Interrupt", "Metrics", "Predictions", "Progress", "MetricsFiles", "Run", "Settings",
           "TensorBoard", "checkpoints", "evaluate", "fit", "newest", "predictions",
           "read_metrics", "weights"]
