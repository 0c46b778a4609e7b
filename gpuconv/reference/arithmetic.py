"""Arithmetic with broadcasting, and functions of one array, element by element.

    add   y = a + b    ga = gy            gb = gy
    sub   y = a - b    ga = gy            gb = -gy
    mul   y = a * b    ga = gy * b        gb = gy * a
    div   y = a / b    ga = gy / b        gb = -gy * a / (b*b)
    neg   y = -x       gx = -gy
    exp   y = e^x      gx = gy * e^x
    log   y = ln x     gx = gy / x

a or b may be a number. An operand that was broadcast counts several times, so that its gradient is
the sum over the axes along which it was repeated.
"""

from gpuconv.backend import Array, get_array_module


def add(a: Array, b: Array) -> Array:
    """Return a + b.

    >>> import numpy as np
    >>> add(np.array([1.0, 2.0]), 0.5)
    array([1.5, 2.5])
    """
    return a + b


def add_backward(gy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients (ga, gb) of ``add``.

    >>> import numpy as np
    >>> add_backward(np.ones((2, 2)), np.ones((2, 2)), np.ones(2))[1]
    array([2., 2.])
    """
    return sum_to(gy, a), sum_to(gy, b)


def sub(a: Array, b: Array) -> Array:
    """Return a - b.

    >>> import numpy as np
    >>> sub(1, np.array([1.0, 2.0]))
    array([ 0., -1.])
    """
    return a - b


def sub_backward(gy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients (ga, gb) of ``sub``.

    >>> import numpy as np
    >>> sub_backward(np.ones((2, 2)), np.ones((2, 2)), np.ones(2))[1]
    array([-2., -2.])
    """
    return sum_to(gy, a), sum_to(-gy, b)


def mul(a: Array, b: Array) -> Array:
    """Return a * b.

    >>> import numpy as np
    >>> mul(np.array([[1.0], [2.0]]), np.array([3.0, 4.0]))
    array([[3., 4.],
           [6., 8.]])
    """
    return a * b


def mul_backward(gy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients (ga, gb) of ``mul``.

    >>> import numpy as np
    >>> mul_backward(np.ones(2), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    (array([3., 4.]), array([1., 2.]))
    """
    return sum_to(gy * b, a), sum_to(gy * a, b)


def div(a: Array, b: Array) -> Array:
    """Return a / b.

    >>> import numpy as np
    >>> div(np.array([1.0, 0.0]), 4)
    array([0.25, 0.  ])
    """
    return a / b


def div_backward(gy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the gradients (ga, gb) of ``div``.

    >>> import numpy as np
    >>> div_backward(np.ones(1), np.array([3.0]), np.array([2.0]))
    (array([0.5]), array([-0.75]))
    """
    return sum_to(gy / b, a), sum_to(-gy * a / (b * b), b)


def neg(x: Array) -> Array:
    """Return -x.

    >>> import numpy as np
    >>> neg(np.array([1.0, -2.0]))
    array([-1.,  2.])
    """
    return -x


def neg_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``neg``.

    >>> import numpy as np
    >>> neg_backward(np.ones(2), np.zeros(2))
    array([-1., -1.])
    """
    return -gy


def exp(x: Array) -> Array:
    """Return e^x.

    >>> import numpy as np
    >>> exp(np.array([0.0, -np.inf]))
    array([1., 0.])
    """
    return get_array_module(x).exp(x)


def exp_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``exp``.

    >>> import numpy as np
    >>> exp_backward(np.ones(1), np.zeros(1))
    array([1.])
    """
    return gy * exp(x)


def log(x: Array) -> Array:
    """Return the natural logarithm of x.

    >>> import numpy as np
    >>> log(np.array([1.0, np.inf]))
    array([ 0., inf])
    """
    return get_array_module(x).log(x)


def log_backward(gy: Array, x: Array) -> Array:
    """Return the gradient of ``log``.

    >>> import numpy as np
    >>> log_backward(np.ones(1), np.array([4.0]))
    array([0.25])
    """
    return gy / x


def sum_to(g: Array, operand: Array) -> Array:
    """Return the gradient of an operand that was broadcast to the shape of g.

    >>> import numpy as np
    >>> sum_to(np.ones((2, 3)), np.ones((2, 1)))
    array([[3.],
           [3.]])
    """
    shape = getattr(operand, "shape", ())
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
