"""``gpuconv info``: what this machine offers."""

import argparse
import pathlib
import platform

SAYS = "Show what this machine offers."
EXAMPLES = ("gpuconv info",)


def add_options(to: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> None:
    """``gpuconv info``."""
    import numpy as np

    import gpuconv
    from gpuconv import backend, data, threads
    from gpuconv.cli.output import console, show
    gpu = backend.device_info()
    found = data.cifar10_path()
    looked = " and ".join(str(place.absolute()) for place in data.cifar10_places())
    show(console(), {
        "gpuconv": f"{gpuconv.__version__}, {pathlib.Path(gpuconv.__file__).parent}",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "NumPy": f"{np.__version__}, {blas()}",
        "SciPy": version("scipy"),
        "bfloat16": version("ml_dtypes", "not on this machine: pip install ml_dtypes"),
        "CPU": f"{threads.count()} threads",
        "CuPy": gpu.cupy or "not installed",
        "GPU": f"{gpu.state}: {gpu.message}",
        "CIFAR-10": str(found) if found else f"not found in {looked}; gpuconv train --download "
                                             "fetches it"})


def blas() -> str:
    """Which BLAS NumPy calls, and with how many threads."""
    from threadpoolctl import threadpool_info
    return " and ".join(f"{lib['internal_api']} {lib['version'] or ''} ({lib['num_threads']} "
                        "threads)" for lib in threadpool_info() if lib["user_api"] == "blas")


def version(package: str, without: str = "not installed") -> str:
    """The version of an installed package."""
    import importlib.metadata
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return without
