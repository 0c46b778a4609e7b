"""What a GPU is given to do, in streams: done at once, or as late as a GPU may.

A task is a launch, a copy, or a function of arrays. By default it runs when it is given. Inside
``deferred()`` it waits in its stream until somebody waits for it: for the stream, for an event
after it, for a copy of a result. A real GPU may be as late as that, so whoever looks early sees
memory that nobody has written: every new block is poisoned, and so is a block that is freed, in
the order of the stream that it was allocated on. There CuPy's pool may hand it out again at once.

Two tasks that touch one block, one of them writing, must be ordered: by their stream, by an event,
or because the host waited in between. Else RuntimeError: on a GPU they race.

While a stream captures, its tasks are noted instead (see graphs.py).
"""

import contextlib
import itertools
import threading
import weakref

import numpy as np

POISON = 0xFF  # of each byte: NaN, or -1
UNIT = 512     # bytes: where CuPy's blocks begin

_serial = itertools.count()


class _State(threading.local):
    """Of each thread, as in CUDA."""

    device = 0
    late = False


_state = _State()


class Lane:
    """The order of one stream, on its device.

    A "null" lane waits for all that "blocking" ones were given before, and they for it; "free" ones
    wait for nobody.
    """

    def __init__(self, device, kind):
        self.device, self.kind = device, kind
        self.last = None     # the newest task
        self.awaited = []    # tasks of other lanes that the next one follows
        self.capture = None  # where its tasks are noted instead
        _lanes.add(self)

    def watched(self, state=_state):  # bound here: at exit modules are emptied before blocks go
        """Does it matter when blocks are freed?"""
        return state.late or self.capture is not None

    def __str__(self):
        kind = "the null stream" if self.kind == "null" else "a stream"
        return f"{kind} of device {self.device}"

    def before_next(self):
        """The tasks that whatever is given next must follow."""
        found = [*self.awaited, self.last]
        other = {"null": "blocking", "blocking": "null", "free": None}[self.kind]
        found += [lane.last for lane in _lanes if (lane.device, lane.kind) == (self.device, other)]
        return [task for task in found if task and not task.done]


class Task:
    """Something to do, after others."""

    def __init__(self, name, run, lane, after):
        self.name, self.run, self.lane, self.after = name, run, lane, after
        self.serial, self.done = next(_serial), False

    def follows(self, other):
        """Is the other one done, or certain to be done before this one?"""
        if other.done or other.lane is self.lane:
            return True
        todo, seen = [self], set()
        while todo:
            task = todo.pop()
            if task is other:
                return True
            if id(task) not in seen and task.serial > other.serial:  # those before are older
                seen.add(id(task))
                todo += task.after
        return False


class Memory:
    """A block of device memory: ``raw`` bytes of the host."""

    __slots__ = ("__weakref__", "device_id", "home", "lane", "raw", "readers", "writer")

    def __init__(self, raw, device_id, lane=None, home=None):
        self.raw, self.device_id = raw, device_id
        self.lane = lane  # that it was allocated on; None: it is somebody else's
        self.home = home  # the capture that it was allocated in
        self.writer, self.readers = None, []  # tasks, as far as they matter still

    @property
    def ptr(self):
        return self.raw.__array_interface__["data"][0]

    @property
    def size(self):
        return self.raw.nbytes

    def __del__(self):
        if self.lane is not None and self.lane.watched():
            _freed(self)


_lanes = weakref.WeakSet()
_nulls = {}   # device: its null lane
_capturing = set()  # lanes
_faults = []  # what happened where nothing can be raised


def null(device):
    """The null stream's lane of a device."""
    if device not in _nulls:
        _nulls[device] = Lane(device, "null")
    return _nulls[device]


def allocate(size, lane, home=None):
    """A poisoned block, for the current device."""
    raw = np.empty(size + UNIT, np.uint8)
    start = -raw.__array_interface__["data"][0] % UNIT
    raw = raw[start : start + size]
    raw.fill(POISON)
    return Memory(raw, _state.device, lane, home)


