"""Convolutions as products of explicit matrices: im2col, and cuBLAS.

    y = col(x) w^T         gw = gy^T col(x)         gx = col2im(gy w)

Every dtype and geometry; R*S times the memory traffic of the implicit engines, and cuBLAS refuses
to run while a stream captures. The matrix of patches is made for as many images at a time as fit a
workspace. With G groups: the same, G times. 16-bit numbers are rounded more than once: y before b
is added, and rows gy w before col2im adds them up in float32.
"""

from gpuconv import threads
from gpuconv.backend import Array, accumulator, cupy
from gpuconv.ops.gpu.problem import Problem
from gpuconv.ops.im2col import images_of_gpu, rows_of_gpu
from gpuconv.ops.matmul import gemm
from gpuconv.ops.window import Window

WORKSPACE = 256 << 20  # bytes of patches that exist at a time


def forward(p: Problem, x: Array, w: Array, y: Array, *, bias: Array | None = None) -> None:
    """y (N, P, Q, K) of x (N, H, W, C) and w (K, R, S, C/groups)."""
    filters = w.reshape(p.groups, p.K // p.groups, p.depth).transpose(0, 2, 1)  # (G, RSC/G, K/G)
    for piece in _batches(p, x):
        col = _rows(p, x[piece])  # (G, n*P*Q, RSC/G)
        _join(y[piece], _multiply(col, filters))
        del col  # before the next is made
    if bias is not None:
        y += bias


def input_gradient(p: Problem, gy: Array, w: Array, gx: Array) -> None:
    """gx (N, H, W, C) of gy (N, P, Q, K) and w."""
    filters = w.reshape(p.groups, p.K // p.groups, p.depth)  # (G, K/G, RSC/G)
    for piece in _batches(p, gx):
        col = _multiply(_split(gy[piece], p.groups), filters)  # (G, n*P*Q, RSC/G)
        images_of_gpu(col, gx[piece].shape, window(p), p.groups, gx[piece])
        del col


def weight_gradient(p: Problem, x: Array, gy: Array, gw: Array) -> None:
    """gw (K, R, S, C/groups) of x and gy."""
    sums = cupy().zeros((p.groups, p.K // p.groups, p.depth), accumulator(gy.dtype))
    for piece in _batches(p, x):
        col = _rows(p, x[piece])
        sums += _multiply(_split(gy[piece], p.groups).transpose(0, 2, 1), col)
        del col
    gw[...] = sums.reshape(gw.shape)


def window(p: Problem) -> Window:
    """Return the window of this problem.

    >>> window(Problem(1, 5, 5, 1, 1, 3, 3, 3, 3, (2, 2), (1, 1), (1, 1), 1)).positions
    (3, 3)
    """
    top, left = p.pad
    return Window((p.R, p.S), p.stride, ((top, 0), (left, 0)), p.dilation, positions=(p.P, p.Q))


def _batches(p: Problem, x: Array) -> list[slice]:
    """Slices of the batch whose patches fit the workspace."""
    image = p.groups * p.P * p.Q * p.depth
    return threads.chunks(p.N, image * x.dtype.itemsize, WORKSPACE)


def _rows(p: Problem, x: Array) -> Array:
    """(G, n*P*Q, R*S*C/G): the patches of these images."""
    shape = p.groups, len(x) * p.P * p.Q, p.depth
    return rows_of_gpu(x, window(p), p.groups, cupy().empty(shape, x.dtype))


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
