"""A second optimiser over the same parameters takes them over; the first then refuses to work."""

import numpy as np
import pytest

import gpuconv as gpc
from gpuconv.optim import EMA, SGD, Adam, AdamW, LossScale, Muon, StepDecay, clip_grad_norm
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


# -- all or nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("grad, error, message", [
    (np.zeros(9), ValueError, r"ndarray float64 \(9,\), wanted shape \(2, 3, 3, 2\)"),
    (np.zeros((3, 3, 2)), ValueError, r"\(3, 3, 2\), wanted shape \(2, 3, 3, 2\)"),
    (np.zeros(()), ValueError, r"\(\), wanted shape"),
    (np.ma.zeros((2, 3, 3, 2)), TypeError, "MaskedArray, wanted an array"),
    (np.zeros((2, 3, 3, 2)).tolist(), TypeError, "list, wanted an array"),
    (1.0, TypeError, "float, wanted an array"),
    (np.zeros((2, 3, 3, 2), complex), TypeError, "complex128 .*, wanted real numbers"),
    (np.full((2, 3, 3, 2), "1.5"), TypeError, "<U3 .*, wanted real numbers"),
    (np.zeros((2, 3, 3, 2), object), TypeError, "object .*, wanted real numbers"),
])
def test_a_bad_gradient_is_refused_and_nothing_taken_over(rng, grad, error, message):
    ps = parameters(np, rng)
    first = SGD(ps, 0.5)
    own, ps[2].grad = ps[2].grad, grad
    values = [p.data.copy() for p in ps]
    for new in (lambda: AdamW(ps), lambda: AdamW([{"params": ps[:2]}, {"params": ps[2:]}])):
        with pytest.raises(error, match=f"AdamW: grad of parameter 2 is .*{message}"):
            new()
    ps[2].grad = own
    assert all(p.holder is first.flats[0][0] for p in ps)
    first.step()
    assert all((p.data != value).any() for p, value in zip(ps, values, strict=True))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", ">f4"])
def test_a_gradient_of_another_dtype_is_converted(rng, dtype):
    p = gpc.Parameter(np.zeros((4, 3), "float32"))
    p.grad = np.eye(4, 3).astype(dtype)
    SGD([p], 0.5)
    assert p.grad.dtype == "float32" and (p.grad == np.eye(4, 3)).all()


def test_a_gradient_elsewhere_is_refused(cp):
    p = gpc.Parameter(cp.zeros(3, "float32"))
    p.grad = np.zeros(3, "float32")
    with pytest.raises(ValueError, match="SGD: grad of parameter 0 is on cpu, wanted cuda:0"):
        SGD([p], 0.5)
    assert p.holder is None


@pytest.mark.parametrize("after", range(6))
def test_no_memory_for_the_second_group_leaves_the_first_optimiser_usable(rng, monkeypatch, after):
    """Each allocation fails in turn: data and grad of two groups, the controls, the counts."""
    ps = parameters(np, rng)
    first = SGD(ps, 0.5)
    values, calls = [p.data.copy() for p in ps], []
    made = np.zeros

    def zeros(*arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise MemoryError("no memory")
        return made(*arguments, **options)

    with monkeypatch.context() as m:
        m.setattr(np, "zeros", zeros)
        with pytest.raises(MemoryError):
            AdamW([{"params": ps[:2]}, {"params": ps[2:]}])
    assert len(calls) == after + 1 and all(p.holder is first.flats[0][0] for p in ps)
    first.step()
    assert all((p.data != value).any() for p, value in zip(ps, values, strict=True))


@pytest.mark.parametrize("how", ["released", "deleted"])
def test_what_to_do_is_true_after_the_new_one_is_gone(rng, how):
    ps = parameters(np, rng)
    first, second = SGD(ps, 0.5), SGD(ps, 0.5)
    if how == "released":
        second.release()
    del second
    with pytest.raises(RuntimeError, match="or make a new one"):
        first.step()
    SGD(ps, 0.5).step()


# -- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, flag", [
    (SGD, "nesterov"), (SGD, "master"), (Adam, "master"), (AdamW, "master"), (Muon, "nesterov"),
    (Muon, "orthogonal"), (Muon, "normalize"), (Muon, "master")])
