"""A run as one HTML file, which needs nothing else: no network, no script, no other file.

Its style is style.css, its curves are SVG, its images are data URIs; a Content-Security-Policy
forbids everything else, so even a class called ``<script>`` that slipped through would do nothing.
"""

import datetime
import importlib.resources
import os
import pathlib
from typing import Any

import gpuconv
from gpuconv import files
from gpuconv.messages import program
from gpuconv.report import figures, findings, sections
from gpuconv.report.findings import Findings
from gpuconv.report.sections import facts, percent, section, text
from gpuconv.runs import RunFolder

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
GROUPS = {"source": "data", "settings": "training"}


def write(folder: RunFolder, path: str | os.PathLike | None = None, *,
          checkpoint: str | os.PathLike | None = None, device: str = "cpu",
          mistakes: int = 24, data: str | os.PathLike | None = None) -> pathlib.Path:
    """Look at a run and write what there is to see, as one HTML file.

    Args:
        folder: of the run.
        path: the file, replaced as a whole. Default: report.html in the run's folder, and with
            matplotlib plots/curves.png beside it.
        checkpoint: the model to look at. Default: the run's best, without one its newest.
        device: where it computes.
        mistakes: how many of the most confident ones to show.
        data: where the images of the run are, if they have moved.

    Returns:
        The path.

    Raises:
        OSError: no such run, or the file cannot be written.
        ValueError: config, metrics or checkpoint are damaged.
    """
    written, _ = write_findings(folder, path, checkpoint=checkpoint, device=device,
                                mistakes=mistakes, data=data)
    return written


def write_findings(folder: RunFolder, path: str | os.PathLike | None = None, *,
                   checkpoint: str | os.PathLike | None = None, device: str = "cpu",
                   mistakes: int = 24,
                   data: str | os.PathLike | None = None) -> tuple[pathlib.Path, Findings]:
    """Write a report as ``write`` does; return its path and its findings."""
    folder.config()  # before anything is written: is it a run?
    target = files.check_writable(folder.path / "report.html" if path is None else path)
    found = findings.collect(folder, checkpoint=checkpoint, device=device, count=mistakes,
                             data=data)
    if path is None and target.exists() and found.trained and found.predictions is None:
        raise ValueError(f"{target} is left as it is: {found.notes[-1]}")
    if path is None:  # else the run's folder is left as it is: it may be read-only
        files.make_folder(folder.plots)
        figures.plot_curves(found.history, folder.plots / "curves.png")
    with files.atomic_write(target, "w") as file:
        file.write(render(found))
    return target, found


