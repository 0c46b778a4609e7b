"""What a stream capture notes: the tasks of a step, to be done again with the same arguments.

A replay repeats the launches with the addresses and numbers of the capture. So

    numbers are baked in        ``changed`` compares two captures and says which numbers differ
    addresses are baked in      what was allocated before must still be there at each replay; what
                                is allocated inside must come from a pool that nobody else uses
"""

import weakref
from typing import Any, NamedTuple

from . import work


class Node(NamedTuple):
    """One task of a graph."""

    name: str
    run: Any
    operands: tuple  # (name, number, or Where of an array)


class Where(NamedTuple):
    """An array among the operands."""

    address: int
    memory: weakref.ref
    inside: bool  # was it allocated in the capture?


class Capture:
    """The notes of a lane, from ``begin_capture`` to ``end_capture``."""

    def __init__(self, lane):
        self.lane, self.nodes, self.broken = lane, [], False
        self.outside = {"reads": {}, "writes": {}}  # id: weak reference of Memory
        self.pools = []  # that memory was allocated from, as weak references

    def note(self, name, run, reads, writes, operands):
        for verb, blocks in (("reads", reads), ("writes", writes)):
            for memory in blocks:
                if memory.home is not self:
                    self.outside[verb].setdefault(id(memory), (weakref.ref(memory), name))
        listed = tuple((key, self.where(value) if hasattr(value, "memory") else value)
                       for key, value in operands)
        self.nodes.append(Node(name, run, listed))

    def where(self, array):
        return Where(array.data.ptr, weakref.ref(array.memory), array.memory.home is self)


class Graph:
    """What was captured; ``launch`` does it again. Made by ``Stream.end_capture`` alone."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("currently this class cannot be initiated by the user and must "
                                  "be created via stream capture")

    def launch(self, stream=None):
        from . import fake_cuda
        lane = fake_cuda._lane(stream)
        found = {}
        for verb, blocks in _capture(self).outside.items():
            found[verb] = []
            for memory, name in blocks.values():
                if memory() is None:
                    raise RuntimeError(f"the graph's {name} {verb} memory that was allocated "
                                       "outside of the capture and has been freed since")
                found[verb].append(memory())
        if any(pool() is None for pool in _capture(self).pools):
            raise RuntimeError("the pool that the graph's memory came from is gone")
        if any(pool()._gave_back for pool in _capture(self).pools):
            raise RuntimeError("the pool that the graph's memory came from has given free blocks "
                               "back, and the graph holds their addresses")
        nodes = _capture(self).nodes

        def run():
            for node in nodes:
                node.run()

        work.give(lane, "graph", run, **found)

    def upload(self, stream=None):
        """Only makes the first launch faster."""


def graph_of(capture):
    graph = Graph.__new__(Graph)
    graph._capture = capture
    return graph


def _capture(graph):
    return graph._capture


def launches(graph):
    """The names of what a replay does, in order."""
    return [node.name for node in _capture(graph).nodes if node.name != "free"]


def changed(first, second):
    """What a replay of the first graph would do otherwise than the second, one sentence each.

    Capture the same step twice, with other learning rates, steps, inputs: what differs is baked in.
    """
    a, b = ([n for n in _capture(g).nodes if n.name != "free"] for g in (first, second))
    if launches(first) != launches(second):
        at = next((i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m.name != n.name),
                  min(len(a), len(b)))
        names = [nodes[at].name if at < len(nodes) else "nothing" for nodes in (a, b)]
        return [f"task {at} is {names[0]}, then {names[1]}"]
    found = []
    for m, n in zip(a, b, strict=True):
        if [key for key, _ in m.operands] != [key for key, _ in n.operands]:
            found.append(f"{m.name}: other operands")
            continue
        for (key, x), (_, y) in zip(m.operands, n.operands, strict=True):
            if isinstance(x, Where) and isinstance(y, Where):
                if not (x.inside and y.inside) and x.address != y.address:
                    found.append(f"{m.name}: {key} is another array")
            elif type(x) is not type(y) or not (x == y or x != x and y != y):
                found.append(f"{m.name}: {key} is {x}, then {y}")
    return found
