"""The tests' stand-in for CuPy under the GPU day's own code, to try that code without a GPU.

Sizes shrink until each stage takes seconds. The figures mean nothing.
"""

import pathlib
import sys
import types

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "tests")]


def install() -> None:
    """Put it where gpuconv looks for cupy, with the few names that only benchmarks use."""
    from gpuconv import backend
    from hostcuda import fake_cupy as cp

    def synchronize(event):
        event.moment  # noqa: B018  # it has been recorded

    def copyto(target, source):
        target[...] = source

    cp.copyto = copyto
    cp.cuda.Event.synchronize = getattr(cp.cuda.Event, "synchronize", synchronize)
    numbers = types.SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7)
    cp._core = types.SimpleNamespace(get_compute_type=lambda dtype: 0, _routines_linalg=numbers,
                                     set_compute_type=lambda dtype, number: None)
    backend._cupy = cp


def shrink(stages=None, size=None, benches=()) -> None:
    """Small arrays and few rounds.

    Args:
        stages: the module gpu_sizes.
        size: of its cases.
        benches: modules of benchmarks.
    """
    import roofline
    roofline.SIDE, roofline.COPIED, roofline.ROUNDS = (
        dict(cpu=64, cuda=64), dict(cpu=1 << 12, cuda=1 << 12), 1)
    if stages:
        stages.SIZE, stages.DTYPES, stages.TRAIN, stages.STEPS = size, ("float32",), (16, 8, 8), 2
        stages.NET = "INPUT 32x32x3 CONV3-2/4 BN RELU DROPOUT0.2 FC 10"
        stages.FIT = dict(train=20, test=10, epochs=1, model=stages.NET)
        stages.TIMED = dict(steps=3, epochs=1,
                            model="INPUT 32x32x3 CONV3-4 BN RELU POOL2 FC 10")
        stages.SHRINK, stages.LAYERS, stages.ROUNDS, stages.WARMUP = 32, 2, 1, 0
    import harness

    from hostcuda import fake_cupy
    harness.FLUSH = 1 << 10
    fake_cupy.RawModule.mode = "fast"  # not watched: that is for the tests
    for module in benches:
        harness.ROUNDS, harness.WARMUP = 1, 0
        for name in {"N", "B", "ROUNDS"} & vars(module).keys():
            setattr(module, name, 1 if name == "ROUNDS" else 4)
        if hasattr(module, "SHAPE"):
            module.SHAPE = 4, *module.SHAPE[1:]
