"""2-d convolution (cross-correlation, as everywhere in this field).

    y[n,p,q,k]  = b[k] + sum over r,s,c of  x[n,h,w,c] * w[k,r,s,c]     h = p*SH - PT + r*DH,
    gw[k,r,s,c] =        sum over n,p,q of  gy[n,p,q,k] * x[n,h,w,c]    w = q*SW - PL + s*DW
    gx[n,h,w,c] =        sum over r,s,k of  gy[n,p,q,k] * w[k,r,s,c]    for those p, q
    gb[k]       =        sum over n,p,q of  gy[n,p,q,k]

All of it as products of matrices, the patches of x being rows (see im2col.py):

    y = col(x) w^T         gw = gy^T col(x)         gx = col2im(gy w)

and, with stride 1, gx = col(gy) times the filters turned by 180 degrees: a gather instead of sums.
The CPU makes the matrix of patches for a few images at a time, so that it stays in cache until its
product is taken (cpu/convolve.py, which knows shorter ways, too), the GPU for as many as fit a
workspace; the backward pass makes it again instead of keeping it, because memory is R*S times
dearer than the copy. With G groups, channels and filters fall into G parts that do not see each
other: the same, G times. On the GPU, 16-bit rows gy w are rounded once before col2im adds them up
in float32, and y once before b is added.
"""

from typing import Any

import numpy as np

from gpuconv import memory, threads
from gpuconv.autograd import Op
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.checks import check_arrays, check_images
from gpuconv.ops.cpu import convolve
from gpuconv.ops.im2col import images_of_gpu, rows_of_gpu
from gpuconv.ops.matmul import gemm
from gpuconv.ops.pad import MODES, pad2d
from gpuconv.ops.window import IntOrPair, Pair, Window, pair, sides

