"""Standing around the layers of a model, and leaving no trace."""

import copy
import pickle

import numpy as np
import pytest

from gpuconv import nn, random
from gpuconv.nn import fusion
from gpuconv.nn.observed import Fused, calls, kind, observed, untouched


def model():
    return nn.Sequential(nn.Residual(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()),
                         nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3))


IMAGES = np.ones((2, 4, 4, 2), "float32")


def noting(calls, name=""):
    def around(path, module, forward, *inputs):
        calls.append((name + path, type(module).__name__))
        y = forward(*inputs)
        calls.append((name + path, y.shape))
        return y
    return around


def traces(net):
    return [name for module in net.modules() for name in vars(module) if name == "forward"]


def test_it_stands_around_every_call_in_order():
    calls = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    with observed(net, noting(calls)):
        net(IMAGES)
    assert calls == [("", "Sequential"), ("0", "Flatten"), ("0", (2, 32)), ("1", "Linear"),
                     ("1", (2, 3)), ("", (2, 3))]


def test_layers_that_run_as_one_op_are_one_call():
    seen, net = [], model()

    def around(path, module, forward, *inputs):
        seen.append((path, kind(module), [type(x).__name__ for x in inputs]))
        if path == "0.body.1+0.body.2":
            assert isinstance(module, Fused)
            assert module.layers == (net[0].body[1], net[0].body[2])
        return forward(*inputs)

    with observed(net, around):
        net(IMAGES)
    assert [(path, name) for path, name, _ in seen] == [
        ("", "Sequential"), ("0", "Residual"), ("0.body", "Sequential"), ("0.body.0", "Conv2d"),
        ("0.body.1+0.body.2", "BatchNorm2d+ReLU"), ("1", "Flatten"), ("2", "Dropout"),
        ("3", "Linear")]
    assert all(kinds == ["Tensor"] for *_, kinds in seen)


def test_a_residual_in_a_chain_that_is_planned_as_a_whole_is_its_sum():
    seen, net = [], nn.Sequential(nn.Residual(nn.BatchNorm2d(2), nn.Scale(2.0)), nn.ReLU())

    def around(path, module, forward, *inputs):
        seen.append((path, kind(module)))
        return forward(*inputs)

    with fusion.planned_for("cuda"), observed(net, around):
        net(IMAGES)
    assert seen == [("", "Sequential"), ("0.body.0", "BatchNorm2d"), ("0.body.1", "Scale"),
                    ("0", "Residual"), ("1", "ReLU")]


def test_calls_are_the_paths_in_order():
    net = model().eval()
    assert ["+".join(paths) for paths in calls(net, IMAGES)] == [
        "", "0", "0.body", "0.body.0", "0.body.1+0.body.2", "1", "2", "3"]
    assert not traces(net)


def test_what_around_gives_for_a_fused_op_is_its_value():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()).eval()
    want = net(IMAGES).numpy()
    with observed(net, lambda path, module, forward, *inputs:
                  forward(*inputs) * (3 if "+" in path else 1)):
        np.testing.assert_array_equal(net(IMAGES).numpy(), 3 * want)


def test_contexts_around_parts_of_a_fused_op_nest():
    order, net = [], nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()).eval()
    with observed(net, noting(order, "outer ")), observed(net[1], noting(order, "inner ")):
        net(IMAGES)
    assert [call for call in order if isinstance(call[1], str)] == [
        ("outer ", "Sequential"), ("inner ", "ReLU"), ("outer 0+1", "Fused")]


def test_a_forward_set_by_hand_is_called_and_stays():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()).eval()
    net[1].forward = lambda x: x * 5
    want = net(IMAGES).numpy()
    with observed(net, noting([])):
        np.testing.assert_array_equal(net(IMAGES).numpy(), want)
    np.testing.assert_array_equal(net(IMAGES).numpy(), want)
    assert traces(net) == ["forward"]


