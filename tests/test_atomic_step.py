"""A step of training counts as a whole or not at all, wherever an error or a signal ends it."""

import contextlib
import functools
import math
import pathlib
import random as draws
import signal
import sys

import numpy as np
import pytest
from test_checkpoint import StopAt, told
from test_train import place

import gpuconv
from gpuconv import backend, nn, optim, random, train
from gpuconv.train import Callback, Checkpoint, Interrupt, fit
from gpuconv.train import step as steps
from hostcuda import compiler, fake_cupy

ROOT = str(pathlib.Path(gpuconv.__file__).parent)
STEPS, EPOCHS = 3, 2
# a file that is open when a trace function raises between a block and its end
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
needs_cuda = pytest.mark.skipif(backend._cupy is fake_cupy and not compiler(),
                                reason="neither a GPU nor g++")


class Counting(nn.Module):
    """Adds batches up in buffers of its own: one in place, one replaced; no graph can hold that."""

    def __init__(self):
        self.register_buffer("total", np.zeros((), "float64"))
        self.register_buffer("batches", np.zeros(3, "int32"))

    def forward(self, x):
        if self.training:
            with backend.array_device(self.total):
                self.total += x.data.sum(dtype="float64")
                if backend.is_gpu(x.data):
                    self.batches += 1
                else:
                    self.batches = self.batches + 1
        return x


OPTIMIZERS = {
    "sgd": lambda ps: optim.SGD([dict(params=ps[:2]), dict(params=ps[2:], lr=0.02)], 0.05,
                                momentum=0.9, master=ps[0].dtype == "float16"),
    "adam": lambda ps: optim.Adam([dict(params=ps[2:]), dict(params=ps[:2])], 0.01,
                                  master=ps[0].dtype == "float16"),
    "muon": lambda ps: optim.Muon([dict(params=[p for p in ps if p.ndim > 1]),
                                   dict(params=[p for p in ps if p.ndim == 1], orthogonal=False)],
                                  0.02)}
CASES = [dict(kind="sgd", dtype="float32"), dict(kind="adam", dtype="float16"),
         dict(kind="muon", dtype="float32"), dict(kind="sgd", dtype="float16", ema=False)]


def wild(dtype):
    """Images of which one overflows a convolution in float16: its step is skipped."""
    x = np.random.default_rng(3).standard_normal((12, 4, 4, 1))
    if dtype == "float16":
        x[5] = 65504
    return x.astype(dtype), np.arange(12) % 3


class Job:
    """A run that can be watched: two epochs of three steps.

    Attributes:
        run: of ``fit``, once it has begun.
        after: {(epoch, step): state after that step}, if it is to be noted.
    """

    def __init__(self, folder=None, *, kind="sgd", dtype="float32", ema=True, device="cpu",
                 callbacks=(), tested=True, **more):
        random.seed(1)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Counting(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3)).to(device, dtype)
        self.optimizer = OPTIMIZERS[kind](list(self.model.parameters()))
        self.ema = optim.EMA(self.model, 0.9) if ema else None
        self.run, self.after, self.history = None, {(0, 0): self.state()}, None
        job = self

        class Watch(Callback):
            passive = True

            def on_fit_start(self, run):
                job.run = run

            def on_step(self, run):
                job.after[run.epoch, run.step] = job.state()

        self.how = dict(
            epochs=EPOCHS, batch_size=4, seed=3, optimizer=self.optimizer, ema=self.ema,
            test=(wild("float32")[0][:4].astype(dtype), np.arange(4) % 3) if tested else None,
            schedule=optim.OneCycle(), clip_norm=1.0,
            callbacks=[Watch(), *callbacks, *([Checkpoint(folder)] if folder else [])]) | more
        self.data = wild(dtype)

    def start(self):
        self.history = fit(self.model, self.data, **self.how)
        return self

    def state(self):
        """All bits of model, optimiser, averages and loss scale."""
        found = {f"{part}/{name}": a for part in ("model", "optimizer", "ema")
                 if (its := getattr(self, part)) for name, a in its.state_dict().items()}
        if getattr(self, "run", None) and self.run.scale:
            found |= {f"scale/{name}": a for name, a in self.run.scale.state_dict().items()}
        return {name: np.asarray(backend.to_cpu(a)).tobytes() for name, a in found.items()}


@functools.cache
def whole(**how):
    """A job that nobody disturbs."""
    return Job(**how).start()


def differs(got, want):
    """Names of what is not the same; a loss scale is there from the first step on."""
    return [name for name in {**got, **want} if got.get(name) != want.get(name)
            and not (name.startswith("scale/") and name not in want)]


class Raising:
    """A trace function: at the k-th line of gpuconv, counted from 1, it calls ``then``.

    Not in the files that hold locks: it can raise between the end of a ``with`` block and the
    release of its lock, where Python runs no handler of a signal.
    """

    locks = "threads.py", "memory.py"

    def __init__(self, k=math.inf, then=None):
        self.k, self.then, self.lines = k, then, 0

    def __call__(self, frame, event, arg):
        file = frame.f_code.co_filename
        if not file.startswith(ROOT) or file.endswith(self.locks):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.k:
                sys.settrace(None)
                self.then()
        return self

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)


