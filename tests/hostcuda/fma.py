"""A plugin of pytest: the stand-in's kernels run in mode "fma". ``pytest -p hostcuda.fma``."""

from . import fake_cupy

fake_cupy.RawModule.mode = "fma"
