"""The convolutions of cifar_convnet: value, input gradient, weight gradient."""

import cudnn_conv
import pytest
from harness import Work, libraries, measure

from gpuconv.ops import conv2d

N = 128
LAYERS = {  # image side, channels, filters; 3x3, padding 1
    "conv1 32x32 3-32": (32, 3, 32), "conv2 32x32 32-32": (32, 32, 32),
    "conv3 16x16 32-64": (16, 32, 64), "conv4 16x16 64-64": (16, 64, 64),
    "conv5 8x8 64-128": (8, 64, 128), "conv6 8x8 128-128": (8, 128, 128),
}


@libraries(tf32=True, cudnn=True)
@pytest.mark.parametrize("gradient", ["", "x", "w"], ids=["forward", "gx", "gw"])
@pytest.mark.parametrize("layer", LAYERS)
def test_conv(benchmark, library, layer, gradient, rng):
    H, C, K = LAYERS[layer]
    x, w, gy = (rng.standard_normal(shape, "float32") for shape in
                [(N, H, H, C), (K, 3, 3, C), (N, H, H, K)])
    work = Work(
        f"{layer} {'g' + gradient if gradient else 'forward'}", dict(x=x, w=w, gy=gy),
        ours=lambda x, w: conv2d(x, w, padding=1), torch=torch_conv, gradient_of=tuple(gradient),
        flops=2 * gy.size * 9 * C, traffic=x.nbytes + w.nbytes + gy.nbytes, images=N,
        terms={"": 9 * C, "x": 9 * K, "w": N * H * H}[gradient],
        cudnn=lambda x, w, gy: cudnn_conv.prepare(x, w, gy, gradient))
    measure(benchmark, work, library)


def torch_conv(x, w):
    import torch
    return torch.nn.functional.conv2d(x, w, padding=1)
