"""Which engine computes a convolution: the rule, tables that say otherwise, and captures."""

import dataclasses
import json
import re
import threading

import numpy as np
import pytest
from conftest import ampere
from test_streams import fresh, same  # noqa: F401  # fresh is a fixture

from check import close, host
from gpuconv import autograd, backend, nn, ops, optim
from gpuconv.ops.conv import gpu_dispatch, gpu_mma
from gpuconv.ops.conv.tuning_table import Algorithm, Table, here, load_table, tuned
from gpuconv.ops.window import ConvShape, Window
from hostcuda import compiler, fake_cupy

CONV = ConvShape(2, 8, 8, 16, 8, Window((3, 3), pad=((1, 1), (1, 1))))
DIRECTIONS = "forward", "dgrad", "wgrad"


@pytest.fixture
def cp(cp):
    """cupy with tensor cores, or the stand-in."""
    return ampere(cp)


@pytest.fixture
def computed(monkeypatch):
    """(direction, algorithm) of what is computed, in order."""
    seen, dispatch = [], gpu_dispatch.dispatch

    def noting(direction, *how):
        seen.append((direction, dispatch(direction, *how)))
        return seen[-1][1]

    monkeypatch.setattr(gpu_dispatch, "dispatch", noting)
    return seen


# -- the rule ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, precision, architecture, changes, engine", [
    ("float16", "ieee", 80, {}, "tensor_cores"), ("bfloat16", "ieee", 90, {}, "tensor_cores"),
    ("float32", "ieee", 90, {}, "simt"), ("float32", "tf32", 90, {}, "tensor_cores"),
    ("float64", "tf32", 90, {}, "simt"), ("float16", "ieee", 75, {}, "simt"),
    ("float32", "tf32", 75, {}, "simt"), ("float16", "ieee", 90, dict(groups=4), "simt"),
    ("float16", "tf32", 120, dict(window=Window((3, 3), dilation=(2, 2))), "tensor_cores"),
])
def test_the_engine_follows_from_dtype_precision_and_architecture(
        dtype, precision, architecture, changes, engine):
    for direction in DIRECTIONS:
        chosen = gpu_dispatch.default_algorithm(
            direction, dataclasses.replace(CONV, **changes), backend.float_dtype(dtype),
            precision, architecture)
        assert chosen.engine == engine
        assert (chosen.tile is None) == (engine == "simt")
        assert (chosen.splits is None) == (engine == "simt" or direction != "wgrad")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_candidates_begin_with_the_default_and_are_different(direction):
    for dtype, precision in (("float16", "ieee"), ("float32", "tf32"), ("float64", "ieee")):
        args = direction, CONV, backend.float_dtype(dtype), precision, 90
        found = list(gpu_dispatch.candidates(*args))
        assert found[0] == gpu_dispatch.default_algorithm(*args) and len(set(found)) == len(found)
        assert {c.engine for c in found} == (
            {"simt"} if dtype == "float64" else {"tensor_cores", "simt"})


@pytest.mark.parametrize("f", [
    lambda: ops.conv2d(np.ones((1, 3, 3, 1)), np.ones((1, 1, 1, 1)), precision="fast"),
    lambda: ops.linear(np.ones((1, 3)), np.ones((1, 3)), precision="fast"),
    lambda: ops.conv_batch_norm(np.ones((1, 3, 3, 1)), np.ones((1, 1, 1, 1)), *[None] * 4,
                                training=True, precision="fast"),
    lambda: nn.Conv2d(1, 1, 1, precision="fast"), lambda: nn.Linear(1, 1, precision="fast"),
], ids=["conv2d", "linear", "conv_batch_norm", "Conv2d", "Linear"])
def test_unknown_precision(f):
    with pytest.raises(ValueError, match="precision is 'fast', wanted 'ieee' or 'tf32'"):
        f()


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(3, 4, 3, precision="tf32"), (2, 5, 5, 3)),
    (nn.Linear(6, 4, precision="tf32"), (3, 6))], ids=["conv", "linear"])
def test_precision_is_kept_and_means_nothing_on_the_cpu(rng, layer, shape):
    assert layer.precision == "tf32" and "precision='tf32'" in repr(layer)
    x = rng.standard_normal(shape).astype("float32")
    before = layer(x).data
    layer.precision = "ieee"
    np.testing.assert_array_equal(layer(x).data, before)
    assert "precision" not in repr(layer)


