"""A step of training, twice: eager, launch by launch; and captured, as one CUDA graph.

    fetch, forward, loss, backward, [loss scale], clip, factor of the schedule, update, averages

A small network is launch-bound: Python takes longer to ask for a kernel than the GPU to run it. A
graph is asked for once. It repeats the launches of its capture with the same addresses and numbers,
so whatever changes from step to step lies in device memory, and a kernel (step_state.cu) moves it:

    clock      epoch, batch, step      which images, which dropout masks, which factor
    order      (N,)                    images of the epoch, filled once per epoch
    factors    (steps, groups)         of the run: the schedule, evaluated beforehand
    records    (steps, 4)              loss, right answers, skipped?, loss scale: of this epoch

There is a graph per batch size. The first step of each is run without one: it compiles kernels and
allocates what stays. The second is captured. What a graph has baked in (addresses, settings,
what is frozen, modes) is compared where a callback could have changed it: then it begins anew, as
it does where a group of the optimiser comes to its end (lr_plan.py).
Memory of the graphs comes from a pool of their own, which nobody else may use.

Both give the same bits: the same kernels, in the same order.

A step counts as a whole or not at all (atomic_step.py); one that the loss scale leaves out puts
buffers back. A loss that is not finite is seen before the update: by the host, or by a kernel,
after which nothing is updated until the host has looked. A graph that was launched cannot be
undone: the host's numbers then follow the step state.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpuconv.backend import Array, accumulator, array_device, cupy, device_name
from gpuconv.data import Loader
from gpuconv.nn import SavedBuffers
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.loss import count_correct
from gpuconv.optim import clip_grad_norm
from gpuconv.optim.optimizer import SKIP
from gpuconv.train.atomic_step import keep_step, whole_steps
from gpuconv.train.batches import FloatBatches
from gpuconv.train.callback import Callback, Run
from gpuconv.train.gpu_memory import graph_pool
from gpuconv.train.graph_key import baked, culprit
from gpuconv.train.lr_plan import Plan, Rates
from gpuconv.train.step_state import Records, Sums, halt, tick
from gpuconv.undo import Undo

READ = 20  # steps between two looks at the loss on a GPU; else each is looked at


class EagerStep:
    """One step after the other, each launch asked for by Python.

    Args:
        run: whose steps.
        loader: of the training set.
        plan: what a step does.
    """

    def __init__(self, run: Run, loader: Loader | FloatBatches, plan: Plan):
        self.run, self.loader, self.plan = run, loader, plan
        self.total = run.epochs * run.steps
        self.rates = Rates(run.optimizer, plan.schedule, self.total)
        self.sums = plan.reduction == "sum"
        places = {device_name(a) for a in run.model.state_dict().values()}
        self.every = 1 if "cpu" in places or len(places | {*run.optimizer.tables}) > 1 else READ
        self.undo = Undo()
        self.batches: Iterator[tuple[Array, Array]] = iter(())

    @property
    def number(self) -> int:
        """Of the next step, counted over the run from 0."""
        return (self.run.epoch - 1) * self.run.steps + self.run.step

    def begin(self) -> None:
        """An epoch begins, or what is left of one."""
        self.batches = self.loader.epoch(self.run.epoch - 1, self.run.step)
        if self.sums:
            self.run.tally.waiting = Sums()

    def take(self) -> None:
        """One step."""
        run, number = self.run, self.number
        self.rates.freeze(number)
        x, labels = next(self.batches)
        run.model.reseed(self.plan.seed, number)
        saved = keep_step(run, self.undo)
        logits, loss = self.gradients(x, labels)
        run.step += 1
        run.tally.add(logits, loss, labels, *self.scaling())
        if self.every == 1:
            run.read()  # before a loss that is NaN can reach the weights
        else:
            halt(loss, run.optimizer.table, run.dynamic)
        run.optimizer.factor = self.rates.factors(number)
        self.update(saved)
        run.lr = run.rate()
        self.undo.forget()  # from here on the step counts
        self.read()

    def restore(self) -> None:
        """Put back what a step has changed that has not come to its end."""
        self.undo.restore()

    def gradients(self, x: Array, labels: Array, gy: Array | None = None) -> tuple[Array, Array]:
        """Forward and backward: logits (N, K), loss (); the gradients are the optimiser's."""
        run = self.run
        logits = run.model(x)
        loss = softmax_cross_entropy(logits, labels, label_smoothing=self.plan.label_smoothing,
                                     reduction=self.plan.reduction)
        run.optimizer.zero_grad()
        if run.scale is None:
            loss.backward(gy)
        else:
            gy = run.scale.scale  # of the loss's dtype, but for float64
            with np.errstate(over="ignore", invalid="ignore"):  # it is what ``check`` looks for
                loss.backward(gy if loss.dtype == gy.dtype else gy.astype(loss.dtype))
            run.scale.check()
        return logits.data, loss.data

    def scaling(self) -> tuple[Array, ...]:
        """(Is this step skipped? The loss scale after it.) Nothing without one."""
        if self.run.scale is None:
            return ()
        with array_device(self.run.scale.scale):  # where it is: copy() is to the current device
            return self.run.optimizer.control[2].copy(), self.run.scale.scale.copy()

    def update(self, saved: SavedBuffers) -> None:
        """Put buffers back where the step is left out, clip, update, average."""
        if self.run.scale or self.every > 1:
            skip = self.run.optimizer.control[SKIP]
            saved.put_back(skip if self.every > 1 else float(skip))
        if self.plan.clip_norm is not None:
            clip_grad_norm(self.run.optimizer, self.plan.clip_norm)
        self.run.optimizer.step()
        if self.run.ema:
            self.run.ema.update(self.run.optimizer)

    def read(self) -> None:
        """Look at the losses, if it is time to."""
        run = self.run
        if self.every > 1 and (run.step % self.every == 0 or run.step == run.steps):
            run.read()


