"""The GPU day's results as Markdown: every figure with its unit and the command that gave it."""

from collections.abc import Mapping, Sequence
from typing import Any

import report

SHORT = ("cifar_convnet", "conv2 32x32", "conv6 8x8", "max_pool 32x32x32", "batch_norm 32x32x32",
         "linear 1024x2048-1024")  # works that stand in the first table


def written(data: Mapping[str, Any], order: Sequence[tuple[str, str]],
            stages: Mapping[str, str]) -> str:
    """The whole page; order: (stage, key of the record) of each part."""
    records = data["records"]
    known = [(stage, key, records.get(key)) for stage, key in order]
    lines = [f"# {data['device']}", "", _state(known), "", *_short(known)]
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


# -- stage by stage --------------------------------------------------------------------------


def _stage(records: Sequence[tuple[str, Any]]) -> list[str]:
    found = [(key.partition(": ")[2], record) for key, record in records if record]
    ways = [[name, record["how"], _counts(record), f"{record['seconds']:,.0f} s",
             f"`{record['command']}`"] for name, record in found]
    lines = _titled("", ["part", "", "found", "took", "command"], ways, left=5)
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
