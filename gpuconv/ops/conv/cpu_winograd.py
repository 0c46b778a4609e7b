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

Both gradients together need only one transform of gy: it is the input of the convolution that
makes gx, and with the roles of x and gy exchanged, gw rotated by 180 degrees is
Gt ((A x At) * (Bt gy B)) G as well.

The order of the sums differs from the definition's, and numbers of different size meet in them: in
float32 errors are about ten times those of the plain product, 1e-5 of the largest output. Inputs
that are not finite spoil the whole tile they are in.

Source: Lavin, Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import numpy as np

from gpuconv import threads
from gpuconv.ops.engine.chunks import Chunk, image_chunks, overlap
from gpuconv.ops.window import ConvShape

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

WORKSPACE = 3 << 19  # bytes of the planes of one side that a thread works on at a time
TILES = 64           # of a chunk, at least: fewer make products that wait for the filters
WGRAD_TILES = 128    # of a chunk of a weight gradient, at least: or adding partial sums takes as
                     # long as the products
FEWEST = 32          # tiles of a chunk, at least, where there are few chunks for threads to share
COLUMNS = 1 << 14    # of a transform, at most: OpenBLAS copies larger matrices before it multiplies


class WinogradConv:
    """Convolution of one group with 36 products per tile; see cpu_dispatch.py.

    x is (N, H, W, C), of any float dtype. The taps, which are the filters, are (3, 3, C, K),
    float32, and lie in memory either so or as (K, 3, 3, C).
    """

    def forward(self, shape: ConvShape, x: np.ndarray, taps: np.ndarray, b: np.ndarray | None,
                y: np.ndarray) -> None:
        """Write conv(x, taps) + b into y (N, P, Q, K), of any float dtype and strides.

        b is (K,) or None.
        """
        filters = self.filters(taps)

        def work(chunk: Chunk) -> None:
            tiles = _tiles(chunk, shape.Q)
            planes = _planes(x[chunk.images], shape.window.first(chunk.rows.start), tiles, Bt, "a",
                             "b")
            _outputs(planes, filters, b, tiles, y[chunk.images, chunk.rows], "b", "a")

        threads.each(work, self.chunks(shape))

    def filters(self, taps: np.ndarray) -> np.ndarray:
        """Return G g Gt (6*6, C, K), from long runs of memory however the taps lie there."""
        C, K = taps.shape[2:]
        if taps.strides[2] < taps.strides[3]:
            filters = _product(FILTERS, taps.swapaxes(2, 3).reshape(9, K * C))
            return filters.reshape(E * E, K, C).swapaxes(1, 2)
        return _product(FILTERS, taps.reshape(9, C * K)).reshape(E * E, C, K)

    def chunks(self, shape: ConvShape, dtype: np.dtype | None = None,
               least: int = TILES) -> list[Chunk]:
        """Return the chunks of y, of whole tiles, ``least`` or more of them."""
        rows, columns = -(-shape.P // M), -(-shape.Q // M)
        tile = E * E * max(shape.C, shape.K) * 4  # bytes
        return [Chunk(images, slice(some.start * M, min(shape.P, some.stop * M)))
                for images, some in image_chunks(
                    shape.N, rows, columns * tile, max(WORKSPACE, least * tile),
                    shape.N * rows * columns / FEWEST)]

    def wgrad_chunks(self, shape: ConvShape, dtype: np.dtype | None = None) -> list[Chunk]:
        """Return the chunks for ``wgrad`` and ``dgrad_wgrad``."""
        return self.chunks(shape, least=WGRAD_TILES)

    def partial_shape(self, shape: ConvShape) -> tuple[int, ...]:
        """Return the shape of the partial sums of ``wgrad`` and ``dgrad_wgrad``: (6*6, K, C)."""
        return E * E, shape.K, shape.C

    def wgrad(self, shape: ConvShape, x: np.ndarray, gy: np.ndarray, chunk: Chunk,
              out: np.ndarray) -> None:
        """Write the weight gradient of one chunk of gy (N, P, Q, K) into out (6*6, K, C)."""
        tiles = _tiles(chunk, shape.Q)
        planes = _planes(x[chunk.images], shape.window.first(chunk.rows.start), tiles, Bt, "a", "b")
        pulls = _planes(gy[chunk.images, chunk.rows], (0, 0), tiles, At.T, "c", "b")
        np.matmul(pulls.transpose(0, 2, 1), planes, out=out)  # (36, K, T) (36, T, C)

    def dgrad_wgrad(self, back: ConvShape, x: np.ndarray, gy: np.ndarray, filters: np.ndarray,
                    chunk: Chunk, gx: np.ndarray, out: np.ndarray) -> None:
        """Write both gradients of one chunk: into gx (N, H, W, C) and out (6*6, K, C).

        ``back`` is the convolution of gy that makes gx, ``filters`` (6*6, K, C) are its filters and
        ``chunk`` is one of its chunks. What ``filter_gradient`` makes of ``out`` is rotated by 180
        degrees.
        """
        tiles = _tiles(chunk, back.Q)
        planes = _planes(gy[chunk.images], back.window.first(chunk.rows.start), tiles, Bt, "a", "b")
        _outputs(planes, filters, None, tiles, gx[chunk.images, chunk.rows], "b", "c")
        pulls = _planes(x[chunk.images, chunk.rows], (0, 0), tiles, At.T, "c", "b")
        np.matmul(planes.transpose(0, 2, 1), pulls, out=out)  # (36, K, T) (36, T, C)

    def filter_gradient(self, shape: ConvShape, total: np.ndarray) -> np.ndarray:
        """Return the sum of all partial gradients as a new array (K, 3, 3, C)."""
        gw = (FILTERS.T @ total.reshape(E * E, -1)).reshape(3, 3, shape.K, shape.C)
        return np.ascontiguousarray(gw.transpose(2, 0, 1, 3))


def _tiles(chunk: Chunk, Q: int) -> tuple[int, int, int]:
    """Return the number of images, and of rows and columns of tiles, of a chunk."""
    return (chunk.images.stop - chunk.images.start,
            -(-(chunk.rows.stop - chunk.rows.start) // M), -(-Q // M))


def _planes(x: np.ndarray, first: tuple[int, int], tiles: tuple[int, int, int],
            matrix: np.ndarray, here: str, there: str) -> np.ndarray:
    """Return ``matrix`` d ``matrix``t of all tiles d, transposed: (6*6, images*rows*columns, C).

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
    """Write At (planes filters) A of all tiles, plus b, into y (n, P, Q, K)."""
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
    """Write ``matrix @ lines[:, i]`` into out[:, i], for a matrix (e, k) and lines (k, B, L)."""
    k, B, L = lines.shape
    parts = -(-L // COLUMNS)
    if parts > 1 and L % parts == 0:
        lines, out = (a.reshape(len(a), B * parts, L // parts) for a in (lines, out))
    np.matmul(matrix, lines.swapaxes(0, 1), out=out.swapaxes(0, 1))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a @ b`` for a few rows and many columns, computed in chunks of columns."""
    out = np.empty((len(a), b.shape[1]), b.dtype)

    def work(chunk: slice) -> None:
        np.matmul(a, b[:, chunk], out=out[:, chunk])

    threads.each(work, threads.chunks(b.shape[1], (len(a) + len(b)) * b.itemsize))
    return out


def _workspace(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return threads.workspace(f"winograd_{name}", shape, np.float32)
