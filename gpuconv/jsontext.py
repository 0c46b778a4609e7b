"""JSON texts that may come from anywhere."""

import json
import sys
from typing import Any

LARGEST = sys.float_info.max
DEEPEST = 100  # levels of nesting: a value that ``repr`` and ``==`` can walk through


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text, in UTF-8 where it is bytes.

    Raises:
        ValueError: it is no JSON; says where.

    >>> parse('{"epoch": 3}')
    {'epoch': 3}
    >>> parse("{")
    Traceback (most recent call last):
    ValueError: no JSON: line 1, column 2
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
        if not _is_deep(value):
            return value
        what = f"more than {DEEPEST} levels"
    except json.JSONDecodeError as error:
        what = f"line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8"
    except RecursionError:
        what = f"more than {DEEPEST} levels"
    except ValueError:  # Python converts no more digits than 4,300
        what = "a number has thousands of digits"
    raise ValueError(f"no JSON: {what}")


def _is_deep(value: Any) -> bool:
    """Return whether lists and objects lie in one another more than ``DEEPEST`` times."""
    inside = [value]
    for _ in range(DEEPEST + 1):
        inside = [inner for outer in inside if isinstance(outer, list | dict)
                  for inner in (outer.values() if isinstance(outer, dict) else outer)
                  if isinstance(inner, list | dict)]
    return bool(inside)


def is_number(value: Any, low: float = float("-inf"), high: float = float("inf")) -> bool:
    """Return whether a value is a finite number of low .. high that fits into a float; no bool.

    >>> is_number(0.5, 0, 1), is_number(True), is_number("1"), is_number(10**400)
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and (
        -LARGEST <= value <= LARGEST and low <= value <= high)


def is_count(value: Any, low: int = 0, high: int = 2**63 - 1) -> bool:
    """Return whether a value is a whole number of low .. high; no bool.

    >>> is_count(3), is_count(3.0), is_count(True), is_count(-1), is_count(10**30)
    (True, False, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