@functools.cache
def lines(**how):
    """How many lines of gpuconv a job executes."""
    with Raising() as counted:
        Job(**how).start()
    return counted.lines


def interrupted(folder, trap, how, signals=False):
    """A job that an error ends somewhere, after a callback has stopped it: so it is saved.

    Args:
        folder: of its checkpoints.
        trap: gets a function that raises the error, or sends SIGINT twice; gives a context manager.
        how: arguments of the job.
    """
    job = Job(folder, **how, callbacks=[Interrupt()] if signals else [])

    def spring():
        for _ in range(2 * signals):
            signal.raise_signal(signal.SIGINT)
        if not signals:
            if job.run:
                job.run.stop = True
            raise MemoryError("all of it")

    with contextlib.suppress(KeyboardInterrupt, MemoryError), trap(spring):
        job.start()
    return job


def check(job, folder, how):
    """The job is whole, and goes on to the bits of one that nobody has disturbed."""
    want, run = whole(**how), job.run
    if run is None:
        assert not differs(job.state(), want.after[0, 0])
        return
    at = (run.epoch, run.step) if run.step else (max(0, run.epoch - 1), STEPS * (run.epoch > 1))
    if len(run.history.rows) < EPOCHS or not job.ema:  # else the model may carry the averages
        assert not differs(job.state(), want.after[at]), at
    if len(run.history.rows) < EPOCHS and train.checkpoints(folder):
        again = Job(folder, **how, resume=folder).start()
        assert not differs(again.state(), want.state())
        assert told(again.history) == told(want.history)


def ended_at_any_line(tmp_path, how, signals, samples):
    count, draw = lines(**how), draws.Random(f"{how} {signals}")
    for k in draw.sample(range(1, count + 1), samples):
        job = interrupted(tmp_path / str(k), functools.partial(Raising, k), how, signals)
        check(job, tmp_path / str(k), how)


named = pytest.mark.parametrize("how", CASES, ids=lambda how: " ".join(map(str, how.values())))


@named
def test_an_error_may_come_at_any_line(tmp_path, how):
    ended_at_any_line(tmp_path, how, signals=False, samples=1)


@named
def test_so_may_a_second_signal(tmp_path, how):
    ended_at_any_line(tmp_path, how, signals=True, samples=1)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [False, True], ids=["errors", "signals"])
@named
def test_either_at_very_many_lines(tmp_path, how, signals):
    ended_at_any_line(tmp_path, how, signals, samples=200)


def trap_in(owner, name, call, after):
    """A trap that springs in the given call of a function, before or after what it does."""
    @contextlib.contextmanager
    def trap(spring):
        calls, function = [], getattr(owner, name)

        def trapped(*args, **more):
            calls.append(name)
            if len(calls) == call and not after:
                spring()
            found = function(*args, **more)
            if len(calls) == call and after:
                spring()
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, trapped)
            yield
        assert len(calls) >= call

    return trap


PLACES = {  # where a step is cut: owner, name, and which of its calls is in the fourth step
    "forward": (nn.Sequential, "forward", 5), "backward": (gpuconv.Tensor, "backward", 4),
    "second group": (optim.SGD, "update", 8), "averages": (optim.ema, "update_cpu", 4),
    "between both": (optim.EMA, "update", 4), "clip": (steps, "clip_grad_norm", 4),
    "rate": (train.callback.Run, "learning_rate", 4), "read": (train.callback.Run, "read", 7),
}


