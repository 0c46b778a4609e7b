"""What a network is, in words that JSON can hold: to build it again, in another process.

    {"name": "cifar_convnet", "arguments": {"in_channels": 3, "classes": 10, "image": 32}}
    {"notation": "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10"}
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.checks import check_count, check_kind, short
from gpuconv.models import notation
from gpuconv.models.convnet import cifar_convnet, simple_convnet
from gpuconv.models.speedrun import speedrun
from gpuconv.nn import Module
from gpuconv.nn.layers import positive

MODELS: dict[str, Callable[..., Module]] = {
    "cifar_convnet": cifar_convnet,
    "simple_convnet": simple_convnet,
    "speedrun": speedrun,
}

Description = dict[str, Any]


def describe(text: str, *, in_channels: int | None = None, classes: int | None = None,
             image: int | tuple[int, int] | None = None) -> Description:
    """The description of the network that a user asks for.

    Args:
        text: a name in ``MODELS``; or, with a blank in it or INPUT at its head, the notation.
        in_channels: C of the images. Default: what the notation says; 3 for a name.
        classes: that are told apart. Default: what the notation says; 10 for a name.
        image: height and width of the images, pixels, one int or (H, W). Default: what the
            notation says; 32 for a name.

    Returns:
        What ``build`` takes.

    Raises:
        ValueError: an unknown name; a notation that cannot be read (points at the place); a
            notation for other images or other classes than these (says both).

    >>> describe("simple_convnet", classes=4)
    {'name': 'simple_convnet', 'arguments': {'in_channels': 3, 'classes': 4, 'image': 32}}
    >>> describe("INPUT 8x8x1  CONV3-4 RELU FC 2")
    {'notation': 'INPUT 8x8x1 CONV3-4 RELU FC 2'}
    >>> describe("INPUT 8x8x1 FC 2", classes=10)
    Traceback (most recent call last):
    ValueError: model, character 13: the net gives 2 numbers, the data have 10 classes
        INPUT 8x8x1 FC 2
                    ^^^^
    """
    check_kind("describe", "text", text, str)
    sizes = image if isinstance(image, tuple) else (image, image)
    if len(sizes) != 2:
        raise ValueError(f"describe: image is {short(image)}, wanted one size, or (H, W)")
    for name, n in (("in_channels", in_channels), ("classes", classes), *(
            ("image", n) for n in sizes)):
        if n is not None:
            check_count("describe", name, n)
    text = " ".join(text.split())
    if " " in text or text.upper().startswith("INPUT"):
        _compare(notation.parse(text), in_channels, classes, image)
        return {"notation": text}
    made_for = _arguments(text)
    wanted: dict[str, Any] = {"in_channels": in_channels, "classes": classes,
                              "image": _square(text, image)}
    arguments = made_for | {name: value for name, value in wanted.items() if value is not None}
    return {"name": text, "arguments": arguments}


def build(description: Mapping[str, Any]) -> Module:
    """The network of a description, its weights drawn anew.

    Args:
        description: of ``describe``, or read from a file.

    Raises:
        ValueError: it is no description, or nothing can be built of it; says why.

    >>> build({"notation": "INPUT 8x8x3 | CONV3-4 RELU | FC 2"})
    Sequential(
      0: Conv2d(3, 4, (3, 3), padding=((1, 1), (1, 1)))
      1: ReLU()
      2: Flatten()
      3: Linear(256, 2)
    )
    """
    text = _notation(description)
    if text is not None:
        return notation.parse(text).build()
    name = description["name"]
    arguments = _arguments(name, description.get("arguments"))
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"model {name}: {error}") from None


def input_shape(description: Mapping[str, Any]) -> tuple[int, int, int]:
    """(H, W, C) of the images that the network of a description takes.

    Raises:
        ValueError: as ``build``.

    >>> input_shape({"name": "cifar_convnet"})
    (32, 32, 3)
    """
    text = _notation(description)
    if text is not None:
        H, W, C = notation.parse(text).input
        return H, W, C
    name = description["name"]
    a = _arguments(name, description.get("arguments"))
    try:
        image, C = positive(f"model {name}", image=a["image"], in_channels=a["in_channels"])
    except TypeError as error:
        raise ValueError(str(error)) from None
    return image, image, C


def _notation(description: Mapping[str, Any]) -> str | None:
    """The notation, or None for a name."""
    keys = set(description) if isinstance(description, Mapping) else None
    if keys == {"notation"} and isinstance(description["notation"], str):
        return description["notation"]
    if keys in ({"name"}, {"name", "arguments"}) and isinstance(description["name"], str):
        return None
    raise ValueError(f"no description of a model: {short(description)}, wanted "
                     '{"name": ..., "arguments": {...}} or {"notation": ...}')


def _arguments(name: str, given: Any = None) -> dict[str, Any]:
    """All arguments of a model, those that are not given as they are by default."""
    if name not in MODELS:
        raise ValueError(f"unknown model {short(name)}: wanted {', '.join(MODELS)}, or a notation "
                         'such as "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10"')
    try:
        bound = inspect.signature(MODELS[name]).bind(**(given or {}))
    except TypeError as error:
        raise ValueError(f"model {name}: arguments {short(given)}: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def _square(name: str, image: int | tuple[int, int] | None) -> int | None:
    if not isinstance(image, tuple):
        return image
    if image[0] != image[1]:
        raise ValueError(f"model {name}: it is made for square images, not for {image[0]} pixels "
                         f"high and {image[1]} wide: a notation, \"INPUT {image[0]}x{image[1]}x... "
                         '| ...", can be')
    return image[0]


def _compare(net: notation.Net, in_channels: int | None, classes: int | None,
             image: int | tuple[int, int] | None) -> None:
    """Raise if the net was written for other images or classes."""
    H, W = image if isinstance(image, tuple) else (image, image)
    data = tuple(mine if theirs is None else theirs
                 for mine, theirs in zip(net.input, (H, W, in_channels), strict=True))
    if data != net.input:
        said, are = ("x".join(map(str, sizes)) for sizes in (net.input, data))
        raise net.refusal(net.first, f"the net is for images of {said}, the data are {are}")
    if classes is not None and net.output != (classes,):
        ends = (f"gives {net.output[0]} numbers" if len(net.output) == 1 else
                f"ends in an image of {'x'.join(map(str, net.output))}")
        raise net.refusal(net.layers[-1].word, f"the net {ends}, the data have {classes} classes")
