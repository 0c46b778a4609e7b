"""Small faults for CUDA sources: one token changed at a time.

    mutants("constexpr int V = 2;\n    for (I t = 0; t < n; ++t) y[t] = a * x[t];")

gives ``t <= n``, ``t >= n``, ``--t``, ``y[t + 1]``, ``a / x[t]`` and so on. Text that no kernel's
behaviour hangs on is left alone: comments, preprocessor lines, types, parameter lists, template
arguments, assertions, and constants that come from the command line (``CFG_``).
"""

import random
import re
from typing import NamedTuple

TOKEN = re.compile(r"""
    (?P<skip>     //[^\n]* | /\*.*?\*/ | "[^"\n]*" | ^[ \t]*\#[^\n]* | \s+ )
  | (?P<number>   0x[0-9a-fA-F]+[uUlL]* | (?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?[fFuUlL]* )
  | (?P<name>     [A-Za-z_]\w* )
  | (?P<operator> <<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^]=|->|::|[^\s\w] )
""", re.X | re.M | re.S)

OPERATORS = {  # each with what may stand in its place
    "+": ["-"], "-": ["+"], "*": ["/", "+"], "/": ["*"], "%": ["/", "*"],
    "+=": ["-=", "="], "-=": ["+="], "*=": ["/="], "/=": ["*="], "++": ["--"],
    "<<": [">>"], ">>": ["<<"], "&": ["|"], "|": ["&"], "^": ["&", "|"],
    "&&": ["||"], "||": ["&&"], "==": ["!="], "!=": ["=="],
}
BOUNDS = {"<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<")}
OPERAND = re.compile(r"[\w)\]]$")  # an operator after anything else has one operand
TYPES = {"A", "I", "T", "E", "Mark", "Words", "Moments", "Sums", "Four", "bool", "char",
         "const", "double", "float", "int", "long", "unsigned", "void", ">", "size_t", "auto"}
WORDS = {"return", "case", "else", "sizeof", "operator"}
TWINS = ["H W", "P Q", "R S", "SH SW", "DH DW", "PT PL", "PB PR", "EH EW", "h w", "p q", "r s",
         "p0 q0", "p1 q1", "r0 s0", "r1 s1", "dh dw", "ph qw", "top left", "min max", "first end",
         "p0 p1", "k0 k1", "row run", "Add Larger", "seed stream", "a b", "continue break",
         "mean var", "momentum decay", "blockIdx threadIdx"]
WORDS_OF_CUDA = {"min", "max", "Add", "Larger", "continue", "break", "blockIdx", "threadIdx"}
SWAPS = {a: b for pair in TWINS for a, b in (pair.split(), reversed(pair.split()))}

HEAD = re.compile(r'extern "C" __global__[^{]*')               # parameter lists
IDLE = re.compile(r"^[ \t]*(using\b|static_assert|#).*$"
                  r"|\btemplate <[^>]*>"
                  r"|^.*\bCFG_.*$"
                  r"|^[ \t]*__shared__.*$"
                  r"|\b(unsigned|[A-Z]\w*) \w+\[\w+\];", re.M)  # an array's declaration


class Mutant(NamedTuple):
    """text[start:end], token number ``token``, was ``old`` and is to be ``new``."""

    token: int   # comments do not count
    start: int
    end: int
    old: str
    new: str
    line: int    # its number, from 1
    shown: str   # the line as it stands, the change in it as {old => new}

    def of(self, text: str) -> str:
        """The changed text."""
        assert text[self.start : self.end] == self.old
        return text[: self.start] + self.new + text[self.end :]


def mutants(text: str, seed: int = 0) -> list[Mutant]:
    """All places of text where a token can be changed, in order, with one change each; two where
    a bound stands, ``<`` to ``<=`` and to ``>=``. Seed picks among several changes."""
    pick = random.Random(seed)
    idle = [m.span() for pattern in (HEAD, IDLE) for m in pattern.finditer(text)]
    found: list[tuple[int, int, int, str]] = []
    tokens = [m for m in TOKEN.finditer(text) if m.lastgroup != "skip"]
    names = {m[0] for m in tokens}
    inside = brackets = None  # of template arguments
    for i, token in enumerate(tokens):
        kind, old, (start, end) = token.lastgroup, token[0], token.span()
        before = tokens[i - 1][0] if i else ""
        after = tokens[i + 1][0] if i + 1 < len(tokens) else ""
        touches = i and tokens[i - 1].end() == start and OPERAND.search(before)
        if old == "<" and (touches or before == "template"):  # less than has a space before it
            inside, brackets = True, 0
        if inside:
            brackets += old.count("<") - old.count(">")
            inside = brackets > 0
            continue
        if any(a <= start < b for a, b in idle):
            continue
        if kind == "number":
            found.append((i, start, end, _number(old, pick)))
        elif old == "__syncthreads":
            found.append((i, start, end, "(void)"))
        elif kind == "name" and old in SWAPS:
            declared = after == "=" and (before in TYPES or before == ",")
            there = SWAPS[old] in names or old in WORDS_OF_CUDA
            if there and not declared and before not in TYPES | {"V", ".", "->"}:
                found.append((i, start, end, SWAPS[old]))
        elif old in BOUNDS:
            found += [(i, start, end, new) for new in BOUNDS[old]]
        elif old == "!":
            found.append((i, start, end, ""))
        elif old == "]" and before != "[" and after != "(":
            found.append((i, start, end, " + 1]"))
        elif old in OPERATORS:
            binary = OPERAND.search(before) and before not in TYPES | WORDS
            if binary or old in ("++", "-"):
                if not binary and old == "-":
                    found.append((i, start, end, ""))
                else:
                    found.append((i, start, end, pick.choice(OPERATORS[old])))
    return [_described(text, *change) for change in found]


def code(text: str) -> str:
    """The tokens of text: two texts with the same have the same mutants."""
    return " ".join(m[0] for m in TOKEN.finditer(text) if m.lastgroup != "skip")


def _number(old: str, pick: random.Random) -> str:
    """An integer's neighbour; 1 % more of a fraction."""
    digits = re.match(r"0x[0-9a-fA-F]+|[\d.]+(?:[eE][-+]?\d+)?", old)[0]
    suffix = old[len(digits):]
    if digits.startswith("0x"):
        return hex(int(digits, 16) ^ 1 << pick.randrange(20)) + suffix
    if not digits.isdigit():
        return repr(float(digits) * 1.01 or 0.01) + suffix
    n = int(digits)
    return str(n + pick.choice([-1, 1]) if n > 1 else 1 - n) + suffix


def _described(text: str, token: int, start: int, end: int, new: str) -> Mutant:
    first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    code = text[first:start], text[end : last if last >= 0 else None]
    shown = f"{code[0]}{{{text[start:end]} => {new}}}{code[1]}".split("//")[0]
    return Mutant(token, start, end, text[start:end], new, text.count("\n", 0, start) + 1,
                  " ".join(shown.split()))
