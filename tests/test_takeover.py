"""A second optimiser over the same parameters takes them over; the first then refuses to work."""

import numpy as np
import pytest

import gpuconv as gpc
from gpuconv.optim import EMA, SGD, AdamW, LossScale, Muon, clip_grad_norm
from gpuconv.train import Callback, fit


def host(a):
    return a.get() if hasattr(a, "get") else a


def parameters(xp, rng, dtype="float32"):
    ps = [gpc.Parameter(xp.asarray(rng.standard_normal(shape).astype(dtype)))
          for shape in ((4, 3), (5,), (2, 3, 3, 2))]
    for p in ps:
        p.grad = xp.asarray(rng.standard_normal(p.shape).astype(dtype))
    return ps


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_and_gradients_are_kept_exactly(xp, rng, dtype):
    ps = parameters(xp, rng, dtype)
    first = SGD(ps, 0.5, momentum=0.9)
    first.step()
    values, grads = ([host(a).copy() for a in some] for some in (
        [p.data for p in ps], [p.grad for p in ps]))
    second = SGD(ps, 0.25)
    for p, value, grad in zip(ps, values, grads, strict=True):
        assert host(p.data).tobytes() == value.tobytes()
        assert host(p.grad).tobytes() == grad.tobytes()
    second.step()
    for p, value, grad in zip(ps, values, grads, strict=True):
        want = (value.astype("float32") - np.float32(0.25) * grad.astype("float32")).astype(dtype)
        np.testing.assert_array_equal(host(p.data), want)
    del first  # what is left of it takes nothing along
    before = [host(p.data).copy() for p in ps]
    second.zero_grad()
    second.step()
    for p, value in zip(ps, before, strict=True):
        np.testing.assert_array_equal(host(p.data), value)


def uses(optimizer, module):
    return {
        "step": optimizer.step, "zero_grad": optimizer.zero_grad,
        "state_dict": optimizer.state_dict,
        "load_state_dict": lambda: optimizer.load_state_dict({}),
        "clip_grad_norm": lambda: clip_grad_norm(optimizer, 1.0),
        "LossScale": lambda: LossScale(optimizer),
        "EMA: update": lambda: EMA(module).update(optimizer),
        "fit": lambda: fit(module, (np.ones((4, 1, 1, 3), "float32"), [0, 1, 0, 1]), epochs=1,
                           batch_size=2, optimizer=optimizer)}


def small(device="cpu"):
    return gpc.nn.Sequential(gpc.nn.Flatten(), gpc.nn.Linear(3, 4), gpc.nn.Linear(4, 2)).to(device)


@pytest.mark.parametrize("use", ["step", "zero_grad", "state_dict", "load_state_dict",
                                 "clip_grad_norm", "LossScale", "EMA: update", "fit"])
def test_the_old_one_raises_and_changes_nothing(xp, use):
    module = small("cpu" if xp is np else "cuda")
    first = SGD(module.parameters(), 0.1, momentum=0.5)
    second = AdamW(module.parameters())
    before = {name: host(a).copy() for name, a in module.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"{use}: an optimiser that was made later has taken "
                                           r"over 4 of the parameters \(one of shape \(4, 3\)\)"):
        uses(first, module)[use]()
    for name, a in module.state_dict().items():
        np.testing.assert_array_equal(host(a), before[name])
    uses(second, module)[use]() if use not in ("load_state_dict", "fit") else second.step()


def test_a_part_of_the_parameters(xp, rng):
    a, b, c = parameters(xp, rng)
    first = SGD([a, b, c], 0.5)
    second = SGD([{"params": b}], 0.5)
    with pytest.raises(RuntimeError, match=r"taken over 1 of the parameters \(one of shape \(5,\)"):
        first.step()
    values = [host(p.data).copy() for p in (a, b, c)]
    third = SGD([a, c], 0.5)
    second.step()
    third.step()
    for p, value in zip((a, b, c), values, strict=True):
        np.testing.assert_array_equal(host(p.data), value - np.float32(0.5) * host(p.grad))


def test_release_of_the_old_one_leaves_the_new_one_alone(xp, rng):
    a, b, _ = ps = parameters(xp, rng)
    first, second = SGD(ps, 0.5), SGD([a], 0.5)
    first.release()
    assert a.holder is second.flats[0][0] and b.holder is None
    second.step()


def test_averages_follow_the_new_one(xp):
    module = small("cpu" if xp is np else "cuda")
    first = SGD(module.parameters(), 0.5)
    ema = EMA(module, decay=0.0, warmup=False)
    ema.update(first)
    second = Muon([{"params": [p], "orthogonal": p.ndim > 1} for p in module.parameters()], 0.5)
    for p in module.parameters():
        p.grad.fill(1)
    second.step()
    ema.update(second)
    for name, a in module.state_dict().items():  # with a decay of 0 they are the weights
        np.testing.assert_array_equal(host(ema.averages[name]), host(a))


def test_a_scale_of_the_old_one(rng):
    ps = parameters(np, rng)
    scaler = LossScale(SGD(ps, 0.5))
    SGD(ps, 0.5)
    with pytest.raises(RuntimeError, match="LossScale: check: .* taken over"):
        scaler.check()


def test_a_callback_that_makes_another_optimiser_ends_the_run(cp):
    """On a GPU steps are captured: the graph must not go on with the old buffers."""
    class Again(Callback):
        def on_step(self, run):
            if run.step == 4:
                self.other = SGD(run.model.parameters(), 0.1)

    module, again = small("cuda"), Again()
    x = np.ones((16, 1, 1, 3), "float32")
    with pytest.raises(RuntimeError, match="taken over"):
        fit(module, (x, [0, 1] * 8), epochs=2, batch_size=2, callbacks=[again],
            optimizer=SGD(module.parameters(), 0.1))


def test_a_cell_run_twice_gives_what_it_gives_once():
    x = np.random.default_rng(0).standard_normal((8, 1, 1, 3)).astype("float32")

    def cell(module):
        optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
        fit(module, (x, [0, 1] * 4), epochs=2, batch_size=4, optimizer=optimizer)
        return optimizer

    gpc.seed(1)
    module = small()
    optimizer = cell(module)
    twin = small()
    twin.load_state_dict(module.state_dict())
    kept = optimizer  # as a notebook keeps the name until the cell ends
    optimizer = cell(module)
    cell(twin)
    assert kept is not optimizer
    for name, a in module.state_dict().items():
        np.testing.assert_array_equal(a, twin.state_dict()[name])


def test_an_optimiser_that_is_refused_takes_nothing_over(rng):
    ps = parameters(np, rng)
    first = SGD(ps, 0.5)
    for bad in (dict(params=ps, lr=float("nan")), dict(params=[*ps, ps[0]], lr=1.0),
                dict(params=[*ps, None], lr=1.0)):
        with pytest.raises((TypeError, ValueError), match="SGD"):
            SGD(**bad)
    first.step()
