"""im2col for images of few channels, such as the input of the first layer: patches as columns.

A row of a patch is a run of S*C numbers in channels-last memory, 9 for a 3x3 filter over RGB, and
copying such short runs takes longer than the product. So each channel becomes a plane of its own
first, and the matrix of patches is written transposed,

    col[(r*S + s)*C + c, (n,p,q)] = x[n, p*SH + r*DH + h0, q + s*DW + w0, c]

in two steps: first what a row of a filter sees, in runs of Q numbers, then, from these lines, what
all its rows see, in runs of P*Q. The stride along a row must be 1.
"""

import numpy as np

from gpuconv import threads
from gpuconv.ops.conv.cpu_im2col import Im2colConv
from gpuconv.ops.engine.chunks import copy_framed, copy_taps, overlap
from gpuconv.ops.engine.sums import multiply
from gpuconv.ops.window import ConvShape, Window


class PlanarConv(Im2colConv):
    """``Im2colConv`` with the matrix of patches written column by column."""

    workspace = 2 << 20

    @staticmethod
    def unfold(x: np.ndarray, window: Window, rows: slice, columns: int,
               dtype: np.dtype) -> np.ndarray:
        """Return the matrix of patches (n * rows * columns, R*S*C), column by column."""
        n, C = len(x), x.shape[3]
        (R, S), (SH, _), (DH, DW) = window.size, window.stride, window.dilation
        P, Q = rows.stop - rows.start, columns
        height, width = window.reach(P, Q)
        if height * width > P * Q * R * S:
            col = threads.workspace("col", (R, S, C, n, P, Q), dtype)
            copy_taps(x, window, rows.start, col.transpose(3, 4, 5, 0, 1, 2))
            return col.reshape(R * S * C, -1).T
        image = threads.workspace("framed", (C, n, height, width), dtype)
        copy_framed(x, window.first(rows.start), image.transpose(1, 2, 3, 0))
        sc, sn, sh, sw = image.strides
        lines = threads.workspace("lines", (S, C, n, height, Q), dtype)
        lines[...] = np.ndarray(lines.shape, dtype, image, 0, (DW * sw, sc, sn, sh, sw))
        ss, sc, sn, sh, sw = lines.strides
        col = threads.workspace("col", (R, S, C, n, P, Q), dtype)
        col[...] = np.ndarray(col.shape, dtype, lines, 0, (DH * sh, ss, sc, sn, SH * sh, sw))
        return col.reshape(R * S * C, -1).T

    def partial_shape(self, shape: ConvShape) -> tuple[int, ...]:
        """Return the shape of the partial sums of ``wgrad``: (R*S*C, K), the faster product."""
        return shape.depth, shape.K

    @staticmethod
    def multiply(col: np.ndarray, g: np.ndarray, out: np.ndarray) -> None:
        """Write patches (M, R*S*C) times gradients (M, K) into out (R*S*C, K)."""
        multiply(col.T, g, out)

    def filter_gradient(self, shape: ConvShape, total: np.ndarray) -> np.ndarray:
        """Return the sum of all partial gradients as a new array (K, R, S, C)."""
        return total.T.copy().reshape(shape.w_shape)

    def dgrad(self, shape: ConvShape, gy: np.ndarray, w: np.ndarray, gx: np.ndarray) -> None:
        """Write col2im(gy w) into gx (N, H, W, C), for any stride.

        gy is (N, P, Q, K); w (K, R, S, C) has the dtype to compute in.
        """
        (_, H, W, C), (K, R, S, _), (N, P, Q, _) = shape.x_shape, shape.w_shape, shape.y_shape
        window, dtype = shape.window, w.dtype
        (SH, SW), (DH, DW), start = window.stride, window.dilation, window.first(0)
        (top, bottom), (left, right) = (  # of the pixels under the windows, those that gx has
            (max(0, first), min(n, first + reach)) for first, reach, n in zip(
                start, window.reach(P, Q), (H, W), strict=True))
        height, width = max(0, bottom - top), max(0, right - left)
        down = [overlap(start[0] + r * DH - top, P, height, SH) for r in range(R)]
        across = [overlap(start[1] + s * DW - left, Q, width, SW) for s in range(S)]
        filters = w.reshape(K, -1)

        def work(images: slice) -> None:
            g = gy[images].astype(dtype, copy=False).reshape(-1, K)
            n = len(g) // (P * Q)
            if (P, Q, R, S) == (1, 1, H, W) and start == (0, 0):  # each pixel has one product
                gx[images] = (g @ filters).reshape(n, H, W, C)
                return
            col = threads.workspace("col", (R, S, C, n, P, Q), dtype)
            np.matmul(filters.T, g.T, out=col.reshape(len(filters.T), -1))
            lines = threads.workspace("lines", (S, C, n, height, Q), dtype)
            lines.fill(0)
            for r, (windows, pixels) in enumerate(down):
                lines[:, :, :, pixels] += col[r][..., windows, :]
            image = threads.workspace("framed", (C, n, height, width), dtype)
            image.fill(0)
            for s, (windows, pixels) in enumerate(across):
                image[..., pixels] += lines[s][..., windows]
            copy_framed(image.transpose(1, 2, 3, 0), (-top, -left), gx[images])

        threads.each(work, threads.chunks(N, P * Q * filters[0].nbytes, self.workspace))
