"""The stand-in's ``cupy.cuda``: devices, streams, events, memory pools, graphs.

One device, unless ``devices(n)`` says otherwise. The current device and its current stream belong
to the thread, as in CuPy. What a stream is given runs at once, or as late as it may: see work.py.
"""

import contextlib
import itertools
import threading
import types
import weakref
from time import perf_counter

from . import work
from .graphs import Capture, Graph, graph_of

_pointers = itertools.count(0x1000)
_count = 1  # of devices
_room = None  # (bytes that there are, pools that share them); None: enough for all


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime refuses."""


@contextlib.contextmanager
def room(size):
    """Pools that are made inside find so many bytes in all."""
    global _room
    before, _room = _room, (size, weakref.WeakSet())
    try:
        yield
    finally:
        _room = before


@contextlib.contextmanager
def devices(count):
    """Inside, the machine has so many devices. They cannot read each other's memory."""
    global _count
    before, _count = _count, count
    try:
        yield
    finally:
        _count = before


# -- devices -------------------------------------------------------------------------------


class _Current(threading.local):
    """Of each thread: devices to go back to, current stream of each device, allocator."""

    def __init__(self):
        self.devices, self.streams, self.allocator = [], {}, None


_current = _Current()


def _use(number):
    if not 0 <= number < _count:
        raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
    work._state.device = number


class Device:
    """One device; as a context the current one."""

    def __init__(self, device=None):
        self.id = work._state.device if device is None else int(device)

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return self.id

    def __enter__(self):
        before = work._state.device
        if self.id != before:
            _use(self.id)
        _current.devices.append(before)
        return self

    def __exit__(self, *_):
        work._state.device = _current.devices.pop()

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def use(self):
        _use(self.id)
        return self

    @property
    def compute_capability(self):
        """That of an A100: the first with what mma.cuh asks for."""
        return "80"

    def synchronize(self):
        work.synchronize_device(self.id)


# -- streams -------------------------------------------------------------------------------


class Stream:
    """A stream of the current device; ``Stream.null`` is that of whichever is current."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if ptds:
            raise NotImplementedError("the stand-in has no per-thread default stream")
        self.ptr = 0 if null else next(_pointers)
        self.device_id = -1 if null else work._state.device
        kind = "free" if non_blocking else "blocking"
        self._own = None if null else work.Lane(self.device_id, kind)

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return self.ptr

    def _match(self):
        here = work._state.device
        if self.device_id not in (-1, here):
            raise RuntimeError(f"The device that the stream is created on ({self.device_id}) does "
                               f"not match with the current device ({here})")
        return here

    def __enter__(self):
        _current.streams.setdefault(self._match(), []).append(self)
        _current.devices.append(work._state.device)
        return self

    def __exit__(self, *_):
        _current.streams[_current.devices.pop()].pop()

    def use(self):
        here = self._match()
        stack = _current.streams.setdefault(here, [])
        stack[-1:] = [self]
        return self

    @property
    def done(self):
        lane = _lane(self)
        return lane.last is None or lane.last.done

    def synchronize(self):
        work.synchronize(_lane(self))

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        event._after(_lane(self))

    def begin_capture(self, mode=None):
        if not self.ptr:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._own.capture is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self._own.capture = Capture(self._own)
        work._capturing.add(self._own)

    def end_capture(self):
        capture, self._own.capture = self._own.capture, None
        work._capturing.discard(self._own)
        if capture is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        if capture.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a "
                                   "previous error during capture")
        return graph_of(capture)

    def is_capturing(self):
        lane = _lane(self)
        if lane.kind == "null":
            work._refuse_beside_capture(lane)
        if lane.capture is not None and lane.capture.broken:
            raise RuntimeError("the stream was capturing, but an error has invalidated the capture "
                               "sequence")
        return lane.capture is not None


Stream.null = Stream(null=True)


def get_current_stream(device_id=-1):
    """The current stream of a device; -1: of the current one."""
    stack = _current.streams.get(work._state.device if device_id == -1 else device_id)
    return stack[-1] if stack else Stream.null


def _lane(stream=None, device=None):
    """Where what is given to a stream (or to the current one) waits."""
    stack = _current.streams.get(work._state.device)
    stream = stream or (stack[-1] if stack else Stream.null)
    return stream._own or work.null(work._state.device if device is None else device)


class Event:
    """A moment in a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.moment, self._task, self._capture = None, None, None

    def record(self, stream=None):
        lane = _lane(stream)
        self.moment, self._capture = None, lane.capture

        def now():
            self.moment = perf_counter()

        self._task = work.give(lane, "event", now)

    def _after(self, lane):
        if self._capture is not None or lane.capture is not None:
            raise NotImplementedError("the stand-in captures a single stream")
        if self._task is not None:
            lane.awaited.append(self._task)

    @property
    def done(self):
        return self._task is None or self._task.done

    def synchronize(self):
        if self._capture is not None:
            self._capture.broken = True
            raise CUDARuntimeError("cudaErrorCapturedEvent: operation not permitted on an event "
                                   "last recorded in a capturing stream")
        work.finish(self._task)


def get_elapsed_time(start_event, end_event):
    """Milliseconds between two events, which must have come."""
    if start_event.moment is None or end_event.moment is None:
        raise CUDARuntimeError("cudaErrorNotReady: device not ready: synchronize the later event")
    return 1e3 * (end_event.moment - start_event.moment)


# -- memory --------------------------------------------------------------------------------


