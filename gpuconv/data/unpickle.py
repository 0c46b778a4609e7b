"""Read the arrays of a pickle without running any of it.

A pickle can call whatever it names. This unpickler knows three names, gives each a stand-in that
only remembers its arguments, and refuses all others: not even NumPy's own code runs on what a file
says.
"""

import io
import pathlib
import pickle
from typing import Any


class Refused(pickle.UnpicklingError):
    """The pickle wants something that data does not need."""


class Unpickler(pickle.Unpickler):
    """Reads numbers, bytes, lists, dicts, and arrays into stand-ins that only remember."""

    def __init__(self, path: pathlib.Path, blob: bytes):
        super().__init__(io.BytesIO(blob), encoding="bytes")
        self.path = path

        # Made anew for each file: a pickle can set attributes of what it is given.
        class Kind:
            """A dtype: its name. Byte order and the like say nothing about single bytes."""

            def __init__(self, name: Any, *_: Any):
                self.name = name

            def __setstate__(self, state: Any) -> None:
                pass

        class Stored:
            """An array: (version, shape, dtype, Fortran order?, bytes)."""

            def __init__(self, *_: Any):
                self.state: Any = None

            def __setstate__(self, state: Any) -> None:
                self.state = state

        self.known = {("numpy", "dtype"): Kind, ("numpy", "ndarray"): Stored,
                      ("numpy.core.multiarray", "_reconstruct"): Stored,
                      ("numpy._core.multiarray", "_reconstruct"): Stored}

    def find_class(self, module: str, name: str) -> Any:
        """Its stand-in, for one of the three names."""
        if (module, name) not in self.known:
            raise Refused(f"{self.path}: refused: its pickle asks for {module}.{name}, and data "
                           "needs nothing but NumPy arrays, bytes, lists and dicts")
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refused: it would name something outside the file."""
        raise Refused(f"{self.path}: refused: its pickle refers to an object outside the file")
