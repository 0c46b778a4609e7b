"""Generated damage: JSON texts and files with hostile changes, the same ones for the same seed.

    json_mutations     replaces, deletes, duplicates, renames, nests and swaps parts of a JSON value
    byte_mutations     flips, overwrites, inserts, deletes, repeats and truncates bytes
"""

import json
import random
from collections.abc import Iterator
from typing import Any


class Raw(str):
    """JSON text that stands for a value as it is."""


DEEP = 100_000  # levels of nesting: far more than Python's limit of recursion
HOSTILE = tuple(map(Raw, (
    "null", "true", "false", "0", "-0.0", "-1", "1", "0.5", "1e-400", "1e308", "1e999", "-1e999",
    "NaN", "Infinity", "-Infinity", "2147483648", "4294967296", "9007199254740993",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809",
    "1" + "0" * 18, "9" * 400, "-" + "9" * 400, "9" * 5000, "1." + "9" * 400, '""', '"x"', '"7"',
    '"NaN"', '"1e999"', r'"\u0000"', r'"a\u0000b"', r'"\ud800"', r'"\udfff/../.."', r'"\u001b[31m"',
    r'"a\nb\rc"', '"../../etc/passwd"', '"/dev/zero"', '"' + "long" * 3000 + '"', '"ä→\U0001f600"',
    "[]", "{}", "[[]]", "[null]", "[1]", '["a"]', '[{}]', '{"": 0}', '{"a": 1}', '{"__class__": 1}',
    "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" + "0," * 20_000 + "0]",
    "[true, false]", "[1, 2, 3]", "[-1, 0, 99999]", "[1e999, NaN]")))


def json_mutations(value: Any, count: int, seed: int = 0) -> Iterator[str]:
    """Yield ``count`` JSON texts, most of them of a value with one to three hostile changes.

    A few are no JSON at all. Texts may have duplicate keys, numbers beyond every dtype, NaN and
    Infinity, lone surrogates, and nesting that no parser with recursion survives.

    Args:
        value: what ``json.loads`` gives of a good file.
        count: texts.
        seed: of the choices.
    """
    chance = random.Random(seed)
    for _ in range(count):
        kind = chance.random()
        if kind < 0.04:
            yield chance.choice(HOSTILE)
            continue
        if kind < 0.08:
            blob = next(byte_mutations(json.dumps(value).encode(), 1, chance.getrandbits(32)))
            yield blob.decode("utf-8", "replace")
            continue
        changed = _copy(value)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _change(changed, chance)
        yield _text(changed[0] if isinstance(value, list | dict) else changed)


def byte_mutations(blob: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``count`` versions of a file's bytes, each with one to three places damaged."""
    chance = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(blob)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _damage(damaged, chance)
        yield bytes(damaged)


def _damage(blob: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(blob) + 1)
    if chance.random() < 0.5:  # headers are small, and stand at the beginning
        at = min(at, chance.randrange(256))
    size = chance.choice((1, 1, 2, 4, 8, 64, 1000))
    kind = chance.randrange(8)
    if kind == 0 and at < len(blob):
        blob[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        blob[at:at + size] = chance.randbytes(len(blob[at:at + size]))
    elif kind == 2:  # as a number, the largest or least of its size
        blob[at:at + size] = chance.choice((b"\xff", b"\0", b"\x7f", b"9")) * len(
            blob[at:at + size])
    elif kind == 3:
        del blob[at:at + size]
    elif kind == 4:
        blob[at:at] = chance.randbytes(size)
    elif kind == 5:
        blob[at:at] = blob[at:at + size]
    elif kind == 6:
        other = chance.randrange(len(blob) + 1)
        blob[at:at + size] = blob[other:other + size]
    else:
        del blob[at:]


def _copy(value: Any) -> Any:
    """Return the value as lists, with objects as lists of [key, value] in a ``Pairs``; in a list of
    its own, so that the whole can be replaced, too."""
    return [_plain(value)]


class Pairs(list):
    """The [key, value] of a JSON object; keys may occur twice."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs([str(key), _plain(inner)] for key, inner in value.items())
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_text(inner)}" for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value)


def _places(value: Any) -> list[tuple[list, int]]:
    """Return (container, index) of each value inside ``[value]``; of a long list the first few."""
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        for n in range(len(holder) if isinstance(holder, Pairs) else min(len(holder), 12)):
            slot = (holder[n], 1) if isinstance(holder, Pairs) else (holder, n)
            found.append(slot)
            if isinstance(slot[0][slot[1]], list):
                waiting.append(slot[0][slot[1]])
    return found


def _change(changed: list, chance: random.Random) -> None:
    """Change one place in ``[value]``."""
    places = _places(changed)
    holder, n = chance.choice(places)
    value, kind = holder[n], chance.randrange(10)
    if kind == 0 and isinstance(value, list) and value:
        del value[chance.randrange(len(value))]
    elif kind == 1 and isinstance(value, list) and value:
        value.append(_again(value[chance.randrange(len(value))]))
    elif kind == 2 and isinstance(value, Pairs) and value:
        pair = chance.choice(value)
        pair[0] = chance.choice(("", "x", pair[0].upper(), pair[0] + "\0", "\ud800", "self"))
    elif kind == 3 and isinstance(value, Pairs):  # the same key with another value
        key = chance.choice(value)[0] if value else "x"
        value.append([key, chance.choice(HOSTILE)])
    elif kind == 4:  # what stands elsewhere
        other, m = chance.choice(places)
        holder[n] = _again(other[m])
    elif kind == 5:
        holder[n] = [value] if chance.random() < 0.5 else Pairs([["x", value]])
    elif kind == 6 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[n] = chance.choice((-value, value * 10**9, value + 0.5, str(value), value * 2 + 1))
    elif kind == 7 and isinstance(value, str):
        holder[n] = chance.choice((value * 200, value[:-1], value + "\0", value + "\u202e", [value],
                                   Raw(json.dumps(value)[:-1] + r'\ud800"')))
    else:
        holder[n] = chance.choice(HOSTILE)


def _again(value: Any) -> Any:
    """Return a copy that shares no list with the value: nothing may contain itself."""
    if isinstance(value, Pairs):
        return Pairs([key, _again(inner)] for key, inner in value)
    return [_again(inner) for inner in value] if isinstance(value, list) else value
