"""How much memory a training step needs, and the largest batch that fits.

    peak = parameters + their gradients + what the optimiser keeps
         + the batch of images + activations + workspace          at the worst moment of the step

The update, too, may be that moment: it keeps copies of parameters and state until the step is
complete (undo.py). They are allocated when the activations are gone.

The step is followed with four and with eight images (large ones: one and two), and scaled, see
tape_memory.py: nothing large is ever allocated, so it can be asked when memory has just run out.
What is not counted: the data set itself, the Python interpreter, and on a GPU what CUDA and cuBLAS
take for themselves.
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
from gpuconv.optim.flat import ALIGN, PIECE
from gpuconv.train.tape_memory import SHARED, Moment, Span, trace

Shape = tuple[int, int, int]  # (H, W, C)
MOST = 1 << 24  # images of a batch; more are never proposed
FEW, FEWER = (4, 8), (1, 2)  # images to follow
SMALL = 3 << 13  # numbers of an image; a step with eight larger ones would take seconds
NOISE = 1 << 10  # bytes that Python's own objects may take more or less
ROOM = 0.9      # share of free memory to plan with: allocators leave gaps, threads come and go


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that are alive at once, where a training step needs most."""

    batch_size: int
    parameters: int   # weights, and buffers
    gradients: int    # of the parameters: where they stay, and new ones that wait to be added
    optimizer: int    # momentum, say
    data: int         # the batch: images and labels
    activations: int  # what forward keeps for backward, and gradients on their way
    workspace: int    # patches of convolutions and the like

    @property
    def peak(self) -> int:
        """All of it."""
        return (self.parameters + self.gradients + self.optimizer + self.data + self.activations
                + self.workspace)


