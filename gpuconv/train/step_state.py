"""What a step keeps on the device: where a captured run stands, what steps gave, when to halt."""

from gpuconv import kernels
from gpuconv.backend import Array, to_cpu
from gpuconv.train.measure import Queue, Seen


def tick(clock: Array, loss: Array, right: Array, scale: Array | None, factors: Array,
         control: Array, records: Array, dynamic: bool = False) -> None:
    """Note what a step gave, set the factors of its update, and let the clock move on.

    If the loss is not finite, leave out this step and all later ones, as ``halt`` does.

    Args:
        clock: (3,) int64: epoch, batch, step.
        loss, right: (), of the step; right int64.
        scale: () float32, if the loss is scaled.
        factors: (steps of the run, groups) float64.
        control: (groups, 4) float64, of the optimiser.
        records: (steps of the epoch, 4) float64.
        dynamic: as for ``halt``.
    """
    kernels.kernel("optim/step_state.cu", "step_state_advance", T=loss.dtype)(
        1, clock, loss, right, scale, factors, control, records, len(factors), len(records),
        control.size // 4, dynamic, block=32)


def halt(loss: Array, control: Array, dynamic: bool) -> None:
    """Set skip to HALT if a loss is not finite: no update happens until somebody has read it.

    Args:
        loss: (), of the step, on a GPU.
        control: (groups, 4) float64, of the optimiser, beside it.
        dynamic: does the loss scale follow the gradients? Then a step that it leaves out is no
            reason to halt.
    """
    kernels.kernel("optim/step_state.cu", "step_state_halt", T=loss.dtype)(
        1, loss, control, control.size // 4, dynamic, block=32)


def means(found: list[Seen]) -> list[Seen]:
    """Batches whose losses are sums over their images, with the means in place of these."""
    return [seen._replace(loss=seen.loss / seen.images) for seen in found]


class Sums(Queue):
    """Results of batches that are still where they were computed; their losses are sums."""

    def fetch(self) -> list[Seen]:
        """All of them, with means; then there are none. Waits for the device."""
        return means(super().fetch())


class Records:
    """What captured steps have noted on the device, and nobody has read yet.

    Args:
        rows: (steps, 4) float64: loss, right answers, skipped?, loss scale.
        sums: are the losses sums over the images?
    """

    def __init__(self, rows: Array, sums: bool = False):
        self.rows, self.sums, self.start = rows, sums, 0
        self.sizes: list[int] = []  # images of each step from ``start`` on

    def __len__(self) -> int:
        """Steps."""
        return len(self.sizes)

    def begin(self, step: int) -> None:
        """The next row is that of this step of the epoch."""
        self.start, self.sizes = step, []

    def fetch(self) -> list[Seen]:
        """All of them, with mean losses, in one copy; then there are none. Waits for the device."""
        start, sizes = self.start, self.sizes
        if not sizes:
            return []
        rows = to_cpu(self.rows[start : start + len(sizes)]).tolist()
        self.begin(start + len(sizes))
        found = [Seen(n, loss, int(right), *more)
                 for n, (loss, right, *more) in zip(sizes, rows, strict=True)]
        return means(found) if self.sums else found
