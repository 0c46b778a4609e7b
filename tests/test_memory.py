"""Predicted memory against what tracemalloc measures; hand counts for the GPU; sentences."""

import gc
import subprocess
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.special  # noqa: F401  (GELU imports it: 8 MB of code that is no array)

import gpuconv as gpc
from gpuconv import backend, free_memory, models, nn, optim, random, threads, train
from gpuconv.autograd import Op
from gpuconv.memory import free_all_blocks, fresh
from gpuconv.ops import softmax_cross_entropy
from gpuconv.ops.engine import zeros
from gpuconv.train import memory
from gpuconv.train.gpu_memory import Meter
from gpuconv.train.memory import explain, largest_batch, predict

SHAPE = 32, 32, 3


def residual():
    def block(C, K, stride):
        return nn.Residual(
            nn.Conv2d(C, K, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(K), nn.ReLU(),
            nn.Conv2d(K, K, 3, padding=1, bias=False), nn.BatchNorm2d(K),
            shortcut=nn.Conv2d(C, K, 1, stride=stride) if stride > 1 else None)

    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), block(16, 16, 1), nn.GELU(),
                         block(16, 32, 2), nn.Dropout(0.1), nn.GlobalAvgPool2d(), nn.Linear(32, 10))


def frozen():
    model = models.cifar_convnet()
    for module in list(model)[:14]:
        module.requires_grad_(False)
    return model


class Functions(nn.Module):
    """Ops on full arrays, branches, a product that keeps both factors."""

    def __init__(self):
        self.conv, self.linear = nn.Conv2d(3, 16, 3, groups=1), nn.Linear(16, 10)

    def forward(self, x):
        y = self.conv(x)
        z = gpc.ops.exp(y * 0.1) * y
        return self.linear((z + y - 1).mean(axis=(1, 2)))


def sgd(parameters):
    return optim.SGD(parameters, lr=0.01, momentum=0.9)


@pytest.fixture(params=[1])
def dealt(request, monkeypatch):
    """So many threads, dealt the pieces in turn: else who is quicker would make a difference."""
    pool, inside = ThreadPoolExecutor(1), threading.local()

    def each(f, pieces):
        def work(part):
            inside.now = True
            try:
                return [f(piece) for piece in part]
            finally:
                inside.now = False

        if request.param == 1 or getattr(inside, "now", False):
            return [f(piece) for piece in pieces]
        other = pool.submit(work, pieces[1::2])
        results = [None] * len(pieces)
        results[::2], results[1::2] = work(pieces[::2]), other.result()
        return results

    monkeypatch.setattr(threads, "each", each)
    monkeypatch.setattr(threads, "count", lambda: request.param)
    yield
    pool.shutdown()


def measured(make, n, dtype="float32", optimizer=sgd, enough=0):
    """Bytes that training steps of n images have at most, all that they hold included.

    Nothing is left of earlier steps: no workspaces, no blocks that wait to be lent. Six steps,
    or more until they had ``enough``: two threads may miss the moment when both need the most.
    """
    found = []

    def steps():
        gc.collect()
        zeros._buffers.clear()
        free_all_blocks()
        tracemalloc.start()
        try:
            model = make().to(dtype)
            optim = optimizer(model.parameters())
            x = np.random.default_rng(0).standard_normal((n, *SHAPE), "float32").astype(dtype)
            labels = np.zeros(n, "int32")
            tracemalloc.reset_peak()
            for number in range(100):
                if number >= 6 and tracemalloc.get_traced_memory()[1] >= enough:
                    break
                loss = softmax_cross_entropy(model(x), labels)
                optim.zero_grad()
                loss.backward()
                optim.step()
            found.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    thread = threading.Thread(target=steps)  # the caller's workspaces is old
    thread.start()
    thread.join()
    return found[0]


# -- against tracemalloc -----------------------------------------------------------------


@pytest.mark.parametrize("dealt, make, n, dtype", [
    (1, models.cifar_convnet, 32, "float32"), (2, models.cifar_convnet, 32, "float16"),
    (1, models.simple_convnet, 64, "float16"), (2, models.simple_convnet, 64, "float32"),
    (1, residual, 32, "float16"), (2, residual, 32, "float32"), (1, frozen, 16, "float32"),
    (2, frozen, 16, "float16"), (1, Functions, 32, "float32"), (2, Functions, 32, "float16")],
    indirect=["dealt"], ids=lambda v: getattr(v, "__name__", str(v)))
def test_it_is_what_is_measured(dealt, make, n, dtype):
    got = predict(make().to(dtype), SHAPE, n).peak
    with fresh():
        want = measured(make, n, dtype, enough=0.97 * got)
    assert abs(got / want - 1) < 0.05, f"predicted {got:,}, measured {want:,}"


