"""One row against all rows of a matrix, in runs that are long enough.

NumPy starts its inner loop again for each row, which costs as much as 100 elements; and where an
operand is a scalar, the loop of maximum is not vectorised. So as many rows as make RUN elements
are taken for one, and their partner is repeated as often. A scalar is a row of one element.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

RUN = 4096  # elements: their partner stays in L1


def rows_at_once(rows: int, columns: int) -> int:
    """Return the number of rows to compute as one.

    >>> rows_at_once(1000, 32), rows_at_once(3, 32), rows_at_once(10, 5000)
    (128, 3, 1)
    """
    return max(1, min(rows, RUN // max(1, columns)))


def with_row(f: Callable[..., Any], x: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
    """Call ``f(x, row, out=out)`` for contiguous x and out (M, C) and a row (C,), in long runs.

    >>> a = np.arange(6.0).reshape(3, 2); with_row(np.add, a, np.array([10.0, 20.0]), a); a
    array([[10., 21.],
           [12., 23.],
           [14., 25.]])
    """
    M, C = x.shape
    k = rows_at_once(M, C)
    whole = M // k * k
    repeated = np.broadcast_to(row, (k, C)).reshape(-1)  # (k*C,)
    f(x[:whole].reshape(-1, k * C), repeated, out=out[:whole].reshape(-1, k * C))
    if whole < M:
        f(x[whole:], row, out=out[whole:])
