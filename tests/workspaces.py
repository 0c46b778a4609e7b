"""Workspaces whose contents are destroyed as soon as nobody may use them.

``threads.workspace`` gives temporary memory that the next call reuses, so a result must never be a
view of it. With ``install()`` all tests run on workspaces that are filled with NaN after each chunk
of work and after each op. A result that shares memory with a workspace then becomes NaN whatever
the timing, and so does a result that depends on what a workspace held before.
"""

import functools
import threading

from gpuconv import threads
from gpuconv.autograd import Op

_thread = threading.local()  # .taken: {name: largest workspace taken}, of those to be destroyed


def destroying(f):
    """Return ``f`` with this added: the workspaces it takes are filled with NaN when it returns."""
    @functools.wraps(f)
    def call(*args):
        outer, taken = getattr(_thread, "taken", None), {}
        _thread.taken = taken
        try:
            return f(*args)
        finally:
            for array in taken.values():
                array.reshape(-1).view("uint8").fill(0xFF)  # NaN in every float dtype
            _thread.taken = outer

    return call


def install():
    """Destroy workspaces after each chunk of ``threads.each`` and after each op."""
    workspace, each = threads.workspace, threads.each

    def noted(name, shape, dtype):
        array, taken = workspace(name, shape, dtype), getattr(_thread, "taken", None)
        if taken is not None and (name not in taken or taken[name].nbytes < array.nbytes):
            taken[name] = array
        return array

    def destroying_each(f, pieces):
        inside = getattr(threads._inside, "worker", False)  # the outer chunk may still use its own
        return each(f if inside else destroying(f), pieces)

    threads.workspace, threads.each = noted, destroying_each
    for name in ("__call__", "backward"):
        setattr(Op, name, destroying(getattr(Op, name)))