@pytest.mark.parametrize("make", [models.cifar_convnet, models.simple_convnet, residual])
def test_recycled_memory_is_hardly_more(dealt, make):
    # what waits for the forward pass stays while the backward pass needs its workspace
    assert measured(make, 32) < 1.1 * predict(make(), SHAPE, 32).peak


def test_adam_keeps_two_numbers_per_parameter(dealt):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 500), nn.ReLU(), nn.Linear(500, 10))

    with fresh():
        want = measured(make, 16, optimizer=optim.Adam)
    got = predict(make(), SHAPE, 16, optimizer_slots=2)
    assert abs(got.peak / want - 1) < 0.05
    assert got.optimizer == 2 * got.parameters
    assert predict(make().to("float16"), SHAPE, 16, 2).optimizer == got.optimizer  # float32


def test_the_parts_are_what_they_say():
    model = models.simple_convnet()
    m = predict(model, SHAPE, 100, optimizer_slots=0)
    weights = sum(p.data.nbytes for p in model.parameters())
    assert weights <= m.parameters < weights + 4 * 256 and m.optimizer == 0
    assert m.gradients >= m.parameters
    assert m.data == 100 * (32 * 32 * 3 * 4 + 4)
    volume = 100 * 32 * 32 * 32 * 4  # of the convolution, and what is pooled and rectified of it
    assert 1.25 * volume < m.activations < 2 * volume
    assert m.peak == (m.parameters + m.gradients + m.data + m.activations + m.workspace)


def test_buffers_are_parameters_too():
    norm = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU())
    norm.register_buffer("table", np.zeros(10_000, "float32"))
    assert predict(norm, (2, 2, 1), 8).parameters > 40_000


def test_a_model_that_ends_in_an_image_or_has_nothing_to_learn():
    assert predict(nn.Conv2d(3, 8, 3), SHAPE, 10).activations > 10 * 30 * 30 * 8 * 4
    nothing = predict(nn.MaxPool2d(2), SHAPE, 10)
    assert nothing.parameters == nothing.gradients == 0
    assert nothing.activations >= 10 * 16 * 16 * 3 * 4


def test_one_value_per_channel_is_no_obstacle():
    model = nn.Sequential(nn.Conv2d(3, 4, 32), nn.BatchNorm2d(4), nn.Flatten())
    assert predict(model, SHAPE, 32).peak > 0


# -- what it leaves ----------------------------------------------------------------------


def noted():
    return threads.chunks, threads.each, threads.workspace, zeros.buffer, Op.__call__


def test_everything_is_as_before():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5),
                          nn.Linear(4 * 36, 3))
    held = optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    model[1].eval()
    model[4].weight.grad.fill(7)
    before = {name: a.copy() for name, a in model.state_dict().items()}
    names = noted()
    random.seed(1)
    predict(model, (8, 8, 3), 64)
    got, _ = random.generator().random(), random.seed(1)
    assert got == random.generator().random()
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name])
    assert not model[1].training and model[2].training and model[2].volume is None
    assert (model[4].weight.grad == 7).all() and not model[0].weight.grad.any()
    assert names == noted()
    assert not tracemalloc.is_tracing()
    held.step()


def test_other_threads_notice_nothing():
    found = []

    class Watched(nn.Module):
        def forward(self, x):
            other = threading.Thread(target=lambda: found.append(threads.chunks(10, 300, 1000)))
            other.start()
            other.join()
            return x * 2

    predict(Watched(), (4, 4, 1), 8)
    assert found == [threads.chunks(10, 300, 1000)] * len(found) and found


def test_an_error_inside_leaves_nothing_either():
    names = noted()
    with pytest.raises(ValueError, match="conv2d: x has 5 channels"):
        predict(models.simple_convnet(), (32, 32, 5), 4)
    assert names == noted()
    assert not tracemalloc.is_tracing()
    with pytest.raises(ValueError, match="batch_size 0"):
        predict(models.simple_convnet(), SHAPE, 0)


# -- on a GPU: counted by hand -----------------------------------------------------------


def small(dtype="float32"):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(256, 10)).to("cuda", dtype)


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("float16", 2)])
def test_on_a_gpu_the_arrays_on_the_tape_are_counted(cp, dtype, size):
    m = predict(small(dtype), (8, 8, 3), 100)
    volume = 100 * 8 * 8 * 4 * size
    # backward of Linear: what it was given and the gradient of that; logits, their gradient, loss
    assert 2 * volume <= m.activations <= 2 * volume + 3 * 100 * 10 * 4 + 1000
    assert m.data == 100 * (8 * 8 * 3 * size + 4)


