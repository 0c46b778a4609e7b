"""Timed runs, one after the other, each with its own seed.

    not timed   reading the data, moving them to the device, compiling kernels (a few steps and a
                test before the first run, of the same shapes), new weights, the optimiser's memory
    timed       the model's ``prepare``, all training with augmentation, capturing steps as CUDA
                graphs, the final test with test-time augmentation

These are the rules of speed records on CIFAR-10. There is no test between epochs, and no folder.
"""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gpuconv.train as training
from gpuconv import backend, files, models, ops, random
from gpuconv.data import Dataset
from gpuconv.ops.conv import Table
from gpuconv.runs.config import Config
from gpuconv.runs.environment import environment
from gpuconv.runs.job import predict_test_set

WARM = 3  # steps before the first run: launched one by one, captured, replayed


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time and accuracy of one run."""

    seed: int
    seconds: float
    accuracy: float  # on the test set after the last epoch, with test-time augmentation


def timed(config: Config, data: tuple[Dataset, Dataset], count: int, *, eager: bool = False,
          tuned: Table | None = None,
          on_run: Callable[[Timing], None] = lambda timing: None) -> list[Timing]:
    """Train ``count`` times, with seeds from the config's own on, and return the timings.

    Args:
        config: of the runs; ``patience`` of its settings is not used.
        data: (train, test).
        count: runs.
        eager: whether to run without CUDA graphs on a GPU.
        tuned: tuning table of ``gpuconv tune``.
        on_run: called after each run, not timed.

    Raises:
        ValueError: count is below 1, or a seed is out of range.
        FloatingPointError, MemoryError: as ``fit`` does.
    """
    if count < 1:
        raise ValueError(f"timed: {count} runs, wanted at least 1")
    seeds = [random.check_seed(config.seed + number) for number in range(count)]
    train_set, test_set = (part.to(config.device) for part in data)
    settings = config.settings
    if settings.mean is None:  # compute them once, not timed
        settings = settings.replace(mean=tuple(map(float, train_set.mean)),
                                    std=tuple(map(float, train_set.std)))
    batch_size, warm_up = settings.batch_size, dataclasses.replace(
        config, settings=settings.replace(epochs=1))
    images = WARM * batch_size + (0 if settings.drop_last else len(train_set) % batch_size)
    with contextlib.nullcontext() if tuned is None else ops.tuned(tuned):
        _run(warm_up, config.seed, train_set[:images],
             test_set[:batch_size + len(test_set) % batch_size], eager)
        timings = []
        for seed in seeds:
            timings.append(_run(dataclasses.replace(config, settings=settings), seed, train_set,
                                test_set, eager))
            on_run(timings[-1])
    return timings


def _run(config: Config, seed: int, train_set: Dataset, test_set: Dataset,
         eager: bool) -> Timing:
    random.seed(seed)
    model = models.build(config.model).to(config.device, config.dtype)
    arguments = config.settings.fit_arguments(model)
    try:
        _wait(train_set)
        start = time.perf_counter()
        training.fit(model, train_set, seed=seed, eager=True if eager else None, **arguments)
        predictions = predict_test_set(model, config, train_set, test_set)
        _wait(train_set)
        seconds = time.perf_counter() - start
        if not math.isfinite(predictions.loss):
            raise FloatingPointError(f"the test loss is {predictions.loss} at the end")
        return Timing(seed, seconds, predictions.accuracy)
    except FloatingPointError as error:
        raise FloatingPointError(f"seed {seed}: {error}") from None
    finally:
        arguments["optimizer"].release()  # free its memory for the next run


def _wait(data: Dataset) -> None:
    """Wait until the device has finished all work."""
    if backend.is_gpu(data.images):
        with data.images.device:
            backend.cupy().cuda.get_current_stream().synchronize()


def summary(timings: Sequence[Timing]) -> dict[str, float | None]:
    """Return mean and standard deviation (None for one run) of seconds and accuracy.

    >>> summary([Timing(0, 1.0, 0.5), Timing(1, 3.0, 0.5)])["seconds"]
    2.0
    """
    result: dict[str, float | None] = {}
    for name in ("seconds", "accuracy"):
        values = [getattr(timing, name) for timing in timings]
        result[name] = statistics.fmean(values)
        result[f"{name}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
    return result


def write_timings(path: str | os.PathLike, config: Config, timings: Sequence[Timing]) -> None:
    """Write config, environment and timings as JSON."""
    values: dict[str, Any] = {
        **summary(timings), "runs": [dataclasses.asdict(timing) for timing in timings],
        "config": dataclasses.asdict(config), "environment": environment()}
    with files.atomic_write(path, "w") as file:
        file.write(json.dumps(values, indent=2) + "\n")
