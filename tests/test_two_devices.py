"""gpuconv on the second device of a machine, while the first one is current.

The stand-in has two devices here, which cannot read each other's memory. On a machine with GPUs
this needs two of them.
"""

import copy
import tempfile

import numpy as np
import pytest

import gpuconv as gpc
from check import close, host
from gpuconv import backend, data, kernels, nn, ops, optim, train
from gpuconv.backend import array_device, asarray, device_name
from gpuconv.nn import init
from gpuconv.ops.elementwise import FUNCTIONS
from hostcuda import compiler, devices, fake_cupy

pytestmark = pytest.mark.skipif(backend._cupy is not fake_cupy or not compiler(),
                                reason="wants the stand-in, and g++")

FIRST, SECOND = "cuda:0", "cuda:1"
IMAGES = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3)).astype("uint8")
LABELS = np.random.default_rng(2).integers(0, 5, 20).astype("int32")


@pytest.fixture(autouse=True)
def two():
    before = dict(backend._words)
    with devices(2):
        yield
    assert fake_cupy.cuda.Device().id == 0  # as it was
    backend._words.clear()
    backend._words.update(before)


def net():
    gpc.seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 16, 5))


def fit(device, images=IMAGES, labels=LABELS, kind=optim.SGD, dtype="float32", **options):
    model = net().to(device, dtype)
    history = train.fit(model, (images, labels), test=(images, labels), epochs=1, batch_size=8,
                        optimizer=kind(model.parameters(), lr=0.05), ema=optim.EMA(model),
                        clip_norm=1.0, **options)
    return model, history


# -- what the stand-in's devices do --------------------------------------------------------


def test_an_array_remembers_its_device():
    cp = fake_cupy
    with cp.cuda.Device(1) as second:
        a = cp.arange(6.0).reshape(2, 3)
        assert second.id == cp.cuda.Device().id == cp.cuda.runtime.getDevice() == 1
    assert cp.cuda.Device().id == 0 and a.T[0].device == a.data.device == cp.cuda.Device(1)
    assert a.get().tolist() == [[0, 1, 2], [3, 4, 5]] and a.__dlpack_device__() == (2, 1)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"), cp.cuda.Device(2):
        pass
    assert cp.cuda.runtime.getDeviceCount() == 2


def test_computing_with_another_devices_array_is_refused():
    cp = fake_cupy
    here = cp.ones(3)
    with cp.cuda.Device(1):
        there = cp.ones(3)
    for f in (lambda: there + 1, lambda: here + there, there.sum, lambda: there.fill(0),
              lambda: there.astype("float32"), lambda: cp.concatenate([here, there]),
              lambda: there.__setitem__(0, 1), lambda: there[cp.asarray([0])],
              lambda: cp.zeros_like(there) + there):
        with pytest.raises(ValueError, match="array resides .1. is different from the current"):
            f()
    kernel = fake_cupy.RawModule(code='extern "C" __global__ void f(double* y) { y[0] = 1; }')
    with pytest.raises(RuntimeError, match="kernel on device 0 is given an array of device 1"):
        kernel.get_function("f")((1,), (1,), (there,))


def test_copies_between_devices_are_cupys():
    cp = fake_cupy
    with cp.cuda.Device(1):
        a = cp.arange(12.0).reshape(3, 4)
    for b in (a.copy(), cp.asarray(a), cp.array(a, "float32"), a[:, ::2].copy()):
        assert b.device.id == 0 and a.device.id == 1
    assert a[:, ::2].copy().tolist() == [[0, 2], [4, 6], [8, 10]]
    with pytest.raises(NotImplementedError, match="non-contiguous"):
        cp.asarray(a[:, ::2])
    b = cp.zeros((3, 4))
    b[...] = a  # bytes lie alike
    assert b.tolist() == a.tolist()
    with pytest.raises(ValueError, match="array resides"):
        b[:, ::2] = a[:, ::2]
    assert copy.deepcopy(a).device.id == 1


# -- arrays, tensors, kernels --------------------------------------------------------------


def test_moving():
    a = np.arange(12.0).reshape(3, 4)
    there = asarray(a, SECOND)
    assert device_name(there) == SECOND and asarray(there, SECOND) is there
    for view in (there, there[:, ::2], there.T, there[::-1], there[:, :1]):
        back = asarray(view, FIRST)
        assert device_name(back) == FIRST
        close(back, host(view))
    with array_device(there):
        assert device_name(asarray(a, "cuda")) == SECOND
    with pytest.raises(RuntimeError, match="invalid device"):
        asarray(a, "cuda:2")


