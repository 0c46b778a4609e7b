"""Winograd's convolution with 3x3 filters, stride 1: a quarter of the products, for more sums.

F(4x4, 3x3) makes a tile of 4x4 outputs from 6x6 inputs with 36 products per pair of channel and
filter, where the definition takes 16*9 = 144. d being a tile of the input, g a filter, and * a
product element by element,

    y  = At ( (G g Gt) * (Bt d B) ) A            summed over the channels
    gw = Gt ( (A gy At) * (Bt d B) ) G           summed over tiles and images

For each of the 36 places the sum over channels (or tiles and images) is a product of matrices. The
transforms of all tiles are products as well, of a 6x6, 6x4 or 4x6 matrix with a few very long rows:
they take more multiplications than Winograd's own sums, but few and long calls, which is what
NumPy and several threads are good at. A few images at a time, so that all stays in the cache.

Both gradients in one go need one transform of gy only: it is the input of the convolution that
gives gx, and with the roles of x and gy exchanged, gw turned by 180 degrees is
Gt ((A x At) * (Bt gy B)) G as well.

The order of the sums differs from the definition's, and numbers of different size meet in them: in
float32 errors are about ten times those of the plain product, 1e-5 of the largest output. Inputs
that are not finite spoil the whole tile they are in.

Source: Lavin, Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

from typing import Any

import numpy as np

from gpuconv import threads
from gpuconv.ops.engine.chunks import Piece, Slide, cut, overlap

M = 4  # outputs of a tile are M x M
E = 6  # inputs are E x E
Bt = np.array([[4, 0, -5, 0, 1, 0],
               [0, -4, -4, 1, 1, 0],
               [0, 4, -4, -1, 1, 0],
               [0, -2, -1, 2, 1, 0],
               [0, 2, -1, -2, 1, 0],
               [0, 4, 0, -5, 0, 1]], np.float32)
At = np.array([[1, 1, 1, 1, 1, 0],
               [0, 1, -1, 2, -2, 0],
               [0, 1, 1, 4, 4, 0],
               [0, 1, -1, 8, -8, 1]], np.float32)
G = np.array([[1 / 4, 0, 0],
              [-1 / 6, -1 / 6, -1 / 6],
              [-1 / 6, 1 / 6, -1 / 6],
              [1 / 24, 1 / 12, 1 / 6],
              [1 / 24, -1 / 12, 1 / 6],
              [0, 0, 1]])
FILTERS = np.einsum("ir,js->jirs", G, G).reshape(E * E, 9).astype(np.float32)  # G g Gt, transposed

CHANNELS = 16        # on either side, at least: or the transforms take longer than they save
SAVED = 2            # times fewer products, at least, in tiles that hang over the edge
WORKSPACE = 3 << 19  # bytes of the planes of one side that a thread works on at a time
TILES = 64, 128      # in a piece, at least, or its products would wait for the filters; and for
                     # gradients of filters, or the sums of these would take as long as the products
FEWEST = 32          # likewise, where the work is cut for threads to share
COLUMNS = 1 << 14    # of a transform, at most: OpenBLAS copies larger matrices before it multiplies


class Winograd:
    """Convolution in 36 places; see cpu_dispatch.py.

    x is (N, H, W, C), of any float dtype; taps, the filters, are (3, 3, C, K), float32, and lie
    in memory either so or as (K, 3, 3, C).
    """

    def correlate(self, x: np.ndarray, taps: np.ndarray, b: np.ndarray | None, slide: Slide,
                  y: np.ndarray) -> None:
        """Into y (N, P, Q, K), of any float dtype and strides; b is (K,) or None."""
        filters = self.filters(taps)

        def work(piece: Piece) -> None:
            tiles = _tiles(piece, y.shape[2])
            planes = _planes(x[piece.images], slide.first(piece.rows.start), tiles, Bt, "a", "b")
            _outputs(planes, filters, b, tiles, y[piece.images, piece.rows], "b", "a")

        threads.each(work, self.pieces(y.shape, taps.shape))

    def filters(self, taps: np.ndarray) -> np.ndarray:
        """(6*6, C, K): G g Gt; made of long runs of memory, however the filters lie there."""
        C, K = taps.shape[2:]
        if taps.strides[2] < taps.strides[3]:
            filters = _product(FILTERS, taps.swapaxes(2, 3).reshape(9, K * C))
            return filters.reshape(E * E, K, C).swapaxes(1, 2)
        return _product(FILTERS, taps.reshape(9, C * K)).reshape(E * E, C, K)

    def pieces(self, y: tuple[int, ...], taps: tuple[int, ...], _: Any = None,
               least: int = TILES[0]) -> list[Piece]:
        """The work on outputs of shape y, in whole tiles, ``least`` or more of them."""
        N, P, rows, columns = y[0], y[1], -(-y[1] // M), -(-y[2] // M)
        tile = E * E * max(taps[2:]) * 4  # bytes
        return [Piece(images, slice(some.start * M, min(P, some.stop * M)))
                for images, some in cut(N, rows, columns * tile, max(WORKSPACE, least * tile),
                                        N * rows * columns / FEWEST)]

    def gradient_pieces(self, y: tuple[int, ...], taps: tuple[int, ...],
                        _: Any = None) -> list[Piece]:
        """Likewise, for ``weight_gradient`` and ``gradients``."""
        return self.pieces(y, taps, least=TILES[1])

    def gradient_shape(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Of what ``weight_gradient`` and ``gradients`` give."""
        return E * E, taps[3], taps[2]

    def weight_gradient(self, x: np.ndarray, gy: np.ndarray, slide: Slide, piece: Piece,
                        out: np.ndarray) -> None:
        """Into out (6*6, K, C): the share of a piece; gy is (N, P, Q, K)."""
        tiles = _tiles(piece, gy.shape[2])
        planes = _planes(x[piece.images], slide.first(piece.rows.start), tiles, Bt, "a", "b")
        pulls = _planes(gy[piece.images, piece.rows], (0, 0), tiles, At.T, "c", "b")
        np.matmul(pulls.transpose(0, 2, 1), planes, out=out)  # (36, K, T) (36, T, C)

    def gradients(self, x: np.ndarray, gy: np.ndarray, filters: np.ndarray, slide: Slide,
                  piece: Piece, gx: np.ndarray, out: np.ndarray) -> None:
        """Both gradients: a piece of gx (N, H, W, C), and into out (6*6, K, C) its share of gw.

        ``filters`` are those of the convolution that makes gx, (6*6, K, C); ``slide`` and
        ``piece`` are its, too. What ``filter_gradient`` makes of out is turned by 180 degrees.
        """
        tiles = _tiles(piece, gx.shape[2])
        planes = _planes(gy[piece.images], slide.first(piece.rows.start), tiles, Bt, "a", "b")
        _outputs(planes, filters, None, tiles, gx[piece.images, piece.rows], "b", "c")
        pulls = _planes(x[piece.images, piece.rows], (0, 0), tiles, At.T, "c", "b")
        np.matmul(planes.transpose(0, 2, 1), pulls, out=out)  # (36, K, T) (36, T, C)

    def filter_gradient(self, total: np.ndarray, taps: tuple[int, ...]) -> np.ndarray:
        """Return the sum of all partial gradients as a new array (K, 3, 3, C)."""
        gw = (FILTERS.T @ total.reshape(E * E, -1)).reshape(3, 3, taps[3], taps[2])
        return np.ascontiguousarray(gw.transpose(2, 0, 1, 3))


