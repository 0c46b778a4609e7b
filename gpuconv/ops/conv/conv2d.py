"""2-d convolution (cross-correlation, as everywhere in this field).

    y[n,p,q,k]  = b[k] + sum over r,s,c of  x[n,h,w,c] * w[k,r,s,c]     h = p*SH - PT + r*DH,
    gw[k,r,s,c] =        sum over n,p,q of  gy[n,p,q,k] * x[n,h,w,c]    w = q*SW - PL + s*DW
    gx[n,h,w,c] =        sum over r,s,k of  gy[n,p,q,k] * w[k,r,s,c]    for those p, q
    gb[k]       =        sum over n,p,q of  gy[n,p,q,k]

All of it as products of matrices, the patches of x being rows (see im2col.py):

    y = col(x) w^T         gw = gy^T col(x)         gx = col2im(gy w)

and, with stride 1, gx = col(gy) times the filters rotated by 180 degrees: a gather instead of sums.
The CPU makes the matrix of patches for a few images at a time, so that it stays in cache until its
product is taken (cpu_dispatch.py, which has faster algorithms, too); the backward pass makes it
again instead of keeping it, because it has R*S times as many numbers as x. The GPU never makes it:
its kernels (gpu_dispatch.py) gather patches on the way to the product. With G groups, channels and
filters form G parts that are convolved independently.

A residual and an activation can be fused with a convolution: on the GPU both are applied while y is
in registers, and rounded once with it; the CPU runs the ops one after the other. An activation
whose gradient needs its input, such as GELU, is an op of its own if a gradient is needed.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from gpuconv import memory
from gpuconv.autograd import Op, Tensor
from gpuconv.backend import Array, accumulator, cupy, get_array_module, is_gpu
from gpuconv.checks import check_choice, check_count, short
from gpuconv.ops.checks import (
    channels_last,
    check_arrays,
    check_images,
    check_numbers,
    check_precision,
    check_size,
)
from gpuconv.ops.conv import cpu_dispatch, gpu_dispatch
from gpuconv.ops.elementwise import (
    Elementwise,
    activated,
    add,
    check_activation,
    fused_activation,
    saves_result,
)
from gpuconv.ops.engine.column_sums import bias_gradient
from gpuconv.ops.engine.elements import sum_to
from gpuconv.ops.engine.epilogue import Epilogue, fits_epilogue
from gpuconv.ops.shape import MODES, pad2d
from gpuconv.ops.window import (
    IntOrPair,
    Padding,
    Pair,
    Window,
    check_window,
    conv_shape,
    kept_taps,
    pair,
    sides,
)


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: IntOrPair = 1,
           padding: Padding | str = 0, dilation: IntOrPair = 1, groups: int = 1,
           padding_mode: str = "zeros", precision: str = "ieee", activation: str | None = None,
           residual: Array | None = None) -> Array:
    """Slide K filters over images.

    Args:
        x: Tensor or array (N, H, W, C), any float dtype.
        w: filters (K, R, S, C/groups), dtype of x.
        b: bias (K,), dtype of x, or None.
        stride: (SH, SW) or one int, pixels.
        padding: pixels around x: one int, (PH, PW), ((top, bottom), (left, right)), "valid" for
            none, or "same" for P = ceil(H / SH), an odd pixel going to the bottom or right.
        dilation: distance (DH, DW) between the pixels of a filter, or one int.
        groups: filter k sees only the channels of its group, k // (K/groups).
        padding_mode: what the padding holds: "zeros", "reflect" (mirrored, without the edge),
            "replicate" (the edge) or "circular" (the opposite side).
        precision: of float32 products on a GPU: "ieee", or "tf32", which rounds their factors to
            10 bits of mantissa and takes tensor cores. Elsewhere without effect.
        activation: name of an activation, such as "relu", applied to the result; or None.
        residual: (N, P, Q, K), dtype of x, added before the activation; or None.

    Returns:
        (N, P, Q, K), dtype of x, P = (H + top + bottom - DH*(R-1) - 1) // SH + 1, Q likewise;
        rows and columns that a last step would leave half covered are cropped. Rows and columns of
        the filters that lie outside of x at every position are left out, even where they hold NaN:
        they cost nothing, and their gradient is zero. On the CPU, layers computed with Winograd's
        algorithm (float32 arithmetic, 3x3, stride 1, 16 channels and filters or more) round to
        within 1.5e-5 of the largest output, and a pixel that is not finite spoils up to 8x8 outputs
        around it, not just 3x3.

    Raises:
        ValueError: wrong rank or channel count, a filter larger than the padded input, a stride,
            dilation or groups below 1, groups that do not divide C and K, unknown padding,
            precision or activation.
        TypeError: dtypes differ or are not floating-point, or CPU meets GPU.

    >>> x = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> conv2d(x, np.ones((1, 2, 2, 1)))[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
    recognition", 1998, section II.A.
    """
    window = conv_window("conv2d", x, w, b, stride, padding, dilation, groups)
    check_precision("conv2d", precision)
    if not isinstance(padding_mode, str) or padding_mode != "zeros":
        check_choice("conv2d", "padding_mode", padding_mode, MODES)
        if any(map(any, window.pad)):
            x = pad2d(x, window.pad, padding_mode)
            window = dataclasses.replace(window, pad=((0, 0), (0, 0)))
    if residual is None and activation is None:
        return Conv2d(window, groups, precision)(*(x, w) if b is None else (x, w, b))
    check_activation("conv2d", activation)
    if residual is not None:
        check_arrays("conv2d", x=x, residual=residual)
        want = x.shape[0], *window.out_shape(*x.shape[1:3]), w.shape[0]
        if tuple(residual.shape) != want:
            raise ValueError(f"conv2d: residual has shape {tuple(residual.shape)}, wanted {want}")
    fused = fits_epilogue(saves_result(activation), x, w, b, residual)
    if fits_epilogue(True, x):
        y = Conv2d(window, groups, precision, activation if fused else None)(x, w, b, residual)
    else:
        y = Conv2d(window, groups, precision)(*(x, w) if b is None else (x, w, b))
        y = y if residual is None else add(y, residual)
    return y if fused else activated(y, activation)


def conv_window(op: str, x: Array, w: Array, b: Array | None, stride: IntOrPair,
                padding: Padding | str, dilation: IntOrPair, groups: int = 1) -> Window:
    """Return the window of a convolution.

    Raises:
        ValueError, TypeError: the operands do not fit; begins with the name of the op.
    """
    check_images(op, x)
    check_arrays(op, ("b",), x=x, w=w, b=b)
    x_shape, w_shape = tuple(x.shape), tuple(w.shape)
    if type(groups) is not int:
        groups = check_count(op, "groups", groups)
    try:
        numbers = (pair(stride), padding if isinstance(padding, str) else sides(padding),
                   pair(dilation))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{op}: {error} (x {x_shape}, w {w_shape})") from None
    return _checked_window(op, x_shape, w_shape, None if b is None else tuple(b.shape), *numbers,
                           groups, x.dtype.itemsize, is_gpu(w.data if isinstance(w, Tensor) else w))


@functools.lru_cache(4096)
def _checked_window(op: str, x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None,
                    stride: Pair, padding: tuple[Pair, Pair] | str, dilation: Pair, groups: int,
                    itemsize: int, on_gpu: bool) -> Window:
    """Check operands of shapes x, w and b once for each call signature; return the window."""
    _check_shapes(op, x, w, b, groups)
    try:
        window = _window(x[1:3], w[1:3], stride, padding, dilation)
        window.out_shape(*x[1:3])
    except ValueError as error:
        raise ValueError(f"{op}: {error} (x {x}, w {w})") from None
    check_size(op, x, itemsize, window, w[0])
    if on_gpu:
        check_numbers(op, x, window, "met")
    return window


def _check_shapes(op: str, x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None,
                  groups: int) -> None:
    seen = f"(x {x}, w {w})"
    if len(w) != 4 or 0 in w:
        raise ValueError(f"{op}: w has shape {w}, wanted (K, R, S, C/groups), none 0")
    check_count(op, "groups", groups)
    if x[3] % groups or w[0] % groups:
        raise ValueError(f"{op}: groups {groups} must divide {x[3]} channels and {w[0]} "
                         f"filters {seen}" + channels_last("x", x, w[3] * groups))
    if x[3] // groups != w[3]:
        grouped = f" in each of {groups} groups" if groups > 1 else ""
        hint = channels_last("x", x, w[3] * groups) or channels_last("w", w, x[3] // groups)
        if not hint and x[1] == w[1] * groups:  # both as in PyTorch
            hint = "; channels come last: transpose(0, 2, 3, 1) of both"
        raise ValueError(f"{op}: x has {x[3] // groups} channels{grouped}, w wants {w[3]} "
                         f"{seen}{hint}")
    if b is not None and b != (w[0],):
        raise ValueError(f"{op}: b has shape {b}, wanted ({w[0]},) {seen}")


def _window(image: tuple[int, ...], size: tuple[int, ...], stride: Pair,
            padding: tuple[Pair, Pair] | str, dilation: Pair) -> Window:
    """Return the window for filters of this size over images of (height, width) pixels."""
    if isinstance(padding, str) and padding not in ("same", "valid"):
        raise ValueError(f"padding {short(padding)}, wanted numbers, 'same' or 'valid'")
    window = check_window(Window((size[0], size[1]), stride, (
        (0, 0), (0, 0)) if isinstance(padding, str) else padding, dilation))
    if padding != "same":
        return window

    def split(axis: int) -> Pair:
        n, step = image[axis], stride[axis]
        total = max(0, (-(-n // step) - 1) * step + window.extent[axis] - n)
        return total // 2, total - total // 2

    return check_window(dataclasses.replace(window, pad=(split(0), split(1))))


class Conv2d(Op):
    """Saves: x if w needs a gradient, w if x does; y if an activation is fused."""

    depends_on = "window", "all", "all", "pixel"  # x, w, b, residual
    activation_op: Elementwise | None = None
    biased = False

    def __init__(self, window: Window, groups: int, precision: str = "ieee",
                 activation: str | None = None):
        self.window, self.groups = window, groups
        self.precision, self.activation = precision, activation

    @property
    def multiply_adds(self) -> int:
        """Number of products: N P Q K R S C/groups, those with padding counted."""
        return math.prod(self.shape.y_shape) * math.prod(self.w_shape[1:])

    @property
    def shared_parameters(self) -> int:
        """Number of weights and biases, which all positions of the window share."""
        return math.prod(self.w_shape) + self.biased * self.w_shape[0]

    def save(self, x: Array, w: Array, b: Array | None = None) -> Array:
        """Keep the operands that the gradients need; return the taps to compute with.

        The taps are w, or in a new array those that meet a pixel of x.
        """
        self.x_shape, self.w_shape, self.biased = x.shape, w.shape, b is not None
        self.shape = conv_shape(x.shape, len(w), self.window, self.groups)
        self.kept = (slice(None), *kept_taps(self.window, *x.shape[1:3], "met"))
        xp, taps = get_array_module(w), w
        if self.shape.w_shape != w.shape:
            taps = xp.ascontiguousarray(w[self.kept])
        if not self.meets:
            taps = xp.zeros(self.shape.w_shape, w.dtype)
        self.x: Any = x if self.needs[1] else None
        self.w: Any = taps if self.needs[0] else None
        return taps

    @property
    def meets(self) -> bool:
        """True if a tap meets a pixel of x at some position: if not, y is the bias."""
        return all(len(range(size)[taps]) for size, taps in zip(
            self.window.size, self.kept[1:], strict=True))

    # -- CPU: cpu_dispatch.py --------------------------------------------------------

    def forward_cpu(self, x, w, b=None):
        taps = self.save(x, w, b)
        y = memory.empty(self.shape.y_shape, x.dtype)
        cpu_dispatch.forward(self.shape, x, taps, b, y)
        return y

    def backward_cpu(self, gy):
        gx = memory.empty(self.x_shape, gy.dtype) if self.needs[0] else None
        gw = np.zeros(self.w_shape, accumulator(gy.dtype)) if self.needs[1] else None
        if not self.meets:
            gx = gx if gx is None else np.zeros(self.x_shape, gy.dtype)
        elif self.needs[0] or self.needs[1]:
            cpu_dispatch.gradients(self.shape, self.x, self.w, gy, gx,
                                   gw if gw is None else gw[self.kept])
        gw = gw if gw is None else gw.astype(gy.dtype, copy=False)
        if len(self.needs) < 3:
            return gx, gw
        return gx, gw, sum_to(gy, gy.shape[3:]) if self.needs[2] else None

    # -- GPU: gpu_dispatch.py ----------------------------------------------------------

    def forward_gpu(self, x, w, b=None, residual=None):
        taps = self.save(x, w, b)
        y = gpu_dispatch.forward(self.shape, x, taps, self.precision,
                                 Epilogue(b, residual, self.activation))
        self.activation_op = fused_activation(self.activation, y, self.needs)
        return y

    def backward_gpu(self, gy):
        if self.activation_op:
            gy, = self.activation_op.backward_gpu(gy)
        needs = *self.needs, False, False
        gx = gpu_dispatch.dgrad(self.shape, gy, self.w, self.precision) if needs[0] else None
        gw = self.wgrad_gpu(gy) if needs[1] else None
        gb = bias_gradient(gy) if needs[2] else None
        return (gx, gw, gb, gy if needs[3] else None)[:len(self.needs)]

    def wgrad_gpu(self, gy: Array) -> Array:
        """Return the gradient of w: of the taps that remain, and zeros for the others."""
        gw = gpu_dispatch.wgrad(self.shape, self.x, gy, self.precision)
        if self.meets and gw.shape == self.w_shape:
            return gw
        every = cupy().zeros(self.w_shape, gw.dtype)
        if self.meets:
            every[self.kept] = gw
        return every
