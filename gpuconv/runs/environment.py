"""What a run ran on: versions, processor, GPU."""

import importlib.metadata
import pathlib
import platform

from gpuconv import backend, threads
from gpuconv.messages import install


def environment() -> dict[str, str]:
    """Versions and devices by name, in words. Asks the GPU, so the first call may take a while."""
    import gpuconv
    gpu = backend.device_info()
    return {
        "gpuconv": f"{gpuconv.__version__}, {pathlib.Path(gpuconv.__file__).parent}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "NumPy": f"{version('numpy')}, {blas()}",
        "SciPy": version("scipy"),
        "bfloat16": version("ml_dtypes", f"not on this machine: {install('bfloat16')}"),
        "CPU": f"{threads.count()} threads",
        "CuPy": gpu.cupy or "not installed",
        "GPU": f"{gpu.state}: {gpu.message}"}


def blas() -> str:
    """Which BLAS NumPy calls, and with how many threads."""
    from threadpoolctl import threadpool_info
    return " and ".join(f"{lib['internal_api']} {lib['version'] or ''} ({lib['num_threads']} "
                        "threads)" for lib in threadpool_info() if lib["user_api"] == "blas")


def version(package: str, without: str = "not installed") -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return without
