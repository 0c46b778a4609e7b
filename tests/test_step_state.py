"""The step state of a captured step, and what is read of its results."""

import numpy as np
import pytest

from check import host
from gpuconv.train import step_state


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_advancing_writes_the_factor_of_each_group(cp, rng, groups, dtype):
    factors, control = rng.random((4, groups)), rng.random((groups, 4))
    here = cp.asarray(np.int64([7, 1, 2])), cp.asarray(factors), cp.asarray(control)
    results = cp.zeros((3, 4))
    want, rows = control.copy(), np.zeros((3, 4))
    for batch, step, loss in ((1, 2, 0.5), (2, 3, 2.25), (3, 4, 4.0)):  # at last beyond both tables
        step_state.advance_step_state(
            here[0], cp.asarray(np.array(loss, dtype)), cp.asarray(np.int64(3)),
            cp.asarray(np.float32(8)), here[1], here[2], results)
        if batch < 3:
            rows[batch] = loss, 3, want[0, 2], 8
            want[:, 0] = factors[step]
        assert host(here[0]).tolist() == [7, batch + 1, step + 1]
        np.testing.assert_array_equal(host(here[2]), want)
        np.testing.assert_array_equal(host(results), rows)


def test_sums_are_read_as_means(xp):
    rows = xp.asarray(np.array([[0, 0, 0, 0], [6, 2, 0, 1], [2, 1, 1, 0.5]]))
    for sums, want in ((False, [6, 2]), (True, [1.5, 1])):
        results = step_state.StepResults(rows, sums)
        results.start_at(1)
        results.sizes += [4, 2]
        assert [(seen.images, seen.loss, seen.correct, seen.skipped, seen.scale)
                for seen in results.fetch()] == [(4, want[0], 2, 0, 1), (2, want[1], 1, 1, 0.5)]
        assert not len(results) and results.fetch() == []
    queue = step_state.SumQueue()
    queue.add(4, xp.asarray(np.float32(6)), xp.asarray(np.int64(2)))
    assert [(seen.loss, seen.correct) for seen in queue.fetch()] == [(1.5, 2)]
    assert queue.fetch() == []
