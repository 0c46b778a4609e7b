"""The net of the fastest ways to 94 % on CIFAR-10: small, wide, and trained in few steps.

    block     layers                             output             parameters (RGB, 10 classes)
    whiten    conv 2x2 to 24 filters, GELU       (N, 31, 31, 24)    288 + 24
    64        conv pool BN GELU, conv BN GELU    (N, 15, 15, 64)    13,824 +  36,864 + 2 *  64
    256       likewise                           (N, 7, 7, 256)     147,456 + 589,824 + 2 * 256
    256       likewise                           (N, 3, 3, 256)     589,824 + 589,824 + 2 * 256
    head      max pool 3, linear, times 1/256    (N, 10)            2,560
                                                                    1,971,640 in all; and 1,152
                                                                    scales of norms, fixed at 1

    each conv but the first is 3x3, padding 1, without bias; each pool is a max pool 2x2, and stands
    before the norm. Of a norm only the bias is learned.

The filters of the first layer are not learned either: ``prepare`` sets them so that the 2x2 patches
of the training images become white (of variance 1, uncorrelated). The others begin as PyTorch's do,
but as many of each layer as it has channels begin as identities: signals and gradients pass all
layers from the first step on. The head begins with a standard deviation of 1.

Sources: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024; Page, "How to train your
ResNet 8: bag of tricks", 2019 (whitening).
"""

from gpuconv.backend import Array, array_device
from gpuconv.models.convnet import check_image
from gpuconv.nn import (
    GELU,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    Scale,
    Sequential,
    init,
)
from gpuconv.nn.sizes import positive

GROUPS = 64, 256, 256       # filters of both convolutions of a group
SMALLEST = 25               # pixels: 24 patches in a row, halved three times, are 3
EPS, MOMENTUM = 1e-12, 0.4  # of the norms
# The layers in the notation, to know sizes before anything is built; biases apart.
LAYERS = ("INPUT {image}x{image}x{in_channels} | CONV2-{filters}p0 GELU" + "".join(
    f" | CONV3-{K} POOL2 BN GELU CONV3-{K} BN GELU" for K in GROUPS) + " | POOL3 FC {classes}")


class Speedrun(Sequential):
    """A chain whose first layer whitens patches of images."""

    def prepare(self, images: Array) -> None:
        """Set the filters of the first layer, which training then leaves as they are.

        ``train.fit`` calls it before its first step.

        Args:
            images: (N, H, W, C) floats, normalised as the network will see them; a few thousand do.

        Raises:
            ValueError: the shapes do not fit.
        """
        init.whitening_(self[0].weight, images)


def speedrun(in_channels: int = 3, classes: int = 10, image: int = 32) -> Speedrun:
    """Build a whitening layer, three groups of two 3x3 convolutions each, and one Linear.

    Args:
        in_channels: C, of images (N, image, image, C).
        classes: of logits (N, classes).
        image: height and width, pixels, at least 25: the last pool takes 3x3 pixels of what three
            others have halved. Up to 48 it leaves one pixel: the Linear takes 256 numbers.

    Raises:
        TypeError, ValueError: a number is no int, or too small.

    >>> sum(p.size for p in speedrun().parameters() if p.requires_grad)
    1971352
    """
    C, _, pixels = positive("speedrun", in_channels=in_channels, classes=classes, image=image)
    check_image("speedrun", pixels, SMALLEST)
    whitening = Conv2d(C, 8 * C, 2)  # each of the 2*2*C directions, and the same negated
    whitening.weight.requires_grad = False
    modules: list[Module] = [whitening, GELU()]
    C, pixels = 8 * C, pixels - 1
    for K in GROUPS:
        modules += [_filters(C, K), MaxPool2d(2), _norm(K), GELU(),
                    _filters(K, K), _norm(K), GELU()]
        C, pixels = K, pixels // 2
    head = Linear((pixels // 3)**2 * C, classes, bias=False)
    with array_device(head.weight.data):
        head.weight.data[...] /= head.weight.data.std()
    return Speedrun(*modules, MaxPool2d(3), Flatten(), head, Scale(1 / C))


def _filters(C: int, K: int) -> Conv2d:
    conv = Conv2d(C, K, 3, padding=1, bias=False)
    init.dirac_(conv.weight, keep=True)
    return conv


def _norm(K: int) -> BatchNorm2d:
    norm = BatchNorm2d(K, EPS, MOMENTUM)
    norm.weight.requires_grad = False
    return norm
