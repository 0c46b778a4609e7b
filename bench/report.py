"""Turn what ``pytest bench --benchmark-json=bench.json`` wrote into a table.

``python bench/report.py bench.json`` shows it in a terminal, and as Markdown in a pipe. "vs torch"
is PyTorch's time over this one's, on the same device, for the same work in the same run, PyTorch
in the faster of its layouts (marked *): above 1 gpuconv is faster. "roof" is the share of what the
machine could do at most, by its measured peaks; what stays in a cache may exceed it.
"""

import argparse
import json
import sys

HEADINGS = ["work", "library", "ms", "images/s", "GB/s", "GFLOP/s", "roof", "vs torch"]


def rows(benchmarks):
    """One list of cells per measurement; best[work, device] is PyTorch's shortest time."""
    measured = [b["extra_info"] for b in benchmarks if "ms" in b["extra_info"]]
    best = {}
    for m in measured:
        if m["library"].startswith("torch"):
            key = m["work"], m["device"]
            best[key] = min(m["ms"], best.get(key, m["ms"]))
    for m in measured:
        peer = best.get((m["work"], m["device"]))
        star = "*" if m["library"].startswith("torch") and m["ms"] == peer else ""
        yield [m["work"], m["library"] + star, written(m["ms"], ",.3f"),
               written(m["images_per_second"], ",.0f"), written(m["gb_per_second"], ".1f"),
               written(m["gflop_per_second"], ",.0f"), written(m.get("roof_share"), ".0%"),
               written(peer and peer / m["ms"], ".2f")]


def written(value, form):
    return "-" if value is None else format(value, form)


def markdown(table):
    print(f"| {' | '.join(HEADINGS)} |\n|---|---|" + "---:|" * (len(HEADINGS) - 2))
    for cells in table:
        print(f"| {' | '.join(cells)} |")


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
    show = markdown if args.markdown or not sys.stdout.isatty() else rich_table
    show(table)


if __name__ == "__main__":
    main()
