"""Networks by name, and networks written in the notation of the course notes.

A *description* says, in words that JSON can hold, how a network is built:

    {"name": "cifar_convnet", "arguments": {"in_channels": 3, "classes": 10, "image": 32}}
    {"notation": "INPUT 32x32x3 | [CONV3-32 RELU]*2 POOL2 | FC 10"}

``describe`` makes one of what a user wrote, ``build`` makes the network of it, and ``plan`` tells
its sizes without building it. The notation is explained in ``gpuconv.models.notation``.
"""

from gpuconv.models.convnet import cifar_convnet, simple_convnet
from gpuconv.models.description import MODELS, build, describe, input_shape, plan
from gpuconv.models.speedrun import Speedrun, speedrun

__all__ = ["MODELS", "Speedrun", "build", "cifar_convnet", "describe", "input_shape",
           "plan", "simple_convnet", "speedrun"]
