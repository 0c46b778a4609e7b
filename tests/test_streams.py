"""gpuconv with a GPU that is late, and on several streams.

All of it by the stand-in: what is written down here is what CUDA and CuPy promise, and no more.
"""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import files_of_kernels, parallel

import gpuconv as gpc
from check import host
from gpuconv import backend, nn, ops, optim, train
from gpuconv.data import augment
from gpuconv.ops.elementwise import FUNCTIONS
from hostcuda import compiler, deferred, devices, fake_cupy, work

cp = fake_cupy
pytestmark = pytest.mark.skipif(backend._cupy is not fake_cupy or not compiler(),
                                reason="wants the stand-in, and g++")

ADD = """
extern "C" __global__ void add(const float* x, float* y, float by, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        y[i] = x[i] + by;
}
"""


def add(x, y, by, module=[]):  # noqa: B006
    """y = x + by, as a kernel of ours."""
    if not module:
        module.append(cp.RawModule(code=ADD).get_function("add"))
    module[0]((1,), (32,), (x, y, np.float32(by), np.int32(x.size)))


@pytest.fixture(autouse=True)
def fresh():
    """What gpuconv keeps on the GPU belongs to no other test's stream; nothing is left behind."""
    words = dict(backend._words)
    backend._words.clear()
    augment._pixel_table.cache_clear()
    yield
    augment._pixel_table.cache_clear()
    backend._words.clear()
    backend._words.update(words)
    for lane in work._capturing:  # a capture that an error has left
        lane.capture = None
    work._capturing.clear()
    assert cp.cuda.get_current_stream() == cp.cuda.Stream.null


# -- a GPU that is late --------------------------------------------------------------------


def test_nothing_happens_before_somebody_waits():
    stream = cp.cuda.Stream(non_blocking=True)
    with deferred(), stream:
        x, y = cp.asarray(np.float32([1, 2, 3])), cp.empty(3, "float32")
        add(x, y, 1)
        z = y * 2
        assert np.isnan(x.host).all() and np.isnan(y.host).all() and np.isnan(z.host).all()
        assert not stream.done and z.get().tolist() == [4, 6, 8]
        assert y.host.tolist() == [2, 3, 4] and stream.done
        z.fill(0)
    assert z.host.tolist() == [0, 0, 0]  # all is done in the end


@pytest.mark.parametrize("wait", [
    lambda y, event, stream: stream.synchronize(), lambda y, event, stream: event.synchronize(),
    lambda y, event, stream: cp.cuda.Device().synchronize(), lambda y, event, stream: y.item(),
    lambda y, event, stream: cp.cuda.runtime.deviceSynchronize(),
    lambda y, event, stream: float(y), lambda y, event, stream: bool(y),
    lambda y, event, stream: repr(y), lambda y, event, stream: y.__dlpack__(),
], ids="stream event device item runtime float bool repr dlpack".split())
def test_what_waits(wait):
    with deferred():
        y = cp.ones((), "float32") + 1
        event = cp.cuda.Event()
        event.record()
        assert np.isnan(y.host) and not event.done
        wait(y, event, cp.cuda.get_current_stream())
        assert y.host == 2
        event.synchronize()


def test_a_copy_that_does_not_block_is_not_there_yet():
    with deferred():
        y = cp.ones(3) + 1
        a = y.get(blocking=False)
        assert np.isnan(a).all()
        cp.cuda.get_current_stream().synchronize()
        assert a.tolist() == [2, 2, 2]


def test_wrong_operands_are_refused_at_once_and_a_kernels_fault_when_it_runs():
    with deferred():
        a = cp.ones(3)
        for f in (lambda: a + cp.ones(4), lambda: a.__iadd__(cp.ones((2, 3))), lambda: a[7],
                  lambda: cp.concatenate([a, cp.ones((1, 3))]), lambda: a.reshape(2, 2)):
            with pytest.raises((ValueError, IndexError)):
                f()
        y = cp.zeros(2, "float32")
        add(cp.zeros(3, "float32"), y, 1)  # a write behind y
        with pytest.raises(RuntimeError, match="out-of-bounds"):
            y.get()


