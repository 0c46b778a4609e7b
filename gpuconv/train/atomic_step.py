"""Changes of a run that happen as a whole or not at all: a step, a resume, a model's ``prepare``.

A step changes state early: buffers in the forward pass, the loss scale after the backward pass,
then weights, the optimiser's state, averages, and the position of the run. An ``Undo`` holds what
all of that was until the step is complete. After an error ``Undo.restore`` puts it back: model,
optimiser, averages and ``run.step`` always belong to the same step.
"""

import contextlib
from collections.abc import Iterator

from gpuconv.backend import array_device
from gpuconv.nn import SavedBuffers
from gpuconv.optim.optimizer import SKIP
from gpuconv.train.callback import Run
from gpuconv.train.lr_plan import Rates
from gpuconv.undo import Undo


def keep_step(run: Run, undo: Undo) -> SavedBuffers:
    """Note what a step changes outside the optimiser and the averages, which note it themselves.

    Returns:
        The model's buffers, to be put back where the step is left out.
    """
    saved = SavedBuffers(run.model)
    undo.call(saved.put_back)
    undo.keep_attributes(run, "step", "lr", "loss", "accuracy", "images_per_second")
    undo.keep_attributes(run.tally)
    undo.keep_attributes(run.tally.waiting)
    undo.keep_attributes(run.optimizer, "_factors")
    if run.scale:
        undo.keep(run.scale.scale, run.scale.counter)
    return saved


@contextlib.contextmanager
def whole_steps(run: Run, undo: Undo, rates: Rates) -> Iterator[None]:
    """Let optimiser and averages note in ``undo`` what they change.

    Afterwards they no longer do, nothing is frozen by ``rates``, and no step of the optimiser is
    left out.
    """
    parts = [part for part in (run.optimizer, run.ema) if part is not None]
    try:
        for part in parts:
            part.undo = undo
        yield
    finally:
        for part in parts:
            part.undo = None
        rates.thaw()
        for table in run.optimizer.tables.values():
            with array_device(table):
                table[:, SKIP].fill(0)


@contextlib.contextmanager
def whole_start(run: Run) -> Iterator[None]:
    """Put all arrays back if the block, which fills them, ends with an error."""
    with Undo() as undo:
        for part in (run.model, run.optimizer, run.ema, run.scale):
            if part is not None:
                undo.keep(*part.state_dict().values())
        for flat in run.optimizer.all_flats():
            undo.keep_items(flat.state)
        yield