@pytest.mark.parametrize("dtype, precision, engine", [
    ("float32", "ieee", "simt"), ("float32", "tf32", "tensor_cores"),
    ("float16", "ieee", "tensor_cores")])
def test_layers_run_so(cp, rng, computed, dtype, precision, engine):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, precision=precision), nn.Flatten(),
                          nn.Linear(32, 8, precision=precision)).to("cuda", dtype)
    x = cp.asarray(rng.standard_normal((2, 4, 4, 8)).astype(dtype))
    y = model(autograd.Tensor(x, requires_grad=True))
    y.backward(cp.ones(y.shape, dtype))
    assert [(direction, chosen.engine) for direction, chosen in computed] == [
        (d, engine) for d in ("forward", "forward", *DIRECTIONS[1:] * 2)]


def test_tf32_rounds_the_factors(cp):
    w = cp.ones((1, 1, 1, 1), "float32")
    x = w + np.float32(2.0**-12)
    assert host(ops.conv2d(x, w)).item() == 1 + 2.0**-12
    assert host(ops.conv2d(x, w, precision="tf32")).item() == 1


# -- tables --------------------------------------------------------------------------------


def table(*entries, **where):
    return Table(here() | where, dict(entries))


def entry(direction, *timed, p=CONV, dtype="float16", precision="ieee"):
    return (direction, p, dtype, precision), list(timed)


OTHER = Algorithm("tensor_cores", gpu_mma.TILES[0])  # not the default of CONV


def arrays(cp, rng):
    return [cp.asarray(rng.standard_normal(s).astype("float16"))
            for s in ((2, 8, 8, 16), (8, 3, 3, 16))]


def test_a_table_decides_and_only_inside(cp, rng, computed):
    x, w = arrays(cp, rng)
    with tuned(table(entry("forward", (OTHER, 2.0), (Algorithm("simt"), 1.0)))):
        y = ops.conv2d(x, w, padding=1)
        ops.conv2d(x, w)  # another problem
        ops.conv2d(x, w, padding=1, activation="relu")
    ops.conv2d(x, w, padding=1)
    assert [c.engine for _, c in computed] == ["simt", "tensor_cores", "simt", "tensor_cores"]
    close(y, host(ops.conv2d(x.get(), w.get(), padding=1)), terms=144)


def test_a_table_belongs_to_a_thread_and_nests(cp, rng, computed):
    x, w = arrays(cp, rng)

    def chosen():
        ops.conv2d(x, w, padding=1)
        return computed[-1][1]

    usual = chosen()
    with tuned(table(entry("forward", (OTHER, 1.0)))):
        with tuned(table(entry("forward", (Algorithm("simt"), 1.0)))):
            assert chosen() == Algorithm("simt")
        assert chosen() == OTHER
        other = []
        thread = threading.Thread(target=lambda: other.append(chosen()))
        thread.start(), thread.join()
        assert other == [usual] != [OTHER] and chosen() == OTHER
        with pytest.raises(KeyError), tuned(table()):
            raise KeyError
        assert chosen() == OTHER


def test_a_table_is_a_file(cp, tmp_path):
    tile = gpu_mma.TILES[0]
    before = table(entry("wgrad", (Algorithm("simt"), 0.5),
                         (Algorithm("tensor_cores", tile, 4), 0.25)))
    before.save(tmp_path / "t.json")
    after = load_table(tmp_path / "t.json")
    assert after.entries == before.entries and after.where == here()
    key, = after.entries
    assert after.find(key) == [Algorithm("tensor_cores", tile, 4), Algorithm("simt")]
    assert type(after.find(key)[0].tile) is type(tile)
    assert after.hash == before.hash and len(after.hash) == 64
    assert table().hash != after.hash
    after.check()