def test_a_launch_goes_to_the_arrays_device_and_refuses_two():
    x, y = (asarray(np.ones(4, "float32"), device) for device in (FIRST, SECOND))
    relu = kernels.kernel("elementwise/activation.cu", "activation_forward", T=x.dtype,
                          I=kernels.index(x), ACTIVATION="relu")
    with y.device:
        z = fake_cupy.empty_like(y)
    relu(1, y, z, 4)
    assert z.tolist() == [1] * 4
    with pytest.raises(ValueError, match=r"on devices \[0, 1\], wanted one"):
        relu(1, x, y, 4)
    with pytest.raises(ValueError, match="device"):
        gpc.Tensor(x) + gpc.Tensor(y)


OPS = {
    **{name: getattr(ops, name) for name in FUNCTIONS if name != "log"},
    **{f.__name__: f for f in (ops.softmax, ops.log_softmax, ops.global_avg_pool2d,
                               ops.global_max_pool2d, ops.sum, ops.mean, ops.max)},
    "max_pool": lambda x: ops.max_pool2d(x, 2), "avg_pool": lambda x: ops.avg_pool2d(x, 2),
    "pad": lambda x: ops.pad2d(x, 1, "reflect"),
    "dropout": lambda x: ops.dropout(x, 0.5, key=(1, 2), step=3),
    "arithmetic": lambda x: 1 - 2 / (x * x + 3) + -x, "slice": lambda x: x[1:, :2, ..., 0],
    "transpose": lambda x: x.transpose(3, 2, 1, 0), "reshape": lambda x: x.reshape(2, -1),
    "im2col": lambda x: ops.im2col(x, 3),
    "conv": lambda x: ops.conv2d(x, x[:, :3, :3], x[0, 0, 0, :2], padding=1),
    "linear": lambda x: ops.linear(x, x[0, 0, :3], x[0, 0, :3, 0]),
    "matmul": lambda x: x @ x.transpose(0, 1, 3, 2),
    "bias_relu": lambda x: ops.bias_relu(x, x[0, 0, 0]),
    "batch_norm": lambda x: ops.batch_norm(x, None, None, None, None, training=True),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_and_its_gradient_stay_on_their_device(name, rng):
    x = rng.standard_normal((2, 6, 6, 4)).astype("float32")
    results = []
    for device in (FIRST, SECOND):
        y, pull = gpc.vjp(OPS[name], asarray(x, device))
        gx, = pull(y)
        assert device_name(y) == device_name(gx) == device
        results.append((y, gx))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(host(one), host(two))


def test_where_the_maxima_sat_is_told_there():
    x = asarray(np.random.default_rng(0).standard_normal((1, 4, 4, 2)), SECOND)
    _, where = ops.max_pool2d(x, 2, return_indices=True)
    assert device_name(where) == SECOND


def test_tensors_there():
    t = gpc.Tensor(asarray(np.ones((2, 3)), SECOND), requires_grad=True)
    (t * t).sum().backward()
    assert device_name(t.grad) == SECOND and t.grad.get().tolist() == [[2] * 3] * 2
    t.zero_grad()
    t.data = asarray(np.zeros((2, 3)), SECOND)
    assert t.sum().item() == 0 and not t.numpy().any()
    gpc.gradcheck(lambda x: (x * x).sum(), asarray(np.ones((2, 3)), SECOND))
    value, (g,) = gpc.value_and_grad(lambda x: (x * x).sum())(t.data)
    assert device_name(value) == device_name(g) == SECOND


def test_a_bad_label_there_is_reported():
    logits = gpc.Tensor(asarray(np.zeros((2, 3), "float32"), SECOND))
    loss = ops.softmax_cross_entropy(logits, asarray(np.array([0, 9]), SECOND))
    with pytest.raises(ValueError, match="label 9 is outside"):
        loss.item()
    assert [len(word) for word in backend._words.values()][-1] == 3
    logits.numpy()  # raised once


# -- modules and optimisers ----------------------------------------------------------------


def test_a_module_moves():
    model = net().to(SECOND)
    assert model.device == SECOND and {device_name(a) for a in model.state_dict().values()} == {
        SECOND}
    model(asarray(IMAGES[:2].astype("float32"), SECOND)).sum().backward()
    for init_ in (init.he_normal_, init.zeros_, init.ones_):
        init_(model[0].weight)
    twin = copy.deepcopy(model)
    assert twin.device == SECOND
    twin.load_state_dict(net().to(FIRST).state_dict())
    assert twin.to(FIRST).device == FIRST == device_name(twin[0].weight.grad)
    assert twin.to("cpu", "float16").device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        gpc.save(f"{folder}/a.safetensors", model.state_dict())


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_an_optimiser_holds_groups_on_two_devices(kind, rng):
    x = rng.standard_normal((5, 4)).astype("float32")
    layers = [nn.Linear(4, 3) for _ in range(3)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    places = FIRST, SECOND, SECOND
    for layer, device in zip(layers, places, strict=True):
        layer.to(device)
        layer(asarray(x, device)).sum().backward()  # a gradient that is packed, too
    optimizer = kind([{"params": [*layers[0].parameters(), *layers[1].parameters()]},
                      {"params": layers[2].parameters(), "lr": 0.1}], lr=0.1)
    assert [[flat.data.device.id for flat in flats] for flats in optimizer.flats] == [[0, 1], [1]]

    def same():
        first, *others = ([host(p.data) for p in layer.parameters()] for layer in layers)
        for other in others:
            for a, b in zip(first, other, strict=True):
                np.testing.assert_array_equal(a, b)

    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        same()
        for layer, device in zip(layers, places, strict=True):
            layer(asarray(x, device)).sum().backward()
    state = optimizer.state_dict()
    for device in ("cpu", FIRST, SECOND):
        optimizer.load_state_dict({name: asarray(a, device) for name, a in state.items()})
    optimizer.step()
    same()
    with pytest.raises(ValueError, match="cuda:0 and cuda:1"):
        optim.clip_grad_norm(optimizer, 1.0)
    with pytest.raises(RuntimeError, match="an optimiser holds"):
        layers[0].to(SECOND)
    optimizer.release()
    assert [layer.to(FIRST).device for layer in layers] == [FIRST] * 3


# -- data and training ---------------------------------------------------------------------


def test_a_data_set_there():
    there = data.Dataset(asarray(IMAGES, SECOND), asarray(LABELS, SECOND), tuple("abcde"), "x")
    here = data.Dataset(IMAGES, LABELS, tuple("abcde"), "x")
    assert there.fingerprint == here.fingerprint and (there.mean == here.mean).all()
    assert len(there[asarray(np.arange(3), SECOND)]) == 3 == len(there[3:6])
    moved = there[::2].to(FIRST)
    assert device_name(moved.images) == device_name(moved.labels) == FIRST
    with pytest.raises(ValueError, match="label 9"):
        data.Dataset(there.images, asarray(LABELS * 0 + 9, SECOND), tuple("abcde"), "x")
    loaders = [data.Loader(d, 8, augment=data.Augment()) for d in (here, there)]
    for (x, y), (u, v) in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        assert device_name(u) == device_name(v) == SECOND
        np.testing.assert_array_equal(x, host(u))
        np.testing.assert_array_equal(y, host(v))


@pytest.fixture(scope="module")
def reference():
    model, history = fit(FIRST)
    return {name: host(a) for name, a in model.state_dict().items()}, history.last.train.loss


@pytest.mark.parametrize("place", ["cpu", FIRST, SECOND])
def test_training_there_gives_the_same_bits(reference, place):
    model, history = fit(SECOND, asarray(IMAGES, place), asarray(LABELS, place))
    assert model.device == SECOND and history.last.train.loss == reference[1]
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(host(a), reference[0][name])


@pytest.mark.parametrize("kind, dtype", [(optim.Adam, "float32"), (optim.SGD, "float16")])
def test_training_there_otherwise(kind, dtype):
    images = asarray(IMAGES.astype(dtype), SECOND)
    model, _ = fit(SECOND, images, asarray(LABELS, SECOND), kind=kind, dtype=dtype)
    train.evaluate(model, (host(images), LABELS))
    assert device_name(model.predict(images)) == SECOND
    found = train.predictions(model, data.Dataset(IMAGES, LABELS, tuple("abcde"), "x"))
    assert found.logits.shape == (20, 5)


def test_a_scaled_run_there_launch_by_launch():
    """Losses, skips and scales are copied where they are: copy() alone is to the current device."""
    seen = []

    class Watch(train.Callback):
        def on_step(self, run):
            seen.extend(device_name(a) for row in run.tally.pending.rows for a in row)

    histories = [fit(device, dtype="float16", eager=True, loss_scale=64.0, callbacks=[Watch()])[1]
                 for device in (FIRST, SECOND)]
    assert histories[0].last.train == histories[1].last.train and {*seen} == {FIRST, SECOND}
    assert seen.count(FIRST) == seen.count(SECOND)


def test_what_is_queued_on_another_device_is_fetched_there():
    queue = train.measure.ResultQueue()
    with fake_cupy.cuda.Device(1):
        there = fake_cupy.ones(()), fake_cupy.full((), 2)
    queue.add(3, *there, fake_cupy.zeros(()), fake_cupy.ones(()))
    assert queue.fetch() == [train.measure.BatchResult(3, 1.0, 2, 0.0, 1.0)]


def test_a_run_there_goes_on_to_the_same_bits(tmp_path, reference):
    class Stop(train.Callback):
        def on_step(self, run):
            run.stop = run.step == 2

    fit(SECOND, callbacks=[Stop(), train.Checkpoint(tmp_path)])
    model, history = fit(SECOND, resume=tmp_path)
    assert history.last.train.loss == reference[1]
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(host(a), reference[0][name])


def test_forecasts_there():
    model = net().to(SECOND)
    assert train.memory.predict(model, (8, 8, 3), 8).peak > 0
    assert "Conv2d" in str(nn.summary(model, (8, 8, 3)))
    assert backend.free_memory(SECOND) > 0
