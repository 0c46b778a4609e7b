"""States: named arrays, as ``state_dict`` gives and ``load_state_dict`` takes them."""

import os
from collections.abc import Mapping
from typing import Any

from gpuconv.backend import Array, adopt
from gpuconv.checks import listed, short, type_name

LISTED = 20  # names in a message, at most


def check_state(caller: str, state: Any) -> None:
    """Refuse what is no mapping of named arrays.

    Args:
        caller: name of the function, for messages.
        state: what it was given.

    Raises:
        TypeError: it is none; says how to get one from a file.

    >>> check_state("load_state_dict", "best.safetensors")
    Traceback (most recent call last):
    TypeError: load_state_dict: state is str, wanted a dict of arrays by name: \
state, metadata = gpuconv.load(path)
    """
    if isinstance(state, Mapping):
        return
    hint = ""
    if isinstance(state, (tuple, str, os.PathLike)):
        hint = ": state, metadata = gpuconv.load(path)"
    elif hasattr(state, "state_dict") and not isinstance(state, type):
        hint = ": pass its state_dict()"
    raise TypeError(f"{caller}: state is {type_name(state)}, wanted a dict of arrays by name{hint}")


def matching(caller: str, mine: Mapping[str, Array], state: Any,
             strict: bool = True) -> tuple[dict[str, Array], list[str], list[str]]:
    """Return the arrays of a state that fit into others, by name, and the names that do not.

    Args:
        caller: name of the function, for messages.
        mine: arrays by name, what the state is to be copied into.
        state: anything array-like by name.
        strict: must the names be the same?

    Returns:
        (found, missing, unexpected)

    Raises:
        TypeError: the state is no mapping, or a value is no array.
        ValueError: a name, shape or dtype does not fit; lists them.
    """
    check_state(caller, state)
    missing = [name for name in mine if name not in state]
    unexpected = [str(name) for name in state if name not in mine]
    found = {name: adopt(caller, name, state[name]) for name in mine if name in state}
    wrong = [f"{name} is {a.dtype} {a.shape}, wanted {mine[name].dtype} {mine[name].shape}"
             for name, a in found.items() if (a.dtype, a.shape) != (mine[name].dtype,
                                                                    mine[name].shape)]
    if strict:
        wrong = [f"missing {name}" for name in missing] + [
            f"unexpected {short(name)[1:-1]}" for name in unexpected] + wrong
    if wrong:
        whole = any("/" in name for name in unexpected)
        hint = "; of a checkpoint's state take gpuconv.train.weights(state)" if whole else ""
        raise ValueError(f"{caller}: {listed(wrong, LISTED, '; ')}{hint}")
    return found, missing, unexpected
