"""Capabilities of this machine's GPU, or what is missing to use it."""

import dataclasses
from typing import Any

from gpuconv.messages import install


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """GPU of this machine as CuPy sees it, or the reason why there is none."""

    state: str  # "ready", "no cupy", "no driver", "no device" or "no libraries"
    message: str  # one sentence: what is there, or what is missing and what mends it
    name: str | None = None  # of the current device
    compute_capability: str | None = None  # "90"
    memory: int | None = None  # bytes on the device
    driver: int | None = None  # CUDA version of the driver, 13000 for 13.0
    cupy: str | None = None  # version

    @property
    def ready(self) -> bool:
        """Can arrays live and kernels run on a GPU?"""
        return self.state == "ready"


def probe(cp: Any = None) -> DeviceInfo:
    """Find out whether there is a usable GPU, without raising.

    Args:
        cp: the cupy module. None: it is imported, if it is installed.
    """
    try:
        cp = cp or __import__("cupy")
    except ImportError as error:
        return DeviceInfo("no cupy", f"CuPy is not installed: {install('cuda13')} (12 instead of "
                          f"13 for a driver older than 580) [{error}]")
    version = cp.__version__
    try:
        driver = cp.cuda.runtime.driverGetVersion()
    except Exception:  # any failure to ask means: not there
        driver = 0
    if not driver:
        return DeviceInfo("no driver", "CuPy is installed but there is no NVIDIA driver: install "
                          f"one (nvidia.com/drivers), then {install('cuda13')} (12 instead of 13 "
                          "for a driver older than 580)", cupy=version)
    try:
        count, why = cp.cuda.runtime.getDeviceCount(), "it sees none"
    except Exception as error:
        count, why = 0, str(error)
    if not count:
        extra = "cuda12" if driver < 13000 else "cuda13"
        return DeviceInfo("no device", f"The NVIDIA driver (CUDA {driver // 1000}) offers no "
                          f"device to CuPy ({why}): check nvidia-smi and CUDA_VISIBLE_DEVICES; for "
                          f"this driver {install(extra)}", driver=driver,
                          cupy=version)
    try:
        cp.cuda.nvrtc.getVersion()
        cp.cuda.device.get_cublas_handle()
    except Exception as error:  # DynamicLibNotFoundError is neither ImportError nor a CUDA error
        extra = "cuda12" if driver < 13000 else "cuda13"
        return DeviceInfo("no libraries", "NVRTC or cuBLAS is missing: "
                          f"{install(extra)} [{error}]", driver=driver, cupy=version)
    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    name, memory = properties["name"].decode(), properties["totalGlobalMem"]
    capability = f"{properties['major']}{properties['minor']}"
    return DeviceInfo("ready", f"{name}, {memory / 2**30:.0f} GiB, compute capability "
                      f"{capability[:-1]}.{capability[-1]}, CuPy {version}",
                      name, capability, memory, driver, version)
