"""State and results of training steps in device memory, and the kernels that update them."""

from gpuconv import kernels
from gpuconv.backend import Array, to_cpu
from gpuconv.train.measure import BatchResult, ResultQueue


def advance_step_state(step_state: Array, loss: Array, correct: Array, scale: Array | None,
                       factors: Array, control: Array, results: Array,
                       dynamic: bool = False) -> None:
    """Record the results of a step, set the factors of its update, and advance the step state.

    If the loss is not finite, skip this step and all later ones, as ``halt_if_not_finite`` does.

    Args:
        step_state: (3,) int64: epoch, batch, step.
        loss, correct: (), of the step; correct is int64.
        scale: () float32, if the loss is scaled.
        factors: (steps of the run, groups) float64.
        control: (groups, 4) float64, of the optimiser.
        results: (steps of the epoch, 4) float64.
        dynamic: as for ``halt_if_not_finite``.
    """
    kernels.kernel("optim/step_state.cu", "step_state_advance", T=loss.dtype)(
        1, step_state, loss, correct, scale, factors, control, results, len(factors), len(results),
        control.size // 4, dynamic, block=32)


def halt_if_not_finite(loss: Array, control: Array, dynamic: bool) -> None:
    """Set skip to HALT if the loss is not finite: no update happens until the host has read it.

    Args:
        loss: (), of the step, on a GPU.
        control: (groups, 4) float64, of the optimiser, on the same GPU.
        dynamic: whether the loss scale follows the gradients. A step that a dynamic loss scale
            skips does not halt.
    """
    kernels.kernel("optim/step_state.cu", "step_state_halt", T=loss.dtype)(
        1, loss, control, control.size // 4, dynamic, block=32)


def to_means(results: list[BatchResult]) -> list[BatchResult]:
    """Return results whose losses are sums over the images of a batch, with mean losses."""
    return [result._replace(loss=result.loss / result.images) for result in results]


class SumQueue(ResultQueue):
    """Queue of batch results whose losses are sums over the images."""

    def fetch(self) -> list[BatchResult]:
        """Wait for the device; return all results, with mean losses, and empty the queue."""
        return to_means(super().fetch())


class StepResults:
    """Results of captured steps in device memory that the host has not read yet.

    Args:
        rows: (steps, 4) float64: loss, correct answers, skipped, loss scale.
        loss_is_sum: whether the losses are sums over the images.
    """

    def __init__(self, rows: Array, loss_is_sum: bool = False):
        self.rows, self.loss_is_sum, self.start = rows, loss_is_sum, 0
        self.sizes: list[int] = []  # images of each step from ``start`` on

    def __len__(self) -> int:
        """Return the number of steps that have not been read."""
        return len(self.sizes)

    def start_at(self, step: int) -> None:
        """Continue with the row of this step of the epoch."""
        self.start, self.sizes = step, []

    def fetch(self) -> list[BatchResult]:
        """Wait for the device; return all unread results, with mean losses, in one copy."""
        start, sizes = self.start, self.sizes
        if not sizes:
            return []
        rows = to_cpu(self.rows[start : start + len(sizes)]).tolist()
        self.start_at(start + len(sizes))
        results = [BatchResult(n, loss, int(correct), *more)
                   for n, (loss, correct, *more) in zip(sizes, rows, strict=True)]
        return to_means(results) if self.loss_is_sum else results