class MemoryPointer:
    """A place in a block of memory."""

    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset

    @property
    def device_id(self):
        return self.mem.device_id

    @property
    def device(self):
        return Device(self.mem.device_id)


class _Bytes:
    """How many are in use, and the most that were."""

    def __init__(self):
        self.used = self.most = 0

    def add(self, size):
        self.used += size
        self.most = max(self.most, self.used)


class Memory:
    """What a pool asks for when it has no free block: a number of bytes that are left, or not."""

    def __init__(self, size):
        if _room and sum(pool._held for pool in _room[1]) + size > _room[0]:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        self.size = self.ptr = size


class MemoryPool:
    """Hands out blocks. In a capture they must come from a pool of its own.

    As CuPy's (memory.pyx, SingleDeviceMemoryPool._try_malloc) it gives all free blocks back where
    memory, or its limit, runs out, and asks again; what a graph holds of them is lost.
    """

    def __init__(self, allocator=None):
        self._captured, self._bytes = False, _Bytes()
        self._allocator, self._limit, self._gave_back = allocator, 0, False
        self._held, self._free = 0, []  # where memory is short: bytes, and sizes of free blocks
        if _room:
            _room[1].add(self)

    def malloc(self, size):
        block = -(-size // work.UNIT) * work.UNIT
        short = block and self is not _pool and (self._limit or _room)
        if short:
            self._find(block)
        pointer = self._malloc(size)
        self._bytes.add(block)
        weakref.finalize(pointer.mem, self._bytes.add, -block)
        if short:
            weakref.finalize(pointer.mem, self._free.append, block)
        return pointer

    def _find(self, block):
        """The smallest free block that will do, or a new one. Nothing is merged."""
        found = min((free for free in self._free if free >= block), default=None)
        if found is not None:
            self._free.remove(found)
            self._free += [found - block] if found > block else []
            return
        for last in False, True:
            try:
                if not self._limit or self._held + block <= self._limit:
                    (self._allocator or Memory)(block)
                    self._held += block
                    return
            except CUDARuntimeError:
                pass
            if last:
                raise MemoryError(f"Out of memory allocating {block} bytes")
            self.free_all_blocks()

    def _malloc(self, size):
        lane = _lane()
        if lane.capture is None:
            if self._captured and size:
                raise RuntimeError("this pool's memory belongs to a captured graph, which would "
                                   "write into what is allocated now")
            return MemoryPointer(work.allocate(size, lane), 0)
        if self is _pool and size:
            raise RuntimeError(
                f"{size} bytes of the default pool, in a capture: once they are free, anybody "
                "gets them, and a replay writes into them. Allocate from a pool that lives as long "
                "as the graph: with cupy.cuda.using_allocator(pool.malloc)")
        if size and all(known() is not self for known in lane.capture.pools):
            self._captured = True
            lane.capture.pools.append(weakref.ref(self))
        return MemoryPointer(work.allocate(size, lane, lane.capture), 0)

    def free_bytes(self):
        """1 GiB in free blocks, always."""
        return 1 << 30

    def free_all_blocks(self, stream=None):
        """Gives back what no array holds."""
        self._gave_back |= self._captured and self._bytes.used < self._bytes.most
        self._bytes.most = self._bytes.used
        self._held -= sum(self._free)
        self._free.clear()

    def set_limit(self, size=None, fraction=None):
        """Bytes that the pool may have; 0: no limit."""
        if fraction is not None:
            raise NotImplementedError("the stand-in's set_limit has no fraction=")
        self._limit = size or 0

    def get_limit(self):
        """Bytes that the pool may have; 0: no limit."""
        return self._limit

    def used_bytes(self):
        """Of all blocks that somebody holds."""
        return self._bytes.used

    def total_bytes(self):
        """The most that it was: nothing is lost between blocks, unlike in CuPy's."""
        return self._bytes.most


_pool = MemoryPool()


def get_default_memory_pool():
    """The pool of everything that is allocated elsewhere."""
    return _pool


def alloc(size):
    """Calls the current allocator."""
    return (_current.allocator or _allocator)(size)


def set_allocator(allocator=None):
    """For all threads: from now on this function allocates; None: the default pool."""
    global _allocator
    _allocator = allocator or _pool.malloc


@contextlib.contextmanager
def using_allocator(allocator=None):
    """Inside, in this thread, this function allocates."""
    before, _current.allocator = _current.allocator, allocator or _pool.malloc
    try:
        yield
    finally:
        _current.allocator = before


_allocator = _pool.malloc

# What gpuconv.backend asks when it looks for a GPU.
runtime = types.SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    driverGetVersion=lambda: 13000,
    deviceSynchronize=lambda: Device().synchronize(),
    memGetInfo=lambda: (6 << 30, 8 << 30),
    getDevice=lambda: work._state.device,
    getDeviceCount=lambda: _count,
    getDeviceProperties=lambda device: {"name": b"stand-in that runs CUDA on the CPU",
                                        "totalGlobalMem": 8 << 30, "major": 0, "minor": 0})
cuda = types.SimpleNamespace(
    Device=Device, Stream=Stream, Event=Event, Graph=Graph, MemoryPointer=MemoryPointer,
    Memory=Memory, MemoryPool=MemoryPool, alloc=alloc, get_current_stream=get_current_stream,
    get_elapsed_time=get_elapsed_time, set_allocator=set_allocator,
    using_allocator=using_allocator, runtime=runtime,
    nvtx=types.SimpleNamespace(RangePush=lambda message, id_color=-1: None, RangePop=lambda: None),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
    device=types.SimpleNamespace(get_cublas_handle=lambda: 0))

