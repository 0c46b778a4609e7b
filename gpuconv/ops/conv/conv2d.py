"""2-d convolution (cross-correlation, as everywhere in this field).

    y[n,p,q,k]  = b[k] + sum over r,s,c of  x[n,h,w,c] * w[k,r,s,c]     h = p*SH - PT + r*DH,
    gw[k,r,s,c] =        sum over n,p,q of  gy[n,p,q,k] * x[n,h,w,c]    w = q*SW - PL + s*DW
    gx[n,h,w,c] =        sum over r,s,k of  gy[n,p,q,k] * w[k,r,s,c]    for those p, q
    gb[k]       =        sum over n,p,q of  gy[n,p,q,k]

All of it as products of matrices, the patches of x being rows (see im2col.py):

    y = col(x) w^T         gw = gy^T col(x)         gx = col2im(gy w)

and, with stride 1, gx = col(gy) times the filters turned by 180 degrees: a gather instead of sums.
The CPU makes the matrix of patches for a few images at a time, so that it stays in cache until its
product is taken (cpu_dispatch.py, which knows shorter ways, too); the backward pass makes it again
instead of keeping it, because memory is R*S times dearer than the copy. The GPU never makes it: its
engines (gpu_dispatch.py) gather patches on the way to the product. With G groups, channels and
filters fall into G parts that do not see each other: the same, G times.

Residual and activation can be fused: on the GPU they are computed while y is in registers, and
rounded once with it; the CPU runs the ops one after the other. An activation whose gradient needs
its argument, such as GELU, is an op of its own if a gradient is needed.
"""

import math
from typing import Any

import numpy as np

from gpuconv import memory
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy, get_array_module
from gpuconv.checks import check_choice, check_count, short
from gpuconv.ops.checks import channels_last, check_arrays, check_images
from gpuconv.ops.conv import cpu_dispatch, gpu_dispatch
from gpuconv.ops.conv.shape import Problem, problem
from gpuconv.ops.elementwise import (
    Elementwise,
    activated,
    add,
    check_activation,
    fused_activation,
    saves_result,
)
from gpuconv.ops.engine.elements import sum_to
from gpuconv.ops.engine.epilogue import fits_epilogue
from gpuconv.ops.shape import MODES, pad2d
from gpuconv.ops.window import (
    IntOrPair,
    Levelled,
    Padding,
    Pair,
    Window,
    check_result,
    levelled,
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
        they cost nothing, and their gradient is zero. On the CPU, layers
        that take Winograd's algorithm (float32 arithmetic, 3x3, stride 1, 16 channels and filters
        or more) round to within 1.5e-5 of the largest output, and a pixel that is not finite
        spoils up to 8x8 outputs around it, not just 3x3.

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
    gpu_dispatch.check_precision("conv2d", precision)
    check_activation("conv2d", activation)
    check_choice("conv2d", "padding_mode", padding_mode, MODES)
    if padding_mode != "zeros" and any(map(any, window.pad)):
        x = pad2d(x, window.pad, padding_mode)
        window = Window(window.size, window.stride, ((0, 0), (0, 0)), window.dilation)
    if residual is None and activation is None:
        return Conv2d(window, groups, precision)(*(x, w) if b is None else (x, w, b))
    if residual is not None:
        check_arrays("conv2d", x=x, residual=residual)
        want = x.shape[0], *window.out_shape(*x.shape[1:3]), w.shape[0]
        if tuple(residual.shape) != want:
            raise ValueError(f"conv2d: residual has shape {tuple(residual.shape)}, wanted {want}")
    inside = fits_epilogue(saves_result(activation), x, w, b, residual)
    if fits_epilogue(True, x):
        y = Conv2d(window, groups, precision, activation if inside else None)(x, w, b, residual)
    else:
        y = Conv2d(window, groups, precision)(*(x, w) if b is None else (x, w, b))
        y = y if residual is None else add(y, residual)
    return y if inside else activated(y, activation)


def conv_window(op: str, x: Array, w: Array, b: Array | None, stride: IntOrPair,
                padding: Padding | str, dilation: IntOrPair, groups: int = 1) -> Window:
    """The window of a convolution, if its operands fit.

    Raises:
        ValueError, TypeError: they do not; begins with the name of the op.
    """
    check_images(op, x)
    check_arrays(op, ("b",), x=x, w=w, b=b)
    _check_shapes(op, x, w, None if b is None else b.shape, groups)
    try:
        window = _window(x.shape[1:3], w.shape[1:3], pair(stride), padding, pair(dilation))
        window.out_shape(*x.shape[1:3])
    except (ValueError, TypeError) as error:
        seen = f"(x {tuple(x.shape)}, w {tuple(w.shape)})"
        raise type(error)(f"{op}: {error} {seen}") from None
    check_result(op, x, window, w.shape[0], "met")
    return window


