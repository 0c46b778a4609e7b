"""Networks written as the course notes write them.

    INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | [CONV3-64 RELU]*2 POOL2 | FC 128 RELU | FC 10

    INPUT HxWxC           the images: height, width, channels; must come first
    CONVf-K               K filters of f x f pixels, stride 1, padding (f-1)/2: keeps the size
    CONVf-K/s CONVf-KpP   with stride s; with padding P, pixels; both: CONV5-64/2p2
    POOLf   AVGPOOLf      largest value, or mean, of windows of f x f pixels, side by side
    POOLf/s POOLf/spP     with stride s; with padding P
    GLOBALPOOL            largest value of each channel: one vector
    GLOBALAVGPOOL         mean of each channel: one vector
    FC n                  a Linear to n numbers; flattens the volume before it
    RELU  GELU  TANH ...  activations: the names of their layers in ``gpuconv.nn``, in capitals
    BN                    batch normalisation, per channel
    DROPOUT0.5            zeroes each number with probability 0.5, in training
    [ ... ]*N             what is inside, N times; brackets nest

Between layers there may be blanks, ``|``, ``,`` or ``->``; letters may be capital or small. Windows
that do not fit evenly are cropped: the last rows and columns are not looked at. Every filter and
every FC has a bias. Volumes are followed through the net while it is read, so a window larger than
its image, or a CONV behind an FC, is found before anything is built.

Source: CS231n notes, "Convolutional networks": INPUT -> [[CONV -> RELU]*N -> POOL?]*M ->
[FC -> RELU]*K -> FC; CONV3-64 is from Simonyan, Zisserman, "Very deep convolutional networks",
ICLR 2015, table 1.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

from gpuconv import nn
from gpuconv.messages import did_you_mean
from gpuconv.nn import Module, Sequential
from gpuconv.nn.layers import ACTIVATION_LAYERS
from gpuconv.ops.window import window_from

Volume = tuple[int, ...]  # (H, W, C); or (n,), behind FC and global pools

MAX_LAYERS = 1000         # of a net, repeats counted
MAX_NUMBERS = 2**31       # of one volume, and of all parameters: 8 GiB in float32
MAX_TEXT = 100_000        # characters

GAP = re.compile(r"(?:\s|[|,]|->|→)*")
INSIDE = r"(?:(?!->)[^\s|,\[\]*→])"  # of a word
REPEAT = re.compile(rf"\]\s*(\*\s*(?:([0-9]{{1,9}})(?!{INSIDE}))?)?")
WORD = re.compile(rf"([A-Za-z]+)({INSIDE}*)|{INSIDE}+|.", re.S)
REST = re.compile(f"{INSIDE}*")
NUMBER = re.compile(rf"\s+([0-9.]{INSIDE}*)")  # of "FC 10"

INT = "([0-9]{1,9})"
STEPS = f"(?:/{INT})?(?:p{INT})?"
SPELLING = {  # name: (what stands behind it, how to say what is wanted)
    "INPUT": (f"{INT}x{INT}x{INT}", "INPUT HxWxC: height, width and channels, as in "
              "INPUT 32x32x3"),
    "CONV": (f"{INT}-{INT}{STEPS}", "CONVf-K: K filters of f x f pixels, as in CONV3-64; "
             "CONV3-64/2 for stride 2, CONV3-64p0 for padding 0"),
    "POOL": (INT + STEPS, "POOLf: windows of f x f pixels, as in POOL2; POOL3/2 for stride 2"),
    "AVGPOOL": (INT + STEPS, "AVGPOOLf: windows of f x f pixels, as in AVGPOOL2; AVGPOOL3/2 for "
                "stride 2"),
    "FC": (INT, "FC n: a number of outputs, as in FC 10"),
    "DROPOUT": (r"(0(?:\.[0-9]{0,9})?|\.[0-9]{1,9})", "DROPOUTp: 0 <= p < 1, as in DROPOUT0.5"),
}
PLAIN: dict[str, Callable[[], Module]] = {
    **{layer.__name__.upper(): layer for layer in ACTIVATION_LAYERS},
    "GLOBALPOOL": nn.GlobalMaxPool2d, "GLOBALAVGPOOL": nn.GlobalAvgPool2d}
NAMES = ", ".join([*SPELLING, *PLAIN, "BN"])


@dataclasses.dataclass(frozen=True)
class Word:
    """A layer as it stands in the text: where, its name in capitals, its numbers."""

    start: int
    end: int
    name: str
    numbers: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer to be: where it stands in the text, how it is made, what comes out."""

    word: Word
    make: Callable[[], Module]
    output: Volume
    parameters: int


