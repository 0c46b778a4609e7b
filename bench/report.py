"""Turn what ``pytest bench --benchmark-json=bench.json`` wrote into a table.

``python bench/report.py bench.json`` shows it in a terminal, and as Markdown in a pipe. "vs torch"
is PyTorch's time over this one's, on the same device, in the same precision, for the same work in
the same run, PyTorch in the faster of its layouts (marked *): above 1 gpuconv is faster. "roof" is
the share of what the machine could do at most, by its measured peaks for that precision; what stays
in a cache may exceed it.
"""

import argparse
import json
import sys

HEADINGS = ["work", "library", "ms", "images/s", "GB/s", "GFLOP/s", "roof", "vs torch"]


def rows(benchmarks):
    """One list of cells per measurement."""
    return cells_of([b["extra_info"] for b in benchmarks if "ms" in b["extra_info"]])


def kind(m):
    """What is compared with each other."""
    return m["work"], m["device"], m.get("precision", "float32")


def peers(measured):
    """{kind: PyTorch's shortest time}"""
    best = {}
    for m in measured:
        if m["library"].startswith("torch"):
            best[kind(m)] = min(m["ms"], best.get(kind(m), m["ms"]))
    return best


def cells_of(measured):
    best = peers(measured)
    for m in measured:
        peer = best.get(kind(m))
        star = "*" if m["library"].startswith("torch") and m["ms"] == peer else ""
        yield [m["work"], m["library"] + star, written(m["ms"], ",.3f"),
               written(m["images_per_second"], ",.0f"), written(m["gb_per_second"], ".1f"),
               written(m["gflop_per_second"], ",.0f"), written(m.get("roof_share"), ".0%"),
               written(peer and peer / m["ms"], ".2f")]


def written(value, form):
    return "-" if value is None else format(value, form)


def markdown(table, headings=HEADINGS, left=2):
    """The lines of a table; the first columns are words."""
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * left + "---:|" * (len(headings) - left)
    for cells in table:
        yield f"| {' | '.join(cells)} |"


def rich_table(table):
    from rich.console import Console
    from rich.table import Table
    made = Table()
    for number, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="left" if number < 2 else "right", no_wrap=number > 1)
    before = None
    for cells in table:
        if before not in (None, cells[0]):
            made.add_section()
        made.add_row("" if cells[0] == before else cells[0], *cells[1:])
        before = cells[0]
    Console().print(made)


def main():
    parser = argparse.ArgumentParser(description="Show a benchmark run as a table.")
    parser.add_argument("json", help="what pytest bench --benchmark-json wrote")
    parser.add_argument("--markdown", action="store_true", help="also in a terminal")
    args = parser.parse_args()
    with open(args.json, encoding="utf-8") as file:
        run = json.load(file)
    machine, table = run["machine_info"], list(rows(run["benchmarks"]))
    print(f"CPU: {machine['cpu'].get('brand_raw', machine['machine'])}, {machine['threads']} "
          f"threads, load {machine['load']:.1f} before; GPU: {machine['gpu']}; "
          f"{run['datetime'][:10]}\n")
    if args.markdown or not sys.stdout.isatty():
        print(*markdown(table), sep="\n")
    else:
        rich_table(table)


if __name__ == "__main__":
    main()
