"""Ranges for NVIDIA's profilers: which layer a kernel was launched by."""

import contextlib
from collections.abc import Iterator
from typing import Any

from gpuconv.backend import cupy
from gpuconv.checks import check_kind
from gpuconv.nn.module import Module
from gpuconv.nn.observed import kind, observed


@contextlib.contextmanager
def nvtx_ranges(model: Module) -> Iterator[None]:
    """For as long as it is entered, make each call of a layer an NVTX range, named by its path.

    Layers that run as one op are one range: "0+1+2 Conv2d+BatchNorm2d+ReLU". Ranges nest as modules
    do, and show in Nsight Systems: ``nsys profile -t cuda,nvtx python ...``. They cover forward;
    what backward launches lies outside.

        with nn.nvtx_ranges(model):
            model(x)

    Args:
        model: on a GPU.

    Raises:
        RuntimeError: there is no usable GPU; says what is missing.
    """
    check_kind("nvtx_ranges", "model", model, Module)
    nvtx = cupy().cuda.nvtx

    def around(path: str, module: Module, forward: Any, *inputs: Any) -> Any:
        nvtx.RangePush(f"{path} {kind(module)}".strip())
        try:
            return forward(*inputs)
        finally:
            nvtx.RangePop()

    with observed(model, around):
        yield
