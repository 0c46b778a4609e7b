"""im2col for images of few channels, as the first layer has them: patches as columns.

A row of a patch is a run of S*C numbers in channels-last memory, 9 for a 3x3 filter over RGB, and
copying such short runs takes longer than the product. So each channel becomes a plane of its own
first, and the matrix of patches is written transposed,

    col[(r*S + s)*C + c, (n,p,q)] = x[n, p*SH + r*DH + h0, q + s*DW + w0, c]

in two steps: first what a row of a filter sees, in runs of Q numbers, then, from these lines, what
all its rows see, in runs of P*Q. The stride along a row must be 1.
"""

import math

import numpy as np

from gpuconv import threads
from gpuconv.ops.conv.cpu_im2col import Patches
from gpuconv.ops.engine.chunks import Slide, copy_framed, copy_taps, overlap
from gpuconv.ops.engine.sums import multiply


class Planes(Patches):
    """``Patches``, made in another order."""

    workspace = 2 << 20

    @staticmethod
    def unfold(x: np.ndarray, slide: Slide, rows: slice, columns: int,
               dtype: np.dtype) -> np.ndarray:
        """The matrix of patches (n * rows * columns, R*S*C), column by column."""
        n, C = len(x), x.shape[3]
        (R, S), (SH, _), (DH, DW) = slide.size, slide.step, slide.apart
        P, Q = rows.stop - rows.start, columns
        height, width = slide.reach(P, Q)
        if height * width > P * Q * R * S:
            col = threads.workspace("col", (R, S, C, n, P, Q), dtype)
            copy_taps(x, slide, rows.start, col.transpose(3, 4, 5, 0, 1, 2))
            return col.reshape(R * S * C, -1).T
        image = threads.workspace("framed", (C, n, height, width), dtype)
        copy_framed(x, slide.first(rows.start), image.transpose(1, 2, 3, 0))
        sc, sn, sh, sw = image.strides
        lines = threads.workspace("lines", (S, C, n, height, Q), dtype)
        lines[...] = np.ndarray(lines.shape, dtype, image, 0, (DW * sw, sc, sn, sh, sw))
        ss, sc, sn, sh, sw = lines.strides
        col = threads.workspace("col", (R, S, C, n, P, Q), dtype)
        col[...] = np.ndarray(col.shape, dtype, lines, 0, (DH * sh, ss, sc, sn, SH * sh, sw))
        return col.reshape(R * S * C, -1).T

    def gradient_shape(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Of what ``weight_gradient`` gives: (R*S*C, K), by far the faster product here."""
        return math.prod(taps[:3]), taps[3]

    @staticmethod
    def multiply(col: np.ndarray, g: np.ndarray, out: np.ndarray) -> None:
        """Into out (R*S*C, K)."""
        multiply(col.T, g, out)

    def filter_gradient(self, total: np.ndarray, taps: tuple[int, ...]) -> np.ndarray:
        """Return the sum of all partial gradients as a new array (K, R, S, C)."""
        return total.T.copy().reshape(taps[3], *taps[:3])

    def scatter(self, gy: np.ndarray, w: np.ndarray, slide: Slide, gx: np.ndarray) -> None:
        """Into gx (N, H, W, C): gy (N, P, Q, K) times w (K, R, S, C), each to where it belongs.

        Any stride; w in the dtype to compute in.
        """
        (_, P, Q, K), (_, R, S, C), dtype = gy.shape, w.shape, w.dtype
        (SH, SW), (DH, DW), (H, W) = slide.step, slide.apart, gx.shape[1:3]
        (top, bottom), (left, right) = (  # of the pixels under the windows, those that gx has
            (max(0, start), min(n, start + reach)) for start, reach, n in zip(
                slide.start, slide.reach(P, Q), (H, W), strict=True))
        height, width = max(0, bottom - top), max(0, right - left)
        down = [overlap(slide.start[0] + r * DH - top, P, height, SH) for r in range(R)]
        across = [overlap(slide.start[1] + s * DW - left, Q, width, SW) for s in range(S)]
        filters = w.reshape(K, -1)

        def work(images: slice) -> None:
            g = gy[images].astype(dtype, copy=False).reshape(-1, K)
            n = len(g) // (P * Q)
            if (P, Q, R, S) == (1, 1, H, W) and slide.start == (0, 0):  # each pixel has one
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

        threads.each(work, threads.chunks(len(gy), P * Q * filters[0].nbytes, self.workspace))

