"""Checks of arguments that many functions share, and short texts of values for messages and reprs.

    check_number, check_count    one number: its type, its range, NaN
    check_choice, check_kind     one of some words; an instance of a class
    check_shape, check_path      sizes of an array; the name of a file
    check_plain, no_array        the dtype of an array; what something is that is no array
    short, listed                a value, or many of them, in a few words: never a whole array
"""

import math
import numbers
import operator
import os
import reprlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from gpuconv.messages import did_you_mean

NUMERIC = "biufc"  # kinds of dtypes: bool, integer, float, complex
MOST = 2**63 - 1  # of a count: what an index of an array can be
REALS = int, float  # the usual types of numbers: a look at the type is faster than at its bases


class _Short(reprlib.Repr):
    """Texts of about 100 characters at most."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 100
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 4

    def repr1(self, x: Any, level: int) -> str:
        """Return the text of a value, inside others at a level above 0."""
        if isinstance(getattr(x, "shape", None), tuple) and hasattr(x, "dtype") and (
                not isinstance(x, (np.generic, type))):
            return f"{type(x).__name__} {x.dtype} {tuple(x.shape)}"
        return super().repr1(x, level)

    def repr_int(self, x: int, level: int) -> str:
        """Return a whole number, or how long it is."""
        bits = x.bit_length()
        return f"a whole number of {bits} bits" if bits > 128 else repr(x)


_short = _Short()


def short(value: Any) -> str:
    """Return the repr of a value, shortened; of an array its dtype and shape.

    >>> short(np.zeros((8, 3))), short(["a"] * 1000), short(10**400)
    ('ndarray float64 (8, 3)', "['a', 'a', 'a', 'a', ...]", 'a whole number of 1329 bits')
    """
    return _short.repr(value)


def listed(items: Collection[Any], most: int = 10, between: str = ", ") -> str:
    """Return the first items, joined, and how many more there are.

    >>> listed(range(12), most=2)
    '0, 1 and 10 more'
    """
    first = between.join(str(item) for item, _ in zip(items, range(most), strict=False))
    return first + (f" and {len(items) - most:,} more" if len(items) > most else "")


def type_name(value: Any) -> str:
    """Return what a value is, for a message about its type: the name of its class.

    >>> type_name([1]), type_name(dict)
    ('list', 'the class dict')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_kind(caller: str, name: str, value: Any, wanted: type, hint: str = "") -> None:
    """Refuse a value that is no instance of a class.

    Args:
        caller: name of the function or class whose argument it is.
        name: of the argument.
        value: of the argument.
        wanted: the class.
        hint: what to do, added to the message.

    Raises:
        TypeError: it is none; says what it is.

    >>> check_kind("save", "state", [1], dict)
    Traceback (most recent call last):
    TypeError: save: state is list, wanted a dict
    """
    if not isinstance(value, wanted):
        article = "an" if wanted.__name__[0] in "AEIOU" else "a"
        if isinstance(value, type) and issubclass(value, wanted) and not hint:
            hint = f": an instance, {value.__name__}(...)"
        raise TypeError(f"{caller}: {name} is {type_name(value)}, wanted {article} "
                        f"{wanted.__name__}{hint}")


def check_flag(caller: str, name: str, value: Any) -> bool:
    """Return a bool of Python or NumPy as a bool.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{caller}: {name} is {short(value)}, wanted True or False")
    return bool(value)


def check_function(caller: str, name: str, value: Any) -> None:
    """Refuse what cannot be called, and a class where an instance of it is wanted.

    Raises:
        TypeError: it is no function.
    """
    if isinstance(value, type) or not callable(value):
        hint = f": an instance, {value.__name__}()" if isinstance(value, type) else ""
        raise TypeError(f"{caller}: {name} is {type_name(value)}, wanted a function{hint}")


def check_path(caller: str, name: str, value: Any) -> str:
    """Return a path as text.

    Raises:
        TypeError: it is neither a str nor a pathlib.Path.
        ValueError: it holds a null character, which no path can.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise TypeError(f"{caller}: {name} is {short(value)}, wanted a path")
    if "\0" in path:
        raise ValueError(f"{caller}: {name} is {short(value)}, wanted a path without null "
                         "characters")
    return path


def check_number(caller: str, name: str, value: Any, *, least: float | None = None,
                 above: float | None = None, most: float | None = None,
                 below: float | None = None, infinite: bool = False) -> float:
    """Return a real number as a float, if it lies within its bounds.

    Args:
        caller, name, value: as for ``check_kind``.
        least, above, most, below: bounds, inclusive and exclusive; None: no such bound.
        infinite: may it be infinite? It is never NaN.

    Raises:
        TypeError: it is no number of Python or NumPy, or a bool.
        ValueError: it is out of bounds, or not finite.

    >>> check_number("SGD", "lr", np.float32(0.5), least=0)
    0.5
    >>> check_number("SGD", "lr", float("nan"), least=0)
    Traceback (most recent call last):
    ValueError: SGD: lr is nan, wanted a finite number and at least 0
    """
    if type(value) not in REALS:
        if getattr(value, "shape", None) == () and getattr(value, "dtype", None) is not None:
            value = value.item() if value.dtype.kind in "iuf" else value  # an array of one number
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"{caller}: {name} is {short(value)}, wanted a number")
    try:
        x = float(value)
    except OverflowError:
        x = math.inf if value > 0 else -math.inf
    if not ((math.isfinite(x) or infinite and x == x) and (least is None or x >= least)
            and (above is None or x > above) and (most is None or x <= most)
            and (below is None or x < below)):
        words = ("at least", least), ("more than", above), ("at most", most), ("less than", below)
        bounds = [f"{word} {bound:g}" for word, bound in words if bound is not None]
        if least is not None and most is not None:
            bounds = [f"{least:g}..{most:g}"]
        if not math.isfinite(x):
            bounds.insert(0, "a number" if infinite else "a finite number")
        raise ValueError(f"{caller}: {name} is {short(value)}, wanted {' and '.join(bounds)}")
    return x


