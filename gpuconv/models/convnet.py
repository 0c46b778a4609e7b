"""Plain ConvNets, for 32 x 32 images unless another size is asked for.

    cifar_convnet     block        filters   output              parameters (RGB, 10 classes)
                      conv conv      32      (N, 16, 16, 32)     864 +   9,216 +   2 *  64
                      conv conv      64      (N, 8, 8, 64)       18,432 +  36,864 + 2 * 128
                      conv conv     128      (N, 4, 4, 128)      73,728 + 147,456 + 2 * 256
                      linear                 (N, 10)             20,490
                                                                 307,946 in all

    each conv is 3x3, padding 1, without bias (the norm has one), then BatchNorm2d and ReLU; each
    block ends in a max pool that halves the image.

    simple_convnet    conv           32      (N, 32, 32, 32)     2,432
                      linear                 (N, 10)             81,930
                                                                 84,362 in all

    conv 5x5, padding 2, ReLU, max pool 2, linear: INPUT-CONV-RELU-POOL-FC of the course notes.

All weights start as PyTorch's do.

Sources: Simonyan, Zisserman, "Very deep convolutional networks", ICLR 2015 (blocks of 3x3 filters);
Ioffe, Szegedy, "Batch normalization", ICML 2015; CS231n notes, "Convolutional networks".
"""

from gpuconv.nn import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)
from gpuconv.nn.sizes import positive

BLOCKS = 32, 64, 128     # filters of both convolutions of a block
# The layers in the notation, to know sizes before anything is built; biases apart.
CIFAR_LAYERS = ("INPUT {image}x{image}x{in_channels}" + "".join(
    f" | [CONV3-{K} BN RELU]*2 POOL2" for K in BLOCKS) + " | FC {classes}")
SIMPLE_LAYERS = "INPUT {image}x{image}x{in_channels} | CONV5-32 RELU POOL2 | FC {classes}"
CIFAR_SMALLEST, SIMPLE_SMALLEST = 8, 2  # height and width of images, pixels


def cifar_convnet(in_channels: int = 3, classes: int = 10, image: int = 32) -> Sequential:
    """Build three blocks of two 3x3 convolutions each, then one Linear.

    Args:
        in_channels: C, of images (N, image, image, C).
        classes: of logits (N, classes).
        image: height and width, pixels, at least 8: three pools halve it. The Linear takes
            (image // 8)**2 * 128 numbers.

    Raises:
        TypeError, ValueError: a number is no int, or too small.

    >>> sum(p.size for p in cifar_convnet().parameters())
    307946
    """
    C, _, pixels = positive("cifar_convnet", in_channels=in_channels, classes=classes, image=image)
    check_image("cifar_convnet", pixels, CIFAR_SMALLEST)
    modules: list[Module] = []
    for K in BLOCKS:
        for channels in (C, K):
            modules += [Conv2d(channels, K, 3, padding=1, bias=False), BatchNorm2d(K), ReLU()]
        modules.append(MaxPool2d(2))
        C, pixels = K, pixels // 2
    return Sequential(*modules, Flatten(), Linear(pixels * pixels * C, classes))


def simple_convnet(in_channels: int = 3, classes: int = 10, image: int = 32) -> Sequential:
    """Build one 5x5 convolution, then one Linear.

    Args:
        in_channels: C, of images (N, image, image, C).
        classes: of logits (N, classes).
        image: height and width, pixels, at least 2: a pool halves it. The Linear takes
            (image // 2)**2 * 32 numbers.

    Raises:
        TypeError, ValueError: a number is no int, or too small.

    >>> sum(p.size for p in simple_convnet().parameters())
    84362
    """
    C, _, pixels = positive("simple_convnet", in_channels=in_channels, classes=classes,
                            image=image)
    check_image("simple_convnet", pixels, SIMPLE_SMALLEST)
    K, pixels = 32, pixels // 2
    return Sequential(Conv2d(C, K, 5, padding=2), ReLU(), MaxPool2d(2), Flatten(),
                      Linear(pixels * pixels * K, classes))


def check_image(model: str, pixels: int, smallest: int) -> None:
    """Refuse images of which a model's pools leave nothing."""
    if pixels < smallest:
        raise ValueError(f"{model}: image is {pixels} pixels, wanted at least {smallest}: "
                         "pools leave nothing of less")