class CapturedStep(EagerStep):
    """The same as a CUDA graph.

    Args:
        run, loader, plan: as for EagerStep.
        must: is a step that cannot be captured an error? Else it goes on without a graph, with a
            warning.
        passive: does no callback change anything between two steps?
    """

    def __init__(self, run: Run, loader: Loader | FloatBatches, plan: Plan, must: bool,
                 passive: bool):
        super().__init__(run, loader, plan)
        cp = cupy()
        self.must, self.passive = must, passive
        self.factors = [self.rates.factors(step) for step in range(self.total)]
        self.table = cp.asarray(np.array(self.factors, np.float64))
        self.clock = cp.zeros(3, np.int64)
        self.order = cp.empty(len(run.data), np.int32)
        self.records = Records(cp.zeros((run.steps, 4), np.float64), self.sums)
        self.one = cp.ones((), accumulator(run.model.dtype))  # dL/dL
        self.stream = cp.cuda.Stream(non_blocking=True)  # to capture on; graphs run on the current
        self.pool = graph_pool()  # one for all graphs: they never run at the same time
        self.graphs: dict[int, Any] = {}  # batch size: graph
        self.warm: set[int] = set()       # batch sizes of steps that have been taken
        self.baked: Any = None            # what the graphs were captured with
        self.launched = 0                 # images of a graph's step that is not counted yet
        self.captures = True              # until it turns out that it cannot

    def begin(self) -> None:
        """An epoch begins, or what is left of one: which, and in which order."""
        run = self.run
        self.loader.order(run.epoch - 1, out=self.order)
        self.clock[...] = cupy().asarray(np.array([run.epoch - 1, run.step, self.number]))
        self.records.begin(run.step)
        run.tally.waiting = self.records
        self.look()

    def take(self) -> None:
        """One step: one launch."""
        run, number, size = self.run, self.number, self.loader.batch_size
        n = min(size, len(run.data) - run.step * size)
        if self.rates.freeze(number):
            self.forget()
        elif not self.passive:
            self.look()
        if self.captures and n in self.warm and n not in self.graphs:
            self.capture(n)
        if n in self.graphs:
            self.launched = n
            self.graphs[n].launch()
        else:
            keep_step(run, self.undo)
            self.undo.keep(self.clock)
            self.body(n)
            self.warm.add(n)
        self.count(n)
        self.undo.forget()
        self.launched = 0
        self.read()

    def count(self, n: int) -> None:
        """Let the host's numbers follow a step of n images. Interrupted, it may be called again."""
        run = self.run
        run.optimizer._factors = self.factors[self.number]  # what the kernel has written
        run.lr = run.rate()
        self.records.sizes[run.step - self.records.start :] = [n]
        run.step += 1

    def restore(self) -> None:
        """Put back what a step has changed; or count it, if its graph has been launched."""
        super().restore()
        if self.launched and int(self.clock[1]) > self.run.step:
            self.count(self.launched)
        self.launched = 0

    def look(self) -> None:
        """Forget the graphs if what is baked into them has changed."""
        if self.graphs and baked(self.run) != self.baked:
            self.forget()

    def forget(self) -> None:
        """Let go of the graphs and of their memory, once they have run."""
        cupy().cuda.get_current_stream().synchronize()
        self.graphs.clear()
        self.warm.clear()
        self.pool.free_all_blocks()  # a pool that goes would take them along (CuPy 14.1, 14.2)
        self.pool = graph_pool()

    def body(self, n: int) -> None:
        """All that a step of n images launches."""
        x, labels = self.fetch(n)
        self.run.model.reseed(self.plan.seed, 0, self.clock[2:])
        saved = SavedBuffers(self.run.model)
        logits, loss = self.gradients(x, labels, self.one)
        self.tick(logits, loss, labels)
        self.update(saved)

    def fetch(self, n: int) -> tuple[Array, Array]:
        """The batch of n images that the clock stands at, and its labels."""
        images, cp = self.run.data.images, cupy()
        x, labels = cp.empty((n, *images.shape[1:]), self.run.model.dtype), cp.empty(n, np.int32)
        self.loader.fetch(self.order, self.clock, x, labels)
        return x, labels

    def tick(self, logits: Array, loss: Array, labels: Array) -> None:
        """Note what the step gave, set the factors of its update, and let the clock move on."""
        right = cupy().empty((), np.int64)
        count_correct(logits, labels, right)
        scale = None if self.run.scale is None else self.run.scale.scale
        tick(self.clock, loss, right, scale, self.table, self.run.optimizer.table,
             self.records.rows, self.run.dynamic)

    def capture(self, n: int) -> None:
        """Make the graph for batches of n; or find out that there is none, and why."""
        failure, cp, stream = None, cupy(), self.stream
        cp.get_default_memory_pool().free_all_blocks()  # what a step without a graph has left
        try:
            with stream, cp.cuda.using_allocator(self.pool.malloc):
                stream.begin_capture()
                self.body(n)
                self.graphs[n] = stream.end_capture()
            self.baked = baked(self.run)
        except (RuntimeError, MemoryError) as error:
            failure = f"{culprit(error)}: {error}"
            if self.must:
                raise RuntimeError(f"fit: the step cannot be captured: {failure}; with eager=True "
                                   "it need not be") from error
        finally:
            if n not in self.graphs:
                with contextlib.suppress(RuntimeError):  # CUDA may have ended it already
                    stream.end_capture()
        if failure:
            self.captures = False
            self.forget()  # launches need the memory
            warnings.warn(f"fit: the step is not captured as a CUDA graph, and goes on launch by "
                          f"launch (as with eager=True, or --eager): {failure}", stacklevel=2)


