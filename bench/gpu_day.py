"""Settle on a machine with a GPU what no other can: ``python bench/gpu_day.py``.

In order: what the machine is, the tests of every op on the real CuPy, the same bits twice, the most
that the machine does, every op against that and beside PyTorch and cuDNN, training with its
accuracy, and compute-sanitizer on every kernel. Needs CuPy, NumPy, pytest and pytest-benchmark, and
PyTorch for the comparison; no network, nothing installed, nothing built.

Each part runs in a process of its own with a time limit, so what crashes or hangs costs one part.
Results go into two files, gpu_day.json and gpu_day.md, whole at each moment, and what was printed
into gpu_day.log. A second call goes on: first with what is missing, then with what did not end,
then with what was found by other sources. ``--budget`` ends a call in time.

Exit status: 0 all done and well, 1 something failed, 2 it cannot be done here, 3 parts are left.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, also where another gpuconv is installed

from gpu_packages import absent, there  # noqa: E402
from gpu_parts import STAGES, Part, parts  # noqa: E402
from gpu_table import written  # noqa: E402

from gpuconv.files import atomic_write, remove_leftovers  # noqa: E402

JSON, TABLE, LOG = "gpu_day.json", "gpu_day.md", "gpu_day.log"
GRACE = 5  # seconds kept back for the last table, and to wait for a process that was killed
TAIL = 12  # lines that are kept of what a part printed before it was cut short
PROBE = ("import json, sys; from gpuconv.backend import device_info; "
         "i = device_info(); print(json.dumps([i.ready, i.name, i.message]))")


class Day:
    """What has been found on one device, part by part, in a folder.

    Args:
        folder: made if it is not there.
        device: of the machine, in words; a folder holds the results of one.

    Raises:
        ValueError: the folder holds those of another.
    """

    def __init__(self, folder: pathlib.Path, device: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.records = folder, {}
        remove_leftovers(folder)
        with contextlib.suppress(FileNotFoundError):
            data = json.loads((folder / JSON).read_text(encoding="utf-8"))
            if data["device"] != device:
                raise ValueError(f"{folder} holds results of {data['device']}, this is {device}")
            self.records = data["records"]
        self.device = device

    def save(self, order: Sequence[Part]) -> None:
        """Both files."""
        data = dict(device=self.device, records=self.records)
        with atomic_write(self.folder / JSON, "w") as file:
            json.dump(data, file, indent=1)
        with atomic_write(self.folder / TABLE, "w") as file:
            file.write(written(data, [(part.stage, part.key) for part in order], STAGES))

    def rank(self, part: Part) -> int:
        """0 missing, 1 did not end, 2 ended with other sources, 3 done."""
        record = self.records.get(part.key)
        if record is None:
            return 0
        if not record["complete"]:
            return 1
        return 3 if record["sources"] == sources(part) else 2

    def run(self, part: Part, seconds: float) -> dict[str, Any]:
        """Run a part for at most so long, keep what it found, and give that."""
        with tempfile.TemporaryDirectory() as scratch:
            into, log = pathlib.Path(scratch) / "part.json", pathlib.Path(scratch) / "log"
            began, made_of = time.monotonic(), sources(part)
            with open(log, "wb") as out:
                ended = call([sys.executable, *part.command,
                              *(str(into) if word == "FILE" else word for word in part.quiet)],
                             out, min(part.limit, seconds))
            took = time.monotonic() - began
            said = log.read_text(encoding="utf-8", errors="replace")
            found: dict[str, Any] = dict(figures=[], failures=[], measurements=[], counts={},
                                         complete=False)
            with contextlib.suppress(FileNotFoundError):
                found = json.loads(into.read_text(encoding="utf-8"))
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(f"== {part.key}, {now()}\n{said}\n")
        if found["complete"]:
            how = "done"
        elif ended is None:
            how = "hung" if part.limit <= seconds else "out of budget"
        else:
            how = f"crashed ({name_of(ended)})"
        before = self.records.get(part.key, {})
        self.records[part.key] = record = dict(
            found, how=how, command=shown(part.command), seconds=round(took, 1), began=now(),
            limit=part.limit, sources=made_of, tries=before.get("tries", 0) + 1,
            tail=[] if how == "done" else said.splitlines()[-TAIL:])
        return record


def call(command: list[str], out: Any, seconds: float) -> int | None:
    """Exit status of a process; None where it had to be killed, with all that it had started."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "bench"),
                            *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("PYTEST_XDIST")}  # pytest-benchmark would not measure
    own_group: dict[str, Any] = dict(process_group=0) if os.name == "posix" else {}
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
                               stdin=subprocess.DEVNULL, **own_group,
                               env=environment | dict(PYTHONPATH=path, PYTHONUNBUFFERED="1"))
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when the day itself is interrupted
        if process.poll() is None:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # in the driver, for good
                process.wait(GRACE)


