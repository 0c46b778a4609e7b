"""Tile sizes of the tensor-core kernels."""

from typing import NamedTuple


class Tile(NamedTuple):
    """Tile of a thread block: BM x BN of the product, WM x WN for a warp, in steps of BK of depth.

    >>> Tile(128, 128, 32, 64, 64, 3).threads
    128
    """

    BM: int      # rows of a block: output pixels; filters in the weight gradient
    BN: int      # columns of a block
    BK: int      # depth of a stage
    WM: int      # rows of a warp
    WN: int      # columns of a warp
    STAGES: int  # tiles of BM x BK and BN x BK in shared memory: one is multiplied, the others land

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.BM // self.WM * (self.BN // self.WN) * 32