def test_a_table_of_an_older_version(tmp_path):
    """Its names of directions and sizes, and candidates of an engine that is gone."""
    sizes = dict(N=2, H=9, W=8, C=16, K=8, R=3, S=2, P=3, Q=7, stride=[2, 1], pad=[-1, 0],
                 dilation=[1, 1], groups=1)
    explicit, simt = (dict(engine=engine, tile=None, splits=None, milliseconds=ms)
                      for engine, ms in (("explicit", 1.0), ("simt", 2.0)))
    told = {"format": "gpuconv tuned", "version": 1, "device": "d", "architecture": 90,
            "cupy": "14", "nvrtc": "13", "entries": [
                {"direction": direction, "dtype": "float16", "precision": "ieee", "problem": sizes,
                 "candidates": candidates} for direction, candidates in (
                     ("forward", [simt]), ("input_gradient", [explicit, simt]),
                     ("weight_gradient", [explicit]))]}
    (tmp_path / "t.json").write_text(json.dumps(told))
    found = load_table(tmp_path / "t.json")
    assert [(direction, *more, found.find((direction, shape, *more)))
            for direction, shape, *more in found.entries] == [
        ("forward", "float16", "ieee", [Algorithm("simt")]),
        ("dgrad", "float16", "ieee", [Algorithm("simt")]), ("wgrad", "float16", "ieee", [])]
    shape, = {shape for _, shape, *_ in found.entries}
    assert (shape.x_shape, shape.w_shape, shape.y_shape) == ((2, 9, 8, 16), (8, 3, 2, 16),
                                                             (2, 3, 7, 8))
    assert shape.window.pad == ((-1, -1), (0, 0)) and shape.window.stride == (2, 1)
    found.save(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    told["entries"][1]["candidates"], told["entries"][2]["candidates"] = [simt], []
    assert again == told


@pytest.mark.parametrize("change", [
    dict(device="elsewhere"), dict(cupy="0.0", nvrtc="0.0"), dict(architecture=1)])
def test_a_table_of_elsewhere(cp, change):
    is_here = here()
    differs = "; ".join(f"{name} {value}, here {is_here[name]}" for name, value in change.items())
    message = re.escape(f"measured elsewhere ({differs}): run ") + ".*gpuconv tune here"
    with pytest.raises(ValueError, match=message), tuned(table(**change)):
        pass


@pytest.mark.parametrize("text, message", [
    ("{", "t.json: damaged: it is no JSON: .* tune again"),
    ("[]", "is no tuned table: run .* tune"),
    ("{}", "is no tuned table: run .* tune"),
    (json.dumps({"format": "gpuconv tuned", "version": 2}), "of version 2, wanted 1: run .* tune"),
    (json.dumps({"format": "gpuconv tuned", "version": 1}), "damaged .*no 'device'"),
    (json.dumps({"format": "gpuconv tuned", "version": 1, "device": "", "architecture": 90,
                 "cupy": "", "nvrtc": "", "entries": [{"problem": {}, "direction": "up"}]}),
     r"damaged tuned table \(.*N")])
def test_what_is_no_table(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "t.json")


# -- captured ------------------------------------------------------------------------------

cp_only = pytest.mark.skipif(backend._cupy is not fake_cupy or not compiler(),
                             reason="wants the stand-in, and g++")


def net(dtype, precision):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False, precision=precision), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, precision=precision), nn.GELU(), nn.Flatten(),
        nn.Linear(72, 5, precision=precision)).to("cuda", dtype)


def run(cp, captured, dtype, precision):
    """Losses and parameters after three steps with other data each."""
    backend.asarray(np.zeros(1), "cuda")
    rng, model = np.random.default_rng(3), net(dtype, precision)
    model.load_state_dict({name: a * 0 + cp.asarray(
        np.abs(rng.standard_normal(a.shape)).astype(a.dtype)) / 8 for name, a in
        model.state_dict().items() if a.dtype.name == dtype or a.dtype.kind == "f"} | {
        name: a for name, a in model.state_dict().items() if a.dtype.kind == "i"})
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, labels, losses = cp.zeros((3, 8, 8, 3), dtype), cp.zeros(3, "int32"), []

    def step():
        loss = ops.softmax_cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.data

    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.get_current_stream().synchronize()
    with stream:
        losses.append(float(step()))  # warms up
        if captured:
            with cp.cuda.using_allocator(pool.malloc):
                stream.begin_capture()
                loss = step()
                graph = stream.end_capture()
        for _ in range(2):
            x[...] = cp.asarray(rng.standard_normal(x.shape).astype(dtype))
            labels[...] = cp.asarray(rng.integers(0, 5, 3).astype("int32"))
            if captured:
                graph.launch()
            losses.append(float(loss if captured else step()))
        return [*losses, *(host(a) for a in model.state_dict().values())]


@cp_only
@pytest.mark.parametrize("dtype, precision", [("float32", "ieee"), ("float16", "ieee"),
                                              ("float32", "tf32")])
def test_a_captured_step_is_the_eager_one(cp, dtype, precision):
    same(run(cp, True, dtype, precision), run(cp, False, dtype, precision))
