"""nn.summary against PyTorch and the course notes' numbers."""

import dataclasses
import io
import json

import numpy as np
import pytest

import gpuconv as gpc
from check import nchw
from gpuconv import models, nn, ops, random
from gpuconv.nn.summary import human, short


def only(layer, shape):
    row, = nn.summary(nn.Sequential(layer), shape).rows
    return row


# -- the course notes --------------------------------------------------------------------


def test_alexnets_first_layer_is_that_of_the_notes():
    row = only(nn.Conv2d(3, 96, 11, stride=4), (227, 227, 3))
    assert row.output == (55, 55, 96)
    assert 55 * 55 * 96 == 290_400                       # neurons, one bias each
    assert row.unshared == 290_400 * (11 * 11 * 3 + 1) == 105_705_600
    assert row.parameters == 96 * 11 * 11 * 3 + 96 == 34_944
    assert row.multiply_adds == 290_400 * 363
    assert (row.filter, row.stride, row.cropped) == ((11, 11), (4, 4), "")


@pytest.mark.parametrize("W, F, P, S, out, cropped", [
    (7, 3, 0, 1, 5, ""), (7, 3, 0, 2, 3, ""), (5, 3, 1, 1, 5, ""), (5, 3, 1, 2, 3, ""),
    (32, 5, 2, 1, 32, ""), (10, 3, 0, 2, 4, "1 row, 1 column cropped"),
    (11, 3, 0, 5, 2, "3 rows, 3 columns cropped"),
    (32, 3, 1, 2, 16, "1 row, 1 column of padding cropped")])
def test_output_size_is_that_of_the_notes_formula(W, F, P, S, out, cropped):
    row = only(nn.Conv2d(1, 2, F, stride=S, padding=P), (W, W, 1))
    assert row.output == (out, out, 2) and row.cropped == cropped
    assert bool(row.cropped) == bool((W - F + 2 * P) % S)


@pytest.mark.parametrize("layer, shape, cropped", [
    (nn.Conv2d(1, 1, 3, stride=(1, 3)), (9, 11, 1), "2 columns cropped"),
    (nn.Conv2d(1, 1, 3, stride=(2, 3)), (8, 8, 1), "1 row, 2 columns cropped"),
    (nn.Conv2d(1, 1, 3, stride=(2, 3), padding=1), (8, 9, 1), "1 column cropped"),
    (nn.Conv2d(1, 1, 3, stride=(2, 3), padding=1, padding_mode="reflect"), (8, 9, 1),
     "1 column cropped"),
    (nn.Conv2d(1, 1, 2, stride=4, padding=1, padding_mode="circular"), (5, 5, 1),
     "1 row, 1 column of padding cropped"),
    (nn.Conv2d(1, 1, 3, stride=2, padding="same"), (8, 9, 1), ""),
    (nn.MaxPool2d(2), (5, 4, 1), "1 row cropped"),
    (nn.MaxPool2d(2, ceil_mode=True), (5, 4, 1), ""),
    (nn.MaxPool2d(2, stride=3, ceil_mode=True), (3, 6, 1), "1 row, 1 column cropped"),
    (nn.AvgPool2d(3, padding=1), (5, 6, 1), "1 column cropped"),
], ids=str)
def test_says_where_the_filter_does_not_fit(layer, shape, cropped):
    assert only(layer, shape).cropped == cropped


# -- against PyTorch ---------------------------------------------------------------------

LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), (9, 12, 4)),
    "stride, padding": (lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2)), (9, 12, 4)),
    "dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=(2, 3), bias=False), (9, 12, 4)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same"), (9, 12, 4)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (9, 12, 4)),
}


def twin(torch, layer):
    """PyTorch's layer of the same geometry."""
    K, R, S, C = layer.weight.shape
    padding = layer.padding if isinstance(layer.padding, str) else tuple(
        near for near, _ in layer.padding)
    return torch.nn.Conv2d(C * layer.groups, K, (R, S), layer.stride, padding, layer.dilation,
                           layer.groups, layer.bias is not None, layer.padding_mode)


@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_as_pytorch_counts_it(name):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode
    make, shape = LAYERS[name]
    layer = make()
    theirs = twin(torch, layer)
    with FlopCounterMode(display=False) as counter:
        y = theirs(torch.from_numpy(nchw(np.zeros((1, *shape), "float32"))))
    row = only(layer, shape)
    assert row.output == (*y.shape[2:], y.shape[1])
    assert 2 * row.multiply_adds == counter.get_total_flops()
    assert row.parameters == sum(p.numel() for p in theirs.parameters())
    assert row.activation_bytes == y.numel() * 4


