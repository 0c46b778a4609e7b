import base64
import dataclasses
import html.parser
import importlib.resources
import io
import math
import re
import statistics
import sys

import numpy as np
import pytest

from gpuconv import files, nn, random, report, runs
from gpuconv.data import Dataset, Source
from gpuconv.report import figures, findings, page, sections
from gpuconv.train import Epoch, History, Metrics, Settings
from gpuconv.train.predictions import Predictions

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "\udcff\x00.png",
        "a name " * 30)
VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes, texts, tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.tables = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), attributes
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[dict(attributes)["class"]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, text):
        self.texts.append(text)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += text

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


def history(epochs=3, test=True):
    return History([Epoch(e, Metrics(2 / e, 1 - 0.8 / e, 50), Metrics(2.5 / e, 1 - 0.9 / e, 40)
                          if test else None, 500.0, 1.5, 0.1 / e) for e in range(1, epochs + 1)])


def answers(classes, n=60, seed=0, shape=(8, 8, 3)):
    """(Predictions, the data set that they are of)."""
    rng, K = np.random.default_rng(seed), len(classes)
    data = Dataset(rng.integers(0, 256, (n, *shape), dtype=np.uint8),
                   rng.integers(0, K, n, dtype=np.int32), tuple(classes), "noise")
    return Predictions(rng.standard_normal((n, K)) * 3, data.labels, data.classes), data


