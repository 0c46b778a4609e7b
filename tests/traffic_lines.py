"""What the headers of kernels/*.cu say under *Traffic*, read and held against what was counted.

    // Traffic  forward   reads x <= N*H*W*C (overlaps hit L1/L2: asks <= N*P*Q*R*S*C), writes y
    //                    N*P*Q*C, argmax N*P*Q*C: 1 byte each, 4 for windows over 256 pixels.
    //          Coalesced where C fills whole sectors, else at most 2.5 times the sectors.
    //          No bank conflicts.

A kernel is called by the end of its name, an array by its parameter; ``a/b`` is both. Behind it
stands how many of its elements the kernel touches, in the letters of its parameters and constants;
with ``<=`` at most. Then, if there is more to say:

    if each, if not each   only where the parameter is true, the array is no null pointer
    (asks n)               elements asked for, those that lanes of a warp share counted once;
                           without it each is asked for once
    (sectors <= 2)         sectors of the requests, times the least for their bytes; without it 1,
                           or what "Coalesced" says

Null pointers go without saying; all other words are for the reader. An array that the kernel
touches and its header does not name is an error, and so are bank conflicts, unless the header says
how many times the fewest passes: "2 passes".
"""

import re
from typing import Any, NamedTuple

from gpuconv import kernels
from hostcuda.traffic import Launch

KINDS = {"reads": ("read", "atomic"), "writes": ("write", "atomic")}
FORMULA = r"(<= )?([\w*+/()-]*[\w)])"
ITEM = re.compile(rf"([\w/]+) {FORMULA}(?: if ((?:not )?\w+))?(?: \((.*)\))?(?=[,.:;]|$)")


class Item(NamedTuple):
    """What a header says about one array."""

    array: str
    verb: str            # reads or writes
    touched: str         # formula, elements
    most: bool           # is that an upper bound?
    condition: str
    asks: str
    asks_most: bool
    sectors: float | None


class Lines(NamedTuple):
    """The Traffic lines of one file."""

    items: dict[str, list[Item]]  # by kernel
    run: str                      # that must fill whole sectors, for requests to be coalesced
    ragged: float                 # else
    passes: float                 # through the banks, times the fewest


def read(file: str, text: str | None = None) -> Lines:
    """The Traffic lines of a file in kernels/, or of this text.

    Raises:
        ValueError: a kernel of the file is not described, or "Coalesced" is missing.
    """
    text = text or kernels.source(file)
    names = list(kernels.signatures(text))
    block = re.search(r"^// Traffic (.*?)(?=^// [A-Z]|^//$|^(?!//))", text, re.M | re.S)
    said = " ".join(re.sub(r"^//", "", block[1] if block else "", flags=re.M).split())

    starts = [(m[1], m.end()) for m in re.finditer(r"(\w+) (?=reads |writes )", said)]
    items: dict[str, list[Item]] = {}
    for name, start in sorted(starts, key=lambda s: len(s[0])):  # a longer name overrides
        sentence = re.split(r"\.(?= |$)", said[start:])[0]
        for kernel in (k for k in names if k == name or k.endswith("_" + name)):
            items[kernel] = [*_items(sentence, {p for _, p in kernels.signatures(text)[kernel]})]
    coalesced = re.search(
        r"Coalesced(?: where ([\w/]+) fills whole sectors, else at most ([\d.]+) times)?", said)
    missing = [k for k in names if k not in items]
    if missing or not coalesced:
        raise ValueError(f"{file}: Traffic says nothing about "
                         f"{', '.join(missing) or 'coalescing'}: {said!r}")
    conflicts = re.search(r"([\d.]+) passes", said)
    return Lines(items, coalesced[1] or "", float(coalesced[2] or 1),
                 float(conflicts[1]) if conflicts else 1.0)


def _items(sentence: str, parameters: set[str]) -> Any:
    verb = ""
    for part in re.split(r",? ?\b(reads|writes)\b ", sentence):
        if part in KINDS:
            verb = part
            continue
        for piece in re.split(r", (?![^(]*\))", part):
            m = ITEM.match(piece)
            if not m or not set(m[1].split("/")) <= parameters:
                continue  # prose
            note = m[5] or ""
            asks = re.search(rf"asks {FORMULA}", note)
            sectors = re.search(r"sectors <= ([\d.]*\d)", note)
            for array in m[1].split("/"):
                yield Item(array, verb, m[3], bool(m[2]), m[4] or "",
                           asks[2] if asks else "", bool(asks and asks[1]),
                           float(sectors[1]) if sectors else None)


def hold(launch: Launch, lines: Lines, reached: dict[tuple, float]) -> list[str]:
    """What is not as the header says, in words.

    Args:
        launch: of a kernel of that file.
        lines: of the file.
        reached: (kernel, array, verb) of each "at most", and the largest share of it that was
            reached by this launch or an earlier one.
    """
    wrong, named = [], set()

    def value(formula):
        return eval(formula, {}, dict(launch.letters))

    def say(what, got, bound, most, key):
        if most:
            reached[key] = max(reached.get(key, 0), got / bound if bound else 1)
        if got > bound or (got < bound and not most):
            wrong.append(f"{launch.kernel} {what}: counted {got:g}, the header says "
                         f"{'at most ' if most else ''}{bound:g}")

    for item in lines.items[launch.kernel]:
        if item.array not in launch.arrays or (item.condition and not value(item.condition)):
            continue
        named.add((item.array, item.verb))
        its, some = launch.arrays[item.array], launch.of(item.array, *KINDS[item.verb])
        unique, each = (its.read if item.verb == "reads" else its.written), its.dtype.itemsize
        what = f"{item.verb} {item.array}"
        say(what, unique.bytes / each, value(item.touched), item.most,
            (launch.kernel, item.array, item.verb))
        asked = sum(a.distinct for a in some) / each
        if item.asks:
            say(f"{what}, asks", asked, value(item.asks), item.asks_most,
                (launch.kernel, item.array, "asks"))
        else:
            say(f"{what}, asks", asked, unique.bytes / each, False, None)
        known = set(re.findall(r"\w+", lines.run)) <= set(launch.letters)
        whole = not (lines.run and known) or value(lines.run) * each % 32 == 0
        bound = item.sectors or (1 if whole else lines.ragged)
        sectors, least = (sum(getattr(a, f) for a in some) for f in ("sectors", "least"))
        if sectors > bound * least:
            wrong.append(f"{launch.kernel} {what}: {sectors / least:.2f} times the sectors of its "
                         f"bytes, the header says at most {bound:g}: e.g. {some[0].text!r}")
    for a in launch.accesses:
        verbs = [verb for verb, kinds in KINDS.items() if a.kind in kinds]
        if a.array == "shared" and a.passes > lines.passes * a.groups:
            wrong.append(f"{launch.kernel}: {a.passes / a.groups:.2f} times the passes through the "
                         f"banks, the header says {lines.passes:g}: {a.text!r}")
        if a.array != "shared" and not {(a.array, verb) for verb in verbs} <= named:
            wrong.append(f"{launch.kernel} {a.kind}s {a.array}, which the header does not say: "
                         f"{a.text!r}")
    return wrong