def test_on_a_gpu_an_op_made_of_ops_keeps_what_they_keep(cp):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.Conv2d(8, 8, 3, padding=1), nn.GlobalAvgPool2d())
    model.to("cuda", "float16")
    volume = 100 * 8 * 8 * 8 * 2
    m = predict(model, (8, 8, 8), 100)
    # backward of the second convolution: z of the first, y, both gradients of the second
    assert 4 * volume <= m.activations <= 4 * volume + 5000


def blocks():
    """What takes each of the fused ways, and a Linear with few rows."""
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.GELU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(16, 10))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("images", [12, 40])
def test_on_a_gpu_it_is_what_the_arrays_of_a_step_take(cp, dtype, images):
    """Bytes in use at once. CuPy's pool holds more, 1.7 times as much here: it cuts blocks, and
    what lies free between them is no whole block.
    """
    model = blocks().to("cuda", dtype)
    optimiser = optim.SGD(model.parameters(), 0.1, momentum=0.9, master=dtype == "float16")
    x = cp.asarray(np.random.default_rng(0).standard_normal((images, 12, 12, 8)).astype(dtype))
    labels = cp.zeros(images, np.int32)
    model.train()
    for _ in range(2):  # the first allocates what stays
        pool, used = cp.cuda.MemoryPool(), []

        def malloc(size, pool=pool, used=used):
            found = pool.malloc(size)
            used.append(pool.used_bytes())
            return found

        with cp.cuda.using_allocator(malloc):
            optimiser.zero_grad()
            softmax_cross_entropy(model(x), labels).backward()
            optimiser.step()
    found = predict(model, (12, 12, 8), images)
    step = found.activations + found.workspace + found.gradients - sum(
        memory._aligned(p.data.nbytes) for p in model.parameters())  # those were there before
    assert abs(step / max(used) - 1) < 0.1


def test_a_prediction_gives_back_what_it_had(cp, monkeypatch):
    """As the graphs of a step do, see test_step."""
    made, take = set(), Meter.take
    monkeypatch.setattr(Meter, "take", lambda self: made.add(self.pool) or take(self))
    predict(blocks().to("cuda"), (12, 12, 8), 12)
    assert made and not any(pool.total_bytes() for pool in made)


# -- what fits ---------------------------------------------------------------------------


