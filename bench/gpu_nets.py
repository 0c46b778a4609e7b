"""The convolutions of some networks: what the engine is held to, layer by layer.

Speed-run net: airbench94_muon (github.com/KellerJordan/cifar10-airbench). VGG-16: Simonyan and
Zisserman, ICLR 2015, configuration D. ResNet-50: He et al., CVPR 2016, with the strides in the 3x3
layers, as everybody trains it.
"""

from typing import NamedTuple

from gpuconv.ops.window import ConvShape, Window


class Layer(NamedTuple):
    """Square images, filters, strides and padding."""

    side: int        # of the images, pixels
    C: int
    K: int
    size: int = 3    # of the filters
    stride: int = 1
    count: int = 1   # of such layers in the net

    def sizes(self, N: int) -> ConvShape:
        """Return the sizes for N images, padded to keep their size; not for 2x2 filters."""
        pad, size = (self.size - 1) // 2, self.size
        window = Window((size, size), (self.stride,) * 2, ((pad, pad), (pad, pad)))
        return ConvShape(N, self.side, self.side, self.C, self.K, window)

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return (f"{self.side}x{self.side} {self.size}x{self.size}{stride} {self.C}-{self.K}{times}")


def _block(side: int, C: int, width: int, blocks: int) -> list[Layer]:
    """A stage of ResNet-50: its first block takes images of `side` pixels and C channels."""
    stride = 1 if side == 56 and C == 64 else 2
    after, wide = side // stride, 4 * width
    return [Layer(side, C, width, 1), Layer(side, width, width, 3, stride),
            Layer(side, C, wide, 1, stride), Layer(after, width, wide, 1, count=blocks),
            Layer(after, wide, width, 1, count=blocks - 1),
            Layer(after, width, width, 3, count=blocks - 1)]


CIFAR = [Layer(32, 3, 32), Layer(32, 32, 32), Layer(16, 32, 64), Layer(16, 64, 64),
         Layer(8, 64, 128), Layer(8, 128, 128)]

NETS: dict[str, tuple[int, list[Layer]]] = {  # images of a batch, layers
    "cifar_convnet, batch 128": (128, CIFAR),
    "cifar_convnet, batch 1024": (1024, CIFAR),
    "speed-run net, batch 2000": (2000, [
        Layer(32, 3, 24, 2), Layer(31, 24, 64), Layer(15, 64, 64), Layer(15, 64, 256),
        Layer(7, 256, 256, count=2), Layer(3, 256, 256)]),
    "VGG-16, batch 256": (256, [
        Layer(224, 3, 64), Layer(224, 64, 64), Layer(112, 64, 128), Layer(112, 128, 128),
        Layer(56, 128, 256), Layer(56, 256, 256, count=2), Layer(28, 256, 512),
        Layer(28, 512, 512, count=2), Layer(14, 512, 512, count=3)]),
    "ResNet-50, batch 256": (256, [
        Layer(224, 3, 64, 7, 2), *_block(56, 64, 64, 3), *_block(56, 256, 128, 4),
        *_block(28, 512, 256, 6), *_block(14, 1024, 512, 3)]),
}
