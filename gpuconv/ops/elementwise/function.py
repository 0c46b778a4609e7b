"""An elementwise function y = f(x) of one operand: the base class of the entries in activation.py.

    y = f(x)        gx = gy * f'(x)

Backward computes f' from x or from y, whichever the entry saves. 16-bit arrays are computed in
float32 and rounded once.
"""

from collections.abc import Callable
from typing import Any

from gpuconv import kernels
from gpuconv.autograd import Op
from gpuconv.backend import Array, cupy
from gpuconv.ops.checks import check_arrays
from gpuconv.ops.engine.elements import write

BYTES = 64  # that a thread of activation.cu reads at once


class Elementwise(Op):
    """An entry of the table: its name, its value and its gradient.

    Saves: x or y, as ``saves`` says, if a gradient is needed.

    Attributes:
        name: of the public function, of the ``activation`` argument of other ops, and of the CUDA
            functor in kernels/elementwise/functors.cuh.
        saves: what ``gradient`` reads: "x", "y", or "" for neither.
        value: ``value(x, out=y)`` writes f(x) into y, both in the accumulator dtype.
        gradient: ``gradient(gy, saved, out=gx)`` writes ``gy * f'`` into gx; ``saved`` is x, y or
            None.
    """

    depends_on, multiply_adds = "pixel", 0
    name: str
    saves: str
    value: Callable[..., Any]
    gradient: Callable[..., Any]
    saved: Any = None

    @classmethod
    def apply(cls, x: Array) -> Array:
        """Return f(x), a Tensor if x is one."""
        check_arrays(cls.name, x=x)
        return cls()(x)

    def save(self, x: Any, y: Any) -> None:
        """Keep what ``gradient`` reads, if a gradient is needed."""
        if self.needs[0] and self.saves:
            self.saved = x if self.saves == "x" else y

    def forward_cpu(self, x):
        y = write(self.value, x)
        self.save(x, y)
        return y

    def backward_cpu(self, gy):
        return (write(self.gradient, gy, self.saved),)

    # -- GPU: kernels/elementwise/activation.cu --------------------------------------------------

    def forward_gpu(self, x):
        y = cupy().empty(x.shape, x.dtype)
        self.launch("activation_forward", x, y)
        self.save(x, y)
        return y

    def backward_gpu(self, gy):
        gx = cupy().empty(gy.shape, gy.dtype)
        self.launch("activation_backward", gy, self.saved, gx)
        return (gx,)

    def launch(self, function: str, *arrays: Any) -> None:
        """Run a kernel of activation.cu; the last array is the output."""
        y = arrays[-1]
        kernel = kernels.kernel("elementwise/activation.cu", function, T=y.dtype,
                                I=kernels.index(y), ACTIVATION=self.name)
        kernel(-(-y.nbytes * (len(arrays) - 1) // BYTES), *arrays, y.size)
