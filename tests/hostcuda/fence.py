"""Fence: copies of a launch's arrays, each of which ends where its memory ends.

A mode without a watcher does not look at accesses. There each array is moved for the time of the
launch to where the next byte belongs to nobody: reading past its end is a fault, as is reading far
before its start. Arrays that overlap stay together, and every address keeps its alignment.
"""

import ctypes
import mmap

PAGE = mmap.PAGESIZE
ALIGNED = 16   # of an address no kernel asks for more
BEFORE = 256   # bytes before an array that must keep their value
UNTOUCHED = b"\xFF"

_libc = ctypes.CDLL(None, use_errno=True)
_areas = []    # (address of an area, its bytes), used again by every launch


def _area(number, size):
    """Address of the end of an area of at least size bytes; it is followed by no memory."""
    if number == len(_areas):
        _areas.append((None, 0))
    memory, pages = _areas[number]
    if pages < size:
        pages = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, pages + PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if _libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        _areas[number] = memory, pages
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages


class Fence:
    """Copies of these arrays: array.ctypes.data is found at ``copies[array.ctypes.data]``."""

    def __init__(self, arrays):
        self.copies, self.spans = {}, []  # spans: arrays that overlap in one
        for a in sorted(arrays, key=lambda a: (a.ctypes.data, a.nbytes)):
            start, end = a.ctypes.data, a.ctypes.data + a.nbytes
            if not self.spans or start >= self.spans[-1].end:
                self.spans.append(_Span(start, end))
            span = self.spans[-1]
            span.end, span.writable = max(end, span.end), span.writable or a.flags.writeable
            self.copies[start] = len(self.spans) - 1
        for number, span in enumerate(self.spans):
            span.copy_in(number)
        self.copies = {start: self.spans[i].copy + start - self.spans[i].start
                       for start, i in self.copies.items()}

    def copy_back(self, kernel):
        """Give the arrays what the kernel wrote; RuntimeError if it wrote around them."""
        for span in self.spans:
            if span.surroundings().strip(UNTOUCHED):
                raise RuntimeError(f"{kernel}: out-of-bounds write around an array of "
                                   f"{span.size} bytes")
            if span.writable:
                ctypes.memmove(span.start, span.copy, span.size)


class _Span:
    def __init__(self, start, end):
        self.start, self.end, self.writable = start, end, False

    def copy_in(self, number):
        self.size, self.after = self.end - self.start, -self.end % ALIGNED
        self.copy = _area(number, BEFORE + self.size + self.after) - self.after - self.size
        ctypes.memset(self.copy - BEFORE, UNTOUCHED[0], BEFORE)
        ctypes.memset(self.copy + self.size, UNTOUCHED[0], self.after)
        ctypes.memmove(self.copy, self.start, self.size)

    def surroundings(self):
        return (ctypes.string_at(self.copy - BEFORE, BEFORE)
                + ctypes.string_at(self.copy + self.size, self.after))