def test_the_largest_batch_fits_and_one_more_does_not():
    model = models.simple_convnet()
    plan = 0.9 * (free := 50 << 20)
    most = largest_batch(model, SHAPE, free)
    assert predict(model, SHAPE, most - 1).peak < plan < predict(model, SHAPE, most + 2).peak
    assert largest_batch(model, SHAPE, predict(model, SHAPE, 1).peak // 2) == 0
    assert largest_batch(model, SHAPE, 1 << 60) >= 1 << 23


def test_free_memory_of_this_machine():
    free = backend.free_memory()
    if free is None:
        pytest.skip("this system does not tell")
    assert 0 < free < 1 << 50


def test_free_memory_of_the_gpu_counts_the_pool(cp):
    info, pool = cp.cuda.runtime.memGetInfo, cp.get_default_memory_pool
    if cp.__version__.endswith("stand-in"):
        assert backend.free_memory("cuda") == backend.free_memory("cuda:0") == 7 << 30
    else:
        assert abs(backend.free_memory("cuda") - info()[0] - pool().free_bytes()) < 1 << 28


GIB = 1 << 30
FILES = {
    "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:  8388608 kB\n",  # 8 GiB
    "/proc/self/cgroup": "0::/pod/box\n",
    "/sys/fs/cgroup/pod/box/memory.max": "max\n",
    "/sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
    "/sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
    "/sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 3\n",
}
FIRST = {
    "/proc/meminfo": FILES["/proc/meminfo"],
    "/proc/self/cgroup": "9:cpu:/\n4:memory:/box\n",
    "/sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}",
    "/sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}",
    "/sys/fs/cgroup/memory/box/memory.stat": "inactive_file 7\ntotal_inactive_file 0\n",
}


@pytest.mark.parametrize("files, want", [
    (FILES, 2 * GIB), (FIRST, GIB), ({"/proc/meminfo": FILES["/proc/meminfo"]}, 8 * GIB),
    ({}, None)], ids=["groups", "groups, version 1", "no groups", "not Linux"])
def test_free_memory_is_the_least_of_what_system_and_groups_leave(monkeypatch, files, want):
    def read(path):
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    monkeypatch.setattr(free_memory, "_read", read)
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    assert backend.free_memory() == want


# -- the sentence ------------------------------------------------------------------------


def failing(batch):
    """A MemoryError out of a frame that holds arrays, and a weak reference to one of them."""
    def step():
        x = np.zeros(batch)
        seen.append(weakref.ref(x))
        raise MemoryError

    seen = []
    try:
        step()
    except MemoryError as error:
        return error, seen[0]


def test_explain_says_what_is_needed_what_is_free_and_what_would_fit(monkeypatch):
    model = models.simple_convnet()
    optimizer = sgd(model.parameters())
    monkeypatch.setattr(memory, "free_memory", lambda device: 100 << 20)
    error, array = failing(10)
    found = explain(error, model, SHAPE, 4096, optimizer)
    need = predict(model, SHAPE, 4096)
    held = 2 * need.parameters
    most = largest_batch(model, SHAPE, (100 << 20) + held)
    assert isinstance(found, MemoryError)
    assert str(found) == (
        f"a training step with batches of 4096 does not fit into memory: it needs "
        f"{memory.human(need.peak)}, {memory.human((100 << 20) + held)} are free: the largest "
        f"batch that would fit is {most}")
    assert array() is None  # what the frame held is free again
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert str(explain(MemoryError(), model, SHAPE, 8)).endswith("not even a batch of 1 would fit")
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert str(explain(MemoryError(), model, SHAPE, 8)).endswith("MiB")


def test_explain_survives_when_nothing_is_left(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(memory, "trace", full)
    found = explain(MemoryError(), models.simple_convnet(), SHAPE, 64)
    assert str(found) == ("a training step with batches of 64 does not fit into memory, nor does "
                          "one with batches of 2")


def test_explain_says_so_when_the_step_is_not_to_blame(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 40)
    found = explain(MemoryError("Unable to allocate 9 EiB"), models.simple_convnet(), SHAPE, 2)
    assert str(found).startswith("out of memory (Unable to allocate 9 EiB), although a training "
                                 "step with batches of 2 needs ")
    assert "1.0 TiB are free" in str(found)


def test_explain_hides_nothing_when_it_cannot_predict():
    found = explain(MemoryError("Unable to allocate 9 EiB"), models.simple_convnet(), (8, 8, 5), 2)
    assert str(found).endswith("does not fit into memory: Unable to allocate 9 EiB")


def test_explain_takes_cupys_error(cp, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 7 << 30)
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    error = cupy.cuda.memory.OutOfMemoryError(1 << 40, 0, 0)
    assert isinstance(error, MemoryError)  # so nobody needs cupy to catch it
    found = explain(error, small(), (8, 8, 3), 1 << 22)
    assert "GiB, 7.0 GiB are free: the largest batch" in str(found)


@pytest.mark.parametrize("optimizer, slots", [
    (lambda p: optim.SGD(p, lr=1), 0), (sgd, 1), (lambda p: optim.Adam(p), 2)])
def test_an_optimisers_numbers_per_parameter(optimizer, slots):
    assert memory.slots_of(optimizer(nn.Linear(2, 2).parameters())) == slots


def test_masters_are_numbers_per_16_bit_parameter():
    for dtype, slots in (("float32", 0), ("float16", 1)):
        layer = nn.Linear(2, 2).to("cpu", dtype)
        assert memory.slots_of(optim.SGD(layer.parameters(), lr=1, master=True)) == slots


CODE = """
import resource, numpy as np
import gpuconv as gpc
from gpuconv import nn, optim, threads, train
threads.count = lambda: 1  # OpenBLAS ends the process where a thread's first buffer does not fit
x, labels = np.zeros((1000, 32, 32, 3), "float32"), np.zeros(1000, "int32")
model = gpc.models.simple_convnet()
train.fit(model, (x[:4], labels[:4]), epochs=1, batch_size=4,
          optimizer=(sgd := optim.SGD(model.parameters(), lr=0.1)))
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (150 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    train.fit(model, (x, labels), epochs=1, batch_size=1000, optimizer=sgd)
except MemoryError as error:
    print(error)
    most = int(str(error).split()[-1])
    train.fit(model, (x, labels), epochs=1, batch_size=most // 2, optimizer=sgd)
    print("trained")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_real_shortage_becomes_a_sentence_and_half_of_its_advice_fits():
    # half: malloc keeps some of what the first attempt had, and the limit is on address space
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sentence, trained = done.stdout.splitlines()
    assert sentence.startswith("a training step with batches of 1000 does not fit into memory: it "
                               "needs ") and trained == "trained"


def test_fit_raises_the_sentence(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    data = np.zeros((4, 2, 2, 3), "float32"), np.zeros(4, "int32")

    def short(*_, **__):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("gpuconv.train.step.softmax_cross_entropy", short)
    with pytest.raises(MemoryError, match="batches of 2 does not fit into memory: it needs"):
        train.fit(model, data, epochs=1, batch_size=2, optimizer=sgd(model.parameters()))