@pytest.mark.parametrize("signals, after", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("place", PLACES)
def test_cut_in_the_middle_of_a_step(tmp_path, place, signals, after):
    """Two of three steps stand at these places: a save reads too, and a test goes forward."""
    owner, name, call = PLACES[place]
    job = interrupted(tmp_path, trap_in(owner, name, call, after), CASES[0], signals)
    assert (job.run.epoch, job.run.step) in {(1, 3), (2, 0), (2, 1)}
    assert train.checkpoints(tmp_path)
    check(job, tmp_path, CASES[0])


# -- on a GPU ------------------------------------------------------------------------------


def cuda(**how):
    return dict(kind="adam", dtype="float16", device="cuda") | how


@needs_cuda
@pytest.mark.parametrize("owner, name, call, eager, at", [
    pytest.param(optim.Adam, "update", 4, True, (1, 1), id="launch by launch"),
    pytest.param(optim.Adam, "update", 2, False, (0, 0), id="before the graph"),
    pytest.param(steps.CapturedStep, "count_step", 4, False, (2, 1), id="after a graph")])
def test_cut_on_a_gpu(cp, tmp_path, owner, name, call, eager, at):
    """The launch of a graph cannot be undone: then the step counts."""
    job = interrupted(tmp_path, trap_in(owner, name, call, False), cuda(eager=eager))
    assert (job.run.epoch, job.run.step) == at if name == "count_step" else job.run.step == at[1]
    assert not differs(job.state(), whole(**cuda(eager=False)).after[at])


class Spoil(Callback):
    """After a step all images are NaN."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run):
        if run.step == self.step:
            x = run.data.images
            with backend.array_device(x):
                x.fill(math.nan)


@pytest.mark.parametrize("loss_scale, eager", [
    (1, True), (1, False), (1024.0, False), ("dynamic", False)])
def test_a_loss_that_is_nan_has_changed_nothing(xp, eager, loss_scale):
    """On a GPU two more steps are launched before the host looks. A dynamic scale may fall."""
    job = Job(device=place(xp), tested=False, epochs=1, eager=eager, loss_scale=loss_scale, seed=4,
              callbacks=[Spoil(3)])
    job.data = np.random.default_rng(3).standard_normal((24, 4, 4, 1)).astype(
        "float32"), np.arange(24) % 3
    if loss_scale == "dynamic":
        assert job.start().history.rows[0].skipped == 3
    else:
        with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 4 of 6"):
            job.start()
        assert job.run.step == 3 and job.run.tally.count == 12
    want = job.after[1, 3]
    if loss_scale == "dynamic":  # the run has ended well, and the model carries the averages
        job.after[1, 3] = {k: v for k, v in want.items() if not k.startswith("model/")}
        found = {k: v for k, v in job.state().items() if not k.startswith("model/")}
        assert {k.split("/")[0] for k in differs(found, job.after[1, 3])} == {"scale"}
    else:
        assert {k.split("/")[0] for k in differs(job.state(), want)} <= {"scale"}  # its counter
    assert backend.to_cpu(job.optimizer.control)[2] == 0  # the optimiser is free again


def test_a_label_without_a_logit_has_changed_nothing(xp):
    job = Job(device=place(xp), tested=False)
    job.data = wild("float32")[0], np.int32([0, 1, 2, 0] * 2 + [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"label 3 is outside 0\.\.2"):
        job.start()
    at = (1, job.run.step) if job.run.step else (0, 0)  # on a GPU the third step has halted it
    assert not differs(job.state(), job.after[at])


@pytest.mark.parametrize("kind, eager", [
    ("sgd", None), ("adam", None), pytest.param("adam", True, marks=pytest.mark.slow),
    pytest.param("muon", None, marks=pytest.mark.slow)])
def test_a_step_that_is_skipped_changes_nothing_but_the_scale(xp, kind, eager):
    """Buffers least of all: the image that overflows has gone through them."""
    skipped = 0

    class Look(Callback):
        def on_step(self, run):
            nonlocal skipped
            now, before = job.after[run.epoch, run.step], last.pop()
            last.append(now)
            changed = {name for name in differs(now, before)  # zeros may be made: none, as well
                       if name in before or any(now[name])}
            if changed <= {"scale/scale", "scale/counter"}:
                skipped += 1
            else:
                assert "model/1.running_mean" in changed and "model/3.total" in changed

    job = Job(kind=kind, dtype="float16", device=place(xp), callbacks=[Look()], eager=eager,
              tested=False)
    last = [job.after[0, 0]]
    job.start()
    assert skipped == sum(row.skipped for row in job.history.rows) > 0
    assert all(np.isfinite(backend.to_cpu(a).astype("float64")).all()
               for a in job.model.state_dict().values())


# -- what surrounds the steps ----------------------------------------------------------------


def test_a_resume_that_is_cut_leaves_all_as_it_was(tmp_path, monkeypatch):
    Job(tmp_path, callbacks=[StopAt(2)]).start()
    job = Job(tmp_path)
    load = optim.EMA.load_state_dict

    def broken(self, state):
        load(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(optim.EMA, "load_state_dict", broken)
    with pytest.raises(KeyboardInterrupt):
        fit(job.model, job.data, **job.how | dict(resume=tmp_path))
    assert not differs(job.state(), job.after[0, 0])


def test_so_does_prepare(monkeypatch):
    job = Job()

    def prepare(images):
        job.model[0].weight.data[...] = 1
        raise KeyboardInterrupt

    vars(job.model)["prepare"] = prepare
    with pytest.raises(KeyboardInterrupt):
        job.start()
    assert not differs(job.state(), job.after[0, 0])


def test_an_update_of_ones_own_is_whole_too(rng, monkeypatch):
    """Without ``fit``: an error in the second group, or when some averages have moved."""
    job = Job()
    for p in job.model.parameters():
        p.grad[...] = rng.standard_normal(p.shape)
    fresh = job.state()

    def spring():
        raise MemoryError

    def half(floats, others, updates, *_):
        updates += 1
        floats[0][0][...] = 7
        raise MemoryError

    with pytest.raises(MemoryError), trap_in(optim.SGD, "update", 2, False)(spring):
        job.optimizer.step()
    assert not differs(job.state(), fresh)  # there is no momentum, either
    job.optimizer.step()
    monkeypatch.setattr(optim.ema, "update_cpu", half)
    before = job.state()
    with pytest.raises(MemoryError):
        job.ema.update(job.optimizer)
    assert not differs(job.state(), before) and differs(before, fresh)
