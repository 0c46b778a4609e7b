"""Descriptions of networks as JSON, to build them again in another process.

    {"name": "cifar_convnet", "arguments": {"in_channels": 3, "classes": 10, "image": 32}}
    {"notation": "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10"}
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gpuconv.checks import check_count, check_kind, short
from gpuconv.free_memory import check_free_memory
from gpuconv.messages import did_you_mean
from gpuconv.models import notation
from gpuconv.models.convnet import (
    CIFAR_LAYERS,
    CIFAR_SMALLEST,
    SIMPLE_LAYERS,
    SIMPLE_SMALLEST,
    check_image,
    cifar_convnet,
    simple_convnet,
)
from gpuconv.models.speedrun import LAYERS as SPEEDRUN_LAYERS
from gpuconv.models.speedrun import SMALLEST as SPEEDRUN_SMALLEST
from gpuconv.models.speedrun import speedrun
from gpuconv.nn import Module
from gpuconv.nn.sizes import positive

MODELS: dict[str, Callable[..., Module]] = {
    "cifar_convnet": cifar_convnet,
    "simple_convnet": simple_convnet,
    "speedrun": speedrun,
}
LAYERS = {  # name: layers in the notation, least height and width of images
    "cifar_convnet": (CIFAR_LAYERS, CIFAR_SMALLEST),
    "simple_convnet": (SIMPLE_LAYERS, SIMPLE_SMALLEST),
    "speedrun": (SPEEDRUN_LAYERS, SPEEDRUN_SMALLEST),
}

Description = dict[str, Any]


def describe(text: str, *, in_channels: int | None = None, classes: int | None = None,
             image: int | tuple[int, int] | None = None) -> Description:
    """Return the description of the network that a user asks for.

    Args:
        text: a name in ``MODELS``; or, with a blank in it or INPUT at its head, the notation.
        in_channels: C of the images. Default: what the notation says; 3 for a name.
        classes: that are told apart. Default: what the notation says; 10 for a name.
        image: height and width of the images, pixels, one int or (H, W). Default: what the
            notation says; 32 for a name.

    Returns:
        What ``build`` takes.

    Raises:
        ValueError: an unknown name; a notation that cannot be read (a note points at the place); a
            notation for other images or other classes than these (says both).

    >>> describe("simple_convnet", classes=4)
    {'name': 'simple_convnet', 'arguments': {'in_channels': 3, 'classes': 4, 'image': 32}}
    >>> describe("INPUT 8x8x1  CONV3-4 RELU FC 2")
    {'notation': 'INPUT 8x8x1 CONV3-4 RELU FC 2'}
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
    made_for = _arguments({"name": text})
    wanted: dict[str, Any] = {"in_channels": in_channels, "classes": classes,
                              "image": _square(text, image)}
    arguments = made_for | {name: value for name, value in wanted.items() if value is not None}
    return {"name": text, "arguments": arguments}


def build(description: Mapping[str, Any]) -> Module:
    """Return the network of a description, its weights drawn anew.

    Args:
        description: of ``describe``, or read from a file.

    Raises:
        ValueError: it is no description, or nothing can be built of it; says why.
        MemoryError: its weights do not fit into the memory that is free; none has been taken.

    >>> build({"notation": "INPUT 8x8x3 | CONV3-4 RELU | FC 2"})
    Sequential(
      0: Conv2d(3, 4, (3, 3), padding=((1, 1), (1, 1)))
      1: ReLU()
      2: Flatten()
      3: Linear(256, 2)
    )
    """
    net = plan(description)
    check_free_memory(2 * 4 * net.parameters, "the model's weights")  # and their random numbers
    if "notation" in description:
        return net.build()
    return MODELS[description["name"]](**_arguments(description))


def plan(description: Mapping[str, Any]) -> notation.Net:
    """Follow the volumes through the network of a description, without building it.

    Args:
        description: of ``describe``, or read from a file.

    Returns:
        A plan whose ``input`` (H, W, C), ``output`` (n,) and ``weights`` are those of the network.
        A name in ``MODELS`` may have fewer ``parameters``: some of its layers lack biases.

    Raises:
        ValueError: as ``build``.

    >>> plan({"name": "simple_convnet", "arguments": {"classes": 100_000}}).weights
    819202400
    """
    text = _notation(description)
    if text is not None:
        return notation.parse(text)
    name, a = description["name"], _arguments(description)
    try:
        positive(f"model {name}", **a)
    except TypeError as error:
        raise ValueError(f"{error!s:.200}") from None
    layers, smallest = LAYERS[name]
    check_image(name, a["image"], smallest)
    try:
        return notation.parse(layers.format(**a, filters=8 * a["in_channels"]))
    except ValueError:
        raise ValueError(f"model {name}: image is {a['image']} pixels, in_channels "
                         f"{a['in_channels']}, classes {a['classes']}: more than "
                         f"{notation.MAX_NUMBERS:,} numbers") from None


def input_shape(description: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (H, W, C) of the images that the network of a description takes.

    Raises:
        ValueError: as ``build``.

    >>> input_shape({"name": "cifar_convnet"})
    (32, 32, 3)
    """
    H, W, C = plan(description).input
    return H, W, C


def _notation(description: Mapping[str, Any]) -> str | None:
    """Return the notation of a description, or None for a name."""
    keys = set(description) if isinstance(description, Mapping) else None
    if keys == {"notation"} and isinstance(description["notation"], str):
        return description["notation"]
    if keys in ({"name"}, {"name", "arguments"}) and isinstance(description["name"], str):
        return None
    raise ValueError(f"no description of a model: {short(description)}, wanted "
                     '{"name": ..., "arguments": {...}} or {"notation": ...}')


def _arguments(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a named model, those that are not given as they are by default."""
    name, given = description["name"], description.get("arguments")
    if name not in MODELS:
        raise ValueError(f"unknown model {short(name)}: wanted {', '.join(MODELS)}, or a notation "
                         'such as "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10"'
                         f"{did_you_mean(name, MODELS)}")
    try:
        bound = inspect.signature(MODELS[name]).bind(**({} if given is None else given))
    except TypeError as error:
        raise ValueError(f"model {name}: arguments {short(given)}: {error!s:.200}") from None
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