def test_a_freed_block_is_poisoned_after_the_work_before_it():
    with deferred():
        x = cp.ones(4, "float32")
        raw, y = x.host, cp.empty(4, "float32")
        add(x, y, 1)
        del x  # the pool may hand it out again, to work that comes later
        assert y.get().tolist() == [2] * 4
        cp.cuda.get_current_stream().synchronize()
        assert np.isnan(raw).all()


def test_events_measure_time_when_they_have_come():
    with deferred():
        begin, end = cp.cuda.Event(), cp.cuda.Event()
        begin.record()
        cp.ones(3)
        end.record()
        with pytest.raises(RuntimeError, match="cudaErrorNotReady"):
            cp.cuda.get_elapsed_time(begin, end)
        end.synchronize()
        assert cp.cuda.get_elapsed_time(begin, end) > 0


# -- streams -------------------------------------------------------------------------------


def test_streams_that_nothing_orders_race():
    with deferred():
        a, b = (cp.cuda.Stream(non_blocking=True) for _ in range(2))
        with a:
            x = cp.ones(3)
            x += 1
        for race in (lambda: x + 1, lambda: x.fill(0), x.get):
            with b, pytest.raises(RuntimeError, match="nothing says which comes first"):
                race()
        with pytest.raises(RuntimeError, match="the null stream of device 0 reads 24 bytes"):
            x.sum()  # the null stream waits for blocking streams only
        b.wait_event(a.record())
        with b:
            x += 1
        b.synchronize()
        assert x.get().tolist() == [3] * 3


def test_reading_from_two_streams_is_no_race_and_writing_after_it_is():
    with deferred():
        x, streams = cp.ones(3, "float32"), [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
        cp.cuda.get_current_stream().synchronize()
        sums = []
        for stream in streams:
            with stream:
                y = cp.empty(3, "float32")
                add(x, y, 1)  # const float* x
                sums.append(y.sum())
        with streams[0], pytest.raises(RuntimeError, match="fill .* writes .* add .* uses"):
            x.fill(0)
        for stream in streams:
            stream.synchronize()
        assert [float(s) for s in sums] == [6, 6]


def test_the_null_stream_and_blocking_streams_wait_for_each_other():
    with deferred():
        x, stream = cp.ones(3), cp.cuda.Stream()
        with stream:
            x += 1
        x *= 2
        with stream:
            x += 1
        assert x.get().tolist() == [5] * 3


def test_a_block_freed_while_another_stream_uses_it_is_a_race():
    with deferred():
        other = cp.cuda.Stream(non_blocking=True)
        x = cp.ones(3)
        other.wait_event(cp.cuda.get_current_stream().record())
        with other:
            y = x + 1
        del x  # its block belongs to the null stream, which may use it again now
        with other, pytest.raises(RuntimeError, match="hands out again"):
            y.get()


def test_a_stream_belongs_to_its_device():
    with devices(2):
        stream = cp.cuda.Stream()
        with cp.cuda.Device(1), pytest.raises(RuntimeError, match="does not match"), stream:
            pass
        with deferred():
            with cp.cuda.Device(1):
                x = cp.ones(3) + 1
            with stream, pytest.raises(RuntimeError, match="of device 1"):
                x.get()  # is copied on the current stream, which is the other device's
            assert (cp.asarray(x) + 1).get().tolist() == [3] * 3  # null streams wait
            with cp.cuda.Device(1):
                x.fill(0)


def test_results_of_another_device_wait_for_its_stream():
    with devices(2), deferred():
        with cp.cuda.Device(1):
            x = cp.ones((3, 2)) + 1
        with cp.cuda.Stream(non_blocking=True):
            assert backend.to_cpu(x).tolist() == backend.to_cpu(x.T).T.tolist() == [[2, 2]] * 3


# -- gpuconv, late -------------------------------------------------------------------------

NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 16, 5)).state_dict()
IMAGES = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3)).astype("uint8")
LABELS = np.random.default_rng(2).integers(0, 5, 20).astype("int32")


