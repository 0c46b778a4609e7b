"""Convolutional networks for CuPy, and the same on NumPy.

    import gpuconv as gpc

``gpc.ops`` are functions on arrays, ``gpc.nn`` layers made of them, ``gpc.models`` networks,
``gpc.optim`` what updates them, ``gpc.data`` what they learn from, ``gpc.train`` the loop.
``gpc.reference`` says in short code what each op computes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gpuconv import models, nn, ops, optim
from gpuconv.autograd import Parameter, Tensor, no_grad
from gpuconv.backend import asarray, device_info, get_array_module, to_cpu, to_gpu
from gpuconv.files import load, save
from gpuconv.gradients import gradcheck, value_and_grad, vjp
from gpuconv.random import seed

if TYPE_CHECKING:
    from gpuconv import data, reference, train

__version__ = "0.1.0"

__all__ = [
    "Parameter", "Tensor", "asarray", "data", "device_info", "get_array_module", "gradcheck",
    "load", "models", "nn", "no_grad", "ops", "optim", "reference", "save", "seed", "to_cpu",
    "to_gpu", "train", "value_and_grad", "vjp",
]


def __getattr__(name: str) -> Any:
    """Import ``data``, ``reference`` and ``train`` on first use: half of the import time."""
    if name in ("data", "reference", "train"):
        return importlib.import_module(f"gpuconv.{name}")
    raise AttributeError(f"module 'gpuconv' has no attribute {name!r}")