def test_what_around_gives_is_what_the_module_gives():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    with observed(net, lambda path, module, forward, *inputs:
                  forward(*inputs) * 2 if path == "0" else forward(*inputs)):
        assert net(IMAGES).numpy()[0, 0, 0, 0] == 2
    assert net(IMAGES).numpy()[0, 0, 0, 0] == 1


def test_a_module_that_is_called_twice_is_seen_twice():
    relu, calls = nn.ReLU(), []
    net = nn.Sequential(relu, relu)
    with observed(net, noting(calls)):
        net(IMAGES)
    assert [path for path, what in calls if what == "ReLU"] == ["0", "0"]


def test_contexts_nest_and_end_one_by_one():
    calls, net = [], nn.Sequential(nn.ReLU())
    with observed(net, noting(calls, "outer ")):
        with observed(net[0], noting(calls, "inner ")):
            net(IMAGES)
        assert [who for who, what in calls if isinstance(what, str)] == [
            "outer ", "inner ", "outer 0"]
        del calls[:]
        net(IMAGES)
        assert [who for who, what in calls if isinstance(what, str)] == ["outer ", "outer 0"]
    assert not traces(net)


def test_after_an_error_the_model_is_as_before():
    net = model()

    def around(path, module, forward, *inputs):
        if path == "2":
            raise KeyError("no")
        return forward(*inputs)

    with pytest.raises(KeyError), observed(net, around):
        net(IMAGES)
    assert not traces(net)
    net(IMAGES)


def test_afterwards_it_pickles_and_copies_as_before():
    net = model().eval()
    before, want = pickle.dumps(net), net(IMAGES).numpy()
    with observed(net, noting([])):
        net(IMAGES)
    net[1].volume = None
    assert pickle.dumps(model().eval()) != b"" and len(pickle.dumps(net)) <= len(before)
    np.testing.assert_array_equal(copy.deepcopy(net)(IMAGES).numpy(), want)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net))(IMAGES).numpy(), want)


def test_a_copy_made_meanwhile_computes_with_its_own_weights():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    with observed(net, noting([])):
        twin = copy.deepcopy(net)
        twin[0].weight.data.fill(0)
        assert not twin(np.ones((1, 2), "float32")).numpy().any()
        assert net(np.ones((1, 2), "float32")).numpy().any()


def test_untouched_puts_back_modes_statistics_fields_and_random_numbers():
    net = model()
    net[0].body[1].eval()
    random.seed(5)
    random.generator()
    want = random.generator().random()
    random.seed(5)
    random.generator()
    before = {name: a.copy() for name, a in net.state_dict().items()}
    volume = net[1].volume
    with pytest.raises(ZeroDivisionError), untouched(net):
        net.train()
        net(IMAGES + np.arange(4, dtype="float32")[:, None])
        net.eval()
        random.seed(7)
        net.state_dict()["0.body.1.running_mean"][...] = 3
        raise ZeroDivisionError
    assert {path: m.training for path, m in net.named_modules()} == {
        path: path != "0.body.1" for path, _ in net.named_modules()}
    for name, a in net.state_dict().items():
        np.testing.assert_array_equal(a, before[name])
    assert net[1].volume is volume
    assert random.generator().random() == want


def test_a_buffer_that_was_replaced_is_the_old_one_again():
    net = nn.BatchNorm2d(2)
    old = net.running_mean
    with untouched(net):
        net.running_mean = np.ones(2, "float32")
    assert net.running_mean is old


def test_contexts_may_end_in_any_order():
    seen, net = [], nn.ReLU()

    def noted(name):
        def around(path, module, forward, x):
            seen.append(name)
            return forward(x)
        return observed(net, around)

    first, second = noted("first"), noted("second")
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    net(IMAGES)
    second.__exit__(None, None, None)
    net(IMAGES)
    assert seen == ["second"] and "forward" not in vars(net)