def name_of(status: int) -> str:
    """SIGSEGV for -11."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"exit status {status}"


def shown(command: Sequence[str]) -> str:
    """As one types it."""
    return " ".join(["python", *(f'"{word}"' if " " in word else word for word in command)])


def now() -> str:
    """The moment, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def sources(part: Part) -> str:
    """A hash of all that the part's result depends on."""
    found = hashlib.sha256()
    for path in sorted([*(ROOT / "gpuconv").rglob("*.py"), *(ROOT / "kernels").rglob("*.cu*"),
                        *(ROOT / file for file in part.files)]):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def run_day(day: Day, order: Sequence[Part], budget: float | None = None,
            chosen: Sequence[Part] | None = None) -> int:
    """Run what is to be done of the chosen parts (default: all); gives the exit status.

    Args:
        day: where results are kept.
        order: all parts of a day.
        budget: seconds.
    """
    end = None if budget is None else time.monotonic() + budget - GRACE
    todo = sorted((part for part in chosen or order if day.rank(part) < 3), key=day.rank)
    left = []
    for number, part in enumerate(todo, 1):
        seconds = float("inf") if end is None else end - time.monotonic()
        if seconds < min(part.least, part.limit):
            left.append(part)
            continue
        print(f"[{number}/{len(todo)}] {part.key} ...", end=" ", flush=True)
        print(summary(day.run(part, seconds)), flush=True)
        day.save(order)
    day.save(order)
    open_ = [part for part in chosen or order if day.rank(part) < 2]
    bad = [part for part in chosen or order if not well(day.records.get(part.key))]
    if left:
        print(f"out of budget: {len(left)} parts were not begun; call again to go on")
    print(f"{day.folder / TABLE}: {sum(day.rank(part) > 1 for part in order)} of "
          f"{len(order)} parts done" + (f", {len(bad)} with failures" if bad else ""))
    return 1 if bad else 3 if open_ else 0


def well(record: dict[str, Any] | None) -> bool:
    """Has nothing failed that was tried? Out of budget is no failure."""
    if record is None or record["how"] == "out of budget":
        return True
    return record["how"] == "done" and not record["failures"] and not any(
        figure["good"] is False for figure in record["figures"])


def summary(record: dict[str, Any]) -> str:
    """Of a part, on one line."""
    words = [f"{number} {name}" for name, number in record["counts"].items() if number]
    words += [f"{len(record['measurements'])} measured"] * bool(record["measurements"])
    if compiled := record.get("compiled", {}).get("kernels"):
        words += [f"{compiled} kernels compiled or loaded in {record['compiled']['seconds']} s"]
    words += [f"{figure['what']}: {figure['value']}" for figure in record["figures"]
              if figure["good"] is False]
    words += [f"FAILED {failure['name']}" for failure in record["failures"][:2]]
    return "; ".join([f"{record['how']}, {record['seconds']:.0f} s", *words])


def probe(stand_in: bool) -> tuple[str | None, str]:
    """(name of the GPU, sentence); None for the name if there is none. It may hang: it is asked
    in a process of its own.
    """
    if stand_in:
        return "stand-in", "the tests' stand-in for CuPy; its figures mean nothing"
    with tempfile.TemporaryFile() as out:
        status = call([sys.executable, "-c", PROBE], out, 120)
        out.seek(0)
        said = out.read().decode(errors="replace").strip()
    if status is None:
        return None, "the GPU does not answer"
    if status:
        return None, said.splitlines()[-1] if said else f"asking for it: {name_of(status)}"
    ready, name, message = json.loads(said.splitlines()[-1])
    return (name if ready else None), message


def default_folder(name: str) -> pathlib.Path:
    """bench/results/<device>-<date>"""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return ROOT / "bench" / "results" / f"{slug}-{datetime.date.today().isoformat()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, metavar="MINUTES",
                        help="end within so long; call again to go on")
    parser.add_argument("--stage", choices=list(STAGES), action="append",
                        help="only this one; may be given several times")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR",
                        help="default: bench/results/<device>-<date>")
    parser.add_argument("--data-dir", metavar="DIR", help="where CIFAR-10 is, for the training run")
    parser.add_argument("--list", action="store_true", help="show stages and parts, do nothing")
    parser.add_argument("--stand-in", action="store_true",
                        help="try the code without a GPU, on tiny sizes; needs g++ and --output")
    args = parser.parse_args(arguments)
    order = parts(args.stand_in, args.data_dir)
    if args.list:
        for stage, says in STAGES.items():
            print(f"{stage}: {says}")
            for part in order:
                if part.stage == stage:
                    print(f"    {part.name} (at most {part.limit / 60:g} minutes)")
        return 0
    if args.stand_in and not args.output:
        parser.error("--stand-in wants --output: its figures mean nothing, keep them apart")
    needed = [package for package in ("pytest", "pytest_benchmark") if not there(package)]
    if needed:
        print(f"gpu_day: not installed: {', '.join(needed)}", file=sys.stderr)
        return 2
    name, message = probe(args.stand_in)
    if name is None:
        print(f"gpu_day: no GPU to work with: {message}", file=sys.stderr)
        return 2
    print(f"{message}\nmissing packages, done without: {', '.join(absent()) or 'none'}")
    try:
        day = Day(args.output or default_folder(name), name)
    except (ValueError, OSError) as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return 2
    chosen = [part for part in order if not args.stage or part.stage in args.stage]
    if args.again:
        for part in chosen:
            day.records.pop(part.key, None)
    budget = None if args.budget is None else 60 * args.budget
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run_day(day, order, budget, chosen)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; what was found is kept, call again to go on", file=sys.stderr)
        sys.exit(130)
