"""Read the arrays of a pickle without running any of it.

A pickle is a program that builds objects. Python's unpickler calls whatever it names, makes tables
as large as it says, and hashes keys that take for ever. This one knows the instructions that
numbers, strings, lists, dicts and NumPy arrays need, three names of NumPy, and keys that are
strings; it refuses all else. An array becomes a stand-in that remembers its arguments: not even
NumPy's own code runs on what a file says. Memory is a small multiple of the file's length: there
are at most STEPS instructions, and what one makes has no more bytes than the file.
"""

import pathlib
from typing import Any

from gpuconv.data.images import RefusedError

STEPS = 1 << 20  # instructions; a batch of 10,000 images has 50,000

NEEDS = "needs nothing but NumPy arrays, bytes, lists and dicts"
KIND = "dtype"
ARRAY = "array"
KNOWN = {("numpy", "dtype"): KIND, ("numpy", "ndarray"): ARRAY,
         ("numpy.core.multiarray", "_reconstruct"): ARRAY,
         ("numpy._core.multiarray", "_reconstruct"): ARRAY}

VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "BINUNICODE",
          "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # of Python 2: bytes
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


class Stored:
    """An object of NumPy: what it is, the arguments that make it, and its state.

    The state of an array: (version, shape, dtype, Fortran order?, bytes).
    """

    def __init__(self, kind: str, arguments: tuple):
        self.kind, self.arguments, self.state = kind, arguments, None


def unpickle(path: pathlib.Path, blob: bytes) -> Any:
    """Return what a pickle holds.

    Raises:
        RefusedError: it wants more than data; names the file.
        Exception: it is damaged; any kind of error.
    """
    return _Machine(path).run(blob)


class _Machine:
    def __init__(self, path: pathlib.Path):
        self.path, self.stack, self.marks = path, list[Any](), list[int]()
        self.memo = dict[int, Any]()

    def run(self, blob: bytes) -> Any:
        """Return the object at the top of the stack when the pickle stops."""
        import pickletools
        for step, (code, argument, _) in enumerate(pickletools.genops(blob)):
            if step == STEPS:
                raise RefusedError(f"{self.path}: refused: its pickle has more than {STEPS:,} "
                                   "instructions")
            if code.name == "STOP":
                return self.stack.pop()
            self.step(code.name, argument)
        raise EOFError

    def step(self, name: str, argument: Any) -> None:
        """Do what one instruction says."""
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in PUTS or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in GETS:
            stack.append(self.memo[argument])
        elif name in TUPLES:
            stack.append(tuple(self.pop(TUPLES[name])))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "LIST":
            stack.append(self.pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_to_mark()
            self.top(list).extend(items)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "DICT":
            items = self.pop_to_mark()
            stack.append({})
            self.set(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set(self.pop(2) if name == "SETITEM" else self.pop_to_mark())
        elif name == "GLOBAL":
            stack.append(self.named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(self.named(*self.pop(2)))
        elif name in ("REDUCE", "NEWOBJ"):
            kind, arguments = self.pop(2)
            if kind not in (KIND, ARRAY):
                raise RefusedError(f"{self.path}: refused: its pickle calls what is no function")
            stack.append(Stored(kind, arguments))
        elif name == "BUILD":
            state, = self.pop(1)
            self.top(Stored).state = state
        elif name not in ("PROTO", "FRAME"):
            what = "refers to an object outside the file" if "PERSID" in name else \
                f"has the instruction {name}"
            raise RefusedError(f"{self.path}: refused: its pickle {what}, and data {NEEDS}")

    def pop(self, count: int) -> list[Any]:
        """Return the last ``count`` values of the stack, and remove them."""
        at = len(self.stack) - count
        if at < (self.marks[-1] if self.marks else 0):
            raise IndexError("the stack is empty")
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def pop_to_mark(self) -> list[Any]:
        """Return the values after the last mark, and remove them and the mark."""
        at = self.marks.pop()
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def top(self, kind: type) -> Any:
        """Return the last value of the stack, of this type."""
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"{type(self.stack[-1]).__name__}, wanted {kind.__name__}")
        return self.stack[-1]

    def set(self, items: list[Any]) -> None:
        """Set the items of the dict at the top of the stack: keys and values in turn."""
        keys = items[::2]
        if not all(isinstance(key, bytes | str) for key in keys):
            raise TypeError("a key that is no string")
        self.top(dict).update(zip(keys, items[1::2], strict=True))

    def named(self, module: Any, name: Any) -> str:
        """Return what one of the known names stands for."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is no string")
        if (module, name) not in KNOWN:
            raise RefusedError(f"{self.path}: refused: its pickle asks for {module[:80]}."
                               f"{name[:80]}, and data {NEEDS}")
        return KNOWN[module, name]
