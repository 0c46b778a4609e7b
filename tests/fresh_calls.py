"""A call of each public name, for test_fresh.py.

Run as a program it does each call twice in a forked child of its own, whose parent has imported
what ``import gpuconv`` imports and nothing else, and prints those whose results differ.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import pathlib
import signal
import sys

import numpy as np

import gpuconv as gpc

PLACE = pathlib.Path(sys.argv[1]) if __name__ == "__main__" else None  # holds what ``prepare`` made
RUN = PLACE and PLACE / "runs" / "one"
NET = "INPUT 8x8x3 CONV3-4/4 BN RELU FC 10"
DTYPES = ("float32", "bfloat16")
NUMBERS = itertools.count()


def a(*shape, dtype="float32"):
    """Numbers that are different, small and not zero; bfloat16 comes out of a file."""
    numbers = np.random.default_rng(7).uniform(0.5, 1.5, shape).astype("float32")
    if dtype == "float32":
        return numbers
    return gpc.load(PLACE / "array")[0]["a"].reshape(-1)[:numbers.size].reshape(shape)


def new():
    """A folder that nobody has used."""
    return PLACE / f"new-{os.getpid()}-{next(NUMBERS)}"


def runs():
    from gpuconv import runs
    return runs


def image(dtype="float32"):
    return a(2, 8, 8, 4, dtype=dtype)


def net(dtype="bfloat16"):
    return gpc.models.build({"notation": NET}).to(dtype)


def data(n=20):
    images = np.random.default_rng(3).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return gpc.data.Dataset(images, np.arange(n, dtype=np.int32) % 10, tuple("abcdefghij"), "made")


def config():
    return runs().Config(model={"notation": NET}, source=gpc.data.Source("npz", str(
        PLACE / "set.npz")), settings=gpc.train.Settings(
            epochs=1, batch_size=10, crop=1), dtype="bfloat16", recipe="fresh")


def fit(dtype="bfloat16", kind="SGD", callbacks=(), **more):
    """Weights and losses of a training."""
    model = net(dtype)
    optimizer = getattr(gpc.optim, kind)(model.parameters(), lr=0.01, master=True)
    history = gpc.train.fit(model, data(), test=data(10), epochs=2, batch_size=10,
                            optimizer=optimizer, callbacks=callbacks, **more)
    return model, optimizer.state_dict(), [(row.train, row.test) for row in history.rows]


def train_run():
    folder = runs().RunFolder.create(config(), new())
    outcome = runs().train(folder.config(), folder)
    return gpc.load(folder.best())[0], outcome.history.last.test, folder.status()


def layer_by_layer():
    with gpc.nn.fusion.disabled():
        return net().predict(a(3, 8, 8, 3, dtype="bfloat16"))


def quiet(f):
    with contextlib.redirect_stdout(io.StringIO()):
        return f()


def command(*words, told=True):
    """(exit status, what it prints) of a command."""
    from gpuconv.cli import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue() if told else "", err.getvalue()


def step(kind, dtype, **more):
    """The state of an optimiser and its parameter after a step."""
    p = gpc.Parameter(a(4, 3, dtype=dtype))
    optimizer = getattr(gpc.optim, kind)([p], lr=0.1, **more)
    p.grad[...] = 1
    optimizer.step()
    return p, optimizer.state_dict()


def gradient(f, *arrays):
    """The result of an op, and the gradient of its first input."""
    x, *others = (gpc.Tensor(array, requires_grad=not number) for number, array in
                  enumerate(arrays))
    y = f(x, *others)
    y.backward(np.ones_like(y.data))
    return y, x.grad


def module(make, dtype):
    """What a layer gives, and the gradients of its parameters."""
    layer = make().to(dtype)
    y = layer(gpc.Tensor(image(dtype), requires_grad=True))
    y.backward(np.ones_like(y.data))
    return layer, y, [p.grad for p in layer.parameters()]


OPS = {  # name in gpuconv.ops: the function on arrays of a dtype
    **{name: lambda T, name=name: gradient(getattr(gpc.ops, name), image(T))
       for name in gpc.ops.elementwise.FUNCTIONS},
    "add": lambda T: gradient(lambda x: gpc.ops.add(x, 1), image(T)),
    "avg_pool2d": lambda T: gradient(lambda x: gpc.ops.avg_pool2d(x, 2), image(T)),
    "batch_norm": lambda T: gpc.ops.batch_norm(image(T), a(4, dtype=T), a(4, dtype=T), a(4), a(4),
                                               training=True),
    "bias_relu": lambda T: gradient(lambda x: gpc.ops.bias_relu(x, a(4, dtype=T)), image(T)),
    "recompute": lambda T: gradient(lambda x: gpc.ops.recompute(gpc.ops.relu, x), image(T)),
    "col2im": lambda T: gpc.ops.col2im(gpc.ops.im2col(image(T), 3), (2, 8, 8, 4), 3),
    "conv2d": lambda T: gradient(gpc.ops.conv2d, image(T), a(6, 3, 3, 4, dtype=T)),
    "conv_batch_norm": lambda T: gpc.ops.conv_batch_norm(
        image(T), a(4, 3, 3, 4, dtype=T), a(4, dtype=T), a(4, dtype=T), a(4), a(4), training=True),
    "conv_max_pool": lambda T: gradient(gpc.ops.conv_max_pool, image(T), a(6, 3, 3, 4, dtype=T)),
    "div": lambda T: gradient(lambda x: gpc.ops.div(x, 3), image(T)),
    "dropout": lambda T: gpc.ops.dropout(image(T), 0.5, training=True),
    "flatten": lambda T: gradient(gpc.ops.flatten, image(T)),
    "getitem": lambda T: gradient(lambda x: gpc.ops.getitem(
        x, (slice(1, None), 2)), image(T)),
    "global_avg_pool2d": lambda T: gradient(gpc.ops.global_avg_pool2d, image(T)),
    "global_max_pool2d": lambda T: gradient(gpc.ops.global_max_pool2d, image(T)),
    "im2col": lambda T: gradient(lambda x: gpc.ops.im2col(x, 3), image(T)),
    "linear": lambda T: gradient(gpc.ops.linear, a(5, 8, dtype=T), a(3, 8, dtype=T)),
    "log_softmax": lambda T: gradient(gpc.ops.log_softmax, a(5, 8, dtype=T)),
    "matmul": lambda T: gradient(gpc.ops.matmul, a(5, 8, dtype=T), a(8, 3, dtype=T)),
    "max": lambda T: gradient(gpc.ops.max, image(T)),
    "max_pool2d": lambda T: gradient(lambda x: gpc.ops.max_pool2d(x, 2), image(T)),
    "mean": lambda T: gradient(gpc.ops.mean, image(T)),
    "mul": lambda T: gradient(lambda x: gpc.ops.mul(x, 2), image(T)),
    "pad2d": lambda T: gradient(lambda x: gpc.ops.pad2d(x, 1), image(T)),
    "reshape": lambda T: gradient(lambda x: gpc.ops.reshape(x, (2, -1)), image(T)),
    "softmax": lambda T: gradient(gpc.ops.softmax, a(5, 8, dtype=T)),
    "softmax_cross_entropy": lambda T: gradient(
        lambda x: gpc.ops.softmax_cross_entropy(x, np.arange(5)), a(5, 8, dtype=T)),
    "sub": lambda T: gradient(lambda x: gpc.ops.sub(x, 1), image(T)),
    "sum": lambda T: gradient(gpc.ops.sum, image(T)),
    "transpose": lambda T: gradient(gpc.ops.transpose, image(T)),
}
LAYERS = {  # name in gpuconv.nn: makes one that takes images of 8x8x4
    **{layer.__name__: functools.partial(lambda name: getattr(gpc.nn, name)(), layer.__name__)
       for layer in gpc.nn.layers.ACTIVATION_LAYERS},
    "AvgPool2d": lambda: gpc.nn.AvgPool2d(2),
    "BatchNorm2d": lambda: gpc.nn.BatchNorm2d(4), "Conv2d": lambda: gpc.nn.Conv2d(4, 6, 3),
    "Dropout": lambda: gpc.nn.Dropout(0.5), "Flatten": lambda: gpc.nn.Flatten(),
    "GlobalAvgPool2d": lambda: gpc.nn.GlobalAvgPool2d(),
    "GlobalMaxPool2d": lambda: gpc.nn.GlobalMaxPool2d(), "Identity": lambda: gpc.nn.Identity(),
    "MaxPool2d": lambda: gpc.nn.MaxPool2d(2),
    "Linear": lambda: gpc.nn.Sequential(gpc.nn.Flatten(), gpc.nn.Linear(256, 3)),
    "ModuleList": lambda: gpc.nn.ModuleList([gpc.nn.Conv2d(4, 6, 3)])[0],
    "Residual": lambda: gpc.nn.Residual(gpc.nn.Conv2d(4, 4, 3, padding=1)),
    "Scale": lambda: gpc.nn.Scale(0.5),
    "Sequential": lambda: gpc.nn.Sequential(gpc.nn.Conv2d(4, 6, 3), gpc.nn.BatchNorm2d(6)),
}
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Muon")
CALLS = {
    "gpuconv.Parameter": lambda: gpc.Parameter(a(3, dtype="bfloat16")),
    "gpuconv.Tensor": lambda: (gpc.Tensor(a(2, 2)) @ a(2, 2) + 1) * 2,
    "gpuconv.asarray": lambda: [gpc.asarray([1.0, 2.0]), gpc.asarray(gpc.Tensor(a(3)))],
    "gpuconv.device_info": lambda: gpc.device_info(),
    "gpuconv.get_array_module": lambda: gpc.get_array_module(a(2)).__name__,
    "gpuconv.gradcheck": lambda: gpc.gradcheck(gpc.ops.tanh, a(3).astype("float64")),
    "gpuconv.load": lambda: gpc.load(PLACE / "array"),
    "gpuconv.no_grad": lambda: [gpc.no_grad().__enter__(), gpc.Parameter(a(2)) * 2],
    "gpuconv.save": lambda: [gpc.save(PLACE / "new", net().state_dict()),
                             gpc.load(PLACE / "new")],
    "gpuconv.seed": lambda: [gpc.seed(5), gpc.nn.Linear(2, 2)],
    "gpuconv.to_cpu": lambda: gpc.to_cpu([1.0]),
    "gpuconv.to_gpu": lambda: type(gpc.to_gpu(a(2))).__name__,
    "gpuconv.value_and_grad": lambda: gpc.value_and_grad(lambda x: (x * x).sum())(a(3)),
    "gpuconv.vjp": lambda: gpc.vjp(gpc.ops.relu, a(3))[1](a(3)),
    "gpuconv.ops.load_table": lambda: gpc.ops.load_table(PLACE / "none.json"),
    "gpuconv.nn.Module": lambda: [net().predict(a(3, 8, 8, 3, dtype="bfloat16")), net().dtype],
    "gpuconv.nn.init": lambda: [getattr(gpc.nn.init, name)(p := gpc.Parameter(
        a(4, 4, dtype="bfloat16"))) or p for name in ("he_normal_", "ones_", "glorot_uniform_")],
    "gpuconv.nn.SavedBuffers": lambda: gpc.nn.SavedBuffers(net()).put_back(),
    "gpuconv.nn.fusion": lambda: layer_by_layer(),
    "gpuconv.nn.nvtx_ranges": lambda: gpc.nn.nvtx_ranges(net()).__enter__(),
    "gpuconv.nn.summary": lambda: [str(found := gpc.nn.summary(net(), (8, 8, 3))),
                                   found.table() is None],
    "gpuconv.optim.EMA": lambda: gpc.optim.EMA(net()).state_dict(),
    "gpuconv.optim.LossScale": lambda: gpc.optim.LossScale(
        gpc.optim.SGD(net().parameters(), lr=1)).state_dict(),
    "gpuconv.optim.clip_grad_norm": lambda: gpc.optim.clip_grad_norm(
        gpc.optim.SGD(net().parameters(), lr=1), 1.0),
    "gpuconv.data.Augment": lambda: list(gpc.data.Loader(
        data(), 10, augment=gpc.data.Augment(pad=1), dtype="bfloat16").epoch(0)),
    "gpuconv.data.Dataset": lambda: [data().mean, data().fingerprint, data()[3:5].labels],
    "gpuconv.data.Loader": lambda: list(gpc.data.Loader(data(), 10, dtype="bfloat16").epoch(0)),
    "gpuconv.data.Source": lambda: gpc.data.Source.from_options(
        PLACE / "set.npz").load()[0].fingerprint,
    "gpuconv.data.augment_batch": lambda: gpc.data.augment_batch(
        data().images, np.arange(4, dtype=np.int32), mean=[0.5] * 3, std=[0.2] * 3,
        dtype="bfloat16"),
    "gpuconv.data.cifar10": lambda: gpc.data.cifar10(PLACE),
    "gpuconv.data.cifar10_path": lambda: gpc.data.cifar10_path(PLACE),
    "gpuconv.data.cifar10_places": lambda: list(gpc.data.cifar10_places()),
    "gpuconv.data.folder": lambda: [part.fingerprint for part in gpc.data.folder(PLACE / "images")],
    "gpuconv.data.npz": lambda: [part.fingerprint for part in gpc.data.npz(PLACE / "set.npz")],
    "gpuconv.data.read_image": lambda: gpc.data.read_image(PLACE / "images" / "a" / "0.png", 8),
    "gpuconv.data.shapes": lambda: gpc.data.shapes(20, 10)[0].fingerprint,
    "gpuconv.train.Checkpoint": lambda: fit(callbacks=[gpc.train.Checkpoint(
        new())]),
    "gpuconv.train.EarlyStopping": lambda: fit(callbacks=[gpc.train.EarlyStopping(1)]),
    "gpuconv.train.Group": lambda: gpc.train.Group(("weight",), lr=1.0),
    "gpuconv.train.Interrupt": lambda: fit(callbacks=[gpc.train.Interrupt()]),
    "gpuconv.train.Progress": lambda: quiet(lambda: fit(callbacks=[gpc.train.Progress()])),
    "gpuconv.train.MetricsFiles": lambda: fit(callbacks=[gpc.train.MetricsFiles(PLACE)]),
    "gpuconv.train.Settings": lambda: gpc.train.Settings(ema=0.9).fit_arguments(net()).keys(),
    "gpuconv.train.TensorBoard": lambda: fit(callbacks=[gpc.train.TensorBoard(PLACE / "events")]),
    "gpuconv.train.checkpoints": lambda: gpc.train.checkpoints(RUN / "checkpoints"),
    "gpuconv.train.evaluate": lambda: gpc.train.evaluate(net(), data()),
    "gpuconv.train.fit": lambda: fit(),
    "gpuconv.train.newest": lambda: gpc.train.newest(RUN / "checkpoints"),
    "gpuconv.train.predictions": lambda: gpc.train.predictions(
        net(), data(), views="mirror").probabilities,
    "gpuconv.train.read_metrics": lambda: gpc.train.read_metrics(RUN).rows,
    "gpuconv.train.weights": lambda: gpc.train.weights(gpc.load(PLACE / "array")[0]),
    "gpuconv.models.build": lambda: net(),
    "gpuconv.models.cifar_convnet": lambda: gpc.models.cifar_convnet().to("bfloat16"),
    "gpuconv.models.describe": lambda: gpc.models.describe("simple_convnet", classes=3),
    "gpuconv.models.input_shape": lambda: gpc.models.input_shape({"notation": NET}),
    "gpuconv.models.plan": lambda: gpc.models.plan({"notation": NET}).weights,
    "gpuconv.models.simple_convnet": lambda: gpc.models.simple_convnet().to("bfloat16"),
    "gpuconv.models.speedrun": lambda: gpc.models.speedrun().to("bfloat16"),
    "gpuconv.runs.Config": lambda: [config().check(), runs().Config.read(
        RUN / "config.json")],
    "gpuconv.runs.RunFolder": lambda: [(folder := runs().RunFolder(RUN)).status(),
                                       folder.history().rows, folder.tta_result()],
    "gpuconv.runs.check_data": lambda: runs().check_data(config(), *config().source.load()),
    "gpuconv.runs.check_place": lambda: runs().check_place(PLACE, config().source),
    "gpuconv.runs.environment": lambda: runs().environment(),
    "gpuconv.runs.find": lambda: [run.path for run in runs().find(RUN.parent)],
    "gpuconv.runs.load": lambda: runs().load(RUN).probabilities(data().images),
    "gpuconv.runs.locked": lambda: runs().locked(PLACE).__enter__(),
    "gpuconv.runs.newest": lambda: runs().newest(RUN.parent).path,
    "gpuconv.runs.sets_in": lambda: [type(found).__name__ for found in runs().sets_in(
        config().source, config(), None)],
    "gpuconv.runs.summary": lambda: runs().summary([runs().Timing(0, 1.0, 0.5)]),
    "gpuconv.runs.timed": lambda: [one.accuracy for one in runs().timed(
        config(), config().source.load(), 1)],
    "gpuconv.runs.train": train_run,
    "gpuconv.runs.write_timings": lambda: [runs().write_timings(
        PLACE / "t.json", config(), [runs().Timing(0, 1.0, 0.5)]), (PLACE / "t.json").read_text()],
    "gpuconv train": lambda: command(
        "train", "--data", PLACE / "set.npz", "--model", NET, "--epochs", 1, "--device", "cpu",
        "--dtype", "bfloat16", "--crop", 1, "--run", new(), told=False),
    "gpuconv train --resume": lambda: command("train", "--resume", RUN, told=False),
    "gpuconv evaluate": lambda: command("evaluate", RUN, "--device", "cpu"),
    "gpuconv predict": lambda: command("predict", RUN, PLACE / "images/a/0.png"),
    "gpuconv summary": lambda: command("summary", "--model", NET, "--dtype", "bfloat16"),
    "gpuconv report": lambda: command("report", RUN, "--device", "cpu", "--output",
                                      PLACE / "report.html"),
    "gpuconv runs": lambda: command("runs", RUN.parent),
    "gpuconv data": lambda: command("data", PLACE / "set.npz"),
    "gpuconv info": lambda: command("info"),
    "gpuconv bench": lambda: command("bench", "--help"),  # it measures time
    "gpuconv tune": lambda: command("tune", "--device", "cpu", "--output", PLACE / "tuned.json"),
}
CALLS |= {f"gpuconv.ops.{name} {T}": lambda f=f, T=T: f(T) for name, f in OPS.items()
          for T in DTYPES}
CALLS |= {f"gpuconv.nn.{name} {T}": lambda make=make, T=T: module(make, T)
          for name, make in LAYERS.items() for T in DTYPES}
CALLS |= {f"gpuconv.optim.{kind} {T}": lambda kind=kind, T=T: step(kind, T, master=T != DTYPES[0])
          for kind in OPTIMIZERS for T in DTYPES}

EXEMPT = {  # by reason
    "modules": ["gpuconv.data", "gpuconv.models", "gpuconv.nn", "gpuconv.ops", "gpuconv.optim",
                "gpuconv.reference", "gpuconv.train"],
    "base classes, and what other calls take or return": [
        "gpuconv.ops.tuned", "gpuconv.nn.Activation", "gpuconv.nn.Summary",
        "gpuconv.optim.Constant", "gpuconv.optim.Cosine", "gpuconv.optim.Linear",
        "gpuconv.optim.OneCycle",
        "gpuconv.optim.StepDecay", "gpuconv.optim.Flat", "gpuconv.optim.Optimizer",
        "gpuconv.train.VIEWS", "gpuconv.train.Callback", "gpuconv.train.Epoch",
        "gpuconv.train.History", "gpuconv.train.Metrics", "gpuconv.train.Predictions",
        "gpuconv.train.Run", "gpuconv.models.MODELS", "gpuconv.models.Speedrun",
        "gpuconv.runs.Outcome", "gpuconv.runs.Timing", "gpuconv.runs.Trained",
        "gpuconv.runs.Sets", "gpuconv.runs.TtaResult"],
}


# -- results -------------------------------------------------------------------------------


def plain(value):
    """A value that can be compared with ==."""
    if isinstance(value, gpc.Tensor):
        return plain(value.data)
    if isinstance(value, gpc.nn.Module):
        return plain(value.state_dict())
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.name, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: plain(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inside) for inside in value]
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name))
                for field in dataclasses.fields(value)}
    return repr(value)


def once(call):
    """What it gives or raises, with fresh random numbers."""
    gpc.seed(0)
    try:
        return plain(call())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def twice(name):
    """How the two results differ, or ""."""
    first, second = once(CALLS[name]), once(CALLS[name])
    expected = ("gpuconv.to_gpu", "gpuconv.nn.nvtx_ranges", "gpuconv.ops.load_table",
                "gpuconv.data.cifar10", "gpuconv.data.cifar10_path")  # no GPU, no such file
    if first == second and not (isinstance(first, str) and "Error: " in first
                                and name not in expected):
        return ""
    return f"{name}: first {str(first)[:300]}, then {str(second)[:300]}\n"


def prepare():
    """Make files and a run, all of bfloat16."""
    from PIL import Image
    net = gpc.models.build({"notation": NET}).to("bfloat16")
    numbers = np.random.default_rng(7).uniform(0.5, 1.5, 600).astype(net.dtype)
    gpc.save(PLACE / "array", {"a": numbers})
    np.savez(PLACE / "set.npz", images=data(30).images, labels=data(30).labels)
    for name in "ab":
        (PLACE / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(data().images[number]).save(PLACE / "images" / name / f"{number}.png")
    runs().train(config(), runs().RunFolder.create(config(), RUN))


def child(work, write):
    """Do it in a child; its exit status is not 0 if it fails."""
    if pid := os.fork():
        return pid
    try:
        signal.alarm(120)
        os.write(write, work().encode())
        os._exit(0)
    except BaseException as error:
        os.write(write, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def serve(names):
    """Print what differs."""
    read, write = os.pipe()
    os.waitpid(child(lambda: prepare() or "", write), 0)
    running = []
    for name in names:
        if len(running) > 1:
            os.waitpid(running.pop(0), 0)
        running.append(child(lambda name=name: twice(name), write))
    for pid in running:
        os.waitpid(pid, 0)
    os.close(write)
    with open(read) as said:
        print(said.read(), end="")


if __name__ == "__main__":
    serve(sys.argv[2:] or CALLS)
