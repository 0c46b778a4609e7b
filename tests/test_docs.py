"""The documentation: one command builds the site, and everything public is on it."""

import html.parser
import importlib
import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
import types

import pytest

import gpuconv
from gpuconv.guide import __main__ as command

HOUSE = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built by the command of CONTRIBUTING."""
    if not importlib.util.find_spec("pdoc"):
        pytest.skip('no pdoc: pip install "gpuconv[docs]"')
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "default::DeprecationWarning", "-m", "gpuconv.guide",
         folder], capture_output=True, text=True, cwd=HOUSE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(folder / "gpuconv.html")
    return folder


class Page(html.parser.HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            elif name == "href" and tag == "a":
                self.links.add(value)


@pytest.fixture(scope="module")
def pages(site):
    """{path: Page}."""
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "index.html"}


def page_of(site, module):
    return site / (module.replace(".", "/") + ".html")


def public(module):
    """(module, anchor) of every name in __all__ and below it; no anchor for a module."""
    for name in module.__all__:
        thing, where = getattr(module, name), module.__name__
        if isinstance(thing, types.ModuleType):
            yield thing.__name__, None
            if hasattr(thing, "__all__"):
                yield from public(thing)
            continue
        yield where, name
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (
                        inspect.isfunction(value) or isinstance(value, property)):
                    yield where, f"{name}.{member}"


def test_every_public_name_has_its_place(site, pages):
    found = list(public(gpuconv))
    assert len(found) > 150
    missing = [(module, anchor) for module, anchor in found
               if page_of(site, module) not in pages
               or anchor and anchor not in pages[page_of(site, module)].ids]
    assert not missing


def test_every_module_has_its_page_and_can_be_reached(site, pages):
    names = {".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")
             for path in (HOUSE / "gpuconv").rglob("*.py") if path.name != "__main__.py"}
    assert set(command.modules()) == names
    assert {page_of(site, name) for name in names} == set(pages)
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):  # https:
                continue
            target, _, anchor = link.partition("#")
            there = (path.parent / target).resolve() if target else path
            assert there in pages, f"{path.name}: {link}"
            assert not anchor or anchor in pages[there].ids, f"{path.name}: {link}"
    linked = {(path.parent / link.partition("#")[0]).resolve()
              for path, page in pages.items() for link in page.links if ".html" in link}
    assert set(pages) - linked <= {site / "gpuconv.html"}  # that is where one begins


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_docstrings_have_their_sections(site):
    page = text_of(site / "gpuconv/ops.html")
    conv = page.split('<section id="conv2d">')[1].split("</section>")[0]
    for heading in ("Arguments", "Returns", "Raises"):
        assert re.search(rf"<h6[^>]*>{heading}:</h6>", conv)
    assert "<strong>stride:</strong>" in conv and "&gt;&gt;&gt; " in conv


def test_a_formula_is_code_and_a_product_is_no_emphasis(site):
    formula = text_of(site / "gpuconv/ops/pool/max_pool.html").split("<pre>")[1].split("</pre>")[0]
    assert formula.count("\n") >= 2 and "gx[n,h,w,c] = sum of gy[n,p,q,c]" in formula
    assert "(N, H*W*C)" in text_of(site / "gpuconv/nn.html")


def test_the_page_about_own_ops_is_on_it(site, pages):
    text = text_of(site / "gpuconv/guide.html")
    text = text.split('<div class="docstring">')[1].split('<input id="mod-')[0]  # not its source
    assert "write-your-own-op-in-numpy-and-cuda" in pages[site / "gpuconv/guide.html"].ids
    assert text.count('<div class="pdoc-code codehilite">') >= 6  # coloured
    assert "```" not in text and "include::" not in text


def test_without_pdoc_it_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    monkeypatch.setattr(sys, "argv", ["guide", str(tmp_path)])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert done.value.code == 1
    assert "-m pip install pdoc" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_one_line(monkeypatch, capsys, tmp_path):
    pytest.importorskip("pdoc")
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "modules", lambda: ["gpuconv.guide"])
    monkeypatch.setattr(sys, "argv", ["guide", str(tmp_path / "file" / "site")])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert done.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("gpuconv.guide: ") and said.count("\n") == 1