def simple():
    """Does a task run when it is given, whatever its lane? Nobody captures."""
    return not (_state.late or _capturing)


def give(lane, name, run, reads=(), writes=(), operands=(), after=()):
    """Have something done.

    Args:
        reads, writes: Memory that ``run`` touches.
        operands: (name, number or array) of what it was called with, for graphs.
        after: more tasks that it must follow.

    Returns:
        The task, where it waits.
    """
    if lane.capture is not None:
        lane.capture.note(name, run, reads, writes, operands)
        return None
    if lane.kind == "null":
        _refuse_beside_capture(lane)
    if not _state.late:
        run()
        return None
    raise_faults()
    task = Task(name, run, lane, [*lane.before_next(), *(t for t in after if t and not t.done)])
    for memory in writes:
        _order(task, memory, [memory.writer, *memory.readers], "writes")
    for memory in reads:
        _order(task, memory, [memory.writer], "reads")
    for memory in writes:
        memory.writer, memory.readers = task, []
    for memory in reads:
        memory.readers = [t for t in memory.readers if not t.done] + [task]
    lane.last, lane.awaited = task, []
    return task


def _order(task, memory, others, verb):
    for other in others:
        if other is not None and not task.follows(other):
            raise RuntimeError(
                f"{task.name} on {task.lane} {verb} {memory.size} bytes that {other.name} on "
                f"{other.lane} uses, and nothing says which comes first: record an event, or wait")


def _refuse_beside_capture(lane):
    for other in _capturing:
        if (other.device, other.kind) == (lane.device, "blocking"):
            other.capture.broken = True
            raise RuntimeError("cudaErrorStreamCaptureImplicit: the null stream would wait for a "
                               "blocking stream that is capturing: capture on "
                               "Stream(non_blocking=True)")


def finish(*tasks):
    """Do what these tasks want done before, and them."""
    todo = [task for task in tasks if task]
    while todo:
        task = todo[-1]
        before = [t for t in task.after if not t.done]
        if before and not task.done:
            todo += before
            continue
        todo.pop()
        if not task.done:
            run, task.run, task.after, task.done = task.run, None, (), True
            run()
    raise_faults()


def synchronize(lane):
    """Wait for all that a lane was given."""
    if lane.capture is not None:
        lane.capture.broken = True
        raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream "
                           "is capturing: nothing may wait for it")
    if lane.kind == "null":
        _refuse_beside_capture(lane)
    finish(lane.last, *lane.awaited)


def synchronize_device(device):
    """Wait for all lanes of a device."""
    lanes = [lane for lane in _lanes if lane.device == device]
    for lane in lanes:
        if lane.capture is not None:
            lane.capture.broken = True
    for lane in lanes:
        synchronize(lane)


def _freed(memory):
    """Poison a block where its stream's next task may get it."""
    raw, lane, home = memory.raw, memory.lane, memory.home
    if home is not None and home.lane.capture is home:
        home.note("free", lambda: raw.fill(POISON), (), (), ())
    elif home is None and _state.late:
        task = Task("free", lambda: raw.fill(POISON), lane, lane.before_next())
        try:
            _order(task, memory, [memory.writer, *memory.readers], "hands out again")
        except RuntimeError as fault:  # whoever dropped the last reference cannot be told now
            _faults.append(fault)
        if lane.capture is None:
            lane.last, lane.awaited = task, []


def raise_faults():
    """Raise what could not be raised when it happened."""
    if _faults:
        fault = _faults[0]
        _faults.clear()
        raise fault


@contextlib.contextmanager
def deferred():
    """Inside, in this thread, tasks wait until somebody waits for them. At the end all are done."""
    _state.late = True
    try:
        yield
        for lane in list(_lanes):
            finish(lane.last)
    finally:
        _state.late = False
        _faults.clear()
        for lane in _lanes:
            lane.last, lane.awaited = None, []
