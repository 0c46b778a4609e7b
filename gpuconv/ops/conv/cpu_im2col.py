"""im2col on the CPU: patches of a chunk of the batch in reused memory, and convolution by GEMM."""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import Chunk, copy_framed, copy_taps, image_chunks, overlap
from gpuconv.ops.engine.sums import multiply
from gpuconv.ops.window import ConvShape, Window

ROWS = 192    # patches of a chunk, at least: fewer make products that wait for the filters
FEWEST = 64   # patches of a chunk, at least, where there are few chunks for threads to share


class Im2colConv:
    """Convolution of one group as a product of patches and filters; see cpu_dispatch.py.

    x is (N, H, W, C), of any float dtype. The taps, which are the filters, are (R, S, C, K), in the
    dtype to compute in, and lie in memory either so or as (K, R, S, C).
    """

    workspace = 1 << 20  # bytes of patches that a thread works on at a time

    @staticmethod
    def unfold(x: np.ndarray, window: Window, rows: slice, columns: int,
               dtype: np.dtype) -> np.ndarray:
        """Return the matrix of patches (n * rows * columns, R*S*C)."""
        return unfold(x, window, rows, columns, dtype)

    def forward(self, shape: ConvShape, x: np.ndarray, taps: np.ndarray, b: np.ndarray | None,
                y: np.ndarray) -> None:
        """Write conv(x, taps) + b into y (N, P, Q, K), of any float dtype and strides.

        b is (K,) or None.
        """
        dtype, filters = taps.dtype, taps.reshape(-1, shape.K)

        def work(chunk: Chunk) -> None:
            col = self.unfold(x[chunk.images], shape.window, chunk.rows, shape.Q, dtype)
            into = y[chunk.images, chunk.rows]
            direct = into.flags.c_contiguous and into.dtype == dtype
            out = into if direct else threads.workspace("product", into.size, dtype)
            out = out.reshape(len(col), shape.K)
            np.matmul(col, filters, out=out)
            if b is not None:
                out += b
            if not direct:
                into[...] = out.reshape(into.shape)

        threads.each(work, self.chunks(shape, dtype))

    def chunks(self, shape: ConvShape, dtype: np.dtype) -> list[Chunk]:
        """Return the chunks of y."""
        patch = shape.depth * dtype.itemsize
        return image_chunks(shape.N, shape.P, shape.Q * patch, max(self.workspace, ROWS * patch),
                            shape.pixels / FEWEST)

    wgrad_chunks = chunks

    def partial_shape(self, shape: ConvShape) -> tuple[int, ...]:
        """Return the shape of the partial sums of ``wgrad``: (K, R*S*C)."""
        return shape.K, shape.depth

    def wgrad(self, shape: ConvShape, x: np.ndarray, gy: np.ndarray, chunk: Chunk,
              out: np.ndarray) -> None:
        """Write the weight gradient of one chunk of gy (N, P, Q, K) into ``out``."""
        col = self.unfold(x[chunk.images], shape.window, chunk.rows, shape.Q, out.dtype)
        g = gy[chunk.images, chunk.rows].astype(out.dtype, copy=False).reshape(len(col), -1)
        self.multiply(col, g, out)

    @staticmethod
    def multiply(col: np.ndarray, g: np.ndarray, out: np.ndarray) -> None:
        """Write patches (M, R*S*C) times gradients (M, K) into out (K, R*S*C)."""
        multiply(g.T, col, out)

    def filter_gradient(self, shape: ConvShape, total: np.ndarray) -> np.ndarray:
        """Return the sum of all partial gradients as a new array (K, R, S, C)."""
        return total.reshape(shape.w_shape).copy()


def unfold(x: np.ndarray, window: Window, rows: slice, columns: int, dtype: np.dtype,
           out: np.ndarray | None = None) -> np.ndarray:
    """Return the im2col of some rows of positions: (n * rows * columns, R*S*C).

    Args:
        x: (n, H, W, C), any float dtype.
        window: its padding says where the first position begins.
        rows: of positions.
        columns: of positions.
        dtype: of the result.
        out: where to put it. Default: a workspace, or where no pixel moves, x itself.
    """
    n, H, W, C = x.shape
    (R, S), (SH, SW), (DH, DW) = window.size, window.stride, window.dilation
    P, Q = rows.stop - rows.start, columns
    (h, w), (height, width) = window.first(rows.start), window.reach(P, Q)
    if h >= 0 and w >= 0 and h + height <= H and w + width <= W and x.dtype == dtype:
        image = x[:, h : h + height, w : w + width]
    elif height * width > P * Q * R * S:
        if out is None:
            out = threads.workspace("col", n * P * Q * R * S * C, dtype)
        copy_taps(x, window, rows.start, out.reshape(n, P, Q, R, S, C))
        return out.reshape(n * P * Q, R * S * C)
    else:
        image = threads.workspace("framed", (n, height, width, C), dtype)
        copy_framed(x, (h, w), image)

    whole = (P, Q, DH, DW) == (1, 1, 1, 1) or (R, S, SH, SW) == (1, 1, 1, 1)
    if out is None and whole and image.flags.c_contiguous:
        return image.reshape(n * P * Q, R * S * C)
    sn, sh, sw, sc = image.strides
    SH, SW, DH, DW = (step if count > 1 else 1 for step, count in (  # or it might not fit an int64
        (SH, P), (SW, Q), (DH, R), (DW, S)))
    shape: tuple[int, ...] = n, P, Q, R, S, C
    strides: tuple[int, ...] = sn, SH * sh, SW * sw, DH * sh, DW * sw, sc
    if DW == 1 and sw == C * sc:  # a row of the window is one run of memory
        shape, strides = (n, P, Q, R, S * C), (sn, SH * sh, SW * sw, DH * sh, sc)
    if out is None:
        out = threads.workspace("col", math.prod(shape), dtype)
    np.copyto(out.reshape(shape), as_strided(image, shape, strides))
    return out.reshape(n * P * Q, R * S * C)


def fold(col: np.ndarray, x_shape: tuple[int, ...], window: Window) -> np.ndarray:
    """Add rows (n*P*Q, R*S*C) back into images (n, H, W, C), in accumulator(col.dtype).

    The result lies in a workspace, until the next ``fold`` of this thread.
    """
    n, H, W, C = x_shape
    (R, S), (SH, SW), (DH, DW) = window.size, window.stride, window.dilation
    (top, _), (left, _) = window.pad
    P, Q = window.out_shape(H, W)
    x = threads.workspace("fold", x_shape, accumulator(col.dtype))
    x.fill(0)
    columns = col.reshape(n, P, Q, R, S, C)
    for r, s in np.ndindex(R, S):
        from_h, into_h = overlap(r * DH - top, P, H, SH)
        from_w, into_w = overlap(s * DW - left, Q, W, SW)
        x[:, into_h, into_w] += columns[:, from_h, from_w, r, s]
    return x