def made_up(classes, name="made-up", **more):
    """Findings of a run that never was."""
    found, data = answers(classes)
    config = runs.Config({"name": "simple_convnet", "arguments": {"image": 8}}, Source("shapes"),
                         Settings(epochs=3), command="gpuconv train --data <here>")
    values = dict(name=name, status="finished", config=dataclasses.asdict(config),
                  environment={"GPU": "none & nowhere"}, history=history(), trained=None,
                  tta_result=None, predictions=found, mistakes=findings.mistakes(found, data, 5),
                  data=data.name, notes=[])
    return findings.Findings(**values | more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real run, of two epochs."""
    config = runs.Config({"name": "simple_convnet", "arguments": {}},
                         Source("shapes", limit=40), Settings(epochs=2, batch_size=20),
                         command="gpuconv train --data shapes")
    made = runs.RunFolder.create(config, tmp_path_factory.mktemp("runs") / "real")
    runs.train(config, made)
    return made


# -- a whole report --------------------------------------------------------------------------


def test_a_report_of_a_run(folder):
    before = set(folder.path.rglob("*"))
    path, found = report.write_findings(folder, mistakes=6)
    assert path == folder.path / "report.html"
    assert set(folder.path.rglob("*")) - before == {path, folder.plots / "curves.png"}
    text = path.read_text(encoding="utf-8")
    seen = Page(text)
    best = files.load(folder.best())[1]
    want = folder.history().best.test
    assert found.predictions.accuracy == best["test_accuracy"] == want.accuracy
    assert found.predictions.loss == pytest.approx(want.loss, rel=1e-5)
    for word in (folder.path.name, f"{found.predictions.accuracy:.1%}", "84,362", "2 of 2",
                 "Confusion matrix", "First-layer filters", "Most confident mistakes", "shapes",
                 "32 filters of 5 × 5 pixels", "weight decay", *found.environment,
                 *found.data.split()):
        assert any(word in part for part in seen.texts), word
    assert "".join(seen.texts).count("gpuconv train --data shapes") == 1
    assert len(seen.all("img")) == 32 + len(found.mistakes) and len(found.mistakes) == 6
    assert len(seen.all("svg")) == 2 and not found.notes
    assert len(path.read_bytes()) < 300_000


def test_views_are_told():
    seen = "".join(Page(page.render(made_up(["cat", "dog"], tta_result=runs.TtaResult(
        "six", 8, 10_000, 0.9391, 0.25)))).texts)
    assert "%; 93.9% in six views" in seen
    assert " in six views" not in "".join(Page(page.render(made_up(["cat", "dog"]))).texts)


def test_a_report_needs_nothing_else(folder, tmp_path):
    """No network, no script, no other file, and a policy that forbids them."""
    text = report.write(folder, tmp_path / "x.html").read_text(encoding="utf-8")
    seen = Page(text)
    policy, = (a["content"] for a in seen.all("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    names = {tag for tag, _ in seen.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "audio"}
    ids = [a["id"] for _, a in seen.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    for _, attributes in seen.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith("data:image/png;base64,") or value[1:] in ids
    for inside in re.findall(r"url\((.*?)\)", text):
        assert inside[0] == "#" and inside[1:] in ids
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_a_path_of_ones_own_leaves_the_folder_as_it_was(folder, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in folder.path.rglob("*")}
    assert report.write(folder, tmp_path / "x.html") == tmp_path / "x.html"
    assert {p: p.stat().st_mtime_ns for p in folder.path.rglob("*")} == before


def test_another_checkpoint(folder):
    first = folder.checkpoints()[0]
    found = findings.collect(folder, checkpoint=first)
    assert found.trained.path == first


def test_data_that_are_gone_are_a_note(folder, monkeypatch, tmp_path):
    def sets(self, place, **more):
        raise FileNotFoundError("/data/pictures is <gone>")

    monkeypatch.setattr(runs.RunFolder, "sets", sets)
    path, found = report.write_findings(folder, tmp_path / "x.html")
    assert found.notes == ["the model could not be measured on its data: /data/pictures is <gone>"]
    seen = Page(path.read_text(encoding="utf-8"))
    assert f"T{found.notes[0][1:]}." in seen.texts and "First-layer filters" in seen.texts
    assert "Confusion matrix" not in seen.texts
    assert f"{folder.history().best.test.accuracy:.1%}" in seen.texts


def test_data_of_other_classes_are_a_note(folder, monkeypatch):
    _, data = answers(["a", "b"], shape=(32, 32, 3))
    sets = runs.Sets(data, data, Source("shapes"))
    monkeypatch.setattr(runs.RunFolder, "sets", lambda self, place, **more: sets)
    found = findings.collect(folder)
    assert "noise has the classes a, b, the model knows" in found.notes[0]
    assert found.predictions is None


def test_a_run_that_has_just_begun(tmp_path):
    config = runs.Config({"notation": "INPUT 8x8x3 | FC 2"}, Source("shapes"), Settings())
    folder = runs.RunFolder.create(config, tmp_path / "young")
    path, found = report.write_findings(folder)
    assert found.notes == ["this run has no checkpoint yet, so there is no model to look at"]
    seen = Page(path.read_text(encoding="utf-8"))
    assert "Settings" in seen.texts and "Curves" not in seen.texts
    assert not (folder.plots / "curves.png").exists()


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of a run"):
        report.write(runs.RunFolder(tmp_path))
    assert not list(tmp_path.iterdir())


def test_asks_where_to_write_before_it_measures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "collect", None)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report.write(folder, tmp_path / "nowhere" / "x.html")


# -- untrusted names, many classes -----------------------------------------------------------


def test_names_are_text_and_never_markup():
    text = page.render(made_up(EVIL, name="<b>run</b>", notes=["<i>note</i>"]))
    text.encode("utf-8")
    seen = Page(text)
    assert "script" not in {tag for tag, _ in seen.elements}
    assert not [a for a in seen.all("img") if not a["src"].startswith("data:")]
    assert not [a for _, a in seen.elements if any(name.startswith("on") for name in a)]
    assert "<b>run</b>" in seen.texts and "<i>note</i>." in seen.texts
    rows = seen.tables["confusion tall wide"]
    assert [row[0] for row in rows[1:]] == [*EVIL[:3], r"\udcff\x00.png", EVIL[4]]
    titles = {a["title"] for a in seen.all("span") if "title" in a}
    assert {r"\udcff\x00.png", *EVIL[:3]} <= titles
    assert "gpuconv train --data <here>" in "".join(seen.texts)


@pytest.mark.parametrize("K, kind", [(2, "confusion wide"), (10, "confusion wide"),
                                     (20, "confusion wide"), (21, "confusion tall dense"),
                                     (100, "confusion tall dense")])
def test_the_tables_have_the_numbers(K, kind):
    found = made_up([f"c{k}" for k in range(K)])
    tables = Page(page.render(found)).tables
    matrix = tables[kind]
    assert matrix[0][1:] == list(found.predictions.classes)
    got = [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in matrix[1:]]
    assert got == found.predictions.confusion.tolist()


def test_per_class_and_pairs():
    found = made_up(["cat", "dog", "emu"])
    both = Page(sections.classes(found.predictions, findings.confusions(found.predictions)))
    assert both.tables["wide"][0] == ["truth", "taken for", "images", "of class"]
    alone = Page(sections.classes(found.predictions, []))
    for row, want in zip(alone.tables["wide"][1:], found.predictions.per_class(), strict=True):
        assert row == [want.name, str(want.images), str(want.correct), f"{want.recall:.1%}",
                       f"{want.precision:.1%}"]


def test_a_class_without_images_has_a_dash():
    found = Predictions(np.float32([[1, 0, 0]]), np.array([1]), ("a", "b", "c"))
    rows = Page(sections.classes(found, [])).tables["wide"][1:]
    assert rows == [["a", "0", "0", "–", "0.0%"], ["b", "1", "0", "0.0%", "–"],
                    ["c", "0", "0", "–", "–"]]
    assert Page(sections.confusion(found)).tables["confusion wide"][1][1:] == ["·", "·", "·"]


def test_too_many_classes_for_a_matrix_still_have_their_rows():
    found = made_up([f"c{k}" for k in range(sections.CLASSES + 1)])
    seen = Page(page.render(found))
    assert "Confusion matrix" not in seen.texts
    assert "Most frequent confusions" in seen.texts and "c120" in seen.texts


def test_without_mistakes_there_is_no_such_section():
    right = Predictions(np.eye(3) * 5, np.arange(3), ("a", "b", "c"))
    seen = Page(page.render(made_up("abc", predictions=right, mistakes=[])))
    assert "100.0%" in seen.texts and "Most confident mistakes" not in seen.texts


# -- findings --------------------------------------------------------------------------------


def test_confusions_are_those_of_a_loop():
    found, data = answers("abcd", n=200)
    counts = {}
    for label, answer in zip(data.labels.tolist(), found.answers.tolist(), strict=True):
        if label != answer:
            counts[label, answer] = counts.get((label, answer), 0) + 1
    order = sorted(counts, key=lambda pair: (-counts[pair], pair))
    images = np.bincount(data.labels).tolist()
    assert findings.confusions(found, 5) == [
        findings.Confusion("abcd"[a], "abcd"[b], counts[a, b], counts[a, b] / images[a])
        for a, b in order[:5]]


def test_mistakes_show_their_images_exactly():
    found, data = answers("abc")
    shown = findings.mistakes(found, data, 4)
    seen = Page(sections.mistakes(shown))
    for image, n, one in zip(seen.all("img"), found.mistakes(4), shown, strict=True):
        assert (one.truth, one.answer) == ("abc"[data.labels[n]], "abc"[found.answers[n]])
        assert one.probability == found.probabilities[n].max() > one.of_truth
        assert (pixels(image["src"]) == data.images[n]).all()
        assert image["width"] == image["height"] == "128" and "pixels" in image["class"]
        assert image["alt"] == f"an image of {one.truth}, answered {one.answer}"


def pixels(uri):
    from PIL import Image
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("shape, want", [
    ((5, 7, 1), (5, 7)), ((5, 7, 3), (5, 7, 3)), ((5, 7, 4), (5, 7, 4)), ((5, 7, 2), (5, 7)),
    ((400, 300, 3), (192, 144, 3))], ids=str)
def test_png(rng, shape, want):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    got = pixels(findings.png(image[:, ::-1]))
    assert got.shape == want
    if want[0] == shape[0]:
        assert (got.reshape(5, 7, -1) == image[:, ::-1, : got.size // 35]).all()


def test_large_images_keep_their_form():
    one = findings.Mistake(np.zeros((100, 300, 3), "uint8"), "a", "b", 0.9, 0.1)
    image, = Page(sections.mistakes([one])).all("img")
    assert "width" not in image and "class" not in image


@pytest.mark.parametrize("count, total", [(0, 10), (10, 10), (3, 10), (8421, 10_000), (1, 1)])
def test_the_interval_ends_where_its_definition_says(count, total):
    accuracy, reach = count / total, statistics.NormalDist().inv_cdf(0.975)
    low, high = findings.interval(accuracy, total)
    assert 0 <= low <= accuracy <= high <= 1 and low < high
    for end in (low, high):
        if 0 < end < 1:
            assert abs(accuracy - end) == pytest.approx(
                reach * math.sqrt(end * (1 - end) / total), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_filters_go_from_black_to_white(xp, channels, dtype):
    random.seed(1)
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 5, (3, 2)))
    model[1].weight.data[2] = 0.25
    w = model[1].weight.data.astype(dtype).astype(float)
    got = findings.first_filters(model.to("cpu" if xp is np else "cuda", dtype))
    assert got.shape == (5, 3, 2, channels) and got.dtype == np.uint8
    for k in (0, 1, 3, 4):
        assert got[k].min() == 0 and got[k].max() == 255
        want = (w[k] - w[k].min()) / (w[k].max() - w[k].min()) * 255
        assert np.abs(got[k] - want).max() <= 0.5 + 1e-9
    assert (got[2] == 128).all()


def test_filters_without_colours_are_not_shown():
    assert findings.first_filters(nn.Linear(3, 2)) is None
    assert findings.first_filters(nn.Conv2d(4, 2, 3)) is None
    many = findings.first_filters(nn.Conv2d(1, findings.FILTERS + 1, 1))
    assert many.shape == (findings.FILTERS, 1, 1, 1)


def test_filters_that_are_nan_are_drawn_all_the_same():
    model = nn.Conv2d(1, 2, 3)
    model.weight.data[...] = np.nan
    assert (findings.first_filters(model) == 128).all()


def test_filters_are_drawn_in_whole_pixels():
    seen = Page(sections.filters(np.zeros((3, 5, 7, 3), "uint8")))
    assert [(a["width"], a["height"]) for a in seen.all("img")] == [("56", "40")] * 3
    assert {a.get("aria-label") for a in seen.all("div")} == {"3 filters of 5 x 7 pixels"}


# -- curves ----------------------------------------------------------------------------------


def test_curves_are_text_and_take_the_pages_colours():
    pytest.importorskip("matplotlib")
    drawn = figures.svg(history(), "accuracy")
    seen = Page(drawn)
    assert {"epoch", "training", "test", "1", "2", "3"} <= set(seen.texts)
    assert any(re.fullmatch(r"\d+%", text) for text in seen.texts)
    assert "var(--strong)" in drawn and "var(--ink)" in drawn and "font-family" not in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert "width" not in seen.all("svg")[0] and "viewbox" in seen.all("svg")[0]
    assert drawn == figures.svg(history(), "accuracy")  # nothing of the day in it


def test_figures_leave_matplotlib_as_it_was():
    matplotlib = pytest.importorskip("matplotlib")
    pyplot = "matplotlib.pyplot" in sys.modules
    plain = figures.svg(history(), "loss")
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red"}):
        assert figures.svg(history(), "loss") == plain
        assert matplotlib.rcParams["font.size"] == 31
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


@pytest.mark.parametrize("epochs, test", [(1, True), (3, False), (40, True)])
def test_plot_curves(tmp_path, epochs, test):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"
    assert report.plot_curves(history(epochs, test), path) is True
    data = base64.b64encode(path.read_bytes()).decode()
    assert pixels(f"data:image/png;base64,{data}").shape[:2] == (440, 1472)
    assert list(tmp_path.iterdir()) == [path]


def test_curves_in_words():
    assert figures.describe(history(), "loss") == (
        "Loss over 3 epochs: training from 2.000 to 0.667, test from 2.500 to 0.833.")
    assert figures.describe(history(1, False), "accuracy") == (
        "Accuracy over 1 epochs: training from 20.0% to 20.0%.")


def test_nothing_to_plot(tmp_path):
    assert report.plot_curves(History(), tmp_path / "x.png") is False
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report.plot_curves(history(), tmp_path / "nowhere" / "x.png")


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert not report.available() and "-m pip install matplotlib" in report.hint()
    assert report.plot_curves(history(), tmp_path / "x.png") is False
    assert not list(tmp_path.iterdir())
    seen = Page(page.render(made_up("abc")))
    assert sum("pip install matplotlib" in text for text in seen.texts) == 1 and not seen.all("svg")


# -- readable --------------------------------------------------------------------------------


def test_colours_have_contrast():
    """WCAG: 4.5 for text on its ground, in both themes, the deepest cells included."""
    style = (importlib.resources.files("gpuconv.report") / "style.css").read_text("utf-8")
    for theme in style.split("@media (prefers-color-scheme: dark)")[:2]:
        colours = {name: tuple(int(value[i : i + 2], 16) for i in (1, 3, 5))
                   for name, value in re.findall(r"--(\w+): (#[0-9a-f]{6})", theme)}
        deep = {name: tuple(map(int, value.split()))
                for name, value in re.findall(r"--(right|wrong): ([\d ]+);", theme)}
        for ink, ground in (("ink", "page"), ("ink", "card"), ("ink", "soft"), ("muted", "page"),
                            ("muted", "card"), ("strong", "page"), ("strong", "card")):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for name, alpha in (("right", 0.7), ("wrong", 0.6)):
            cell = [alpha * a + (1 - alpha) * b
                    for a, b in zip(deep[name], colours["card"], strict=True)]
            assert contrast(colours["ink"], cell) >= 4.5, name


def contrast(a, b):
    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                  for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((luminance(a), luminance(b)))
    return (bright + 0.05) / (dark + 0.05)


def test_every_class_of_the_page_has_its_style(folder, tmp_path):
    text = report.write(folder, tmp_path / "x.html").read_text(encoding="utf-8")
    style, body = text[text.index("<style>") : text.index("</style>")], text[text.index("<body>") :]
    used = {name for a in Page(body.replace("</html>", "")).elements
            for name in a[1].get("class", "").split()}
    assert not [name for name in used if f".{name}" not in style]
