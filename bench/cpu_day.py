"""Every figure that gpuconv on the CPU is held to, in one run: ``python bench/cpu_day.py``.

In order: training beside PyTorch, every conv layer of five nets beside one sgemm, whole-batch
im2col and PyTorch, the passes over memory, peak memory, large batches and images, the same bits
with any number of threads. All on the same cores, rivals in turns. Needs pytest, and PyTorch for
the comparison; about ten minutes, in which nothing else should work on the machine.

The page goes to the standard output and, part by part, into the file; exit status 1 if a result
was wrong or a part failed. A ratio that misses what is wanted is no failure: the page says so.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]  # this checkout

from cpu_layers import layers  # noqa: E402
from cpu_memory import memory  # noqa: E402
from cpu_passes import passes  # noqa: E402
from cpu_rounds import FULL, OURS, QUICK, TORCH, Size  # noqa: E402
from cpu_scaling import scaling  # noqa: E402
from cpu_table import Found, page  # noqa: E402
from cpu_threads import threaded  # noqa: E402
from cpu_train import train  # noqa: E402
from gpu_packages import there  # noqa: E402

from gpuconv import threads  # noqa: E402
from gpuconv.files import atomic_write  # noqa: E402

PARTS = {
    "train": ("a training step of three nets", train),
    "layers": ("every conv layer of five nets", layers),
    "passes": ("pools, normalisation and activations of the three nets", passes),
    "memory": ("the most that a training step takes", memory),
    "scaling": ("large batches, large images", scaling),
    "threads": ("the same bits with any number", threaded),
}
SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
            "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "ONEDNN_MAX_CPU_ISA")
BUSY = 0.5  # load from which on others take a noticeable part


def cpu() -> str:
    """Its name."""
    with contextlib.suppress(OSError, TypeError):
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*: (.*)", text)[1]  # type: ignore[index]
    return platform.processor() or platform.machine()


def head(command: str, size: Size, load: float) -> list[str]:
    """The machine, the libraries and the run."""
    import numpy
    import scipy
    import threadpoolctl
    blas = [f"{library['internal_api']} {library['version']} ({library.get('architecture', '?')}), "
            f"{library['num_threads']} threads" for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"]
    versions = [f"Python {platform.python_version()}", f"NumPy {numpy.__version__}",
                f"SciPy {scipy.__version__}"]
    if there("torch"):
        import torch
        torch.set_num_threads(threads.count())
        versions.append(f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}, "
                        f"{torch.get_num_threads()} threads)")
    else:
        versions.append("PyTorch is not installed: nothing is compared with it")
    lines = [f"`{command}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC. "
             f"{cpu()}, {os.cpu_count()} processors, gpuconv on {threads.count()} threads; "
             f"{', '.join(versions)}. NumPy's products: {'; '.join(blas) or 'unknown BLAS'}."]
    set_here = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    if "OPENBLAS_CORETYPE" in os.environ:
        set_here.append("so BLAS, and with it gpuconv, sgemm and im2col, runs the kernels of that "
                        "CPU, which may not be the fastest here; PyTorch does not")
    if set_here:
        lines += ["", f"Set: {', '.join(set_here)}."]
    if load > BUSY:
        lines += ["", f"**The load was {load:.1f} before the run: others may have disturbed it.**"]
    if size is not FULL:
        lines += ["", "**A quick look: few rounds, few layers, small sizes.**"]
    return [*lines, "", "Times are medians, rivals in turns. Spread: of the middle half of the "
            "times, as a share of the median; of each column in turn, or of gpuconv alone."]


def measure(names: Sequence[str], size: Size, command: str,
            output: pathlib.Path | None = None) -> tuple[str, dict[str, Found]]:
    """Run these parts; gives the page, and what they have found.

    Args:
        names: of PARTS.
        size: of the day.
        command: as typed, for the page.
        output: where the page goes after each part.
    """
    import threadpoolctl
    rivals = [*(TORCH if there("torch") else ()), OURS]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before we add to it
    found: dict[str, Found] = {}
    with threadpoolctl.threadpool_limits(threads.count(), "blas"):
        top = head(command, size, load)
        for name in names:
            began = time.perf_counter()

            def say(what: str, name: str = name) -> None:
                print(f"{name}: {what}", file=sys.stderr, flush=True)

            try:
                found[name] = PARTS[name][1](size, rivals, say)
            except Exception as error:
                found[name] = Found(wrong=[f"{name}: {type(error).__name__}: {error}"])
            found[name].tables.append(f"Took {time.perf_counter() - began:,.0f} s.")
            text = page(top, {part: says for part, (says, _) in PARTS.items()}, found)
            if output:
                with atomic_write(output, "w") as file:
                    file.write(text)
    return text, found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append",
                        help="only this one; may be given several times")
    parser.add_argument("--quick", action="store_true",
                        help="few rounds, few layers: within a minute")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="Markdown")
    args = parser.parse_args(arguments)
    parts = [name for name in PARTS if not args.part or name in args.part]
    command = " ".join(["python bench/cpu_day.py", *(f"--part {name}" for name in parts
                                                     if args.part), *["--quick"] * args.quick])
    text, found = measure(parts, QUICK if args.quick else FULL, command, args.output)
    print(text)
    return 1 if any(each.wrong for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