def render(found: Findings) -> str:
    """Return the page as HTML."""
    parts = _parts(found)
    style = importlib.resources.files("gpuconv.report").joinpath("style.css").read_text("utf-8")
    links = "".join(f'<a href="#{name}">{text(heading)}</a>' for name, heading, _, _ in parts)
    notes = "".join(f'<p class="note">{text(note[0].upper() + note[1:])}.</p>'
                    for note in found.notes)
    body = "\n".join(section(*part) for part in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="gpuconv {text(gpuconv.__version__)}">
<title>{text(found.name)} – gpuconv report</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Training report</p>
<h1>{text(found.name)}</h1>
<p class="says">{text(_headline(found))}</p>
{notes}
<nav aria-label="Sections">{links}</nav>
</header>
{_tiles(found)}
{body}
<footer>Written by gpuconv {text(gpuconv.__version__)} on \
{datetime.datetime.now():%d %B %Y, %H:%M}. This file needs no network and runs no script.</footer>
</main>
</body>
</html>
"""


def _parts(found: Findings) -> list[tuple[str, str, str, str]]:
    """Return (id, heading, sentence, HTML) of each section that has content."""
    parts = []
    if found.history.rows:
        parts.append(("curves", "Curves", "Training is measured while the weights still "
                      "change within the epoch, the test set after it.",
                      sections.curves(found.history)))
    if found.predictions is not None:
        parts += _measured(found)
    if found.trained is not None:
        w = findings.first_filters(found.trained.model)
        if w is not None:
            parts.append(("filters", "First-layer filters", f"{w.shape[0]} filters of "
                          f"{w.shape[1]} × {w.shape[2]} pixels, each scaled from its smallest "
                          "weight (dark) to its largest (bright).", sections.filters(w)))
    if found.history.rows:
        parts.append(("epochs", "Epochs", "", sections.epochs(found.history)))
    parts.append(("settings", "Settings", "", _settings(found.config)))
    if found.environment:
        parts.append(("environment", "Environment", "Where the run was started.",
                      facts(found.environment)))
    return parts


def _measured(found: Findings) -> list[tuple[str, str, str, str]]:
    """Return the sections that need answers on the test set."""
    answers = found.predictions
    assert answers is not None
    parts = []
    if len(answers.classes) <= sections.CLASSES:
        parts.append(("confusion", "Confusion matrix", "A row is what images are, a column what "
                      "they were taken for. Blue is right, by its share of the row; orange is "
                      "wrong, deepest where a class is most often taken for another.",
                      sections.confusion(answers)))
    pairs = findings.confusions(answers)
    parts.append(("classes", "Classes", "Recall: of the images of a class, how many were answered "
                  "so. Precision: of the answers of a class, how many were right.",
                  sections.classes(answers, pairs)))
    if pairs:
        total = int((answers.answers != answers.labels).sum())
        parts.append(("mistakes", "Most confident mistakes", f"{len(found.mistakes)} of {total:,}. "
                      "Above, what the model answered, and how probable it found that; below, what "
                      "the image is.", sections.mistakes(found.mistakes)))
    return parts


def _headline(found: Findings) -> str:
    """Return one sentence: model, data, and state of the run."""
    config = found.config
    model = config["model"].get("name") or config["model"].get("notation", "a model")
    words = [f"{model} on {found.data}" if found.data else model,
             f"{config['dtype']} on {config['device']}", f"seed {config['seed']}"]
    if found.status != "finished":
        words.append(found.status)
    return ", ".join(words)


def _tiles(found: Findings) -> str:
    """Return the main results as HTML tiles."""
    tiles, history, answers = [], found.history, found.predictions
    tta = f"; {percent(found.tta_result.accuracy)} in {found.tta_result.views} views" \
        if found.tta_result else ""
    if answers is not None:
        low, high = findings.interval(answers.accuracy, len(answers.labels))
        tiles += [("Test accuracy", percent(answers.accuracy),
                   f"of {len(answers.labels):,} images; "
                   f"95% interval {100 * low:.1f}–{100 * high:.1f}%{tta}"),
                  ("Test loss", f"{answers.loss:.3f}", "nats per image")]
    elif history.rows and (test := history.best.test):
        tiles += [("Test accuracy", percent(test.accuracy), f"of {test.count:,} images{tta}"),
                  ("Test loss", f"{test.loss:.3f}", "nats per image")]
    if found.trained is not None:
        count = sum(p.size for p in found.trained.model.parameters())
        epoch = found.trained.metadata.get("epoch")
        kept = found.trained.path.stem
        tiles.append(("Parameters", f"{count:,}", f"checkpoint {kept}"
                      + (f", epoch {epoch}" if epoch is not None else "")))
    if history.rows:
        seconds = sum(row.seconds for row in history.rows)
        speeds = sorted(row.images_per_second for row in history.rows)
        tiles += [("Epochs", f"{len(history.rows)} of {found.config['settings']['epochs']}",
                   f"best: {history.best.epoch}"),
                  ("Time", duration(seconds),
                   f"{speeds[len(speeds) // 2]:,.0f} training images/s")]
    inside = "".join(f'<div class="tile{" first" if n == 0 else ""}"><dt>{text(name)}</dt>'
                     f'<dd class="value">{text(value)}</dd><dd class="more">{text(more)}</dd></div>'
                     for n, (name, value, more) in enumerate(tiles))
    return f'<dl class="tiles">{inside}</dl>' if tiles else ""


def duration(seconds: float) -> str:
    """Return seconds in words.

    >>> duration(3.21), duration(75), duration(7300)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _settings(config: dict[str, Any]) -> str:
    """Return the command and the settings in groups: of run, model, data and training."""
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for name, value in config.items():
        if isinstance(value, dict):
            groups[name] = {}
            for inner, v in value.items():
                groups[name] |= v if isinstance(v, dict) else {inner: v}
        elif name != "command":
            groups["run"][name] = value
    typed = config.get("command") or ""
    if typed.startswith("gpuconv "):
        typed = program() + typed.removeprefix("gpuconv")
    words = " ".join(f"<span>{text(word)}</span>" for word in typed.split())
    columns = "".join(
        f"<div><h3>{text(GROUPS.get(name, name).capitalize())}</h3>"
        f"{facts({key.replace('_', ' '): value for key, value in group.items()})}</div>"
        for name, group in groups.items())
    return f'{f"<pre>{words}</pre>" if words else ""}<div class="columns">{columns}</div>'