def fit(folder=None, device="cuda", **options):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 16, 5))
    model.load_state_dict(NET)
    model.to(device)
    history = train.fit(
        model, (IMAGES, LABELS), test=(IMAGES, LABELS), epochs=2, batch_size=8,
        optimizer=optim.SGD(model.parameters(), lr=0.05, momentum=0.9), ema=optim.EMA(model),
        clip_norm=1.0, augment=gpc.data.Augment(),
        callbacks=[train.Checkpoint(folder)] if folder else [], **options)
    return [history.last.train.loss, history.last.test.loss,
            *(host(a) for a in model.state_dict().values())]


def same(found, want):
    for a, b in zip(found, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_comes_to_the_same_bits(tmp_path):
    want = fit(tmp_path / "at once")
    with deferred():
        same(fit(tmp_path / "late"), want)
    first, second = (gpc.load(next((tmp_path / name).glob("best*")))[0]
                     for name in ("at once", "late"))
    assert first.keys() == second.keys()
    same(second.values(), first.values())


def test_training_on_streams_of_its_own_comes_to_the_same_bits():
    """What gpuconv keeps between calls (error word, tables) may be used on any stream."""
    want = fit()
    with deferred():
        for stream in (cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True),
                       cp.cuda.Stream(), cp.cuda.Stream.null):
            with stream:
                same(fit(), want)
    with devices(2), deferred(), cp.cuda.Device(1), cp.cuda.Stream(non_blocking=True):
        same(fit(device="cuda:1"), want)


OPS = {
    **{name: getattr(ops, name) for name in FUNCTIONS if name != "log"},
    **{f.__name__: f for f in (ops.softmax, ops.log_softmax, ops.global_avg_pool2d,
                               ops.global_max_pool2d, ops.sum, ops.mean, ops.max)},
    "max_pool": lambda x: ops.max_pool2d(x, 2), "avg_pool": lambda x: ops.avg_pool2d(x, 2),
    "pad": lambda x: ops.pad2d(x, 1, "reflect"), "circular": lambda x: ops.pad2d(x, 1, "circular"),
    "dropout": lambda x: ops.dropout(x, 0.5, key=(1, 2), step=3),
    "arithmetic": lambda x: 1 - 2 / (x * x + 3) + -x, "slice": lambda x: x[1:, :2, ..., 0],
    "transpose": lambda x: x.transpose(3, 2, 1, 0) * 2, "reshape": lambda x: x.reshape(2, -1) * 2,
    "im2col": lambda x: ops.im2col(x, 3),
    "conv": lambda x: ops.conv2d(x, x[:, :3, :3], x[0, 0, 0, :2], padding=1),
    "linear": lambda x: ops.linear(x, x[0, 0, :3], x[0, 0, :3, 0]),
    "matmul": lambda x: x @ x.transpose(0, 1, 3, 2),
    "bias_relu": lambda x: ops.bias_relu(x, x[0, 0, 0]),
    "batch_norm": lambda x: ops.batch_norm(x, None, None, None, None, training=True),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_op_comes_to_the_same_bits(rng, dtype):
    x = cp.asarray(rng.standard_normal((2, 6, 6, 4)).astype(dtype))

    def drive():
        results = []
        for f in OPS.values():
            y, pull = gpc.vjp(f, x)
            results += [y, *pull(y)]
            del y, pull  # what has no reference any more is poisoned
        return [host(a) for a in results]

    want = drive()
    with deferred():
        same(drive(), want)


# -- the tests of the ops, late --------------------------------------------------------------


@pytest.mark.slow
def test_the_tests_of_the_ops_pass_late():
    """In a process of its own; those that look at the stand-in's own clock are not among them."""
    here = pathlib.Path(__file__).parent
    names = ["arithmetic", "autograd", "conv2d", "flat", "layers", "linear", "reduction", "reshape",
             "softmax", "train", "checkpoint", "predictions", "models"]
    files = {*files_of_kernels(), *(here / f"test_{name}.py" for name in names)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "late", *parallel(), "-k",
                           "(host-cuda or cuda or gpu) and not captured", *sorted(files)],
                          cwd=here.parent,
                          capture_output=True, text=True)
    assert not done.returncode, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 500
