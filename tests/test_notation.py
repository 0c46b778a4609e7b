"""The notation of the course notes: what it builds, what it refuses, and that it never hangs."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from check import close
from gpuconv import models, nn, random
from gpuconv.models.notation import MAX_LAYERS, SPELLING, parse

CIFAR = "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | [CONV3-64 RELU]*2 POOL2 | FC 128 RELU | FC 10"
# the notes' own shapes, AlexNet without its groups, VGG-16: parameters are counts of the papers
VGG16 = ("INPUT 224x224x3 | [CONV3-64 RELU]*2 POOL2 | [CONV3-128 RELU]*2 POOL2 | [CONV3-256 RELU]*3"
         " POOL2 | [[CONV3-512 RELU]*3 POOL2]*2 | [FC 4096 RELU DROPOUT0.5]*2 | FC 1000")
GOOD = {  # text: (volume behind each layer, all parameters)
    "INPUT 32x32x3 | CONV5-12 RELU | POOL2 | FC 10": (
        [(32, 32, 12), (32, 32, 12), (16, 16, 12), (3072,), (10,)],
        (5 * 5 * 3 + 1) * 12 + (16 * 16 * 12 + 1) * 10),
    "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10": (
        [(32, 32, 32)] * 4 + [(16, 16, 32), (8192,), (10,)],
        (27 + 1) * 32 + (9 * 32 + 1) * 32 + 8193 * 10),
    "INPUT 227x227x3 CONV11-96/4p0": ([(55, 55, 96)], (11 * 11 * 3 + 1) * 96),  # the notes' AlexNet
    "INPUT 10x10x1 CONV3-1/2p0": ([(4, 4, 1)], 10),  # (10-3)/2+1 = 4.5: cropped
    "INPUT 9x7x2 CONV3-4/2": ([(5, 4, 4)], 76),
    "INPUT 9x7x2 CONV4-4p2": ([(10, 8, 4)], 132),
    "INPUT 9x7x2 CONV1-4": ([(9, 7, 4)], 12),
    "INPUT 55x55x96 POOL3/2": ([(27, 27, 96)], 0),
    "INPUT 112x112x64 POOL3/2p1": ([(56, 56, 64)], 0),
    "INPUT 5x5x2 AVGPOOL2 FC 3": ([(2, 2, 2), (8,), (3,)], 27),
    "INPUT 5x6x2 GLOBALPOOL FC 3": ([(2,), (3,)], 9),
    "INPUT 5x6x2 CONV1-3 GLOBALAVGPOOL": ([(5, 6, 3), (3,)], 9),
    "INPUT 5x6x2 BN GELU TANH SIGMOID DROPOUT.25": ([(5, 6, 2)] * 5, 4),
    "INPUT 5x6x2 FC 4 BN RELU FC 3 FC 2": (
        [(60,), (4,), (4,), (4,), (3,), (2,)], 61 * 4 + 8 + 5 * 3 + 4 * 2),
}


def kinds(model):
    return [type(module).__name__ for module in model]


@pytest.mark.parametrize("text", GOOD)
def test_volumes_and_parameters(text):
    net = parse(text)
    volumes, parameters = GOOD[text]
    assert [layer.output for layer in net.layers] == volumes
    assert net.output == volumes[-1] and net.parameters == parameters
    model = net.build()
    assert sum(p.size for p in model.parameters()) == parameters
    x = np.zeros((2, *net.input), "float32")
    for module, volume in zip(model, volumes, strict=True):
        x = module(x).data
        assert x.shape == (2, *volume)


def test_vgg16_has_the_parameters_of_its_paper():
    net = parse(VGG16)
    assert net.parameters == 138_357_544 and net.layers[-8].output == (25088,)
    assert len(net.layers) == 13 * 2 + 5 + 1 + 3 + 4


def test_all_spellings_of_one_net():
    same = ["INPUT 8x8x3 | [CONV3-4 RELU]*2 POOL2 | FC 10",
            "input 8x8x3 -> [[conv3-4 -> relu]*2 -> pool2]*1 -> fc10",
            "INPUT8x8x3,[CONV3-4,RELU]*2,POOL2,FC10",
            "[INPUT 8X8X3] → [CONV3-4 RELU] [CONV 3-4/1P1 | RELU] POOL 2/2 FC 10",
            "INPUT 8x8x3|[CONV3-4 RELU] * 2|POOL2p0->FC10|",
            "\n INPUT 8x8x3\n\t[CONV3-4p1 RELU]*02\nPOOL2\nFC 010 "]
    models_ = [parse(text).build() for text in same]
    assert {repr(model) for model in models_} == {repr(models_[0])}
    assert kinds(models_[0]) == ["Conv2d", "ReLU"] * 2 + ["MaxPool2d", "Flatten", "Linear"]


def test_every_name_builds_its_layer():
    model = parse("INPUT 8x8x3 CONV3-4 BN RELU GELU TANH SIGMOID POOL2 AVGPOOL2 DROPOUT0.25 "
                  "GLOBALAVGPOOL FC 2").build()
    assert kinds(model) == ["Conv2d", "BatchNorm2d", "ReLU", "GELU", "Tanh", "Sigmoid", "MaxPool2d",
                            "AvgPool2d", "Dropout", "GlobalAvgPool2d", "Linear"]
    assert model[8].p == 0.25
    assert kinds(parse("INPUT 8x8x3 GLOBALPOOL").build()) == ["GlobalMaxPool2d"]


def test_repeats_are_layers_of_their_own():
    model = parse("INPUT 8x8x3 [CONV3-3]*2 FC 2").build()
    assert model[0] is not model[1] and model[0].weight is not model[1].weight


def test_computes_as_pytorch(rng):
    torch = pytest.importorskip("torch")
    random.seed(5)
    model = parse("INPUT 9x9x2 CONV3-4/2 TANH POOL3/2p1 CONV2-3p1 AVGPOOL2/1 GLOBALAVGPOOL FC 5"
                  ).build().to("float64")
    x = rng.standard_normal((2, 9, 9, 2))
    y = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    f = torch.nn.functional

    def filters(i):
        weight = model[i].weight.data.transpose(0, 3, 1, 2).copy()
        return torch.tensor(weight), torch.tensor(model[i].bias.data)

    y = torch.tanh(f.conv2d(y, *filters(0), stride=2, padding=1))
    y = f.conv2d(f.max_pool2d(y, 3, 2, 1), *filters(3), padding=1)
    y = f.avg_pool2d(y, 2, 1).mean((2, 3))
    y = f.linear(y, torch.tensor(model[6].weight.data), torch.tensor(model[6].bias.data))
    close(model.predict(x), y.numpy(), terms=100)


# -- refusals: the place (what is underlined) and the words ------------------------------

BAD = [
    ("INPUT 32x32x3 | CONV3x64 | FC 10", "CONV3x64", "CONVf-K"),
    ("INPUT 32x32x3 | CONV | FC 10", "CONV", "CONVf-K"),
    ("INPUT 32x32x3 | CONV3- 64 | FC 10", "CONV3-", "CONVf-K"),
    ("INPUT 32x32x3 | CONV3-64p | FC 10", "CONV3-64p", "CONVf-K"),
    ("INPUT 32x32x3 | CONV3-64/2/2 | FC 10", "CONV3-64/2/2", "CONVf-K"),
    ("INPUT 32x32x3 | CONV3-9999999999 | FC 10", "CONV3-9999999999", "CONVf-K"),
    ("INPUT 32x32x3 | CONV3-0 | FC 10", "CONV3-0", "at least 1"),
    ("INPUT 32x32x3 | CONV3-8/0 | FC 10", "CONV3-8/0", "at least 1"),
    ("INPUT 32x32x3 | CONV0-8 | FC 10", "CONV0-8", "at least 1"),
    ("INPUT 32x32x3 | CONV4-8 | FC 10", "CONV4-8", "no padding keeps .* as in CONV4-8p2"),
    ("INPUT 32x32x3 | CONV33-8p0 | FC 10", "CONV33-8p0", "33x33 .* 0 does not fit .* 32x32"),
    ("INPUT 32x32x3 | POOL | FC 10", "POOL", "POOL2; POOL3/2 for stride 2"),
    ("INPUT 32x32x3 | POOL0 | FC 10", "POOL0", "at least 1"),
    ("INPUT 32x32x3 | POOL3p2 | FC 10", "POOL3p2", "padding 2 is more than half .* 3"),
    ("INPUT 32x32x3 | POOL64 | FC 10", "POOL64", "does not fit an image of 32x32"),
    ("INPUT 4x4x3 | [CONV3-2 POOL2]*3 | FC 10", "POOL2", "2x2 .* does not fit an image of 1x1"),
    ("INPUT 4x4x3 FC 10 POOL2", "POOL2", "POOL wants an image, and gets 10 numbers"),
    ("INPUT 4x4x3 FC 10 CONV3-3", "CONV3-3", "CONV wants an image"),
    ("INPUT 4x4x3 GLOBALPOOL AVGPOOL1", "AVGPOOL1", "wants an image, and gets 3"),
    ("INPUT 4x4x3 GLOBALPOOL GLOBALAVGPOOL", "GLOBALAVGPOOL", "wants an image, and gets 3"),
    ("INPUT 4x4x3 FC", "FC", "FC n"),
    ("INPUT 4x4x3 FC 0", "FC 0", "at least 1"),
    ("INPUT 4x4x3 FC -3", "FC", "FC n"),
    ("INPUT 4x4x3 FC 1.5", "FC 1.5", "FC n"),
    ("INPUT 4x4x3 DROPOUT1", "DROPOUT1", "0 <= p < 1"),
    ("INPUT 4x4x3 DROPOUT", "DROPOUT", "0 <= p < 1"),
    ("INPUT 4x4x3 RELU 6 FC 2", "RELU 6", "RELU alone"),
    ("INPUT 4x4x3 BN2 FC 2", "BN2", "BN alone"),
    ("INPUT 4x4x3 MAXPOL2 FC 2", "MAXPOL2", "one of INPUT, CONV, POOL"),
    ("INPUT 4x4x3 2 FC 2", "2", "one of INPUT"),
    ("INPUT 4x4x3 CONV3-4 é FC 2", "é", "one of INPUT"),
    ("INPUT 4x4x3 ٣ FC 2", "٣", "one of INPUT"),
    ("INPUT 4x4x3", "INPUT 4x4x3", "no layers follow"),
    ("INPUT 4x4 FC 2", "INPUT 4x4", "HxWxC"),
    ("INPUT | FC 2", "INPUT", "HxWxC"),
    ("INPUT 4x0x3 FC 2", "INPUT 4x0x3", "at least 1"),
    ("INPUT 4x4x3 FC 2 INPUT 4x4x3", "INPUT 4x4x3", "once, and first"),
    ("FC 10 INPUT 4x4x3", "FC 10", "begin with INPUT HxWxC"),
    ("[CONV3-3]*2 FC 10", "CONV3-3", "begin with INPUT HxWxC"),
    ("INPUT 4x4x3 [CONV3-3]*1000000", "*1000000", "1000000 times 1 layers: wanted 1 to 1000"),
    ("INPUT 4x4x3 [[[RELU]*99]*99]*99", "*99", "99 times 99 layers"),
    ("INPUT 4x4x3 [RELU]*0 FC 2", "*0", "0 times 1 layers"),
    ("INPUT 4x4x3 [RELU]*99999999999 FC 2", "*99999999999", "wanted a number of repeats"),
    ("INPUT 4x4x3 [RELU]*x FC 2", "*x", "wanted a number of repeats"),
    ("INPUT 4x4x3 [RELU]* FC 2", "*", "wanted a number of repeats"),
    ("INPUT 4x4x3 [RELU]*-1 FC 2", "*-1", "wanted a number of repeats"),
    ("INPUT 4x4x3 RELU *2 FC 2", "*", r"\* behind \] only"),
    ("INPUT 4x4x3 [RELU FC 2", "[", "never closed"),
    ("INPUT 4x4x3 RELU] FC 2", "]", r"no \[ is open"),
    ("INPUT 4x4x3 [ | ]*3 FC 2", "[ | ]", "nothing between"),
    ("INPUT 99999x99999x9 FC 2", "INPUT 99999x99999x9", "99999x99999x9 is too large"),
    ("INPUT 4x4x3 CONV3-999999999 FC 2", "CONV3-999999999", "too large"),
    ("INPUT 4x4x3 CONV1-4/2p99999999 FC 2", "CONV1-4/2p99999999", "too large"),
    ("INPUT 99x99x99 FC 99999999", "FC 99999999", "parameters is too large"),
]


def full(error):
    """The message and the note that points at the place."""
    return "\n".join([str(error), *error.__notes__])


def underlined(message, text):
    """What the carets stand under."""
    _, shown, carets = message.split("\n")
    assert shown == "    " + text and set(carets) == {" ", "^"}
    return shown[carets.index("^") : len(carets)]


@pytest.mark.parametrize("text, place, says", BAD)
def test_refuses(text, place, says):
    with pytest.raises(ValueError, match=says) as caught:
        parse(text)
    message = full(caught.value)
    assert underlined(message, text) == place
    assert message.startswith(f"model, character {message.split(chr(10))[2].index('^') - 3}: ")


@pytest.mark.parametrize("text", ["", "  \n", " | -> "])
def test_refuses_nothing(text):
    with pytest.raises(ValueError, match="character 1: begin with INPUT HxWxC"):
        parse(text)


def test_a_long_text_is_shown_around_the_place():
    text = "INPUT 32x32x3 | " + "CONV3-32 RELU | " * 50 + "WHAT | " + "RELU | " * 50 + "FC 10"
    with pytest.raises(ValueError, match="character 817: cannot read 'WHAT'") as caught:
        parse(text)
    _, shown, carets = full(caught.value).split("\n")
    assert len(shown) == 4 + 3 + 100 + 3 and shown[carets.index("^") : len(carets)] == "WHAT"


def test_control_characters_are_shown_as_blanks():
    with pytest.raises(ValueError) as caught:
        parse("INPUT 4x4x3\n\x1b[31m FC 2")
    assert "\x1b" not in full(caught.value) and full(caught.value).count("\n") == 2


@pytest.mark.parametrize("count", [MAX_LAYERS - 1, MAX_LAYERS])
def test_a_thousand_layers_and_not_one_more(count):
    text = f"INPUT 4x4x3 [RELU]*{count - 1}"
    assert len(parse(text).layers) == count - 1
    if count == MAX_LAYERS:
        with pytest.raises(ValueError, match=f"more than {MAX_LAYERS} layers"):
            parse(text + " RELU")


# -- any text ----------------------------------------------------------------------------

PIECES = st.sampled_from([*SPELLING, "RELU", "BN", "GLOBALPOOL", "INPUT 8x8x3", "CONV3-4", "POOL2",
                          "FC 10", "[", "]", "*", "*2", "*999", " ", "|", "->", "-", "3", "/2",
                          "p1", "x", ".5", "0", "999999999999", "é", "\n"])


@settings(deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=30).map(" ".join),
                 st.lists(PIECES, max_size=30).map("".join)))
@example("INPUT 8x8x3" + "[" * 500 + "RELU" + "]*9" * 500)
@example("INPUT 8x8x3 " + "-" * 5000 + ">" * 5000)
@example("INPUT 8x8x3 FC " + "9" * 5000)
@example("A" * 100_000)
@example("\ud800 INPUT")
def test_any_text_is_a_net_or_a_value_error(text):
    try:
        net = parse(text)
    except ValueError as error:
        assert str(error).startswith("model, character ") and full(error).count("\n") == 2
    else:
        assert 1 <= len(net.layers) < MAX_LAYERS and min(net.output) >= 1


LAYERS = st.lists(st.sampled_from(["CONV3-4", "CONV5-2/2", "CONV2-3p1", "RELU", "BN", "POOL2",
                                   "AVGPOOL3/2p1", "[CONV1-3 TANH]*2", "[[GELU]*2 POOL1]*2",
                                   "DROPOUT0.1"]), max_size=6)


@settings(deadline=None, derandomize=True, database=None)
@given(LAYERS, st.sampled_from(["FC 3", "FC 5 RELU FC 3", "CONV1-3 GLOBALAVGPOOL", "GLOBALPOOL FC 3"
                                ]))
def test_what_is_described_is_built_and_described_again(layers, end):
    text = " | ".join(["INPUT 16x12x3", *layers, end])
    try:
        description = models.describe(text, in_channels=3, classes=3, image=(16, 12))
    except ValueError as error:  # five pools are too many for 12 pixels
        assert "does not fit" in str(error)
        return
    assert models.describe(description["notation"]) == description
    random.seed(1)
    one = models.build(description)
    random.seed(1)
    two = models.build(description)
    assert repr(one) == repr(two)
    states = one.state_dict(), two.state_dict()
    assert all((a == b).all() for a, b in zip(*(s.values() for s in states), strict=True))
    assert one.predict(np.zeros((2, *models.input_shape(description)), "float32")).shape == (2, 3)


def test_a_net_trains():
    from gpuconv.ops import softmax_cross_entropy
    from gpuconv.optim import SGD
    random.seed(0)
    model = parse(CIFAR.replace("32x32", "8x8").replace("64", "16")).build()
    assert isinstance(model, nn.Sequential)
    x = np.random.default_rng(1).standard_normal((8, 8, 8, 3)).astype("float32")
    sgd, losses = SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for _ in range(40):
        sgd.zero_grad()
        loss = softmax_cross_entropy(model(x), np.arange(8))
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