def predict(model: Module, input_shape: Shape, batch_size: int,
            optimizer_slots: int = 1) -> Memory:
    """What a training step will need at its peak.

    Args:
        model: where it is to be trained, in its dtype. It is left as it was.
        input_shape: (H, W, C) of an image.
        batch_size: images of the step, at least 1.
        optimizer_slots: numbers that the optimiser keeps per parameter: 0 for plain SGD, 1 with
            momentum, 2 for Adam.

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
    """The largest batch whose step fits in ROOM of ``free`` bytes, the model included; or 0."""
    return _Forecast(model, input_shape, optimizer_slots).largest(int(ROOM * free))


def explain(error: MemoryError, model: Module, input_shape: Shape, batch_size: int,
            optimizer: Optimizer | None = None) -> MemoryError:
    """A MemoryError that says in one sentence what was needed, what is free, and what would fit.

    Args:
        error: of a training step: Python's, NumPy's, or CuPy's OutOfMemoryError, which is one, too.
            It lets go of what it held: the frames that failed kept their arrays alive.
        model, input_shape, batch_size: of that step.
        optimizer: of that step; what it keeps is counted.
    """
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = error.__context__ = error.__cause__ = None
    asked = f"a training step with batches of {batch_size} does not fit into memory"
    try:
        free_all_blocks()
        if model.device != "cpu":
            cupy().get_default_memory_pool().free_all_blocks()
        forecast = _Forecast(model, input_shape, slots_of(optimizer))
        need, free = forecast.at(batch_size), free_memory(model.device)
        if free is None:
            return MemoryError(f"{asked}: it needs {human(need.peak)}")
        room = free + forecast.held(optimizer)
        most = forecast.largest(int(ROOM * room))
    except MemoryError:
        return MemoryError(f"{asked}, nor does one with batches of 2")
    except Exception:  # nothing may hide what happened
        return MemoryError(f"{asked}: {error}")
    if need.peak <= ROOM * room:
        return MemoryError(f"out of memory ({error}), although a training step with batches of "
                           f"{batch_size} needs {human(need.peak)} and {human(room)} are free: "
                           "something else takes memory meanwhile")
    fits = (f"the largest batch that would fit is {most}" if most else
            "not even a batch of 1 would fit")
    return MemoryError(f"{asked}: it needs {human(need.peak)}, {human(room)} are free: {fits}")


def slots_of(optimizer: Optimizer | None) -> int:
    """Numbers that an optimiser keeps per parameter, once it has made a step."""
    if optimizer is None:
        return 0
    moved = any(group.get("momentum", True) for group in optimizer.groups)
    masters = optimizer.master and any(flat.narrow for flat in optimizer.all_flats())
    return (len(optimizer.saved) if moved else 0) + masters


class _Forecast:
    """The moments of a step as functions of the batch size."""

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
            piece = max((min(PIECE, p.size) * accumulator(p.dtype).itemsize
                         * (3 if p.dtype.itemsize == 2 else 1) for p in parameters), default=0)
            self.update += threads.count() * piece
        height, width, channels = input_shape
        self.image = height * width * channels * model.dtype.itemsize + 4  # and its label

    def traces(self, model: Module, input_shape: Shape) -> list[list[Moment]]:
        """Of both numbers of images; before, what is allocated once and for ever is."""
        trace(model, input_shape, self.images[1])
        return [trace(model, input_shape, n) for n in self.images]

    def at(self, n: int) -> Memory:
        """The prediction for a batch of n."""
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
        """The largest batch whose peak is at most free."""
        low, high = 0, 1
        while high < MOST and self.at(high).peak <= free:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).peak <= free else (low, middle)
        return low

    def held(self, optimizer: Optimizer | None) -> int:
        """Bytes of the peak that are allocated already."""
        if optimizer is None:
            return self.weights + self.buffers
        state = sum(a.nbytes for flats in optimizer.flats for flat in flats
                    for a in flat.state.values())
        return 2 * self.weights + self.buffers + state

    def line(self, n: int, few: float, more: float) -> int:
        """At n, of what is linear in the number of images."""
        a, b = self.images
        return round(few + (more - few) * (n - a) / (b - a))

    def workspaces(self, n: int) -> int:
        """What all threads keep under all names: the first takes part in everything."""
        most: dict[tuple[str, int], int] = {}  # name, thread: bytes
        for few, more in (both for moments in self.moments for both in _pairs(*moments)):
            for name, size in more.workspaces.items():
                size = self.piece(n, few, more, few.workspaces.get(name, size), size)
                workers = min(threads.count(), self.pieces(n, few, more))
                for thread in range(1 if name.startswith(SHARED) else workers):
                    most[name, thread] = max(size, most.get((name, thread), 0))
        return sum(most.values())

    def span(self, n: int, few: Span, more: Span) -> int:
        """Bytes at its peak, when all threads work on the last pieces."""
        pieces = self.pieces(n, few, more)
        grows = abs(more.held - few.held) > NOISE
        return ((self.line(n, few.held, more.held) if grows else more.held)
                + more.left * min(pieces, most_sums(more.left - NOISE))
                + min(threads.count(), pieces)
                * self.piece(n, few, more, few.passing, more.passing))

    def pieces(self, n: int, few: Span, more: Span) -> int:
        """How many pieces the batch is cut into."""
        if few.cut.items == more.cut.items:  # it is rows of images that are cut, or weights
            return self.line(n, few.pieces, more.pieces)
        return more.cut.grown(n / self.images[1]).pieces

    def piece(self, n: int, few: Span, more: Span, less: int, size: int) -> int:
        """Bytes for the longest piece of the batch, from those for pieces of a few images."""
        if few.cut.items == more.cut.items:
            return size
        before, now, then = few.cut.fit, more.cut.fit, more.cut.grown(n / self.images[1]).longest
        if before == now:
            return size * then // now
        return max(0, size + (size - less) * (then - now) // (now - before))

    def on_gpu(self, n: int, few: Moment, more: Moment) -> int:
        """What is in use besides activations and waiting gradients."""
        peaks = [self.line(n, few.peak, more.peak)]
        peaks += [self.line(n, a.before, b.before) + b.workspace(n / self.images[1])
                  for a, b in zip(few.works, more.works, strict=True)]
        return max(0, max(peaks) - self.line(n, few.activations, more.activations)
                   - self.line(n, few.gradients, more.gradients))


def _pairs(few: Moment, more: Moment) -> Iterator[tuple[Span, Span]]:
    return zip(few.spans, more.spans, strict=True)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
