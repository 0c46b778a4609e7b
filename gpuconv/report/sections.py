"""The parts of a report that need more than a line of HTML.

Whatever comes from data, class names and paths, passes ``text``: it is untrusted.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuconv.messages import printable
from gpuconv.report import figures
from gpuconv.report.findings import Confusion, Mistake, png
from gpuconv.train import History
from gpuconv.train.history import HEADINGS, row_cells
from gpuconv.train.predictions import Predictions

CLASSES = 120  # with more, a confusion matrix is a wall: the worst pairs are listed instead
MANY = 20      # classes that still have comfortable cells
LONG = 12      # letters of a class name that still stands upright over its column
SIDE = 128     # pixels that a small image is enlarged to
FILTER = 56    # likewise, a filter


def text(value: object) -> str:
    """Return any text as it can stand inside an element or an attribute of HTML.

    >>> text('<b>"&"</b>')
    '&lt;b&gt;&quot;&amp;&quot;&lt;/b&gt;'
    """
    return html.escape(printable(str(value)))


def percent(share: float) -> str:
    """Return a share of 1 as a percentage."""
    return f"{share:.1%}"


def section(name: str, heading: str, says: str, content: str) -> str:
    """Return a card with a heading and a sentence; ``says`` and ``content`` are HTML."""
    says = f'<p class="says">{says}</p>' if says else ""
    return (f'<section id="{name}" aria-labelledby="{name}-heading">'
            f'<h2 id="{name}-heading">{text(heading)}</h2>{says}\n{content}\n</section>')


def scroll(label: str, inside: str) -> str:
    """Return a box that scrolls, also by keyboard, for content wider than the page."""
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">'
            f"{inside}</div>")


def bar(share: float | None, kind: str = "") -> str:
    """Return a share as a bar and a number; None: a dash."""
    if share is None:
        return '<span class="none">–</span>'
    return (f'<span class="bar {kind}"><i style="--s:{share:.3f}" aria-hidden="true"></i>'
            f"<b>{percent(share)}</b></span>")


def table(kind: str, headings: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1,
          best: int | None = None) -> str:
    """Return a table of HTML cells; the first ``names`` columns are text, the others numbers.

    Args:
        kind: classes of the style sheet.
        headings: HTML.
        rows: HTML; the first cell of each is its heading.
        names: columns aligned at the left.
        best: number of the row that stands out.
    """
    def name(column: int) -> str:
        return ' class="name"' if column < names else ""

    head = "".join(f'<th scope="col"{name(i)}>{cell}</th>' for i, cell in enumerate(headings))
    body = []
    for number, (first, *others) in enumerate(rows):
        line = f'<th scope="row"{name(0)}>{first}</th>' + "".join(
            f"<td{name(i)}>{cell}</td>" for i, cell in enumerate(others, 1))
        body.append(f'<tr{" class=best" if number == best else ""}>{line}</tr>')
    return (f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>'
            + "\n".join(body) + "</tbody></table>")


# -- curves and numbers ----------------------------------------------------------------------


def curves(history: History) -> str:
    """Return the curves of loss and accuracy, or how to install matplotlib."""
    if not figures.available():
        how = figures.hint()
        return f"<p>{text(how[0].upper() + how[1:])}</p>"
    drawn = "\n".join(
        f'<figure><figcaption>{quantity.capitalize()}</figcaption>'
        f'<div role="img" aria-label="{text(figures.describe(history, quantity))}">'
        f"{figures.svg(history, quantity)}</div></figure>" for quantity in ("loss", "accuracy"))
    return f'<div class="columns">{drawn}</div>'


def epochs(history: History) -> str:
    """Return the table of all epochs, with the best one marked."""
    rows = [[text(cell) for cell in row_cells(row)] for row in history.rows]
    accuracies = [row.test.accuracy for row in history.rows if row.test]
    best = next((i for i, row in enumerate(history.rows)
                 if row.test and row.test.accuracy == max(accuracies)), None)
    return scroll("Epochs", table("wide", [text(h) for h in HEADINGS], rows, 0, best))


# -- classes ---------------------------------------------------------------------------------


def confusion(found: Predictions) -> str:
    """Return the confusion matrix as a table with coloured cells."""
    K, counts, names = len(found.classes), found.confusion, found.classes
    images = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(images, 1)
    wrong = np.where(np.eye(K, dtype=bool), 0, share)
    worst = wrong.max() or 1.0
    rows = []
    for a in range(K):
        line = [f'<th scope="row"><span title="{text(names[a])}">{text(names[a])}</span></th>']
        for b in range(K):
            n = int(counts[a, b])
            if not n:
                line.append('<td class="z">·</td>')
                continue
            kind, s = ("r", share[a, b]) if a == b else ("w", share[a, b] / worst)
            says = (f' title="{text(names[a])} answered {text(names[b])}: {n:,} of '
                    f'{int(images[a, 0]):,}, {percent(share[a, b])}"' if K <= MANY else "")
            line.append(f'<td class="{kind}" style="--s:{s:.2f}"{says}>{n:,}</td>')
        rows.append(f"<tr>{''.join(line)}</tr>")
    head = "".join(f'<th scope="col"><span title="{text(n)}">{text(n)}</span></th>' for n in names)
    tall = K > MANY or (K > 4 and max(map(len, names)) > LONG)
    kind = "confusion" + " tall" * tall + (" dense" if K > MANY else " wide")
    return scroll("Confusion matrix", f'<table class="{kind}" style="--classes:{K}"><thead><tr>'
                  f"<th>truth&nbsp;↓ answer&nbsp;→</th>{head}</tr></thead>\n<tbody>"
                  + "\n".join(rows) + "</tbody></table>")


def classes(found: Predictions, pairs: Sequence[Confusion]) -> str:
    """Return recall and precision of each class, and the most frequent confusions."""
    rows = [[text(row.name), f"{row.images:,}", f"{row.correct:,}", bar(row.recall),
             bar(row.precision)] for row in found.per_class()]
    per_class = scroll("Classes", table(
        "wide", ["class", "images", "correct", "recall", "precision"], rows))
    if not pairs:
        return per_class
    rows = [[text(pair.truth), text(pair.answer), f"{pair.images:,}", bar(pair.share, "wrong")]
            for pair in pairs]
    confused = scroll("Most frequent confusions", table(
        "wide", ["truth", "taken for", "images", "of class"], rows, 2))
    return (f'<div class="columns classes"><div>{per_class}</div>'
            f"<div><h3>Most frequent confusions</h3>{confused}</div></div>")


# -- images ----------------------------------------------------------------------------------


def mistakes(shown: Sequence[Mistake]) -> str:
    """Return a card per misclassified image: answer, probability and true class."""
    made = []
    for one in shown:
        H, W = one.image.shape[:2]
        scale = SIDE // max(H, W)
        size = f' class="pixels" width="{W * scale}" height="{H * scale}"' if scale > 1 else ""
        alt = f"an image of {one.truth}, answered {one.answer}"
        made.append(
            f'<li><div class="picture"><img src="{png(one.image)}" alt="{text(alt)}"{size}></div>'
            f'<div class="about"><div class="answer"><span title="{text(one.answer)}">'
            f"{text(one.answer)}</span><b>{percent(one.probability)}</b></div>"
            f'<div class="truth"><span title="{text(one.truth)}">is {text(one.truth)}</span>'
            f"<b>{percent(one.of_truth)}</b></div></div></li>")
    return f'<ul class="cards">{"".join(made)}</ul>'


def filters(shown: np.ndarray) -> str:
    """Return the enlarged filters, each weight a square of whole pixels."""
    K, R, S, _ = shown.shape
    scale = max(2, FILTER // max(R, S))
    images = "".join(f'<img class="pixels" src="{png(f)}" alt="" width="{S * scale}" '
                     f'height="{R * scale}">' for f in shown)
    return (f'<div class="filters" role="img" aria-label="{K} filters of {R} x {S} pixels">'
            f"{images}</div>")


# -- names and values ------------------------------------------------------------------------


def facts(rows: Mapping[str, Any]) -> str:
    """Return names and values as a list."""
    inside = "".join(f"<dt>{text(name)}</dt><dd>{value_text(value)}</dd>"
                     for name, value in rows.items())
    return f'<dl class="facts">{inside}</dl>'


def value_text(value: Any) -> str:
    """Return a setting as HTML: yes, no, a dash for nothing, rounded numbers."""
    if value is None or value == "":
        return '<span class="none">–</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value))
    return text(f"{value:.6g}" if isinstance(value, float) else value)