@pytest.mark.parametrize("ceil", [False, True])
def test_a_pool_as_pytorch_shapes_it(ceil):
    torch = pytest.importorskip("torch")
    for size, stride, padding in ((2, None, 0), (3, 2, 1), (3, 2, 0)):
        row = only(nn.MaxPool2d(size, stride, padding, ceil_mode=ceil), (9, 12, 4))
        y = torch.nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)(torch.zeros(1, 4, 9, 12))
        assert row.output == (*y.shape[2:], 4)
        assert row.multiply_adds == row.parameters == row.unshared == 0


def test_linear_and_matmul_are_counted():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    class Product(nn.Module):
        def __init__(self):
            self.weight = gpc.Parameter(np.ones((7, 5), "float32"))

        def forward(self, x):
            return x @ self.weight

    with FlopCounterMode(display=False) as counter:
        torch.zeros(4, 3, 7) @ torch.zeros(7, 5)
    row = only(Product(), (4, 3, 7))
    assert 2 * row.multiply_adds == counter.get_total_flops() and row.parameters == 35
    row = only(nn.Linear(7, 5), (7,))
    assert (row.input, row.output, row.multiply_adds) == ((7,), (5,), 35)
    assert row.parameters == row.unshared == 40


def test_the_models_add_up():
    found = nn.summary(models.cifar_convnet())
    assert found.parameters == found.trainable == 307_946 == sum(r.parameters for r in found.rows)
    convolutions = 9 * (1024 * (3 * 32 + 32 * 32) + 256 * (32 * 64 + 64 * 64)
                        + 64 * (64 * 128 + 128 * 128))
    assert found.multiply_adds == convolutions + 20_480
    assert [row.kind for row in found.rows[-2:]] == ["Flatten", "Linear"]
    assert [row.path for row in found.rows] == [str(n) for n in range(23)]
    assert found.activation_bytes == 4 * (6 * 32 * 1024 + 32 * 256 + 6 * 64 * 256 + 64 * 64
                                          + 6 * 128 * 64 + 128 * 16 + 10)
    assert found.rows[-2].activation_bytes == 0  # a view
    assert json.loads(json.dumps(dataclasses.asdict(found)))["rows"][0]["filter"] == [3, 3]


# -- modules of all kinds ----------------------------------------------------------------


class Own(nn.Module):
    """A module with a layer, a parameter of its own, and ops in between."""

    def __init__(self):
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = gpc.Parameter(np.ones(4, "float32"))

    def forward(self, x):
        y = ops.relu(self.conv(ops.relu(x))) * self.scale
        return ops.max_pool2d(y, 2) + ops.avg_pool2d(y, 2)


def test_a_module_that_computes_itself_has_a_row():
    own, conv = nn.summary(Own(), (8, 8, 3)).rows
    assert (own.path, own.kind, own.parameters, own.filter) == ("", "Own", 4, None)
    assert own.output == (3, 3, 4) and own.receptive_field == (4, 4)
    assert (conv.path, conv.parameters, conv.receptive_field) == ("conv", 112, (3, 3))
    assert nn.summary(Own(), (8, 8, 3)).parameters == 116


def test_a_leaf_of_functions_is_read_from_the_tape():
    class Leaf(nn.Module):
        def __init__(self):
            self.weight = gpc.Parameter(np.ones((5, 3, 3, 2), "float32"))

        def forward(self, x):
            return ops.relu(ops.conv2d(x, self.weight, stride=2, padding=1))

    row = only(Leaf(), (8, 8, 2))
    assert (row.filter, row.stride, row.padding) == ((3, 3), (2, 2), ((1, 1), (1, 1)))
    assert row.multiply_adds == 4 * 4 * 5 * 18 and row.unshared == 16 * 90
    assert row.receptive_field == (3, 3)


def test_a_module_called_twice_has_two_rows_and_counts_once():
    conv = nn.Conv2d(2, 2, 3)
    found = nn.summary(nn.Sequential(conv, conv), (8, 8, 2))
    assert [row.path for row in found.rows] == ["0", "0"]
    assert [row.output for row in found.rows] == [(6, 6, 2), (4, 4, 2)]
    assert [row.receptive_field for row in found.rows] == [(3, 3), (5, 5)]
    assert found.parameters == 38


