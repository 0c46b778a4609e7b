"""Dropout: each element is zeroed with probability p, the others grow by 1/(1-p).

    keep[i] = words(key, step)[i] >= p * 2**32        a random word of 32 bits for each element
    y[i]    = x[i] * 1/(1-p)  where keep[i], else 0
    gx[i]   = gy[i] * 1/(1-p) where keep[i], else 0

The mask is a function of (key, step, element), see ``gpuconv.random``: backward draws it again.

Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent
neural networks from overfitting", JMLR 15, 2014; CS231n, "Neural networks part 2", on the inverted
form.
"""

from gpuconv import random
from gpuconv.backend import Array, get_array_module


def dropout(x: Array, p: float = 0.5, *, key: tuple[int, int], step: int) -> Array:
    """Return x with each element zeroed with probability p, the others scaled by 1/(1-p).

    Args:
        x: array of any shape; its elements are counted in C order.
        p: probability of a zero, 0 to 1.
        key: (seed, stream), two words of 32 bits.
        step: which of the masks of this key.

    >>> import numpy as np
    >>> dropout(np.ones(8), 0.5, key=(0, 0), step=0)
    array([0., 2., 2., 2., 2., 0., 2., 0.])
    """
    xp = get_array_module(x)
    keep = random.words(x.size, key, step, xp).reshape(x.shape) >= p * 2**32
    return xp.where(keep, x * (1 / (1 - p) if p < 1 else 0.0), 0)


def dropout_backward(gy: Array, x: Array, p: float = 0.5, *, key: tuple[int, int],
                     step: int) -> Array:
    """Return the gradient of ``dropout``: the same mask, the same scale.

    >>> import numpy as np
    >>> dropout_backward(np.ones(8), np.ones(8), 0.5, key=(0, 0), step=0)
    array([0., 2., 2., 2., 2., 0., 2., 0.])
    """
    return dropout(gy, p, key=key, step=step)
