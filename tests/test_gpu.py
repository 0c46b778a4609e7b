"""What only a real GPU can show: streams, events, memory, devices, NVRTC's cache.

Everything else is tested by the op tests, which run on the GPU where there is one.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import gpuconv as gpc
from check import close
from gpuconv import backend, kernels, nn, ops, optim

pytestmark = pytest.mark.gpu

LOOPS = 20_000_000  # of a kernel that takes long enough to be seen waiting for


@pytest.fixture
def slow(cp):
    """slow(y): after a while, on the current stream, y becomes 1."""
    text = """
extern "C" __global__ void slow(float* y, long long loops)
{
    float a = y[0];
    for (long long i = 0; i < loops; i++) a = a * 0.5f + 0.5f;
    y[0] = a;
}"""
    kernel = cp.RawKernel(text, "slow")
    return lambda y: kernel((1,), (1,), (y, np.int64(LOOPS)))


def batch(cp, rng, *shape):
    return cp.asarray(rng.standard_normal(shape, "float32"))


# -- streams and events ------------------------------------------------------------------


def test_kernels_run_on_the_current_stream(cp, slow, rng):
    """A launch behind slow work on the same stream sees its result; that on another waits not."""
    y, busy, free = cp.zeros(1, "float32"), *(cp.cuda.Stream(non_blocking=True) for _ in range(2))
    x = batch(cp, rng, 4, 8, 8, 3)
    ops.relu(x), ops.relu(y)  # compiled
    cp.cuda.Device().synchronize()
    with busy:
        slow(y)
        after = ops.relu(y)
        moment = busy.record()
    with free:
        other = ops.relu(x)
        free.synchronize()
        assert not moment.done
        close(other, np.maximum(x.get(), 0))
    busy.synchronize()
    assert moment.done and after.get() == 1


def test_an_event_orders_two_streams(cp, slow):
    y, first, second = cp.zeros(1, "float32"), *(cp.cuda.Stream(non_blocking=True)
                                                 for _ in range(2))
    cp.cuda.Device().synchronize()
    with first:
        slow(y)
        moment = first.record()
    with second:
        second.wait_event(moment)
        z = ops.relu(y)
    second.synchronize()
    assert z.get() == 1


def test_a_training_step_on_a_stream_of_its_own_gives_the_same_bits(cp, rng):
    x, labels = batch(cp, rng, 32, 16, 16, 3), cp.asarray(rng.integers(0, 10, 32))

    def step():
        gpc.seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                              nn.Dropout(0.5), nn.Flatten(), nn.Linear(2048, 10)).to("cuda")
        sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            loss = ops.softmax_cross_entropy(model(x), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        return [a.get().tobytes() for a in model.state_dict().values()]

    want = step()
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        got = step()
        stream.synchronize()
    assert got == want


def test_events_time_the_device_not_the_launch(cp, slow):
    y, (begin, end) = cp.zeros(1, "float32"), (cp.cuda.Event() for _ in range(2))
    slow(y)
    begin.record()
    slow(y)
    end.record()
    assert not end.done  # the launch came back at once
    end.synchronize()
    assert cp.cuda.get_elapsed_time(begin, end) > 1


# -- memory ------------------------------------------------------------------------------


def test_a_step_gives_its_memory_back(cp, rng):
    """What a step allocates is in the pool's hands after it: the next step needs no more."""
    pool = cp.get_default_memory_pool()
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(4096, 10)).to("cuda")
    sgd = optim.SGD(model.parameters(), lr=0.1)
    x, labels = batch(cp, rng, 64, 32, 32, 3), cp.zeros(64, "int32")
    used, total = [], []
    for _ in range(4):
        loss = ops.softmax_cross_entropy(model(x), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        del loss
        used.append(pool.used_bytes())
        total.append(pool.total_bytes())
    assert len(set(used[1:])) == len(set(total[1:])) == 1


def test_free_memory_is_what_the_driver_and_the_pool_have(cp):
    before = backend.free_memory("cuda")
    held = cp.empty(1 << 28, "uint8")
    assert before - backend.free_memory("cuda") >= held.nbytes * 0.9
    del held
    assert abs(backend.free_memory("cuda") - before) < 1 << 26


def test_too_much_memory_is_a_memory_error(cp):
    free = backend.free_memory("cuda")
    with pytest.raises(MemoryError):
        cp.empty(2 * free, "uint8")


# -- two devices -------------------------------------------------------------------------


def test_two_devices(cp, rng):
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    x = rng.standard_normal((4, 8, 8, 3), "float32")
    results = []
    for number in (0, 1):
        with cp.cuda.Device(1 - number):  # the current device is the other one
            y = ops.max_pool2d(ops.relu(gpc.asarray(x, f"cuda:{number}")), 2)
            assert y.device.id == number
            results.append(y.get().tobytes())
    assert results[0] == results[1]
    a, b = (gpc.asarray(x, f"cuda:{number}") for number in (0, 1))
    with pytest.raises(ValueError, match="devices"):
        ops.bias_relu(a, b[0, 0, 0])


# -- NVRTC -------------------------------------------------------------------------------

USES = """
import cupy
import gpuconv as gpc
x = cupy.ones((2, 4, 4, 3), "float32")
assert float(gpc.ops.relu(x).sum()) == 96
"""


def test_the_second_process_compiles_nothing(tmp_path):
    """CuPy keeps what it compiled on the disk, under a hash of all that went into it."""
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", USES], check=True, cwd=kernels.HERE.parent,
                       env=os.environ | {"CUPY_CACHE_DIR": str(tmp_path)})
        kept.append({path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()})
    assert kept[0] and kept[1] == kept[0]


def test_an_error_of_the_compiler_names_the_line(cp, tmp_path):
    (tmp_path / "wrong.cu").write_text(
        'extern "C" __global__ void wrong(float* y, int n)\n{\n    y[0] = nowhere;\n}\n')
    wrong = kernels.kernel(tmp_path / "wrong.cu", "wrong", T="float32")
    with pytest.raises(cp.cuda.compiler.CompileException, match="nowhere"):
        wrong(1, cp.zeros(1, "float32"), 1)


def test_a_label_out_of_range_is_reported_with_the_loss(cp):
    loss = ops.softmax_cross_entropy(gpc.Tensor(cp.zeros((2, 3), "float32")), cp.asarray([0, 7]))
    with pytest.raises(ValueError, match=r"label 7 is outside 0\.\.2"):
        loss.item()