@dataclasses.dataclass(frozen=True)
class Net:
    """A notation that has been read: nothing is built yet."""

    text: str
    first: Word
    input: Volume
    layers: list[Layer]

    @property
    def output(self) -> Volume:
        """(n,), or (H, W, C) of a net that ends in an image."""
        return self.layers[-1].output

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def weights(self) -> int:
        """Number of parameters without biases; a layer with parameters has one per output."""
        return sum(layer.parameters - layer.output[-1] for layer in self.layers if layer.parameters)

    def build(self) -> Sequential:
        """Return the net, its weights drawn anew."""
        return Sequential(*(layer.make() for layer in self.layers))

    def refusal(self, word: Word, says: str) -> ValueError:
        """Return an error that points at a word."""
        return _error(self.text, word.start, word.end, says)


def parse(text: str) -> Net:
    """Read a notation, and follow the volumes through it.

    Args:
        text: as in the description of this module.

    Raises:
        ValueError: what cannot be read, or does not fit: says where and what was wanted, shows the
            text, and underlines the place.

    >>> net = parse("INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10")
    >>> [layer.output for layer in net.layers][-3:], net.parameters
    ([(16, 16, 32), (8192,), (10,)], 92074)
    >>> parse("INPUT 32x32x3 | CONV3x3 | FC 10")
    Traceback (most recent call last):
    ValueError: model, character 17: cannot read 'CONV3x3': wanted CONVf-K: K filters of f x \
f pixels, as in CONV3-64; CONV3-64/2 for stride 2, CONV3-64p0 for padding 0
        INPUT 32x32x3 | CONV3x3 | FC 10
                        ^^^^^^^
    """
    words = _unrolled(text)
    if not words or words[0].name != "INPUT":
        start, end = (words[0].start, words[0].end) if words else (0, len(text))
        raise _error(text, start, end, f"begin with {SPELLING['INPUT'][1]}")
    if len(words) == 1:
        raise _error(text, words[0].start, words[0].end, "no layers follow")
    first, *rest = words
    net = Net(text, first, tuple(_sizes(text, first)), [])
    volume = net.input
    _bounded(net, first, volume, 0)
    for word in rest:
        for make, output, parameters in _layer(net, word, volume):
            net.layers.append(Layer(word, make, output, parameters))
            _bounded(net, word, output, net.parameters)
            volume = output
    return net


# -- from text to words ------------------------------------------------------------------


def _unrolled(text: str) -> list[Word]:
    """Return the layers in order, repeats written out."""
    if len(text) > MAX_TEXT:
        raise _error(text[:MAX_TEXT], 0, 0, f"{len(text):,} characters: wanted at most "
                                            f"{MAX_TEXT:,}")
    groups: list[list[Word]] = [[]]
    opened: list[int] = []
    at = GAP.match(text).end()  # type: ignore[union-attr]
    while at < len(text):
        if text[at] == "[":
            opened.append(at)
            groups.append([])
            at += 1
        elif text[at] == "]":
            found = REPEAT.match(text, at)
            assert found
            at, times = found.end(), found[2]
            if not opened:
                raise _error(text, found.start(), found.start() + 1, "no [ is open")
            if found[1] and not times:
                rest = REST.match(text, found.start(1) + 1)
                assert rest
                raise _error(text, found.start(1), rest.end(),
                             "wanted a number of repeats, as in [CONV3-32 RELU]*2")
            start, group = opened.pop(), groups.pop()
            if not group:
                raise _error(text, start, found.start() + 1, "nothing between the brackets")
            if times and not 1 <= int(times) * len(group) <= MAX_LAYERS:
                raise _error(text, found.start(1), at, f"{int(times)} times {len(group)} layers: "
                             f"wanted 1 to {MAX_LAYERS} layers in all")
            groups[-1] += group * int(times or 1)
        else:
            groups[-1].append(word := _word(text, at))
            at = word.end
        if len(groups[-1]) > MAX_LAYERS:
            raise _error(text, 0, at, f"more than {MAX_LAYERS} layers")
        at = GAP.match(text, at).end()  # type: ignore[union-attr]
    if opened:
        raise _error(text, opened[-1], opened[-1] + 1, "this [ is never closed")
    return groups[0]


