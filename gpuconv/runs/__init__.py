"""Runs: each has a folder, from which it can be resumed, loaded and looked at."""

from gpuconv.runs.checks import check_data, check_place
from gpuconv.runs.config import Config
from gpuconv.runs.environment import environment
from gpuconv.runs.folder import RunFolder, find, newest
from gpuconv.runs.job import Outcome, train
from gpuconv.runs.lock import locked
from gpuconv.runs.sets import Sets, sets_in
from gpuconv.runs.timed import Timing, summary, timed, write_timings
from gpuconv.runs.trained import Trained, load
from gpuconv.runs.tta_result import TtaResult

__all__ = ["Config", "Outcome", "RunFolder", "Sets", "Timing", "Trained", "TtaResult", "check_data",
           "check_place", "environment", "find", "load", "locked", "newest", "sets_in", "summary",
           "timed", "train", "write_timings"]
