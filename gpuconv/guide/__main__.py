"""``python -m gpuconv.guide [FOLDER]``: the documentation as a web site, made by pdoc.

One page per module, its docstring on top, and the pages of ``gpuconv.guide``. Wants the package
pdoc, as ``pip install ".[docs]"`` brings it.
"""

import argparse
import pathlib
import pkgutil
import sys

from gpuconv.messages import install, printable

HERE = pathlib.Path(__file__).parent


def modules() -> list[str]:
    """Names of all modules of gpuconv, but those that run something when they are imported.

    >>> "gpuconv.ops.conv.conv2d" in modules(), "gpuconv.__main__" in modules()
    (True, False)
    """
    found = pkgutil.walk_packages([str(HERE.parent)], "gpuconv.")
    return ["gpuconv", *(m.name for m in found if not m.name.endswith("__main__"))]


def build(folder: pathlib.Path) -> pathlib.Path:
    """Write the site; the page to begin with.

    Args:
        folder: made if it is not there; pages in it are overwritten.

    Raises:
        ModuleNotFoundError: there is no pdoc.
    """
    import pdoc
    import pdoc.render_helpers

    version = sys.modules["gpuconv"].__version__
    pdoc.render.configure(docformat="google", footer_text=f"gpuconv {version}",
                          template_directory=HERE)
    # H*W*C is no emphasis
    pdoc.render_helpers.markdown_extensions["middle-word-em"] = False  # type: ignore[assignment]
    wanted, found = [], set()
    for name in modules():  # pdoc finds some by itself, and wants none named twice
        if name not in found:
            wanted.append(name)
            found.update(pdoc.extract.walk_specs([name]))
    pdoc.pdoc(*wanted, output_directory=folder)
    return folder / "gpuconv.html"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m gpuconv.guide", description="Write gpuconv's documentation as a web site.",
        epilog="example: python -m gpuconv.guide site")
    parser.add_argument("folder", nargs="?", default="site", type=pathlib.Path,
                        help="where to (default: site)")
    args = parser.parse_args()
    try:
        print(printable(str(build(args.folder))))
    except ModuleNotFoundError as error:
        parser.exit(1, f"gpuconv.guide: {error}: {install('docs')}\n")
    except OSError as error:
        parser.exit(1, printable(f"gpuconv.guide: {error}") + "\n")


if __name__ == "__main__":
    main()
