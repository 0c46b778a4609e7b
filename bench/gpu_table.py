"""The GPU day's results as Markdown: every figure with its unit and the command that gave it."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import report

SHORT = ("cifar_convnet", "conv2 32x32", "conv6 8x8", "max_pool 32x32x32", "batch_norm 32x32x32",
         "linear 1024x2048-1024")  # works that stand in the first table

NOTHING = dict(kernels=0, seconds=0.0)


def written(data: Mapping[str, Any], order: Sequence[tuple[str, str]],
            stages: Mapping[str, str]) -> str:
    """The whole page; order: (stage, key of the record) of each part."""
    records = data["records"]
    known = [(stage, key, records.get(key)) for stage, key in order]
    lines = [f"# {data['device']}", "", _state(known), "", *_short(known), *_passes(known)]
    for stage, says in stages.items():
        mine = [(key, record) for at, key, record in known if at == stage]
        if any(record for _, record in mine):
            lines += [f"## {stage.capitalize()}: {says}", "", *_stage(mine)]
    return "\n".join(lines).rstrip() + "\n"


def _state(known: Sequence[tuple[str, str, Any]]) -> str:
    done = [record for _, _, record in known if record and record["complete"]]
    began = sorted(record["began"] for record in done)
    words = [f"{len(done)} of {len(known)} parts are done"]
    if began:
        words.append(f"begun from {began[0]} to {began[-1]} UTC")
    compiled = [record["compiled"] for record in done if record.get("compiled")]
    if compiled:
        words.append("{:,.0f} s of them to compile or load kernels, {} times".format(
            *(sum(c[what] for c in compiled) for what in ("seconds", "kernels"))))
    missing = [key for _, key, record in known if not (record and record["complete"])]
    if missing:
        words.append(f"not measured yet: {', '.join(missing)}")
    return "`python bench/gpu_day.py`: " + "; ".join(words) + "."


# -- the first table: what a README quotes ---------------------------------------------------


def _short(known: Sequence[tuple[str, str, Any]]) -> list[str]:
    """Training, the convolutions and a few others; empty until they have been measured."""
    measured = [m | dict(command=record["command"]) for _, _, record in known if record
                for m in record["measurements"] if any(name in m["work"] for name in SHORT)]
    best, rows = report.peers(measured), []
    for m in measured:
        if m["library"].startswith("cupy"):
            peer = best.get(report.kind(m))
            rate = (f"{m['images_per_second']:,.0f} images/s" if "step" in m["work"] else
                    f"{m['gflop_per_second'] / 1e3:,.2f} TFLOP/s" if m["gflop_per_second"] else
                    f"{m['gb_per_second']:,.0f} GB/s")
            rows.append([m["work"], m["precision"], rate, f"{m['ms']:,.3f} ms",
                         report.written(m.get("roof_share"), ".0%"),
                         report.written(peer and peer / m["ms"], ".2f"), f"`{m['command']}`"])
    return _titled("In short", ["work", "precision", "rate", "time", "of the ceiling",
                                "PyTorch's time over it", "command"], rows, left=2)


def _passes(known: Sequence[tuple[str, str, Any]]) -> list[str]:
    """What is bound by memory, by precision: share of the copy, and beside PyTorch."""
    measured = [m for stage, _, record in known if record and stage == "ops"
                for m in record["measurements"]
                if m["gb_per_second"] and not m["gflop_per_second"]]
    best, rows = report.peers(measured), []
    for precision in dict.fromkeys(m["precision"] for m in measured):
        mine = [m for m in measured
                if m["precision"] == precision and m["library"].startswith("cupy")]
        shares = [(m["roof_share"], m["work"]) for m in mine if m.get("roof_share")]
        ratios = [(best[kind] / m["ms"], m["work"]) for m in mine
                  if (kind := report.kind(m)) in best]
        for what, found, form, wanted in (("of the measured copy", shares, ".0%", "85%"),
                                          ("PyTorch's time over ours", ratios, ".2f", "1.3")):
            if found:
                rows.append([precision, what, str(len(found)), format(geometric(
                    v for v, _ in found), form), wanted,
                    f"{min(found)[0]:{form}} {min(found)[1]}"])
    return _titled("Passes over memory", ["precision", "", "works", "geometric mean", "wanted",
                                          "at worst"], rows, left=2)


def geometric(values: Iterable[float]) -> float:
    """Their mean.

    >>> geometric([1, 4])
    2.0
    """
    return math.exp(statistics.fmean(map(math.log, values)))


# -- stage by stage --------------------------------------------------------------------------


def _stage(records: Sequence[tuple[str, Any]]) -> list[str]:
    found = [(key.partition(": ")[2], record) for key, record in records if record]
    ways = [[name, record["how"], _counts(record), f"{record['seconds']:,.0f} s",
             "{kernels} in {seconds:.1f} s".format(**record.get("compiled") or NOTHING),
             f"`{record['command']}`"] for name, record in found]
    lines = _titled("", ["part", "", "found", "took", "kernels compiled or loaded", "command"],
                    ways, left=6)
    figures = [[_cell(f["what"]), _number(f["value"]), f["unit"],
                {True: "yes", False: "**NO**", None: ""}[f["good"]], _cell(f["note"])]
               for _, record in found for f in record["figures"]]
    lines += _titled("", ["what", "value", "unit", "as it must be", "note"], figures, left=5)
    measured = [m for _, record in found for m in record["measurements"]]
    if measured:
        lines += [*report.markdown(list(report.cells_of(measured))), ""]
    failures = [[_cell(f["name"]), _cell(f["line"])] for _, record in found
                for f in record["failures"]]
    lines += _titled("### Failures", ["what", "first line"], failures, left=2)
    for name, record in found:
        if record["tail"]:
            lines += [f"The last lines of {name}, which {record['how']}:", "", "```",
                      *record["tail"], "```", ""]
    return lines


def _counts(record: Mapping[str, Any]) -> str:
    words = [f"{number} {name}" for name, number in record["counts"].items() if number]
    words += [f"{len(record['figures'])} figures"] * bool(record["figures"])
    words += [f"{len(record['measurements'])} measurements"] * bool(record["measurements"])
    return ", ".join(words) or "-"


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else _cell(str(value))


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _titled(title: str, headings: list[str], rows: list[list[str]], left: int) -> list[str]:
    if not rows:
        return []
    title = f"## {title}" if title and not title.startswith("#") else title
    return [*([title, ""] if title else []), *report.markdown(rows, headings, left), ""]
