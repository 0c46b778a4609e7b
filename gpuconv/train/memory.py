"""Prediction of the memory of a training step, and of the largest batch that fits.

    peak = parameters + their gradients + state of the optimiser
         + the batch of images + activations + workspace          at the worst moment of the step

The worst moment may be the update: it keeps copies of parameters and state until the step is
complete (undo.py), which are allocated after the activations are freed.

A step is traced with four and with eight images (large images: one and two), and extrapolated, see
tape_memory.py. Nothing large is allocated, so this also works when memory has just run out. Not
counted are the data set, the Python interpreter, and the memory of CUDA's libraries.
"""

import dataclasses
import math
import traceback
from collections.abc import Iterator

from gpuconv import threads
from gpuconv.backend import accumulator, cupy, free_memory
from gpuconv.memory import free_all_blocks
from gpuconv.nn import Module
from gpuconv.nn.summary import human
from gpuconv.ops.conv import most_sums
from gpuconv.optim import Optimizer
from gpuconv.optim.flat import ALIGN, CHUNK
from gpuconv.train.tape_memory import SHARED, Moment, Span, trace

Shape = tuple[int, int, int]  # (H, W, C)
MOST = 1 << 24  # images of a batch: largest proposal
FEW, FEWER = (4, 8), (1, 2)  # images to trace
SMALL = 3 << 13  # elements of an image; a step with eight larger images takes seconds
NOISE = 1 << 10  # bytes: variation of Python's own objects
ROOM = 0.9      # share of free memory to use: allocators leave gaps, numbers of threads vary


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a training step at its peak, bytes."""

    batch_size: int
    parameters: int   # weights, and buffers
    gradients: int    # of the parameters: their buffers, and new ones not yet added
    optimizer: int    # its state, such as momentum
    data: int         # the batch: images and labels
    activations: int  # saved for backward, and their gradients
    workspace: int    # temporary memory, such as im2col matrices

    @property
    def peak(self) -> int:
        """Sum of all parts."""
        return (self.parameters + self.gradients + self.optimizer + self.data + self.activations
                + self.workspace)


def predict(model: Module, input_shape: Shape, batch_size: int,
            optimizer_slots: int = 1) -> Memory:
    """Return the memory of a training step at its peak.

    Args:
        model: on the device and in the dtype of the training. It is not changed.
        input_shape: (H, W, C) of an image.
        batch_size: images of the step, at least 1.
        optimizer_slots: state elements per parameter: 0 for plain SGD, 1 with momentum, 2 for Adam.

    Raises:
        ValueError: the model does not take such images, or batch_size < 1.
        MemoryError: not even a few images fit.

    >>> from gpuconv.models import simple_convnet
    >>> human(predict(simple_convnet(), (32, 32, 3), batch_size=1).parameters)
    '330.0 KiB'
    """
    if batch_size < 1:
        raise ValueError(f"predict: batch_size {batch_size}, wanted at least 1")
    return _Forecast(model, input_shape, optimizer_slots).at(batch_size)


def largest_batch(model: Module, input_shape: Shape, free: int, optimizer_slots: int = 1) -> int:
    """Return the largest batch whose step, with model, fits in ROOM of ``free`` bytes; or 0."""
    return _Forecast(model, input_shape, optimizer_slots).largest(int(ROOM * free))


def explain(error: MemoryError, model: Module, input_shape: Shape, batch_size: int,
            optimizer: Optimizer | None = None) -> MemoryError:
    """Return a MemoryError that says what a step needs, what is free, and which batch would fit.

    Args:
        error: MemoryError of a training step, or CuPy's OutOfMemoryError. Its traceback is cleared,
            because the frames keep their arrays alive.
        model, input_shape, batch_size: of that step.
        optimizer: of that step; its state is counted.
    """
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = error.__context__ = error.__cause__ = None
    problem = f"a training step with batches of {batch_size} does not fit into memory"
    try:
        free_all_blocks()
        if model.device != "cpu":
            cupy().get_default_memory_pool().free_all_blocks()
        forecast = _Forecast(model, input_shape, slots_of(optimizer))
        need, free = forecast.at(batch_size), free_memory(model.device)
        if free is None:
            return MemoryError(f"{problem}: it needs {human(need.peak)}")
        room = free + forecast.held(optimizer)
        most = forecast.largest(int(ROOM * room))
    except MemoryError:
        return MemoryError(f"{problem}, nor does one with batches of 2")
    except Exception:  # never hide the original error
        return MemoryError(f"{problem}: {error}")
    if need.peak <= ROOM * room:
        return MemoryError(f"out of memory ({error}), although a training step with batches of "
                           f"{batch_size} needs {human(need.peak)} and {human(room)} are free: "
                           "something else takes memory meanwhile")
    fits = (f"the largest batch that would fit is {most}" if most else
            "not even a batch of 1 would fit")
    return MemoryError(f"{problem}: it needs {human(need.peak)}, {human(room)} are free: {fits}")


def slots_of(optimizer: Optimizer | None) -> int:
    """Return the state elements per parameter that an optimiser has after a step."""
    if optimizer is None:
        return 0
    moved = any(group.get("momentum", True) for group in optimizer.groups)
    masters = optimizer.master and any(flat.narrow for flat in optimizer.all_flats())
    return (len(optimizer.saved) if moved else 0) + masters


class _Forecast:
    """Memory at the moments of a step, as functions of the batch size."""

    def __init__(self, model: Module, input_shape: Shape, slots: int):
        self.gpu = model.device != "cpu"
        self.images = FEW if math.prod(input_shape) <= SMALL else FEWER
        try:
            few, more = self.traces(model, input_shape)
        except (MemoryError, ValueError):  # of one image, or less: BatchNorm wants two values
            self.images = FEWER if self.images == FEW else FEW
            few, more = self.traces(model, input_shape)
        self.moments = list(zip(few, more, strict=True))
        parameters = list(model.parameters())
        self.weights = sum(_aligned(p.data.nbytes) for p in parameters)
        self.state = slots * sum(_aligned(p.size * accumulator(p.dtype).itemsize)
                                 for p in parameters)
        self.buffers = sum(b.nbytes for b in model.buffers())
        self.update = self.weights + self.state  # copies; on the CPU a thread has temporaries, too
        if not self.gpu:
            self.update += threads.count() * max(
                (min(CHUNK, p.size) * accumulator(p.dtype).itemsize
                 * (3 if p.dtype.itemsize == 2 else 1) for p in parameters), default=0)
        height, width, channels = input_shape
        self.image = height * width * channels * model.dtype.itemsize + 4  # and its label

    def traces(self, model: Module, input_shape: Shape) -> list[list[Moment]]:
        """Trace a step for both numbers of images, after one that allocates what stays."""
        trace(model, input_shape, self.images[1])
        return [trace(model, input_shape, n) for n in self.images]

    def at(self, n: int) -> Memory:
        """Return the prediction for a batch of n."""
        fixed = 0 if self.gpu else self.workspaces(n)
        lines = [(self.line(n, few.activations, more.activations),
                  self.line(n, few.gradients, more.gradients),
                  self.on_gpu(n, few, more) if self.gpu else
                  fixed + max(self.span(n, *both) for both in _pairs(few, more)))
                 for few, more in self.moments]
        lines.append((0, 0, fixed + self.update))
        activations, waiting, workspace = max(lines, key=sum)
        return Memory(n, self.weights + self.buffers, self.weights + waiting, self.state,
                      n * self.image, activations, workspace)

    def largest(self, free: int) -> int:
        """Return the largest batch whose peak is at most ``free`` bytes."""
        low, high = 0, 1
        while high < MOST and self.at(high).peak <= free:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).peak <= free else (low, middle)
        return low

    def held(self, optimizer: Optimizer | None) -> int:
        """Return the bytes of the peak that are already allocated."""
        if optimizer is None:
            return self.weights + self.buffers
        state = sum(a.nbytes for flats in optimizer.flats for flat in flats
                    for a in flat.state.values())
        return 2 * self.weights + self.buffers + state

    def line(self, n: int, few: float, more: float) -> int:
        """Extrapolate linearly from the traced numbers of images to n."""
        a, b = self.images
        return round(few + (more - few) * (n - a) / (b - a))

    def workspaces(self, n: int) -> int:
        """Return the total size of the thread-local workspaces; thread 0 has all of them."""
        most: dict[tuple[str, int], int] = {}  # name, thread: bytes
        for few, more in (both for moments in self.moments for both in _pairs(*moments)):
            for name, size in more.workspaces.items():
                size = self.largest_chunk_bytes(n, few, more, few.workspaces.get(name, size), size)
                workers = min(threads.count(), self.chunk_count(n, few, more))
                for thread in range(1 if name.startswith(SHARED) else workers):
                    most[name, thread] = max(size, most.get((name, thread), 0))
        return sum(most.values())

    def span(self, n: int, few: Span, more: Span) -> int:
        """Return the peak of a span, when all threads work on the last chunks, bytes."""
        chunk_count = self.chunk_count(n, few, more)
        grows = abs(more.held - few.held) > NOISE
        return ((self.line(n, few.held, more.held) if grows else more.held)
                + more.results * min(chunk_count, most_sums(more.results - NOISE))
                + min(threads.count(), chunk_count)
                * self.largest_chunk_bytes(n, few, more, few.temporary, more.temporary))

    def chunk_count(self, n: int, few: Span, more: Span) -> int:
        """Return the number of chunks of a batch of n."""
        if few.chunking.items == more.chunking.items:  # chunks of rows or weights, not of images
            return self.line(n, few.chunk_count, more.chunk_count)
        return more.chunking.scaled(n / self.images[1]).chunk_count

    def largest_chunk_bytes(self, n: int, few: Span, more: Span, less: int, size: int) -> int:
        """Return the bytes for the longest chunk, from those for chunks of a few images."""
        if few.chunking.items == more.chunking.items:
            return size
        before, now = few.chunking.most_items, more.chunking.most_items
        then = more.chunking.scaled(n / self.images[1]).largest_chunk
        if before == now:
            return size * then // now
        return max(0, size + (size - less) * (then - now) // (now - before))

    def on_gpu(self, n: int, few: Moment, more: Moment) -> int:
        """Return the bytes in use besides activations and waiting gradients."""
        peaks = [self.line(n, few.peak, more.peak)]
        peaks += [self.line(n, a.before, b.before) + b.workspace(n / self.images[1])
                  for a, b in zip(few.works, more.works, strict=True)]
        return max(0, max(peaks) - self.line(n, few.activations, more.activations)
                   - self.line(n, few.gradients, more.gradients))


def _pairs(few: Moment, more: Moment) -> Iterator[tuple[Span, Span]]:
    return zip(few.spans, more.spans, strict=True)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