@contextlib.contextmanager
def training_step(run: Run, loader: Loader | FloatBatches, plan: Plan, eager: bool | None,
                  callbacks: Sequence[Callback]) -> Iterator[EagerStep]:
    """What takes the steps of a run, for as long as it lasts.

    Args:
        run, loader, plan: as for EagerStep.
        eager: if not, steps are captured. None: they are on a GPU, where that can be done. On the
            CPU, and with parameters on several devices, it makes no difference.
        callbacks: of the run.

    Afterwards what the optimiser's groups had frozen at their end is so no longer.

    Raises:
        RuntimeError: later, where a step is taken: eager is False, and it cannot be captured.
        ValueError: all groups of the optimiser end before the run.
    """
    homes = {device_name(p.data): p.data for group in run.optimizer.groups
             for p in [*group["params"], *run.model.parameters()]}
    if eager or len(homes) > 1 or "cpu" in homes:
        eagerly = EagerStep(run, loader, plan)
        with whole_steps(run, eagerly.undo, eagerly.rates):
            yield eagerly
        return
    passive = all(callback.passive or type(callback).on_step is Callback.on_step
                  for callback in callbacks)
    with array_device(*homes.values()):
        step = CapturedStep(run, loader, plan, eager is False, passive)
        with whole_steps(run, step.undo, step.rates):
            try:
                yield step
            finally:
                step.forget()