def _word(text: str, start: int) -> Word:
    """Parse the layer that is written at ``start``."""
    found = WORD.match(text, start)
    assert found
    name, numbers, end = (found[1] or "").upper(), found[2] or "", found.end()
    if name in SPELLING or name in PLAIN or name == "BN":
        apart = NUMBER.match(text, end)
        if apart and not numbers:
            numbers, end = apart[1], apart.end()
    else:
        near = did_you_mean(name, (*SPELLING, *PLAIN, "BN"))
        wanted = "* behind ] only" if found[0] == "*" else f"one of {NAMES}{near}"
        raise _error(text, start, end, f"cannot read {found[0]!r:.60}: wanted {wanted}")
    pattern, wanted = SPELLING.get(name, ("", f"{name} alone"))
    spelled = re.fullmatch(pattern, numbers, re.I)
    if not spelled:
        raise _error(text, start, end, f"cannot read {text[start:end]!r:.60}: wanted {wanted}")
    return Word(start, end, name, spelled.groups())


# -- from words to layers ----------------------------------------------------------------

Planned = tuple[Callable[[], Module], Volume, int]


def _layer(net: Net, word: Word, volume: Volume) -> list[Planned]:
    """Return (constructor, output, parameters) of the modules that a word stands for."""
    name, C = word.name, volume[-1]
    if name == "INPUT":
        raise net.refusal(word, "INPUT comes once, and first")
    if len(volume) == 1 and ("POOL" in name or name == "CONV"):
        raise net.refusal(word, f"{name} wants an image, and gets {C} numbers: it must stand "
                                f"before FC and before global pools")
    if name == "FC":
        K, = _sizes(net.text, word)
        C = math.prod(volume)
        flatten: list[Planned] = [(nn.Flatten, (C,), 0)] if len(volume) == 3 else []
        return [*flatten, (functools.partial(nn.Linear, C, K), (K,), (C + 1) * K)]
    if name in ("CONV", "POOL", "AVGPOOL"):
        return [_window(net, word, volume)]
    if name == "BN":
        return [(functools.partial(nn.BatchNorm2d, C), volume, 2 * C)]
    if name == "DROPOUT":
        return [(functools.partial(nn.Dropout, float(word.numbers[0] or 0)), volume, 0)]
    return [(PLAIN[name], (C,) if name.startswith("GLOBAL") else volume, 0)]


def _window(net: Net, word: Word, volume: Volume) -> Planned:
    """Parse a filter or a pooling window."""
    *sizes, step, pad = word.numbers
    f, *filters = (int(size or 0) for size in sizes)
    H, W, C = volume
    conv = word.name == "CONV"
    stride = int(step) if step else 1 if conv else f
    if min(f, stride, *filters) < 1:
        raise net.refusal(word, "sizes and strides are at least 1")
    if conv and pad is None and f % 2 == 0:
        raise net.refusal(word, f"no padding keeps the size under a filter of {f}x{f} pixels: "
                                f"say which, as in {net.text[word.start : word.end]}p{f // 2}")
    padding = int(pad) if pad else (f - 1) // 2 if conv and pad is None else 0
    if not conv and 2 * padding > f:
        raise net.refusal(word, f"padding {padding} is more than half of the window, {f}")
    try:
        P, Q = window_from(word.name, f, stride, padding, 1).out_shape(H, W)
    except ValueError:
        raise net.refusal(word, f"a window of {f}x{f} pixels with padding {padding} does not fit "
                                f"an image of {H}x{W}") from None
    if conv:
        K, = filters
        return (functools.partial(nn.Conv2d, C, K, f, stride, padding), (P, Q, K),
                (f * f * C + 1) * K)
    pool = nn.MaxPool2d if word.name == "POOL" else nn.AvgPool2d
    return functools.partial(pool, f, stride, padding), (P, Q, C), 0


def _sizes(text: str, word: Word) -> list[int]:
    sizes = [int(number or 0) for number in word.numbers]
    if min(sizes) < 1:
        raise _error(text, word.start, word.end, "sizes are at least 1")
    return sizes


def _bounded(net: Net, word: Word, volume: Volume, parameters: int) -> None:
    for numbers, what in ((math.prod(volume), f"a volume of {'x'.join(map(str, volume))}"),
                          (parameters, f"a net of {parameters:,} parameters")):
        if numbers > MAX_NUMBERS:
            raise net.refusal(word, f"{what} is too large: at most {MAX_NUMBERS:,} numbers")


def _error(text: str, start: int, end: int, says: str) -> ValueError:
    """Return the error; its note shows the text around the place, with a line under the place."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    cut = max(0, min(start - 30, len(shown) - 100))
    before, after = "..." * (cut > 0), "..." * (len(shown) > cut + 100)
    line = "^" * max(1, min(end, cut + 100) - start)
    error = ValueError(f"model, character {start + 1}: {says}")
    error.add_note(f"    {before}{shown[cut:cut + 100]}{after}\n"
                   f"    {' ' * (len(before) + start - cut)}{line}")
    return error