def pays(C: int, K: int, P: int, Q: int) -> bool:
    """Is this the faster way from C channels to K, for outputs of P x Q pixels?"""
    products = E * E * -(-P // M) * -(-Q // M)
    return min(C, K) >= CHANNELS and 9 * P * Q >= SAVED * products


def _tiles(piece: Piece, Q: int) -> tuple[int, int, int]:
    """Images, rows and columns of tiles of a piece."""
    return (piece.images.stop - piece.images.start,
            -(-(piece.rows.stop - piece.rows.start) // M), -(-Q // M))


def _planes(x: np.ndarray, first: tuple[int, int], tiles: tuple[int, int, int],
            matrix: np.ndarray, here: str, there: str) -> np.ndarray:
    """``matrix`` d ``matrix``t of all tiles d, transposed: (6*6, images * rows * columns, C).

    Tiles are as large as ``matrix`` (6, 6) or (6, 4) is wide, and M pixels apart; the first begins
    at pixel ``first`` of x. The result is in the workspace called ``here``.
    """
    (n, rows, columns), size, C = tiles, matrix.shape[1], x.shape[3]
    height, width = M * (rows - 1) + size, M * (columns - 1) + size
    lines = _workspace(there, (size, n, rows, width, C))  # line a of each tile, image wide
    (into_w, from_w), H = overlap(first[1], width, x.shape[2]), x.shape[1]
    if first[0] < 0 or first[0] + height > H or into_w != slice(0, width):
        lines.fill(0)
    for a in range(size):
        into_h, from_h = overlap(first[0] + a, rows, H, M)
        lines[a][:, into_h, into_w] = x[:, from_h, from_w]
    half = _workspace(here, (E, n, rows, width, C))
    _transform(matrix, lines.reshape(size, n, -1), half.reshape(E, n, -1))

    se, si, sh, sw, sc = half.strides
    lines = _workspace(there, (size, E, n, rows, columns, C))
    lines[...] = np.ndarray(lines.shape, half.dtype, half, 0, (sw, se, si, sh, M * sw, sc))
    planes = _workspace(here, (E * E, n * rows * columns, C))
    _transform(matrix, lines.reshape(size, E, -1), planes.reshape(E, E, -1))
    return planes


def _outputs(planes: np.ndarray, filters: np.ndarray, b: np.ndarray | None,
             tiles: tuple[int, int, int], y: np.ndarray, here: str, there: str) -> None:
    """At (planes filters) A of all tiles, plus b, to where they belong in y (n, P, Q, K)."""
    (n, rows, columns), K, T = tiles, y.shape[3], planes.shape[1]
    products = _workspace(here, (E * E, T, K))
    np.matmul(planes, filters, out=products)
    if b is not None:  # at the point 1 both ways, which has weight 1 in all outputs
        products[E + 1] += b
    half = _workspace(there, (M, E, T * K))
    _transform(At, products.reshape(E, E, -1), half)
    outputs = _workspace(here, (M, M, T * K))
    np.matmul(At, half, out=outputs)  # (column, row)
    outputs = outputs.reshape(M, M, n, rows, columns, K).transpose(2, 3, 1, 4, 0, 5)

    shape = n, rows * M, columns * M, K
    if y.shape == shape and y.flags.c_contiguous:
        y.reshape(n, rows, M, columns, M, K)[...] = outputs
    else:
        image = _workspace(there, shape)
        image.reshape(n, rows, M, columns, M, K)[...] = outputs
        y[...] = image[:, : y.shape[1], : y.shape[2]]


def _transform(matrix: np.ndarray, lines: np.ndarray, out: np.ndarray) -> None:
    """``out[:, i] = matrix @ lines[:, i]``, for a matrix (e, k) and lines (k, B, L)."""
    k, B, L = lines.shape
    parts = -(-L // COLUMNS)
    if parts > 1 and L % parts == 0:
        lines, out = (a.reshape(len(a), B * parts, L // parts) for a in (lines, out))
    np.matmul(matrix, lines.swapaxes(0, 1), out=out.swapaxes(0, 1))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` for a few rows and many columns, cut into runs of columns."""
    out = np.empty((len(a), b.shape[1]), b.dtype)

    def work(piece: slice) -> None:
        np.matmul(a, b[:, piece], out=out[:, piece])

    threads.each(work, threads.chunks(b.shape[1], (len(a) + len(b)) * b.itemsize))
    return out


def _workspace(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return threads.workspace(f"winograd_{name}", shape, np.float32)
