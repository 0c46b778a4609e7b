"""im2col and col2im for the piece of a batch that one thread works on, in reused memory."""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpuconv import threads
from gpuconv.backend import accumulator
from gpuconv.ops.engine.chunks import Piece, Slide, copy_framed, copy_taps, cut, overlap
from gpuconv.ops.engine.sums import multiply
from gpuconv.ops.window import Window

ROWS = 192    # patches in a piece, at least: or products would wait for the filters
FEWEST = 64   # likewise, where the work is cut for threads to share


class Patches:
    """Convolution as a product of patches and filters; see cpu_dispatch.py.

    x is (N, H, W, C), of any float dtype; taps, the filters, are (R, S, C, K), in the dtype to
    compute in, and lie in memory either so or as (K, R, S, C).
    """

    workspace = 1 << 20  # bytes of patches that a thread works on at a time

    @staticmethod
    def unfold(x: np.ndarray, slide: Slide, rows: slice, columns: int,
               dtype: np.dtype) -> np.ndarray:
        """The matrix of patches: (n * rows * columns, R*S*C)."""
        return unfold(x, slide, rows, columns, dtype)

    def correlate(self, x: np.ndarray, taps: np.ndarray, b: np.ndarray | None, slide: Slide,
                  y: np.ndarray) -> None:
        """Into y (N, P, Q, K), of any float dtype and strides; b is (K,) or None."""
        (Q, K), dtype = y.shape[2:], taps.dtype
        filters = taps.reshape(-1, K)

        def work(piece: Piece) -> None:
            col = self.unfold(x[piece.images], slide, piece.rows, Q, dtype)
            into = y[piece.images, piece.rows]
            direct = into.flags.c_contiguous and into.dtype == dtype
            out = into if direct else threads.workspace("product", into.size, dtype)
            out = out.reshape(len(col), K)
            np.matmul(col, filters, out=out)
            if b is not None:
                out += b
            if not direct:
                into[...] = out.reshape(into.shape)

        threads.each(work, self.pieces(y.shape, taps.shape, dtype))

    def pieces(self, y: tuple[int, ...], taps: tuple[int, ...], dtype: np.dtype) -> list[Piece]:
        """The work on outputs of shape y."""
        N, P, Q, _ = y
        patch = math.prod(taps[:3]) * dtype.itemsize
        return cut(N, P, Q * patch, max(self.workspace, ROWS * patch), N * P * Q / FEWEST)

    def gradient_shape(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Of what ``weight_gradient`` gives."""
        return taps[3], math.prod(taps[:3])

    gradient_pieces = pieces  # that it takes

    def weight_gradient(self, x: np.ndarray, gy: np.ndarray, slide: Slide, piece: Piece,
                        out: np.ndarray) -> None:
        """Into out: the share of a piece; gy is (N, P, Q, K)."""
        col = self.unfold(x[piece.images], slide, piece.rows, gy.shape[2], out.dtype)
        g = gy[piece.images, piece.rows].astype(out.dtype, copy=False).reshape(len(col), -1)
        self.multiply(col, g, out)

    @staticmethod
    def multiply(col: np.ndarray, g: np.ndarray, out: np.ndarray) -> None:
        """Into out (K, R*S*C): patches (M, R*S*C) times gradients (M, K)."""
        multiply(g.T, col, out)

    def filter_gradient(self, total: np.ndarray, taps: tuple[int, ...]) -> np.ndarray:
        """Return the sum of all partial gradients as a new array (K, R, S, C)."""
        return total.reshape(taps[3], *taps[:3]).copy()


def unfold(x: np.ndarray, slide: Slide, rows: slice, columns: int, dtype: np.dtype,
           out: np.ndarray | None = None) -> np.ndarray:
    """im2col of some rows of windows: (n * rows * columns, R*S*C).

    Args:
        x: (n, H, W, C), any float dtype.
        slide: where the windows are.
        rows: of windows.
        columns: of windows.
        dtype: of the result.
        out: where to put it. Default: a workspace, or where no pixel moves, x itself.
    """
    n, H, W, C = x.shape
    (R, S), (SH, SW), (DH, DW) = slide.size, slide.step, slide.apart
    P, Q = rows.stop - rows.start, columns
    (h, w), (height, width) = slide.first(rows.start), slide.reach(P, Q)
    if h >= 0 and w >= 0 and h + height <= H and w + width <= W and x.dtype == dtype:
        image = x[:, h : h + height, w : w + width]
    elif height * width > P * Q * R * S:
        if out is None:
            out = threads.workspace("col", n * P * Q * R * S * C, dtype)
        copy_taps(x, slide, rows.start, out.reshape(n, P, Q, R, S, C))
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
