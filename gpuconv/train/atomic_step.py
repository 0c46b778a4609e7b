"""Atomic changes of a run: a step, a resume or a model's ``prepare`` is complete or has no effect.

A step changes state early: buffers in the forward pass, the loss scale after the backward pass,
then weights, the optimiser's state, averages, and the position of the run. An ``Undo`` holds the
old values until the step is complete. After an error ``Undo.restore`` puts them back, so that
model, optimiser, averages and ``run.step`` always belong to the same step.
"""

import contextlib
from collections.abc import Iterator

from gpuconv.backend import array_device
from gpuconv.nn import SavedBuffers
from gpuconv.optim.optimizer import SKIP
from gpuconv.train.callback import Run
from gpuconv.train.lr_plan import LrPlan
from gpuconv.undo import Undo


def record_run(run: Run, undo: Undo) -> SavedBuffers:
    """Record in ``undo`` the state that a step changes; optimizer and averages record their own.

    Returns:
        The model's buffers, to be restored if the step is skipped.
    """
    saved = SavedBuffers(run.model)
    undo.call(saved.put_back)
    undo.keep_attributes(run, "step", "lr", "loss", "accuracy", "images_per_second")
    undo.keep_attributes(run.tally)
    undo.keep_attributes(run.tally.pending)
    undo.keep_attributes(run.optimizer, "_factors")
    if run.scale:
        undo.keep(run.scale.scale, run.scale.counter)
    return saved


@contextlib.contextmanager
def atomic_steps(run: Run, undo: Undo, lr_plan: LrPlan) -> Iterator[None]:
    """Let optimiser and averages record their changes in ``undo`` inside the block.

    Afterwards unfreeze what ``lr_plan`` has frozen, and clear the optimiser's skip flags.
    """
    parts = [part for part in (run.optimizer, run.ema) if part is not None]
    try:
        for part in parts:
            part.undo = undo
        yield
    finally:
        for part in parts:
            part.undo = None
        lr_plan.thaw()
        for table in run.optimizer.tables.values():
            with array_device(table):
                table[:, SKIP].fill(0)


@contextlib.contextmanager
def atomic_start(run: Run) -> Iterator[None]:
    """Restore all arrays of the run if the block ends with an error."""
    with Undo() as undo:
        for part in (run.model, run.optimizer, run.ema, run.scale):
            if part is not None:
                undo.keep(*part.state_dict().values())
        for flat in run.optimizer.all_flats():
            undo.keep_items(flat.state)
        yield
