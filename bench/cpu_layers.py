"""Every conv layer of five nets: forward, input gradient, weight gradient.

    sgemm    one product of the matrices of the definition, all threads, into memory that is there:
             y = col(x) w^T, col = gy w, gw = gy^T col(x); where the stride is 1, the input gradient
             is also gx = col(gy) times the rotated filters, and the faster of both products counts
    im2col   gpuconv.reference.conv2d_im2col: the patches of the whole batch, and one product

Rates count the multiplications of the definition, whatever the algorithm.

Sources: LeCun and others, "Gradient-based learning applied to document recognition", 1998 (LeNet-5,
C3 fully connected); Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
2014 (AlexNet as in torchvision); Simonyan and Zisserman, 2015 (VGG-16); He and others, 2016
(ResNet-18).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import harness
import numpy as np
from cpu_rounds import OURS, TORCH, Run, Size, Timed, best, race
from cpu_table import Found, Target, mean, ratio
from harness import Work
from report import written

from gpuconv import reference
from gpuconv.ops import conv2d, im2col

MEMORY = 128 << 20  # bytes that x and y of a layer may take
LEAST = 2           # images
GRADIENTS = {"forward": "", "gx": "x", "gw": "w"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A square filter over square images; ``times`` it stands in its net."""

    net: str
    H: int
    C: int
    K: int
    R: int
    stride: int = 1
    padding: int = 0
    times: int = 1
    most: int = 4096  # images

    def __str__(self) -> str:
        return (f"{self.net} {self.R}x{self.R}{f' /{self.stride}' * (self.stride > 1)}, "
                f"{self.C}-{self.K}, {self.H}x{self.H}")

    @property
    def first(self) -> bool:
        """Of its net: its input gradient is nobody's."""
        return self.C in (1, 3)

    @property
    def out(self) -> int:
        """P: side of the result."""
        return (self.H + 2 * self.padding - self.R) // self.stride + 1

    @property
    def flops(self) -> int:
        """Of one image."""
        return 2 * self.out**2 * self.K * self.R**2 * self.C

    def batch(self, flops: float) -> int:
        """Images with about so many operations, as far as memory goes."""
        image = 4 * (self.H**2 * self.C + self.out**2 * self.K)
        return max(LEAST, min(round(flops / self.flops), MEMORY // image, self.most))


def _layers() -> Iterator[Layer]:
    H, C = 32, 3
    for K in (32, 64, 128):
        for channels in (C, K):
            yield Layer("cifar_convnet", H, channels, K, 3, padding=1, most=128)
        H, C = H // 2, K
    for H, C, K in ((32, 1, 6), (14, 6, 16), (5, 16, 120)):
        yield Layer("LeNet-5", H, C, K, 5)
    yield Layer("AlexNet", 224, 3, 64, 11, stride=4, padding=2)
    yield Layer("AlexNet", 27, 64, 192, 5, padding=2)
    for C, K in ((192, 384), (384, 256), (256, 256)):
        yield Layer("AlexNet", 13, C, K, 3, padding=1)
    for H, C, K, times in ((224, 3, 64, 1), (224, 64, 64, 1), (112, 64, 128, 1), (112, 128, 128, 1),
                           (56, 128, 256, 1), (56, 256, 256, 2), (28, 256, 512, 1),
                           (28, 512, 512, 2), (14, 512, 512, 3)):
        yield Layer("VGG-16", H, C, K, 3, padding=1, times=times)
    yield Layer("ResNet-18", 224, 3, 64, 7, stride=2, padding=3)
    yield Layer("ResNet-18", 56, 64, 64, 3, padding=1, times=4)
    for H, C in ((56, 64), (28, 128), (14, 256)):
        yield Layer("ResNet-18", H, C, 2 * C, 3, stride=2, padding=1)
        yield Layer("ResNet-18", H // 2, 2 * C, 2 * C, 3, padding=1, times=3)
        yield Layer("ResNet-18", H, C, 2 * C, 1, stride=2)


LAYERS = list(_layers())


class Case:
    """A layer with its arrays, and the three things it computes."""

    def __init__(self, layer: Layer, N: int):
        self.layer, self.N, rng = layer, N, np.random.default_rng(0)
        R, C, K, P = layer.R, layer.C, layer.K, layer.out
        x, w, gy = (harness.common(rng.standard_normal(shape, "float32")) for shape in
                    [(N, layer.H, layer.H, C), (K, R, R, C), (N, P, P, K)])
        self.arrays = dict(x=x, w=w, gy=gy)
        around: dict[str, Any] = dict(stride=layer.stride, padding=layer.padding)
        self.im2col: dict[str, Run] = {
            "forward": lambda: reference.conv2d_im2col(x, w, **around),
            "gx": lambda: reference.conv2d_im2col_dgrad(gy, x, w, **around),
            "gw": lambda: reference.conv2d_im2col_wgrad(gy, x, w, **around)}

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K of the product of the forward pass: rows, filters, length of the sums."""
        return self.N * self.layer.out**2, self.layer.K, self.layer.R**2 * self.layer.C

    def sgemm(self, product: str) -> dict[str, Run]:
        """By name: the products that make this up, into memory that is there."""
        layer, (M, K, RSC) = self.layer, self.sizes
        w, gy = self.arrays["w"].reshape(K, RSC), self.arrays["gy"].reshape(M, K)
        if product == "gx":
            found = {"sgemm": (gy, w)}  # -> (N*P*Q, R*S*C)
            if layer.stride == 1:
                rows = im2col(self.arrays["gy"], layer.R, 1, layer.R - 1 - layer.padding)
                rotated = np.ascontiguousarray(  # (R*S*K, C)
                    np.moveaxis(self.arrays["w"][:, ::-1, ::-1], 0, 2)).reshape(-1, layer.C)
                found["sgemm gather"] = rows.reshape(-1, len(rotated)), rotated  # (N*H*W, R*S*K)
        else:
            col = im2col(self.arrays["x"], layer.R, layer.stride, layer.padding).reshape(M, RSC)
            found = {"sgemm": (col, w.T) if product == "forward" else (gy.T, col)}
        return {name: multiplying(*factors) for name, factors in found.items()}

    def work(self, product: str) -> Work:
        layer, gradient = self.layer, GRADIENTS[product]
        around: dict[str, Any] = dict(stride=layer.stride, padding=layer.padding)

        def by_torch(x, w):
            import torch
            return torch.nn.functional.conv2d(x, w, **around)

        M, K, RSC = self.sizes
        return Work(f"{layer}, {product}", self.arrays, lambda x, w: conv2d(x, w, **around),
                    by_torch, gradient_of=tuple(gradient), flops=2 * M * K * RSC,
                    terms={"": RSC, "x": K * layer.R**2, "w": M}[gradient],
                    definition=self.im2col[product])


def multiplying(a: np.ndarray, b: np.ndarray) -> Run:
    """One np.matmul."""
    out = np.empty((len(a), b.shape[1]), a.dtype)
    return lambda: np.matmul(a, b, out=out)


def layers(size: Size, rivals: Sequence[str], say: Callable[[str], None]) -> Found:
    """Rates of every layer."""
    found = Found()
    for layer in LAYERS[::size.every]:
        say(str(layer))
        case = Case(layer, layer.batch(size.flops))
        for product in GRADIENTS:
            more = {"im2col": case.im2col[product], **case.sgemm(product)}
            times = race(case.work(product), size, rivals, more, found.wrong)
            found.rows.append(row_of(case, product, times))
    found.table("GFLOP/s, float32, batch N; M, N, K: the product of the forward pass. "
                "*: the input gradient of a net's first layer, not needed in training and not "
                "counted below.",
                ["layer", "", "N", "M, N, K", "ms", "gpuconv", "sgemm", "im2col", "PyTorch",
                 "PyTorch channels_last", "/ sgemm", "/ im2col", "/ PyTorch", "spread"],
                map(cells, found.rows), 2)
    summarize(found)
    return found


def row_of(case: Case, product: str, times: dict[str, Timed]) -> dict[str, Any]:
    """What was measured of a product, with its three ratios; above 1 gpuconv is faster."""
    ours = times[OURS].seconds if OURS in times else None
    sgemm = min(times[name].seconds for name in ("sgemm", "sgemm gather") if name in times)
    return dict(layer=case.layer, product=product, batch=case.N, sizes=case.sizes, times=times,
                flops=case.N * case.layer.flops, counts=product != "gx" or not case.layer.first,
                ours=ours, sgemm=ratio(sgemm, ours),
                im2col=ratio(times["im2col"].seconds, ours), torch=ratio(best(times), ours))


def cells(row: dict[str, Any]) -> list[str]:
    times = row["times"]

    def rate(*names: str) -> str:
        seconds = [times[name].seconds for name in names if name in times]
        return written(row["flops"] / min(seconds) / 1e9 if seconds else None, ",.0f")

    return [str(row["layer"]), row["product"] + "*" * (not row["counts"]), str(row["batch"]),
            ", ".join(f"{n:,}" for n in row["sizes"]),
            written(row["ours"] and 1e3 * row["ours"], ".1f"), rate(OURS),
            rate("sgemm", "sgemm gather"), rate("im2col"), *map(rate, TORCH),
            *(written(row[of], ".2f") for of in ("sgemm", "im2col", "torch")),
            written(times[OURS].spread if OURS in times else None, ".0%")]


def summarize(found: Found) -> None:
    """The worst and the mean of each ratio, and what is wanted of them."""
    rows, lines = [row for row in found.rows if row["counts"] and row["ours"]], []
    for of, says in (("sgemm", "sgemm"), ("im2col", "im2col"), ("torch", "PyTorch's better")):
        for product in (*GRADIENTS, "all"):
            mine = [row for row in rows if row[of] and product in (row["product"], "all")]
            if not mine:
                continue
            worst, bar = min(mine, key=lambda row: row[of]), 0.85 if of == "sgemm" else 1
            under = [row for row in mine if row[of] < bar]
            lines.append([f"over {says}", product, f"{worst[of]:.2f}", str(worst["layer"]),
                          written(mean(row[of] for row in mine), ".2f"),
                          f"{len(under)} of {len(mine)} under {bar}"])
            if of == "sgemm" and product != "all":
                found.targets.append(Target(
                    f"conv layers over sgemm, the worst, {product}", worst[of], 0.85,
                    note=f"{worst['layer']}; {len(under)} of {len(mine)} under"))
            if of == "im2col" and product == "all":
                found.targets += [
                    Target("conv layers over whole-batch im2col, geometric mean",
                           mean(row[of] for row in mine), 2),
                    Target("conv layers over whole-batch im2col, the worst", worst[of], 1,
                           note=f"{worst['layer']}, {worst['product']}; {len(under)} of "
                                f"{len(mine)} slower")]
    if rows:  # what one product could reach, without the time for the patches
        bound = min(rows, key=lambda row: row["im2col"] / row["sgemm"])
        lines.append(["sgemm over im2col", "all", f"{bound['im2col'] / bound['sgemm']:.2f}",
                      str(bound["layer"]), written(mean(row["im2col"] / row["sgemm"]
                                                        for row in rows), ".2f"), ""])
    found.table("The same in short; above 1 gpuconv is faster.",
                ["ratio", "", "worst", "of", "geometric mean", "layers"], lines, 2)