@pytest.mark.parametrize("value", ["no", None, 0, 1.0, [True], np.ones(1, bool)], ids=repr)
def test_a_flag_is_a_bool(kind, flag, value):
    p = gpc.Parameter(np.ones((2, 2), "float32"))
    options = dict(lr=0.5) if kind in (Adam, AdamW) else dict(lr=0.5, momentum=0.5)
    message = f"{kind.__name__}: {flag} is .*, wanted True or False"
    with pytest.raises(TypeError, match=message):
        kind([p], **options, **{flag: value})
    assert p.holder is None
    for good in (True, False, np.bool_(True)):
        optimizer = kind([p], **options, **{flag: good})
        optimizer.step()
    if flag != "master":
        with pytest.raises(TypeError, match=message):
            kind([{"params": p, flag: value}], **options)
        optimizer.groups[0][flag] = value
        with pytest.raises(TypeError, match=message):
            optimizer.step()


def test_warmup_of_averages_is_a_bool():
    with pytest.raises(TypeError, match="EMA: warmup is 'no', wanted True or False"):
        EMA(small(), warmup="no")


def test_a_state_whose_flag_was_a_number_still_loads():
    optimizer = SGD([gpc.Parameter(np.ones(2))], 0.5, momentum=0.5)
    optimizer.load_state_dict(optimizer.state_dict() | {"group.0.nesterov": np.array(1.0)})
    assert optimizer.groups[0]["nesterov"] is True
    with pytest.raises(TypeError, match=r"nesterov is 2\.0, wanted True or False"):
        optimizer.load_state_dict(optimizer.state_dict() | {"group.0.nesterov": np.array(2.0)})
    assert optimizer.groups[0]["nesterov"] is True


@pytest.mark.parametrize("bad, error", [
    (float("nan"), ValueError), (float("inf"), ValueError), (-1, ValueError), ([1, -1], ValueError),
    ([1, float("nan")], ValueError), (list(range(100_000)), ValueError), (10**400, ValueError),
    (np.zeros(3), ValueError), ("5", TypeError), ("55", TypeError), (b"ab", TypeError),
    ({0.5, 0.25}, TypeError), ({1: 1, 2: 2}, TypeError), (None, TypeError), ([1, None], TypeError),
    ([1, "5"], TypeError), (True, TypeError), (np.ones((2, 2)), TypeError)],
    ids=lambda value: repr(value)[:20])
def test_a_factor_is_a_number_or_one_for_each_group(rng, bad, error):
    a, b, c = parameters(np, rng)
    sgd = SGD([{"params": [a, b]}, {"params": c}], 0.1)
    sgd.factor = 0.5
    with pytest.raises(error, match="SGD: factor.* is .*wanted") as caught:
        sgd.factor = bad
    assert len(str(caught.value)) < 200
    assert sgd.factors == (0.5, 0.5) and sgd.table[:, 0].tolist() == [0.5, 0.5]


def test_right_factors(rng):
    a, b, c = parameters(np, rng)
    sgd = SGD([{"params": [a, b]}, {"params": c}], 0.1)
    for value, want in ((np.array(0.5), (0.5, 0.5)), (np.float32(0.25), (0.25, 0.25)),
                        (0, (0, 0)), ((1, 2), (1, 2)), (np.float16([1, 3]), (1, 3))):
        sgd.factor = value
        assert sgd.factors == want and sgd.table[:, 0].tolist() == list(want)


def test_messages_and_texts_are_short():
    p = gpc.Parameter(np.ones(2))
    long = "k" * 10_000
    with pytest.raises(ValueError, match="SGD: group 0 has params, kk") as caught:
        SGD([{"params": p, long: 1}], 0.1)
    assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="unexpected kk") as caught:
        SGD([p], 0.1).load_state_dict({long: 1})
    assert len(str(caught.value)) < 500


def test_the_text_of_a_schedule_is_short():
    points = tuple(i / 1000 for i in range(1000))
    assert len(repr(StepDecay(at=points))) < 200
    for some in ((), (0.5,), (0.5, 0.75), points[:10]):
        assert eval(repr(StepDecay(some, 0.5)), {"StepDecay": StepDecay}) == StepDecay(some, 0.5)
