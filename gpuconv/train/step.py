"""Training steps, eager or captured as a CUDA graph.

    fetch, forward, loss, backward, [loss scale], clip, factor of the schedule, update, averages

An eager step launches each kernel from Python. For a small network that takes longer than the
kernels run, so on a GPU a step is captured as a graph and then launched as one. A graph repeats the
launches of its capture with the same addresses and arguments. Whatever changes from step to step is
therefore in device memory, and a kernel (step_state.cu) updates it:

    step_state   epoch, batch, step      selects images, dropout masks, factors
    order        (N,)                    images of the epoch, filled once per epoch
    factors      (steps, groups)         of the run: the schedule, evaluated beforehand
    results      (steps, 4)              loss, correct answers, skipped, loss scale: of this epoch

There is one graph per batch size. The first step of each size runs without a graph: it compiles
kernels and allocates what stays. The second is captured. Where a callback could have changed what
the graphs were captured with (addresses, settings, frozen parameters, modes), their graph key is
compared, and if it differs they are captured again; so they are when an optimiser group reaches its
stop (lr_plan.py). The graphs have a memory pool of their own.

Eager and captured steps run the same kernels in the same order and give the same bits.
A step is complete or has no effect (atomic_step.py); a step that the loss scale skips restores the
buffers. A loss that is not finite is noticed before the update: by the host, or by a kernel, after
which no update happens until the host has read the losses. A launched graph cannot be undone:
instead the host's counts then follow the step state.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpuconv.backend import Array, accumulator, array_device, cupy, device_name
from gpuconv.data import Loader
from gpuconv.data.batches import FloatLoader
from gpuconv.nn import SavedBuffers
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.loss import count_correct
from gpuconv.optim import clip_grad_norm
from gpuconv.optim.optimizer import SKIP
from gpuconv.train.atomic_step import atomic_steps, record_run
from gpuconv.train.callback import Callback, Run
from gpuconv.train.gpu_memory import graph_pool
from gpuconv.train.graph_key import failing_op, graph_key
from gpuconv.train.lr_plan import LrPlan, StepSettings
from gpuconv.train.step_state import StepResults, SumQueue, advance_step_state, halt_if_not_finite
from gpuconv.undo import Undo

READ = 20  # steps between two reads of the losses on a GPU; on the CPU each step reads its loss


class EagerStep:
    """Training step whose kernels are launched one by one.

    Args:
        run: the run to train.
        loader: of the training set.
        settings: of each step.
    """

    def __init__(self, run: Run, loader: Loader | FloatLoader, settings: StepSettings):
        self.run, self.loader, self.settings = run, loader, settings
        self.total = run.epochs * run.steps
        self.lr_plan = LrPlan(run.optimizer, settings.schedule, self.total)
        self.loss_is_sum = settings.reduction == "sum"
        devices = {device_name(a) for a in run.model.state_dict().values()}
        one_gpu = "cpu" not in devices and len(devices | {*run.optimizer.tables}) == 1
        self.read_every = READ if one_gpu else 1
        self.undo = Undo()
        self.batches: Iterator[tuple[Array, Array]] = iter(())

    @property
    def number(self) -> int:
        """Number of the next step, counted over the run from 0."""
        return (self.run.epoch - 1) * self.run.steps + self.run.step

    def begin_epoch(self) -> None:
        """Prepare the steps of an epoch, or the remaining ones of a resumed epoch."""
        self.batches = self.loader.epoch(self.run.epoch - 1, self.run.step)
        if self.loss_is_sum:
            self.run.tally.pending = SumQueue()

    def run_step(self) -> None:
        """Run one training step."""
        run, number = self.run, self.number
        self.lr_plan.freeze(number)
        x, labels = next(self.batches)
        run.model.reseed(self.settings.seed, number)
        saved = record_run(run, self.undo)
        logits, loss = self.compute_gradients(x, labels)
        run.step += 1
        run.tally.add(logits, loss, labels, *self.skip_and_scale())
        if self.read_every == 1:
            run.read()  # before a NaN can reach the weights
        else:
            halt_if_not_finite(loss, run.optimizer.table, run.dynamic)
        run.optimizer.factor = self.lr_plan.factors(number)
        self.update(saved)
        run.lr = run.learning_rate()
        self.undo.forget()  # the step is complete
        self.read_losses()

    def restore(self) -> None:
        """Undo a step that was interrupted."""
        self.undo.restore()

    def compute_gradients(self, x: Array, labels: Array,
                          gy: Array | None = None) -> tuple[Array, Array]:
        """Run forward and backward; return logits (N, K) and loss ()."""
        run = self.run
        logits = run.model(x)
        loss = softmax_cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing,
                                     reduction=self.settings.reduction)
        run.optimizer.zero_grad()
        if run.scale is None:
            loss.backward(gy)
        else:
            gy = run.scale.scale  # of the loss's dtype, but for float64
            with np.errstate(over="ignore", invalid="ignore"):  # ``check`` finds them
                loss.backward(gy if loss.dtype == gy.dtype else gy.astype(loss.dtype))
            run.scale.check()
        return logits.data, loss.data

    def skip_and_scale(self) -> tuple[Array, ...]:
        """Return (skip flag of the step, loss scale after it); () without a loss scale."""
        if self.run.scale is None:
            return ()
        with array_device(self.run.scale.scale):  # copy() allocates on the current device
            return self.run.optimizer.control[SKIP].copy(), self.run.scale.scale.copy()

    def update(self, saved: SavedBuffers) -> None:
        """Clip, update parameters and averages; restore buffers if the step is skipped."""
        if self.run.scale or self.read_every > 1:
            skip = self.run.optimizer.control[SKIP]
            saved.put_back(skip if self.read_every > 1 else float(skip))
        if self.settings.clip_norm is not None:
            clip_grad_norm(self.run.optimizer, self.settings.clip_norm)
        self.run.optimizer.step()
        if self.run.ema:
            self.run.ema.update(self.run.optimizer)

    def read_losses(self) -> None:
        """Read the losses every ``read_every`` steps."""
        run = self.run
        if self.read_every > 1 and (run.step % self.read_every == 0 or run.step == run.steps):
            run.read()


class CapturedStep(EagerStep):
    """Training step that is captured as a CUDA graph.

    Args:
        run, loader, settings: as for EagerStep.
        must: whether a step that cannot be captured is an error. Else it runs eagerly, with a
            warning.
        passive: whether no callback changes anything between two steps.
    """

    def __init__(self, run: Run, loader: Loader | FloatLoader, settings: StepSettings, must: bool,
                 passive: bool):
        super().__init__(run, loader, settings)
        cp = cupy()
        self.must, self.passive = must, passive
        self.factors = [self.lr_plan.factors(step) for step in range(self.total)]
        self.factor_table = cp.asarray(np.array(self.factors, np.float64))
        self.step_state = cp.zeros(3, np.int64)
        self.order = cp.empty(len(run.data), np.int32)
        self.results = StepResults(cp.zeros((run.steps, 4), np.float64), self.loss_is_sum)
        self.unit_gradient = cp.ones((), accumulator(run.model.dtype))  # dL/dL
        self.stream = cp.cuda.Stream(non_blocking=True)  # for captures; graphs run on the current
        self.pool = graph_pool()  # one for all graphs: they never run at the same time
        self.graphs: dict[int, Any] = {}  # batch size: graph
        self.warmed_up: set[int] = set()  # batch sizes whose first step has run
        self.graph_key: Any = None  # of the captured graphs
        self.launched_images = 0  # images of a launched graph that is not counted yet
        self.can_capture = True  # False once a capture has failed

    def begin_epoch(self) -> None:
        """Write the order and the step state of an epoch to the device."""
        run = self.run
        self.loader.order(run.epoch - 1, out=self.order)
        self.step_state[...] = cupy().asarray(np.array([run.epoch - 1, run.step, self.number]))
        self.results.start_at(run.step)
        run.tally.pending = self.results
        self.check_graphs()

    def run_step(self) -> None:
        """Run one training step: launch its graph, or capture that first."""
        run, number, size = self.run, self.number, self.loader.batch_size
        n = min(size, len(run.data) - run.step * size)
        if self.lr_plan.freeze(number):
            self.drop_graphs()
        elif not self.passive:
            self.check_graphs()
        if self.can_capture and n in self.warmed_up and n not in self.graphs:
            self.capture(n)
        if n in self.graphs:
            self.launched_images = n
            self.graphs[n].launch()
        else:
            record_run(run, self.undo)
            self.undo.keep(self.step_state)
            self.launch_step(n)
            self.warmed_up.add(n)
        self.count_step(n)
        self.undo.forget()
        self.launched_images = 0
        self.read_losses()

    def count_step(self, n: int) -> None:
        """Update the host's counts after a step of n images; can be repeated if interrupted."""
        run = self.run
        run.optimizer._factors = self.factors[self.number]  # what the kernel has written
        run.lr = run.learning_rate()
        self.results.sizes[run.step - self.results.start :] = [n]
        run.step += 1

    def restore(self) -> None:
        """Undo an interrupted step, or count it if its graph has been launched."""
        super().restore()
        if self.launched_images and int(self.step_state[1]) > self.run.step:
            self.count_step(self.launched_images)
        self.launched_images = 0

    def check_graphs(self) -> None:
        """Drop the graphs if their graph key has changed."""
        if self.graphs and graph_key(self.run) != self.graph_key:
            self.drop_graphs()

    def drop_graphs(self) -> None:
        """Wait for the graphs to finish, then drop them and their memory."""
        cupy().cuda.get_current_stream().synchronize()
        self.graphs.clear()
        self.warmed_up.clear()
        self.pool.free_all_blocks()  # deleting the pool would free them (CuPy 14.1, 14.2)
        self.pool = graph_pool()

    def launch_step(self, n: int) -> None:
        """Launch all kernels of a step of n images."""
        x, labels = self.fetch_batch(n)
        self.run.model.reseed(self.settings.seed, 0, self.step_state[2:])
        saved = SavedBuffers(self.run.model)
        logits, loss = self.compute_gradients(x, labels, self.unit_gradient)
        self.advance(logits, loss, labels)
        self.update(saved)

    def fetch_batch(self, n: int) -> tuple[Array, Array]:
        """Return the batch of n images that the step state selects, and its labels."""
        images, cp = self.run.data.images, cupy()
        x, labels = cp.empty((n, *images.shape[1:]), self.run.model.dtype), cp.empty(n, np.int32)
        self.loader.fetch(self.order, self.step_state, x, labels)
        return x, labels

    def advance(self, logits: Array, loss: Array, labels: Array) -> None:
        """Record the results of the step, set the factors of its update, advance the step state."""
        correct = cupy().empty((), np.int64)
        count_correct(logits, labels, correct)
        scale = None if self.run.scale is None else self.run.scale.scale
        advance_step_state(self.step_state, loss, correct, scale, self.factor_table,
                           self.run.optimizer.table, self.results.rows, self.run.dynamic)

    def capture(self, n: int) -> None:
        """Capture the graph for batches of n; if that fails, raise, or warn and run eagerly."""
        failure, cp, stream = None, cupy(), self.stream
        cp.get_default_memory_pool().free_all_blocks()  # left by the eager step
        try:
            with stream, cp.cuda.using_allocator(self.pool.malloc):
                stream.begin_capture()
                self.launch_step(n)
                self.graphs[n] = stream.end_capture()
            self.graph_key = graph_key(self.run)
        except (RuntimeError, MemoryError) as error:
            failure = f"{failing_op(error)}: {error}"
            if self.must:
                raise RuntimeError(f"fit: the step cannot be captured: {failure}; with eager=True "
                                   "it need not be") from error
        finally:
            if n not in self.graphs:
                with contextlib.suppress(RuntimeError):  # CUDA may have ended it already
                    stream.end_capture()
        if failure:
            self.can_capture = False
            self.drop_graphs()  # launches need the memory
            warnings.warn(f"fit: the step is not captured as a CUDA graph, and goes on launch by "
                          f"launch (as with eager=True, or --eager): {failure}", stacklevel=2)