GPU_WORKSPACE = 256 << 20  # bytes of patches that exist at a time on the GPU


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: IntOrPair = 1,
           padding: IntOrPair | tuple[Pair, Pair] | str = 0, dilation: IntOrPair = 1,
           groups: int = 1, padding_mode: str = "zeros") -> Array:
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

    Returns:
        (N, P, Q, K), dtype of x, P = (H + top + bottom - DH*(R-1) - 1) // SH + 1, Q likewise;
        rows and columns that a last step would leave half covered are cropped. On the CPU, layers
        that take Winograd's algorithm (float32 arithmetic, 3x3, stride 1, 16 channels and filters
        or more) round to within 1.5e-5 of the largest output, and a pixel that is not finite
        spoils up to 8x8 outputs around it, not just 3x3.

    Raises:
        ValueError: wrong rank or channel count, a filter larger than the padded input, a stride,
            dilation or groups below 1, groups that do not divide C and K, unknown padding.
        TypeError: dtypes differ or are not floating-point, or CPU meets GPU.

    >>> x = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> conv2d(x, np.ones((1, 2, 2, 1)))[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document
    recognition", 1998, section II.A.
    """
    check_images("conv2d", x)
    check_arrays("conv2d", ("b",), x=x, w=w, b=b)
    _check_shapes(x.shape, w.shape, None if b is None else b.shape, groups)
    if padding_mode not in MODES:
        raise ValueError(f"conv2d: padding_mode {padding_mode!r}, wanted one of {MODES}")
    try:
        window = _window(x.shape[1:3], w.shape[1:3], pair(stride), padding, pair(dilation))
        if padding_mode != "zeros" and any(map(any, window.pad)):
            x = pad2d(x, window.pad, padding_mode)
            window = Window(window.size, window.stride, ((0, 0), (0, 0)), window.dilation)
        window.out_shape(*x.shape[1:3])
    except (ValueError, TypeError) as error:
        seen = f"(x {tuple(x.shape)}, w {tuple(w.shape)})"
        raise type(error)(f"conv2d: {error} {seen}") from None
    return Conv2d(window, groups)(x, w) if b is None else Conv2d(window, groups)(x, w, b)


def _check_shapes(x: tuple, w: tuple, b: tuple | None, groups: int) -> None:
    seen = f"(x {tuple(x)}, w {tuple(w)})"
    if len(w) != 4 or 0 in w:
        raise ValueError(f"conv2d: w has shape {tuple(w)}, wanted (K, R, S, C/groups), none 0")
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"conv2d: groups {groups!r}, wanted at least 1")
    if x[3] % groups or w[0] % groups:
        raise ValueError(f"conv2d: groups {groups} must divide {x[3]} channels and {w[0]} "
                         f"filters {seen}")
    if x[3] // groups != w[3]:
        grouped = f" in each of {groups} groups" if groups > 1 else ""
        raise ValueError(f"conv2d: x has {x[3] // groups} channels{grouped}, w wants {w[3]} {seen}")
    if b is not None and tuple(b) != (w[0],):
        raise ValueError(f"conv2d: b has shape {tuple(b)}, wanted ({w[0]},) {seen}")


def _window(image: Pair, size: Pair, stride: Pair,
            padding: IntOrPair | tuple[Pair, Pair] | str, dilation: Pair) -> Window:
    if isinstance(padding, str) and padding not in ("same", "valid"):
        raise ValueError(f"padding {padding!r}, wanted numbers, 'same' or 'valid'")
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
    """Saves: x if w needs a gradient, w if x does."""

    def __init__(self, window: Window, groups: int):
        self.window, self.groups = window, groups

    def save(self, x: Array, w: Array) -> None:
        """Keep what the gradients that were asked for will read."""
        self.x: Any = x if self.needs[1] else None
        self.w: Any = w if self.needs[0] else None
        self.x_shape, self.w_shape = x.shape, w.shape

    # -- CPU: cpu/convolve.py --------------------------------------------------------

    def forward_cpu(self, x, w, b=None):
        self.save(x, w)
        P, Q = self.window.out_shape(*x.shape[1:3])
        y = memory.empty((len(x), P, Q, len(w)), x.dtype)
        convolve.correlate(x, w, b, self.slide, self.groups, y)
        return y

    def backward_cpu(self, gy):
        gx = memory.empty(self.x_shape, gy.dtype) if self.needs[0] else None
        gw = np.empty(self.w_shape, accumulator(gy.dtype)) if self.needs[1] else None
        if self.needs[0] or self.needs[1]:
            convolve.gradients(self.x, self.w, gy, self.slide, self.groups, gx, gw)
        gw = gw if gw is None else gw.astype(gy.dtype, copy=False)
        if len(self.needs) < 3:
            return gx, gw
        return gx, gw, convolve.sum_rows(gy) if self.needs[2] else None

    @property
    def slide(self) -> convolve.Slide:
        """The window, as the CPU's engine knows it."""
        (top, _), (left, _) = self.window.pad
        return convolve.Slide(self.window.size, self.window.stride, self.window.dilation,
                              (-top, -left))

    # -- GPU: kernels/im2col.cu, and cuBLAS ------------------------------------------

    def forward_gpu(self, x, w, b=None):
        self.save(x, w)
        N, K = len(x), len(w)
        P, Q = self.window.out_shape(*x.shape[1:3])
        y = cupy().empty((N, P, Q, K), x.dtype)
        filters = w.reshape(self.groups, K // self.groups, -1).transpose(0, 2, 1)  # (G, RSC/G, K/G)
        for piece in self.batches(x, P * Q):
            col = self.rows(x[piece], P * Q)  # (G, n*P*Q, RSC/G)
            _join(y[piece], _multiply(col, filters))
            del col  # before the next is made
        if b is not None:
            y += b
        return y

    def backward_gpu(self, gy):
        cp, gx, gw = cupy(), None, None
        P, Q, K = gy.shape[1:]
        if self.needs[0]:
            gx = cp.empty(self.x_shape, gy.dtype)
            filters = self.w.reshape(self.groups, K // self.groups, -1)  # (G, K/G, RSC/G)
            for piece in self.batches(gx, P * Q):
                col = _multiply(_split(gy[piece], self.groups), filters)  # (G, n*P*Q, RSC/G)
                images_of_gpu(col, gx[piece].shape, self.window, self.groups, gx[piece])
                del col
        if self.needs[1]:
            dtype = accumulator(gy.dtype)
            sums = cp.zeros((self.groups, K // self.groups, int(np.prod(self.w_shape[1:]))), dtype)
            for piece in self.batches(self.x, P * Q):
                col = self.rows(self.x[piece], P * Q)
                sums += _multiply(_split(gy[piece], self.groups).transpose(0, 2, 1), col)
                del col
            gw = sums.reshape(self.w_shape).astype(gy.dtype, copy=False)
        if len(self.needs) < 3:
            return gx, gw
        gb = gy.sum(axis=(0, 1, 2), dtype=accumulator(gy.dtype)) if self.needs[2] else None
        return gx, gw, gb if gb is None else gb.astype(gy.dtype, copy=False)

    def batches(self, x: Array, positions: int) -> list[slice]:
        """Slices of the batch whose patches fit the workspace."""
        image = self.groups * positions * int(np.prod(self.w_shape[1:]))
        return threads.chunks(len(x), image * x.dtype.itemsize, GPU_WORKSPACE)

    def rows(self, x: Array, positions: int) -> Array:
        """(G, n*P*Q, R*S*C/G): the patches of these images."""
        shape = self.groups, len(x) * positions, int(np.prod(self.w_shape[1:]))
        return rows_of_gpu(x, self.window, self.groups, cupy().empty(shape, x.dtype))


def _split(gy: Array, groups: int) -> Array:
    """(n, P, Q, K) -> (G, n*P*Q, K/G)."""
    return gy.reshape(-1, groups, gy.shape[3] // groups).transpose(1, 0, 2)


def _multiply(a: Array, b: Array) -> Array:
    """(G, L, M) @ (G, M, N). One group as plain matrices: CuPy hands those to cuBLAS uncopied."""
    return gemm(a[0], b[0])[None] if len(a) == 1 else gemm(a, b)


def _join(y: Array, product: Array) -> None:
    """(G, n*P*Q, K/G) into y (n, P, Q, K)."""
    G, rows, KG = product.shape
    y.reshape(rows, G, KG)[...] = product.transpose(1, 0, 2)