def test_frozen_parameters_are_parameters_but_not_trainable():
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    found = nn.summary(net, (3, 3, 2))
    assert (found.parameters, found.trainable) == (44, 6)
    assert found.multiply_adds == 36 + 4 and "44 parameters (38 frozen)" in str(found)


def test_it_reads_inside_no_grad_and_records_nothing_after():
    with gpc.no_grad():
        assert nn.summary(nn.Conv2d(1, 1, 3), (5, 5, 1)).multiply_adds == 81
        assert not (gpc.Tensor(np.ones(2), requires_grad=True) * 2).requires_grad


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_on_the_gpu_and_in_16_bits(cp, dtype, size):
    net = models.simple_convnet(image=8).to("cuda", dtype)
    found = nn.summary(net, (8, 8, 3))
    want = nn.summary(models.simple_convnet(image=8), (8, 8, 3), device="cuda")
    assert found.dtype == dtype and net.device == "cuda:0" and found.device == "cuda"
    assert found.activation_bytes * 4 == want.activation_bytes * size
    assert [dataclasses.replace(row, activation_bytes=0) for row in found.rows] == [
        dataclasses.replace(row, activation_bytes=0) for row in want.rows]


def test_it_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5))
    net[0].eval()
    net(np.random.default_rng(0).random((2, 6, 6, 3), "float32"))
    before = {name: a.copy() for name, a in net.state_dict().items()}
    random.seed(3)
    nn.summary(net, (8, 8, 3))
    got, _ = random.generator().random(), random.seed(3)
    assert got == random.generator().random()
    assert [m.training for m in net] == [False, True, True, True] and net.training
    assert net[2].volume == (4, 4, 2) and all(p.grad is None for p in net.parameters())
    for name, a in net.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


# -- fusion ------------------------------------------------------------------------------


def ops_of(net, shape, device):
    return [(row.path, row.op) for row in nn.summary(net, shape, device).rows]


def test_rows_say_which_layers_run_as_one_op():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    assert ops_of(net, (4, 4, 3), None) == ops_of(net, (4, 4, 3), "cpu") == [
        ("0", "0"), ("1", "1+2"), ("2", "1+2"), ("3", "3")]
    found = nn.summary(net, (4, 4, 3), "cuda")
    assert [(row.op, row.joined) for row in found.rows] == [
        ("0+1+2", False), ("0+1+2", True), ("0+1+2", True), ("3", False)]
    assert [row.output for row in found.rows] == [(2, 2, 4)] * 3 + [(16,)]
    with nn.fusion.disabled():
        assert [row.op for row in nn.summary(net, (4, 4, 3)).rows] == ["0", "1", "2", "3"]
        assert ops_of(net, (4, 4, 3), "cpu")[1] == ("1", "1+2")


def test_layers_of_one_op_stand_together():
    """Though layer by layer the shortcut runs between them."""
    net = nn.Sequential(nn.Residual(nn.Conv2d(3, 3, 1), shortcut=nn.Conv2d(3, 3, 1)), nn.ReLU())
    assert ops_of(net, (4, 4, 3), "cuda") == [
        ("0.shortcut", "0.shortcut"), ("0.body.0", "0.body.0+0+1"), ("1", "0.body.0+0+1")]
    assert ops_of(net, (4, 4, 3), "cpu") == [(path, path) for path in (
        "0.body.0", "0.shortcut", "1")]


def test_a_layer_that_is_called_twice_runs_in_two_ops():
    relu = nn.ReLU()
    net = nn.Sequential(nn.BatchNorm2d(3), relu, nn.MaxPool2d(2), relu)
    rows = nn.summary(net, (4, 4, 3)).rows
    assert [(row.path, row.op, row.joined) for row in rows] == [
        ("0", "0+1", False), ("1", "0+1", True), ("2", "2", False), ("1", "1", False)]


def test_refusals():
    with pytest.raises(ValueError, match=r"summary: layer 1 \(Linear\): linear: x has shape "
                                         r"\(1, 12\), w \(2, 5\)"):
        nn.summary(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (2, 2, 3))
    with pytest.raises(ValueError, match="input_shape"):
        nn.summary(nn.ReLU(), (0, 3, 3))
    with pytest.raises(TypeError, match="wanted a Module"):
        nn.summary(len)
    with pytest.raises(ValueError, match="device is 'gpu', wanted None, 'cpu' or 'cuda'"):
        nn.summary(nn.ReLU(), device="gpu")


