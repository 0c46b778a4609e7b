"""Environment of a run: versions, processor, GPU."""

import importlib.metadata
import pathlib
import platform

from gpuconv import backend, threads
from gpuconv.messages import install


def environment() -> dict[str, str]:
    """Return versions and devices by name, in words. The first call may ask the GPU for long."""
    import gpuconv
    gpu = backend.device_info()
    return {
        "gpuconv": f"{gpuconv.__version__}, {pathlib.Path(gpuconv.__file__).parent}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "NumPy": f"{version('numpy')}, {blas()}",
        "BLAS kernels": kernels(),
        "SciPy": version("scipy"),
        "bfloat16": version("ml_dtypes", f"not on this machine: {install('bfloat16')}"),
        "CPU": f"{threads.count()} threads",
        "CuPy": gpu.cupy or "not installed",
        "GPU": f"{gpu.state}: {gpu.message}"}


def blas() -> str:
    """Return which BLAS NumPy calls, and with how many threads."""
    from threadpoolctl import threadpool_info
    return " and ".join(f"{lib['internal_api']} {lib['version'] or ''} ({lib['num_threads']} "
                        "threads)" for lib in threadpool_info() if lib["user_api"] == "blas")


def kernels() -> str:
    """Return the processor that BLAS has chosen its kernels for: others may give other last bits.

    Empty where BLAS does not tell.
    """
    import numpy  # noqa: F401  it loads its BLAS
    from threadpoolctl import threadpool_info
    return ", ".join(sorted({lib["architecture"] for lib in threadpool_info()
                             if lib.get("architecture")}))


def version(package: str, without: str = "not installed") -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return without
