"""What ops say of themselves: receptive fields against changed pixels, products against ones."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest

import gpuconv as gpc
from gpuconv import models, nn, ops
from gpuconv.autograd import Op
from gpuconv.ops.elementwise import FUNCTIONS

H, W, C = 12, 10, 2


def every_op():
    """Return all subclasses of Op in gpuconv."""
    for module in pkgutil.walk_packages(ops.__path__, "gpuconv.ops."):
        importlib.import_module(module.name)
    found, todo = set(), [Op]
    while todo:
        new = set(todo.pop().__subclasses__()) - found
        found |= new
        todo += new
    return {kind for kind in found if kind.__module__.startswith("gpuconv.")}


def tape(y):
    """Return the ops that y was computed by."""
    found, todo = set(), [y.creator]
    while todo:
        op = todo.pop()
        if isinstance(op, Op) and op not in found:
            found.add(op)
            todo += op.parents
    return found


def silent(kind):
    """Return what neither an op's class nor a family's base class says."""
    family = kind.__mro__[:kind.__mro__.index(Op)]
    return [fact for fact in ("depends_on", "multiply_adds")
            if not any(fact in vars(base) for base in family)]


@pytest.mark.parametrize("kind", sorted(every_op(), key=lambda kind: kind.__name__),
                         ids=lambda kind: kind.__name__)
def test_every_op_says_what_it_depends_on_and_what_it_costs(kind):
    assert not silent(kind)


def test_an_op_that_says_nothing_would_be_found():
    new = type("New", (Op,), {})
    assert silent(new) == ["depends_on", "multiply_adds"]
    assert (new().depends_on, new().multiply_adds) == ("pixel", 0)  # what a user's op says


# -- one op --------------------------------------------------------------------------------


class Call(nn.Module):
    """A function of images."""

    def __init__(self, f):
        self.f = f

    def forward(self, x):
        return self.f(x)


def ones(*shape):
    return np.ones(shape, "float32")


PIXEL = {  # output pixels depend on the same pixel
    "add": lambda x: x + 1.0,
    "sub": lambda x: 1.0 - x,
    "mul": lambda x: x * x,
    "div": lambda x: 1.0 / x,
    **{name: getattr(ops, name) for name in FUNCTIONS},
    "bias_relu": lambda x: ops.bias_relu(x, ones(C)),
    "dropout": lambda x: ops.dropout(x, 1e-9, training=True),
    "reshape": lambda x: x.reshape(1, H * W, C),
    "flatten": ops.flatten,
    "transpose": lambda x: x.transpose(0, 2, 1, 3),
    "getitem": lambda x: x[:, 1:, ::2],
    "pad, zeros": lambda x: ops.pad2d(x, 2),
    "pad, reflect": lambda x: ops.pad2d(x, 2, "reflect"),
    "pad, circular": lambda x: ops.pad2d(x, 2, "circular"),
    "batch_norm, inference": lambda x: ops.batch_norm(x, None, None, 0 * ones(C), ones(C),
                                                      training=False),
    "softmax over channels": ops.softmax,
    "log_softmax over channels": ops.log_softmax,
    "sum of channels": lambda x: x.sum(axis=3, keepdims=True),
    "mean of channels": lambda x: x.mean(axis=3, keepdims=True),
    "max of channels": lambda x: x.max(axis=3, keepdims=True),
    "max of images": lambda x: x.max(axis=0, keepdims=True),
    "linear of pixels": lambda x: ops.linear(x, ones(3, C)),
    "matmul of pixels": lambda x: x @ ones(C, 3),
}
WINDOW = {  # the fields follow from the arguments: these are written down
    "conv2d": (lambda x: ops.conv2d(x, ones(3, 3, 5, C)), (3, 5)),
    "conv2d, stride": (lambda x: ops.conv2d(x, ones(3, 3, 2, C), stride=(2, 3)), (3, 2)),
    "conv2d, dilation": (lambda x: ops.conv2d(x, ones(3, 3, 2, C), dilation=(2, 4)), (5, 5)),
    "conv2d, groups": (lambda x: ops.conv2d(x, ones(4, 3, 3, 1), groups=2, padding=1), (3, 3)),
    "conv2d, circular": (lambda x: ops.conv2d(x, ones(4, 3, 3, C), padding=1,
                                              padding_mode="circular"), (3, 3)),
    "conv2d, taps beyond the image": (lambda x: ops.conv2d(x, ones(1, 3, 3, C), padding=40,
                                                           dilation=40), (1, 1)),
    "im2col": (lambda x: ops.im2col(x, (3, 2), stride=2), (3, 2)),
    "max_pool2d": (lambda x: ops.max_pool2d(x, (3, 2), 1), (3, 2)),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, (2, 4)), (2, 4)),
}
ALL = {  # output pixels depend on all pixels
    "global_avg_pool2d": ops.global_avg_pool2d,
    "global_max_pool2d": ops.global_max_pool2d,
    "batch_norm, training": lambda x: ops.batch_norm(x, None, None, None, None, training=True),
    "linear of a volume": lambda x: ops.linear(x.flatten(), ones(3, H * W * C)),
    "matmul of a volume": lambda x: x.flatten() @ ones(H * W * C, 3),
    "matmul of weights": lambda x: ones(3, H * W) @ x.reshape(1, H * W, C),
    "softmax of a volume": lambda x: ops.softmax(x.flatten()),
    "log_softmax of a volume": lambda x: ops.log_softmax(x.flatten()),
    "softmax_cross_entropy": lambda x: ops.softmax_cross_entropy(x.flatten(), np.zeros(1, int)),
    "sum": lambda x: x.sum(),
    "mean of pixels": lambda x: x.mean(axis=(1, 2)),
    "max of pixels": lambda x: x.max(axis=(1, 2), keepdims=True),
    "scale by the mean": lambda x: x * x.mean(axis=(1, 2), keepdims=True),
}
AT_MOST_ALL = {  # one axis, or part of the pixels: "all" is the word that includes them
    "col2im": lambda x: ops.col2im(ops.im2col(x, 2), x.shape, 2),
    "sum of rows": lambda x: x.sum(axis=1),
    "softmax over columns": lambda x: ops.softmax(x, axis=2),
    "linear of tokens": lambda x: ops.linear(x.reshape(1, H * W, C), ones(3, C)),
    "matmul along columns": lambda x: ones(1, 1, 7, W) @ x,
    "filters from the image": lambda x: ops.conv2d(x, x[:, 3:6, 3:6].reshape(1, 3, 3, C)),
}
EXPECTED = ({name: (f, (1, 1)) for name, f in PIXEL.items()} | WINDOW
            | {name: (f, (H, W)) for name, f in ALL.items()})
CALLS = {name: f for name, (f, _) in EXPECTED.items()} | AT_MOST_ALL


def reached(model, height, width, channels, batch=1):
    """Height and width of the pixels that change the middle pixel of the output.

    So many images, of which each has one changed pixel, go through the model at a time.
    """
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1, (1, height, width, channels)).astype(model.dtype)

    def middle(x):
        y = np.atleast_1d(model(gpc.Tensor(x)).numpy())
        axes = y.shape[1:3] if y.ndim == 4 else y.shape[1:]
        return y[:, *(n // 2 for n in axes)].reshape(len(x), -1).copy()

    before, seen = middle(x), np.zeros((height, width), bool)
    for pixels in np.arange(height * width).reshape(-1, batch):
        changed = x.repeat(batch, axis=0)
        changed[np.arange(batch), pixels // width, pixels % width] += 3
        seen.flat[pixels] = (middle(changed) != before).any(axis=1)
    return tuple(int(np.ptp(np.flatnonzero(seen.any(axis=axis)))) + 1 for axis in (1, 0))


def found(f):
    return nn.summary(Call(f), (H, W, C)).rows[-1].receptive_field


@pytest.mark.parametrize("name", EXPECTED)
def test_the_field_of_an_op_is_what_a_changed_pixel_reaches(name):
    f, field = EXPECTED[name]
    assert found(f) == field == reached(Call(f), H, W, C)


@pytest.mark.parametrize("name", AT_MOST_ALL)
def test_a_field_is_the_whole_image_where_no_word_says_less(name):
    part = reached(Call(AT_MOST_ALL[name]), H, W, C)
    assert found(AT_MOST_ALL[name]) == (H, W) != part


def test_the_tables_hold_every_op_of_the_cpu():
    x = gpc.Tensor(np.full((1, H, W, C), 0.5, "float32"), requires_grad=True)
    met = {base for f in CALLS.values() for op in tape(f(x)) for base in type(op).__mro__}
    assert {kind for kind in every_op() if "forward_cpu" in vars(kind)} <= met


def test_a_word_that_is_none_is_refused():
    class Wrong(Op):
        depends_on = "pixels"

        def forward_cpu(self, x):
            return x.copy()

    with pytest.raises(ValueError, match=r"Wrong: depends_on is 'pixels', wanted 'pixel', 'wi"):
        nn.summary(Call(Wrong()), (H, W, C))


# -- products ------------------------------------------------------------------------------


PRODUCTS = {  # each is 1 on ones
    "conv2d": lambda x: ops.conv2d(x, ones(3, 3, 2, C), stride=(1, 2)),
    "conv2d, groups": lambda x: ops.conv2d(x, ones(4, 3, 3, 1), groups=2, dilation=2),
    "linear of pixels": lambda x: ops.linear(x, ones(3, C)),
    "linear of a volume": lambda x: ops.linear(x.flatten(), ones(3, H * W * C)),
    "matrix, matrix": lambda x: x[0, 0] @ ones(C, 3),
    "images, matrix": lambda x: x @ ones(C, 3),
    "vector, images": lambda x: ones(W) @ x,
    "images, vector": lambda x: x @ ones(C),
    "vector, vector": lambda x: x[0, 0, :, 0] @ ones(W),
    "stacks that broadcast": lambda x: x @ ones(5, 1, C, 3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_multiply_adds_are_the_sum_of_the_results_on_ones(name):
    y = PRODUCTS[name](gpc.Tensor(ones(1, H, W, C), requires_grad=True))
    assert y.creator.multiply_adds == y.numpy().sum() > 0


@pytest.mark.parametrize("name", CALLS)
def test_other_ops_add_up_no_products(name):
    y = CALLS[name](gpc.Tensor(ones(1, H, W, C), requires_grad=True))
    for op in tape(y):
        assert bool(op.multiply_adds) == (type(op).__name__ in ("Conv2d", "Linear", "MatMul"))


def test_what_all_positions_share_has_a_bias_where_one_was_given():
    class Leaf(nn.Module):
        def __init__(self, bias):
            self.weight = gpc.Parameter(ones(5, 3, 3, C))
            self.bias = gpc.Parameter(ones(5)) if bias else None

        def forward(self, x):
            return ops.conv2d(x, self.weight, self.bias)

    for bias in (False, True):
        row, = nn.summary(Leaf(bias), (H, W, C)).rows
        assert row.unshared == (H - 2) * (W - 2) * 5 * (9 * C + bias)


# -- networks ------------------------------------------------------------------------------


NETS = {
    "conv": lambda: [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, (3, 5))],
    "stride": lambda: [nn.Conv2d(1, 2, 3, stride=2), nn.Conv2d(2, 1, 3, stride=(2, 1)),
                       nn.Conv2d(1, 1, 2)],
    "dilation": lambda: [nn.Conv2d(1, 2, 3, dilation=(2, 3)), nn.BatchNorm2d(2),
                         nn.Conv2d(2, 1, 2, dilation=2, padding=1)],
    "pools": lambda: [nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3),
                      nn.AvgPool2d(3, stride=2), nn.GELU()],
    "residual": lambda: [nn.Conv2d(1, 2, 3, padding=1), nn.Residual(
        nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1),
        shortcut=nn.Conv2d(2, 2, 1, stride=2)), nn.Conv2d(2, 1, 3, padding=1)],
    "long shortcut": lambda: [nn.Residual(nn.Conv2d(1, 1, 3, padding=1),
                                          shortcut=nn.Conv2d(1, 1, 7, padding=3))],
    "flatten": lambda: [nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(22 * 18, 1)],
    "global": lambda: [nn.Conv2d(1, 2, 3), nn.GlobalAvgPool2d(), nn.Linear(2, 1)],
    "beyond the image": lambda: [nn.Conv2d(1, 1, 9, dilation=3, padding=12),
                                 nn.Conv2d(1, 1, 9, padding=4)],
}


@pytest.mark.parametrize("name", NETS)
def test_the_field_of_a_network_is_what_a_changed_pixel_reaches(name):
    net = nn.Sequential(*NETS[name]()).to("float64").eval()
    rng = np.random.default_rng(0)
    for p in net.parameters():
        p.data = rng.uniform(0.5, 1, p.shape)
    assert nn.summary(net, (24, 20, 1)).rows[-1].receptive_field == reached(
        net, 24, 20, 1, batch=24 * 20)


def test_fields_grow_layer_by_layer():
    found = nn.summary(models.cifar_convnet(image=64), (64, 64, 3))
    fields = [row.receptive_field[0] for row in found.rows if row.filter]
    assert fields == [3, 5, 6, 10, 14, 16, 24, 32, 36]
    assert found.rows[-1].receptive_field == (64, 64)


# -- fused and recomputed ops --------------------------------------------------------------


class Leaf(nn.Module):
    """A function of images and parameters, of which a GPU runs some as one op."""

    def __init__(self, f):
        self.f = f
        self.w = gpc.Parameter(ones(4, 3, 3, C))
        self.large = gpc.Parameter(ones(4, 7, 7, C))
        self.flat = gpc.Parameter(ones(3, H * W * C))
        self.b, self.b3 = gpc.Parameter(ones(4)), gpc.Parameter(ones(3))
        self.register_buffer("mean", 0 * ones(4))
        self.register_buffer("var", ones(4))

    def forward(self, x):
        return self.f(self, x)

    def normed(self, x, training=False, **options):
        return ops.conv_batch_norm(x, self.w, self.b, self.b, self.mean, self.var,
                                   training=training, **options)


FUSED = {  # name: function, ops on the GPU
    "conv, relu": (lambda m, x: ops.conv2d(x, m.w, m.b, padding=1, activation="relu"), "Conv2d"),
    "conv, residual without a bias": (lambda m, x: ops.conv2d(
        x, m.w, padding=1, residual=ops.conv2d(x, m.large, padding=3)), "Conv2d"),
    "conv, pool": (lambda m, x: ops.conv_max_pool(x, m.w, stride=(1, 2)), "ConvMaxPool"),
    "conv, bias, relu, pool": (lambda m, x: ops.conv_max_pool(x, m.w, m.b, activation="relu"),
                               "ConvMaxPool"),
    "conv, bias, pool on tensor cores": (lambda m, x: ops.conv_max_pool(
        x, m.w, m.b, precision="tf32"), "ConvMaxPool"),
    "conv, batch norm": (lambda m, x: m.normed(x, stride=2), "ConvBatchNorm"),
    "conv, pool, batch norm": (lambda m, x: m.normed(x, pool=True, precision="tf32"),
                               "ConvBatchNorm"),
    "conv, batch norm in training": (lambda m, x: m.normed(x, training=True), "ConvBatchNorm"),
    "conv, batch norm, residual": (lambda m, x: m.normed(
        x, padding=1, residual=ops.conv2d(x, m.large, padding=3), activation="relu"),
        "Conv2d ConvBatchNorm"),
    "linear, relu": (lambda m, x: ops.linear(x.flatten(), m.flat, m.b3, activation="relu"),
                     "Linear"),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_ops_say_what_the_ops_one_after_the_other_say(cp, name):
    f, kinds = FUSED[name]
    leaf = Leaf(f)
    want = nn.summary(leaf, (H, W, C), "cuda")
    assert nn.summary(leaf.to("cuda"), (H, W, C)) == want
    y = leaf(cp.ones((1, H, W, C), "float32"))
    assert {type(op).__name__ for op in tape(y)} == {*kinds.split()}


def test_a_model_on_the_gpu_is_described_as_on_the_cpu(cp):
    model = nn.Sequential(
        nn.Conv2d(C, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1), nn.GELU()), nn.Flatten(), nn.Linear(120, 2))
    want = nn.summary(model, (H, W, C), "cuda")
    assert nn.summary(model.to("cuda"), (H, W, C)) == want


class Recomputed(nn.Module):
    """A chain whose activations are computed again in the backward pass."""

    def __init__(self, *chain):
        self.chain = nn.Sequential(*chain)

    def forward(self, x):
        return ops.recompute(self.chain, x)


def test_recomputed_layers_are_described_as_layers():
    chain = nn.Conv2d(C, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten()
    want = nn.summary(nn.Sequential(*chain), (H, W, C)).rows
    rows = nn.summary(nn.Sequential(Recomputed(*chain)), (H, W, C)).rows
    assert [dataclasses.replace(row, path=row.path[-1], op=row.op[-1])
            for row in rows] == list(want)


@pytest.mark.parametrize("word, products, message", [
    ("pixel", "many", "Wrong: multiply_adds is 'many', wanted a whole number"),
    ("pixel", None, "Wrong: multiply_adds is None, wanted a whole number"),
    ("pixel", -5, "Wrong: multiply_adds is -5, wanted at least 0"),
    ((), 0, r"Wrong: depends_on is \(\), wanted 'pixel', 'window' or 'all', or a tuple"),
    (1, 0, "Wrong: depends_on is 1, wanted 'pixel'"),
    ("window", 0, "Wrong: depends_on is 'window', but the op has no attributes window"),
])
def test_an_op_that_says_something_else_is_named(word, products, message):
    class Wrong(Op):
        depends_on, multiply_adds = word, products

        def forward_cpu(self, x):
            return x * 2

    class Layer(nn.Module):
        def forward(self, x):
            return Wrong()(x)

    with pytest.raises((TypeError, ValueError), match=message):
        nn.summary(nn.Sequential(Layer()), (6, 6, 4))