def check_count(caller: str, name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """Return a whole number as an int, if it lies within its bounds.

    Args:
        caller, name, value: as for ``check_kind``.
        least, most: bounds, inclusive.

    Raises:
        TypeError: it is no whole number of Python or NumPy, or a bool.
        ValueError: it is out of bounds.

    >>> check_count("fit", "epochs", np.int64(3)), check_count("fit", "seed", 0, least=0)
    (3, 0)
    >>> check_count("fit", "epochs", 2**64)
    Traceback (most recent call last):
    ValueError: fit: epochs is 18446744073709551616, wanted at most 2**63 - 1
    """
    n = value if type(value) is int else _index(value)
    if n is None:
        raise TypeError(f"{caller}: {name} is {short(value)}, wanted a whole number")
    if not least <= n <= most:
        largest = "2**63 - 1" if most == MOST else most
        wanted = f"at least {least}" if n < least else f"at most {largest}"
        raise ValueError(f"{caller}: {name} is {short(n)}, wanted {wanted}")
    return n


def _index(value: Any) -> int | None:
    """Return an int; None for what is no whole number, and for a bool."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def check_shape(caller: str, name: str, shape: Any, rank: int) -> tuple[int, ...]:
    """Return a shape as a tuple of ints.

    Raises:
        TypeError, ValueError: it is no tuple or list of so many sizes; the first may be 0.
    """
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{caller}: {name} is {short(shape)}, wanted a tuple of {rank} sizes")
    if len(shape) != rank:
        raise ValueError(f"{caller}: {name} is {short(shape)}, wanted {rank} sizes")
    return tuple(check_count(caller, name, n, least=int(i > 0)) for i, n in enumerate(shape))


def check_choice(caller: str, name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a value that is none of the choices: words, bools or None.

    Raises:
        ValueError: it is none of them; lists them.

    >>> check_choice("conv2d", "precision", "fp8", ("ieee", "tf32"))
    Traceback (most recent call last):
    ValueError: conv2d: precision is 'fp8', wanted 'ieee' or 'tf32'
    """
    choices, value = tuple(choices), bool(value) if isinstance(value, np.bool_) else value
    if not isinstance(value, (str, bool, int, type(None))) or not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in choices):
        *others, last = map(repr, choices)  # there are two at least
        raise ValueError(f"{caller}: {name} is {short(value)}, wanted {', '.join(others)} or "
                         f"{last}{did_you_mean(value, filter(None, choices))}")


def is_numeric(dtype: np.dtype) -> bool:
    """Return whether a dtype is bool, integer, float, complex or bfloat16."""
    return dtype.kind in NUMERIC or dtype.name == "bfloat16"


def check_plain(caller: str, name: str, array: Any) -> None:
    """Refuse an array of text, dates, records or objects, and one in swapped byte order.

    Raises:
        TypeError: names the caller and the argument.

    >>> check_plain("Tensor", "data", np.array(["a"]))
    Traceback (most recent call last):
    TypeError: Tensor: data has dtype <U1, wanted numbers
    """
    dtype = array.dtype
    if not is_numeric(dtype):
        raise TypeError(f"{caller}: {name} has dtype {str(dtype):.60}, wanted numbers")
    if not dtype.isnative:
        raise TypeError(f"{caller}: {name} has swapped bytes ({dtype.str}): "
                        f"{name}.astype({dtype.name!r}) puts them in order")


def no_array(value: Any, name: str = "x", wanted: str = "an array") -> str:
    """Return what a value is instead of an array, and how to make one of it, for a message.

    >>> no_array(np.ma.zeros(3))
    'MaskedArray, wanted an array: x.filled(0) makes one'
    """
    made = ""
    if isinstance(value, type):
        pass
    elif isinstance(value, np.ma.MaskedArray):
        made = f"{name}.filled(0)"
    elif hasattr(value, "toarray"):  # a sparse matrix
        made = f"{name}.toarray()"
    elif hasattr(value, "requires_grad") and hasattr(value, "data"):  # a Tensor, not only ours
        made = f"{name}.data"
    elif isinstance(value, (list, tuple)):
        made = f"np.array({name})"
    elif hasattr(value, "__array__"):
        made = f"np.asarray({name})"
    return f"{type_name(value)}, wanted {wanted}" + (f": {made} makes one" if made else "")