def _check_shapes(op: str, images: Array, filters: Array, b: tuple | None, groups: int) -> None:
    x, w = images.shape, filters.shape
    seen = f"(x {tuple(x)}, w {tuple(w)})"
    if len(w) != 4 or 0 in w:
        raise ValueError(f"{op}: w has shape {tuple(w)}, wanted (K, R, S, C/groups), none 0")
    check_count(op, "groups", groups)
    if x[3] % groups or w[0] % groups:
        raise ValueError(f"{op}: groups {groups} must divide {x[3]} channels and {w[0]} "
                         f"filters {seen}" + channels_last("x", images, w[3] * groups))
    if x[3] // groups != w[3]:
        grouped = f" in each of {groups} groups" if groups > 1 else ""
        hint = channels_last("x", images, w[3] * groups)
        hint = hint or channels_last("w", filters, x[3] // groups)
        if not hint and x[1] == w[1] * groups:  # both as in PyTorch
            hint = "; channels come last: transpose(0, 2, 3, 1) of both"
        raise ValueError(f"{op}: x has {x[3] // groups} channels{grouped}, w wants {w[3]} "
                         f"{seen}{hint}")
    if b is not None and tuple(b) != (w[0],):
        raise ValueError(f"{op}: b has shape {tuple(b)}, wanted ({w[0]},) {seen}")


def _window(image: Pair, size: Pair, stride: Pair,
            padding: Padding | str, dilation: Pair) -> Window:
    if isinstance(padding, str) and padding not in ("same", "valid"):
        raise ValueError(f"padding {short(padding)}, wanted numbers, 'same' or 'valid'")
    window = Window(size, stride, ((0, 0), (0, 0)) if isinstance(padding, str) else sides(padding),
                    dilation)
    if padding != "same":
        return window

    def split(n: int, step: int, extent: int) -> Pair:
        total = max(0, (-(-n // step) - 1) * step + extent - n)
        return total // 2, total - total // 2

    (H, W), (SH, SW), (EH, EW) = image, stride, window.extent
    return Window(size, stride, (split(H, SH, EH), split(W, SW, EW)), dilation)


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
        positions = self.window.out_shape(*self.x_shape[1:3])
        return self.x_shape[0] * math.prod(positions) * math.prod(self.w_shape)

    @property
    def shared_parameters(self) -> int:
        """Number of weights and biases, which all positions of the window share."""
        return math.prod(self.w_shape) + self.biased * self.w_shape[0]

    def save(self, x: Array, w: Array) -> Array:
        """Keep what the gradients that were asked for will read; return the taps to compute with.

        The taps are w, or in a new array those that meet a pixel of x.
        """
        self.x_shape, self.w_shape = x.shape, w.shape
        xp, taps = get_array_module(w), w
        if not self.level.meets:
            taps = xp.zeros_like(w[self.taps])
        elif not self.all_taps:
            taps = xp.ascontiguousarray(w[self.taps])
        self.x: Any = x if self.needs[1] else None
        self.w: Any = taps if self.needs[0] else None
        return taps

    @property
    def level(self) -> Levelled:
        """The window without the numbers that make no difference, and the taps that remain."""
        return levelled(self.window, *self.x_shape[1:3], "met")

    @property
    def taps(self) -> tuple[slice, slice, slice]:
        """Index of the taps that remain, in filters."""
        return slice(None), *self.level.taps

    @property
    def all_taps(self) -> bool:
        """Do all taps remain?"""
        return self.level.window.size == self.window.size

    # -- CPU: cpu_dispatch.py --------------------------------------------------------

    def forward_cpu(self, x, w, b=None):
        taps, self.biased = self.save(x, w), b is not None
        P, Q = self.window.out_shape(*x.shape[1:3])
        y = memory.empty((len(x), P, Q, len(w)), x.dtype)
        cpu_dispatch.correlate(x, taps, b, self.slide, self.groups, y)
        return y

    def backward_cpu(self, gy):
        gx = memory.empty(self.x_shape, gy.dtype) if self.needs[0] else None
        gw = np.zeros(self.w_shape, accumulator(gy.dtype)) if self.needs[1] else None
        if not self.level.meets:
            gx = gx if gx is None else np.zeros(self.x_shape, gy.dtype)
        elif self.needs[0] or self.needs[1]:
            cpu_dispatch.gradients(self.x, self.w, gy, self.slide, self.groups, gx,
                               gw if gw is None else gw[self.taps])
        gw = gw if gw is None else gw.astype(gy.dtype, copy=False)
        if len(self.needs) < 3:
            return gx, gw
        return gx, gw, sum_to(gy, gy.shape[3:]) if self.needs[2] else None

    @property
    def slide(self) -> cpu_dispatch.Slide:
        """Return the levelled window, as the CPU's engine knows it."""
        window = self.level.window
        (top, _), (left, _) = window.pad
        return cpu_dispatch.Slide(window.size, window.stride, window.dilation, (-top, -left))

    # -- GPU: gpu_dispatch.py ----------------------------------------------------------

    def forward_gpu(self, x, w, b=None, residual=None):
        taps, self.biased = self.save(x, w), b is not None
        p = self.problem
        y = cupy().empty(self.y_shape, x.dtype)
        gpu_dispatch.forward(p, x, taps, y, self.precision, bias=b, residual=residual,
                       activation=self.activation)
        self.activation_op = fused_activation(self.activation, y, self.needs)
        return y

    def backward_gpu(self, gy):
        if self.activation_op:
            gy, = self.activation_op.backward_gpu(gy)
        gx, gw, gb = gpu_dispatch.gradients(self.problem, gy, self.x, self.w, self.needs,
                                            self.precision)
        if gw is not None and not (self.all_taps and self.level.meets):
            met, gw = gw, cupy().zeros(self.w_shape, gw.dtype)
            if self.level.meets:
                gw[self.taps] = met
        return (gx, gw, gb, gy if self.needs[3:] == (True,) else None)[:len(self.needs)]

    @property
    def problem(self) -> Problem:
        """Return the sizes to compute with: those of the levelled window."""
        window, (K, _, _, C) = self.level.window, self.w_shape
        return problem(self.x_shape, (K, *window.size, C), window, self.groups)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """(N, P, Q, K)."""
        p = self.problem
        return p.N, p.P, p.Q, p.K