@contextlib.contextmanager
def training_step(run: Run, loader: Loader | FloatLoader, settings: StepSettings,
                  eager: bool | None, callbacks: Sequence[Callback]) -> Iterator[EagerStep]:
    """Provide the step of a run inside the block; afterwards unfreeze stopped groups.

    Args:
        run, loader, settings: as for EagerStep.
        eager: True runs eager steps, False captured ones; None captures on a GPU if possible. No
            difference on the CPU, or with parameters on several devices.
        callbacks: of the run.

    Raises:
        RuntimeError: from ``run_step``, if eager is False and the step cannot be captured.
        ValueError: all groups of the optimiser stop before the end of the run.
    """
    arrays = {device_name(p.data): p.data for group in run.optimizer.groups
             for p in [*group["params"], *run.model.parameters()]}
    if eager or len(arrays) > 1 or "cpu" in arrays:
        eager_step = EagerStep(run, loader, settings)
        with atomic_steps(run, eager_step.undo, eager_step.lr_plan):
            yield eager_step
        return
    passive = all(callback.passive or type(callback).on_step is Callback.on_step
                  for callback in callbacks)
    with array_device(*arrays.values()):
        step = CapturedStep(run, loader, settings, eager is False, passive)
        with atomic_steps(run, step.undo, step.lr_plan):
            try:
                yield step
            finally:
                step.drop_graphs()