# -- text --------------------------------------------------------------------------------


def rendered(found, width):
    from rich.console import Console
    out = io.StringIO()
    Console(file=out, width=width).print(found.table(width))
    return out.getvalue()


def test_plain_text_is_aligned_and_says_everything():
    lines = str(nn.summary(models.simple_convnet())).splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "filter", "stride", "padding",
                                "parameters", "unshared", "multiply-adds", "activations", "field"]
    assert lines[1].split() == ["0", "Conv2d", "32x32x32", "5x5", "1", "2", "2,432", "2,490,368",
                                "2,457,600", "128.0", "KiB", "5x5"]
    assert {line.index("x", 19) for line in lines[1:4]} == {lines[1].index("x", 19)}
    assert lines[2].split()[:2] == ["1", "ReLU"] and lines[3].split()[:3] == ["2", "+", "MaxPool2d"]
    assert lines[-2] == "+ runs together with the layer above it (cpu)"
    assert lines[-1] == ("84,362 parameters; 2.5M multiply-adds and 288.0 KiB of activations "
                         "(float32) per image of 32x32x3")


def test_text_without_fusion_has_no_mark():
    text = str(nn.summary(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (2, 2, 3)))
    assert "+" not in text and len(text.splitlines()) == 4


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_table_fits_its_terminal_and_nothing_is_cut_off(width):
    net = nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), nn.MaxPool2d(2), nn.Residual(
            nn.Conv2d(96, 64, (3, 5), padding=(1, 2)), shortcut=nn.Conv2d(96, 64, 1)),
        nn.GlobalAvgPool2d(), nn.Linear(64, 1000))
    found = nn.summary(net, (227, 227, 3), "cuda")
    text = rendered(found, width)
    assert "+ runs together with the layer above it (cuda)" in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    squeezed = "".join(text.split())
    for row in found.rows:
        numbers = ([f"{row.parameters:,}", f"{row.unshared:,}", f"{row.multiply_adds:,}"]
                   if width > 110 else map(short, (row.parameters, row.unshared,
                                                   row.multiply_adds)))
        assert all(number in squeezed for number in numbers)
    if width >= 80:
        for row in found.rows:
            mark = "+ " * row.kind.endswith(("ReLU", "MaxPool2d"))
            for word in (row.path, mark + row.kind, *("x".join(map(str, shape)) for shape in
                                               (row.output, row.receptive_field))):
                assert word in text
        assert "1 row, 1 column" in text


def test_numbers_for_people():
    assert [short(n) for n in (0, 999, 1000, 99_950, 999_499, 999_500, 1.5e9, 2e15)] == [
        "0", "999", "1.0k", "100k", "999k", "1.0M", "1.5G", "2.0P"]
    assert [human(n) for n in (0, 1023, 1024, 1 << 40, 1 << 50)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.0 TiB", "1024.0 TiB"]


# -- models that are not the same twice ------------------------------------------------------


class Changing(nn.Module):
    """Another layer at each call; the second call fails, if it is to."""

    def __init__(self, fails):
        self.conv, self.relu, self.calls, self.fails = nn.Conv2d(4, 4, 1), nn.ReLU(), 0, fails

    def forward(self, x):
        self.calls += 1
        if self.fails and self.calls > 1:
            raise RuntimeError("the second call")
        return self.conv(x) if self.calls % 2 else self.relu(x)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_called_twice_in_the_same_state(fails):
    model = Changing(fails)
    row, = nn.summary(model, (6, 6, 4)).rows
    assert (row.path, row.op, row.parameters, model.calls) == ("conv", "conv", 20, 0)


def test_a_row_stays_when_the_second_call_takes_another_way():
    class Random(nn.Module):
        ways = iter("ab")  # shared: no state of the module

        def __init__(self):
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x):
            return getattr(self, next(self.ways))(x)

    row, = nn.summary(Random(), (6, 6, 4)).rows
    assert (row.path, row.op, row.joined) == ("a", "a", False)


def test_a_plus_in_the_name_of_a_layer():
    class Named(nn.Module):
        def __init__(self):
            setattr(self, "a+b", nn.BatchNorm2d(4))
            self.c = nn.ReLU()

        def forward(self, x):
            return self.c(getattr(self, "a+b")(x))

    rows = nn.summary(Named(), (6, 6, 4)).rows
    assert [(row.path, row.joined) for row in rows] == [("a+b", False), ("c", False)]
