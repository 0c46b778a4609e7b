"""The CPU day's results as Markdown: what is wanted first, then every figure."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import report


@dataclasses.dataclass(frozen=True)
class Target:
    """What the issue wants of a figure."""

    what: str
    value: float | None    # None: not measured
    limit: float
    at_least: bool = True  # else at most
    note: str = ""
    form: str = ".2f"

    @property
    def good(self) -> bool | None:
        """Is it met?"""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def cells(self) -> list[str]:
        """Of its row."""
        return [self.what, report.written(self.value, self.form),
                f"{'>=' if self.at_least else '<='} {report.written(self.limit, self.form)}",
                {True: "yes", False: "**NO**", None: "not measured"}[self.good], self.note]


@dataclasses.dataclass
class Found:
    """What a part has found."""

    targets: list[Target] = dataclasses.field(default_factory=list)
    tables: list[str] = dataclasses.field(default_factory=list)      # Markdown, line by line
    wrong: list[str] = dataclasses.field(default_factory=list)       # results, in a sentence
    rows: list[dict] = dataclasses.field(default_factory=list)       # the figures themselves

    def table(self, says: str, headings: Sequence[str], rows: Iterable[Sequence[str]],
              left: int) -> None:
        """Add one, with what it shows above it; the first columns are words."""
        rows = [list(cells) for cells in rows]
        if rows:
            self.tables += [says, "", *report.markdown(rows, list(headings), left), ""]


def page(head: Sequence[str], parts: dict[str, str], found: dict[str, Found]) -> str:
    """All of it.

    Args:
        head: lines about the machine and the run.
        parts: what each part is about.
        found: by part, those that have run.
    """
    lines = ["# gpuconv on the CPU", "", *head, "", "## What is wanted", "",
             *report.markdown([target.cells() for each in found.values()
                               for target in each.targets],
                              ["what", "measured", "wanted", "met", "note"], 1)]
    wrong = [f"* {sentence}" for each in found.values() for sentence in each.wrong]
    if wrong:
        lines += ["", "## WRONG RESULTS, not timed", "", *wrong]
    for name, each in found.items():
        lines += ["", f"## {name.capitalize()}: {parts[name]}", "", *each.tables]
    return "\n".join(lines).rstrip() + "\n"


def mean(ratios: Iterable[float]) -> float | None:
    """Geometric; None of none."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def ratio(over: float | None, under: float | None) -> float | None:
    """None where one was not measured."""
    return None if over is None or under is None else over / under
