"""How a tensor-core kernel cuts its matrix product."""

from typing import NamedTuple


class Tile(NamedTuple):
    """A block computes BM x BN of the result, one warp WM x WN of it, in steps of BK of depth.

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
        """Of a block."""
        return self.BM // self.WM * (self.BN // self.WN) * 32
