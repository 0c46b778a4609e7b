"""Loss and accuracy over the epochs, drawn by matplotlib, which is the extra ``plot``.

For a page, a curve becomes SVG whose text is text and whose colours are names: it takes the page's
font, and follows it from light to dark. Figures are made without pyplot, so nothing of the
program that calls this changes: no current figure, no backend, no settings.
"""

import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from typing import Any

from gpuconv import files
from gpuconv.messages import install
from gpuconv.train import History

DRAWN = 1e30  # magnitude of a value in a picture, at most
PRINTED = {"ink": "#22272d", "muted": "#69727d", "line": "#dfe3e8", "plain": "#8b95a1",
           "strong": "#0072b2"}
# What stands for a colour until the page's style sheet gives it: stroke: var(--ink).
NAMED = {name: f"#0a0b0{number}" for number, name in enumerate(PRINTED)}
WIDE, HIGH, DPI = 4.6, 2.75, 160  # inches, and pixels per inch where pixels are written

Curve = tuple[str, list[tuple[int, float]]]  # name, points (epoch, value)


def available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def hint() -> str:
    """Return a line that says how to get matplotlib."""
    return f"curves are drawn by matplotlib, which is not installed: {install('plot')}"


def curves(history: History, quantity: str) -> list[Curve]:
    """Return the curves of "loss" or "accuracy" that were measured: training, test.

    Values beyond ``DRAWN`` are left out: matplotlib cannot mark an axis that long.

    >>> curves(History(), "loss")
    []
    """
    named = [("training", [(row.epoch, row.train) for row in history.rows]),
             ("test", [(row.epoch, row.test) for row in history.rows if row.test])]
    found = [(name, [(epoch, value) for epoch, metrics in points
                     if abs(value := getattr(metrics, quantity)) <= DRAWN])
             for name, points in named]
    return [(name, points) for name, points in found if points]


def describe(history: History, quantity: str) -> str:
    """Return a curve in words, for screen readers."""
    form = ".1%" if quantity == "accuracy" else ".3f"
    parts = [f"{name} from {points[0][1]:{form}} to {points[-1][1]:{form}}"
             for name, points in curves(history, quantity)]
    return f"{quantity.capitalize()} over {len(history.rows)} epochs: {', '.join(parts)}."


def svg(history: History, quantity: str) -> str:
    """Return an <svg> element with the curves of "loss" or "accuracy"."""
    with _settings(quantity):
        figure = _figure(WIDE)
        _draw(figure.add_subplot(), history, quantity, NAMED)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True)
    return _inline(written.getvalue())


def plot_curves(history: History, path: str | os.PathLike) -> bool:
    """Write loss and accuracy, side by side, as a PNG.

    Args:
        history: at least one epoch, or nothing is written.
        path: the file; its folder must exist.

    Returns:
        Whether it was written: not without matplotlib, which ``report.hint`` says how to get.

    Raises:
        OSError: the file cannot be written.
    """
    files.check_writable(path)
    if not (history.rows and available()):
        return False
    with _settings("curves"):
        figure = _figure(2 * WIDE)
        for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            _draw(axes, history, quantity, PRINTED)
            axes.set_title(quantity.capitalize(), loc="left", color=PRINTED["ink"], pad=10,
                           fontweight="bold")
        with files.atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return True


@contextlib.contextmanager
def _settings(salt: str) -> Iterator[None]:
    """Use matplotlib's default settings in the block; restore the user's afterwards."""
    import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10,
            "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False})
        yield


def _figure(width: float) -> Any:
    from matplotlib.figure import Figure
    return Figure(figsize=(width, HIGH), layout="constrained")


def _draw(axes: Any, history: History, quantity: str, colours: dict[str, str]) -> None:
    """Draw one quantity over the epochs."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator
    drawn = curves(history, quantity)
    few = len(history.rows) <= 20  # then each epoch has its dot; a single one has no line
    for name, points in drawn:
        last = name == drawn[-1][0]
        axes.plot(*zip(*points, strict=True), label=name,
                  color=colours["strong" if last else "plain"], linewidth=2.2 if last else 1.6,
                  linestyle="-" if last else (0, (4, 2)), marker="o" if few else "",
                  markersize=4.5 if last else 3.5, clip_on=False, zorder=3 if last else 2)
    axes.set_xlim(left=max(0.5, axes.get_xlim()[0]))  # there is no epoch 0
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))
    axes.grid(axis="y", color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.tick_params(axis="x", colors=colours["muted"])
    axes.tick_params(axis="y", colors=colours["muted"], length=0)
    axes.set_xlabel("epoch", color=colours["muted"])
    axes.legend(frameon=False, labelcolor=colours["ink"], loc="best", handlelength=2.2)


def _inline(text: str) -> str:
    """Return an SVG file as an element without prologue or size, in the page's colours and font."""
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'<style type="text/css">.*?</style>\s*', "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in each figure
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for name, colour in NAMED.items():
        text = text.replace(colour, f"var(--{name})")
    return text.strip()
